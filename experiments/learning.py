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
import jax.numpy as jnp
import numpy as np

import asyncjax as aj
from asyncjax import commandline, plotting, statistics
from asyncjax.environment import Environment


@dataclasses.dataclass(frozen=True)
class Learning:
    """What to run."""

    env: str = "CartPole-v1"
    """Environment: any gymnax id."""
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


Args = dict[str, Any]  # the options of `Learning` and of the method, by name


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs all seeds, prints the summary, and writes NAME.json and NAME.png."""
    method, args = commandline.parse(sys.argv[1:] if argv is None else argv, "learning.py", __doc__, learning=Learning)
    outcome = run(method, args)
    name = "-".join(x for x in (method, args["env"], args["engine"], args["label"]) if x)
    results: Path = args["results"]
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{name}.json").write_text(json.dumps({k: np.asarray(v).tolist() for k, v in outcome.items()}))
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
    start = time.perf_counter()
    shared, metrics, staleness = {"emulate": emulated, "threads": threaded}[args["engine"]](args, method, updates)
    evaluation = evaluate(args, method, env, shared)
    steps, returns = curve(metrics, per_update, args["points"])
    seconds = time.perf_counter() - start
    return {"evaluation": evaluation, "steps": steps, "returns": returns, "staleness": staleness, "seconds": seconds}


def evaluate(args: Args, method: aj.Method, env: Environment, shared: Any) -> np.ndarray:
    """Float[S], the mean return of each seed's final policy."""
    options = {"num_episodes": args["eval_episodes"], "greedy": not args["sample"]}
    each = jax.jit(jax.vmap(lambda s, key: aj.evaluate(method, env, s, key, **options).mean()))
    return np.asarray(each(shared, jax.random.split(jax.random.key(1), args["seeds"])))


def emulated(args: Args, method: aj.Method, num_updates: int) -> tuple[Any, Any, float]:
    """Every seed under a schedule of its own."""
    keys = jax.random.split(jax.random.key(0), args["seeds"])
    service, workers, group_size = aj.service.exponential(), args["num_workers"], args["group_size"]
    schedules = [
        aj.schedules.from_service_times(service, num_updates, workers, jax.random.fold_in(key, 0), group_size)
        for key in keys
    ]

    def one(worker: Any, read: Any, key: Any) -> aj.Result:
        return aj.emulate(method, aj.Schedule(worker, read), key, num_workers=workers)

    if args["together"]:
        read, worker = (np.stack([np.asarray(getattr(s, name)) for s in schedules]) for name in ("read", "worker"))
        result = jax.vmap(one)(worker, read, keys)
    else:
        result = stack([one(s.worker, s.read, key) for s, key in zip(schedules, keys, strict=True)])
    return result.shared, result.metrics, float(np.mean([s.staleness().mean() for s in schedules]))


def threaded(args: Args, method: aj.Method, num_updates: int) -> tuple[Any, Any, float]:
    """One run after the other on host threads."""
    sizes = {"num_workers": args["num_workers"], "num_updates": num_updates, "group_size": args["group_size"]}
    runs = [aj.run_threads(method, jax.random.key(seed), **sizes) for seed in range(args["seeds"])]
    result = stack([result for result, _ in runs])
    return result.shared, result.metrics, float(np.mean([schedule.staleness().mean() for _, schedule in runs]))


def stack(results: list[aj.Result]) -> aj.Result:
    """One result with the seeds on axis 0; without the workers' states, which nobody asks for."""
    shared_and_metrics = [aj.Result(result.shared, (), result.metrics) for result in results]
    return jax.tree.map(lambda *x: jnp.stack(x), *shared_and_metrics)


def curve(metrics: Any, per_update: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean return of the episodes that ended in each stretch of updates; where none did, the stretch before counts."""
    totals = {name: np.asarray(metrics[name]).sum(-1) for name in ("return_sum", "episodes")}
    stretches = np.array_split(np.arange(totals["episodes"].shape[1]), points)
    sums, counts = (np.stack([totals[n][:, s].sum(-1) for s in stretches], -1) for n in ("return_sum", "episodes"))
    returns = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    for i in range(1, returns.shape[1]):
        returns[:, i] = np.where(np.isnan(returns[:, i]), returns[:, i - 1], returns[:, i])
    first = int(np.argmax(~np.isnan(returns).any(0)))  # the curve begins when every seed has finished an episode
    return np.array([(s[-1] + 1) * per_update for s in stretches])[first:], returns[:, first:]


if __name__ == "__main__":
    main()
