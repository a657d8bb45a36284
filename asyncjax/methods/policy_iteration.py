"""Asynchronous policy iteration, optimistic and with the repair that makes it converge from anywhere."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from asyncjax.checks import check_least, given
from asyncjax.mdp.core import AnyMDP, action_values, policy_backup
from asyncjax.method import Array, Method, Metrics, Stale
from asyncjax.methods.dynamic_programming import (
    Owner,
    check_problem,
    check_reference,
    distance,
    in_order,
    next_states,
    owners,
    starting_values,
)
from asyncjax.methods.options import Number


class Policies(NamedTuple):
    """Shared state and view.

    Attributes:
      values: Float[S], V: what the last operation on each state, an evaluation or an improvement, gave.
      improved: Float[S], J: what its last improvement gave.
      policy: Int32[S], the action that its last improvement chose.
    """

    values: jax.Array
    improved: jax.Array
    policy: jax.Array


class Operation(NamedTuple):
    """Message: what an improvement or an evaluation of some states gave; `values` and `policy` are of length n."""

    states: jax.Array
    values: jax.Array
    policy: jax.Array
    improvement: jax.Array


def policy_iteration(
    mdp: AnyMDP,
    discount: Number,
    *,
    num_evaluations: int = 10,
    repaired: bool = True,
    num_blocks: int | None = None,
    block_size: int | None = None,
    initial_values: Array | None = None,
    reference: Array | None = None,
) -> Method:
    """Asynchronous (modified) policy iteration: workers improve the policy of their states, then evaluate it m times.

    improvement: J(s), V(s) <- max_a [r(s, a) + discount sum_s' P(s'|s, a) U(s')],   pi(s) <- the maximizing action
    evaluation:  V(s) <- r(s, pi(s)) + discount sum_s' P(s'|s, pi(s)) U(s'),         with U = max(V, J)

    Every operation is a message. With U = V (`repaired=False`) and without delays or with a barrier this is modified
    policy iteration of order m + 1: value iteration for m = 0, policy iteration as m grows. But under other orders
    of the same operations it may cycle for ever; with U = max(V, J) it converges from any start, as J is a lower
    bound below which a bad evaluation can not pull the values.

    Args:
      mdp: the problem, with S states.
      discount: in [0, 1]; at 1 every policy must come to an end.
      num_evaluations: m, after every improvement; at least 0.
      repaired: use U = max(V, J).
      num_blocks: blocks of consecutive states; worker w owns block w modulo num_blocks. None: one for each worker.
      block_size: states in a message, in cyclic order; None: all that the worker owns.
      initial_values: Float[S], of V and J; zeros by default.
      reference: Float[S], such as the exact values; adds the metric `error`.

    Returns:
      A Method with shared state `Policies`. Work metrics: `backups`, states in the message; `residual`, max |new - V|
      over them, which bounds no error. Of apply: `error`, max |V - reference| after the update.

    Raises:
      ValueError: a malformed MDP, a discount without values, or a count that is too small.

    Example:
      >>> import jax, asyncjax as aj
      >>> method = aj.policy_iteration(aj.mdp.forest(3), 0.9, num_evaluations=5)
      >>> result = aj.emulate(method, aj.schedules.round_robin(600, num_workers=3), jax.random.key(0))
      >>> [round(float(value), 2) for value in result.shared.values], result.shared.policy.tolist()
      ([26.24, 29.48, 33.48], [0, 0, 0])

    Source: Bertsekas and Yu, Distributed asynchronous policy iteration in dynamic programming (2010), and Q-learning
    and enhanced policy iteration in discounted dynamic programming (2012), whose min over costs is a max here. The
    cycles of the unrepaired form: Williams and Baird, Analysis of some incremental variants of policy iteration (1993).
    """
    check_problem(mdp, discount, initial_values, **given(num_blocks=num_blocks, block_size=block_size))
    check_reference(reference, mdp.num_states)
    check_least(0, "use at least 0, which is value iteration", num_evaluations=num_evaluations)

    def init(key: jax.Array, num_workers: int) -> tuple[Policies, Owner]:
        values = starting_values(mdp, initial_values)
        # With delays an evaluation may come before any improvement: of the first action that is available.
        available = ~jnp.isneginf(action_values(mdp, values, discount))
        shared = Policies(values, values, jnp.argmax(available, axis=0).astype(jnp.int32))
        return shared, owners(key, num_workers, mdp.num_states, num_blocks)

    def work(view: Policies, owner: Owner) -> tuple[Operation, Owner, Metrics]:
        basis = jnp.maximum(view.values, view.improved) if repaired else view.values
        size = owner.states.size if block_size is None else min(block_size, owner.states.size)
        rounds = -(-owner.size // size)  # messages per round of the worker's states
        improvement = (owner.count // rounds) % (num_evaluations + 1) == 0
        states, owner = next_states(owner, size)

        def improve() -> tuple[jax.Array, jax.Array]:
            quality = action_values(mdp, basis, discount, states)
            return quality.max(axis=0), jnp.argmax(quality, axis=0).astype(jnp.int32)

        def evaluate() -> tuple[jax.Array, jax.Array]:
            policy = view.policy[states]
            return policy_backup(mdp, policy, basis, discount, states), policy

        values, policy = jax.lax.cond(improvement, improve, evaluate)
        metrics = {"backups": jnp.int32(size), "residual": jnp.max(jnp.abs(values - view.values[states]))}
        return Operation(states, values, policy, improvement), owner, metrics

    def write(shared: Policies, message: Operation) -> Policies:
        states = message.states
        # An evaluation leaves J and the policy alone: what the worker read of them may be outdated by now.
        improved = jnp.where(message.improvement, message.values, shared.improved[states])
        policy = jnp.where(message.improvement, message.policy, shared.policy[states])
        return Policies(
            shared.values.at[states].set(message.values),
            shared.improved.at[states].set(improved),
            shared.policy.at[states].set(policy),
        )

    def apply(shared: Policies, messages: Operation, stale: Stale) -> tuple[Policies, Metrics]:
        del stale
        shared = in_order(write, shared, messages)
        return shared, {} if reference is None else {"error": distance(shared.values, reference)}

    return Method(init=init, view=lambda shared: shared, work=work, apply=apply)
