"""Methods whose message is a trajectory: workers act, and the learner computes gradients at its newest parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from asyncjax.actor_critic import Agent, collect, distribution, start
from asyncjax.apart import apart
from asyncjax.data_parallel import Divide, divide_rows
from asyncjax.method import Halves, Method, Metrics, PyTree, Stale
from asyncjax.methods.gradient import clipped
from asyncjax.methods.learner import UNCHANGED, alone, annealed, moved, only, transformation
from asyncjax.methods.options import Count, Number, check_options
from asyncjax.methods.rows import Rows, as_rows, minibatches, take, within
from asyncjax.rollout import Rollout, Trajectory, where
from asyncjax.surrogates import average

Prepare = Callable[[PyTree, Trajectory, jax.Array], tuple[PyTree, Metrics]]
Loss = Callable[[PyTree, PyTree, jax.Array, jax.Array | None], tuple[jax.Array, Metrics]]


class Learner(NamedTuple):
    """Shared state of a trajectory method.

    Attributes:
      params: what the workers act with.
      opt_state: the optimizer's.
      key: shuffles minibatches.
      messages: Int32[], how many were learned from.
      correction_state: the correction's state; `()` when there is none.
    """

    params: PyTree
    opt_state: PyTree
    key: jax.Array
    messages: jax.Array
    correction_state: PyTree = ()


def trajectory_method(
    agent: Agent,
    prepare: Prepare,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    num_envs: int,
    unroll_length: int,
    epochs: int = 1,
    num_minibatches: int | None = 1,
    max_grad_norm: Number | None = None,
    max_staleness: Count | None = None,
    anneal_steps: Number | None = None,
    correction: optax.GradientTransformation | None = None,
) -> Method:
    """A method from a loss on trajectories: workers send segments with the log-probabilities of their actions.

    The G N segments of a group are rows of one batch. `apply` prepares it once, at the newest parameters, and makes
    epochs * num_minibatches updates, each on whole rows. The optimizer gets as extra arguments `staleness`, Int[], and
    `stale_params`, both with a leading axis G for groups of more than one, and `effective_sample_size`, Float[].

    Args:
      agent: acts and predicts values.
      prepare: (params, rows [G N, T, ...], accepted Bool[G N]) -> (batch with leading axis G N, metrics).
      loss: (params, a minibatch of it, accepted, mine) -> (loss, metrics); rows that are not accepted must not count.
        With `mine`, Bool[G N], only through these rows the loss depends on the parameters: `through`. It or `prepare`
        reports `staleness_metrics`; where the loss does, of the rows in `mine`.
      optimizer: any optax transformation.
      num_envs: environments per worker, N.
      unroll_length: steps per environment and message, T.
      epochs: passes over the batch.
      num_minibatches: parts that an epoch divides the rows into, shuffled; 1 is the whole batch in order. None is 4,
        or the most below it that divide the rows.
      max_grad_norm: gradients are scaled down to this global norm.
      max_staleness: older messages are rejected; an update that rejects all of them changes nothing.
      anneal_steps: environment steps learned from, of all workers, after which the step size has fallen to 0.
      correction: an optax transformation from `asyncjax.corrections`, of every message's part of a gradient, as the
        optimizer's extra arguments but of one message. The mean of the parts, weighted by accepted rows, goes on; for
        groups of G it takes G gradients more, each of the same loss through one message's rows alone, and scaled down
        as the whole gradient is. Parts that the correction leaves alone are the gradient, bit for bit. It is at the
        newest parameters already: scaling and dropping have a meaning for it, delay compensation has none.

    Returns:
      A Method with metrics `grad_norm` (before clipping), `rejected` (messages) and those of `collect`, `prepare` and
      `loss`. Those of minibatches are means over the ones with a row that is accepted.
    """
    check_options(num_envs=num_envs, unroll_length=unroll_length, epochs=epochs, num_minibatches=num_minibatches)
    check_options(max_grad_norm=max_grad_norm, max_staleness=max_staleness, anneal_steps=anneal_steps)
    tx, fix = transformation(optimizer=optimizer), transformation(correction=correction or UNCHANGED)

    def init(key: jax.Array, num_workers: int) -> tuple[Learner, Rollout]:
        params_key, workers_key, shuffle_key = jax.random.split(key, 3)
        params = agent.init(params_key)
        keys = jax.vmap(lambda w: jax.random.fold_in(workers_key, w))(jnp.arange(num_workers))
        workers = jax.vmap(lambda key: start(agent, key, num_envs))(keys)
        return Learner(params, tx.init(params), shuffle_key, jnp.int32(0), fix.init(params)), workers

    work = partial(collect, agent, length=unroll_length, extra=lambda pi, action: pi.log_prob(action))

    def corrected(
        whole: tuple[PyTree, jax.Array],
        params: PyTree,
        state: PyTree,
        batch: PyTree,
        rows: Rows,
        stale: Stale,
        ess: Any,
    ) -> tuple[PyTree, PyTree]:
        """The mean of every message's corrected gradient, and the correction's state; `whole` is as of `clipped`."""
        grads, norm = whole

        def one(carry: tuple[PyTree, PyTree, jax.Array], member: tuple[jax.Array, Stale]) -> tuple[tuple, None]:
            (total, state, same), (g, (read, staleness)) = carry, member
            mine = rows.accepted & (rows.message == g)
            weight = jnp.sum(mine) / jnp.maximum(jnp.sum(rows.accepted), 1)
            part, metrics = jax.grad(loss, has_aux=True)(params, batch, rows.accepted, mine)
            part, _ = clipped(part, max_grad_norm, norm)
            own = jax.tree.map(lambda x: x / jnp.where(weight > 0, weight, 1).astype(x.dtype), part)
            extra = {"staleness": staleness, "stale_params": read, "group_size": len(members)}
            extra["effective_sample_size"] = metrics["effective_sample_size"] if ess is None else ess
            fixed, new = fix.update(own, state, params, **extra)
            total = jax.tree.map(lambda x, y: x + weight.astype(y.dtype) * y, total, fixed)
            return (total, where(mine.any(), new, state), same & (equal(fixed, own) | ~mine.any())), None

        members = jnp.arange(len(stale.staleness), dtype=jnp.int32)
        begin = jax.tree.map(jnp.zeros_like, params), state, jnp.bool_(True)
        (total, state, same), _ = jax.lax.scan(one, begin, (members, stale))
        # Parts that are left alone add up to the gradient, but for the last bit.
        return where(same, grads, total), state

    def apply(divide: Divide, shared: Learner, messages: Trajectory, stale: Stale) -> tuple[Learner, Metrics]:
        stale_params, staleness = only(stale) if alone(stale) else stale
        fresh_enough = within(stale.staleness, max_staleness)
        accepted = jnp.repeat(fresh_enough, num_envs)
        message = jnp.repeat(jnp.arange(len(fresh_enough), dtype=jnp.int32), num_envs)
        batch, prepared = prepare(shared.params, as_rows(messages), accepted)
        num_parts = num_minibatches or next(n for n in (4, 3, 2, 1) if len(accepted) % n == 0)
        step_size = remaining(shared.messages)

        def step(learner: tuple[PyTree, PyTree, PyTree], order: jax.Array) -> tuple[tuple, tuple]:
            params, opt_state, corrector = learner
            minibatch, rows = batch, Rows(accepted, message)
            if num_parts > 1:
                minibatch, rows = divide(take((batch, rows), order))
            grads, metrics = jax.grad(loss, has_aux=True)(params, minibatch, rows.accepted, None)
            grads, norm = clipped(grads, max_grad_norm)
            metrics = {"grad_norm": norm, **metrics}
            ess = {**prepared, **metrics}["effective_sample_size"]
            known = {"staleness": staleness, "stale_params": stale_params, "effective_sample_size": ess}
            if correction is not None and alone(stale):
                grads, corrector = fix.update(grads, corrector, params, **known)
            elif correction is not None:
                per_message = prepared.get("effective_sample_size")
                grads, corrector = corrected((grads, norm), params, corrector, minibatch, rows, stale, per_message)
            updates, opt_state = tx.update(grads, opt_state, params, **known)
            updates = jax.tree.map(lambda x: x * step_size.astype(x.dtype), updates)
            updated = (moved(params, updates), opt_state, corrector)
            learns = rows.accepted.any()
            return where(learns, updated, learner), (metrics, learns)

        key, order_key = jax.random.split(shared.key)
        order = minibatches(order_key, accepted.shape[0], epochs, num_parts)
        start_of = (shared.params, shared.opt_state, shared.correction_state)
        (params, opt_state, corrector), (of_steps, learned) = jax.lax.scan(step, start_of, order)
        accepted_messages = jnp.sum(fresh_enough, dtype=jnp.int32)
        learner = Learner(params, opt_state, key, shared.messages + accepted_messages, corrector)
        metrics = {**prepared, **{name: average(values, learned) for name, values in of_steps.items()}}
        metrics["rejected"] = (fresh_enough.shape[0] - accepted_messages).astype(jnp.float32)
        return where(fresh_enough.any(), learner, shared), metrics

    def remaining(messages: jax.Array) -> jax.Array:
        """The part of the step size that annealing leaves, Float[]."""
        if anneal_steps is None:
            return jnp.float32(1.0)
        return annealed(messages.astype(jnp.float32) * float(num_envs * unroll_length), anneal_steps)

    return Method(
        init=init,
        view=lambda shared: shared.params,
        work=work,
        apply=lambda *args: apart(partial(apply, divide_rows()), args[2].staleness[0] >= 0, *args),
        policy=agent.policy,
        halves=Halves(work, None, partial(distribution, agent)),
    )


def equal(x: PyTree, y: PyTree) -> jax.Array:
    """Whether two trees are the same, Bool[]."""
    same = jax.tree.leaves(jax.tree.map(lambda a, b: jnp.all(a == b), x, y))
    return jnp.stack(same).all() if same else jnp.bool_(True)
