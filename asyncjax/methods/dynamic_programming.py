"""What the methods of dynamic programming share: blocks of states, who owns them, how values begin and are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asyncjax.checks import check_counts, check_number
from asyncjax.mdp.check import check, check_discount, check_is_mdp
from asyncjax.mdp.core import MDP, AnyMDP
from asyncjax.method import Array, Metrics, PyTree
from asyncjax.methods.options import Number
from asyncjax.traced import is_traced


class Values(NamedTuple):
    """Shared state: the value of every state, Float[S]."""

    values: jax.Array


class Owner(NamedTuple):
    """A worker's state: what it owns and where it stands.

    Attributes:
      states: Int32[n], its states in order; a block that is smaller than the largest repeats its last state.
      size: Int32[], how many different ones they are.
      count: Int32[], the messages it has sent.
      key: for random choices.
    """

    states: jax.Array
    size: jax.Array
    count: jax.Array
    key: jax.Array


class Block(NamedTuple):
    """Message: new values Float[n] of some states Int32[n]. If a state is named twice, its values are the same."""

    states: jax.Array
    values: jax.Array


def check_problem(mdp: AnyMDP, discount: Number, initial_values: Array | None = None, **counts: int) -> None:
    """Raises for what is no problem, a discount at which it has no values, and values that a run can not begin from."""
    check_is_mdp(mdp)
    check_counts(**counts)
    check_number(discount=discount)
    if isinstance(mdp, MDP) and not is_traced(mdp):
        check(mdp, None if is_traced(discount) else float(discount))
    elif not is_traced(discount) and discount != 1:
        check_discount(mdp, float(discount))  # type: ignore[arg-type]  # one below 1 is right for every problem
    if initial_values is None:
        return
    if np.shape(initial_values) != (mdp.num_states,):
        shape = np.shape(initial_values)
        raise ValueError(f"initial_values has shape {shape}: give one for each of {mdp.num_states} states.")
    for state in [] if is_traced(initial_values) else np.flatnonzero(~np.isfinite(initial_values))[:1]:
        raise ValueError(f"initial_values is not finite in state {state}: begin from finite values.")


def check_reference(reference: Array | None, *shape: int) -> None:
    """Raises ValueError for a reference of another shape than the values': it would be broadcast."""
    if reference is not None and np.shape(reference) != shape:
        raise ValueError(f"reference has the shape {np.shape(reference)}: give one of {shape}.")


def starting_values(mdp: AnyMDP, initial_values: Array | None) -> jax.Array:
    """The given values in JAX's default float type, or zeros; Float[S]."""
    return jnp.zeros(mdp.num_states) if initial_values is None else jnp.asarray(initial_values, jnp.result_type(float))


def owners(key: jax.Array, num_workers: int, num_states: int, num_blocks: int | None) -> Owner:
    """The workers' states at the start, stacked: the state space cut into blocks whose sizes differ by at most one."""
    edges = np.linspace(0, num_states, (num_blocks or num_workers) + 1).astype(np.int32)
    if (edges[1:] == edges[:-1]).any():
        name = "num_workers" if num_blocks is None else "num_blocks"
        raise ValueError(f"{name}={len(edges) - 1}: there are only {num_states} states; use at most as many blocks.")
    if num_workers < len(edges) - 1:
        raise ValueError(f"num_blocks={num_blocks}: {num_workers} workers leave some alone; use as many or fewer.")
    block = np.arange(num_workers) % (len(edges) - 1)
    first, last = edges[block, None], edges[block + 1, None] - np.int32(1)
    states = np.minimum(first + np.arange(np.diff(edges).max(), dtype=np.int32), last)
    sizes, zeros = jnp.asarray((last - first)[:, 0] + 1, jnp.int32), jnp.zeros(num_workers, jnp.int32)
    return Owner(jnp.asarray(states), sizes, zeros, jax.random.split(key, num_workers))


def next_states(owner: Owner, count: int) -> tuple[jax.Array, Owner]:
    """The owner's next `count` states in cyclic order, Int32[count]."""
    if count == owner.states.size:
        return owner.states, owner._replace(count=owner.count + 1)
    cursor = owner.count * count + jnp.arange(count, dtype=jnp.int32)
    return owner.states[cursor % owner.size], owner._replace(count=owner.count + 1)


def write_blocks(shared: Values, messages: Block, reference: Array | None) -> tuple[Values, Metrics]:
    """Writes the messages' values; the metric `error` if there is a reference."""
    values = in_order(lambda values, block: values.at[block.states].set(block.values), shared.values, messages)
    return Values(values), {} if reference is None else {"error": distance(values, reference)}


def in_order(write: Callable[[PyTree, PyTree], PyTree], shared: PyTree, messages: PyTree) -> PyTree:
    """Writes the G messages one after the other: where two name the same state, the later one counts."""
    group_size = jax.tree.leaves(messages)[0].shape[0]
    return jax.lax.fori_loop(
        0, group_size, lambda g, shared: write(shared, jax.tree.map(lambda x: x[g], messages)), shared
    )


def distance(values: jax.Array, reference: Array) -> jax.Array:
    """The maximum norm ||V - reference||, Float[]."""
    return jnp.max(jnp.abs(values - jnp.asarray(reference).astype(values.dtype)))
