"""The receiving end of a method: parameters, an optimizer, and a correction of what arrives."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from asyncjax.apart import apart
from asyncjax.method import Metrics, PyTree, Stale

UNCHANGED = optax.GradientTransformation(lambda params: (), lambda updates, state, params=None: (updates, state))


class Learner(NamedTuple):
    """Shared state of a gradient method.

    Attributes:
      params: the parameters, which are the view.
      opt_state: the shared optimizer's state; `()` where every worker has its own.
      correction_state: the correction's state; `()` when there is none.
      messages: Int32[], messages applied so far, which annealing counts; `()` without it.
    """

    params: PyTree
    opt_state: PyTree
    correction_state: PyTree = ()
    messages: PyTree = ()


def receiver(
    optimizer: optax.GradientTransformationExtraArgs | None,
    *,
    correction: optax.GradientTransformation | None = None,
    anneal_messages: float | jax.Array | None = None,
) -> tuple[Callable[[PyTree], Learner], Callable[[Learner, PyTree, Stale], tuple[Learner, Metrics]]]:
    """What takes gradients, or updates where there is no optimizer: (params -> Learner) and an `apply`.

    A correction acts on every message of a group in order; their mean goes to the optimizer, or is added.
    `optimizer` is what `transformation` gives.
    """
    fix = transformation(correction=correction or UNCHANGED)

    def begin(params: PyTree) -> Learner:
        opt_state = () if optimizer is None else optimizer.init(params)
        return Learner(params, opt_state, fix.init(params), () if anneal_messages is None else jnp.int32(0))

    def step(shared: Learner, messages: PyTree, stale: Stale) -> Learner:
        updates, opt_state, count = mean(messages, stale), (), shared.messages
        if optimizer is not None:
            read, staleness = only(stale) if alone(stale) else stale
            known = {"staleness": staleness, "stale_params": read}
            updates, opt_state = optimizer.update(updates, shared.opt_state, shared.params, **known)
        if anneal_messages is not None:
            left = annealed(count, anneal_messages)
            updates = jax.tree.map(lambda x: left.astype(x.dtype) * x, updates)
            count = count + stale.staleness.shape[0]
        return Learner(moved(shared.params, updates), opt_state, (), count)

    def apply(shared: Learner, messages: PyTree, stale: Stale) -> tuple[Learner, Metrics]:
        if correction is None:
            messages, state = only(messages) if alone(stale) else messages, ()
        else:
            messages, state = corrected(fix, shared, messages, stale)
        # Apart, the step is the same arithmetic whatever is computed beside it: corrections, telemetry, the next view.
        after = apart(step, stale.staleness[0] >= 0, shared._replace(correction_state=()), messages, stale)
        return after._replace(correction_state=state), {}

    return begin, apply


def corrected(
    correction: optax.GradientTransformationExtraArgs, shared: Learner, messages: PyTree, stale: Stale
) -> tuple[PyTree, PyTree]:
    """The messages of a group, or the only one, each corrected after the one before it, and the correction's state."""

    def one(state: PyTree, message: tuple[PyTree, Stale]) -> tuple[PyTree, PyTree]:
        gradient, (read, staleness) = message
        known = {"staleness": staleness, "stale_params": read, **group}
        gradient, state = correction.update(gradient, state, shared.params, **known)
        return state, gradient

    group = {} if alone(stale) else {"group_size": len(stale.staleness)}
    if alone(stale):
        state, message = one(shared.correction_state, only((messages, stale)))
        return message, state
    state, messages = jax.lax.scan(one, shared.correction_state, (messages, stale))
    return messages, state


def transformation(**given: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """An argument, by its name, as a transformation that takes extra arguments and keeps its state's dtypes.

    Optax mixes integers and floats, as Adam's step count does: it may, where a user forbids implicit promotion. A
    decay that is a float64 tracer would make a state of float64.
    """
    ((name, tx),) = given.items()
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise TypeError(f"{name}={reprlib.repr(tx)} is no optax transformation: give one, such as optax.adam(1e-3).")
    if not isinstance(tx, optax.GradientTransformationExtraArgs):
        asked = {"staleness", "stale_params"}.intersection(inspect.signature(tx.update).parameters)
        if asked:  # optax would pass it none
            raise TypeError(f"{name} wants {min(asked)}: make it an optax.GradientTransformationExtraArgs.")
    tx = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> PyTree:
        with jax.numpy_dtype_promotion("standard"):
            return tx.init(params)

    def update(updates: PyTree, state: PyTree, params: PyTree = None, **known: Any) -> tuple[PyTree, PyTree]:
        with jax.numpy_dtype_promotion("standard"):
            updates, new = tx.update(updates, state, params, **known)
        return updates, jax.tree.map(lambda x, old: jnp.asarray(x, jnp.asarray(old).dtype), new, state)

    return optax.GradientTransformationExtraArgs(init, update)


def moved(params: PyTree, updates: PyTree) -> PyTree:
    """The parameters after a step, in their own dtypes, also where the step size is a float64 tracer."""
    with jax.numpy_dtype_promotion("standard"):
        return optax.apply_updates(params, updates)


def annealed(count: jax.Array, end: float | jax.Array) -> jax.Array:
    """Float32[]: 1 - count / end, and 0 from the end on."""
    done = count.astype(jnp.float32) / jnp.asarray(end, jnp.float32)
    return jnp.maximum(1.0 - done, 0.0)


def alone(stale: Stale) -> bool:
    """Whether the group has one message."""
    return stale.staleness.shape[0] == 1


def only(group: PyTree) -> PyTree:
    """The one member of a group of one."""
    return jax.tree.map(lambda x: x[0], group)


def mean(messages: PyTree, stale: Stale) -> PyTree:
    """The mean over the leading axis G, or the only message as it is."""
    return messages if alone(stale) else jax.tree.map(lambda x: x.mean(0), messages)
