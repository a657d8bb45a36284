"""Whether workers could have produced a schedule, one job at a time."""

from __future__ import annotations

import numpy as np

from asyncjax.schedules.schedule import Array, Schedule, check


def is_realizable(schedule: Schedule) -> bool:
    """Whether workers with one job at a time could have produced this schedule.

    A worker reads only after it has handed in its previous message. The messages of update t are handed
    in while version t is the newest, the last of them makes version t + 1. So of one worker's consecutive
    messages (t, g) and (t', g'), the second reads version t or newer, and t + 1 or newer if g = G - 1.
    Torn reads count by their oldest leaf. Under `eta` a message may wait for those that began before it, while
    its worker goes on: such schedules need not be realizable in this sense.

    Args:
      schedule: any well-formed one.

    Returns:
      A bool.

    Raises:
      TypeError: what is no Schedule.
      ValueError: a schedule that is not well-formed, see `check`.

    Example:
      >>> import asyncjax as aj
      >>> [aj.schedules.is_realizable(aj.schedules.fixed_delay(9, delay=2, num_workers=w)) for w in (2, 3)]
      [False, True]
    """
    schedule = check(schedule)
    num_updates, group_size = schedule.worker.shape
    read = (np.arange(num_updates, dtype=np.int32)[:, None] - schedule.staleness()).ravel()
    handed_in = np.arange(num_updates)[:, None] + (np.arange(group_size) == group_size - 1)
    earlier, later = successive(schedule.worker)
    return bool(np.all(read[later] >= handed_in.ravel()[earlier]))


def successive(worker: Array, begin: Array | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Places, among the T G messages, of every two messages of one worker that follow each other: (earlier, later).

    Args:
      worker: Int[T, G].
      begin: Float[T, G], when jobs began, if that is the order; by default it is that of consumption.
    """
    of = np.ravel(worker)
    order = np.argsort(of, kind="stable") if begin is None else np.lexsort((np.ravel(begin), of))
    same = of[order][1:] == of[order][:-1]
    return order[:-1][same], order[1:][same]
