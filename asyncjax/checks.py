"""Arguments that no run could follow, refused in a sentence: which one, what it is, and what to give instead."""

from __future__ import annotations

import difflib
import operator
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np


def given(**arguments: Any) -> dict[str, Any]:
    """Those of some arguments that are not None: the checks of numbers refuse it."""
    return {name: value for name, value in arguments.items() if value is not None}


def check_positive(**arguments: Any) -> None:
    """Raises TypeError for None, ValueError for an argument that is no positive number."""
    _check_given(arguments)
    for name, value in arguments.items():
        if isinstance(value, str) or np.ndim(value) or not value > 0:
            raise ValueError(f"{name}={value!r}: give a positive number.")


def check_number(**arguments: Any) -> None:
    """Raises TypeError for an argument that is not one number, known or traced: None, text, lists, arrays with axes."""
    for name, value in arguments.items():
        dtype = getattr(value, "dtype", None)
        of_array = dtype is not None and value.shape == () and jax.dtypes.issubdtype(dtype, np.number)
        if not (of_array or isinstance(value, (int, float, np.bool_))):
            raise TypeError(f"{name}={reprlib.repr(value)}: give a number.")


def check_static(**arguments: Any) -> None:
    """Raises TypeError for an array of JAX's: sizes of arrays and what programs are cached by have to be hashable."""
    for name, value in arguments.items():
        if isinstance(value, jax.Array):
            raise TypeError(f"{name}={value!r} is an array of JAX's: give a whole number, such as int({name}).")


def check_whole(**arguments: Any) -> None:
    """Raises TypeError for an argument that is no whole number."""
    _check_given(arguments)
    for name, value in arguments.items():
        try:
            operator.index(value)
        except TypeError as error:
            raise TypeError(f"{name}={value!r}: give a whole number.") from error


def whole(*numbers: Any) -> list[Any]:
    """Whole numbers, or None, as Python's: those of NumPy overflow where sums of them do not fit their type."""
    return [None if x is None else operator.index(x) for x in numbers]


def check_counts(**arguments: Any) -> None:
    """Raises TypeError or ValueError for an argument that is not 1, 2, 3, ..."""
    check_whole(**arguments)
    check_positive(**arguments)


def _check_given(arguments: Mapping[str, Any]) -> None:
    for name, value in arguments.items():
        if value is None:
            raise TypeError(f"{name}=None: give a number.")


def check_devices(devices: Any, *, distinct: bool = False) -> None:
    """Raises TypeError or ValueError for what is no list of devices, or of distinct ones."""
    if not isinstance(devices, Sequence) or not all(isinstance(device, jax.Device) for device in devices):
        raise TypeError(f"devices={devices!r}: give a list of devices, such as jax.local_devices().")
    if not devices or (distinct and len(set(devices)) < len(devices)):
        each = ", each once" if distinct else ""
        raise ValueError(f"devices={list(devices)}: give one device or more{each}, such as jax.local_devices().")


def check_function(**arguments: Any) -> None:
    """Raises TypeError for an argument that is given and can not be called."""
    for name, value in arguments.items():
        if value is not None and not callable(value):
            raise TypeError(f"{name}={value!r} is no function: give one, or leave it out.")


def nearest(name: str, known: Iterable[str], otherwise: str) -> str:
    """The sentence for a name that is not among those known: which of them look like it, or else this."""
    lower = {one.lower(): one for one in known}
    near = [lower[one] for one in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.4)]
    return f"Did you mean {' or '.join(near)}?" if near else otherwise


def check_choice(choices: Iterable[Any], **arguments: Any) -> None:
    """Raises ValueError for an argument that is none of these."""
    choices = list(choices)
    for name, value in arguments.items():
        if value not in choices:
            raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, choices))}.")


def check_least(least: int, why: str = "", **arguments: Any) -> None:
    """Raises TypeError or ValueError for what is no whole number of at least this, and says why."""
    check_whole(**arguments)
    for name, value in arguments.items():
        if value < least:
            raise ValueError(f"{name}={value!r}: {why or f'use at least {least}'}.")


def check_int32(**arguments: Any) -> None:
    """Raises TypeError or ValueError for what is no whole number, or too large to number states or versions by."""
    check_whole(**arguments)
    for name, value in arguments.items():
        if int(value) >= 2**31:
            raise ValueError(f"{name}={value!r}: use at most {2**31 - 1}, the largest int32.")


