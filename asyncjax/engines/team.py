"""The workers' threads and the caller's: the engine behind `run_threads` and `run_ray`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from asyncjax.discipline import Coordinator
from asyncjax.engines.buffer import Buffer
from asyncjax.engines.common import concatenate_metrics, deliver_after
from asyncjax.engines.host_program import HostProgram, Job, View
from asyncjax.engines.packing import Packed
from asyncjax.method import Chunk, Device, Metrics, Result, State
from asyncjax.schedules import Schedule, concatenate

CALL_SECONDS = 0.05  # of jobs in one call, so that a run that ends, ends soon


class Busy(NamedTuple):
    """What a thread is at."""

    workers: list[int]
    since: float


class Team:
    """The threads of a run, and the caller's, around one buffer. `cluster.RemoteTeam` has processes do their jobs.

    Thread t carries the workers t, t + T, t + 2 T, ... of T threads: it does the jobs of those that may begin in calls
    that take several, on one view, and hands their messages in one by one.
    """

    def __init__(
        self,
        program: HostProgram,
        coordinator: Coordinator,
        state: State,
        devices: Sequence[Device],
        service: list[Iterator[float]] | None,
        num_threads: int,
        num_updates: int,
        check_finite: bool,
    ) -> None:
        self.program, self.coordinator, self.service = program, coordinator, service
        self.num_threads, self.num_updates = num_threads, num_updates
        self.device_of = [devices[t % len(devices)] for t in range(num_threads)]
        self.buffer = Buffer(program, coordinator, state, self.device_of, num_updates, check_finite)
        self.single_device = len({self.buffer.home, *self.device_of}) == 1
        self.work_of = self._executables()
        self.turn = threading.Condition()  # told when a waiting worker may have its turn
        self.begin = threading.Event()  # all workers begin together
        self.x64: bool = jax.config.jax_enable_x64  # type: ignore[attr-defined]  # maybe of the caller's thread alone
        self.failure: BaseException | None = None
        self.busy: list[Busy | None] = [None] * num_threads

    # -- the caller's thread -------------------------------------------------------------------------------------------

    def run(self, callback: Callable[[Chunk], None] | None, chunk_size: int, timeout: float) -> tuple[Result, Schedule]:
        """Starts the threads, delivers chunks, and returns when all have ended."""
        buffer, collected = self.buffer, list[tuple[Metrics, Schedule]]()

        def deliver() -> None:
            chunk = buffer.take(with_state=callback is not None)
            buffer.taken = None  # from here on it is the callback's
            if chunk.schedule.num_updates:
                collected.append(chunk[1:])
                if callback is not None:
                    callback(chunk)

        threads = [
            threading.Thread(target=self._thread, args=(t,), name=named(self._workers(t)), daemon=True)
            for t in range(self.num_threads)
        ]
        buffer.next_wake = self.coordinator.version + chunk_size
        if callback is not None:
            buffer.state()  # compiles what chunks need, before anything is timed
        try:
            for thread in threads:
                thread.start()
            buffer.restart_clock()
            self.begin.set()
            while self.coordinator.version < self.num_updates and self.failure is None:
                buffer.wake.wait(0.1)
                buffer.wake.clear()
                self._check_stuck(timeout)
                if self.coordinator.version >= buffer.next_wake:
                    buffer.next_wake += chunk_size
                    deliver()
            self._stop(threads)
            if self.failure is not None:
                raise self.failure
            deliver()
        except BaseException as error:
            self._stop(threads)
            deliver_after(error, deliver)
            raise
        state = buffer.state()
        metrics, schedules = zip(*(collected or [buffer.log.read()]), strict=True)
        return Result(state.shared, state.local, concatenate_metrics(metrics)), concatenate(schedules)

    def _check_stuck(self, timeout: float) -> None:
        now, version = time.perf_counter(), self.coordinator.version
        since = {f"{named(busy.workers)} has been busy with one job": busy.since for busy in self.busy if busy}
        if (committing := self.buffer.committing) is not None:
            since["The writer has been busy with one commit"] = committing
        for what, began in since.items():
            if now - began > timeout:
                raise TimeoutError(
                    f"{what} for {now - began:.1f} s, at update {version}; timeout={timeout} s. If that may take this"
                    " long, raise timeout=."
                )

    def _stop(self, threads: Sequence[threading.Thread]) -> None:
        """Ends all threads. One that is stuck in a job can not be ended; it is left behind as a daemon."""
        self.buffer.stopping.set()
        with self.turn:
            self.turn.notify_all()
        self.begin.set()
        deadline = time.perf_counter() + 5.0
        # Whether a thread runs is asked of the interpreter: an interrupted `start` or `join` leaves it in doubt.
        while time.perf_counter() < deadline and set(threads) & set(threading.enumerate()):
            time.sleep(0.001)

    def _executables(self) -> list[Any]:
        """What does the jobs of each thread; see `HostProgram.work_on`."""
        return [self.program.work_on(device, self.buffer.size) for device in self.device_of]

    # -- the workers' threads ------------------------------------------------------------------------------------------

    def _thread(self, thread: int) -> None:
        workers = self._workers(thread)
        local, at_once = self.buffer.local[thread][0], 1
        mine = workers
        try:
            with jax.enable_x64(self.x64):
                self.begin.wait()
                while waiting := self._wait_for_turn(mine):
                    begin, read, view = self._read(waiting)
                    while waiting and not self.buffer.over():
                        workers, waiting = waiting[:at_once], waiting[at_once:]
                        started = time.perf_counter()
                        jobs = self._work(thread, workers, read, view, local, begin)
                        at_once = max(1, int(CALL_SECONDS * len(workers) / (time.perf_counter() - started)))
                        if jobs:
                            local = self._hand_in(jobs, local)
        except BaseException as error:
            error.add_note(f"Raised in {named(workers)}, at update {self.coordinator.version}.")
            self._fail(error)

    def _workers(self, thread: int) -> list[int]:
        return list(range(thread, self.program.packed.num_workers, self.num_threads))

    def _fail(self, error: BaseException) -> None:
        """Records the first failure; it ends the run."""
        with self.turn:
            if self.failure is None:
                self.failure = error
            self.buffer.stopping.set()
            self.turn.notify_all()
        self.buffer.wake.set()

    def _wait_for_turn(self, workers: list[int]) -> list[int]:
        """Waits until the discipline lets some of the workers begin, and returns those; none when the run is over."""
        rule, buffer = self.coordinator, self.buffer
        while not buffer.over():
            if admitted := buffer.admit(workers):
                return admitted
            with self.turn:
                while not (buffer.stopping.is_set() or any(map(rule.may_begin, workers))):
                    self.turn.wait()
        return []

    def _read(self, workers: list[int]) -> tuple[float, list[int], View]:
        """The time, and what the buffer has: the version of each part, and the view."""
        begin = self.buffer.now()
        read, view = self.buffer.read()
        for worker in workers:
            self.coordinator.read[worker] = min(read)
        return begin, read, view

    def _work(
        self, thread: int, workers: list[int], read: list[int], view: View, local: Packed, begin: float
    ) -> list[Job]:
        """A job of each of these workers, in one call; none when the run ended meanwhile."""
        buffer = self.buffer
        rows = np.zeros(buffer.size, np.int32)
        rows[: len(workers)] = [worker // self.num_threads for worker in workers]
        self.busy[thread] = Busy(workers, time.perf_counter())
        try:
            here = view if self.single_device else jax.device_put(view, self.device_of[thread])
            worked = jax.block_until_ready(self.work_of[thread](here, local, rows, np.int32(len(workers))))
            if not self.single_device:
                worked = worked._replace(message=jax.device_put(worked.message, buffer.home))
            if self.service is not None:
                buffer.stopping.wait(next(self.service[thread]) - (buffer.now() - begin))
        finally:
            self.busy[thread] = None
        end = buffer.now()
        jobs = [
            Job(worker, read, view, worked, int(row), begin, end) for worker, row in zip(workers, rows, strict=False)
        ]
        return [] if buffer.stopping.is_set() else jobs

    def _hand_in(self, jobs: list[Job], before: Packed) -> Packed:
        """Hands messages in, and returns the private states of the thread's workers: of dropped messages as before."""
        late, after = self.buffer.hand_in(jobs), jobs[0].worked.local
        if self.coordinator.discipline.may_wait:
            with self.turn:
                self.turn.notify_all()
        if not late or self.buffer.over():
            return after
        return self.program.choose(after, before, np.isin(np.arange(self.buffer.size), late))


def named(workers: Sequence[int]) -> str:
    """How messages call them: `worker 3`, or `workers 3, 5, 7`."""
    return f"worker{'s' if len(workers) > 1 else ''} {', '.join(map(str, workers))}"
