"""Corrections that drop messages which are too old."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from asyncjax.apart import apart
from asyncjax.checks import check_static
from asyncjax.corrections.per_message import Number, at_least, check_staleness, number, per_message
from asyncjax.method import PyTree


def drop_stale(
    bound: Number, inner: optax.GradientTransformation | None = None
) -> optax.GradientTransformationExtraArgs:
    """Messages with tau >= bound are dropped: zero updates come out, and the inner transformation stays as it was.

    The staleness is the schedule's, which counts dropped messages, too: where every message is as old as the bound, all
    are dropped and nothing is learned any more. `ringmaster` counts those that were taken.

    Args:
      bound: infinity drops nothing, 1 takes fresh messages only. At least 1.
      inner: what the messages that are taken go through, as a whole optimizer; None passes them on. Only what is inside
        is protected: momentum outside goes on moving the parameters.

    Raises:
      ValueError: a bound below 1, with which nothing would ever be learned.

    Example:
      >>> import jax, optax, asyncjax as aj
      >>> method = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=aj.corrections.drop_stale(3, optax.adam(0.1)))
      >>> result = aj.emulate(method, aj.schedules.fixed_delay(50, delay=3), jax.random.key(0))
      >>> bool(result.shared.opt_state[0].count == 3)  # only the first three messages were young enough
      True

    Source: a bound on staleness by rejection, as in IMPALA-like learners and AReaL (Fu et al. 2025).
    """
    at_least(1, bound=bound)
    transformation = optax.with_extra_args_support(optax.identity() if inner is None else inner)
    age = per_message("drop_stale", lambda params: (), lambda message, _: (message.gradient, message.staleness))

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any) -> tuple[PyTree, PyTree]:
        tau: Any = age.update(updates, (), params, **extra)[1]
        return _if_taken(tau < number(bound), transformation, updates, state, params, extra)

    return optax.GradientTransformationExtraArgs(transformation.init, update)  # pyright: ignore[reportArgumentType]


class Taken(NamedTuple):
    """State of `ringmaster`.

    Attributes:
      inner: of what the messages that are taken go through.
      versions: Int32[R], those from which the last R messages that were taken made the next; the oldest is replaced.
      version: Int32[], the messages so far.
      count: Int32[], how many of them were taken.
    """

    inner: PyTree
    versions: jax.Array
    version: jax.Array
    count: jax.Array


def ringmaster(
    bound: float, inner: optax.GradientTransformation | None = None
) -> optax.GradientTransformationExtraArgs:
    """Messages that `bound` or more taken ones have overtaken are dropped; the inner transformation stays as it was.

    delta = the number of messages taken since version t - tau; take it if delta < bound. What is dropped makes no
    progress, hence does not age what is still being computed: under a constant staleness of R a share of R / (R + 1) is
    taken, where `drop_stale(R)` takes nothing. For groups of one; the rule for groups is Rennala's, a group of the
    schedule.

    Args:
      bound: R, at least 1; with 1 only messages that nothing has overtaken are taken, with infinity all.
      inner: what the messages that are taken go through, as a whole optimizer; None passes them on. Only what is inside
        is protected: momentum outside goes on moving the parameters.

    Raises:
      ValueError: a bound below 1 or between two whole numbers, or a group of more than one.

    Example:
      >>> import jax, optax, asyncjax as aj
      >>> method = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=aj.corrections.ringmaster(3, optax.adam(0.1)))
      >>> result = aj.emulate(method, aj.schedules.fixed_delay(50, delay=3), jax.random.key(0))
      >>> int(result.shared.opt_state.count)  # all but every fourth
      38

    Source: Maranjyan, Tyurin and Richtarik, Ringmaster ASGD: the first asynchronous SGD with optimal time complexity
    (2025), algorithm 4. There a dropped message makes no version; here it makes one that is equal to the last.
    """
    check_static(bound=bound)
    at_least(1, bound=bound)
    transformation = optax.with_extra_args_support(optax.identity() if inner is None else inner)
    if bound == math.inf:
        return transformation
    if bound != int(bound):
        raise ValueError(f"bound={bound}: it counts messages, so use a whole number, or infinity to drop none.")

    def init(params: PyTree) -> Taken:
        never = jnp.full((int(bound),), jnp.iinfo(jnp.int32).min, jnp.int32)
        return Taken(transformation.init(params), never, jnp.int32(0), jnp.int32(0))

    def update(
        updates: PyTree, state: Taken, params: PyTree = None, *, staleness: Any = None, **extra: Any
    ) -> tuple[PyTree, Taken]:
        check_staleness("ringmaster", staleness)
        if jnp.ndim(staleness) or extra.get("group_size", 1) > 1:
            raise ValueError(
                f"ringmaster takes staleness=, Int[], of one message, but was given {staleness} in a group of"
                f" {extra.get('group_size', 1)}: use it in a method of asyncjax with groups of one. For groups choose a"
                ' waiting rule of the schedule, such as Rennala\'s group_size=K, wait="next_version".'
            )
        tau = jnp.asarray(staleness, jnp.int32)
        before = jnp.maximum(tau - state.version, 0)  # versions older than this state: of messages that were taken
        overtaken = before + jnp.sum(state.versions >= state.version - tau, dtype=jnp.int32)
        taken = overtaken < state.versions.shape[0]
        extra["staleness"] = staleness
        updates, after = _if_taken(taken, transformation, updates, state.inner, params, extra)
        slot = state.count % state.versions.shape[0]
        versions = state.versions.at[slot].set(jnp.where(taken, state.version, state.versions[slot]))
        return updates, Taken(after, versions, state.version + 1, state.count + taken.astype(jnp.int32))

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _if_taken(
    taken: jax.Array,
    transformation: optax.GradientTransformationExtraArgs,
    updates: PyTree,
    state: PyTree,
    params: PyTree,
    extra: dict[str, Any],
) -> tuple[PyTree, PyTree]:
    """What the transformation makes of the message, or zeros and the state as it was."""
    fresh, new_state = transformation.update(updates, state, params, **extra)

    def choose(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(partial(jnp.where, taken), new, old)

    known = jnp.asarray(extra["staleness"]) >= 0
    return apart(choose, known, (fresh, new_state), (jax.tree.map(jnp.zeros_like, fresh), state))
