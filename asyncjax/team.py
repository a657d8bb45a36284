"""The workers' threads and the buffer that they share: the engine behind `run_threads` and `run_ray`."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from asyncjax.discipline import Coordinator
from asyncjax.engine import concatenate_metrics, not_finite, then
from asyncjax.host import Applied, Device, HostProgram, Job, Log, View
from asyncjax.method import Chunk, Metrics, Result, State
from asyncjax.packing import Packed
from asyncjax.schedules import Schedule, concatenate

CALL_SECONDS = 0.05  # of jobs in one call, so that a run that ends, ends soon

Group = list[Job]


class Busy(NamedTuple):
    """What a thread is at."""

    workers: list[int]
    since: float


class Team:
    """The threads and what they share. `cluster.RemoteTeam` has other processes do their jobs.

    Thread t carries the workers t, t + T, t + 2 T, ... of T threads: it does the jobs of those that may begin in calls
    that take several, on one view, and hands their messages in one by one.

    `commit_lock` guards the coordinator's counts, the groups, the state and the log, and is held for moving pointers
    only; `writer_lock` is held by the one who computes updates. Readers take no lock: they pick up pointers to
    immutable arrays.
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
        self.num_threads, self.num_updates, self.check_finite = num_threads, num_updates, check_finite
        num_workers = program.packed.num_workers
        self.size = -(-num_workers // num_threads)  # K, the rows of a thread
        self.home = program.home(devices[0])
        self.device_of = [devices[t % len(devices)] for t in range(num_threads)]
        self.single_device = len({self.home, *self.device_of}) == 1
        self.apply = program.apply_on(self.home, self.size)
        self.work_of = [program.work_on(device, self.size) for device in self.device_of]

        shared, view, local = program.load(state.shared, state.local, num_threads)
        self.shared: Packed = jax.device_put(shared, self.home)
        # The buffer: for each part of the view a pointer to (version, array), swapped whole.
        self.published = [(state.update, part) for part in jax.device_put(view, self.home)]
        # Each worker's private state after its last message that counts: arrays of its thread's workers, and its row.
        rows = [jax.device_put(x, d) for x, d in zip(local, self.device_of, strict=True)]
        self.local: list[tuple[Packed, int]] = [(rows[w % num_threads], w // num_threads) for w in range(num_workers)]
        self.group: Group = []
        self.complete: list[Group] = []  # groups that wait for their update
        self.claimed = state.update  # the version that the last complete group leads to
        self.log = Log(program)
        self.finite = True
        self.taken: tuple[Log, Any] | None = None

        self.commit_lock = threading.Lock()
        self.writer_lock = threading.Lock()
        self.turn = threading.Condition()  # told when a waiting worker may have its turn
        self.wake = threading.Event()  # tells the caller's thread that there is something to do
        self.stopping = threading.Event()
        self.failure: BaseException | None = None
        self.busy: list[Busy | None] = [None] * num_threads
        self.begin = threading.Event()  # all workers begin together
        self.started_at = state.time
        self.origin = time.perf_counter() - self.started_at
        self.next_wake = num_updates
        if state.update >= num_updates:
            self.stopping.set()

    # -- the caller's thread -------------------------------------------------------------------------------------------

    def run(self, callback: Callable[[Chunk], None] | None, chunk_size: int, timeout: float) -> tuple[Result, Schedule]:
        """Starts the threads, delivers chunks, and returns when all have ended."""
        collected: list[tuple[Metrics, Schedule]] = []

        def deliver() -> None:
            chunk = self._take(with_state=callback is not None)
            self.taken = None  # from here on it is the callback's
            if chunk.schedule.num_updates:
                collected.append(chunk[1:])
                if callback is not None:
                    callback(chunk)

        threads = [
            threading.Thread(target=self._thread, args=(t,), name=named(self._workers(t)), daemon=True)
            for t in range(self.num_threads)
        ]
        self.next_wake = self.coordinator.version + chunk_size
        if callback is not None:
            self._state()  # compiles what chunks need, before anything is timed
        try:
            for thread in threads:
                thread.start()
            self.origin = time.perf_counter() - self.started_at
            self.begin.set()
            while self.coordinator.version < self.num_updates and self.failure is None:
                self.wake.wait(0.1)
                self.wake.clear()
                self._check_stuck(timeout)
                if self.coordinator.version >= self.next_wake:
                    self.next_wake += chunk_size
                    deliver()
            self._stop(threads)
            if self.failure is not None:
                raise self.failure
            deliver()
        except BaseException as error:
            self._stop(threads)
            then(error, deliver)
            raise
        state = self._state()
        metrics, schedules = zip(*(collected or [self.log.read()]), strict=True)
        return Result(state.shared, state.local, concatenate_metrics(metrics)), concatenate(schedules)

    def _check_stuck(self, timeout: float) -> None:
        now = time.perf_counter()
        for busy in self.busy:
            if busy is not None and now - busy.since > timeout:
                raise TimeoutError(
                    f"{named(busy.workers)} has been busy with one job for {now - busy.since:.1f} s, at update"
                    f" {self.coordinator.version}; timeout={timeout} s. If jobs may take this long, raise timeout=."
                )

    def _stop(self, threads: Sequence[threading.Thread]) -> None:
        """Ends all threads. One that is stuck in a job can not be ended; it is left behind as a daemon."""
        self.stopping.set()
        with self.turn:
            self.turn.notify_all()
        self.begin.set()
        deadline = time.perf_counter() + 5.0
        # Whether a thread runs is asked of the interpreter: an interrupted `start` or `join` leaves it in doubt.
        while time.perf_counter() < deadline and set(threads) & set(threading.enumerate()):
            time.sleep(0.001)

    def _take(self, with_state: bool) -> Chunk:
        """What happened since the last chunk. It is kept in `taken` until it is delivered, come what may."""
        if self.taken is None:
            with self.commit_lock:  # for moving pointers only; the copies are made outside
                snapshot = (self.coordinator.version, self.shared, list(self.local), self._now())
                self.taken, self.log = (self.log, snapshot), Log(self.program)
        log, snapshot = self.taken
        metrics, schedule = log.read()
        return Chunk(self._unload(*snapshot) if with_state and self.finite else None, metrics, schedule)

    def _state(self) -> State:
        return self._unload(self.coordinator.version, self.shared, self.local, self._now())

    def _unload(self, update: int, shared: Packed, local: Sequence[tuple[Packed, int]], now: float) -> State:
        return self.program.unload(update, shared, local, {}, now, self.home)

    def _now(self) -> float:
        return time.perf_counter() - self.origin

    # -- the workers' threads ------------------------------------------------------------------------------------------

    def _thread(self, thread: int) -> None:
        workers = self._workers(thread)
        local, at_once = self.local[thread][0], 1
        mine = workers
        try:
            self.begin.wait()
            while waiting := self._wait_for_turn(mine):
                begin, read, view = self._read(waiting)
                while waiting and not self._over():
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
        return list(range(thread, len(self.local), self.num_threads))

    def _fail(self, error: BaseException) -> None:
        """Records the first failure; it ends the run."""
        with self.turn:
            if self.failure is None:
                self.failure = error
            self.stopping.set()
            self.turn.notify_all()
        self.wake.set()

    def _over(self) -> bool:
        """Whether no job is to begin: with the last group complete none is, though its update is still to come."""
        return self.stopping.is_set() or self.claimed >= self.num_updates

    def _wait_for_turn(self, workers: list[int]) -> list[int]:
        """Waits until the discipline lets some of the workers begin, and returns those; none when the run is over."""
        rule = self.coordinator
        if not any(map(rule.may_begin, workers)):
            with self.turn:
                while not (self.stopping.is_set() or any(map(rule.may_begin, workers))):
                    self.turn.wait()
        wanted = (self.num_updates - self.claimed) * rule.discipline.group_size
        return [] if self._over() else [worker for worker in workers if rule.may_begin(worker)][:wanted]

    def _read(self, workers: list[int]) -> tuple[float, list[int], View]:
        """The time, and what the buffer has: the version of each part, and the view."""
        begin = self._now()
        pointers = [part for part in self.published]  # noqa: C416 - one pointer after the other, as a reader does
        read = [version for version, _ in pointers]
        for worker in workers:
            self.coordinator.read[worker] = min(read)
        return begin, read, [array for _, array in pointers]

    def _work(
        self, thread: int, workers: list[int], read: list[int], view: View, local: Packed, begin: float
    ) -> list[Job]:
        """A job of each of these workers, in one call; none when the run ended meanwhile."""
        rows = np.zeros(self.size, np.int32)
        rows[: len(workers)] = [worker // self.num_threads for worker in workers]
        self.busy[thread] = Busy(workers, time.perf_counter())
        try:
            here = view if self.single_device else jax.device_put(view, self.device_of[thread])
            worked = jax.block_until_ready(self.work_of[thread](here, local, rows, np.int32(len(workers))))
            if not self.single_device:
                worked = worked._replace(message=jax.device_put(worked.message, self.home))
            if self.service is not None:
                self.stopping.wait(next(self.service[thread]) - (self._now() - begin))
        finally:
            self.busy[thread] = None
        end = self._now()
        jobs = [
            Job(worker, read, view, worked, int(row), begin, end) for worker, row in zip(workers, rows, strict=False)
        ]
        return [] if self.stopping.is_set() else jobs

    def _hand_in(self, jobs: list[Job], before: Packed) -> Packed:
        """Adds messages to the current group, and sees to it that complete groups are committed.

        Returns the private states of the thread's workers: as before, where a message came too late and is dropped.
        """
        rule, after = self.coordinator, jobs[0].worked.local
        with self.commit_lock:
            late = [job.row for job in jobs if not self._accept(job)]
            behind = rule.version < self.claimed
        if behind:  # a worker's next read sees every update that was due when it handed in
            with self.writer_lock:
                try:
                    self._commit()
                except BaseException:
                    self.stopping.set()  # before anyone else gets the lock: nothing is built on a failed update
                    raise
        if rule.discipline.wait != "never" or rule.discipline.bound is not None:
            with self.turn:
                self.turn.notify_all()
        if not late or self._over():
            return after
        return self.program.choose(after, before, np.isin(np.arange(self.size), late))

    def _accept(self, job: Job) -> bool:
        """Whether a message counts. The caller holds the commit lock."""
        rule = self.coordinator
        if self._over() or rule.is_late(job.worker, self.claimed):
            return False
        rule.handed_in(job.worker)
        self.group.append(job)
        if len(self.group) == rule.discipline.group_size:
            self.complete.append(self.group)
            self.group = []
            self.claimed += 1
        return True

    def _commit(self) -> None:
        """Applies all groups that wait, one after the other, and publishes the version that they lead to.

        The caller holds the writer's lock. Whoever comes while it is taken leaves its group to the next holder: the
        device's queue, in which an update stands behind other workers' jobs, is then waited for once and not once each.
        """
        with self.commit_lock:
            groups, self.complete = self.complete, []
        if not groups or self.stopping.is_set():
            return  # another worker has done it
        version, shared = self.coordinator.version, self.shared
        begun: list[tuple[list[Group], Applied]] = []
        try:
            for together in self._calls(groups):
                applied = self._apply(shared, version, together)
                version, shared = version + len(together), applied.shared
                begun.append((together, applied))
        finally:
            self._finish(begun)
        if version == self.num_updates:
            self.stopping.set()
        if version >= min(self.next_wake, self.num_updates):
            self.wake.set()

    def _calls(self, groups: list[Group]) -> list[list[Group]]:
        """The groups that one call of `apply` takes: messages that one call of `work` gave, where each is a group."""
        if self.program.group_size > 1 or self.program.apply_calls_back:
            return [[group] for group in groups]
        return [list(same) for _, same in itertools.groupby(groups, key=lambda group: id(group[0].worked))]

    def _apply(self, shared: Packed, version: int, groups: list[Group]) -> Applied:
        if self.coordinator.discipline.wait == "next_version":  # a set: its order should not depend on arrival
            for group in groups:
                group.sort(key=lambda job: job.worker)
        rows = np.zeros((self.program.updates_a_call(self.size), self.program.group_size), np.int32)
        staleness = np.zeros_like(rows)
        for i, group in enumerate(groups):
            rows[i] = [job.row for job in group]
            staleness[i] = [version + i - min(job.read) for job in group]
        messages, views = tuple(job.worked.message for job in groups[0]), tuple(job.view for job in groups[0])
        count, check = np.int32(len(groups)), np.bool_(self.check_finite)
        return self.apply(shared, messages, views, rows, staleness, count, check)

    def _finish(self, begun: list[tuple[list[Group], Applied]]) -> None:
        """Waits for updates, and publishes the last one that succeeded: a version that is not there yet is none."""
        done: list[tuple[list[Group], Applied]] = []
        version = self.coordinator.version
        try:
            for groups, applied in begun:
                count = int(applied.count)
                done.append((groups[:count], applied))
                version += count
                if self.check_finite and not bool(applied.finite):
                    self.finite = False
                    raise not_finite(version - 1, np.array([job.worker for job in groups[count - 1]]))
        finally:
            if done:
                self._publish(done[-1][1].view, version)
                self._record(done)

    def _publish(self, view: View, version: int) -> None:
        """Swaps the pointers of the buffer."""
        for part, array in enumerate(view):
            self.published[part] = (version, array)
            if len(view) > 1:
                time.sleep(0)  # lets readers in between the leaves

    def _record(self, done: list[tuple[list[Group], Applied]]) -> None:
        """Takes over what the updates gave. The version is counted up last: who sees it finds it in the buffer."""
        with self.commit_lock:
            for groups, applied in done:
                self.shared = applied.shared
                now = self._now()
                for row, group in enumerate(groups):
                    for job in group:
                        self.local[job.worker] = (job.worked.local, job.row)
                    self.log.append(group, applied.metrics, row, now)
                self.coordinator.version += len(groups)


def named(workers: Sequence[int]) -> str:
    """How messages call them: `worker 3`, or `workers 3, 5, 7`."""
    return f"worker{'s' if len(workers) > 1 else ''} {', '.join(map(str, workers))}"
