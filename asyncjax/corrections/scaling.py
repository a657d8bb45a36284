"""Corrections that scale a message by what is known about its age."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from asyncjax.corrections.per_message import Message, Number, at_least, like, number, per_message
from asyncjax.method import PyTree

Factor = Callable[[jax.Array], jax.Array]


class ScalingFactor(optax.GradientTransformationExtraArgs):
    """A factor of the staleness, Float[] -> Float[], and the correction that scales by it."""

    factor: Factor

    def __call__(self, staleness: Any) -> jax.Array:
        """The factor of a message of this staleness."""
        return self.factor(staleness)


def _correction(name: str, factor: Factor) -> ScalingFactor:
    both = ScalingFactor(*scale_by(factor, name))
    both.factor = factor
    return both


def scale_by(factor: Factor, name: str = "scale_by") -> optax.GradientTransformationExtraArgs:
    """Any function of the staleness as a factor: g <- factor(staleness) g.

    Args:
      factor: Float[] -> Float[]; 1 at staleness 0 leaves fresh messages alone, bit for bit.
      name: how the correction is called in errors.

    Example:
      >>> import jax, optax, asyncjax as aj
      >>> correction = aj.corrections.scale_by(aj.corrections.hinge(slope=1.0, grace=2.0))
      >>> method = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(0.1), correction=correction)
      >>> result = aj.emulate(method, aj.schedules.round_robin(100, num_workers=8), jax.random.key(0))
      >>> bool(abs(result.shared.params) < 0.5)
      True
    """
    if not callable(factor):
        raise TypeError(f"factor={factor!r}: give a function of the staleness, such as aj.corrections.polynomial(0.5).")

    def update(message: Message, state: PyTree) -> tuple[PyTree, PyTree]:
        return scaled(message.gradient, factor(message.staleness)), state

    return per_message(name, lambda params: optax.EmptyState(), update, keeps_fresh=False)


def scale_by_staleness(power: Number = 1.0) -> optax.GradientTransformationExtraArgs:
    """The older, the smaller: g <- g / (1 + tau)^power.

    Args:
      power: at least 0; 0 does nothing, 1 is the paper's, 0.5 is FedAsync's polynomial and FedBuff's discount.

    Raises:
      ValueError: a power below 0.

    Example:
      >>> import jax, optax, asyncjax as aj
      >>> optimizer = optax.chain(aj.corrections.scale_by_staleness(), optax.sgd(1.0))
      >>> method = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optimizer)
      >>> result = aj.emulate(method, aj.schedules.fixed_delay(200, delay=3), jax.random.key(0))
      >>> bool(abs(result.shared.params) < 1e-3)  # 1.0 alone would diverge: the limit at delay 3 is 0.445
      True

    Source: Zhang et al., Staleness-aware async-SGD for distributed deep learning (2016), where fresh counts as 1, so
    that there it is g / tau. Any power: Xie et al., Asynchronous federated optimization (2019).
    """
    return scale_by(polynomial(power).factor, "scale_by_staleness")


def polynomial(power: Number = 0.5) -> ScalingFactor:
    """The factor (1 + tau)^-power of FedAsync.

    Args:
      power: at least 0; 0 does nothing.

    Returns:
      The correction, which is the factor Float[] -> Float[], too: products of factors go into `scale_by`.

    Raises:
      ValueError: a power below 0.

    Example:
      >>> import asyncjax as aj
      >>> factor = aj.corrections.polynomial(power=0.5)
      >>> [round(float(factor(tau)), 3) for tau in (0, 3, 8)]
      [1.0, 0.5, 0.333]

    Source: Xie et al., Asynchronous federated optimization (2019).
    """
    at_least(0.0, power=power)
    return _correction("polynomial", lambda tau: 1 / (1 + tau) ** number(power))


def hinge(slope: Number = 10.0, grace: Number = 4.0) -> ScalingFactor:
    """The factor 1 up to staleness `grace`, then 1 / (slope (tau - grace) + 1), of FedAsync.

    Args:
      slope: how fast the factor falls; at least 0.
      grace: updates of staleness that change nothing; at least 0.

    Returns:
      The correction, which is the factor Float[] -> Float[], too: products of factors go into `scale_by`.

    Raises:
      ValueError: a slope or a grace below 0.

    Example:
      >>> import asyncjax as aj
      >>> factor = aj.corrections.hinge(slope=1.0, grace=2.0)
      >>> [float(factor(tau)) for tau in (0, 2, 3, 5)]
      [1.0, 1.0, 0.5, 0.25]

    Source: Xie et al., Asynchronous federated optimization (2019).
    """
    at_least(0.0, slope=slope, grace=grace)
    return _correction("hinge", lambda tau: 1 / (1 + number(slope) * jnp.maximum(tau - number(grace), 0)))


def delay_adaptive(learning_rate: Number, smoothness: Number) -> ScalingFactor:
    """The factor that makes a step size of `learning_rate` into min(learning_rate, 1 / (4 L tau)).

    The sum of the steps, not the worst delay, then decides how fast a run converges.

    Args:
      learning_rate: eta of the optimizer behind it; at least 0.
      smoothness: L, the largest curvature of the loss; at least 0.

    Returns:
      The correction, which is the factor Float[] -> Float[], too: 1 / max(1, 4 L learning_rate tau).

    Raises:
      ValueError: a learning rate or a smoothness below 0.

    Example:
      >>> import asyncjax as aj
      >>> factor = aj.corrections.delay_adaptive(learning_rate=0.5, smoothness=1.0)
      >>> [float(factor(tau)) for tau in (0, 1, 2)]  # for the steps 1 / 2, 1 / 4 and 1 / 8
      [1.0, 0.5, 0.25]

    Source: Koloskova, Stich and Jaggi, Sharper convergence guarantees for asynchronous SGD (2022); Mishchenko et al.,
    Asynchronous SGD beats minibatch SGD under arbitrary delays (2022).
    """
    at_least(0.0, learning_rate=learning_rate, smoothness=smoothness)
    steepness = 4 * number(smoothness) * number(learning_rate)
    return _correction("delay_adaptive", lambda tau: 1 / jnp.maximum(1, steepness * tau))


def pipemare(num_messages: int | jax.Array) -> optax.GradientTransformationExtraArgs:
    """Careful at first, full steps later: g <- g / max(tau, 1)^p with p = 1 - min(k / K, 1) falling from 1 to 0.

    Args:
      num_messages: K, after how many messages the correction has faded out; at least 1.

    Returns:
      An optax transformation; its state is k, Int[].

    Raises:
      ValueError: num_messages below 1; from `update`, no `staleness` or a group's.

    Example:
      >>> import jax.numpy as jnp, asyncjax as aj
      >>> correction = aj.corrections.pipemare(num_messages=2)
      >>> state, sent = correction.init(jnp.float32(0.0)), []
      >>> for _ in range(3):
      ...     g, state = correction.update(jnp.float32(1.0), state, staleness=4)
      ...     sent.append(float(g))
      >>> sent  # 1 / 4, 1 / 4^0.5, 1
      [0.25, 0.5, 1.0]

    Source: Yang et al., PipeMare: asynchronous pipeline parallel DNN training (2021), its first technique. There tau is
    a stage's fixed delay of at least 1 and K a number of steps.
    """
    at_least(1, num_messages=num_messages)

    def update(message: Message, count: jax.Array) -> tuple[PyTree, jax.Array]:
        power = 1 - jnp.minimum(number(count) / number(num_messages), 1)
        return scaled(message.gradient, 1 / jnp.maximum(message.staleness, 1) ** power), count + 1

    return per_message("pipemare", lambda params: jnp.zeros((), jnp.int32), update)


def scale_by_effective_sample_size(power: Number = 0.5) -> optax.GradientTransformationExtraArgs:
    """Smaller steps where few samples count: g <- (ESS / n)^power g, for methods that know their importance weights.

    `update` takes keyword-only `effective_sample_size`, Float[], the fraction ESS / n = (sum w)^2 / (n sum w^2) of the
    importance weights w of the batch; on-policy it is 1, and nothing changes.

    Args:
      power: at least 0; 0.5 suits optimizers that normalise, as Adam does, 1 suits SGD.

    Returns:
      An optax transformation without a state.

    Raises:
      ValueError: a power below 0; from `update`, no `effective_sample_size`.

    Example:
      >>> import jax.numpy as jnp, asyncjax as aj
      >>> correction = aj.corrections.scale_by_effective_sample_size(power=0.5)
      >>> state = correction.init(jnp.float32(0.0))
      >>> float(correction.update(jnp.float32(4.0), state, effective_sample_size=0.25)[0])  # 0.25^0.5 * 4
      2.0

    Source: Huang et al., Stable asynchrony: variance-controlled off-policy RL for LLMs (2026), where the fraction is
    relative to that of an on-policy batch and the learning rate is scaled.
    """
    at_least(0.0, power=power)

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, *, effective_sample_size: Any = None, **_: Any
    ) -> tuple[PyTree, PyTree]:
        del params
        if effective_sample_size is None:
            raise ValueError(
                "scale_by_effective_sample_size needs effective_sample_size, and none is given: it is for methods whose"
                " messages are trajectories; for gradients use scale_by_staleness."
            )
        return scaled(updates, number(effective_sample_size) ** number(power)), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)  # pyright: ignore


def scaled(gradient: PyTree, factor: jax.Array) -> PyTree:
    """The gradient times a number, in its own dtypes; a factor of 1 changes no bit."""
    return jax.tree.map(lambda g: like(factor, g) * g, gradient)
