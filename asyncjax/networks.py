"""Flax networks: torsos for vectors and images, and a policy head beside a value head.

A network sees one unbatched observation; callers `vmap` it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from asyncjax.checks import check_kind
from asyncjax.environment import Discrete, Environment
from asyncjax.method import PyTree

Activation = Callable[[jax.Array], jax.Array]
Core = Literal["gru", "lstm"]
Head = Any  # of the policy: logits Float[A], or (mean Float[D], log_std Float[D])


FEW = 6  # outputs; with more, a column at a time is no faster


def dense(features: int, scale: float = math.sqrt(2.0)) -> nn.Dense:
    """A linear layer with normal weights of this gain, and zero biases.

    Not orthogonal ones: their QR decomposition, under `vmap` over seeds in a larger program, can deadlock XLA on CPUs.
    """
    product = by_columns if 1 < features <= FEW and jax.default_backend() == "cpu" else None
    return nn.Dense(features, kernel_init=fan_in(scale), dot_general=product)


@functools.cache
def fan_in(scale: float) -> Any:
    """Normal weights of this gain. Flax asks for their shape whenever they are used: jitted, JAX remembers it."""
    return jax.jit(nn.initializers.variance_scaling(scale**2, "fan_in", "normal"), static_argnums=(1, 2), inline=True)


def by_columns(x: jax.Array, kernel: jax.Array, *args: Any, **options: Any) -> jax.Array:
    """`lax.dot_general` of a linear layer, which is differentiated a column of the kernel, Float[in, out], at a time.

    On CPUs XLA is slow at the gradient of a kernel with few columns, a sum of outer products, and fast at a matrix
    times a vector for each: with 1,280 examples, 64 inputs and 2 outputs the layer and its gradients take 30 us, not
    150.
    """

    @jax.custom_jvp
    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.dot_general(x, kernel, *args, **options)

    @product.defjvp
    def _(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        return product(*primals), columns(tangents[0], primals[1]) + columns(primals[0], tangents[1])

    def columns(x: jax.Array, kernel: jax.Array) -> jax.Array:
        each = [jax.lax.dot_general(x, column, *args, **options) for column in jnp.unstack(kernel, axis=1)]
        return jnp.stack(each, axis=-1)

    return product(x, kernel)


class MLP(nn.Module):
    """Fully connected layers, with LayerNorm or not, and a tanh behind each.

    Attributes:
      hidden: the layers' sizes.
      layer_norm: normalize before the activation.
      activation: of every layer.
    """

    hidden: Sequence[int] = (64, 64)
    layer_norm: bool = False
    activation: Activation = nn.tanh

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Float[F] -> Float[hidden[-1]]."""
        for features in self.hidden:
            x = layer(x, features, self.layer_norm, self.activation)
        return x


class MinAtarCNN(nn.Module):
    """One 3x3 convolution and one linear layer, with LayerNorm or not, and a relu behind each.

    Attributes:
      channels: of the convolution.
      hidden: size of the linear layer.
      layer_norm: normalize before the activations.

    Source: Young and Tian, MinAtar (2019), the network of their actor-critic.
    """

    channels: int = 16
    hidden: int = 128
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Float[H, W, C] -> Float[hidden]."""
        x = layer(patches(x, 3, 1), self.channels, self.layer_norm, nn.relu)
        return layer(x.reshape(-1), self.hidden, self.layer_norm, nn.relu)


class NatureCNN(nn.Module):
    """Three convolutions and one linear layer, with a relu behind each, for images of at least 36 x 36 pixels.

    Attributes:
      channels: of the convolutions, whose windows are 8 x 8, 4 x 4 and 3 x 3, moved by 4, 2 and 1 pixels.
      hidden: size of the linear layer.
      layer_norm: normalize before the activations.

    Source: Mnih et al., Human-level control through deep reinforcement learning (2015).
    """

    channels: tuple[int, int, int] = (32, 64, 64)
    hidden: int = 512
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Float[H, W, C] -> Float[hidden]."""
        for channels, window, stride in zip(self.channels, (8, 4, 3), (4, 2, 1), strict=True):
            x = layer(patches(x, window, stride), channels, self.layer_norm, nn.relu)
        return layer(x.reshape(-1), self.hidden, self.layer_norm, nn.relu)


