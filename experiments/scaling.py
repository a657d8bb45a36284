"""How `run_ray` would scale beyond this machine: times measured here, then the virtual clock with 2 to 1,024 workers.

    python experiments/scaling.py

The model is machine repair: a worker reads, works and sends (service time), then waits for the buffer, which serves one
message at a time (commit time). Both are measured, for parameters of each size, on Ray with jobs that compute next to
nothing; jobs of `--work-ms` on machines of their own are added. The commit time is all that the buffer's process
computes for an update, since Python does that on one core: the update itself, putting the view into the object store,
requests and answers. Not in it: a network, which adds to the service times, and shares its bandwidth.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import asyncjax as aj
import figure
from asyncjax.cluster import connected
from asyncjax.plotting.panels import COLOURS, COLUMN, new_figure, powers_of_two
from figure import Arrays

KINDS = ("equal", "straggling")
DISCIPLINES = ("asynchronous", "barrier")


@dataclasses.dataclass(frozen=True)
class Args(figure.Output):
    """What to measure and what to emulate."""

    kilobytes: tuple[int, ...] = (10, 1_000, 10_000)
    """Sizes of the parameters, and so of a gradient."""
    workers: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
    """Emulated teams."""
    work_ms: float = 50.0
    """Milliseconds that a job computes, beside its travels."""
    straggling: tuple[float, float] = (0.05, 10.0)
    """A straggling worker's jobs: how likely, and how many times as long."""
    teams: tuple[int, ...] = (2, 4)
    """Teams on Ray against which the model is checked."""
    seconds: float = 1.0
    """Of one run on Ray, roughly."""
    messages: int = 40
    """Of a worker, in an emulated run; the first quarter is not counted."""
    keep: Path | None = None
    """Folder for what is measured, size by size, so that a run that was stopped continues; for equal arguments only."""


class Times(NamedTuple):
    """What the model knows of one size.

    Attributes:
      service: Float[n], seconds of a job with its travels; samples.
      commit: Float[2], seconds for an update, and in addition for each of its messages.
    """

    service: np.ndarray
    commit: np.ndarray


def main(args: Args) -> Arrays:
    """The figure, its data and its numbers."""
    figure.check(args, zero=("work_ms", "straggling"))
    small = {"kilobytes": (10,), "workers": (2, 8), "teams": (2,), "seconds": 0.1, "messages": 8}
    return figure.command("scaling", args, small, run, plot, report)


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def run(args: Args) -> Arrays:
    """Measures on Ray, and emulates.

    Returns:
      `messages_per_second`, `staleness` and `in_queue`, Float[K, 2, 2, N], for K sizes, the kinds of workers, the
      disciplines and N teams; `measured` and `predicted`, Float[K, M + 2], updates per second of one worker and of
      M teams, asynchronous, and of the largest with a barrier; `service`, Float[K], and `commit`, Float[K, 2], seconds.
    """
    checks = [(1, 1), *[(w, 1) for w in args.teams], (max(args.teams), max(args.teams))]  # workers, group size
    with connected(None, max(args.teams)):
        found = [kept(kilobytes, checks, args) for kilobytes in args.kilobytes]
    times = [Times(of_size["service"], of_size["commit"]) for of_size in found]
    predicted = [[throughput(emulated(of_size, w, g, 0.0, "equal", args)) for w, g in checks] for of_size in times]
    shape = (len(args.kilobytes), len(KINDS), len(DISCIPLINES), len(args.workers))
    values = np.array([
        summary(emulated(of_size, w, w if discipline == "barrier" else 1, 1e-3 * args.work_ms, kind, args))
        for of_size in times for kind in KINDS for discipline in DISCIPLINES for w in args.workers
    ])  # fmt: skip
    names = ("messages_per_second", "staleness", "in_queue")
    return {
        **{name: x.reshape(shape) for name, x in zip(names, values.T, strict=True)},
        **{name: np.array(getattr(args, name)) for name in ("kilobytes", "workers", "teams", "work_ms")},
        "measured": np.array([of_size["measured"] for of_size in found]),
        "predicted": np.array(predicted),
        "service": np.array([of_size.service.mean() for of_size in times]),
        "commit": np.array([of_size.commit for of_size in times]),
    }


