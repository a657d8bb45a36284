"""Arithmetic that does not depend on what surrounds it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from asyncjax.method import Array


def apart(function: Any, true: Array, *args: Any) -> Any:
    """Calls a function so that what surrounds it does not change how it is compiled, and is not changed by it.

    It is a branch of a condition, over whose border XLA does not fuse; a barrier for optimizations is gone before CPUs'
    fusion begins. `true` is a Bool[] that is True, which the compiler can not know. Under a `vmap` over it there is no
    condition any more, and no promise.
    """

    once = jax.jit(function, inline=True)  # so that asking for its shapes and the branch are one trace

    def never(*args: Any) -> Any:
        # A loop that moves few bytes XLA compiles as one kernel, over this border too, unless there is a sort in it.
        anything = jax.lax.sort(jnp.stack([true, ~true]))[0]
        return jax.tree.map(lambda x: jnp.full(x.shape, anything, x.dtype), jax.eval_shape(once, *args))

    return jax.lax.cond(true, once, never, *args)
