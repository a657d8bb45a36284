"""Schedules made to hurt."""

from __future__ import annotations

import numpy as np

from asyncjax.checks import check_int32, check_least
from asyncjax.faults.events import after_own_message
from asyncjax.schedules import Schedule, check, round_robin, sequential


def sawtooth(num_updates: int, bound: int) -> Schedule:
    """Staleness 0, 1, ..., bound, 0, 1, ...: bound + 1 workers that all read together, one huge batch in disguise.

    Args:
      num_updates: T.
      bound: the largest staleness in updates; at least 0.

    Returns:
      A Schedule with groups of G = 1, without times.

    Raises:
      TypeError: a size or a bound that is no whole number.
      ValueError: a negative bound, or fewer than 0 updates.

    Example:
      >>> import asyncjax as aj
      >>> aj.faults.sawtooth(5, bound=2).staleness().ravel()
      array([0, 1, 2, 0, 1], dtype=int32)
    """
    bound = _whole_bound(bound)
    schedule = round_robin(num_updates, bound + 1)
    return schedule._replace(read=np.arange(num_updates, dtype=np.int32)[:, None] - schedule.worker)


def laggard(num_updates: int, num_workers: int, bound: int) -> Schedule:
    """All messages are fresh, except that the last worker sends one with staleness `bound` every bound + 1 updates.

    Args:
      num_updates: T.
      num_workers: W, the laggard included; at least 2. The others take turns.
      bound: the laggard's staleness in updates; at least 0.

    Returns:
      A Schedule with groups of G = 1, without times.

    Raises:
      TypeError: sizes or a bound that are no whole numbers.
      ValueError: a negative bound, fewer than 2 workers, or fewer than 0 updates.

    Example:
      >>> import asyncjax as aj
      >>> schedule = aj.faults.laggard(6, num_workers=3, bound=2)
      >>> schedule.worker.ravel(), schedule.staleness().ravel()
      (array([0, 1, 2, 1, 0, 2], dtype=int32), array([0, 0, 2, 0, 0, 2], dtype=int32))
    """
    bound = _whole_bound(bound)
    check_least(2, "besides the laggard there is at least one worker", num_workers=num_workers)
    check_int32(num_workers=num_workers)
    num_workers = int(num_workers)
    schedule = sequential(num_updates, num_workers - 1)
    late = np.arange(num_updates)[:, None] % (bound + 1) == bound
    worker = np.where(late, np.int32(num_workers - 1), schedule.worker)
    return schedule._replace(worker=worker, read=np.where(late, schedule.read - np.int32(bound), schedule.read))


def maximal_delay(schedule: Schedule, bound: int) -> Schedule:
    """The same messages in the same order, each read as early as its worker could and the bound allows.

    Args:
      schedule: says whose messages arrive when; what they had read is forgotten, and so is when they began.
      bound: the largest staleness; at least 0.

    Returns:
      A Schedule with the workers and commit times of the one given.

    Raises:
      TypeError: what is no Schedule, or a bound that is no whole number.
      ValueError: a negative bound, or a schedule that is not well-formed.

    Example:
      >>> import asyncjax as aj
      >>> aj.faults.maximal_delay(aj.schedules.sequential(6, num_workers=4), bound=2).staleness().ravel()
      array([0, 1, 2, 2, 2, 2], dtype=int32)
    """
    bound = _whole_bound(bound)
    schedule = check(schedule)
    earliest = (
        after_own_message(np.asarray(schedule.worker).ravel()).reshape(schedule.worker.shape) // schedule.group_size
    )
    updates = np.arange(schedule.num_updates)[:, None]
    read = np.maximum(earliest, updates - bound).astype(np.int32)
    return schedule._replace(read=read, begin=None, end=None)


def _whole_bound(bound: int) -> int:
    check_least(0, "staleness is at least 0", bound=bound)
    check_int32(bound=bound)
    return int(bound)
