"""What the workers of a run share: the newest version, the groups that lead to the next ones, and the log of it all."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence

import jax
import numpy as np

from asyncjax.discipline import Coordinator, Groups
from asyncjax.engines.common import not_finite
from asyncjax.engines.host_program import Applied, HostProgram, Job, View
from asyncjax.engines.log import Log
from asyncjax.engines.packing import Packed
from asyncjax.method import Chunk, Device, State

Group = list[Job]


class Buffer:
    """The versioned buffer: threads read it and hand their messages in, and one of them at a time makes the updates.

    `commit_lock` guards the coordinator's counts, the groups, the state and the log, and is held for moving pointers
    only; `writer_lock` is held by the one who computes updates. Readers take no lock: they pick up pointers to
    immutable arrays.

    Args:
      program: of the method.
      coordinator: of the discipline; counted up here.
      state: where the run begins.
      device_of: each thread's device; the buffer is on the first, or where the program says.
      num_updates: T.
      check_finite: stop after the first update that made the view non-finite.
    """

    def __init__(
        self,
        program: HostProgram,
        coordinator: Coordinator,
        state: State,
        device_of: Sequence[Device],
        num_updates: int,
        check_finite: bool,
    ) -> None:
        self.program, self.coordinator = program, coordinator
        self.num_updates, self.check_finite = num_updates, check_finite
        num_workers, num_threads = program.packed.num_workers, len(device_of)
        self.size = -(-num_workers // num_threads)  # K, the rows of a thread
        self.home = program.home(device_of[0])
        self.apply = program.apply_on(self.home, self.size)

        shared, view, local = program.load(state.shared, state.local, num_threads)
        self.shared: Packed = jax.device_put(shared, self.home)
        # For each part of the view a pointer to (version, array), swapped whole.
        self.published = [(state.update, part) for part in self._listed(jax.device_put(view, self.home))]
        # Each worker's private state after its last message that counts: arrays of its thread's workers, and its row.
        rows = [jax.device_put(x, d) for x, d in zip(local, device_of, strict=True)]
        self.local: list[tuple[Packed, int]] = [(rows[w % num_threads], w // num_threads) for w in range(num_workers)]
        self.groups = Groups[Job](coordinator.count, coordinator.discipline.group_size)
        self.complete: list[Group] = []  # groups that wait for their update
        self.claimed = state.update  # the version that the last complete group leads to
        self.log = Log(program)
        self.finite = True
        self.taken: tuple[Log, tuple[int, Packed, list[tuple[Packed, int]], float]] | None = None

        self.commit_lock = threading.Lock()
        self.writer_lock = threading.Lock()
        self.committing: float | None = None  # since when somebody computes updates
        self.stopping = threading.Event()
        self.wake = threading.Event()  # tells the caller's thread that there is something to do
        self.next_wake = num_updates
        self.started_at = state.time
        self.restart_clock()
        if state.update >= num_updates:
            self.stopping.set()

    # -- time, and what there is ---------------------------------------------------------------------------------------

    def restart_clock(self) -> None:
        """The run begins now, at the time of the state that it begins with."""
        self.origin = time.perf_counter() - self.started_at

    def now(self) -> float:
        """Seconds of the run."""
        return time.perf_counter() - self.origin

    def over(self) -> bool:
        """Whether no job is to begin: with the last group complete none is, though its update is still to come."""
        return self.stopping.is_set() or self.claimed >= self.num_updates

    def admit(self, workers: Sequence[int]) -> list[int]:
        """Those of the workers that the discipline lets begin now, and no more than the run still needs."""
        rule = self.coordinator
        with self.commit_lock:
            wanted = (self.num_updates - self.claimed) * rule.discipline.group_size
            return list(itertools.islice(filter(rule.admit, workers), wanted))

    def read(self) -> tuple[list[int], View]:
        """The version of each part, and the view."""
        pointers = [part for part in self.published]  # noqa: C416 - one pointer after the other, as a reader does
        return [version for version, _ in pointers], [array for _, array in pointers]

    def take(self, with_state: bool) -> Chunk:
        """What happened since the last chunk. It is kept in `taken` until it is delivered, come what may."""
        if self.taken is None:
            with self.commit_lock:  # for moving pointers only; the copies are made outside
                snapshot = (self.coordinator.version, self.shared, list(self.local), self.now())
                self.taken, self.log = (self.log, snapshot), Log(self.program)
        log, snapshot = self.taken
        metrics, schedule = log.read()
        return Chunk(self._unload(*snapshot) if with_state and self.finite else None, metrics, schedule)

    def state(self) -> State:
        """Where the run stands, when nobody works."""
        return self._unload(self.coordinator.version, self.shared, self.local, self.now())

    def _unload(self, update: int, shared: Packed, local: Sequence[tuple[Packed, int]], now: float) -> State:
        return self.program.unload(update, shared, local, {}, now, self.home)

    # -- messages and updates ------------------------------------------------------------------------------------------

    def hand_in(self, jobs: Sequence[Job]) -> list[int]:
        """Adds messages to the current group, and sees to it that complete groups are committed.

        Returns the rows of those that came too late and are dropped.
        """
        with self.commit_lock:
            late = [job.row for job in jobs if not self._accept(job)]
            behind = self.coordinator.version < self.claimed
        if behind:  # a worker's next read sees every update that was due when it handed in
            with self.writer_lock:
                self.committing = time.perf_counter()
                try:
                    self._commit()
                except BaseException:
                    self.stopping.set()  # before anyone else gets the lock: nothing is built on a failed update
                    raise
                finally:
                    self.committing = None
        return late

    def _accept(self, job: Job) -> bool:
        """Whether a message counts. The caller holds the commit lock."""
        rule = self.coordinator
        if self.over() or rule.is_late(job.worker, self.claimed):
            return False
        complete = self.groups.add(rule.handed_in(job.worker), job)[: self.num_updates - self.claimed]
        self.complete += complete
        self.claimed += len(complete)
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
        for part, array in enumerate(self._listed(view)):
            self.published[part] = (version, array)
            if len(view) > 1:
                time.sleep(0)  # lets readers in between the leaves

    def _listed(self, view: View) -> View:
        """The view, once JAX has listed its shards, as it does at the first look: two threads must not be first."""
        if isinstance(self.home, jax.sharding.Sharding):
            for array in jax.tree.leaves(view):
                _ = array.addressable_shards
        return view

    def _record(self, done: list[tuple[list[Group], Applied]]) -> None:
        """Takes over what the updates gave. The version is counted up last: who sees it finds it in the buffer."""
        with self.commit_lock:
            for groups, applied in done:
                self.shared = applied.shared
                now = self.now()
                for row, group in enumerate(groups):
                    for job in group:
                        self.local[job.worker] = (job.worked.local, job.row)
                    self.log.append(group, applied.metrics, row, now)
                self.coordinator.version += len(groups)
