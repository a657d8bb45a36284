"""Whether two sets of runs draw from one distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


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

    Raises:
      ValueError: a sample without values, or with one that is not a number.

    Example:
      >>> import asyncjax as aj
      >>> aj.fidelity.distance([1, 2], [2, 3])
      0.5
    """
    samples = [np.sort(np.ravel(np.asarray(sample))) for sample in (x, y)]
    for name, sample in zip("xy", samples, strict=True):
        _check_sample(name, sample)
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
      ValueError: a side without runs, or two runs in all, of which no split could ever be unusual; a run without
        values, or with one that is not a number.

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
    for i, run in enumerate(pooled):
        _check_sample(f"runs[{i}]" if i < count else f"others[{i - count}]", run)
    observed = statistic(np.concatenate(pooled[:count]), np.concatenate(pooled[count:]))
    if not np.isfinite(observed):
        raise ValueError(f"statistic={statistic!r} gave {observed}, which no split can be compared with.")
    rng, as_large = np.random.default_rng(0), 1
    for _ in range(num_permutations):
        order = rng.permutation(len(pooled))
        split = [np.concatenate([pooled[i] for i in part]) for part in (order[:count], order[count:])]
        as_large += statistic(*split) >= observed - 1e-12
    return Comparison(float(observed), as_large / (num_permutations + 1))


def _check_sample(name: str, sample: np.ndarray) -> None:
    if not sample.size or np.isnan(sample).any():
        what = "a value that is not a number" if sample.size else "no values"
        raise ValueError(f"{name} has {what}, so it has no distribution: leave it out.")
