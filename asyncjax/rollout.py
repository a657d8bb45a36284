"""Acting in vectorized environments: a policy and environments give a trajectory and episode statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from asyncjax.environment import Environment, check_step
from asyncjax.method import Metrics, PyTree
from asyncjax.threefry import drawn

Act = Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree, PyTree]]


class Rollout(NamedTuple):
    """Where N environments stand between two segments; what a worker keeps.

    Attributes:
      key: consumed by the next segment.
      env_state: the environments' states, [N, ...].
      observation: what the policy acts on next, [N, ...].
      carry: the policy's memory, [N, ...]; `()` when it has none.
      episode_return: Float32[N], undiscounted return of the running episodes so far.
      episode_length: Float32[N], their steps so far.
    """

    key: jax.Array
    env_state: PyTree
    observation: PyTree
    carry: PyTree
    episode_return: jax.Array
    episode_length: jax.Array


class Trajectory(NamedTuple):
    """A segment of T steps of N environments. `jax.vmap(..., in_axes=1)` gives one environment's.

    Attributes:
      observation: [T, N, ...], what was acted on.
      action: [T, N, ...].
      extra: [T, N, ...], what else the policy returned, such as log-probabilities.
      reward: Float32[T, N].
      terminated: Bool[T, N].
      truncated: Bool[T, N].
      bootstrap_observation: [S, N, ...], the observations that are followed by no action here and whose values the
        recursion needs, see `next_values`. The last is the true observation after the segment.
      carry: [1, N, ...], the policy's memory before the first step.
    """

    observation: PyTree
    action: PyTree
    extra: PyTree
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    bootstrap_observation: PyTree
    carry: PyTree


def init_rollout(env: Environment, key: jax.Array, num_envs: int, carry: PyTree = ()) -> Rollout:
    """N freshly reset environments.

    Args:
      env: the environment.
      key: consumed.
      num_envs: N.
      carry: one environment's memory at the start of an episode.
    """
    key, reset_key = jax.random.split(key)
    env_state, observation = drawn(jax.vmap(env.reset), jax.random.split(reset_key, num_envs))
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_envs, *jnp.shape(x))), carry)
    zeros = jnp.zeros(num_envs, jnp.float32)
    return Rollout(key, env_state, observation, carry, zeros, zeros)


def unroll(
    env: Environment,
    act: Act,
    rollout: Rollout,
    length: int,
    *,
    draw: Callable[[jax.Array, tuple[int, int]], PyTree] = jax.random.split,
    initial_carry: PyTree = (),
) -> tuple[Rollout, Trajectory, Metrics]:
    """Acts for `length` steps with one fixed policy.

    Args:
      env: the environment.
      act: (carry, observation, noise) -> (carry, action, extra), for one environment.
      rollout: where the environments stand.
      length: T.
      draw: (key, (T, N)) -> noise [T, N, ...], all the policy's random numbers of the segment in one call, which
        is faster than a few per step. By default a key for each action.
      initial_carry: one environment's memory at the start of an episode.

    Returns:
      Where the environments stand now, the trajectory, and the metrics `episodes`, `return_sum` and `length_sum`:
      how many episodes ended in the segment, and the sums of their undiscounted returns and lengths.

    Example:
      >>> import jax, jax.numpy as jnp, asyncjax as aj
      >>> from asyncjax.rollout import init_rollout, unroll
      >>> env = aj.make_env("CartPole-v1")
      >>> act = lambda carry, observation, key: (carry, jax.random.randint(key, (), 0, 2, jnp.int32), ())
      >>> rollout, trajectory, metrics = unroll(env, act, init_rollout(env, jax.random.key(0), 4), 100)
      >>> trajectory.observation.shape, float(metrics["length_sum"] + rollout.episode_length.sum())
      ((100, 4, 4), 400.0)
    """
    num_envs = rollout.episode_return.shape[0]
    key, noise_key, env_key = drawn(jax.random.split, rollout.key, 3)
    noise = drawn(draw, noise_key, (length, num_envs))
    env_keys = drawn(jax.random.split, env_key, (length, num_envs))
    compact = truncates_at_most_once(env, length)

    def acts(noise: PyTree, carry: PyTree, observation: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        return jax.vmap(act)(carry, observation, noise)

    def step(state: tuple, xs: tuple) -> tuple[tuple, Trajectory]:
        rollout, cut, sums = state
        noise_t, key_t = xs
        carry, action, extra = drawn(acts, noise_t, rollout.carry, rollout.observation)
        told = drawn(jax.vmap(env.step), key_t, rollout.env_state, action)
        env_state, outcome = check_step(env.name, told)
        reward = outcome.reward.astype(jnp.float32)
        done = outcome.terminated | outcome.truncated
        carry = where(done, initial_carry, carry)
        total, steps = rollout.episode_return + reward, rollout.episode_length + 1.0
        ended = jnp.stack([jnp.ones_like(total), total, steps])
        sums = sums + jnp.where(done[None], ended, 0.0).sum(axis=1)
        # `final_observation` is needed where the episode was truncated and after the last step only: with at most
        # one truncation per environment two slots replace a second copy of all observations.
        final = outcome.final_observation
        kept = () if compact else final
        cut = (where(outcome.truncated, final, cut[0]), final) if compact else cut
        record = Trajectory(rollout.observation, action, extra, reward, outcome.terminated, outcome.truncated, kept, ())
        total, steps = jnp.where(done, 0.0, total), jnp.where(done, 0.0, steps)
        return (Rollout(key, env_state, outcome.observation, carry, total, steps), cut, sums), record

    cut = (rollout.observation, rollout.observation) if compact else ()
    start = (rollout._replace(key=key), cut, jnp.zeros(3, jnp.float32))
    (end, cut, sums), record = jax.lax.scan(step, start, (noise, env_keys))
    bootstrap = jax.tree.map(lambda *x: jnp.stack(x), *cut) if compact else record.bootstrap_observation
    before = jax.tree.map(lambda x: x[None], rollout.carry)
    metrics = {"episodes": sums[0], "return_sum": sums[1], "length_sum": sums[2]}
    return end, record._replace(bootstrap_observation=bootstrap, carry=before), metrics


def in_one_batch(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """A function of one step, applied to two leading axes, [T, N, ...] -> [T, N, ...], as to one of length T N.

    `vmap` of `vmap` is the same, but makes XLA transpose large activations for the gradients of the weights: on CPUs an
    update of 64 environments and 20 steps took 1.2 times as long.
    """

    def batched(*xs: PyTree) -> PyTree:
        lead = jnp.shape(jax.tree.leaves(xs)[0])[:2]
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), xs)
        return jax.tree.map(lambda y: y.reshape(*lead, *y.shape[1:]), jax.vmap(function)(*flat))

    return batched


def next_values(v_tm1: jax.Array, v_bootstrap: jax.Array, truncated_t: jax.Array) -> jax.Array:
    """The value of the true next observation after every step of one environment.

    Args:
      v_tm1: Float[T], V(observation).
      v_bootstrap: Float[S], V(bootstrap_observation).
      truncated_t: Bool[T].

    Returns:
      Float[T]. Where the step terminated the episode it is the value of an unrelated state: the discount is 0 there.
    """
    return _following(v_tm1, v_bootstrap, truncated_t)


def next_observations(trajectory: Trajectory) -> PyTree:
    """The true observation after every step, such as a replay buffer's transitions want.

    Args:
      trajectory: of `unroll`, [T, N, ...].

    Returns:
      What `observation` is, [T, N, ...]. Where the step terminated the episode it is an unrelated state's, which no
      target looks at.
    """
    return jax.tree.map(
        lambda x, bootstrap: _following(x, bootstrap, trajectory.truncated),
        trajectory.observation,
        trajectory.bootstrap_observation,
    )


def _following(x: jax.Array, bootstrap: jax.Array, truncated: jax.Array) -> jax.Array:
    """What follows each of x, [T, ...], given what no action follows here, [S, ...]; see `Trajectory`."""
    at_cut = bootstrap
    if bootstrap.shape != x.shape:
        first = jnp.broadcast_to(bootstrap[0], (len(x) - 1, *x.shape[1:]))
        at_cut = jnp.append(first, bootstrap[-1:], axis=0)
    return jax.vmap(where)(truncated, at_cut, jnp.append(x[1:], bootstrap[-1:], axis=0))


def truncates_at_most_once(env: Environment, length: int) -> bool:
    """Whether one environment's segment of this length can hold at most one truncation."""
    return env.max_steps is not None and 2 < length <= env.max_steps


def where(condition: jax.Array, x: PyTree, y: PyTree) -> PyTree:
    """`x` where the condition, Bool[N] or Bool[], holds, else `y`; leaf by leaf, x may lack the axis N."""

    def select(x: jax.Array, y: jax.Array) -> jax.Array:
        mask = condition.reshape(condition.shape + (1,) * (y.ndim - condition.ndim))
        return jnp.where(mask, jnp.broadcast_to(x, y.shape), y)

    return jax.tree.map(select, x, y)
