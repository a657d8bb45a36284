"""Networks of action values: a torso with LayerNorm and a linear head, dueling or not."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from asyncjax.environment import Discrete, Environment
from asyncjax.method import PyTree
from asyncjax.networks import MLP, dense, encode, image_torso, is_image


class QNetwork(nn.Module):
    """Q(s, .) = W torso(s); dueling: Q(s, a) = V(s) + A(s, a) - mean_b A(s, b), with both heads on one torso.

    Attributes:
      num_actions: A.
      torso: Float[...] -> Float[F].
      dueling: a head for the state's value beside one for the actions' advantages.
      num_values: the number of values of a discrete observation, which is fed one-hot; None for arrays.

    Source: Wang et al., Dueling network architectures (2016), equation 9; there each head has its own hidden layer.
    """

    num_actions: int
    torso: nn.Module
    dueling: bool = False
    num_values: int | None = None

    @nn.compact
    def __call__(self, observation: PyTree) -> jax.Array:
        """An observation -> Float[A]."""
        features = self.torso(encode(observation, self.num_values))
        head = dense(self.num_actions, 1.0)(features)
        return dense(1, 1.0)(features) + head - jnp.mean(head) if self.dueling else head


def q_network(env: Environment, dueling: bool = False) -> QNetwork:
    """The default network of an environment: a CNN for images, an MLP for all else.

    Args:
      env: an environment with discrete actions.
      dueling: see `QNetwork`.

    Returns:
      A flax module, observation -> Float[A].

    Example:
      >>> import jax, asyncjax as aj
      >>> from asyncjax.q_networks import q_network
      >>> env = aj.make_env("Breakout-MinAtar")
      >>> network = q_network(env, dueling=True)
      >>> _, observation = env.reset(jax.random.key(0))
      >>> network.apply(network.init(jax.random.key(1), observation), observation).shape
      (3,)
    """
    space = env.observation_space
    image = is_image(getattr(space, "shape", ()))
    num_values = space.num_values if isinstance(space, Discrete) else None
    torso = image_torso(space.shape, layer_norm=True) if image else MLP(layer_norm=True, activation=nn.relu)
    return QNetwork(env.action_space.num_values, torso, dueling, num_values)
