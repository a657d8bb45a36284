"""Asynchronous value iteration: workers own blocks of states and back them up from stale values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asyncjax.checks import check_counts, check_number
from asyncjax.mdp.check import check, check_discount, check_is_mdp
from asyncjax.mdp.core import MDP, AnyMDP, bellman
from asyncjax.method import Array, Method, Metrics, PyTree, Stale
from asyncjax.methods.options import Number
from asyncjax.traced import is_traced

Order = Literal["cyclic", "random", "largest"]


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


def value_iteration(
    mdp: AnyMDP,
    discount: Number,
    *,
    num_blocks: int | None = None,
    block_size: int | None = None,
    order: Order = "cyclic",
    num_leaves: int = 1,
    initial_values: Array | None = None,
    reference: Array | None = None,
) -> Method:
    """Asynchronous value iteration: V(s) <- max_a [r(s, a) + discount sum_s' P(s'|s, a) V_stale(s')], block by block.

    The schedule makes it a method of the literature: `barrier` is Jacobi iteration, `sequential` Gauss-Seidel in the
    order of its workers, `fixed_delay` the block iteration with bounded delays, a worker for every state and any
    schedule the fully asynchronous one. After k updates with delays of at most D, if every state is among any B
    consecutive updates, ||V - V*|| <= discount^floor((k + D) / (B + D)) ||V_0 - V*||.

    Args:
      mdp: the problem, with S states.
      discount: in [0, 1]; at 1 every policy must come to an end.
      num_blocks: blocks of consecutive states; worker w owns block w modulo num_blocks. None: one for each worker.
        1: all workers write all states.
      block_size: states in a message; None: all that the worker owns.
      order: which of its states a worker backs up next: "cyclic", one after the other; "random", drawn uniformly
        with replacement; "largest", those with the largest residual on the values it read, which takes a backup
        of all its states to find (prioritized sweeping, by exact priorities).
      num_leaves: the view is read in this many parts, runs of states. A schedule's `read` may then be a tuple of as
        many arrays, a version for each part: Bertsekas and Tsitsiklis' delays of each component.
      initial_values: Float[S]; zeros by default.
      reference: Float[S], such as the exact values; adds the metric `error`.

    Returns:
      A Method with shared state `Values`. Work metrics: `backups`, states in the message; `residual`, max |new - read|
      over them, which bounds no error (a worker may be idle in its own block while the others are far off: certify
      the values of one version with a full residual instead). Of apply: `error`, max |V - reference| after the update.

    Raises:
      ValueError: a malformed MDP, a discount without values, or a count below 1.

    Example:
      >>> import jax, asyncjax as aj
      >>> method = aj.value_iteration(aj.mdp.forest(3), 0.9)
      >>> result = aj.emulate(method, aj.schedules.round_robin(400, num_workers=3), jax.random.key(0))
      >>> [round(float(value), 2) for value in result.shared.values]
      [26.24, 29.48, 33.48]

    Source: Bertsekas, Distributed dynamic programming (1982); Bertsekas and Tsitsiklis, Parallel and distributed
    computation (1989), chapter 6.
    """
    check_problem(mdp, discount, initial_values, num_blocks=num_blocks, block_size=block_size, num_leaves=num_leaves)
    check_reference(reference, mdp.num_states)
    if order not in ("cyclic", "random", "largest"):
        raise ValueError(f"order={order!r}: choose 'cyclic', 'random' or 'largest'.")

    def init(key: jax.Array, num_workers: int) -> tuple[Values, Owner]:
        return Values(starting_values(mdp, initial_values)), owners(key, num_workers, mdp.num_states, num_blocks)

    def view(shared: Values) -> PyTree:
        return shared.values if num_leaves == 1 else tuple(jnp.array_split(shared.values, num_leaves))

    def work(view: PyTree, owner: Owner) -> tuple[Block, Owner, Metrics]:
        values = view if num_leaves == 1 else jnp.concatenate(view)
        states, owner = choose(owner, values)
        new = bellman(mdp, values, discount, states)
        metrics = {"backups": jnp.int32(states.size), "residual": jnp.max(jnp.abs(new - values[states]))}
        return Block(states, new), owner, metrics

    def choose(owner: Owner, values: jax.Array) -> tuple[jax.Array, Owner]:
        """The states to back up now."""
        count = owner.states.size if block_size is None else min(block_size, owner.states.size)
        if order == "largest":
            residual = jnp.abs(bellman(mdp, values, discount, owner.states) - values[owner.states])
            first = jnp.arange(owner.states.size, dtype=jnp.int32) < owner.size  # not a repetition
            return owner.states[jax.lax.top_k(jnp.where(first, residual, -1), count)[1]], owner
        if order == "random":
            key, draw_key = jax.random.split(owner.key)
            drawn = jax.random.randint(draw_key, (count,), 0, owner.size, jnp.int32)
            return owner.states[drawn], owner._replace(key=key)
        return next_states(owner, count)

    def apply(shared: Values, messages: Block, stale: Stale) -> tuple[Values, Metrics]:
        del stale
        return write_blocks(shared, messages, reference)

    return Method(init=init, view=view, work=work, apply=apply)


def check_problem(mdp: AnyMDP, discount: Number, initial_values: Array | None = None, **counts: int | None) -> None:
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
