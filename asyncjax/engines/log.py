"""What a run did, update by update: its schedule and metrics, as `replay` and the threads log them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from asyncjax.engines.host_program import HostProgram, Job, Worked
from asyncjax.engines.packing import Packed, Packer, merge_metrics
from asyncjax.method import Metrics
from asyncjax.schedules import Schedule

NOTHING = Worked({}, {}, {})


class Log:
    """The updates so far; their metrics stay on the device until they are asked for."""

    def __init__(self, program: HostProgram) -> None:
        self.program = program
        self.jobs: list[Job] = []
        self.times: list[float] = []
        self.of_work: list[tuple[Packed, int]] = []  # metrics, and the row that counts
        self.of_apply: list[tuple[Packed, int]] = []

    def append(self, group: Sequence[Job], metrics: Packed, row: int, time: float) -> None:
        """One update. Messages, views and private states are let go; only what is small is kept."""
        for job in group:
            self.jobs.append(job._replace(view=[], worked=NOTHING))
            self.of_work.append((job.worked.metrics, job.row))
        self.of_apply.append((metrics, row))
        self.times.append(time)

    def read(self, num_updates: int | None = None) -> tuple[Metrics, Schedule]:
        """The metrics and the schedule of the logged updates, or of the first few."""
        count = len(self.times) if num_updates is None else num_updates
        shape = (count, self.program.group_size)
        if not count:
            return self.program.packed.no_metrics(self.program.group_size), self._schedule(0)
        of_work = _collect(self.program.work_metrics, self.of_work[: math.prod(shape)])
        metrics = {n: x.reshape(*shape, *x.shape[1:]) for n, x in of_work.items()}
        of_apply = _collect(self.program.apply_metrics, self.of_apply[:count])
        return merge_metrics(metrics, of_apply), self._schedule(count)

    def _schedule(self, num_updates: int) -> Schedule:
        shape = (num_updates, self.program.group_size)
        jobs, times = self.jobs[: math.prod(shape)], self.times[:num_updates]
        worker = np.array([job.worker for job in jobs], np.int32).reshape(shape)
        begin = np.array([job.begin for job in jobs], np.float64).reshape(shape)
        end = np.array([job.end for job in jobs], np.float64).reshape(shape)
        num_parts = self.program.packed.num_parts
        parts = [np.array([job.read[p] for job in jobs], np.int32).reshape(shape) for p in range(num_parts)]
        read: Any = parts[0]
        if num_parts > 1:
            structure = jax.tree.structure(self.program.packed.view_like)
            read = structure.unflatten([parts[p] for p in self.program.packed.parts])
        return Schedule(worker, read, np.array(times, np.float64), begin, end)


def _collect(packer: Packer, found: list[tuple[Packed, int]]) -> Metrics:
    """The packed metrics of many updates, each a row of what one call gave, as arrays over the updates."""
    if not found:
        return {}
    calls = {id(packed): packed for packed, _ in found}
    here = {key: {dtype: np.asarray(x) for dtype, x in packed.items()} for key, packed in calls.items()}
    stacked = {dtype: np.stack([here[id(packed)][dtype][row] for packed, row in found]) for dtype in found[0][0]}
    return {name: np.asarray(x) for name, x in packer.unpack(stacked).items()}  # type: ignore[arg-type]
