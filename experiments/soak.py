"""Endurance: a long run on threads, and what it does to memory, descriptors, threads and throughput.

    python experiments/soak.py --minutes 30 --num-workers 64

SGD on a small quadratic with artificial exponential service times and a `Recorder` as callback, as the training command
has it. The workers sleep nearly all the time, so that throughput depends on the engine alone and not on what else the
machine does: it is num_workers / service whatever else happens, unless something leaks, drifts or gets stuck.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import asyncjax as aj

PAGE = resource.getpagesize()


@dataclasses.dataclass(frozen=True)
class Args:
    """What to run."""

    minutes: float = 30.0
    """Length of the run."""
    num_workers: int = 64
    """Threads."""
    service: float = 0.2
    """Mean seconds of a job, exponential."""
    row_every: float = 1.0
    """Seconds between two rows of metrics, and of measurements."""
    checkpoint_every: float = 60.0
    """Seconds between two checkpoints."""
    num_params: int = 1000
    """Parameters of the quadratic."""
    seed: int = 0
    """Of everything."""
    results: Path = Path("results")
    """Folder for the measurements."""


class Sample(NamedTuple):
    """The process at one moment.

    Attributes:
      seconds: of the clock `time.monotonic`.
      megabytes: resident memory.
      descriptors: open files, pipes, sockets.
      threads: of the operating system, XLA's included.
      workers: threads of Python.
    """

    seconds: float
    megabytes: float
    descriptors: int
    threads: int
    workers: int


def sample() -> Sample:
    """Now; from /proc, so on Linux only."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6
    descriptors, threads = (len(os.listdir(f"/proc/self/{of}")) for of in ("fd", "task"))
    return Sample(time.monotonic(), resident, descriptors, threads, threading.active_count())


def slope(seconds: np.ndarray, values: np.ndarray, skip: float = 0.2) -> float:
    """Least-squares slope per minute, without the first part of the time.

    Example:
      >>> slope(np.arange(10.0), 3 * np.arange(10.0))
      180.0
    """
    kept = seconds >= seconds[0] + skip * (seconds[-1] - seconds[0])
    seconds, values = seconds[kept] - seconds[kept].mean(), values[kept] - values[kept].mean()
    return round(60 * float(seconds @ values / (seconds @ seconds)), 6)


def first_and_last(times: np.ndarray, window: float) -> tuple[float, float]:
    """Updates per second in the first and in the last `window` seconds of a run that began at time 0.

    Example:
      >>> first_and_last(np.array([0.5, 1.0, 1.5, 3.0, 4.0]), window=2.0)
      (1.5, 1.0)
    """
    end = times[-1]
    return float(np.sum(times <= window) / window), float(np.sum(times > end - window) / window)


def bytes_per_update(schedule: aj.Schedule, metrics: dict[str, np.ndarray]) -> float:
    """Of the record that a run keeps for its result."""
    arrays = [np.asarray(x) for x in jax.tree.leaves((schedule, metrics))]
    return sum(x.nbytes for x in arrays) / schedule.num_updates


def soak(args: Args, run_dir: Path) -> dict[str, Any]:
    """The run; returns what was measured."""
    method = aj.sgd(
        lambda w, target: 0.5 * jnp.sum(jnp.square(w - target)),
        jnp.ones(args.num_params, jnp.float32),
        optimizer=optax.adam(1e-3),
        sample=lambda key: jax.random.normal(key, (args.num_params,), jnp.float32),
    )
    rate = args.num_workers / args.service
    options: dict[str, Any] = {"num_workers": args.num_workers, "service": aj.service.exponential(args.service)}
    aj.run_threads(method, jax.random.key(args.seed), num_updates=args.num_workers, **options)  # compiles
    before, samples = sample(), list[Sample]()
    cpu, wall = time.process_time(), time.monotonic()
    config = {"num_workers": args.num_workers, "minutes": args.minutes}
    saving = {"checkpoint_every": args.checkpoint_every, "on_row": lambda _: samples.append(sample())}
    with aj.Recorder(run_dir, config, **saving) as recorder:
        result, schedule = aj.run_threads(
            method,
            jax.random.key(args.seed),
            num_updates=max(args.num_workers, round(60 * args.minutes * rate)),
            chunk_size=max(1, round(rate * args.row_every)),
            callback=recorder,
            **options,
        )
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    after = sample()
    table = np.array(samples)
    assert schedule.time is not None
    first, last = first_and_last(np.asarray(schedule.time), min(60.0, 30 * args.minutes))
    recorded = bytes_per_update(schedule, result.metrics) * rate * 60 / 1e6
    return {
        "updates": schedule.num_updates,
        "minutes": wall / 60,
        "cores used": cpu / wall,
        "updates/s, first minute": first,
        "updates/s, last minute": last,
        "last / first": last / first,
        "memory, MB: before, first, last row": [round(x) for x in (before.megabytes, table[0, 1], table[-1, 1])],
        "memory, MB/min": slope(table[:, 0], table[:, 1]),
        "of it the record's arrays, MB/min": recorded,
        "descriptors: before, most, after": [before.descriptors, int(table[:, 2].max()), after.descriptors],
        "descriptors/min": slope(table[:, 0], table[:, 2]),
        "threads: before, most, after": [before.threads, int(table[:, 3].max()), after.threads],
        "Python threads: before, most, after": [before.workers, int(table[:, 4].max()), after.workers],
        "loads": bool(aj.runs.load(run_dir).metrics["update"][-1] == schedule.num_updates),
        "samples": [list(row) for row in samples],
    }


def main(args: Args) -> dict[str, Any]:
    """Runs, prints, and writes results/soak.json."""
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    with tempfile.TemporaryDirectory() as folder:
        found = soak(args, Path(folder) / "run")
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "soak.json").write_text(json.dumps(found, default=float))
    for name, value in found.items():
        if name != "samples":
            print(f"{name:40} {value if isinstance(value, (list, int)) else format(value, ',.4g')}")
    return found


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
