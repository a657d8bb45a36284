"""Host threads on one shared, versioned buffer of parameters."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np

from asyncjax.discipline import Coordinator, Discipline, Wait
from asyncjax.engine import check_positive, concatenate_metrics, not_finite, starting_state, then
from asyncjax.host import Applied, Device, HostProgram, Job, Log, View, cached_host_program
from asyncjax.method import Chunk, Method, Metrics, Result, State
from asyncjax.packing import Packed
from asyncjax.schedules import Schedule, concatenate
from asyncjax.service import Service, streams

Publication = Literal["atomic", "leaf"]


def run_threads(
    method: Method,
    key: jax.Array,
    *,
    num_workers: int,
    num_updates: int,
    group_size: int = 1,
    wait: Wait = "never",
    bound: int | None = None,
    publication: Publication = "atomic",
    service: Service | None = None,
    devices: Sequence[Device] | None = None,
    timeout: float = 300.0,
    state: State | None = None,
    callback: Callable[[Chunk], None] | None = None,
    chunk_size: int = 1024,
    check_finite: bool = True,
) -> tuple[Result, Schedule]:
    """Runs a method on real threads and records the schedule that happened.

    Every worker is a thread that reads the buffer (a pointer swap, so consistent and without waiting),
    calls `work` on what it read, and commits: one lock makes the commits serial and numbers them. Given
    the recorded schedule, `replay` repeats the run bit for bit.

    Args:
      method: four pure functions.
      key: the source of all chance but the schedule.
      num_workers: W threads.
      num_updates: T, the version at which the run ends.
      group_size: G, messages per update.
      wait: "never", or "next_version" (with group_size=num_workers: the barrier); see `Discipline`.
      bound: no worker gets more than this many messages ahead of the slowest one (SSP).
      publication: "atomic", or "leaf": leaf by leaf, so that readers may see torn views, which
        are recorded as such.
      service: artificial service times: a job then takes at least that many seconds.
      devices: where the workers run, round robin; the buffer lives on the first, or where `data_parallel` has put
        it. All local ones by default.
      timeout: seconds that one job may take before the run is given up.
      state: where to continue, from an earlier run's callback.
      callback: called in this thread with a `Chunk` after about every `chunk_size` updates, and with
        what is left when the run ends, fails or is interrupted.
      chunk_size: updates between two callbacks.
      check_finite: stop when the view has a number that is not finite.

    Returns:
      (Result, Schedule): as from the other engines, and the schedule that happened with the measured
      seconds of reads, messages and commits. With `state`, both cover the updates since then.

    Raises:
      ValueError: for arguments that no run could follow.
      FloatingPointError: after the first update that made the view non-finite, naming the worker.
      TimeoutError: naming the worker that did not finish a job in time.
      Whatever a worker raises, with a note that names the worker.

    Example:
      >>> import jax, optax, asyncjax as aj
      >>> method = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(0.1))
      >>> result, schedule = aj.run_threads(method, jax.random.key(0), num_workers=4, num_updates=100)
      >>> schedule.num_updates, aj.schedules.is_realizable(schedule)
      (100, True)
    """
    check_positive(chunk_size=chunk_size, num_updates=num_updates, timeout=timeout, num_workers=num_workers)
    if publication not in get_args(Publication):
        raise ValueError(f"publication={publication!r}: choose one of {', '.join(map(repr, get_args(Publication)))}.")
    discipline = Discipline(group_size, wait, bound).check(num_workers)
    state = starting_state(state, method, key, num_workers, num_updates, "num_updates")
    num_leaves = len(jax.tree.leaves(jax.eval_shape(method.view, state.shared)))
    parts = tuple(range(num_leaves)) if publication == "leaf" else (0,) * num_leaves
    team = Team(
        cached_host_program(method, num_workers, group_size, parts),
        Coordinator(discipline, num_workers, state.update),
        state,
        devices or jax.local_devices(),
        None if service is None else streams(service, jax.random.fold_in(key, num_workers), num_workers),
        num_updates,
        check_finite,
    )
    return team.run(callback, chunk_size, timeout)


class Team:
    """The workers and what they share. `cluster.RemoteTeam` has other processes do their jobs.

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
        num_updates: int,
        check_finite: bool,
    ) -> None:
        self.program, self.coordinator, self.service = program, coordinator, service
        self.num_updates, self.check_finite = num_updates, check_finite
        num_workers = program.packed.num_workers
        self.home = program.home(devices[0])
        self.device_of = [devices[w % len(devices)] for w in range(num_workers)]
        self.single_device = len({self.home, *self.device_of}) == 1
        self.apply = program.apply_on(self.home)
        self.work_of = [program.work_on(device) for device in self.device_of]

        shared, view, local = program.load(state.shared, state.local)
        self.shared: Packed = jax.device_put(shared, self.home)
        # The buffer: for each part of the view a pointer to (version, array), swapped whole.
        self.published = [(state.update, part) for part in jax.device_put(view, self.home)]
        self.local: list[Packed] = [jax.device_put(x, d) for x, d in zip(local, self.device_of, strict=True)]
        self.group: list[Job] = []
        self.complete: list[list[Job]] = []  # groups that wait for their update
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
        self.in_work_since: list[float | None] = [None] * num_workers
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
            threading.Thread(target=self._worker, args=(w,), name=f"worker {w}", daemon=True)
            for w in range(self.program.packed.num_workers)
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
        for worker, since in enumerate(self.in_work_since):
            if since is not None and now - since > timeout:
                raise TimeoutError(
                    f"worker {worker} has been busy with one job for {now - since:.1f} s, at update"
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
                snapshot = (self.coordinator.version, self.shared, list(self.local), {}, self._now())
                self.taken, self.log = (self.log, snapshot), Log(self.program)
        log, snapshot = self.taken
        metrics, schedule = log.read()
        return Chunk(self._unload(snapshot) if with_state and self.finite else None, metrics, schedule)

    def _state(self) -> State:
        return self._unload((self.coordinator.version, self.shared, self.local, {}, self._now()))

    def _unload(self, snapshot: Any) -> State:
        update, shared, local, views, now = snapshot
        return self.program.unload(update, shared, jax.device_put(local, self.home), views, now)

    def _now(self) -> float:
        return time.perf_counter() - self.origin

    # -- the workers' threads ------------------------------------------------------------------------------------------

    def _worker(self, worker: int) -> None:
        try:
            local = self.local[worker]
            self.begin.wait()
            while self._wait_for_turn(worker):
                job = self._work(worker, local)
                if job is not None and self._hand_in(job):
                    local = job.worked.local
        except BaseException as error:
            error.add_note(f"Raised in worker {worker}, at update {self.coordinator.version}.")
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Records the first failure; it ends the run."""
        with self.turn:
            if self.failure is None:
                self.failure = error
            self.stopping.set()
            self.turn.notify_all()
        self.wake.set()

    def _wait_for_turn(self, worker: int) -> bool:
        """Waits until the discipline lets the worker begin; False when the run is over."""
        if not self.coordinator.may_begin(worker):
            with self.turn:
                while not (self.stopping.is_set() or self.coordinator.may_begin(worker)):
                    self.turn.wait()
        # With the last group complete there is nothing to begin any more, though its update is still to come.
        return not self.stopping.is_set() and self.claimed < self.num_updates

    def _work(self, worker: int, local: Packed) -> Job | None:
        """One job; None when the run ended meanwhile."""
        begin = self._now()
        pointers = [part for part in self.published]  # noqa: C416 - one pointer after the other, as a reader does
        read, view = [version for version, _ in pointers], [array for _, array in pointers]
        self.coordinator.read[worker] = min(read)
        self.in_work_since[worker] = time.perf_counter()
        try:
            here = view if self.single_device else jax.device_put(view, self.device_of[worker])
            worked = jax.block_until_ready(self.work_of[worker](here, local))
            if not self.single_device:
                worked = worked._replace(message=jax.device_put(worked.message, self.home))
            if self.service is not None:
                self.stopping.wait(next(self.service[worker]) - (self._now() - begin))
        finally:
            self.in_work_since[worker] = None
        return None if self.stopping.is_set() else Job(worker, read, view, worked, begin, self._now())

    def _hand_in(self, job: Job) -> bool:
        """Adds a message to the current group, and sees to it that a complete group is committed.

        Returns False for a message that came too late and is dropped.
        """
        rule = self.coordinator
        with self.commit_lock:
            if self.stopping.is_set() or self.claimed == self.num_updates:
                return False
            accepted = not rule.is_late(job.worker, self.claimed)
            if accepted:
                rule.handed_in(job.worker)
                self.group.append(job)
            if len(self.group) == rule.discipline.group_size:
                self.complete.append(self.group)
                self.group = []
                self.claimed += 1
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
        return accepted

    def _commit(self) -> None:
        """Applies all groups that wait, one after the other, and publishes the version that they lead to.

        The caller holds the writer's lock. Whoever comes while it is taken leaves its group to the next holder: the
        device's queue, in which an update stands behind other workers' jobs, is then waited for once and not once each.
        """
        with self.commit_lock:
            groups, self.complete = self.complete, []
        if not groups or self.stopping.is_set():
            return  # another worker has done it
        update, shared = self.coordinator.version, self.shared
        begun: list[tuple[list[Job], Applied]] = []
        try:
            for group in groups:
                if self.coordinator.discipline.wait == "next_version":  # a set: its order should not depend on arrival
                    group.sort(key=lambda job: job.worker)
                staleness = np.array([update - min(job.read) for job in group], np.int32)
                messages, views = tuple(job.worked.message for job in group), tuple(job.view for job in group)
                applied = self.apply(shared, messages, views, staleness)
                update, shared = update + 1, applied.shared
                begun.append((group, applied))
        finally:
            self._finish(begun)
        if update == self.num_updates:
            self.stopping.set()
        if update >= min(self.next_wake, self.num_updates):
            self.wake.set()

    def _finish(self, begun: list[tuple[list[Job], Applied]]) -> None:
        """Waits for updates, and publishes the last one that succeeded: a version that is not there yet is none."""
        done: list[tuple[list[Job], Applied]] = []
        try:
            for group, applied in begun:
                jax.block_until_ready(applied)
                done.append((group, applied))
                if self.check_finite and not bool(applied.finite):
                    self.finite = False
                    raise not_finite(self.coordinator.version + len(done) - 1, np.array([job.worker for job in group]))
        finally:
            if done:
                self._publish(done[-1][1].view, self.coordinator.version + len(done))
                self._record(done)

    def _publish(self, view: View, version: int) -> None:
        """Swaps the pointers of the buffer."""
        for part, array in enumerate(view):
            self.published[part] = (version, array)
            if len(view) > 1:
                time.sleep(0)  # lets readers in between the leaves

    def _record(self, done: list[tuple[list[Job], Applied]]) -> None:
        """Takes over what the updates gave. The version is counted up last: who sees it finds it in the buffer."""
        with self.commit_lock:
            for group, applied in done:
                self.shared = applied.shared
                for job in group:
                    self.local[job.worker] = job.worked.local
                self.log.append(group, applied.metrics, self._now())
                self.coordinator.version += 1
