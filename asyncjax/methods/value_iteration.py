"""Asynchronous value iteration: workers own blocks of states and back them up from stale values."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from asyncjax.checks import given
from asyncjax.mdp.core import AnyMDP, bellman
from asyncjax.method import Array, Method, Metrics, PyTree
from asyncjax.methods.dynamic_programming import (
    Block,
    Owner,
    Values,
    check_problem,
    check_reference,
    next_states,
    owners,
    starting_values,
    write_blocks,
)
from asyncjax.methods.options import Number

Order = Literal["cyclic", "random", "largest"]


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
    counts = given(num_blocks=num_blocks, block_size=block_size)
    check_problem(mdp, discount, initial_values, num_leaves=num_leaves, **counts)
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

    return Method(init, view, work, lambda shared, blocks, stale: write_blocks(shared, blocks, reference))
