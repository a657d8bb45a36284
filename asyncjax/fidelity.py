"""Fidelity: a service-time model fitted to a recorded run, and tests of whether emulating with it gives the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike

from asyncjax import service
from asyncjax.schedules import Schedule
from asyncjax.service import Service

Family = Literal["exponential", "gamma", "lognormal", "pareto", "empirical"]


class Fit(NamedTuple):
    """A family fitted to the service times of one worker, or of all.

    Attributes:
      family: its name.
      parameters: of the model in `asyncjax.service`, by name; the sorted times themselves for "empirical".
      log_likelihood: Float, per job; -infinity for "empirical", which has no density.
      distance: Kolmogorov-Smirnov distance between the times and the model, in [0, 1].
    """

    family: Family
    parameters: dict[str, np.ndarray | float]
    log_likelihood: float
    distance: float


def service_times(schedule: Schedule, worker: int | None = None) -> np.ndarray:
    """Float[n]: seconds that jobs took, of one worker or of all.

    Raises:
      ValueError: no times were recorded.
    """
    if schedule.begin is None or schedule.end is None:
        raise ValueError("This schedule has no times to fit a model to: record one with run_threads.")
    times = np.asarray(schedule.end, np.float64) - np.asarray(schedule.begin, np.float64)
    return times.ravel() if worker is None else times[np.asarray(schedule.worker) == worker]


def fit(schedule: Schedule, family: Family | None = None, *, per_worker: bool = False) -> Service:
    """A service-time model for `schedules.from_service_times` that resembles a recorded run.

    Args:
      schedule: with the times that jobs began and ended, as `run_threads` records them.
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
    if family is not None and family not in get_args(Family):
        raise ValueError(f"family={family!r}: choose one of {', '.join(get_args(Family))}, or None for the best.")
    of = range(schedule.num_workers) if per_worker else [None]
    chosen = [choose(fits(service_times(schedule, worker)), family) for worker in of]
    models = [_model(one) for one in chosen]
    names = ", ".join(dict.fromkeys(one.family for one in chosen))

    def sample(rng: np.random.Generator, worker: int, n: int) -> np.ndarray:
        return models[worker if per_worker else 0].sample(rng, worker, n)

    return Service(f"fit({names}, {'each worker' if per_worker else 'all workers'})", sample)


def choose(candidates: dict[Family, Fit], family: Family | None = None) -> Fit:
    """The fit of this family, or the best: see `fit`."""
    if family is not None:
        return candidates[family]
    best = max((c for c in candidates.values() if c.family != "empirical"), key=lambda c: c.log_likelihood)
    return best if best.distance <= 0.1 else candidates["empirical"]


def fits(times: np.ndarray) -> dict[Family, Fit]:
    """Every family at its greatest likelihood.

    Args:
      times: Float[n], seconds; at least two, and positive.

    Source: closed forms, except for the shape of gamma, which is found by Newton's method from Minka, Estimating a
    gamma distribution (2002).
    """
    x = np.sort(np.asarray(times, np.float64))
    if x.size < 2 or not np.all((x > 0) & np.isfinite(x)):
        raise ValueError(f"times: a fit takes at least two positive times, but there are {int(np.sum(x > 0))}.")
    mean, logs = float(x.mean()), np.log(x)
    sigma = max(float(logs.std()), 1e-6)
    shape = gamma_shape(x)
    tail = x.size / max(float(np.sum(logs - logs[0])), 1e-12)
    normal = -0.5 * np.square((logs - logs.mean()) / sigma) - math.log(sigma * math.sqrt(2 * math.pi)) - logs
    # The mean of each model is its own at the greatest likelihood; a Pareto tail of 1 or less has none.
    heavy = max(tail, 1.01)
    return {
        "exponential": _fit("exponential", {"mean": mean}, -math.log(mean) - x / mean, x),
        "gamma": _fit("gamma", {"shape": shape, "mean": mean}, _gamma_log_density(x, shape, mean), x),
        "lognormal": _fit("lognormal", {"sigma": sigma, "mean": float(np.exp(logs.mean() + sigma**2 / 2))}, normal, x),
        "pareto": _fit(
            "pareto",
            {"shape": heavy, "mean": float(x[0] * heavy / (heavy - 1))},
            math.log(heavy) + heavy * logs[0] - (heavy + 1) * logs,
            x,
        ),
        "empirical": Fit("empirical", {"times": x}, -math.inf, 0.0),
    }


