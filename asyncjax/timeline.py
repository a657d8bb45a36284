"""The workers of a schedule as a Chrome trace, for Perfetto (ui.perfetto.dev) or chrome://tracing."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from asyncjax.schedules import Schedule, successive

MAX_JOBS = 20_000
COMMITS = 0  # the thread id of the row of commits; worker w has w + 1


def chrome_trace(schedule: Schedule, max_jobs: int = MAX_JOBS) -> dict[str, Any]:
    """Trace events: a row per worker with its jobs and waits, a row of commits, an arrow from each job to its commit.

    A commit lasts from when its group was complete, and the one before it done, until the new version was there.

    Times are microseconds since the run began. Without recorded times an update takes one virtual
    second and a job lasts from its read to its commit.

    Args:
      schedule: the whole schedule of a run.
      max_jobs: only the last so many jobs are written, so that the viewer stays quick; the metadata tells.

    Returns:
      A JSON object: {"traceEvents": [...], "metadata": {...}}.
    """
    begin, end, commit = times(schedule)
    worker, staleness = np.asarray(schedule.worker), np.asarray(schedule.staleness())
    num_updates, group_size = worker.shape
    first = max(0, num_updates - max(max_jobs // group_size, 1))
    until = _next_begin(worker, begin, end)
    applying = np.maximum(np.append(0.0, commit[:-1]), np.minimum(end.max(1), commit))  # updates are serial
    events = [_named(COMMITS, "commits"), *(_named(w + 1, f"worker {w}") for w in range(schedule.num_workers))]
    for t in range(first, num_updates):
        at = _micro(commit[t])
        events.append(_slice(f"commit {t}", COMMITS, _micro(applying[t]), at, {"update": t}))
        for g in range(group_size):
            args = {"update": t, "version_read": t - int(staleness[t, g]), "staleness": int(staleness[t, g])}
            tid, start, stop, free = int(worker[t, g]) + 1, *map(_micro, (begin[t, g], end[t, g], until[t, g]))
            events.append(_slice("work", tid, start, stop, args))
            if free > stop:
                events.append(_slice("wait", tid, stop, free, {"update": t}))
            flow = {"name": "message", "cat": "message", "id": t * group_size + g, "pid": 0}
            events += [
                flow | {"ph": "s", "tid": tid, "ts": start},
                flow | {"ph": "f", "bp": "e", "tid": COMMITS, "ts": at},
            ]
    return {"traceEvents": events, "displayTimeUnit": "ms", "metadata": _metadata(schedule, first)}


def _next_begin(worker: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Float[T, G]: when each job's worker began its next job; the job's own end for its last one."""
    earlier, later = successive(worker, begin)
    following = end.ravel().astype(np.float64)
    following[earlier] = begin.ravel()[later]
    return following.reshape(worker.shape)


def has_times(schedule: Schedule) -> bool:
    """Whether it says when jobs began, ended and were committed."""
    return not any(x is None for x in (schedule.time, schedule.begin, schedule.end))


def times(schedule: Schedule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Begin Float[T, G], end Float[T, G] and commit Float[T], in seconds.

    Where they were not recorded, update t is committed at t + 1 and a job lasts from its read to its
    commit, or from its worker's previous commit where that is later: one job at a time.
    """
    if has_times(schedule):
        return np.asarray(schedule.begin), np.asarray(schedule.end), np.asarray(schedule.time)
    worker = np.asarray(schedule.worker)
    commit = np.arange(1.0, len(worker) + 1)
    end = np.broadcast_to(commit[:, None], worker.shape)
    begin = np.arange(len(worker))[:, None] - np.asarray(schedule.staleness(), np.float64)
    earlier, later = successive(worker)
    previous = np.zeros(worker.size)
    previous[later] = end.ravel()[earlier]
    return np.maximum(begin, np.minimum(previous.reshape(worker.shape), end)), end, commit


def _metadata(schedule: Schedule, first: int) -> dict[str, Any]:
    recorded = has_times(schedule)
    torn = len(jax.tree.leaves(schedule.read)) > 1
    return {
        "note": f"updates {first} to {schedule.num_updates - 1} of {schedule.num_updates}"
        + (" (the last ones only: the file is bounded)" if first else ""),
        "clock": "the schedule's: measured seconds on threads, virtual ones elsewhere"
        if recorded
        else "virtual: one update per second, no times were recorded",
        "version_read": "the oldest leaf's, reads were torn" if torn else "the version the worker read",
        "jobs": (schedule.num_updates - first) * schedule.group_size,
    }


def _micro(seconds: float) -> float:
    return round(float(seconds) * 1e6, 3)


def _named(tid: int, name: str) -> dict[str, Any]:
    return {"name": "thread_name", "ph": "M", "pid": 0, "tid": tid, "args": {"name": name}}


def _slice(name: str, tid: int, start: float, stop: float, args: dict[str, int]) -> dict[str, Any]:
    duration = round(max(stop - start, 0.0), 3)
    return {"name": name, "cat": "worker", "ph": "X", "pid": 0, "tid": tid, "ts": start, "dur": duration, "args": args}
