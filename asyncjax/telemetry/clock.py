"""What a schedule tells: who was stale, in flight or in the queue, who waited, and how fast updates came."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from asyncjax.checks import check_kind, check_least
from asyncjax.schedules import Schedule, check


class Workers(NamedTuple):
    """One row per worker; NaN for a worker that sent nothing, and for times where none were recorded.

    Attributes:
      messages: Int[W], how many the worker sent.
      mean: Float[W], of its staleness, in updates.
      quantiles: Float[W, 3], of its staleness: median, 90 and 99 %.
      maximum: Float[W].
      histogram: Int[W, S + 1], messages with staleness 0, 1, ..., S.
      in_queue: Float[W], the mean part of its staleness from after its messages were ready; the rest is in flight.
      busy: Float[W], seconds at work.
      idle: Float[W], seconds between handing in and beginning again, waiting for its turn.
    """

    messages: np.ndarray
    mean: np.ndarray
    quantiles: np.ndarray
    maximum: np.ndarray
    histogram: np.ndarray
    in_queue: np.ndarray
    busy: np.ndarray
    idle: np.ndarray


def workers(schedule: Schedule, num_workers: int | None = None) -> Workers:
    """Staleness and time of every worker, since means over all hide the worker that never got new weights.

    Args:
      schedule: any; times come from those that were recorded.
      num_workers: W, by default one more than the largest worker of the schedule.

    Raises:
      ValueError: a schedule that is not well-formed, or has more workers.

    Example:
      >>> import asyncjax as aj
      >>> aj.telemetry.workers(aj.faults.laggard(12, num_workers=3, bound=3)).mean.tolist()
      [0.0, 0.0, 3.0]
    """
    schedule = check(schedule, num_workers)
    num_workers = max(schedule.num_workers, 1) if num_workers is None else num_workers
    worker, staleness = np.asarray(schedule.worker).ravel(), np.asarray(schedule.staleness()).ravel()
    timed = schedule.time is not None and schedule.end is not None
    queued = in_queue(schedule).ravel() if timed else np.full(worker.size, np.nan)
    largest = int(staleness.max(initial=0))
    rows = [_row(worker == w, staleness, queued, largest, schedule) for w in range(num_workers)]
    return Workers(*map(np.array, zip(*rows, strict=True)))


def _row(mine: np.ndarray, staleness: np.ndarray, queued: np.ndarray, largest: int, schedule: Schedule) -> tuple:
    tau = staleness[mine].astype(np.float64)
    histogram = np.bincount(staleness[mine], minlength=largest + 1)
    if not tau.size:
        return 0, np.nan, np.full(3, np.nan), np.nan, histogram, np.nan, np.nan, np.nan
    quantiles = np.quantile(tau, [0.5, 0.9, 0.99])
    busy = idle = np.nan
    if schedule.begin is not None and schedule.end is not None:
        begin, end = (np.asarray(x, np.float64).ravel()[mine] for x in (schedule.begin, schedule.end))
        order = np.argsort(begin, kind="stable")
        begin, end = begin[order], end[order]
        busy, idle = np.sum(end - begin), np.sum(np.maximum(begin[1:] - end[:-1], 0.0))
    return tau.size, tau.mean(), quantiles, tau.max(), histogram, queued[mine].mean(), busy, idle


def in_queue(schedule: Schedule) -> np.ndarray:
    """Int[T, G]: the updates between when a message was ready and its own; the rest of its staleness is in flight.

    Raises:
      ValueError: no times were recorded.

    Example:
      >>> import jax, asyncjax as aj
      >>> service = aj.service.exponential()
      >>> at_once, queued = (
      ...     aj.schedules.from_service_times(service, 50, 8, jax.random.key(0), commit=seconds) for seconds in (0, 0.2)
      ... )
      >>> int(aj.telemetry.in_queue(at_once).max()), bool(aj.telemetry.in_queue(queued).mean() > 1)
      (0, True)
    """
    if schedule.time is None or schedule.end is None:
        raise ValueError(
            "This schedule has no times, so what was in flight and what in the queue is unknown: record one with"
            " run_threads, or make one with schedules.from_service_times."
        )
    version = np.searchsorted(np.asarray(schedule.time), np.asarray(schedule.end), side="right")
    update = np.arange(schedule.num_updates)[:, None]
    read = update - np.asarray(schedule.staleness())
    return update - np.clip(version, read, update)  # of commits at the very same time those before it came before it


def throughput(schedule: Schedule) -> float:
    """Updates per second of the schedule's clock, since its first job began; one over the time per update.

    Raises:
      ValueError: no times were recorded, or there are no updates.

    Example:
      >>> import jax, asyncjax as aj
      >>> service = aj.service.constant(0.5)
      >>> aj.telemetry.throughput(aj.schedules.from_service_times(service, 40, 4, jax.random.key(0)))
      8.0
    """
    check_kind(Schedule, "give one of asyncjax.schedules, or a recorded one", schedule=schedule)
    if schedule.time is None or schedule.num_updates == 0:
        missing = "no updates" if schedule.num_updates == 0 else "no times"
        raise ValueError(f"This schedule has {missing}: make it with schedules.from_service_times, or record a run.")
    start = 0.0 if schedule.begin is None else np.min(schedule.begin)  # a run that was continued has an earlier past
    return float(schedule.num_updates / (np.asarray(schedule.time)[-1] - start))


def updates_to_target(values: ArrayLike, target: float, window: int = 1) -> float:
    """After how many updates the mean of the last `window` values is first at or above a target; infinity if never.

    Speed-up has two factors: time per update, 1 / `throughput`, and this.

    Args:
      values: Float[T], one per update; NaN where there is none, as for returns where no episode ended. For losses
        negate values and target.
      target: what is to be reached.
      window: values, NaN not counted, that are averaged; at least 1.

    Raises:
      ValueError: values with another number of axes, or no values to average.

    Example:
      >>> import asyncjax as aj
      >>> aj.telemetry.updates_to_target([0.0, 4.0, float("nan"), 2.0, 5.0], 3.0, window=2)
      4.0
    """
    check_least(1, "average at least one value", window=window)
    rows = np.asarray(values, np.float64)
    if rows.ndim != 1:
        raise ValueError(f"values has the shape {rows.shape}: give one number per update, Float[T].")
    known = np.flatnonzero(~np.isnan(rows))
    if known.size < window:
        return float("inf")
    above = np.convolve(rows[known] - target, np.ones(window), mode="valid")
    sizes = np.where(np.isfinite(rows[known]), np.abs(rows[known]), 0) + abs(target)
    rounding = 2 * np.finfo(np.float64).eps * np.convolve(sizes, np.ones(window), mode="valid")
    reached = np.flatnonzero(above >= -rounding)
    return float(known[reached[0] + window - 1] + 1) if reached.size else float("inf")
