"""Fidelity: does emulating with fitted service times give the staleness and the returns of real threads?

python experiments/fidelity.py            # results/fidelity.png, and a table of tests
python experiments/fidelity.py --quick    # small runs, a check of the script
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

import asyncjax as aj
from asyncjax import fidelity, panels, telemetry


@dataclasses.dataclass(frozen=True)
class Args:
    """What to record and to emulate."""

    env: str = "CartPole-v1"
    """The environment of A3C."""
    num_workers: int = 8
    """Worker threads."""
    num_updates: int = 3000
    """Updates of a run."""
    records: int = 5
    """Threaded runs, each with a seed of its own."""
    seeds: int = 10
    """Emulated runs."""
    num_envs: int = 16
    """Environments of a worker."""
    unroll_length: int = 5
    """Steps per message."""
    per_worker: bool = False
    """A service model for every worker instead of one for all."""
    reuse: bool = False
    """Take the threaded runs that an earlier command with equal arguments kept in the results."""
    quick: bool = False
    """Two records and three seeds of 100 updates."""
    results: Path = Path("results")
    """Folder for the picture."""


def main(args: Args) -> dict[str, dict[str, fidelity.Comparison]]:
    """Records, fits, emulates, tests, draws; tests[model][quantity]."""
    if args.quick:
        args = dataclasses.replace(args, num_updates=100, records=2, seeds=3)
    args.results.mkdir(parents=True, exist_ok=True)
    method = aj.a3c(args.env, num_envs=args.num_envs, unroll_length=args.unroll_length)
    runs = {"threads": [record(args, method, seed) for seed in range(args.records)]}
    for name, times in models(args, runs["threads"][0][0]).items():
        runs[name] = [emulated(args, method, times, args.records + seed) for seed in range(args.seeds)]
    schedules = {name: [schedule for schedule, _ in of] for name, of in runs.items()}
    earned = {name: [values for _, values in of] for name, of in runs.items()}
    staleness = {name: [s.staleness() for s in of_name] for name, of_name in schedules.items()}
    values = {"staleness": staleness, "return": earned}
    tests = {name: test(name, values) for name in staleness if name != "threads"}
    print(table(schedules, values, tests))
    draw(values, tests).savefig(args.results / "fidelity.png")
    print(args.results / "fidelity.png")
    return tests


Run = tuple[aj.Schedule, np.ndarray]  # and the returns


def record(args: Args, method: aj.Method, seed: int) -> Run:
    """A run on threads, kept in the results."""
    schedule_path, returns_path = (args.results / f"threads-{seed}.{ext}" for ext in ("npz", "npy"))
    if not args.reuse:
        size: dict[str, Any] = {"num_workers": args.num_workers, "num_updates": args.num_updates}
        result, schedule = aj.run_threads(method, jax.random.key(seed), **size)
        aj.schedules.save(schedule, schedule_path)
        np.save(returns_path, returns(result))
    return aj.schedules.load(schedule_path), np.load(returns_path)


def models(args: Args, schedule: aj.Schedule) -> dict[str, dict[str, Any]]:
    """How to emulate: arguments of `from_service_times` by name; and prints what was fitted."""
    jobs = fidelity.fit(schedule, per_worker=args.per_worker)
    commit, restart = fidelity.fit_commit(schedule), fidelity.fit_restart(schedule)
    recorded = {
        "jobs": fidelity.service_times(schedule),
        "updates": fidelity.commit_times(schedule),
        "restarts": fidelity.restart_times(schedule),
    }
    for what, times in recorded.items():
        print(f"{what}: mean {times.mean():.2e} s, {np.sum(times <= 0)} of {times.size} took no time")
        for one in fidelity.fits(times[times > 0]).values():
            known = {name: round(float(x), 6) for name, x in one.parameters.items() if np.ndim(x) == 0}
            print(f"  {one.family:12} log-likelihood {one.log_likelihood:9.3f}  distance {one.distance:.3f}  {known}")
    print(f"chosen: {jobs.name}; {commit.name}; {restart.name}")
    queue = {"service": jobs, "commit": commit}
    return {"jobs": {"service": jobs}, "jobs, updates": queue, "jobs, updates, restarts": {**queue, "restart": restart}}


def emulated(args: Args, method: aj.Method, times: dict[str, Any], seed: int) -> Run:
    """A run of the fitted model."""
    key = jax.random.key(seed)
    size: dict[str, Any] = {"num_updates": args.num_updates, "num_workers": args.num_workers}
    schedule = aj.schedules.from_service_times(**times, **size, key=jax.random.fold_in(key, 1))
    return schedule, returns(aj.emulate(method, schedule, key, num_workers=args.num_workers))


def test(name: str, values: dict[str, dict[str, list[np.ndarray]]]) -> dict[str, fidelity.Comparison]:
    """Of the recorded runs against those of this model, for each quantity."""
    return {quantity: fidelity.compare(of["threads"], of[name]) for quantity, of in values.items()}


def table(
    schedules: dict[str, list[aj.Schedule]],
    values: dict[str, dict[str, list[np.ndarray]]],
    tests: dict[str, dict[str, fidelity.Comparison]],
) -> str:
    """Markdown: staleness, the part of it in the queue, return, updates per second; distances and p-values."""
    head = ["", "staleness", "99 %", "in queue", "updates/s", "distance, p", "return", "distance, p"]
    lines = [head, ["---"] * len(head)]
    for name, of_name in schedules.items():
        staleness, earned = (np.concatenate([np.ravel(x) for x in values[q][name]]) for q in ("staleness", "return"))
        queue = np.mean([telemetry.in_queue(s).mean() for s in of_name])
        speed = np.mean([telemetry.throughput(s) for s in of_name])
        told = [f"{t.distance:.2f}, {t.p_value:.3f}" for t in tests[name].values()] if name in tests else ["", ""]
        numbers = [f"{staleness.mean():.2f}", f"{np.quantile(staleness, 0.99):.0f}", f"{queue:.2f}", f"{speed:.0f}"]
        lines.append([name, *numbers, told[0], f"{earned.mean():.1f}", told[1]])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def returns(result: aj.Result) -> np.ndarray:
    """Mean returns of the segments of the second half in which an episode ended."""
    episodes, total = (result.metrics[name][len(result.metrics["loss"]) // 2 :] for name in ("episodes", "return_sum"))
    return total[episodes > 0] / episodes[episodes > 0]


def draw(values: dict[str, dict[str, list[np.ndarray]]], tests: dict[str, dict[str, fidelity.Comparison]]) -> Any:
    """Distribution functions, a line for every run."""
    figure, axes = panels.new_figure(1, 2, size=(2 * panels.COLUMN[0], panels.COLUMN[1]))
    for ax, (quantity, of_sides) in zip(axes.ravel(), values.items(), strict=True):
        for (side, runs), colour in zip(of_sides.items(), panels.cycle(len(of_sides)), strict=True):
            label = f"{side}, p = {tests[side][quantity].p_value:.2g}" if side in tests else side
            for i, run in enumerate(runs):
                x, share = np.unique(np.ravel(run), return_counts=True)
                ax.step(x, share.cumsum() / share.sum(), where="post", color=colour, linewidth=0.7,
                        label=None if i else label)  # fmt: skip
        ax.set_xlabel(quantity)
        ax.set_ylabel("share of messages" if quantity == "staleness" else "share of segments")
        ax.legend(frameon=False, fontsize=7)
    axes.ravel()[0].set_xlim(-1, 40)
    return figure


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
