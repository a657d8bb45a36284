"""Edits: what would have happened had workers or the network been slower, or gone.

A schedule is read as a stream of events, reads and hand-ins (`asyncjax.faults.events`). Edits drop events or move
them in time, and what update consumes what message, read when, follows from the new order. So an edited
schedule is realizable where the source was, and an edit by nothing gives the source back. Times are seconds,
and updates where a schedule has no times. Workers wait as long as they did in the source: where they waited
for each other, at a barrier or a bound, make a new schedule from service times instead of editing the times
of an old one. Where messages waited and their workers went on, as under `eta`, edits of times are refused,
and what others leave need not be realizable in its sense.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from asyncjax.checks import check_counts, check_whole
from asyncjax.faults.events import chosen, retime, schedule_of, stream_of
from asyncjax.schedules import Schedule, check
from asyncjax.service import seed_of


def drop(schedule: Schedule, worker: int | Sequence[int], start: float = 0.0, stop: float = np.inf) -> Schedule:
    """What these workers hand in from `start` on and before `stop` is lost; the groups close up.

    Args:
      schedule: any; torn reads, too.
      worker: one or several. The others keep their numbers.
      start: seconds (updates where there are no times).
      stop: seconds.

    Returns:
      A Schedule of the messages that are left.

    Raises:
      TypeError: a worker that is no whole number, or a time that is no number.
      ValueError: a worker that the schedule does not have.

    Example:
      >>> import asyncjax as aj
      >>> aj.faults.drop(aj.schedules.round_robin(6, num_workers=3), worker=1).worker.ravel()
      array([0, 2, 0, 2], dtype=int32)
    """
    _check_seconds(start=start, stop=stop)
    stream = stream_of(schedule)
    lost = np.isin(stream.worker, _workers(schedule, worker)) & (stream.end >= start) & (stream.end < stop)
    before = np.concatenate([[0], np.cumsum(~lost)])  # kept messages before position p
    return schedule_of(chosen(stream, ~lost, jax.tree.map(lambda p: before[p], stream.position)))


def slow(schedule: Schedule, factor: float | Sequence[float]) -> Schedule:
    """Jobs take `factor` times as long, Float[] or one per worker, Float[W]; what a worker waited it still waits.

    With exponential and all other scale families it is the schedule that such workers would have produced with the same
    random numbers, up to where the recorded jobs run out.

    Args:
      schedule: realizable.
      factor: positive, without a unit; Float[] or, one per worker, Float[W].

    Returns:
      A Schedule; it ends where a worker's recorded jobs are used up.

    Raises:
      TypeError: what is no number.
      ValueError: factors that are not positive and finite, or neither one nor one for each worker; or a schedule that
        is not realizable, in which messages waited while their workers went on (`eta`), or whose reads are torn.

    Example:
      >>> import jax, asyncjax as aj
      >>> schedule = aj.schedules.from_service_times(aj.service.exponential(), 1000, 2, jax.random.key(0))
      >>> share = (aj.faults.slow(schedule, [3.0, 1.0]).worker == 0).mean()
      >>> bool(abs(share - 0.25) < 0.05)
      True
    """
    factors = np.asarray(factor)
    if factors.dtype.kind not in "iuf":
        raise TypeError(f"factor={factor!r}: give a number, or one for each of the {schedule.num_workers} workers.")
    if not np.all((factors > 0) & np.isfinite(factors)) or factors.shape not in {(), (schedule.num_workers,)}:
        raise ValueError(
            f"factor={factor}: give a positive number, or one for each of the {schedule.num_workers} workers."
        )
    factors = np.broadcast_to(factors, schedule.num_workers)
    return retime(schedule, lambda w, begin, end: end + (factors[w] - 1) * (end - begin))


def pause(schedule: Schedule, worker: int | Sequence[int], start: float, stop: float = np.inf) -> Schedule:
    """The workers stand still from `start` to `stop` and then go on with the job they had: a very stale message.

    Args:
      schedule: realizable.
      worker: one or several.
      start: seconds (updates where there are no times).
      stop: seconds; infinity: they never return, and their last jobs are never handed in.

    Returns:
      A Schedule; it ends where a worker's recorded jobs are used up.

    Raises:
      TypeError: a worker that is no whole number, or a time that is no number.
      ValueError: a pause that does not end after it starts, or a worker that the schedule does not have; or a schedule
        that is not realizable, in which messages waited while their workers went on (`eta`), or whose reads are torn.

    Example:
      >>> import jax, asyncjax as aj
      >>> schedule = aj.schedules.from_service_times(aj.service.constant(1.0), 8, 2, jax.random.key(0))
      >>> paused = aj.faults.pause(schedule, worker=1, start=0.5, stop=2.5)  # its first job takes 1 s and 2 s more
      >>> paused.worker.ravel(), paused.staleness().ravel()
      (array([0, 0, 1, 0, 1, 0], dtype=int32), array([0, 0, 2, 1, 1, 1], dtype=int32))
    """
    _check_seconds(start=start, stop=stop)
    if not start < stop:
        raise ValueError(f"start={start}, stop={stop}: a pause ends after it starts.")
    paused = set(_workers(schedule, worker))

    def finish(w: int, begin: float, end: float) -> float:
        hit = w in paused and begin < stop and end > start
        return end + (stop - max(start, begin)) if hit else end

    return retime(schedule, finish)


def bursts(schedule: Schedule, period: float) -> Schedule:
    """Messages arrive only at multiples of `period` seconds, together, as through a network that flushes.

    A job that would end at time e ends at period ceil(e / period).

    Args:
      schedule: realizable.
      period: seconds (updates where there are no times), positive.

    Returns:
      A Schedule; it ends where a worker's recorded jobs are used up.

    Raises:
      ValueError: a period that is not positive and finite; or a schedule that is not realizable, in which messages
        waited while their workers went on (`eta`), or whose reads are torn.

    Example:
      >>> import jax, asyncjax as aj
      >>> schedule = aj.schedules.from_service_times(aj.service.constant([1.0, 1.5]), 6, 2, jax.random.key(0))
      >>> schedule.time.tolist(), aj.faults.bursts(schedule, period=2.0).time.tolist()
      ([1.0, 1.5, 2.0, 3.0, 3.0, 4.0], [2.0, 2.0, 4.0, 4.0, 6.0])
    """
    _check_positive(period=period)
    return retime(schedule, lambda w, begin, end: float(period * _ceil(end / period)))


def storms(schedule: Schedule, key: jax.Array, calm: float, storm: float, factor: float) -> Schedule:
    """Correlated delays: now and then all workers are slow at once.

    Args:
      schedule: realizable.
      key: the source of the storms. Consumed.
      calm: mean seconds between storms, exponentially distributed.
      storm: mean seconds of a storm, exponentially distributed.
      factor: how many times as long work takes in a storm; at least 1, finite.

    Returns:
      A Schedule; it ends where a worker's recorded jobs are used up. With a factor of 1 it is the one given.

    Raises:
      TypeError: what is no key.
      ValueError: means that are not positive and finite, a factor below 1 or infinite, or too many storms; or, unless
        the factor is 1, a schedule that is not realizable, in which messages waited while their workers went on
        (`eta`), or whose reads are torn.

    Example:
      >>> import jax, asyncjax as aj
      >>> calm = aj.schedules.from_service_times(aj.service.constant(1.0), 20_000, 2, jax.random.key(0))
      >>> stormy = aj.faults.storms(calm, jax.random.key(1), calm=10.0, storm=10.0, factor=3.0)
      >>> round(aj.telemetry.throughput(stormy), 1)  # half of the time 2 a second, half of it 2 / 3
      1.3
    """
    seed = seed_of(key)
    _check_positive(calm=calm, storm=storm)
    _check_positive(factor=factor)
    if factor < 1:
        raise ValueError(f"factor={factor}: in a storm work takes longer; use a factor of at least 1.")
    if factor == 1:
        return schedule  # which rounding, below, would not always give back
    expected = float(factor * stream_of(schedule).end.max(initial=0.0) / (calm + storm))  # at most
    if not expected < 1e8:
        raise ValueError(
            f"calm={calm}, storm={storm}, factor={factor}: {expected:.3g} storms in this schedule are too many; make"
            " them longer, or the factor smaller."
        )
    rng = np.random.default_rng(seed)
    count = 2 * int(expected + 4 * np.sqrt(expected) + 8)
    lengths = rng.standard_exponential(2 * count) * np.tile([calm, storm], count)
    edges = np.concatenate([[0.0], np.cumsum(lengths), [np.inf]])[:-1]
    done = np.concatenate([[0.0], np.cumsum(lengths / np.tile([1.0, factor], count))])  # work by then at full speed

    def finish(w: int, begin: float, end: float) -> float:
        return float(np.interp(np.interp(begin, edges, done) + (end - begin), done, edges))

    return retime(schedule, finish)


def permute(schedule: Schedule, permutation: Sequence[int]) -> Schedule:
    """Worker w becomes worker permutation[w]: who is slow changes, when messages arrive does not.

    Args:
      schedule: any; torn reads, too.
      permutation: Int[W], each worker once.

    Returns:
      A Schedule with the same reads and times.

    Raises:
      ValueError: a permutation that does not name each worker of the schedule once.

    Example:
      >>> import asyncjax as aj
      >>> aj.faults.permute(aj.schedules.round_robin(4, num_workers=3), [2, 0, 1]).worker.ravel()
      array([2, 0, 1, 2], dtype=int32)
    """
    flat = np.ndim(permutation) == 1
    if not flat or sorted(np.asarray(permutation).tolist(), key=str) != sorted(range(schedule.num_workers), key=str):
        raise ValueError(f"permutation={permutation}: name each worker 0 to {schedule.num_workers - 1} once.")
    return schedule._replace(worker=np.asarray(permutation, np.int32)[np.asarray(schedule.worker)])


def stretch(schedule: Schedule, factor: float) -> Schedule:
    """A slower clock: all times are `factor` times as large, in the same order.

    Args:
      schedule: any; without times nothing changes.
      factor: positive and finite, without a unit.

    Returns:
      A Schedule with the same workers and reads.

    Raises:
      ValueError: a factor that is not positive and finite.

    Example:
      >>> import jax, asyncjax as aj
      >>> schedule = aj.schedules.from_service_times(aj.service.constant(1.0), 4, 2, jax.random.key(0))
      >>> aj.faults.stretch(schedule, factor=10.0).time.tolist()
      [10.0, 10.0, 20.0, 20.0]
    """
    _check_positive(factor=factor)
    times = {name: getattr(schedule, name) for name in ("time", "begin", "end")}
    return schedule._replace(**{name: None if t is None else factor * np.asarray(t) for name, t in times.items()})


def tear(schedule: Schedule, num_leaves: int, share: float = 0.5) -> Schedule:
    """Torn reads: a worker fetches the leaves of its view one after the other, in the first part of its job.

    Of L leaves, the i-th is what had been committed when a part share i / L of the job was over. So later leaves are
    newer than the first, and together they are a view that there never was, as without a lock.

    Args:
      schedule: any whose reads are whole; without times a job lasts from the version it reads to its update.
      num_leaves: L, of the view: `len(jax.tree.leaves(method.view(shared)))`.
      share: from 0, where all leaves are read at once, to 1.

    Returns:
      A Schedule with the same messages and times, whose `read` is a list of L arrays, Int[T, G].

    Raises:
      TypeError: sizes that are no whole numbers.
      ValueError: reads that are torn already, fewer than one leaf, or a share that is not between 0 and 1.

    Example:
      >>> import asyncjax as aj
      >>> torn = aj.faults.tear(aj.schedules.fixed_delay(5, delay=3), num_leaves=2, share=1.0)
      >>> [leaf.ravel().tolist() for leaf in torn.read]
      [[0, 0, 0, 0, 1], [0, 1, 1, 2, 3]]
    """
    check_counts(num_leaves=num_leaves)
    if not 0 <= share <= 1:
        raise ValueError(f"share={share}: give a part of a job, from 0 to 1.")
    schedule = check(schedule)
    if not isinstance(schedule.read, np.ndarray):
        raise ValueError("schedule has torn reads: give one whose reads are whole.")
    updates = np.arange(schedule.num_updates)[:, None]
    begin, end, time = schedule.begin, schedule.end, schedule.time
    if begin is None or end is None or time is None:
        begin, end, time = schedule.read, updates + 1, np.arange(1, schedule.num_updates + 1)
    begin, end = np.asarray(begin, np.float64), np.asarray(end, np.float64)
    read = [schedule.read]
    for i in range(1, int(num_leaves)):
        moment = begin + share * i / num_leaves * (end - begin)
        committed = np.searchsorted(np.asarray(time), moment, side="right")
        # At the moment of its beginning a job has read what it has read, and measured times may contradict the order
        # by some microseconds; the order is what happened.
        read.append(np.clip(np.where(moment > begin, committed, 0), read[-1], updates).astype(np.int32))
    return schedule._replace(read=read)


def _workers(schedule: Schedule, worker: int | Sequence[int]) -> list[int]:
    workers = np.atleast_1d(np.asarray(worker))
    for one in workers.tolist():
        check_whole(worker=one)
    if np.any((workers < 0) | (workers >= schedule.num_workers)):
        raise ValueError(f"worker={worker}: the schedule has the workers 0 to {schedule.num_workers - 1}.")
    return workers.tolist()


def _ceil(x: float) -> float:
    """The next whole number, of a quotient that rounding may have made a bit larger than one."""
    return np.round(x) if np.isclose(x, np.round(x), rtol=1e-12, atol=0) else np.ceil(x)


def _check_seconds(**arguments: float) -> None:
    for name, value in arguments.items():
        if np.asarray(value).dtype.kind not in "iuf" or np.ndim(value) or np.isnan(value):
            raise TypeError(f"{name}={value!r}: give a number, in seconds.")


def _check_positive(**arguments: float) -> None:
    for name, value in arguments.items():
        if isinstance(value, str) or value is None or np.ndim(value) or not 0 < value < np.inf:
            raise ValueError(f"{name}={value!r}: give a positive, finite number.")
