"""Asynchronous real-time dynamic programming: workers back up the states that greedy episodes visit."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from asyncjax.mdp.core import MDP, AnyMDP, action_values
from asyncjax.method import Array, Method, Metrics
from asyncjax.methods.dynamic_programming import (
    Block,
    Values,
    check_problem,
    check_reference,
    starting_values,
    write_blocks,
)
from asyncjax.methods.options import Number
from asyncjax.methods.walk import make_walk
from asyncjax.traced import is_traced


class Walker(NamedTuple):
    """A worker's state: where it stands, the steps of its episode so far, and its key."""

    state: jax.Array
    age: jax.Array
    key: jax.Array


def rtdp(
    mdp: AnyMDP,
    discount: Number,
    *,
    start: Array | int = 0,
    unroll_length: int = 10,
    max_steps: int = 100,
    initial_values: Array | None = None,
    reference: Array | None = None,
) -> Method:
    """Asynchronous real-time dynamic programming: V(s) <- max_a Q(s, a) in every state that a greedy walk visits.

    A worker walks on its own copy of the values that it read, backs up every state it comes to, and sends the visited
    states with their new values. From values that are nowhere too small it becomes right on all states that an optimal
    policy reaches from the starts; others may never be visited, which is its point.

    Args:
      mdp: the problem, with S states.
      discount: in [0, 1]; at 1 every policy must come to an end.
      start: states Int[n], from one of which, drawn uniformly, every episode begins.
      unroll_length: steps, hence backups, in a message.
      max_steps: steps after which an episode is broken off.
      initial_values: Float[S], at least the optimal values; by default max(0, largest reward) / (1 - discount).
      reference: Float[S], such as the exact values; adds the metric `error`.

    Returns:
      A Method with shared state `Values`. Work metrics: `backups`; `residual`, max |new - read| over the states
      visited, which bounds no error. Of apply: `error`, max |V - reference| over all states after the update.

    Raises:
      ValueError: a malformed MDP, a discount without values, a count below 1, or no initial values where no bound is
        known.

    Example:
      >>> import jax, asyncjax as aj
      >>> lake = aj.mdp.frozen_lake("4x4")
      >>> method = aj.rtdp(lake, 0.9)
      >>> result = aj.emulate(method, aj.schedules.round_robin(2000, num_workers=4), jax.random.key(0))
      >>> bool(abs(result.shared.values[0] - aj.mdp.exact_values(lake, 0.9)[0]) < 1e-3)
      True

    Source: Barto, Bradtke and Singh, Learning to act using real-time dynamic programming (1995).
    """
    check_problem(mdp, discount, initial_values, unroll_length=unroll_length)
    check_reference(reference, mdp.num_states)
    walk = make_walk(mdp, start, max_steps)
    first_values = _upper_bound(mdp, discount) if initial_values is None else initial_values

    def init(key: jax.Array, num_workers: int) -> tuple[Values, Walker]:
        def walker(key: jax.Array) -> Walker:
            key, start_key = jax.random.split(key)
            return Walker(walk.begin(start_key), jnp.int32(0), key)

        return Values(starting_values(mdp, first_values)), jax.vmap(walker)(jax.random.split(key, num_workers))

    def work(values: jax.Array, walker: Walker) -> tuple[Block, Walker, Metrics]:
        def step(carry: tuple[jax.Array, Walker], _: None) -> tuple[tuple[jax.Array, Walker], jax.Array]:
            values, (state, age, key) = carry
            key, step_key = jax.random.split(key)
            quality = action_values(mdp, values, discount, state[None])[:, 0]
            action = jnp.argmax(quality).astype(jnp.int32)
            after = walk.step(state, action, age, step_key)
            return (values.at[state].set(quality[action]), Walker(after.here, after.age, key)), state

        (new, walker), states = jax.lax.scan(step, (values, walker), length=unroll_length)
        residual = jnp.max(jnp.abs(new[states] - values[states]))
        return Block(states, new[states]), walker, {"backups": jnp.int32(unroll_length), "residual": residual}

    return Method(
        init=init,
        view=lambda shared: shared.values,
        work=work,
        apply=lambda shared, blocks, stale: write_blocks(shared, blocks, reference),
    )


def _upper_bound(mdp: AnyMDP, discount: Number) -> jax.Array:
    """Values that no policy exceeds, Float[S]."""
    if not isinstance(mdp, MDP) or (not is_traced(discount) and discount == 1):
        raise ValueError("no upper bound of the values is known: pass initial_values=, at least the optimal values.")
    largest = jnp.max(jnp.asarray(mdp.reward), initial=0.0)
    return jnp.broadcast_to(largest / (1 - jnp.asarray(discount, largest.dtype)), (mdp.num_states,))
