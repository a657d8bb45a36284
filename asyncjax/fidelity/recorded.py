"""Models of how long a recorded run's jobs and updates took."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np

from asyncjax.checks import check_choice
from asyncjax.fidelity.families import Family, choose, empirical, fits, model
from asyncjax.schedules import Schedule, successive
from asyncjax.service import Service


def service_times(schedule: Schedule, worker: int | None = None) -> np.ndarray:
    """Float[n]: seconds that jobs took, of one worker or of all.

    Raises:
      ValueError: no times were recorded.
    """
    begin, end = _recorded(schedule.begin, schedule.end)
    times = end - begin
    return times.ravel() if worker is None else times[np.asarray(schedule.worker) == worker]


def commit_times(schedule: Schedule) -> np.ndarray:
    """Float[T]: seconds that updates took, time[t] - max(time[t - 1], end[t]), waiting in the queue not counted.

    Raises:
      ValueError: no times were recorded.
    """
    time, end = _recorded(schedule.time, schedule.end)
    return time - np.maximum(np.concatenate([[0.0], time[:-1]]), end.max(1))


def fit(schedule: Schedule, family: Family | None = None, *, per_worker: bool = False) -> Service:
    """A service-time model for `schedules.from_service_times` that resembles a recorded run.

    Args:
      schedule: with the times that jobs began and ended, as `run_threads` records them; with a thread for each worker
        (`num_threads=num_workers`), as the jobs of one thread's workers begin and end together.
      family: of the distribution; None takes the parametric one of greatest likelihood, by `fits`, unless its
        Kolmogorov-Smirnov distance exceeds 0.1: then "empirical", which draws recorded times.
      per_worker: one model for every worker instead of one for all.

    Returns:
      A Service.

    Raises:
      ValueError: no times, an unknown family, or fewer than two jobs to fit to.

    Example:
      >>> import jax, asyncjax as aj
      >>> true = aj.service.gamma(4.0, mean=0.01)
      >>> record = aj.schedules.from_service_times(true, 2000, 4, jax.random.key(0))
      >>> aj.fidelity.fit(record).name.split(",")[0]
      'fit(gamma'
    """
    _check_family(family)
    of = range(schedule.num_workers) if per_worker else [None]
    chosen = [choose(fits(service_times(schedule, worker)), family) for worker in of]
    models = [model(one) for one in chosen]
    names = ", ".join(dict.fromkeys(one.family for one in chosen))

    def sample(rng: np.random.Generator, worker: int, n: int) -> np.ndarray:
        if per_worker and worker >= len(models):
            raise ValueError(f"per_worker=True: the record has {len(models)} workers, and there is a worker {worker}.")
        return models[worker if per_worker else 0].sample(rng, worker, n)

    return Service(f"fit({names}, {'each worker' if per_worker else 'all workers'})", sample)


def restart_times(schedule: Schedule) -> np.ndarray:
    """Float[n]: seconds between the updates with a worker's messages and the beginnings of its next jobs.

    Raises:
      ValueError: no times were recorded.
    """
    time, begin = _recorded(schedule.time, schedule.begin)
    earlier, later = successive(schedule.worker, begin)
    return np.maximum(begin.ravel()[later] - np.repeat(time, schedule.group_size)[earlier], 0.0)


def fit_commit(schedule: Schedule, family: Family | None = None) -> Service:
    """A model of what an update takes, for `commit=` of `schedules.from_service_times`.

    Only with it has the clock a queue in which messages wait for the updates before theirs, as they do on threads.

    Args:
      schedule: with the times of updates and of the ends of jobs, as `run_threads` records them.
      family: as in `fit`; where an update took no time only "empirical" will do, and is what None takes.

    Raises:
      ValueError: no times, an unknown family, or fewer than two updates to fit to.

    Example:
      >>> import jax, asyncjax as aj
      >>> jobs = aj.service.gamma(4.0, mean=0.01)
      >>> record = aj.schedules.from_service_times(jobs, 500, 4, jax.random.key(0), commit=aj.service.gamma(9.0, 0.002))
      >>> commit = aj.fidelity.fit_commit(record, "gamma")
      >>> again = aj.schedules.from_service_times(jobs, 500, 4, jax.random.key(1), commit=commit)
      >>> bool(abs(again.time[-1] / record.time[-1] - 1) < 0.1)
      True
    """
    return _fitted(commit_times(schedule), family, "updates")


def fit_restart(schedule: Schedule, family: Family | None = None) -> Service:
    """A model of how long after its update a worker reads again, for `restart=` of `schedules.from_service_times`.

    Threads wait there for a lock or a core, and what others commit meanwhile makes them less stale.

    Args:
      schedule: with the times of updates and of the beginnings of jobs, as `run_threads` records them.
      family: as in `fit_commit`.

    Raises:
      ValueError: no times, an unknown family, or fewer than two of them to fit to.

    Example:
      >>> import jax, asyncjax as aj
      >>> jobs, size = aj.service.exponential(), {"num_updates": 500, "num_workers": 4, "key": jax.random.key(0)}
      >>> record = aj.schedules.from_service_times(jobs, **size, restart=0.5)
      >>> again = aj.schedules.from_service_times(jobs, **size, restart=aj.fidelity.fit_restart(record))
      >>> bool((again.read == record.read).all())
      True
    """
    return _fitted(restart_times(schedule), family, "restarts")


def _recorded(*times: Any) -> list[np.ndarray]:
    """Times of a schedule that must be there."""
    if any(time is None for time in times):
        raise ValueError("This schedule has no times to fit a model to: record one with run_threads.")
    return [np.asarray(time, np.float64) for time in times]


def _fitted(times: np.ndarray, family: Family | None, what: str) -> Service:
    _check_family(family)
    if family is None and not np.all(times > 0):
        family = "empirical"
    one = empirical(times) if family == "empirical" else choose(fits(times), family)
    return model(one)._replace(name=f"fit({one.family}, {what})")


def _check_family(family: Family | None) -> None:
    check_choice((*get_args(Family), None), family=family)