def is_image(shape: Sequence[int]) -> bool:
    """Whether it is [H, W, C] with room for a window of 3 x 3 pixels; other arrays are seen as vectors."""
    return len(shape) == 3 and min(shape[:2]) >= 3


def image_torso(shape: Sequence[int], layer_norm: bool = False) -> MinAtarCNN | NatureCNN:
    """What sees images of this shape, [H, W, C]: Atari's network from 36 x 36 pixels on, MinAtar's below."""
    return NatureCNN(layer_norm=layer_norm) if min(shape[:2]) >= 36 else MinAtarCNN(layer_norm=layer_norm)


def patches(x: jax.Array, window: int, stride: int) -> jax.Array:
    """The windows of a convolution, [H, W, C] -> [H', W', window^2 C]: a linear layer on them is that convolution.

    On a CPU it is faster than XLA's own convolution: where the workers of a batch have different weights, and in loops.

    Args:
      x: an image.
      window: a multiple of the stride.
      stride: in pixels.
    """
    rows, columns, across = x.shape[0] // stride, x.shape[1] // stride, window // stride
    blocks = x[: rows * stride, : columns * stride].reshape(rows, stride, columns, stride, -1).swapaxes(1, 2)
    blocks = blocks.reshape(rows, columns, -1)
    height, width = rows - across + 1, columns - across + 1
    slices = [blocks[i : i + height, j : j + width] for i in range(across) for j in range(across)]
    return jnp.concatenate(slices, axis=-1)


def layer(x: jax.Array, features: int, layer_norm: bool, activation: Activation) -> jax.Array:
    """One linear layer of the module that calls it, normalized or not, and the activation."""
    x = dense(features)(x)
    return activation(nn.LayerNorm()(x) if layer_norm else x)


class Heads(nn.Module):
    """The policy's head beside the value's.

    Attributes:
      num_actions: A discrete actions, or D real ones.
      continuous: which of the two.
    """

    num_actions: int
    continuous: bool = False

    @nn.compact
    def __call__(self, features: jax.Array, value_features: jax.Array) -> tuple[Head, jax.Array]:
        """Float[F], Float[F'] -> (logits Float[A] or (mean, log_std) Float[D], value Float[])."""
        # Small policy weights make the first policy nearly uniform, or centred, whatever is observed.
        head = dense(self.num_actions, 0.01)(features)
        value = dense(1, 1.0)(value_features)[0]
        if not self.continuous:
            return head, value
        # One spread for all states: a network's own, early in training, collapses before the mean is any good.
        return (head, self.param("log_std", nn.initializers.zeros_init(), (self.num_actions,), jnp.float32)), value


class ActorCritic(nn.Module):
    """Policy and value without memory.

    Attributes:
      num_actions: A, or D if `continuous`.
      torso: Float[...] -> Float[F].
      value_torso: a second torso for the value; None shares the policy's. Where values are large, learning them
        through a shared torso first saturates what the policy needs: on Acrobot a shared MLP learns nothing.
      num_values: the number of values of a discrete observation, which is fed one-hot; None for arrays.
      continuous: actions are D real numbers instead of one of A.
    """

    num_actions: int
    torso: nn.Module
    value_torso: nn.Module | None = None
    num_values: int | None = None
    continuous: bool = False

    @nn.compact
    def __call__(self, observation: PyTree) -> tuple[Head, jax.Array]:
        """An observation -> (logits Float[A] or (mean, log_std), value Float[])."""
        x = encode(observation, self.num_values)
        features = self.torso(x)
        value_features = features if self.value_torso is None else self.value_torso(x)
        return Heads(self.num_actions, self.continuous)(features, value_features)


