"""Which messages to compute together: the plan by which `emulate` runs a schedule.

Event by event, a run alternates one `work` and one `apply`. But the `work` of a message may run as soon as
the version it reads exists and the worker's previous message is computed; only `apply` is serial. The planner
therefore computes a batch of messages with one `vmap` whenever the next update lacks one, fills the batch with
the ready messages that are needed soonest, and keeps them until their updates come. The longest chain of
dependent messages bounds the number of batches from below; filling removes most of the padding.

Views are kept as a compiler keeps values in registers: a version gets a slot when it is made, if anything will
read it, and frees it after its last reader's update. A run of W workers with one job each needs at most W slots,
whatever its staleness; a barrier needs one.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from asyncjax.engines.common import chunks
from asyncjax.method import Array, PyTree
from asyncjax.schedules import leaf_names

OUT_OF_RANGE = np.iinfo(np.int32).max  # as an index: padding, whose writes are dropped


class Layout(NamedTuple):
    """The static sizes of a plan: what the compiled program depends on.

    Attributes:
      num_workers: W.
      width: A, the messages computed in one batch.
      num_views: S, slots for views.
      num_messages: M, slots for messages that wait for their update; 0 when every batch is
        consumed before the next one.
      lockstep: batch k is all that update k needs: event by event.
    """

    num_workers: int
    width: int
    num_views: int
    num_messages: int
    lockstep: bool


class Plan(NamedTuple):
    """The batches and updates of a chunk of U updates; L is the number of separately read parts of a view.

    Slots and indices that are out of range mark padding: writes to them are dropped.
    """

    num_batches: Array  # Int[]
    worker: Array  # Int[K, A], whose message each lane of batch k computes; empty lanes repeat the first
    job: Array  # Int[K, A], its place among the chunk's U G messages; out of range where the lane is empty
    view_slot: Array  # Int[K, A, L], where the view it reads lies
    message_slot: Array  # Int[K, A], where the message goes
    first_update: Array  # Int[K + 1], the first update after batch k; it and those up to the next batch's follow k
    message_of: Array  # Int[U, G], where the messages of an update lie
    stale_slot: Array  # Int[U, G, L], where the views they were computed on lie
    staleness: Array  # Int[U, G]
    write_slot: Array  # Int[U], where the new view goes; S if nothing will read it


class _Walk(NamedTuple):
    """What a chunk's batches and updates are, in order: plain lists of numbers, which are arrays in the end.

    Numbers put into arrays one by one, or lists of lists, which the garbage collector goes through, take twice as long.
    """

    jobs: list[int]  # of all batches
    sizes: list[int]  # of the batches
    view_slots: list[int]  # of each job, L
    slot_of: dict[int, int]  # job -> message slot
    stale_slots: list[int]  # of each update, G L
    write_slots: list[int]  # of the updates
    done: list[int]  # the first update after each batch


class Planner:
    """Plans a schedule chunk by chunk.

    Args:
      worker: Int[T, G].
      read: Int[T, G, L].
      num_workers: W.
      width: A, at most this many messages are computed in one batch.
      early: compute messages before their batch's updates, to fill batches; else every batch is
        consumed before the next one, which saves the copies into and out of the message slots.
      start: the first update to plan.
    """

    def __init__(
        self, worker: np.ndarray, read: np.ndarray, num_workers: int, width: int, early: bool = True, start: int = 0
    ) -> None:
        self.num_updates, self.group_size, self.num_parts = read.shape
        self.worker, self.staleness = worker, _staleness(read)
        self.early = early
        self.versions = [read[..., part].ravel().tolist() for part in range(self.num_parts)]
        self.newest_read = self.versions[0] if self.num_parts == 1 else read.max(-1).ravel().tolist()
        self.flat_worker = worker.ravel().tolist()
        last = last_use(read)
        self.last_use, self.num_live = last.tolist(), max_live(last)
        num_views = room(self.num_live, num_workers + self.group_size - 1)
        self.layout = self.sizes(num_workers, self.group_size, width, early, num_views)
        # Beside the group that the next update needs, this many messages may wait.
        self.ahead = self.layout.num_messages - self.group_size
        self.slot_of: dict[int, int] = {}
        self.free_views = list(range(num_views))[::-1]
        self._expiring: dict[int, list[int]] = {}
        self._allocate(0)
        for update in range(start):
            self._finish(update)

    @staticmethod
    def sizes(num_workers: int, group_size: int, width: int, early: bool, num_views: int) -> Layout:
        """The layout; messages that wait get enough slots to fill a whole batch again."""
        num_messages = group_size + min(2 * width, num_workers + group_size) if early else 0
        return Layout(num_workers, width, num_views, num_messages, lockstep=not early and width == group_size)

    @staticmethod
    def shapes(layout: Layout, num_updates: int, group_size: int, parts: int) -> Plan:
        """The shapes of a plan for this many updates, whatever the schedule."""
        batches = num_updates * (1 if layout.lockstep else group_size)
        shape = partial(jax.ShapeDtypeStruct, dtype=np.int32)
        lanes, group = (batches, layout.width), (num_updates, group_size)
        return Plan(
            shape(()), shape(lanes), shape(lanes), shape((*lanes, parts)), shape(lanes), shape((batches + 1,)),
            shape(group), shape((*group, parts)), shape(group), shape((num_updates,)),
        )  # fmt: skip

    def whole(self, num_views: int | None = None) -> Plan:
        """The plan of the whole schedule; num_views is the room there is for views."""
        if num_views is not None and num_views < self.num_live:
            raise ValueError(
                f"num_views={num_views}: this schedule keeps {self.num_live} views alive at once, more than the"
                f" room reserved for a traced schedule; pass num_views={self.num_live} or more."
            )
        if num_views is not None:
            self.layout = self.layout._replace(num_views=num_views)
        return self.chunk(0, self.num_updates, self.num_updates)

    def chunk(self, start: int, stop: int, max_updates: int) -> Plan:
        """The plan of the updates start to stop - 1, padded to max_updates. Chunks are planned in order, once."""
        group, early = self.group_size, self.early
        walk = _Walk([], [], [], {}, [], [], [])
        free = list(range(self.layout.num_messages))[::-1]
        update = start
        for batch, done in self._batches(start, stop):
            walk.jobs.extend(batch)
            walk.sizes.append(len(batch))
            walk.view_slots.extend(self._slots(batch))
            walk.slot_of.update((j, free.pop() if early else lane) for lane, j in enumerate(batch))
            for u in range(update, done):
                consumed = range(u * group, (u + 1) * group)
                walk.stale_slots.extend(self._slots(consumed))
                if early:
                    free.extend(walk.slot_of[j] for j in consumed)
                self._finish(u)
                walk.write_slots.append(self.slot_of.get(u + 1, self.layout.num_views))
            walk.done.append(done - start)
            update = done
        plan = self._empty(max_updates, start, stop)
        return self._filled(plan, walk, start * group) if walk.jobs else plan

    def _filled(self, plan: Plan, walk: _Walk, first: int) -> Plan:
        """The plan of what was walked through, whose first message is job `first`."""
        num_batches, num_updates, parts = len(walk.sizes), len(walk.write_slots), self.num_parts
        job = np.array(walk.jobs)
        message_slot = np.array([walk.slot_of[j] for j in range(first, first + len(job))], np.int32)
        worker, view_slot = self.worker.ravel()[job], np.array(walk.view_slots, np.int32).reshape(-1, parts)
        begin = np.cumsum([0, *walk.sizes[:-1]])
        batch = np.repeat(np.arange(num_batches), walk.sizes)
        lane = np.arange(len(job)) - begin[batch]
        # Empty lanes repeat the first one, for nothing.
        plan.worker[:num_batches], plan.view_slot[:num_batches] = worker[begin, None], view_slot[begin, None]
        plan.worker[batch, lane], plan.view_slot[batch, lane] = worker, view_slot
        plan.job[batch, lane], plan.message_slot[batch, lane] = job - first, message_slot[job - first]
        plan.first_update[1 : num_batches + 1] = walk.done
        plan.message_of[:num_updates] = message_slot.reshape(num_updates, -1)
        plan.stale_slot[:num_updates] = np.array(walk.stale_slots, np.int32).reshape(num_updates, -1, parts)
        plan.write_slot[:num_updates] = walk.write_slots
        return plan._replace(num_batches=np.int32(num_batches))

    def _empty(self, max_updates: int, start: int, stop: int) -> Plan:
        """A plan of padding only."""
        shapes = self.shapes(self.layout, max_updates, self.group_size, self.num_parts)
        plan = Plan(*(np.zeros(x.shape, x.dtype) for x in shapes))
        for padded in (plan.job, plan.message_slot):
            padded.fill(OUT_OF_RANGE)
        plan.first_update[1:] = stop - start
        plan.staleness[: stop - start] = self.staleness[start:stop]
        return plan

    def count_batches(self, num_updates: int, chunk_size: int | None = None) -> int:
        """The number of batches that the first updates take, in chunks that each begin with a batch of their own."""
        cut = chunks(0, num_updates, chunk_size or max(num_updates, 1))
        return sum(1 for start, stop in cut for _ in self._batches(start, stop))

    def _batches(self, start: int, stop: int) -> Iterator[tuple[list[int], int]]:
        """Yields (the messages of a batch, the first update that must wait for a later batch)."""
        group, width = self.group_size, self.layout.width
        ready, blocked, following = self._queues(start, stop)
        computed = bytearray((stop - start) * group)
        update, ahead = start, 0
        while update < stop:
            batch: list[int] = []
            limit = (update + 1) * group  # messages from here on are computed ahead of their turn
            while ready and len(batch) < width and (ready[0] < limit or not self.early or ahead < self.ahead):
                j = heapq.heappop(ready)
                batch.append(j)
                ahead += j >= limit
            if not self.early:
                batch = self._consecutive(batch, limit - group, ready)
            for j in batch:
                computed[j - start * group] = 1
                successor = following.get(j)
                if successor is None:
                    continue
                if self.newest_read[successor] <= update:
                    heapq.heappush(ready, successor)
                else:
                    blocked.setdefault(self.newest_read[successor], []).append(successor)
            while update < stop and all(computed[(update - start) * group : (update - start + 1) * group]):
                update += 1
                for j in blocked.pop(update, ()):
                    heapq.heappush(ready, j)
                if update < stop:
                    ahead -= sum(computed[(update - start) * group : (update - start + 1) * group])
            yield batch, update

    def _consecutive(self, batch: list[int], first: int, ready: list[int]) -> list[int]:
        """The part of a batch that whole groups can consume at once; the rest goes back to the queue."""
        length = 0
        while length < len(batch) and batch[length] == first + length:
            length += 1
        length -= length % self.group_size
        for j in batch[length:]:
            heapq.heappush(ready, j)
        return batch[:length]

    def _queues(self, start: int, stop: int) -> tuple[list[int], dict[int, list[int]], dict[int, int]]:
        """Before update `start`: the ready messages, those that wait for a version, and each worker's next message."""
        following: dict[int, int] = {}
        latest: dict[int, int] = {}
        ready: list[int] = []
        blocked: dict[int, list[int]] = {}
        for j in range(start * self.group_size, stop * self.group_size):
            worker = self.flat_worker[j]
            if worker in latest:
                following[latest[worker]] = j
            elif self.newest_read[j] <= start:
                ready.append(j)
            else:
                blocked.setdefault(self.newest_read[j], []).append(j)
            latest[worker] = j
        return ready, blocked, following

    def _slots(self, jobs: Iterable[int]) -> list[int]:
        """Where the L parts of the views of these jobs lie, job by job."""
        return [self.slot_of[versions[j]] for j in jobs for versions in self.versions]

    def _allocate(self, version: int) -> None:
        if (last := self.last_use[version]) >= version:
            self.slot_of[version] = self.free_views.pop()
            self._expiring.setdefault(last, []).append(version)

    def _finish(self, update: int) -> None:
        """After an update the views that it was the last to use are freed, and the new one gets a slot."""
        for version in self._expiring.pop(update, ()):
            self.free_views.append(self.slot_of.pop(version))
        self._allocate(update + 1)