def check_kind(kind: type, fix: str, **arguments: Any) -> None:
    """Raises TypeError, with this advice, for an argument that is no such thing."""
    for name, value in arguments.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name}={reprlib.repr(value)} is no {kind.__name__}: {fix}.")


def is_key(x: Any) -> bool:
    """Whether it is an array of typed random keys."""
    return jax.dtypes.issubdtype(getattr(x, "dtype", np.dtype(bool)), jax.dtypes.prng_key)


def default_generator() -> str:
    """The name of the generator that JAX's keys are of by default."""
    return jax.config.jax_default_prng_impl  # pyright: ignore[reportAttributeAccessIssue]


def check_key(key: Any) -> None:
    """Raises TypeError unless this is a random key, of the new kind or the old."""
    dtype = getattr(key, "dtype", None)
    if not (is_key(key) or (dtype == np.uint32 and key.ndim)):
        seed = key if isinstance(key, int) else 0
        raise TypeError(f"key={reprlib.repr(key)} is no random key: give jax.random.key({seed}).")


def check_run_key(key: Any) -> None:
    """Raises TypeError or ValueError unless a run can begin with this: one key, of JAX's default generator."""
    check_key(key)
    if key.ndim > (0 if is_key(key) else 1):
        raise ValueError(f"key has the shape {key.shape}: give one key, or use jax.vmap over emulate.")
    if not is_key(key):
        return
    name = str(jax.random.key_impl(key))
    if name != default_generator():  # as which programs and checkpoints hold private keys
        raise ValueError(
            f"key is of the generator {name}: set jax.config.update('jax_default_prng_impl', {name!r}) first."
        )


def check_initial(state: Any, num_workers: int) -> tuple[Any, Any]:
    """What a method's `init` returned; raises TypeError or ValueError unless it is (shared, local of W workers)."""
    if not isinstance(state, (tuple, list)) or len(state) != 2:
        raise TypeError("init returned no pair: return (shared, local).")
    for leaf in jax.tree.leaves(state[1]):
        if np.shape(leaf)[:1] != (num_workers,):
            raise ValueError(
                f"init made a leaf of shape {np.shape(leaf)} of the private states of {num_workers} workers: give one"
                " slice per worker, stacked on axis 0; what is alike for all belongs to the shared state."
            )
    return state[0], state[1]


def check_outputs(function: str, outputs: Any, *names: str) -> tuple[Any, ...]:
    """The values that one of a method's functions returned; raises TypeError unless they are these, metrics last."""
    if not isinstance(outputs, (tuple, list)) or len(outputs) != len(names):
        found = f"{len(outputs)} values" if isinstance(outputs, (tuple, list)) else f"one {type(outputs).__name__}"
        raise TypeError(f"{function} returned {found}: return ({', '.join(names)}).")
    metrics = outputs[-1]
    if not isinstance(metrics, Mapping) or not all(hasattr(value, "shape") for value in metrics.values()):
        raise TypeError(f"{function} reported the metrics {metrics}: give a dictionary, name -> array, or {{}}.")
    if name := next((name for name, value in metrics.items() if is_key(value)), None):
        raise TypeError(f"{function} reported the metric {name}, a random key: report its jax.random.key_data.")
    return tuple(outputs)


def check_kept(function: str, what: str, before: Any, after: Any) -> None:
    """Raises TypeError unless a function gave a state back with the leaves, shapes and dtypes that it had."""
    if name := first_difference(old := leaf_types(before), new := leaf_types(after)):
        raise TypeError(
            f"{function} gave the {what} back with {name} = {new.get(name, 'absent')}, but it was"
            f" {old.get(name, 'absent')}: keep its leaves, shapes and dtypes from update to update."
        )
    if (given := jax.tree.structure(after)) != (kept := jax.tree.structure(before)):
        raise TypeError(f"{function} gave the {what} back as {given}, but it was {kept}: keep its structure.")


def leaf_types(tree: Any) -> dict[str, str]:
    """Leaf path -> dtype and shape, such as {"shared.params.kernel": "float32[4, 64]"}; one leaf alone is "it"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") or "it" for path, _ in leaves]
    return {name: f"{x.dtype}{list(x.shape)}" for name, (_, x) in zip(names, leaves, strict=True)}


def first_difference(one: dict[str, str], other: dict[str, str]) -> str | None:
    """The first name that two dictionaries do not have alike, or None."""
    return next((name for name in {**one, **other} if one.get(name) != other.get(name)), None)
