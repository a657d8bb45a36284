"""Families of service times, each at its greatest likelihood."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from asyncjax import service
from asyncjax.fidelity.compare import distance
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
    wrong = x[~((x > 0) & np.isfinite(x))]
    if x.size < 2 or wrong.size:
        there_are = f"{x.size - wrong.size}" + (f", and {wrong[0]} beside them" if wrong.size else "")
        raise ValueError(f"times: a fit takes at least two positive times, but there are {there_are}.")
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
        "empirical": empirical(x),
    }


def empirical(times: np.ndarray) -> Fit:
    """The times themselves, to be drawn with replacement."""
    return Fit("empirical", {"times": np.sort(times)}, -math.inf, 0.0)


def gamma_shape(x: np.ndarray) -> float:
    """The shape of a gamma distribution of greatest likelihood; at most 1e6, which is all but constant."""
    from scipy.special import digamma, polygamma  # on use, as scipy is everywhere here

    gap = max(math.log(x.mean()) - float(np.log(x).mean()), 5e-7)
    shape = (3 - gap + math.sqrt((gap - 3) ** 2 + 24 * gap)) / (12 * gap)
    for _ in range(20):
        step = (math.log(shape) - digamma(shape) - gap) / (1 / shape - polygamma(1, shape))
        shape = max(shape - step, shape / 2)
    return min(float(shape), 1e6)


def _gamma_log_density(x: np.ndarray, shape: float, mean: float) -> np.ndarray:
    rate = shape / mean
    return shape * math.log(rate) - math.lgamma(shape) + (shape - 1) * np.log(x) - rate * x


def _fit(family: Family, parameters: dict[str, float], log_density: np.ndarray, x: np.ndarray) -> Fit:
    made = getattr(service, family)(**parameters)
    drawn = made.sample(np.random.default_rng(0), 0, 20_000)
    return Fit(family, dict(parameters), float(np.mean(log_density)), distance(x, drawn))


def model(one: Fit) -> Service:
    """The service-time model of a fit."""
    if one.family != "empirical":
        return getattr(service, one.family)(**one.parameters)
    times = np.asarray(one.parameters["times"])
    return Service("empirical", lambda rng, worker, n: rng.choice(times, n))