def kept(kilobytes: int, checks: list[tuple[int, int]], args: Args) -> Arrays:
    """The measured times and updates per second of one size; from an earlier run, where that was kept."""
    path = None if args.keep is None else args.keep / f"scaling-{kilobytes}.npz"
    if path is not None and path.exists():
        return dict(np.load(path))
    records = {check: record(kilobytes, *check, args.seconds) for check in checks}
    times = calibrate(records[checks[0]], records[checks[-1]])
    arrays = {**times._asdict(), "measured": np.array([throughput(schedule) for schedule, _ in records.values()])}
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)  # type: ignore[arg-type]
    return arrays


def record(kilobytes: int, num_workers: int, group_size: int, seconds: float) -> tuple[aj.Schedule, float]:
    """A run on Ray, and the CPU seconds of an update in the buffer's process."""
    method = aj.sgd(lambda w: 0.5 * jnp.sum(w**2), jnp.ones(kilobytes * 250), optimizer=optax.sgd(1e-3))
    per_second = 800 / (1 + kilobytes / 250) / group_size
    num_updates, marks = max(32, int(seconds * per_second)), list[tuple[int, float]]()

    def callback(chunk: aj.Chunk) -> None:
        marks.append((chunk.schedule.num_updates, time.process_time()))

    options: dict[str, Any] = {"num_workers": num_workers, "num_updates": num_updates, "group_size": group_size}
    options |= {"wait": "next_version"} if group_size > 1 else {}
    _, schedule = aj.run_ray(method, jax.random.key(0), **options, chunk_size=num_updates // 8, callback=callback)
    updates, cpu = np.array(marks[1:-1]).T  # without the first, and without the last, in which the processes are ended
    return schedule, float((cpu[-1] - cpu[0]) / updates[1:].sum())


def calibrate(one: tuple[aj.Schedule, float], grouped: tuple[aj.Schedule, float]) -> Times:
    """The times of the model, from what `record` gave for one worker and for groups.

    A worker on its own never waits: from one commit to the next it takes a service and a commit time.
    """
    (schedule, commit), (groups, of_group) = one, grouped
    message = float(np.clip((of_group - commit) / (groups.group_size - 1), 0.0, commit))
    period = np.diff(np.asarray(schedule.time))[schedule.num_updates // 4 :]
    return Times(np.maximum(period - commit, 1e-6), np.array([commit - message, message]))


def emulated(times: Times, num_workers: int, group_size: int, work: float, kind: str, args: Args) -> aj.Schedule:
    """The schedule of a team on the virtual clock; a barrier where the group has several messages."""
    model = aj.service.Service("measured", lambda rng, worker, n: work + rng.choice(times.service, n))
    if kind == "straggling":
        model = aj.service.straggler(*args.straggling, model)
    commit = float(times.commit @ (1, group_size))
    num_updates = max(16, args.messages * num_workers // group_size)
    return aj.schedules.from_service_times(
        model, num_updates, num_workers, jax.random.key(0), group_size,
        wait="next_version" if group_size > 1 else "never", commit=commit,
    )  # fmt: skip


def throughput(schedule: aj.Schedule) -> float:
    """Updates per second after the first quarter."""
    time, first = np.asarray(schedule.time), schedule.num_updates // 4
    return float((len(time) - 1 - first) / (time[-1] - time[first]))


def summary(schedule: aj.Schedule) -> tuple[float, float, float]:
    """Messages per second, mean staleness and the part of it in the queue, after the first quarter."""
    late = slice(schedule.num_updates // 4, None)
    staleness, in_queue = np.asarray(schedule.staleness()), aj.telemetry.in_queue(schedule)
    return schedule.group_size * throughput(schedule), float(staleness[late].mean()), float(in_queue[late].mean())


# ---------------------------------------------------------------------------------------------------------------------
# What it says


def label(kilobytes: float) -> str:
    """A size as people write it."""
    return f"{kilobytes / 1000:g} MB" if kilobytes >= 1000 else f"{kilobytes:g} kB"


def report(arrays: Arrays) -> str:
    """The check of the model, and from how many workers on the buffer is the limit."""
    checks = ["1", *map(str, arrays["teams"]), f"{arrays['teams'].max()}, barrier"]
    rows = []
    for k, kilobytes in enumerate(arrays["kilobytes"]):
        service, (update, message) = 1e3 * arrays["service"][k], 1e3 * arrays["commit"][k]
        pairs = zip(arrays["measured"][k], arrays["predicted"][k], strict=True)
        limit = (arrays["work_ms"] + service) / (update + message) + 1
        of_team = [f"{measured:.0f} ({predicted:.0f})" for measured, predicted in pairs]
        rows.append([label(kilobytes), f"{service:.2f}", f"{update:.2f} + {message:.2f} G", *of_team, f"{limit:.0f}"])
    head = ["parameters", "travels, ms", "buffer, ms", *[f"workers: {c}" for c in checks], "workers to fill the buffer"]
    return figure.table(head, rows)


def plot(arrays: Arrays) -> Any:
    """Messages per second and staleness against the number of workers; the check of the model."""
    picture, grid = new_figure(2, 3, size=(2.3 * COLUMN[0], 2 * COLUMN[1]))
    workers, sizes = arrays["workers"], list(zip(arrays["kilobytes"], COLOURS, strict=False))
    for kind, (above, below) in enumerate(grid[:, :2].T):
        for k, (kilobytes, colour) in enumerate(sizes):
            for rate, style in zip(arrays["messages_per_second"][k, kind], ("-", "--"), strict=True):
                above.plot(workers, rate, style, color=colour, label=label(kilobytes) if style == "-" else None)
            below.plot(workers, np.maximum(arrays["in_queue"][k, kind, 0], 0.1), "-", color=colour)
        below.plot(workers, arrays["staleness"][0, kind, 0], ":", color=COLOURS[6], label="and in flight")
        above.set_title(f"{KINDS[kind]} workers; dashed: barrier", fontsize=8)
        above.set_ylabel("messages per second")
        below.set_ylabel("staleness in the queue (updates)")
        powers_of_two(above)
        powers_of_two(below)
    grid[0, 0].legend(frameon=False, fontsize=6, loc="lower right")
    grid[1, 0].legend(frameon=False, fontsize=6)
    check, gain = grid[:, 2]
    for k, (_, colour) in enumerate(sizes):
        check.plot(arrays["predicted"][k], arrays["measured"][k], "o", color=colour, markersize=3)
        rate = arrays["messages_per_second"][k]
        for kind, style in enumerate(("-", "--")):
            name = KINDS[kind] if k == 0 else None
            gain.plot(workers, rate[kind, 0] / rate[kind, 1], style, color=colour, label=name)
    both = np.concatenate([arrays["predicted"], arrays["measured"]])
    check.plot([both.min(), both.max()], [both.min(), both.max()], ":", color=COLOURS[6])
    powers_of_two(check)
    check.set_xlabel("updates per second: predicted")
    check.set_ylabel("measured")
    powers_of_two(gain)
    gain.set_ylabel("asynchronous / barrier")
    gain.legend(frameon=False, fontsize=6)
    for axes in (*grid[0, :2], *grid[1]):
        axes.set_xticks(workers[::2])
        axes.set_xlabel("workers")
    return picture


if __name__ == "__main__":
    figure.start(main, Args, __doc__)