def last_use(read: np.ndarray) -> np.ndarray:
    """Int[T + 1]: the last update that consumes a message computed on version v, or -1."""
    num_updates = read.shape[0]
    result = np.full(num_updates + 1, -1)
    update = np.broadcast_to(np.arange(num_updates).reshape(-1, *[1] * (read.ndim - 1)), read.shape)
    np.maximum.at(result, read.ravel(), update.ravel())
    return result


def max_live(last: np.ndarray) -> int:
    """The most versions alive at once, at least 1; a version lives from when it is made to its last use."""
    used = np.flatnonzero(last >= np.arange(len(last)))
    change = np.zeros(len(last) + 1, np.int64)
    np.add.at(change, used, 1)
    np.add.at(change, last[used] + 1, -1)
    return max(1, int(np.cumsum(change).max()))


def _staleness(read: np.ndarray) -> np.ndarray:
    return (np.arange(read.shape[0], dtype=np.int32)[:, None] - read.min(-1)).astype(np.int32)


def stack_reads(read: PyTree) -> np.ndarray:
    """The reads of the L parts of the view as Int[T, G, L]."""
    return np.stack([np.asarray(part) for part in jax.tree.leaves(read)], -1)


def read_parts(read: PyTree, view: PyTree) -> tuple[int, ...]:
    """Which of the L parts of `read` each leaf of the view belongs to.

    A torn schedule's `read` is a tree prefix of the view; or, as from a file, a tree of its leaves in which the names
    in dictionaries are the view's, whatever its tuples are; or its leaves in a row.
    """
    num_parts, read_def = len(jax.tree.leaves(read)), jax.tree.structure(read)
    num_leaves, view_def = len(jax.tree.leaves(view)), jax.tree.structure(view)
    if jax.tree_util.treedef_is_leaf(read_def):
        return (0,) * num_leaves
    try:
        subtrees = read_def.flatten_up_to(view)
    except ValueError as error:
        if num_parts == num_leaves and (leaf_names(read) == leaf_names(view) or type(read) in (tuple, list)):
            return tuple(range(num_leaves))
        raise ValueError(
            f"schedule.read has the structure {read_def}, which is no prefix of the view's {view_def}:"
            " give one Int[T, G] for the whole view, or one for each of its subtrees."
        ) from error
    return tuple(part for part, subtree in enumerate(subtrees) for _ in jax.tree.leaves(subtree))


def room(num_live: int, usual: int) -> int:
    """A little more room than is needed, so that similar schedules share one compiled program.

    It is never more than any realizable schedule may need, unless this one needs more.
    """
    rounded = 1 << (num_live - 1).bit_length()
    return min(rounded, usual) if num_live <= usual else rounded


def distinct_workers(worker: Array) -> bool:
    """Whether no group has two messages of one worker."""
    return bool(np.all(np.diff(np.sort(worker, -1), axis=-1)))
