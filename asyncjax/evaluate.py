"""What a learned policy is worth: returns of fresh episodes."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from asyncjax.checks import check_counts, check_key
from asyncjax.environment import Environment, make_env
from asyncjax.method import Method, Policy, PyTree
from asyncjax.rollout import where


def evaluate(
    method: Method,
    env: Environment | str,
    shared: PyTree,
    key: jax.Array,
    num_episodes: int = 100,
    greedy: bool = True,
    max_steps: int | None = None,
) -> jax.Array:
    """The undiscounted returns of fresh episodes, one per environment.

    Args:
      method: whose policy acts.
      env: the environment, or a gymnax id.
      shared: the method's shared state, `result.shared`.
      key: consumed.
      num_episodes: how many; each is the first episode of an environment of its own, so short episodes count no
        more often than long ones.
      greedy: take the policy's mode; False samples from it.
      max_steps: stop after as many steps; the return so far counts. None is the environment's own time limit.

    Returns:
      Float32[num_episodes]. A truncated episode counts with what it has earned.

    Raises:
      ValueError: a method without a policy, a count below 1, or no limit of steps at all.
      TypeError: a count that is no whole number, or what is no key or no shared state.

    Example:
      >>> import jax, asyncjax as aj
      >>> method = aj.a3c("CartPole-v1")
      >>> shared, _ = method.init(jax.random.key(0), 1)
      >>> aj.evaluate(method, "CartPole-v1", shared, jax.random.key(1), num_episodes=5).shape
      (5,)
    """
    env = make_env(env)
    if method.policy is None:
        raise ValueError("method.policy is None, so there is nothing to act with: evaluate a method that has a policy.")
    max_steps = env.max_steps if max_steps is None else max_steps
    if max_steps is None:
        raise ValueError(f"max_steps=None and env={env.name!r} states no time limit: set max_steps.")
    check_counts(num_episodes=num_episodes, max_steps=max_steps)
    check_key(key)
    try:
        view = method.view(shared)
    except (AttributeError, TypeError) as error:
        raise TypeError(f"shared is a {type(shared).__name__}, no state of this method: give result.shared.") from error
    return episode_returns(method.policy, env.reset, env.step, num_episodes, max_steps, greedy, view, key)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def episode_returns(
    policy: Policy,
    reset: Callable,
    step: Callable,
    num_episodes: int,
    max_steps: int,
    greedy: bool,
    view: PyTree,
    key: jax.Array,
) -> jax.Array:
    """`evaluate`, compiled once for each method and environment."""
    key, reset_key = jax.random.split(key)
    state, observation = jax.vmap(reset)(jax.random.split(reset_key, num_episodes))
    initial = policy.initial_carry()
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_episodes, *jnp.shape(x))), initial)

    def running(loop: tuple) -> jax.Array:
        return (loop[0] < max_steps) & ~jnp.all(loop[-1])

    def advance(loop: tuple) -> tuple:
        time, key, state, observation, carry, total, done = loop
        key, act_key, step_key = jax.random.split(key, 3)
        act_keys, step_keys = (jax.random.split(k, num_episodes) for k in (act_key, step_key))
        action, carry = jax.vmap(lambda c, o, k: policy.act(view, c, o, None if greedy else k))(
            carry, observation, act_keys
        )
        state, outcome = jax.vmap(step)(step_keys, state, action)
        total = total + jnp.where(done, 0.0, outcome.reward.astype(jnp.float32))
        ended = outcome.terminated | outcome.truncated
        return time + 1, key, state, outcome.observation, where(ended, initial, carry), total, done | ended

    zeros = jnp.zeros(num_episodes, jnp.float32)
    loop = (jnp.int32(0), key, state, observation, carry, zeros, zeros > 0)
    return jax.lax.while_loop(running, advance, loop)[5]
