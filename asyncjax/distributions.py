"""Probability distributions over actions."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

LOG_2_PI = math.log(2.0 * math.pi)


class Categorical(NamedTuple):
    """p(a) = softmax(logits)_a over a in 0 .. A-1. All methods act on the last axis and keep the others.

    Attributes:
      logits: Float[..., A], unnormalised log-probabilities; -inf forbids an action.

    Example:
      >>> import jax.numpy as jnp
      >>> from asyncjax.distributions import Categorical
      >>> pi = Categorical(jnp.log(jnp.array([0.5, 0.25, 0.25])))
      >>> round(float(pi.entropy()), 4), int(pi.mode())
      (1.0397, 0)
    """

    logits: jax.Array

    def log_probs(self) -> jax.Array:
        """Every action's log p, Float[..., A]."""
        return jax.nn.log_softmax(self.logits)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """The actions' log p, Float[...], of Int[...]."""
        return jnp.take_along_axis(self.log_probs(), jnp.expand_dims(action, -1), axis=-1)[..., 0]

    def entropy(self) -> jax.Array:
        """-sum_a p(a) log p(a), Float[...], in nats."""
        return -expectation(self.log_probs(), self.log_probs())

    def kl(self, other: Categorical) -> jax.Array:
        """KL(self || other) = sum_a p(a) log(p(a) / q(a)), Float[...]; infinite where q(a) = 0 < p(a)."""
        log_p = self.log_probs()
        return expectation(log_p, log_p - other.log_probs())

    def mode(self) -> jax.Array:
        """The most probable action, Int32[...]; the first one of several."""
        return argmax(self.logits)

    def sample(self, key: jax.Array) -> jax.Array:
        """An action, Int32[...]. The key is consumed."""
        return self.sample_with(gumbel(key, self.logits.shape))

    def sample_with(self, noise: jax.Array) -> jax.Array:
        """An action, Int32[...], from standard Gumbel noise of the logits' shape: the Gumbel-max trick."""
        return argmax(self.logits + noise.astype(self.logits.dtype))


class Gaussian(NamedTuple):
    """Independent normal distributions of D numbers, with one log-probability. All methods act on the last axis.

    Attributes:
      mean: Float[..., D].
      log_std: Float[..., D], or of a shape that broadcasts against the mean.

    Example:
      >>> import jax.numpy as jnp
      >>> from asyncjax.distributions import Gaussian
      >>> standard = Gaussian(jnp.zeros(2), jnp.zeros(2))
      >>> shifted = Gaussian(jnp.array([1.0, 0.0]), jnp.zeros(2))
      >>> float(standard.kl(shifted)), round(float(standard.log_prob(jnp.zeros(2))), 4)
      (0.5, -1.8379)
    """

    mean: jax.Array
    log_std: jax.Array

    def spread(self) -> jax.Array:
        """The log_std of every number, Float[..., D]."""
        return jnp.broadcast_to(self.log_std, self.mean.shape)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """The log-density, Float[...], of Float[..., D]."""
        z = (action - self.mean) * jnp.exp(-self.spread())
        return jnp.sum(-0.5 * jnp.square(z) - self.spread() - 0.5 * LOG_2_PI, axis=-1)

    def entropy(self) -> jax.Array:
        """The differential entropy, Float[...], in nats."""
        return jnp.sum(self.spread() + 0.5 * (LOG_2_PI + 1.0), axis=-1)

    def kl(self, other: Gaussian) -> jax.Array:
        """KL(self || other), Float[...]."""
        log_ratio = other.spread() - self.spread()
        shift = (self.mean - other.mean) * jnp.exp(-other.spread())
        return jnp.sum(log_ratio + 0.5 * (jnp.exp(-2.0 * log_ratio) + jnp.square(shift) - 1.0), axis=-1)

    def mode(self) -> jax.Array:
        """The mean."""
        return self.mean

    def sample(self, key: jax.Array) -> jax.Array:
        """An action, Float[..., D]. The key is consumed."""
        return self.sample_with(normal(key, self.mean.shape))

    def sample_with(self, noise: jax.Array) -> jax.Array:
        """An action, Float[..., D], from standard normal noise of the mean's shape."""
        return self.mean + jnp.exp(self.spread()) * noise.astype(self.mean.dtype)


def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise, Float32[shape], for `Gaussian.sample_with`. The key is consumed."""
    return jax.random.normal(key, shape, jnp.float32)


def gumbel(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard Gumbel noise, Float32[shape], for `Categorical.sample_with`. The key is consumed."""
    return jax.random.gumbel(key, shape, jnp.float32)


def expectation(log_p: jax.Array, x: jax.Array) -> jax.Array:
    """sum_a p(a) x(a), where an action of probability 0 counts 0 whatever x is, also in the gradient."""
    possible = log_p > -jnp.inf
    p = jnp.exp(log_p)
    return jnp.sum(jnp.where(possible, p * jnp.where(possible, x, 0.0), 0.0), axis=-1)


def argmax(x: jax.Array) -> jax.Array:
    """Index of the largest entry along the last axis, Int32[...] also under x64."""
    return jax.lax.argmax(x, x.ndim - 1, jnp.int32)
