"""A schedule as the stream of its events, reads and hand-ins, for edits: `asyncjax.faults.edits`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from asyncjax.schedules import Schedule, check, is_realizable, successive

Finish = Callable[[int, float, float], float]
"""(worker, begin, end without the fault) -> end with it."""


class Stream(NamedTuple):
    """A schedule as the order of its events; message m is the m-th that is handed in.

    Attributes:
      worker: Int[M].
      position: Int[M], how many messages had been handed in when this one's view was read, at most m; a tree of such
        arrays where reads were torn.
      begin: Float[M], when it was read.
      end: Float[M], when its job ended.
      counted: Float[M], when it was handed in, and applied where it completes a group; never falls.
      group_size: G.
      timed: whether the source had times.
    """

    worker: np.ndarray
    position: Any
    begin: np.ndarray
    end: np.ndarray
    counted: np.ndarray
    group_size: int
    timed: bool


def stream_of(schedule: Schedule) -> Stream:
    """The events of a well-formed schedule."""
    schedule = check(schedule)
    worker, group_size = np.asarray(schedule.worker).ravel(), schedule.group_size
    timed = schedule.begin is not None and schedule.end is not None
    begin, end = (np.asarray(x, np.float64).ravel() if timed else np.empty(0) for x in (schedule.begin, schedule.end))
    counted = end.copy()
    if timed and schedule.time is not None:
        counted[group_size - 1 :: group_size] = schedule.time
    counted = np.maximum.accumulate(counted)
    # Where in a group's arrivals a version was read, its time says, and that a worker reads after it has handed in.
    after_own = after_own_message(worker)
    if not is_realizable(schedule) or _went_on(after_own, begin, end, counted):
        after_own = np.zeros(worker.size, np.int64)
    seen = np.searchsorted(counted, begin, side="right") if timed else np.zeros(worker.size, np.int64)

    def place(read: np.ndarray) -> np.ndarray:
        first = read.ravel().astype(np.int64) * group_size
        return np.clip(seen, np.maximum(first, after_own), first + group_size - 1)

    position = jax.tree.map(place, schedule.read)
    oldest = np.min(np.stack(jax.tree.leaves(position)), axis=0)
    if not timed:
        end = (np.arange(worker.size) + 1.0) / group_size
        return Stream(worker, position, oldest / group_size, end, end, group_size, False)
    # Measured times may contradict the order by some microseconds; the order is what happened.
    earliest = np.where(oldest > 0, counted[np.maximum(oldest - 1, 0)], -np.inf)
    return Stream(worker, position, np.clip(begin, earliest, counted[oldest]), end, counted, group_size, True)


def schedule_of(stream: Stream) -> Schedule:
    """The updates that whole groups of the stream's messages make."""
    shape = (len(stream.worker) // stream.group_size, stream.group_size)

    def grouped(x: np.ndarray) -> np.ndarray:
        return x[: shape[0] * shape[1]].reshape(shape)

    worker = grouped(stream.worker)
    read = jax.tree.map(lambda p: grouped((p // stream.group_size).astype(np.int32)), stream.position)
    if not stream.timed:
        return Schedule(worker, read)
    return Schedule(worker, read, grouped(stream.counted)[:, -1].copy(), grouped(stream.begin), grouped(stream.end))


def retime(schedule: Schedule, finish: Finish) -> Schedule:
    """The schedule if jobs ended when `finish` says. It ends where a worker's recorded jobs are used up."""
    if not is_realizable(schedule):
        raise ValueError(
            "This schedule reads versions that no worker with one job at a time could have read, so its jobs have no"
            " durations: use a realizable one, or drop, permute and maximal_delay, which need none."
        )
    stream = stream_of(schedule)
    if _went_on(after_own_message(stream.worker), stream.begin, stream.end, stream.counted):
        raise ValueError(
            "In this schedule messages waited while their workers went on, as eta makes them, and how long they would"
            " wait now it does not say: make a new one from service times, or drop, permute and stretch this one."
        )
    if not isinstance(stream.position, np.ndarray):
        raise ValueError(
            "This schedule has torn reads, and when each part was read is not recorded: use atomic publication, or"
            " drop, permute and stretch, which need no such times."
        )
    shift, free = np.zeros(schedule.num_workers), np.zeros(schedule.num_workers)
    begin, end, counted = stream.begin.copy(), stream.end.copy(), stream.counted.copy()
    for m, w in enumerate(stream.worker.tolist()):
        begin[m] = max(begin[m] + shift[w], free[w])  # equal but for rounding where the worker did not wait
        end[m] = finish(w, begin[m], end[m] + shift[w])
        shift[w] = end[m] - stream.end[m]
        waited = counted[m] > stream.end[m]  # for the updates before its own, as long as it did
        free[w] = counted[m] = counted[m] + shift[w] if waited else end[m]
    # Who has handed in its last message was at work on another one when the record ended.
    last = stream.counted.max(initial=0.0)
    in_flight = [finish(w, free[w], last + shift[w]) if np.isfinite(free[w]) else np.inf for w in range(len(free))]
    horizon = min(in_flight, default=0.0)
    return schedule_of(_sorted(stream._replace(begin=begin, end=end, counted=counted), horizon))


def _sorted(stream: Stream, horizon: float) -> Stream:
    """The stream in the order of its times; at equal times the old order holds."""
    count = np.arange(len(stream.worker))
    time = np.concatenate([stream.counted, stream.begin])
    order = np.lexsort((np.concatenate([2 * count + 1, 2 * stream.position]), time))
    handed_in = np.cumsum(order < len(count))  # messages handed in up to each event
    position = np.empty(2 * len(count), np.int64)
    position[order] = handed_in
    kept = order[order < len(count)]
    kept = kept[(stream.counted[kept] <= horizon) & np.isfinite(stream.counted[kept])]
    return chosen(stream, kept, position[len(count) :])


def chosen(stream: Stream, kept: np.ndarray, position: Any) -> Stream:
    """These messages, whose views were read at these positions."""
    worker, begin, end, counted = (x[kept] for x in (stream.worker, stream.begin, stream.end, stream.counted))
    position = jax.tree.map(lambda p: p[kept], position)
    return stream._replace(worker=worker, position=position, begin=begin, end=end, counted=counted)


def after_own_message(worker: np.ndarray) -> np.ndarray:
    """Int[M]: the messages handed in up to and with the worker's previous one, 0 for its first."""
    earlier, later = successive(worker)
    after = np.zeros(worker.size, np.int64)
    after[later] = earlier + 1
    return after


def _went_on(after_own: np.ndarray, begin: np.ndarray, end: np.ndarray, counted: np.ndarray) -> bool:
    """Whether a worker was at its next job before its message was handed in, for more than clocks are wrong by."""
    if not begin.size:
        return False
    handed_in = np.where(after_own > 0, counted[np.maximum(after_own - 1, 0)], -np.inf)
    return bool(np.any(begin + 0.1 * (end - begin) < handed_in))