class RecurrentActorCritic(nn.Module):
    """Policy and value on a memory.

    Attributes:
      num_actions: A, or D if `continuous`.
      torso: Float[...] -> Float[F], before the memory.
      core: "gru" or "lstm".
      features: size of the memory.
      num_values: the number of values of a discrete observation, which is fed one-hot; None for arrays.
      continuous: actions are D real numbers instead of one of A.
    """

    num_actions: int
    torso: nn.Module
    core: Core = "gru"
    features: int = 64
    num_values: int | None = None
    continuous: bool = False

    @nn.nowrap
    def initial_carry(self) -> PyTree:
        """Zeros: Float[features], or two of them for an LSTM."""
        zeros = jnp.zeros(self.features, jnp.float32)
        return zeros if self.core == "gru" else (zeros, zeros)

    @nn.compact
    def __call__(self, carry: PyTree, observation: PyTree) -> tuple[PyTree, tuple[Head, jax.Array]]:
        """(Carry, observation) -> (Carry, (logits Float[A] or (mean, log_std), value Float[]))."""
        cell = {"gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}[self.core]
        x = self.torso(encode(observation, self.num_values))
        carry, features = cell(self.features, recurrent_kernel_init=fan_in(1.0))(carry, x)
        return carry, Heads(self.num_actions, self.continuous)(features, features)


def actor_critic(env: Environment, core: Core | None = None) -> ActorCritic | RecurrentActorCritic:
    """The default network of an environment: one CNN for images, an MLP each for policy and value for all else.

    Args:
      env: an environment with discrete or real actions.
      core: "gru" or "lstm" for a memory of 64 numbers behind one torso; None for none.

    Returns:
      A flax module, observation -> (logits Float[A] or (mean, log_std), value Float[]); with a core
      (Carry, observation) -> (Carry, the same).

    Example:
      >>> import jax, asyncjax as aj
      >>> from asyncjax.networks import actor_critic
      >>> env = aj.make_env("Breakout-MinAtar")
      >>> network = actor_critic(env)
      >>> _, observation = env.reset(jax.random.key(0))
      >>> params = network.init(jax.random.key(1), observation)
      >>> network.apply(params, observation)[0].shape
      (3,)
    """
    if core not in (None, *get_args(Core)):
        raise ValueError(f"core={core!r}: choose {' or '.join(map(repr, get_args(Core)))}, or None for no memory.")
    space, actions = env.observation_space, env.action_space
    discrete = isinstance(actions, Discrete)
    num_actions = actions.num_values if discrete else math.prod(actions.shape)
    num_values = space.num_values if isinstance(space, Discrete) else None
    image = is_image(getattr(space, "shape", ()))
    torso = image_torso(space.shape) if image else MLP()
    if core is not None:
        return RecurrentActorCritic(num_actions, torso, core, num_values=num_values, continuous=not discrete)
    return ActorCritic(num_actions, torso, None if image else MLP(), num_values, not discrete)


def check_module(network: Any) -> None:
    """Raises TypeError for what is no network, such as its name or its class."""
    check_kind(nn.Module, "give a flax module, such as asyncjax.networks.ActorCritic(2, MLP())", network=network)


def check_output(network: nn.Module, expected: Any, params: PyTree, *inputs: PyTree) -> None:
    """Raises ValueError unless the network returns arrays of these shapes, such as `((A,), ())`."""
    found = jax.tree.map(jnp.shape, jax.eval_shape(network.apply, params, *inputs))
    if found != expected:
        raise ValueError(
            f"network={type(network).__name__}(...) returns arrays of shapes {found} for one observation, and the"
            f" method and the environment's actions need {expected}: give a network with that output."
        )


def encode(observation: PyTree, num_values: int | None = None) -> jax.Array:
    """An observation as what a torso takes: one-hot if discrete, an image as it is, all else one flat vector.

    Bytes are scaled to [0, 1].
    """
    if num_values is not None:
        return jax.nn.one_hot(observation, num_values, dtype=jnp.float32)
    leaves = [to_float(leaf) for leaf in jax.tree.leaves(observation)]
    if len(leaves) == 1 and is_image(leaves[0].shape):
        return leaves[0]
    return jnp.concatenate([leaf.reshape(-1) for leaf in leaves])


def to_float(x: jax.Array) -> jax.Array:
    """Float32 of any numbers; bytes are scaled to [0, 1]."""
    y = jnp.asarray(x, jnp.float32)
    return y / 255.0 if x.dtype == jnp.uint8 else y
