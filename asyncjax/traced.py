"""What can be known about values inside `jit` and `vmap`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jax
import jax.core
import jax.extend
import numpy as np


def is_traced(tree: Any) -> bool:
    """Whether any leaf is a tracer."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def under_transformation() -> bool:
    """Whether we run inside `jit`, `vmap`, `grad`, ...: functions may then close over tracers unseen."""
    return jax.extend.core.get_opaque_trace_state() != _clean_state()


@lru_cache(maxsize=1)
def _clean_state() -> Any:
    """The state outside all transformations, which is what a new thread begins with."""
    states: list[Any] = []
    thread = threading.Thread(target=lambda: states.append(jax.extend.core.get_opaque_trace_state()))
    thread.start()
    thread.join()
    return states[0]


def inner_jaxprs(equation: Any) -> list[Any]:
    """What an equation of a jaxpr runs inside: the bodies of loops, branches and calls."""
    return [getattr(sub, "jaxpr", sub) for sub in jax.extend.core.jaxprs_in_params(equation.params)]


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr, those inside loops, branches and calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in inner_jaxprs(equation):
            yield from equations(inner)


def concrete(tree: Any) -> Any | None:
    """The tree as numpy arrays, or None if a value is unknown.

    Directly under `vmap` the values are known: they come back with the mapped axes in front.
    """
    values = [_concrete(leaf) for leaf in jax.tree.leaves(tree)]
    return None if any(v is None for v in values) else jax.tree.unflatten(jax.tree.structure(tree), values)


def _concrete(x: Any) -> np.ndarray | None:
    if not isinstance(x, jax.core.Tracer):
        return np.asarray(x)
    axis = getattr(x, "batch_dim", None)  # only vmap's tracers have one, and a value beside it
    inner = _concrete(x.val) if isinstance(axis, int) else None  # type: ignore[attr-defined]
    if inner is None or axis is None:
        return None
    # `axis` counts the axes of x.val, which may itself be mapped, with those axes in front.
    mapped_before = inner.ndim - jax.numpy.ndim(x.val)  # type: ignore[attr-defined]
    return np.moveaxis(inner, mapped_before + axis, mapped_before)
