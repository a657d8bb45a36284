"""Runs whose every iterate is kept, and the search for the step size at which they begin to grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import asyncjax as aj


def trajectory(
    optimizer: optax.GradientTransformation,
    schedule: aj.Schedule,
    *,
    loss: Callable[..., jax.Array] = lambda w: 0.5 * jnp.sum(w * w),
    start: Any = 1.0,
    key: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """The parameters after every update, from the metrics of a method that reports them."""
    method = aj.sgd(loss, jnp.asarray(start, jnp.float32), optimizer=optimizer, **options)

    def apply(shared: Any, messages: Any, stale: aj.Stale) -> tuple[Any, Any]:
        shared, metrics = method.apply(shared, messages, stale)
        return shared, {**metrics, "w": shared.params}

    return aj.emulate(method._replace(apply=apply), schedule, jax.random.key(0) if key is None else key).metrics["w"]


def swept(measure: Callable[[Any], jax.Array], steps: np.ndarray) -> np.ndarray:
    """The measure at every step size, in one program."""
    return np.asarray(jax.jit(jax.vmap(measure))(jnp.asarray(steps, jnp.float32)))


def largest_stable(
    grows: Callable[[jax.Array, jax.Array], jax.Array], xs: Sequence[float] = (0.0,), rounds: int = 5
) -> np.ndarray:
    """Closes in, 16 steps at once, on the first step size between 0.004 and 4.3 whose run grows; for every x."""
    low, high = np.full(len(xs), 0.004), np.full(len(xs), 4.3)
    many = jax.jit(jax.vmap(jax.vmap(grows, (0, None))))
    for _ in range(rounds):
        steps = np.linspace(low, high, 16, axis=1)
        first = np.argmax(np.asarray(many(jnp.asarray(steps, jnp.float32), jnp.asarray(xs, jnp.float32))), axis=1)
        rows = np.arange(len(xs))
        low, high = steps[rows, np.maximum(first - 1, 0)], steps[rows, first]
    return (low + high) / 2


def grew(w: jax.Array) -> jax.Array:
    """Whether the last quarter of a trajectory reaches further than the one before it, and has not underflowed."""
    size = jnp.linalg.norm(w.reshape(w.shape[0], -1), axis=1)  # what turns slowly still has a length
    quarter = w.shape[0] // 4
    late, early = size[-quarter:].max(), size[-2 * quarter : -quarter].max()
    # What overflowed has grown. (XLA takes ~(late < early) for late >= early, which is not the same for NaN.)
    return ~jnp.isfinite(late) | ((late >= early) & (late >= 1e-20))