def gamma_shape(x: np.ndarray) -> float:
    """The shape of a gamma distribution of greatest likelihood; at most 1e6, which is all but constant."""
    gap = max(math.log(x.mean()) - float(np.log(x).mean()), 5e-7)
    shape = (3 - gap + math.sqrt((gap - 3) ** 2 + 24 * gap)) / (12 * gap)
    for _ in range(20):
        step = (math.log(shape) - _digamma(shape) - gap) / (1 / shape - _trigamma(shape))
        shape = max(shape - step, shape / 2)
    return min(shape, 1e6)


def _digamma(x: float) -> float:
    shift = 0.0
    while x < 10:
        shift, x = shift - 1 / x, x + 1
    return shift + math.log(x) - 1 / (2 * x) - 1 / (12 * x**2) + 1 / (120 * x**4) - 1 / (252 * x**6)


def _trigamma(x: float) -> float:
    shift = 0.0
    while x < 10:
        shift, x = shift + 1 / x**2, x + 1
    return shift + 1 / x + 1 / (2 * x**2) + 1 / (6 * x**3) - 1 / (30 * x**5) + 1 / (42 * x**7)


def _gamma_log_density(x: np.ndarray, shape: float, mean: float) -> np.ndarray:
    rate = shape / mean
    return shape * math.log(rate) - math.lgamma(shape) + (shape - 1) * np.log(x) - rate * x


def _fit(family: Family, parameters: dict[str, float], log_density: np.ndarray, x: np.ndarray) -> Fit:
    made = getattr(service, family)(**parameters)
    drawn = made.sample(np.random.default_rng(0), 0, 20_000)
    return Fit(family, dict(parameters), float(np.mean(log_density)), distance(x, drawn))


def _model(one: Fit) -> Service:
    if one.family != "empirical":
        return getattr(service, one.family)(**one.parameters)
    times = np.asarray(one.parameters["times"])
    return Service("empirical", lambda rng, worker, n: rng.choice(times, n))


# ---------------------------------------------------------------------------------------------------------------------
# Comparison


class Comparison(NamedTuple):
    """Two samples of one quantity.

    Attributes:
      distance: the statistic.
      p_value: share of relabelled samples whose statistic is at least as large; small where the two differ.
    """

    distance: float
    p_value: float


def distance(x: ArrayLike, y: ArrayLike) -> float:
    """Kolmogorov-Smirnov distance: the largest difference between two empirical distribution functions.

    Example:
      >>> import asyncjax as aj
      >>> aj.fidelity.distance([1, 2], [2, 3])
      0.5
    """
    samples = [np.sort(np.ravel(np.asarray(sample))) for sample in (x, y)]
    both = np.concatenate(samples)
    below = [np.searchsorted(sample, both, side="right") / len(sample) for sample in samples]
    return float(np.abs(below[0] - below[1]).max())


def compare(
    runs: Sequence[np.ndarray],
    others: Sequence[np.ndarray],
    *,
    statistic: Callable[[np.ndarray, np.ndarray], float] = distance,
    num_permutations: int = 1000,
) -> Comparison:
    """Permutation test of whether two sets of runs draw from one distribution.

    Whole runs are relabelled, since staleness within a run is correlated: with the runs pooled, p is the share of ways
    to split them whose statistic is at least as large as the observed one, the observed split counted.

    Args:
      runs: one array per run, such as `schedule.staleness()` or the returns of a seed.
      others: the same of what it is compared with. With R and S runs p is at least 1 / binomial(R + S, R).
      statistic: of the pooled values of each side.
      num_permutations: random splits, with a fixed seed.

    Raises:
      ValueError: a side without runs, or two runs in all, of which no split could ever be unusual.

    Example:
      >>> import numpy as np, asyncjax as aj
      >>> low, high = [np.zeros(3)] * 5, [np.ones(3)] * 5
      >>> aj.fidelity.compare(low, high).p_value < 0.02
      True

    Source: Kolmogorov and Smirnov's statistic; Pitman, Significance tests which may be applied to samples from any
    populations (1937).
    """
    if not len(runs) or not len(others) or len(runs) + len(others) < 3:
        raise ValueError(
            f"compare was given {len(runs)} and {len(others)} runs: a test takes at least one and two; some five each"
            " to find anything."
        )
    pooled, count = [np.ravel(np.asarray(run)) for run in [*runs, *others]], len(runs)
    observed = statistic(np.concatenate(pooled[:count]), np.concatenate(pooled[count:]))
    rng, as_large = np.random.default_rng(0), 1
    for _ in range(num_permutations):
        order = rng.permutation(len(pooled))
        split = [np.concatenate([pooled[i] for i in part]) for part in (order[:count], order[count:])]
        as_large += statistic(*split) >= observed - 1e-12
    return Comparison(float(observed), as_large / (num_permutations + 1))
