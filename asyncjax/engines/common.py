"""What the engines share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asyncjax.checks import (
    check_counts,
    check_function,
    check_initial,
    check_kind,
    check_run_key,
    check_static,
    first_difference,
    leaf_types,
)
from asyncjax.engines.program_cache import program_cache
from asyncjax.method import Array, Method, Metrics, PyTree, State
from asyncjax.schedules import Schedule, check_axes
from asyncjax.traced import under_transformation


def check_run(
    method: Method, key: jax.Array, *schedule: Schedule, callback: Any, chunk_size: Any, **counts: Any
) -> None:
    """Raises TypeError or ValueError for what no engine could run; `counts` are whole numbers above 0."""
    check_kind(Method, "give what a factory returns, such as aj.a3c('CartPole-v1')", method=method)
    check_run_key(key)
    for one in schedule:
        check_kind(Schedule, "give one of asyncjax.schedules, or the one that run_threads recorded", schedule=one)
        check_axes(one)
    check_static(chunk_size=chunk_size, **counts)
    check_counts(chunk_size=chunk_size, **counts)
    check_function(callback=callback)


def check_host(engine: str) -> None:
    """Raises ValueError where an engine that runs on the host can not: inside a transformation, or without `jit`."""
    if under_transformation():
        raise ValueError(f"{engine} runs on the host: call it outside jit, vmap and grad, or use emulate inside.")
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(f"{engine} calls programs that are compiled beforehand: use emulate under jax.disable_jit().")


def initial_state(method: Method, key: jax.Array, num_workers: int) -> State:
    """The state before the first update. All engines begin with this one compiled function, so they begin alike."""
    return State(0, *compile_init(method, num_workers)(key))


@program_cache
def compile_init(method: Method, num_workers: int) -> Callable[[jax.Array], tuple[PyTree, PyTree]]:
    """`begin`, compiled."""
    return jax.jit(partial(begin, method, num_workers))


def begin(method: Method, num_workers: int, key: jax.Array) -> tuple[PyTree, PyTree]:
    """`method.init`, checked, with weak types made strong: they would change after the first update."""
    return jax.tree.map(_strong, check_initial(method.init(key, num_workers), num_workers))


def initial_like(method: Method, num_workers: int) -> tuple[PyTree, PyTree]:
    """The shapes and dtypes of (Shared, Local), as a method begins with them.

    Of the trace that the compiled `init` is of: what a structure keeps beside arrays, such as an optimizer's functions,
    may be another one in another trace. Not for use inside transformations, as the trace is kept.
    """
    return compile_init(method, num_workers).eval_shape(jax.random.key(0))  # type: ignore[attr-defined]


def _strong(x: Any) -> jax.Array:
    return jax.lax.convert_element_type(x, x.dtype) if getattr(x, "weak_type", False) else jnp.asarray(x)


def starting_state(
    state: State | None, method: Method, key: jax.Array, num_workers: int, num_updates: int, limit: str
) -> State:
    """Where a run of W workers and T updates begins: the given state, if it fits, or the initial one."""
    if state is None:
        return initial_state(method, key, num_workers)
    check_kind(State, "give the state of a Chunk that an engine handed to its callback", state=state)
    found = {x.shape[0] for x in jax.tree.leaves(state.local)}
    if found - {num_workers}:
        raise ValueError(
            f"state.local is of {found.pop()} workers, but num_workers={num_workers}: continue with as many"
            " workers as the run had."
        )
    if state.update > num_updates:
        raise ValueError(
            f"{limit} has {num_updates} updates, but the state is already at update {state.update}: ask for more."
        )
    known = leaf_types({"shared": state.shared, "local": state.local})
    wanted = leaf_types(dict(zip(("shared", "local"), initial_like(method, num_workers), strict=True)))
    if name := first_difference(known, wanted):
        raise ValueError(
            f"state.{name} is {known.get(name, 'absent')}, but in this method {wanted.get(name, 'absent')}: continue"
            " with the method that the state comes from."
        )
    return state


def chunks(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Consecutive (start, stop) of chunks that end at multiples of their size, or at the end."""
    while start < stop:
        end = min(stop, (start // size + 1) * size)
        yield start, end
        start = end


def concatenate_metrics(parts: Sequence[Metrics]) -> Metrics:
    """The metrics of consecutive chunks as one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}


def not_finite(update: int, workers: Array) -> FloatingPointError:
    """The error for an update that made the view non-finite."""
    names = ", ".join(str(w) for w in np.ravel(workers))
    return FloatingPointError(
        f"Update {update}, from worker {names}, made the view non-finite (NaN or infinity). Try a smaller learning"
        " rate, clip the gradients, or pass check_finite=False to let the run go on."
    )


def deliver_after(
    error: BaseException, deliver: Callable[[], None], doing: str = "Handing the last chunk to the callback"
) -> None:
    """Delivers what is left of a failed run. A second failure becomes a note of the first cause."""
    try:
        deliver()
    except Exception as second:
        error.add_note(f"{doing} then failed, too: {second!r}")
