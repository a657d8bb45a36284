"""Where schedules come from: fixed orders, and workers on a virtual clock."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import numpy as np

from asyncjax.checks import check_int32, check_least, whole
from asyncjax.discipline import Coordinator, Discipline, Wait
from asyncjax.schedules.schedule import Schedule
from asyncjax.service import Service, streams
from asyncjax.virtual_clock import VirtualClock


def round_robin(num_updates: int, num_workers: int) -> Schedule:
    """Equal workers in turn, each reading right after its own update: staleness min(t, W - 1).

    Args:
      num_updates: T.
      num_workers: W; update t is of worker t mod W.

    Returns:
      A Schedule with groups of G = 1, without times.

    Raises:
      TypeError: sizes that are no whole numbers.
      ValueError: fewer than 0 updates, or fewer than 1 worker.

    Example:
      >>> import asyncjax as aj
      >>> schedule = aj.schedules.round_robin(5, num_workers=3)
      >>> schedule.worker.ravel(), schedule.read.ravel()
      (array([0, 1, 2, 0, 1], dtype=int32), array([0, 0, 0, 1, 2], dtype=int32))
    """
    num_updates, num_workers = _sizes(num_updates, num_workers)
    return _in_turn(num_updates, num_workers, num_workers - 1)


def sequential(num_updates: int, num_workers: int = 1) -> Schedule:
    """Workers in turn, each reading the newest version: read[t] = t, staleness 0, the Gauss-Seidel order.

    Args:
      num_updates: T.
      num_workers: W; update t is of worker t mod W.

    Returns:
      A Schedule with groups of G = 1, without times.

    Raises:
      TypeError: sizes that are no whole numbers.
      ValueError: fewer than 0 updates, or fewer than 1 worker.

    Example:
      >>> import asyncjax as aj
      >>> schedule = aj.schedules.sequential(5, num_workers=2)
      >>> schedule.worker.ravel(), schedule.staleness().ravel()
      (array([0, 1, 0, 1, 0], dtype=int32), array([0, 0, 0, 0, 0], dtype=int32))
    """
    return _in_turn(num_updates, num_workers, 0)


def fixed_delay(num_updates: int, delay: int, num_workers: int = 1) -> Schedule:
    """Workers in turn, update t reads version max(0, t - delay): the schedule of most theory.

    With fewer than delay + 1 workers no system could produce it (`is_realizable` is False), yet every
    engine that takes a schedule runs it.

    Args:
      num_updates: T.
      delay: updates, at least 0.
      num_workers: W; update t is of worker t mod W.

    Returns:
      A Schedule with groups of G = 1, without times.

    Raises:
      TypeError: sizes or a delay that are no whole numbers.
      ValueError: a negative delay, fewer than 0 updates, fewer than 1 worker, or 2^31 or more of any.

    Example:
      >>> import asyncjax as aj
      >>> schedule = aj.schedules.fixed_delay(5, delay=2)
      >>> schedule.read.ravel(), schedule.staleness().ravel()
      (array([0, 0, 0, 1, 2], dtype=int32), array([0, 1, 2, 2, 2], dtype=int32))
    """
    check_least(0, "a read can not come from the future; use a delay of at least 0", delay=delay)
    check_int32(delay=delay)
    return _in_turn(num_updates, num_workers, delay)


def barrier(num_updates: int, num_workers: int) -> Schedule:
    """Every update consumes one fresh message of each worker: synchronous training, Jacobi iteration; G = W.

    Args:
      num_updates: T.
      num_workers: W.

    Returns:
      A Schedule with worker[t, g] = g and read[t, g] = t, without times.

    Raises:
      TypeError: sizes that are no whole numbers.
      ValueError: fewer than 0 updates, or fewer than 1 worker.

    Example:
      >>> import asyncjax as aj
      >>> schedule = aj.schedules.barrier(2, num_workers=3)
      >>> schedule.worker.tolist(), schedule.read.tolist()
      ([[0, 1, 2], [0, 1, 2]], [[0, 0, 0], [1, 1, 1]])
    """
    num_updates, num_workers = _sizes(num_updates, num_workers)
    worker = np.broadcast_to(np.arange(num_workers, dtype=np.int32), (num_updates, num_workers))
    read = np.broadcast_to(np.arange(num_updates, dtype=np.int32)[:, None], (num_updates, num_workers))
    return Schedule(worker.copy(), read.copy())


def from_service_times(
    service: Service,
    num_updates: int,
    num_workers: int,
    key: jax.Array,
    group_size: int = 1,
    bound: int | None = None,
    wait: Wait = "never",
    commit: Service | float = 0.0,
    restart: Service | float = 0.0,
    eta: int | None = None,
) -> Schedule:
    """The schedule that workers with these service times produce on a virtual clock.

    A worker reads the newest version, is busy for a service time, hands in its message and, when the
    waiting rule allows, reads again. Its G-th message completes an update, which takes the commit time:

      time[t] = max(time[t - 1], end[t, G - 1]) + commit[t]

    Commits are serial. A message that is ready during one waits in the queue, first come, first served, and its worker
    with it, as on threads. With commit times of 0 there is no queue. Ties go to the worker that began first.

    Args:
      service: a model of `asyncjax.service`.
      num_updates: T.
      num_workers: W.
      key: the source of the service times; worker w's n-th time depends on (key, w, n) alone.
      group_size: G, messages per update.
      bound: no worker gets more than this many messages ahead of the slowest one (SSP).
      wait: "never", or "next_version" (with group_size=num_workers: the barrier); see `Discipline`.
      commit: seconds that an update takes, a number or a model of `asyncjax.service`.
      restart: seconds between a worker's update and its next read, in which a real one waits for a lock or a core. It
        reads what is committed meanwhile, too, so the mean staleness falls below W - 1.
      eta: no message is staler than this: jobs wait for admission, messages for those that began before; see
        `Discipline`.

    Raises:
      ValueError: sizes, a discipline or a commit time that no run could have.

    Example:
      >>> import jax, asyncjax as aj
      >>> s = aj.schedules.from_service_times(aj.service.exponential(1.0), 1000, 8, jax.random.key(0))
      >>> bool(abs(s.staleness().mean() - 7) < 1)
      True
      >>> s = aj.schedules.from_service_times(aj.service.constant(1.0), 1000, 8, jax.random.key(0), commit=0.25)
      >>> round(aj.telemetry.throughput(s), 1)  # min(8 / (1 + 0.25), 1 / 0.25)
      4.0

    Source: with exponential times the machine-repairman model, Cox and Smith, Queues (1961).
    """
    num_updates, num_workers = _sizes(num_updates, num_workers)
    coordinator = Coordinator(Discipline(group_size, wait, bound, eta), num_workers)
    times_of = [stream.__next__ for stream in streams(service, key, num_workers)]
    commits = _seconds("commit", commit, jax.random.fold_in(key, 0), 1)[0]
    restarts = _seconds("restart", restart, jax.random.fold_in(key, 1), num_workers)
    clock = VirtualClock(coordinator, times_of, commits, restarts)
    worker, read, begin, end, time = clock.run(num_updates)
    shape = (num_updates, coordinator.discipline.group_size)
    return Schedule(
        np.asarray(worker, np.int32).reshape(shape),
        np.asarray(read, np.int32).reshape(shape),
        np.asarray(time, np.float64),
        np.asarray(begin, np.float64).reshape(shape),
        np.asarray(end, np.float64).reshape(shape),
    )


def _seconds(name: str, value: Service | float, key: jax.Array, count: int) -> list[Callable[[], float]]:
    """What gives the next time, for each of so many; their random numbers are no worker's service times."""
    if isinstance(value, Service):
        return [stream.__next__ for stream in streams(value, key, count)]
    if not isinstance(value, (int, float, np.number)) or not 0 <= value < math.inf:
        raise ValueError(f"{name}={value}: give seconds of at least 0, or a model such as service.exponential(0.01).")
    return [lambda: float(value)] * count


def _in_turn(num_updates: int, num_workers: int, delay: int) -> Schedule:
    num_updates, num_workers = _sizes(num_updates, num_workers)
    updates = np.arange(num_updates, dtype=np.int32)[:, None]
    return Schedule(updates % np.int32(num_workers), np.maximum(updates - np.int32(delay), 0))


def _sizes(num_updates: int, num_workers: int) -> list[int]:
    """The two as Python's numbers, checked."""
    check_least(0, "a schedule has at least 0 updates", num_updates=num_updates)
    check_least(1, "at least one worker is needed", num_workers=num_workers)
    check_int32(num_updates=num_updates, num_workers=num_workers)
    return whole(num_updates, num_workers)
