"""Arguments that no run could follow, refused in a sentence: which one, what it is, and what to give instead."""

from __future__ import annotations

import operator
import reprlib
from typing import Any

import jax
import numpy as np


def check_positive(**arguments: Any) -> None:
    """Raises ValueError for an argument that is given and no positive number."""
    for name, value in arguments.items():
        if value is not None and (isinstance(value, str) or not value > 0):
            raise ValueError(f"{name}={value!r}: give a positive number.")


def check_whole(**arguments: Any) -> None:
    """Raises TypeError for an argument that is given and no whole number."""
    for name, value in arguments.items():
        try:
            operator.index(0 if value is None else value)
        except TypeError as error:
            raise TypeError(f"{name}={value!r}: give a whole number.") from error


def check_counts(**arguments: Any) -> None:
    """Raises TypeError or ValueError for an argument that is given and not 1, 2, 3, ..."""
    check_whole(**arguments)
    check_positive(**arguments)


def check_kind(kind: type, fix: str, **arguments: Any) -> None:
    """Raises TypeError, with this advice, for an argument that is no such thing."""
    for name, value in arguments.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name}={reprlib.repr(value)} is no {kind.__name__}: {fix}.")


def check_key(key: Any) -> None:
    """Raises TypeError unless this is a random key, of the new kind or the old."""
    dtype = getattr(key, "dtype", None)
    if dtype is None or not (jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) or (dtype == np.uint32 and key.ndim)):
        seed = key if isinstance(key, int) else 0
        raise TypeError(f"key={reprlib.repr(key)} is no random key: give jax.random.key({seed}).")


def check_run_key(key: Any) -> None:
    """Raises TypeError or ValueError unless a run can begin with this: one key, of JAX's default generator."""
    check_key(key)
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        return
    if key.ndim:
        raise ValueError(f"key has the shape {key.shape}: give one key, or use jax.vmap over emulate.")
    if key.dtype != jax.eval_shape(jax.random.key, 0).dtype:  # as which programs and checkpoints hold private keys
        name = jax.random.key_impl(key)
        raise ValueError(
            f"key is of the generator {name}: set jax.config.update('jax_default_prng_impl', {name!r}) first."
        )
