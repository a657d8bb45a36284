"""The adapter to brax: physics in JAX as `asyncjax.environment.Environment`s, which are compiled with the method."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from brax import envs  # pyright: ignore[reportMissingImports] - an extra

from asyncjax.adapters.from_gymnax import cast_like, gymnax_semantics, with_gymnax_semantics
from asyncjax.checks import nearest
from asyncjax.environment import Box, Environment, Step
from asyncjax.method import PyTree


def from_id(env_id: str, params: dict[str, Any]) -> Environment:
    """The environment of a brax id. Unlike in brax's own wrapper a new episode begins in a state that is drawn anew.

    Args:
      env_id: such as "ant" or "inverted_pendulum".
      params: `episode_length`, the time limit, 1000 unless told, and the arguments of brax's constructor.
    """
    if env_id not in envs._envs:
        listed = f"Choose one of {', '.join(sorted(envs._envs))}."
        raise ValueError(f"env='brax:{env_id}' is not a brax id. {nearest(env_id, envs._envs, listed)}")
    limit = int(params.get("episode_length", 1000))
    env = envs.get_environment(env_id, **{name: x for name, x in params.items() if name != "episode_length"})
    with gymnax_semantics():
        like = jax.eval_shape(env.reset, jax.random.key(0))

    def reset(key: jax.Array) -> tuple[PyTree, PyTree]:
        state = cast_like(env.reset(key), like)
        return (state, jnp.int32(0)), state.obs

    def step(key: jax.Array, at: tuple[PyTree, jax.Array], action: PyTree) -> tuple[PyTree, Step]:
        state, steps = at
        true, steps = cast_like(env.step(state, action), like), steps + 1
        terminated = true.done > 0
        truncated = (steps >= limit) & ~terminated
        first, ended = reset(key)[0], terminated | truncated
        now = jax.tree.map(lambda x, y: jnp.where(ended, x, y), first, (true, steps))
        reward = jnp.asarray(true.reward, jnp.float32)
        return now, Step(now[0].obs, true.obs, reward, terminated, truncated)

    unbounded = jax.tree.map(lambda x: _box(x.shape, np.inf, x.dtype), like.obs)
    actions = _box((env.action_size,), 1.0, np.dtype(np.float32))
    compiled = jax.jit(with_gymnax_semantics(reset)), jax.jit(with_gymnax_semantics(step))
    return Environment(f"brax:{env_id}", unbounded, actions, *compiled, limit)


def _box(shape: tuple[int, ...], bound: float, dtype: Any) -> Box:
    """Arrays between -bound and bound."""
    high = np.full(shape, bound, dtype)
    return Box(-high, high, shape, np.dtype(dtype))
