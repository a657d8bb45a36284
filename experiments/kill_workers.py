"""Kills a worker process of a Ray run every few seconds: it has to go on, to end in time and to replay bit for bit.

python experiments/kill_workers.py --seconds 60 --every 5
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import asyncjax as aj
from asyncjax.cluster import connected
from fault_injection import equal, hooked


@dataclasses.dataclass(frozen=True)
class Args:
    """What to run."""

    seconds: float = 60.0
    """Length of the run, from its first chunk."""
    every: float = 5.0
    """Seconds between two kills."""
    num_workers: int = 4
    """Workers."""
    num_processes: int = 2
    """Processes, of which a live one is killed, in turn."""
    service: float = 0.02
    """Mean seconds of a job, exponential."""
    group_size: int = 1
    """Messages per update."""
    bound: int | None = None
    """No worker gets more than this many messages ahead of the slowest one."""


class Over(Exception):
    """The time of the experiment is."""


class Killer:
    """The run's callback: it collects the chunks, kills, and ends the run when its time is over."""

    def __init__(self, args: Args) -> None:
        self.args = args
        self.chunks: list[aj.Chunk] = []
        self.newest: dict[int, int] = {}  # process number -> its id
        self.killed: list[int] = []
        self.began = self.last = self.over = 0.0

    def __call__(self, chunk: aj.Chunk) -> None:
        """After some updates."""
        self.chunks.append(chunk)
        for worker, process in zip(chunk.schedule.worker.ravel(), chunk.metrics["process"].ravel(), strict=True):
            self.newest[int(worker) % self.args.num_processes] = int(process)
        now = time.monotonic()
        if not self.began:
            self.began = self.last = now
        alive = [self.newest[p] for p in sorted(self.newest) if self.newest[p] not in self.killed]
        if alive and now - self.last >= self.args.every:
            self.last = now
            self.killed.append(alive[len(self.killed) % len(alive)])
            os.kill(self.killed[-1], signal.SIGKILL)
        if now - self.began >= self.args.seconds and not self.over:
            self.over = now
            raise Over


def hook(worker: np.ndarray, job: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(1, the process that computes)."""
    return np.ones((), np.float32), np.asarray(os.getpid(), np.int32)


def run(args: Args) -> dict[str, Any]:
    """The run and what came of it."""
    method, killer = hooked(hook), Killer(args)
    options = {"num_workers": args.num_workers, "group_size": args.group_size, "bound": args.bound}
    with contextlib.suppress(Over):
        aj.run_ray(
            method,
            jax.random.key(0),
            num_updates=10**7,
            num_processes=args.num_processes,
            max_restarts=int(args.seconds / args.every) + args.num_processes,
            service=aj.service.exponential(args.service),
            callback=killer,
            chunk_size=10,
            **options,
        )
    ended = time.monotonic()
    schedule = aj.schedules.concatenate([chunk.schedule for chunk in killer.chunks])
    metrics = jax.tree.map(lambda *parts: np.concatenate(parts), *(chunk.metrics for chunk in killer.chunks))
    state = killer.chunks[-1].state
    assert state is not None
    again = aj.replay(method, schedule, jax.random.key(0), num_workers=args.num_workers)
    # A worker's jobs are numbered: each number is there once, whoever computed it.
    jobs = [metrics["job"][schedule.worker == w].tolist() for w in range(args.num_workers)]
    record, repeated = (state.shared, state.local, metrics["loss"]), (again.shared, again.local, again.metrics["loss"])
    return {
        "seconds of the run": killer.over - killer.began,
        "seconds from the request to end until the end": ended - killer.over,
        "kills": len(killer.killed),
        "different processes that took part": len(np.unique(metrics["process"])),
        "updates": schedule.num_updates,
        "messages of each worker": [len(x) for x in jobs],
        "every job counted once": all(x == list(range(len(x))) for x in jobs),
        "replay bitwise equal": equal(record, repeated),
        "longest time without an update, s": float(np.max(np.diff(np.asarray(schedule.time)))),
        "no process left": not any(Path(f"/proc/{process}").exists() for process in killer.newest.values()),
    }


def main(args: Args) -> dict[str, Any]:
    """Runs and prints."""
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    with connected(None, args.num_processes):
        found = run(args)
        for name, value in found.items():
            print(f"{name:52} {value}")
    return found


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
