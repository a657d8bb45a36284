"""What is kept of each run of a sweep: functions that run where the run did, so that its metrics need not leave."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from asyncjax.checks import check_least, check_number
from asyncjax.environment import Environment, make_env
from asyncjax.evaluate import evaluate
from asyncjax.method import Method, Metrics, Result


def final(fraction: float = 0.1) -> Callable[[Result], Metrics]:
    """The mean of every metric over the last part of the run; of episodes, their mean return and length.

    Args:
      fraction: of the updates, in (0, 1].

    Returns:
      result -> name -> Float32[...]; NaN for the return where no episode ended.

    Example:
      >>> import jax, asyncjax as aj
      >>> method = aj.a3c("Catch-bsuite", num_envs=2, unroll_length=9)
      >>> result = aj.emulate(method, aj.schedules.round_robin(5, 2), jax.random.key(0))
      >>> float(aj.summaries.final(1.0)(result)["length"])
      9.0
    """
    check_number(fraction=fraction)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction}: a part of the run, above 0 and at most 1.")

    def summarize(result: Result) -> Metrics:
        num_updates = max((x.shape[0] for x in result.metrics.values()), default=1)
        first = num_updates - max(1, round(fraction * num_updates))
        means = _stretches({name: x[first:] for name, x in result.metrics.items()}, 1)
        return {name: x[0] for name, x in means.items()}

    return summarize


def curve(points: int = 50, metric: str = "return") -> Callable[[Result], Metrics]:
    """The course of a metric: its mean over each of so many stretches of the run, as equal as they can be.

    A stretch in which no episode ended repeats the one before.

    Args:
      points: L, at most the number of updates.
      metric: the name of a metric; "return" and "length" are means over episodes.

    Returns:
      result -> {"<metric>_curve": Float32[L]}; NaN before the first episode ended.
    """
    check_least(1, "a curve has at least 1", points=points)

    def summarize(result: Result) -> Metrics:
        means = _stretches(result.metrics, points)
        if metric not in means:
            raise ValueError(f"metric={metric!r}: this method reports {', '.join(sorted(means)) or 'nothing'}.")
        return {f"{metric}_curve": _carried_forward(means[metric])}

    return summarize


def mean_staleness(staleness: jax.Array) -> Metrics:
    """Of a run's messages, Int[T, G]: {"staleness": Float32[]}."""
    return {"staleness": staleness.astype(jnp.float32).mean()}


def evaluation(
    env: Environment | str, episodes: int = 100, greedy: bool = True
) -> Callable[[Result, Method, jax.Array], Metrics]:
    """The mean undiscounted return of fresh episodes under the final policy, see `asyncjax.evaluate`.

    Args:
      env: the environment, or a gymnax id.
      episodes: how many.
      greedy: take the policy's mode; False samples from it.

    Returns:
      (result, method, key) -> {"evaluation": Float32[]}.
    """
    env = make_env(env)

    def summarize(result: Result, method: Method, key: jax.Array) -> Metrics:
        return {"evaluation": evaluate(method, env, result.shared, key, episodes, greedy).mean()}

    return summarize


def stretch_ends(num_updates: int, points: int) -> np.ndarray:
    """Int[L]: the update after each stretch of a curve, as `numpy.array_split` divides them."""
    return np.cumsum([len(part) for part in np.array_split(np.arange(num_updates), points)])


def _stretches(metrics: Metrics, points: int) -> Metrics:
    """The mean of every metric over each stretch, Float32[L]."""
    num_updates = max((x.shape[0] for x in metrics.values()), default=points)
    if points > num_updates:
        raise ValueError(f"points={points}: a run of {num_updates} updates has no more stretches; ask for fewer.")
    ends = stretch_ends(num_updates, points)
    stretch = np.searchsorted(ends, np.arange(num_updates), side="right")
    length = jnp.asarray(np.diff(ends, prepend=0), jnp.float32)
    per_update = {name: x.reshape(num_updates, -1).astype(jnp.float32) for name, x in metrics.items()}
    sums = {name: jax.ops.segment_sum(x.mean(1), stretch, points) for name, x in per_update.items()}
    means = {name: x / length for name, x in sums.items()}
    if "episodes" in means:  # of sums over the episodes that ended in a segment the quotients tell something
        episodes = means.pop("episodes")
        for total in [name for name in ("return_sum", "length_sum") if name in means]:
            quotient = means.pop(total) / jnp.maximum(episodes, jnp.finfo(jnp.float32).tiny)
            means[total.removesuffix("_sum")] = jnp.where(episodes > 0, quotient, jnp.nan)
    return means


def _carried_forward(x: jax.Array) -> jax.Array:
    """Float[L] with every NaN replaced by the last number before it."""
    last = jax.lax.cummax(jnp.where(jnp.isnan(x), -1, jnp.arange(x.shape[0])))
    return jnp.where(last < 0, jnp.nan, x[jnp.maximum(last, 0)])
