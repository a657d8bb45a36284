"""What the transformations share: a transformation of one message that knows how stale it is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asyncjax.apart import apart
from asyncjax.checks import check_number
from asyncjax.method import PyTree
from asyncjax.traced import concrete

Number = float | jax.Array


class Message(NamedTuple):
    """What a correction may know about the message it corrects.

    Attributes:
      gradient: the message; with a private optimizer it is a parameter update.
      params: the newest parameters.
      staleness: Float[], the updates applied between the read and now; fresh is 0.
      stale_params: the parameters that the message was computed on.
    """

    gradient: PyTree
    params: PyTree
    staleness: jax.Array
    stale_params: PyTree


def per_message(
    name: str,
    init: Callable[[PyTree], PyTree],
    update: Callable[[Message, PyTree], tuple[PyTree, PyTree]],
    *,
    needs_params: bool = False,
    keeps_fresh: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """An optax transformation from (message, state) -> (corrected, state), after checking what it is given.

    Args:
      name: how the correction is called in errors.
      init: params -> state.
      update: the rule.
      needs_params: whether the rule uses `params` and `stale_params`.
      keeps_fresh: fresh messages pass as they are, bit for bit.
    """

    def rule(message: Message, state: PyTree) -> tuple[PyTree, PyTree]:
        corrected, state = update(message, state)
        if keeps_fresh:
            corrected = jax.tree.map(partial(jnp.where, message.staleness == 0), message.gradient, corrected)
        return corrected, state

    def checked(
        updates: PyTree,
        state: PyTree,
        params: PyTree = None,
        *,
        staleness: Any = None,
        stale_params: PyTree = None,
        **_: Any,
    ) -> tuple[PyTree, PyTree]:
        check_staleness(name, staleness)
        if jnp.ndim(staleness):
            raise ValueError(
                f"{name} corrects one message, but this update has a group of {jnp.shape(staleness)[0]}:"
                f" pass it as correction={name}(...) of the method instead of chaining it into the optimizer."
            )
        if needs_params and (params is None or stale_params is None):
            missing = "stale_params" if stale_params is None else "params"
            raise ValueError(
                f"{name} needs {missing}, and none are given: use it where messages are gradients at the parameters"
                " that the worker read, or pass update(..., params, staleness=..., stale_params=...)."
            )
        if needs_params:
            stale_params = _like_masked(updates, stale_params)
        message = Message(updates, params, number(staleness), stale_params)
        # Apart, what comes out for a fresh message is the message: a compiler that fused the rule with the optimizer
        # could round otherwise.
        return apart(rule, message.staleness >= 0, message, state)

    return optax.GradientTransformationExtraArgs(init, checked)  # pyright: ignore[reportArgumentType]


def check_staleness(name: str, staleness: Any) -> None:
    """Raises ValueError where a correction is not told how stale the message is."""
    if staleness is None:
        raise ValueError(
            f"{name} was called without staleness=, which a private optimizer does not know: put it into a shared one,"
            f" or, unless it is a whole optimizer, pass it as correction={name}(...). Outside of a method pass the"
            " updates applied between the read and now to update(..., staleness=...)."
        )


def _like_masked(updates: PyTree, tree: PyTree) -> PyTree:
    """The tree without what `optax.masked` and `optax.partition` have left out of the updates and the params."""

    def masked(x: Any) -> bool:
        return isinstance(x, optax.MaskedNode)

    return jax.tree.map(lambda kept, x: kept if masked(kept) else x, updates, tree, is_leaf=masked)


def number(value: Any) -> jax.Array:
    """The value as a float of the default precision, which is what corrections calculate in."""
    return jnp.asarray(value, jnp.result_type(float))


def like(value: jax.Array, x: jax.Array) -> jax.Array:
    """A number in the dtype of x."""
    return value.astype(x.dtype)


def wide(x: jax.Array) -> jax.Array:
    """The same numbers in at least float32, for running means: small changes of one in half precision are lost."""
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x


def at_least(minimum: float, **arguments: Any) -> None:
    """Raises TypeError for what is no number, ValueError for a known one that is below the minimum, or NaN."""
    check_number(**arguments)
    for name, value in arguments.items():
        known = concrete(value)
        if known is not None and not np.all(known >= minimum):
            raise ValueError(f"{name}={value}: use a number of at least {minimum:g}.")


def below_one(**arguments: Any) -> None:
    """Raises ValueError for a decay that is known and not in [0, 1)."""
    at_least(0.0, **arguments)
    for name, value in arguments.items():
        known = concrete(value)
        if known is not None and not np.all(known < 1):
            raise ValueError(f"{name}={value}: a decay lies in [0, 1); 0.9 and 0.99 are common.")
