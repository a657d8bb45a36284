"""The host loop over the executables that the threads call: it repeats a threaded run bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from asyncjax.checks import given
from asyncjax.engines.common import (
    check_host,
    check_run,
    chunks,
    concatenate_metrics,
    deliver_after,
    not_finite,
    starting_state,
)
from asyncjax.engines.host_program import HostProgram, Job, Place, View, cached_host_program
from asyncjax.engines.log import Log
from asyncjax.engines.packing import Packed
from asyncjax.engines.waves import last_use, read_parts, stack_reads
from asyncjax.method import Chunk, Method, Result, State
from asyncjax.schedules import Schedule, check, cut


def replay(
    method: Method,
    schedule: Schedule,
    key: jax.Array,
    *,
    state: State | None = None,
    callback: Callable[[Chunk], None] | None = None,
    chunk_size: int = 1024,
    num_workers: int | None = None,
    check_finite: bool = True,
) -> Result:
    """Runs a method under a schedule, one call of `work` and `apply` after the other.

    `replay(method, schedule, key)` of the schedule that `run_threads(method, key, ...)` returned gives its
    parameters, optimizer state and metrics bit for bit. It runs any other well-formed schedule too.

    Args:
      method: four pure functions.
      schedule: any well-formed schedule.
      key: the source of all chance.
      state: where to continue, from an earlier run's callback; the schedule is still the whole one.
      callback: called with a `Chunk` after every `chunk_size` updates.
      chunk_size: updates between two callbacks; it does not change the result.
      num_workers: W, by default one more than the largest worker of the schedule. A worker that
        never finished a job is missing there, and may matter to `method.init`.
      check_finite: stop when the view has a number that is not finite.

    Returns:
      Result(shared, local, metrics).

    Raises:
      ValueError: for a schedule that reads the future or names missing workers.
      FloatingPointError: after the first update that made the view non-finite, naming the worker.

    Example:
      >>> import jax, optax, asyncjax as aj
      >>> method = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(0.1))
      >>> result, schedule = aj.run_threads(method, jax.random.key(0), num_workers=4, num_updates=100)
      >>> again = aj.replay(method, schedule, jax.random.key(0))
      >>> bool(result.shared.params == again.shared.params)
      True
    """
    check_run(method, key, schedule, callback=callback, chunk_size=chunk_size, **given(num_workers=num_workers))
    check_host("replay")
    num_workers = int(num_workers or max(schedule.num_workers, 1))
    schedule = check(schedule, num_workers)
    state = starting_state(state, method, key, num_workers, schedule.num_updates, "schedule")
    parts = read_parts(schedule.read, jax.eval_shape(method.view, state.shared))
    run = _Replay(cached_host_program(method, num_workers, schedule.group_size, parts), schedule, state)
    collected = []

    def deliver(start: int, finite: bool = True) -> None:
        log, run.log = run.log, Log(run.program)
        done = run.now.done
        collected.append(log.read(done - start)[0])
        if callback is not None and done > start:
            callback(Chunk(run.state() if finite else None, collected[-1], cut(schedule, start, done)))

    for start, stop in chunks(state.update, schedule.num_updates, int(chunk_size)):
        bad = None
        try:
            bad = next((t for t in range(start, stop) if not run.update(t) and check_finite), None)
        except BaseException as error:
            deliver_after(error, lambda start=start: deliver(start))
            raise
        deliver(start, finite=bad is None)
        if bad is not None:
            raise not_finite(bad, schedule.worker[bad])
    return Result(*run.state()[1:3], concatenate_metrics(collected or [run.log.read()[0]]))


class _Now(NamedTuple):
    """Where a replay stands after an update. It is replaced as a whole: whatever fails or interrupts, it is of one."""

    done: int
    shared: Packed
    views: dict[int, View]
    local: list[Packed]
    time: float


class _Replay:
    """The state of a replay between two updates."""

    def __init__(self, program: HostProgram, schedule: Schedule, state: State) -> None:
        self.program, self.schedule = program, schedule
        self.read, self.staleness = stack_reads(schedule.read).tolist(), np.asarray(schedule.staleness(), np.int32)
        self.last_use = last_use(stack_reads(schedule.read))
        self.device = jax.devices()[0]
        self.home = program.home(self.device)
        size = program.size  # of the run on threads that it repeats, whose executables are at hand; or else 1
        self.work, self.apply = program.work_on(self.device, size), program.apply_on(self.home, size)
        self.size, self.each = size, (program.updates_a_call(size), schedule.group_size)
        self.num_stacks = -(-program.packed.num_workers // size)  # of private states, as on so many threads
        older = {version: program.packed.pack_view(view) for version, view in state.views.items()}
        loaded = program.load(state.shared, state.local, self.num_stacks)
        shared, view, local = jax.device_put(loaded, self.device)
        views = {**jax.device_put(older, self.device), state.update: view}
        self.now = _Now(state.update, self._move(shared, self.home), views, local, state.time)
        self.log = Log(program)

    def update(self, t: int) -> bool:
        """Does update t; returns whether the view is still finite."""
        local = list(self.now.local)
        group = [self._job(t, g, local) for g in range(self.schedule.group_size)]
        inputs = tuple(j.worked.message for j in group), tuple(j.view for j in group)
        rows, staleness = np.zeros((2, *self.each), np.int32)
        rows[0], staleness[0] = [j.row for j in group], self.staleness[t]
        counts = rows, staleness, np.int32(1), np.bool_(False)
        applied = self.apply(self.now.shared, *self._move(inputs, self.home), *counts)
        views = {**self.now.views, t + 1: self._move(applied.view, self.device)}
        for version in {version for job in group for version in job.read} | {t}:
            if self.last_use[version] <= t:
                views.pop(version, None)
        time = 0.0 if self.schedule.time is None else float(self.schedule.time[t])
        finite = bool(applied.finite)  # what a callback of a job or of the update raised is raised here at the latest
        self.log.append(group, applied.metrics, 0, time)
        self.now = _Now(t + 1, applied.shared, views, local, time)
        return finite

    def _job(self, t: int, g: int, local: list[Packed]) -> Job:
        worker, read = int(self.schedule.worker[t, g]), self.read[t][g]
        if missing := [v for v in read if v not in self.now.views]:
            raise ValueError(
                f"Update {t} reads version {missing[0]}, which the state from update {self.now.done} does not hold:"
                " continue with the schedule that the state comes from."
            )
        parts = range(self.program.packed.num_parts)  # of the view; the last of `read` may have no leaf in it
        view = [self.now.views[read[part]][part] for part in parts]
        row, stack = divmod(worker, self.num_stacks)
        rows = np.full(self.size, row, np.int32)
        worked = self.work(view, local[stack], rows, np.int32(1))
        local[stack] = worked.local
        return Job(worker, read, view, worked, row)

    def _move(self, tree: Any, place: Place) -> Any:
        """Between the device of the workers and that of the learner, where they are not one."""
        return tree if self.home == self.device else jax.device_put(tree, place)

    def state(self) -> State:
        now = self.now
        older = {version: view for version, view in now.views.items() if version != now.done}
        shared = self._move(now.shared, self.device)
        where = (divmod(worker, self.num_stacks) for worker in range(self.program.packed.num_workers))
        local = [(now.local[stack], row) for row, stack in where]
        return self.program.unload(now.done, shared, local, older, now.time, self.device)
