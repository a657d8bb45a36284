"""Arithmetic that does not depend on what surrounds it."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp

from asyncjax.method import Array

FLAG = "--xla_cpu_use_fusion_emitters=false"


def wanted() -> bool:
    """Whether `emulate` is to agree with `replay` bit for bit: XLA_FLAGS has the flag that allows it on CPUs."""
    return FLAG in os.environ.get("XLA_FLAGS", "").split()


def apart(function: Any, true: Array, *args: Any) -> Any:
    """Calls a function so that what surrounds it does not change how it is compiled, and is not changed by it.

    It is a branch of a condition, over whose border XLA does not fuse; a barrier for optimizations is gone before CPUs'
    fusion begins. `true` is a Bool[] that holds and that the compiler does not know. Under a `vmap` over it there is no
    condition any more, and no promise.
    """

    def never(*args: Any) -> Any:
        # A loop that moves few bytes XLA compiles as one kernel, over this border too, unless there is a sort in it.
        anything = jax.lax.sort(jnp.stack([true, ~true]))[0]
        return jax.tree.map(lambda x: jnp.full(x.shape, anything, x.dtype), jax.eval_shape(function, *args))

    return jax.lax.cond(true, function, never, *args)


def isolated(function: Any, either: Array, *args: Any) -> Any:
    """Calls a function so that XLA compiles it apart from what surrounds it, hence alike everywhere.

    Fused with its surroundings, the same arithmetic may round differently: which product and sum become one
    fused multiply-add depends on the fusion. XLA does not fuse across a condition. Both its branches are the
    function, so `either` is any Bool[] that the compiler does not know.
    """
    return jax.lax.cond(either, function, function, *args) if wanted() else function(*args)
