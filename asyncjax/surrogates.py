"""Policy losses on the data of an older policy, as functions of log-ratios and advantages.

Actions were drawn from mu, the behaviour policy, and pi is being learned: r = pi(a|s) / mu(a|s). Every loss is a
mean of -w A over actions, and its gradient that of -w A grad log pi(a|s). They differ in the weight w of the gradient:

    uncorrected  1                                      (biased by staleness, no variance)
    importance   r                                      (unbiased, unbounded variance)
    truncated    min(r, cap)
    cispo        clip(r, 1 - low, 1 + high)
    masked       r where 1 / cap <= r <= cap, else 0, over the actions kept
    clipped      r where the clip is not active, else 0     (PPO)
    m2po         r where the second moment of log r allows, else 0
    decoupled    min(prox / mu, cap) times the clipped one of pi / prox

At pi = mu all of them are the policy gradient. Arrays may have any one shape: the mean goes over all axes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, TypeVar, get_args

import jax
import jax.numpy as jnp

Scalar = float | jax.Array
Surrogate = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]
AnySurrogate = TypeVar("AnySurrogate", bound=Callable[..., jax.Array])
SurrogateName = Literal["uncorrected", "importance", "truncated", "cispo", "masked", "clipped", "m2po", "decoupled"]


def named(surrogate: SurrogateName | Surrogate) -> Callable[..., jax.Array]:
    """The function of this name, with options of its own, or the function that is given."""
    if callable(surrogate):
        return surrogate
    if surrogate not in get_args(SurrogateName):
        names = ", ".join(map(repr, get_args(SurrogateName)))
        raise ValueError(
            f"surrogate={surrogate!r}: choose one of {names}, or give a function of log-ratios, advantages and a mask."
        )
    return globals()[surrogate]


def ratio(log_ratio: jax.Array) -> jax.Array:
    """Exp, at most e^20: an infinite ratio times an advantage of 0 would be NaN."""
    return jnp.exp(jnp.minimum(log_ratio, 20.0))


def average(x: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """The mean over the entries that count, Float[]; 0 where none does."""
    if where is None and x.size:
        return jnp.mean(x)
    where = jnp.broadcast_to(True if where is None else where, x.shape)
    return jnp.sum(jnp.where(where, x, 0.0)) / jnp.maximum(jnp.sum(where, dtype=x.dtype), 1.0)


def weighted(weight: jax.Array, log_ratio: jax.Array, advantage: jax.Array) -> jax.Array:
    """-w A with the gradient -w A grad log pi, whatever the weight depends on."""
    # Pi may forbid an action that mu has taken.
    finite = jnp.maximum(log_ratio, jnp.finfo(jnp.result_type(log_ratio)).min)
    one = jnp.exp(finite - jax.lax.stop_gradient(finite))
    return -jax.lax.stop_gradient(weight) * one * advantage


def ignoring_left_out(surrogate: AnySurrogate) -> AnySurrogate:
    """The surrogate on inputs that are 0 where `where` is False: a NaN there reaches neither value nor gradient."""

    @wraps(surrogate)
    def safe(log_ratio: jax.Array, advantage: jax.Array, where: jax.Array | None = None, **options: Any) -> jax.Array:
        if where is not None:
            where = jnp.broadcast_to(where, jnp.shape(log_ratio))
            log_ratio, advantage = (jnp.where(where, x, 0) for x in (log_ratio, advantage))
            if "log_proximal" in options:
                options["log_proximal"] = jnp.where(where, options["log_proximal"], 0)
        return surrogate(log_ratio, advantage, where, **options)

    return safe  # type: ignore[return-value]


@ignoring_left_out
def uncorrected(log_ratio: jax.Array, advantage: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """The policy gradient as if the data were fresh: w = 1.

    Args:
      log_ratio: log pi(a|s) - log mu(a|s).
      advantage: a constant.
      where: which actions count; None is all.

    Example:
      >>> import jax, jax.numpy as jnp, asyncjax as aj
      >>> jax.grad(aj.surrogates.uncorrected)(jnp.log(jnp.array([4.0, 0.5])), jnp.array([1.0, -2.0])).tolist()
      [-0.5, 1.0]

    Source: Williams (1992); what A3C does with stale data.
    """
    return average(weighted(jnp.ones_like(log_ratio), log_ratio, advantage), where)


@ignoring_left_out
def importance(log_ratio: jax.Array, advantage: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """Importance sampling: w = r. Unbiased in the action.

    Args:
      log_ratio: log pi(a|s) - log mu(a|s).
      advantage: a constant.
      where: which actions count; None is all.

    Example:
      >>> import jax, jax.numpy as jnp, asyncjax as aj
      >>> jax.grad(aj.surrogates.importance)(jnp.log(jnp.array([4.0, 0.5])), jnp.array([1.0, -2.0])).tolist()
      [-2.0, 0.5]
    """
    return average(-ratio(log_ratio) * advantage, where)


@ignoring_left_out
def truncated(
    log_ratio: jax.Array, advantage: jax.Array, where: jax.Array | None = None, *, cap: Scalar = 2.0
) -> jax.Array:
    """Truncated importance sampling: w = min(r, cap).

    Args:
      log_ratio: log pi(a|s) - log mu(a|s).
      advantage: a constant.
      where: which actions count; None is all.
      cap: bounds the variance; below it the gradient is unbiased. IMPALA's policy gradient has 1.

    Example:
      >>> import jax, jax.numpy as jnp, asyncjax as aj
      >>> jax.grad(aj.surrogates.truncated)(jnp.log(jnp.array([4.0, 0.5])), jnp.array([1.0, -2.0])).tolist()
      [-1.0, 0.5]

    Source: Ionides, Truncated importance sampling (2008); Espeholt et al., IMPALA (2018); cap 2: Yao et al. (2025).
    """
    return average(weighted(jnp.minimum(ratio(log_ratio), like(cap, log_ratio)), log_ratio, advantage), where)


@ignoring_left_out
def cispo(
    log_ratio: jax.Array,
    advantage: jax.Array,
    where: jax.Array | None = None,
    *,
    low: Scalar = 1.0,
    high: Scalar = 0.28,
) -> jax.Array:
    """Clipped importance weights: w = clip(r, 1 - low, 1 + high), and no action loses its gradient.

    Args:
      log_ratio: log pi(a|s) - log mu(a|s).
      advantage: a constant.
      where: which actions count; None is all.
      low: how far the weight may fall below 1; 1 is no bound, as in the paper.
      high: how far it may rise above 1; the paper tunes it and does not state it.

    Example:
      >>> import jax, jax.numpy as jnp, asyncjax as aj
      >>> log_ratio, advantage = jnp.log(jnp.array([4.0, 0.5])), jnp.array([1.0, -2.0])
      >>> jax.grad(aj.surrogates.cispo)(log_ratio, advantage, high=0.5).tolist()
      [-0.75, 0.5]

    Source: MiniMax, MiniMax-M1 (2025), equations 4 and 5. With low = 1 it is `truncated` at cap 1 + high.
    """
    weight = jnp.clip(ratio(log_ratio), 1.0 - like(low, log_ratio), 1.0 + like(high, log_ratio))
    return average(weighted(weight, log_ratio, advantage), where)


@ignoring_left_out
def masked(
    log_ratio: jax.Array, advantage: jax.Array, where: jax.Array | None = None, *, cap: Scalar = 2.0
) -> jax.Array:
    """Masked importance sampling: w = r where 1 / cap <= r <= cap; other actions leave the denominator too.

    Args:
      log_ratio: log pi(a|s) - log mu(a|s).
      advantage: a constant.
      where: which actions count; None is all.
      cap: the largest ratio, and one over the smallest, that is trusted; above 1.

    Example:
      >>> import jax, jax.numpy as jnp, asyncjax as aj
      >>> jax.grad(aj.surrogates.masked)(jnp.log(jnp.array([4.0, 0.5])), jnp.array([1.0, -2.0])).tolist()
      [0.0, 1.0]

    Source: the masked variant of truncated importance sampling of Yao et al. (2025) and of IcePop, Ling team (2025).
    """
    kept = jnp.abs(log_ratio) <= jnp.log(like(cap, log_ratio))
    return importance(log_ratio, advantage, kept if where is None else kept & where)


@ignoring_left_out
def clipped(
    log_ratio: jax.Array,
    advantage: jax.Array,
    where: jax.Array | None = None,
    *,
    clip: Scalar = 0.2,
    reciprocal: bool = False,
) -> jax.Array:
    """PPO: -min(r A, clip(r, 1 - clip, 1 + clip) A).

    Args:
      log_ratio: log pi(a|s) - log mu(a|s).
      advantage: a constant.
      where: which actions count; None is all.
      clip: how far the ratio is rewarded for moving.
      reciprocal: clip below at 1 / (1 + clip) instead of 1 - clip, as Sample Factory does.

    Example:
      >>> import jax, jax.numpy as jnp, asyncjax as aj
      >>> jax.grad(aj.surrogates.clipped)(jnp.log(jnp.array([4.0, 0.5])), jnp.array([1.0, 2.0])).tolist()
      [-0.0, -0.5]

    Source: Schulman et al., Proximal policy optimization (2017), equation 7.
    """
    r, clip = ratio(log_ratio), like(clip, log_ratio)
    lower = 1.0 / (1.0 + clip) if reciprocal else 1.0 - clip
    return average(-jnp.minimum(r * advantage, jnp.clip(r, lower, 1.0 + clip) * advantage), where)


@ignoring_left_out
def m2po(
    log_ratio: jax.Array, advantage: jax.Array, where: jax.Array | None = None, *, second_moment: Scalar = 0.04
) -> jax.Array:
    """Second-moment trust: w = r, and 0 for the largest log-ratios until the mean (log r)^2 of the others is small.

    Only actions that a trust region is about are counted and masked: those with r > 1 and A > 0, or r < 1 and A < 0.

    Args:
      log_ratio: log pi(a|s) - log mu(a|s).
      advantage: a constant.
      where: which actions count; None is all.
      second_moment: the largest mean (log r)^2 of the actions that are kept.

    Example:
      >>> import jax, jax.numpy as jnp, asyncjax as aj
      >>> log_ratio, advantage = jnp.array([0.1, 0.3, -1.0]), jnp.ones(3)
      >>> gradient = jax.grad(aj.surrogates.m2po)(log_ratio, advantage)
      >>> (gradient != 0).tolist()  # (.1^2 + .3^2) / 2 > .04; the third is pulled back
      [True, False, True]

    Source: Zheng et al., Prosperity before collapse (2025). Their code turns the mask into a clip range of its own,
    which is never narrower than 0.3 below and 0.5 above 1; here it is the mask.
    """
    outward = log_ratio * advantage > 0.0
    outward = outward if where is None else outward & where
    square = jnp.where(outward, jax.lax.stop_gradient(jnp.square(log_ratio)), jnp.inf).ravel()
    ascending = jnp.sort(square)
    count = jnp.arange(1, square.size + 1, dtype=jnp.int32).astype(square.dtype)
    # Running means of an ascending sequence ascend, so those that are small enough are the first ones. Equal squares
    # stay or go together, so what counts is the mean with the last of them.
    allowed = jnp.cumsum(ascending) / count <= like(second_moment, square)
    last = jnp.append(ascending[1:] > ascending[:-1], True)
    limit = jnp.max(jnp.where(allowed & last, ascending, -1.0))
    rejected = outward & (jnp.square(log_ratio) > limit)
    return average(jnp.where(rejected, 0.0, -ratio(log_ratio) * advantage), where)


@ignoring_left_out
def decoupled(
    log_ratio: jax.Array,
    advantage: jax.Array,
    where: jax.Array | None = None,
    *,
    log_proximal: jax.Array,
    clip: Scalar = 0.2,
    cap: Scalar = 100.0,
    reciprocal: bool = False,
) -> jax.Array:
    """Decoupled PPO: -min(prox / mu, cap) min(r A, clip(r) A) with r = pi / prox.

    The trust region is about the proximal policy, a recent one, and the importance weight about the behaviour.

    Args:
      log_ratio: log pi(a|s) - log mu(a|s).
      advantage: a constant.
      where: which actions count; None is all.
      log_proximal: log prox(a|s) - log mu(a|s), a constant.
      clip: how far pi / prox is rewarded for moving.
      cap: the largest importance weight.
      reciprocal: as in `clipped`.

    Example:
      >>> import jax, jax.numpy as jnp, asyncjax as aj
      >>> log_ratio, advantage = jnp.log(jnp.array([4.0, 0.5])), jnp.array([1.0, 2.0])
      >>> proximal = jnp.log(jnp.array([4.0, 2.0]))  # of pi / prox = 1 and 1 / 4 none is clipped: A > 0
      >>> jax.grad(aj.surrogates.decoupled)(log_ratio, advantage, log_proximal=proximal).tolist()
      [-2.0, -0.5]

    Source: Hilton et al., Batch size-invariance for policy optimization (2022), section 2.3.
    """
    weight = jnp.minimum(ratio(log_proximal), like(cap, log_ratio))
    # A positive factor passes through the minimum.
    return clipped(log_ratio - log_proximal, weight * advantage, where, clip=clip, reciprocal=reciprocal)


def like(number: Scalar, x: jax.Array) -> jax.Array:
    """A number in the dtype of x, also where it is a float64 tracer."""
    return jnp.asarray(number, jnp.result_type(x))
