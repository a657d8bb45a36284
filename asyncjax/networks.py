"""Flax networks: torsos for vectors and images, and a policy head beside a value head.

A network sees one unbatched observation; callers `vmap` it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from asyncjax.environment import Discrete, Environment

PyTree = Any


def dense(features: int, scale: float = math.sqrt(2.0)) -> nn.Dense:
    """A linear layer with normal weights of this gain, and zero biases.

    Not orthogonal ones: their QR decomposition, under `vmap` over seeds in a larger program, can deadlock XLA on CPUs.
    """
    return nn.Dense(features, kernel_init=nn.initializers.variance_scaling(scale**2, "fan_in", "normal"))


class MLP(nn.Module):
    """Fully connected layers with a tanh behind each."""

    hidden: Sequence[int] = (64, 64)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Float[F] -> Float[hidden[-1]]."""
        for features in self.hidden:
            x = nn.tanh(dense(features)(x))
        return x


class MinAtarCNN(nn.Module):
    """One 3x3 convolution and one linear layer, a relu behind each.

    Source: Young and Tian, MinAtar (2019), the network of their actor-critic.
    """

    channels: int = 16
    hidden: int = 128

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Float[H, W, C] -> Float[hidden]."""
        # The convolution as slices and one matrix product: where the workers of a batch have different weights,
        # XLA's own convolution halves the speed of the whole update on a CPU.
        height, width, _ = x.shape
        slices = [x[i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3)]
        x = nn.relu(dense(self.channels)(jnp.concatenate(slices, axis=-1)))
        return nn.relu(dense(self.hidden)(x.reshape(-1)))


class ActorCritic(nn.Module):
    """Logits of the policy and the value.

    Attributes:
      num_actions: A.
      torso: Float[...] -> Float[F].
      value_torso: a second torso for the value; None shares the policy's. Where values are large, learning them
        through a shared torso first saturates what the policy needs: on Acrobot a shared MLP learns nothing.
      num_values: the number of values of a discrete observation, which is fed one-hot; None for arrays.
    """

    num_actions: int
    torso: nn.Module
    value_torso: nn.Module | None = None
    num_values: int | None = None

    @nn.compact
    def __call__(self, observation: PyTree) -> tuple[jax.Array, jax.Array]:
        """An observation -> (logits Float[A], value Float[])."""
        x = encode(observation, self.num_values)
        features = self.torso(x)
        value_features = features if self.value_torso is None else self.value_torso(x)
        # Small policy weights make the first policy nearly uniform, whatever is observed.
        return dense(self.num_actions, 0.01)(features), dense(1, 1.0)(value_features)[0]


def actor_critic(env: Environment) -> ActorCritic:
    """The default network of an environment: one CNN for images, an MLP each for policy and value for all else.

    Args:
      env: an environment with discrete actions.

    Returns:
      A flax module, observation -> (logits Float[A], value Float[]).

    Example:
      >>> import jax
      >>> from asyncjax.environment import make_env
      >>> env = make_env("Breakout-MinAtar")
      >>> network = actor_critic(env)
      >>> _, observation = env.reset(jax.random.key(0))
      >>> params = network.init(jax.random.key(1), observation)
      >>> network.apply(params, observation)[0].shape
      (3,)
    """
    space, num_actions = env.observation_space, env.action_space.num_values
    if len(getattr(space, "shape", ())) == 3:
        return ActorCritic(num_actions, MinAtarCNN())
    num_values = space.num_values if isinstance(space, Discrete) else None
    return ActorCritic(num_actions, MLP(), MLP(), num_values)


def encode(observation: PyTree, num_values: int | None = None) -> jax.Array:
    """An observation as what a torso takes: one-hot if discrete, an image as it is, all else one flat vector."""
    if num_values is not None:
        return jax.nn.one_hot(observation, num_values, dtype=jnp.float32)
    leaves = [jnp.asarray(leaf, jnp.float32) for leaf in jax.tree.leaves(observation)]
    if len(leaves) == 1 and leaves[0].ndim == 3:
        return leaves[0]
    return jnp.concatenate([leaf.reshape(-1) for leaf in leaves])
