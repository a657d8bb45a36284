"""Fidelity: does emulating with fitted service times give the staleness and the returns of real threads?

python experiments/fidelity.py
python experiments/fidelity.py --quick
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import asyncjax as aj
import figure
from asyncjax import fidelity, telemetry
from asyncjax.plotting import panels
from figure import Arrays

QUANTITIES = ("staleness", "return")


@dataclasses.dataclass(frozen=True)
class Args(figure.Output):
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


Run = tuple[aj.Schedule, np.ndarray]  # and the returns


def main(args: Args) -> Arrays:
    """The figure, its data and its numbers."""
    figure.check(args)
    small = {"num_updates": 100, "records": 2, "seeds": 3}
    return figure.command("fidelity", args, small, run, plot, report)


def run(args: Args) -> Arrays:
    """Records, fits, emulates, tests. "names", and for each "NAME, QUANTITY", runs by messages or segments."""
    method = aj.a3c(args.env, num_envs=args.num_envs, unroll_length=args.unroll_length)
    runs = {"threads": [record(args, method, seed) for seed in range(args.records)]}
    for name, times in models(args, runs["threads"][0][0]).items():
        runs[name] = [emulated(args, method, times, args.records + seed) for seed in range(args.seeds)]
    arrays: Arrays = {"names": np.array(list(runs))}
    for name, of_name in runs.items():
        arrays[f"{name}, staleness"] = together([np.ravel(schedule.staleness()) for schedule, _ in of_name])
        arrays[f"{name}, return"] = together([earned for _, earned in of_name])
        arrays[f"{name}, in queue"] = np.array([telemetry.in_queue(schedule).mean() for schedule, _ in of_name])
        arrays[f"{name}, updates/s"] = np.array([telemetry.throughput(schedule) for schedule, _ in of_name])
        for quantity in QUANTITIES if name != "threads" else ():
            told = fidelity.compare(*(apart(arrays[f"{side}, {quantity}"]) for side in ("threads", name)))
            arrays[f"{name}, {quantity}, test"] = np.array([told.distance, told.p_value])
    return arrays


def together(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of different lengths as one array, filled up with NaN."""
    width = max(len(row) for row in rows)
    return np.array([np.pad(np.asarray(row, float), (0, width - len(row)), constant_values=np.nan) for row in rows])


def apart(rows: np.ndarray) -> list[np.ndarray]:
    """The inverse of `together`."""
    return [row[~np.isnan(row)] for row in rows]


def record(args: Args, method: aj.Method, seed: int) -> Run:
    """A run on threads, kept in the results."""
    schedule_path, returns_path = (args.results / f"threads-{seed}.{ext}" for ext in ("npz", "npy"))
    if not args.reuse:
        # A thread for each worker: the model has workers whose jobs are apart.
        size: dict[str, Any] = {"num_workers": args.num_workers, "num_threads": args.num_workers}
        size["num_updates"] = args.num_updates
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


def returns(result: aj.Result) -> np.ndarray:
    """Mean returns of the segments of the second half in which an episode ended."""
    episodes, total = (result.metrics[name][len(result.metrics["loss"]) // 2 :] for name in ("episodes", "return_sum"))
    return total[episodes > 0] / episodes[episodes > 0]


def report(arrays: Arrays) -> str:
    """Staleness, the part of it in the queue, return, updates per second; distances and p-values."""
    rows = []
    for name in arrays["names"]:
        staleness, earned = (np.concatenate(apart(arrays[f"{name}, {quantity}"])) for quantity in QUANTITIES)
        queue, speed = (arrays[f"{name}, {what}"].mean() for what in ("in queue", "updates/s"))
        tests = [arrays.get(f"{name}, {quantity}, test") for quantity in QUANTITIES]
        told = ["" if test is None else f"{test[0]:.2f}, {test[1]:.3f}" for test in tests]
        numbers = [f"{staleness.mean():.2f}", f"{np.quantile(staleness, 0.99):.0f}", f"{queue:.2f}", f"{speed:.0f}"]
        rows.append([name, *numbers, told[0], f"{earned.mean():.1f}", told[1]])
    head = ["", "staleness", "99 %", "in queue", "updates/s", "distance, p", "return", "distance, p"]
    return figure.table(head, rows)


def plot(arrays: Arrays) -> Any:
    """Distribution functions, a line for every run."""
    picture, both = panels.new_figure(1, 2, size=(2 * panels.COLUMN[0], panels.COLUMN[1]))
    names = list(arrays["names"])
    for axes, quantity in zip(both.ravel(), QUANTITIES, strict=True):
        for name, colour in zip(names, panels.cycle(len(names)), strict=True):
            test = arrays.get(f"{name}, {quantity}, test")
            label = name if test is None else f"{name}, p = {test[1]:.2g}"
            for i, values in enumerate(apart(arrays[f"{name}, {quantity}"])):
                x, share = np.unique(values, return_counts=True)
                once = {} if i else {"label": label}
                axes.step(x, share.cumsum() / share.sum(), where="post", color=colour, linewidth=0.7, **once)
        axes.set_xlabel(quantity)
        axes.set_ylabel("share of messages" if quantity == "staleness" else "share of segments")
        axes.legend(frameon=False, fontsize=7)
    both.ravel()[0].set_xlim(-1, 40)
    return picture


if __name__ == "__main__":
    figure.start(main, Args, __doc__)
