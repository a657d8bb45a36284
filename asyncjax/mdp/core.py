"""Markov decision processes as arrays or as a function, and the Bellman operators on both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

from asyncjax.method import Array

UNROLLED = 128  # successors that are summed term by term; more make long programs


class MDP(NamedTuple):
    """A tabular Markov decision process: A actions, S states, at most K successors of each pair.

    Every row `probability[a, :, s]` sums to 1, or is all 0: then the episode ends with this step's
    reward, which is how terminal states (whose value is 0) and last steps are written. Unused
    successors have probability 0. A problem in which every action of every state has all S
    successors is the dense case, K = S.

    Attributes:
      reward: Float[A, S], the expected reward of action a in state s; -inf where it is not available.
      successor: Int32[A, K, S], the possible next states.
      probability: Float[A, K, S], their probabilities.

    The builders return NumPy arrays in float64; JAX narrows them to its own default when it computes.
    """

    reward: Array
    successor: Array
    probability: Array

    @property
    def num_states(self) -> int:
        """S."""
        return self.reward.shape[-1]

    @property
    def num_actions(self) -> int:
        """A."""
        return self.reward.shape[0]

    @property
    def num_successors(self) -> int:
        """K."""
        return self.successor.shape[1]


@dataclass(frozen=True)
class FunctionMDP:
    """A Markov decision process that is never written down: successors are computed when they are needed.

    Attributes:
      num_states: S.
      num_actions: A.
      transition: (state Int[], action Int[]) -> (reward Float[], successor Int[K], probability Float[K]),
        written in `jax.numpy` for one pair; the same conventions as `MDP`.

    Example:
      >>> import jax.numpy as jnp, asyncjax as aj
      >>> step = lambda s, a: (jnp.where(s == 0, 0.0, -1.0), jnp.maximum(s - 1 - a, 0)[None], (s > 0) * jnp.ones(1))
      >>> countdown = aj.mdp.FunctionMDP(num_states=5, num_actions=2, transition=step)
      >>> aj.mdp.bellman(countdown, -jnp.arange(5.0), 0.5).tolist()
      [0.0, -1.0, -1.0, -1.5, -2.0]
    """

    num_states: int
    num_actions: int
    transition: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]

    @cached_property
    def num_successors(self) -> int:
        """K."""
        pair = jax.ShapeDtypeStruct((), jnp.int32)
        return jax.eval_shape(self.transition, pair, pair)[1].shape[0]


AnyMDP = MDP | FunctionMDP


def action_values(mdp: AnyMDP, values: Array, discount: float | Array, states: Array | None = None) -> jax.Array:
    """The value of each action: Q(s, a) = r(s, a) + discount sum_s' P(s' | s, a) V(s').

    Args:
      mdp: the problem.
      values: Float[S].
      discount: Float[].
      states: Int[n], the states to back up; all S in order without it.

    Returns:
      Float[A, n] in the type of `values`; -inf where an action is not available.

    Example:
      >>> import jax.numpy as jnp, asyncjax as aj
      >>> aj.mdp.action_values(aj.mdp.forest(3), jnp.zeros(3), 0.9).tolist()
      [[0.0, 0.0, 4.0], [0.0, 1.0, 2.0]]
    """
    values = jnp.asarray(values)
    if isinstance(mdp, MDP):
        reward, successor, probability = map(jnp.asarray, mdp)
        if states is not None:
            reward, successor, probability = reward[:, states], successor[:, :, states], probability[:, :, states]
        return _backup(reward, successor, probability, values, discount)
    states = jnp.arange(mdp.num_states, dtype=jnp.int32) if states is None else jnp.asarray(states)
    actions = jnp.arange(mdp.num_actions, dtype=jnp.int32)
    over_states = jax.vmap(mdp.transition, in_axes=(0, None), out_axes=(0, -1, -1))
    reward, successor, probability = jax.vmap(over_states, in_axes=(None, 0))(states, actions)
    return _backup(reward, successor, probability, values, discount)


def bellman(mdp: AnyMDP, values: Array, discount: float | Array, states: Array | None = None) -> jax.Array:
    """The Bellman optimality operator: (T V)(s) = max_a Q(s, a); Float[n] for n states.

    Example:
      >>> import jax.numpy as jnp, asyncjax as aj
      >>> aj.mdp.bellman(aj.mdp.corridor(3), jnp.array([0.0, 0.5, 0.0]), 0.5).tolist()
      [0.25, 0.0, 1.0]
    """
    if isinstance(mdp, FunctionMDP) or mdp.num_actions * mdp.num_successors > UNROLLED:
        return action_values(mdp, values, discount, states).max(axis=0)
    # Action by action: XLA for CPUs merges that into one loop, which reads the arrays as fast as memory gives them.
    single = (MDP(*(x[a : a + 1] for x in mdp)) for a in range(mdp.num_actions))
    return reduce(jnp.maximum, (action_values(one, values, discount, states)[0] for one in single))


def policy_backup(
    mdp: AnyMDP, policy: Array, values: Array, discount: float | Array, states: Array | None = None
) -> jax.Array:
    """The Bellman operator of a policy: (T_pi V)(s) = Q(s, pi(s)); `policy` is Int[n], for the same n states."""
    values = jnp.asarray(values)
    states = jnp.arange(mdp.num_states, dtype=jnp.int32) if states is None else jnp.asarray(states)
    if isinstance(mdp, MDP):
        reward, successor, probability = map(jnp.asarray, mdp)
        reward = reward[policy, states]
        successor, probability = successor[policy, :, states].T, probability[policy, :, states].T
    else:
        reward, successor, probability = jax.vmap(mdp.transition, out_axes=(0, -1, -1))(states, jnp.asarray(policy))
    return _backup(reward, successor, probability, values, discount)


def expected_values(probability: jax.Array, successor: jax.Array, values: jax.Array, axis: int = -2) -> jax.Array:
    """sum_k P_k V(successor_k) over an axis of both arrays, in the type of `values`."""
    width = successor.shape[axis]
    if width > UNROLLED:
        return (probability.astype(values.dtype) * values[successor]).sum(axis=axis)
    total = jnp.zeros((), values.dtype)
    # Term by term: XLA for CPUs gathers several times faster without a sum over an axis, and without negative indices.
    for k in range(width):
        chance, state = (jax.lax.index_in_dim(x, k, axis, keepdims=False) for x in (probability, successor))
        arrived = values.at[state].get(mode="promise_in_bounds", wrap_negative_indices=False)
        total = total + chance.astype(values.dtype) * arrived
    return total


def _backup(
    reward: jax.Array, successor: jax.Array, probability: jax.Array, values: jax.Array, discount: float | Array
) -> jax.Array:
    expected = expected_values(probability, successor, values)
    return reward.astype(values.dtype) + jnp.asarray(discount).astype(values.dtype) * expected
