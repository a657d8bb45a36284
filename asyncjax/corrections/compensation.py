"""Corrections that know where the message was computed: they compare the parameters then and now."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from asyncjax.checks import check_static, check_whole
from asyncjax.corrections.per_message import Message, Number, at_least, below_one, like, number, per_message, wide
from asyncjax.method import PyTree


def delay_compensation(strength: Number = 0.04) -> optax.GradientTransformationExtraArgs:
    """First-order Taylor step to the newest parameters: g <- g + strength g * g * (w - w_stale).

    g * g stands for the diagonal of the Hessian, as it does in expectation for one sample's negative log-likelihood.
    The square of a batch's mean gradient is far smaller, so large batches want a larger strength. The message has to be
    a gradient: with a private optimizer it is an update, for which the rule means nothing.

    Args:
      strength: lambda, at least 0; 0 does nothing.

    Example:
      >>> import jax, optax, asyncjax as aj
      >>> optimizer = optax.chain(aj.corrections.delay_compensation(1.0), optax.sgd(0.1))
      >>> method = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optimizer)
      >>> result = aj.emulate(method, aj.schedules.fixed_delay(100, delay=4), jax.random.key(0))
      >>> bool(abs(result.shared.params) < 0.01)
      True

    Source: Zheng et al., Asynchronous stochastic gradient descent with delay compensation (2017), DC-ASGD-c.
    """
    at_least(0.0, strength=strength)

    def update(message: Message, state: PyTree) -> tuple[PyTree, PyTree]:
        def compensate(sent: jax.Array, now: jax.Array, then: jax.Array) -> jax.Array:
            g = wide(sent)  # whose square may be too large for half precision, or too small
            return (g + like(number(strength), g) * g * g * (wide(now) - wide(then))).astype(sent.dtype)

        return jax.tree.map(compensate, message.gradient, message.params, message.stale_params), state

    return per_message("delay_compensation", lambda params: optax.EmptyState(), update, needs_params=True)


def adaptive_delay_compensation(
    strength: Number = 2.0, decay: Number = 0.95, eps: Number = 1e-7
) -> optax.GradientTransformationExtraArgs:
    """`delay_compensation` with strength / sqrt(MS + eps), MS <- decay MS + (1 - decay) g * g, element by element.

    Args:
      strength: lambda_0, at least 0.
      decay: m of the mean square, in [0, 1).
      eps: at least 0; keeps the root away from 0.

    Returns:
      An optax transformation; its state is MS, in the shapes of the parameters.

    Raises:
      ValueError: a strength or an eps below 0, or a decay outside [0, 1); from `update`, no `staleness` or a
        group's, no `params` or no `stale_params`.

    Example:
      >>> import jax.numpy as jnp, asyncjax as aj
      >>> correction = aj.corrections.adaptive_delay_compensation(strength=1.0, decay=0.0)  # MS = g * g
      >>> g, now, then = jnp.float32(2.0), jnp.float32(1.0), jnp.float32(0.5)
      >>> state = correction.init(now)
      >>> float(correction.update(g, state, now, staleness=1, stale_params=then)[0])  # 2 + 1 / 2 * 4 * (1 - 0.5)
      3.0

    Source: Zheng et al., Asynchronous stochastic gradient descent with delay compensation (2017), DC-ASGD-a.
    """
    at_least(0.0, strength=strength, eps=eps)
    below_one(decay=decay)

    def update(message: Message, mean_square: PyTree) -> tuple[PyTree, PyTree]:
        def average(ms: jax.Array, g: jax.Array) -> jax.Array:
            m, g = like(number(decay), ms), wide(g)
            return m * ms + (1 - m) * g * g

        def compensate(sent: jax.Array, ms: jax.Array, now: jax.Array, then: jax.Array) -> jax.Array:
            g, root = wide(sent), jnp.sqrt(ms + like(number(eps), ms))
            slope = g * g / jnp.where(root > 0, root, 1)  # where the root is 0 so is g * g
            return (g + like(number(strength), g) * slope * (wide(now) - wide(then))).astype(sent.dtype)

        mean_square = jax.tree.map(average, mean_square, message.gradient)
        corrected = jax.tree.map(compensate, message.gradient, mean_square, message.params, message.stale_params)
        return corrected, mean_square

    name = "adaptive_delay_compensation"
    return per_message(name, _zeros, update, needs_params=True)


class Steps(NamedTuple):
    """Running mean of how far the parameters move in one update.

    Attributes:
      params: the parameters last seen.
      total: per element, the exponentially weighted sum of abs(step).
      weight: Float[], the sum of those weights; 0 before the first step.
    """

    params: PyTree
    total: PyTree
    weight: jax.Array


def gap_aware(decay: Number = 0.99) -> optax.GradientTransformationExtraArgs:
    """Distance in units of the usual step C: g <- g / G with G = abs(w - w_stale) / C + 1, element by element.

    Where the parameters move by equal steps G is 1 + tau: with a constant gradient and a constant delay once C is the
    mean of such steps, after several 1 / (1 - decay) updates. Where they have not moved G is 1, however stale the
    message is.

    Args:
      decay: of the running mean C, in [0, 1).

    Returns:
      An optax transformation; its state is `Steps`.

    Raises:
      ValueError: a decay outside [0, 1); from `update`, no `staleness` or a group's, no `params` or no
        `stale_params`.

    Example:
      >>> import jax.numpy as jnp, asyncjax as aj
      >>> correction, w = aj.corrections.gap_aware(), jnp.array([1.0, 0.75, 0.5])  # steps of 0.25, so C = 0.25
      >>> state, sent = correction.init(w[0]), []
      >>> for tau in (1, 2):
      ...     g, state = correction.update(jnp.float32(1.0), state, w[tau], staleness=tau, stale_params=w[0])
      ...     sent.append(round(float(g), 4))
      >>> sent  # 1 / (1 + tau)
      [0.5, 0.3333]

    Source: Barkai, Hakimi and Schuster, Gap-aware mitigation of gradient staleness (2020). There C is made from the
    learning rate and a running mean of gradients; here it is a running mean (with its bias removed) of the steps that
    the parameters really took, so that it fits every optimizer.
    """
    below_one(decay=decay)

    def init(params: PyTree) -> Steps:
        return Steps(params, _zeros(params), number(0.0))

    def update(message: Message, steps: Steps) -> tuple[PyTree, Steps]:
        step = jax.tree.map(lambda new, old: jnp.abs(wide(new) - wide(old)), message.params, steps.params)
        # The parameters move once per group, not per message.
        moved = jax.tree.reduce(jnp.logical_or, jax.tree.map(lambda s: jnp.any(s > 0), step), False)
        m = jnp.where(moved, number(decay), 1)
        total = jax.tree.map(lambda c, s: like(m, s) * c + like(1 - m, s) * s, steps.total, step)
        weight = m * steps.weight + (1 - m)

        def shrink(g: jax.Array, now: jax.Array, then: jax.Array, c: jax.Array) -> jax.Array:
            usual = jnp.where(c > 0, c, 1)  # an element that never moved has no gap, either
            return g / like(jnp.abs(wide(now) - wide(then)) / usual * like(weight, c) + 1, g)

        corrected = jax.tree.map(shrink, message.gradient, message.params, message.stale_params, total)
        return corrected, Steps(message.params, total, weight)

    return per_message("gap_aware", init, update, needs_params=True)


def _zeros(params: PyTree) -> PyTree:
    """Where running means over messages begin."""
    return jax.tree.map(lambda x: jnp.zeros_like(wide(x)), params)


class ClosedLoop(NamedTuple):
    """State of `closed_loop_momentum`.

    Attributes:
      momentum: Float[], the algorithmic momentum, which may become negative.
      measured: Float[], the last measurement of the total momentum.
      velocity: the momentum buffer.
      past: the last parameters, newest first, on axis 0.
      gradient: the previous message.
      staleness: Float[], its staleness.
      count: Int[], updates so far.
    """

    momentum: jax.Array
    measured: jax.Array
    velocity: PyTree
    past: PyTree
    gradient: PyTree
    staleness: jax.Array
    count: jax.Array


def closed_loop_momentum(
    learning_rate: Number, momentum: Number = 0.9, gain: Number = 0.01, max_staleness: int = 16
) -> optax.GradientTransformationExtraArgs:
    """Momentum SGD whose total momentum, asynchrony's included, is held at `momentum` by feedback.

    v <- mu v + g, w <- w - learning_rate v, mu <- mu + gain (momentum - measured), where `measured` is the median over
    all elements of (w_{s+1} - w_s + learning_rate g(w_s)) / (w_s - w_{s-1}), s being the version that the message had
    read. Asynchrony adds momentum, so mu falls below `momentum`, and below 0 if need be. A whole optimizer, for
    `optimizer=` and groups of one; it keeps max_staleness + 3 copies of the parameters. For fresh messages it is
    momentum SGD up to the rounding of what it measures.

    Args:
      learning_rate: the step size; at least 0.
      momentum: the total momentum wanted, in [0, 1), where mu starts.
      gain: of the feedback, at least 0; 0 is plain momentum.
      max_staleness: older messages are applied but not measured; at least 0.

    Returns:
      An optax transformation; its state is `ClosedLoop`.

    Raises:
      ValueError: a learning rate, a gain or a largest staleness below 0, or a momentum outside [0, 1); from `update`,
        no `staleness` or a group's, no `params` or no `stale_params`.

    Example:
      >>> import jax, asyncjax as aj
      >>> optimizer = aj.corrections.closed_loop_momentum(0.02, momentum=0.5)
      >>> method = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optimizer)
      >>> result = aj.emulate(method, aj.schedules.fixed_delay(500, delay=4), jax.random.key(0))
      >>> state = result.shared.opt_state
      >>> round(float(state.measured), 1), round(float(state.momentum), 1)  # the delay adds the rest
      (0.5, 0.4)

    Source: Zhang and Mitliagkas, YellowFin and the art of momentum tuning (2019), closed-loop part. There the target is
    tuned, too; here measurements are clipped to [-1, 1], which keeps one outlier from mattering.
    """
    at_least(0.0, learning_rate=learning_rate, gain=gain, max_staleness=max_staleness)
    check_static(max_staleness=max_staleness)
    check_whole(max_staleness=max_staleness)
    below_one(momentum=momentum)

    def init(params: PyTree) -> ClosedLoop:
        zeros = jax.tree.map(jnp.zeros_like, params)
        past = jax.tree.map(lambda x: jnp.zeros((max_staleness + 3, *x.shape), x.dtype), params)
        return ClosedLoop(number(momentum), number(momentum), zeros, past, zeros, number(0.0), jnp.zeros((), jnp.int32))

    def measure(state: ClosedLoop, past: PyTree) -> jax.Array:
        """The median ratio for the previous message, NaN where its versions are not all known."""
        lag = state.staleness.astype(jnp.int32)

        def ratio(x: jax.Array, g: jax.Array) -> jax.Array:
            after, at, before = (jnp.take(x, lag + i, axis=0, mode="clip") for i in range(3))
            return jnp.ravel((after - at + like(number(learning_rate), g) * g) / (at - before))

        ratios = jnp.concatenate([number(r) for r in jax.tree.leaves(jax.tree.map(ratio, past, state.gradient))])
        middle = jnp.nanmedian(jnp.where(jnp.isfinite(ratios), ratios, jnp.nan))
        known = (lag <= max_staleness) & (lag + 2 <= state.count)
        return jnp.where(known, middle, jnp.nan)

    def update(message: Message, state: ClosedLoop) -> tuple[PyTree, ClosedLoop]:
        past = jax.tree.map(lambda x, new: jnp.concatenate([new[None], x[:-1]]), state.past, message.params)
        found = measure(state, past)
        measured = jnp.where(jnp.isnan(found), state.measured, jnp.clip(found, -1, 1))
        error = jnp.where(jnp.isnan(found), 0, number(momentum) - measured)
        mu = state.momentum + number(gain) * error
        velocity = jax.tree.map(lambda v, g: like(mu, g) * v + g, state.velocity, message.gradient)
        step = jax.tree.map(lambda v: -like(number(learning_rate), v) * v, velocity)
        new = ClosedLoop(mu, measured, velocity, past, message.gradient, message.staleness, state.count + 1)
        return step, new

    return per_message("closed_loop_momentum", init, update, needs_params=True, keeps_fresh=False)
