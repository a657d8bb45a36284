"""Probe environments: each isolates one thing that a learner must get right, with a known answer in seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asyncjax.environment import Box, Discrete, Environment, Step

OBSERVATIONS = Box(-np.ones(1, np.float32), np.ones(1, np.float32), (1,), np.dtype(np.float32))


def episodic(
    name: str,
    start: Callable[[jax.Array], jax.Array],
    move: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any, Any, Any]],
    num_actions: int = 2,
    max_steps: int | None = None,
) -> Environment:
    """An environment with autoreset from `start`: key -> x and `move`: (x, time, action) -> (x, reward, end, cut).

    The state is (x, time); x, Float[1], is what is observed.
    """

    def reset(key):
        x = start(key)
        return (x, jnp.int32(0)), x

    def step(key, state, action):
        x, time = state
        x, reward, terminated, truncated = move(x, time, action)
        terminated = jnp.asarray(terminated)
        truncated = jnp.asarray(truncated) & ~terminated
        done = terminated | truncated
        fresh, observation = reset(key)
        state = jax.tree.map(lambda a, b: jnp.where(done, a, b), fresh, (x, time + 1))
        observation = jnp.where(done, observation, x)
        return state, Step(observation, x, jnp.asarray(reward, jnp.float32), terminated, truncated)

    return Environment(name, OBSERVATIONS, Discrete(num_actions), reset, step, max_steps)


def zero(key: jax.Array) -> jax.Array:
    return jnp.zeros(1, jnp.float32)


def coin(key: jax.Array) -> jax.Array:
    return jnp.where(jax.random.bernoulli(key), 1.0, -1.0).astype(jnp.float32)[None]


def sign(action: jax.Array) -> jax.Array:
    return jnp.where(action == 1, 1.0, -1.0).astype(jnp.float32)


def constant_value() -> Environment:
    """One step, reward 1: V(0) = 1."""
    return episodic("ConstantValue", zero, lambda x, time, action: (x, 1.0, True, False))


def observed_value() -> Environment:
    """One step, the reward is the observation: V(x) = x for x = -1, 1."""
    return episodic("ObservedValue", coin, lambda x, time, action: (x, x[0], True, False))


def discounted_value() -> Environment:
    """Two steps, reward 1 at the end: V(0) = discount, V(1) = 1."""
    return episodic("DiscountedValue", zero, lambda x, time, action: (x + 1.0, time == 1, time == 1, False))


def truncated_value(length: int = 3) -> Environment:
    """Reward 1 for ever, cut every `length` steps: V(0) = 1 / (1 - discount) if truncations are bootstrapped."""
    return episodic(
        "TruncatedValue", zero, lambda x, time, action: (x, 1.0, False, time == length - 1), max_steps=length
    )


def best_action() -> Environment:
    """One step, reward 1 for action 1 and -1 for action 0."""
    return episodic("BestAction", zero, lambda x, time, action: (x, sign(action), True, False))


def observed_action() -> Environment:
    """One step, reward 1 for action 1 at x = 1 and for action 0 at x = -1, else -1."""
    return episodic("ObservedAction", coin, lambda x, time, action: (x, sign(action) * x[0], True, False))


def corridor(length: int, max_steps: int | None = None) -> Environment:
    """Steps right (action 1) or left from position 0; reward -1 a step, the end is position `length`; x = position."""

    def move(x, time, action):
        x = jnp.maximum(x + sign(action), 0.0)
        return x, -1.0, x[0] >= length, jnp.bool_(False) if max_steps is None else time + 1 >= max_steps

    return episodic("Corridor", zero, move, max_steps=max_steps)


def remembered_action(length: int = 3) -> Environment:
    """Shows x = -1 or 1 first, then 0; at the last of `length` steps reward 1 for the action that fits it, else -1."""

    def reset(key):
        x = coin(key)
        return (x, jnp.int32(0)), x

    def step(key, state, action):
        x, time = state
        last = time == length - 1
        fresh, observation = reset(key)
        state = jax.tree.map(lambda a, b: jnp.where(last, a, b), fresh, (x, time + 1))
        reward = jnp.where(last, sign(action) * x[0], 0.0)
        later = jnp.zeros_like(x)
        return state, Step(jnp.where(last, observation, later), later, reward, last, jnp.zeros_like(last))

    return Environment("RememberedAction", OBSERVATIONS, Discrete(2), reset, step, None)


def nearest_number() -> Environment:
    """One step with a real action a in [-2, 2], reward 1 - (a - x)^2: the best action is the observation."""

    def move(x, time, action):
        return x, 1.0 - jnp.square(action[0] - x[0]), True, False

    bounds = np.full(1, 2.0, np.float32)
    return episodic("NearestNumber", coin, move)._replace(action_space=Box(-bounds, bounds, (1,), np.dtype(np.float32)))
