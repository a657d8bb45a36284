"""How well a method learns: many seeds, emulated in one compiled program, or one after the other on threads.

    python experiments/learning.py a3c --env CartPole-v1 --engine emulate
    python experiments/learning.py a3c --env CartPole-v1 --engine threads

Every seed has its own parameters, environments and schedule. Prints the returns of the final greedy policies and draws
the learning curve with a 95 % bootstrap band. Every option of the method is an option here.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

import asyncjax as aj
from asyncjax import commandline, files, plotting, runs, statistics
from asyncjax.checks import check_counts
from asyncjax.sweeps import summaries
from asyncjax.sweeps.batch_progress import BatchProgress
from asyncjax.sweeps.store import Store
from asyncjax.threads import num_cores
from figure import check_replaced
from train import divide_cpu, exit_code


@dataclasses.dataclass(frozen=True)
class Learning:
    """What to run."""

    env: str = "CartPole-v1"
    """Environment: any gymnax id, or gymnasium:ID, envpool:ID (both on the host, for threads), or brax:ID."""
    env_params: tuple[str, ...] = ()
    """Parameters of the environment that differ from its defaults, as name=value."""
    engine: Literal["emulate", "threads"] = "emulate"
    """emulate: workers with exponential service times. threads: real ones, seed by seed."""
    together: bool = True
    """emulate: all seeds in one program. For images one after the other is faster on a CPU."""
    num_workers: int = 8
    """Asynchronous workers."""
    group_size: int = 1
    """Messages per update."""
    total_steps: int = 500_000
    """Environment steps of all workers of one seed."""
    seeds: int = 10
    """Seeds 0, 1, ..., each a run of its own."""
    eval_episodes: int = 100
    """Fresh episodes for the final policy of each seed."""
    sample: bool = False
    """Evaluate the policy by sampling from it instead of taking its most probable action."""
    points: int = 50
    """Points of the learning curve."""
    results: Path = Path("results")
    """Folder for the data and the picture."""
    label: str = ""
    """Added to the names of the files, to keep variants apart."""
    keep: Path | None = None
    """Folder for finished seeds, so that a run that was stopped, or gets more seeds, continues; for equal arguments
    only."""


WHERE = ("results", "label", "keep")  # of which what is found does not depend
COUNTS = ("num_workers", "group_size", "total_steps", "seeds", "eval_episodes", "points")
Args = dict[str, Any]  # the options of `Learning` and of the method, by name


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs all seeds, prints the summary, and writes NAME.json and NAME.png."""
    method, args = commandline.parse(sys.argv[1:] if argv is None else argv, "learning.py", __doc__, learning=Learning)
    check_counts(**{name: args[name] for name in COUNTS})
    name = "-".join(x for x in (method, args["env"], args["engine"], args["label"]) if x)
    results: Path = args["results"]
    runs.make_directory(results, "folder", "--results")
    arguments = {name: value for name, value in args.items() if name not in WHERE}
    written = results / f"{name}.json"
    if written.exists():
        before = runs.read_json(written).get("arguments")
        check_replaced(written, before, arguments, "a --label, or another folder with --results")
    if args["engine"] == "emulate":
        divide_cpu(num_cores())  # the seeds of a batch are split over them
    outcome = run(method, args)
    found = {k: np.asarray(v).tolist() for k, v in outcome.items()}
    files.replace(written, json.dumps({**found, "arguments": arguments}))
    title = f"{method}, {args['engine']}"
    plotting.learning_curve({title: (outcome["steps"], outcome["returns"])}).savefig(results / f"{name}.png")
    middle, low, high = (float(x[0]) for x in statistics.interquartile_mean(outcome["evaluation"][:, None]))
    _, *last = (float(x[-1]) for x in statistics.interquartile_mean(outcome["returns"]))
    print(f"{title} on {args['env']}, {args['num_workers']} workers, {args['total_steps']:,} steps")
    print(f"  evaluation by seed: {np.round(outcome['evaluation'], 2).tolist()}")
    print(f"  median {np.median(outcome['evaluation']):.2f}, interquartile mean {middle:.2f} [{low:.2f}, {high:.2f}]")
    print(f"  last training returns: interquartile mean within [{last[0]:.2f}, {last[1]:.2f}]")
    print(f"  mean staleness {outcome['staleness']:.2f}; {outcome['seconds']:.1f} s for all seeds, compiling included")
    print(f"  {results / name}.png")
    return outcome


def run(name: str, args: Args) -> dict[str, Any]:
    """Evaluation returns Float[S], the curve's steps Float[L] and returns Float[S, L], staleness and seconds."""
    env = commandline.make_env_from(args["env"], args["env_params"])
    method = commandline.build(commandline.factories()[name], env, args)
    per_update = commandline.steps_per_message(env, args) * args["group_size"]
    updates = -(-args["total_steps"] // per_update)
    curve = summaries.curve(min(args["points"], updates))
    evaluation = summaries.evaluation(env, args["eval_episodes"], greedy=not args["sample"])
    start = time.perf_counter()
    engine = {"emulate": emulated, "threads": threaded}[args["engine"]]
    values = engine(args, method, updates, curve, evaluation)
    seconds = time.perf_counter() - start
    returns = values["return_curve"]
    first = int(np.argmax(~np.isnan(returns).any(0)))  # the curve begins when every seed has finished an episode
    steps = summaries.stretch_ends(updates, returns.shape[1]) * per_update
    return {
        "evaluation": values["evaluation"],
        "steps": steps[first:],
        "returns": returns[:, first:],
        "staleness": float(values["staleness"].mean()),
        "seconds": seconds,
    }


def emulated(args: Args, method: aj.Method, num_updates: int, curve: Any, evaluation: Any) -> dict[str, np.ndarray]:
    """Every seed under a schedule of its own: name -> Float[S, ...]."""
    workers, group_size = args["num_workers"], args["group_size"]

    def schedule(key: jax.Array) -> aj.Schedule:
        return aj.schedules.from_service_times(aj.service.exponential(), num_updates, workers, key, group_size)

    table = aj.sweep(
        method,
        schedule,
        key=jax.random.key(0),
        seeds=args["seeds"],
        summarize=[curve, evaluation, summaries.mean_staleness],
        num_workers=workers,
        batch_size=None if args["together"] else 1,
        directory=args["keep"],
    )
    return {name: x[0] for name, x in table.values.items()}


def threaded(args: Args, method: aj.Method, num_updates: int, curve: Any, evaluation: Any) -> dict[str, np.ndarray]:
    """One run after the other on host threads."""
    sizes = {"num_workers": args["num_workers"], "num_updates": num_updates, "group_size": args["group_size"]}
    store = Store(args["keep"], jax.random.key(0))
    todo = [seed for seed in range(args["seeds"]) if ({}, seed) not in store]
    with BatchProgress(args["seeds"], args["seeds"] - len(todo)) as shown:
        for seed in todo:
            run_key, evaluation_key = jax.random.split(jax.random.key(seed))
            result, schedule = aj.run_threads(method, run_key, **sizes)
            row = {**jax.jit(curve)(result), **evaluation(result, method, evaluation_key)}
            row["staleness"] = schedule.staleness().mean()
            store.add([({}, seed)], {name: np.asarray(x)[None] for name, x in row.items()})
            shown.advance(1)
    return {name: x[0] for name, x in store.table([{}], range(args["seeds"])).values.items()}


if __name__ == "__main__":
    sys.exit(exit_code(main, lambda error: ""))
