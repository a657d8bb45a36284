"""The adapter to gymnax: its environments as `asyncjax.environment.Environment`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from asyncjax.adapters.gymnax_imports import CLASSES, import_class, import_module
from asyncjax.checks import nearest
from asyncjax.environment import Box, Discrete, Environment, Space, Step
from asyncjax.method import PyTree
from asyncjax.traced import is_traced

NEEDS_DOWNLOAD = "MNISTBandit-bsuite"
LIMIT = "max_steps_in_episode"
LENGTHS = (LIMIT, "memory_length", "chain_length")


def from_id(env_id: str, params: dict[str, Any]) -> Environment:
    """The environment of a gymnax id; without parameters the same object every time."""
    if not params:
        return default_env(env_id)
    # Some of gymnax look at arrays while they are made, which a caller's trace would hide from them.
    with contextlib.nullcontext() if is_traced(params) else jax.ensure_compile_time_eval():
        return from_gymnax(*construct(env_id, params))


@functools.lru_cache
def default_env(env_id: str) -> Environment:
    """The environment of an id, made once: two that are the same object share their compiled code."""
    with jax.ensure_compile_time_eval():  # A cached object must not hold what belongs to a caller's trace.
        return from_gymnax(*construct(env_id, {}))


def construct(env_id: str, params: dict[str, Any]) -> tuple[Any, str, dict[str, Any]]:
    """The gymnax object of an id, built with those of `params` that its constructor takes, its id, the other params."""
    factory = factory_of(env_id)
    accepted = inspect.signature(factory).parameters
    for name in params.keys() & accepted.keys():
        default = accepted[name].default
        check_value(name, params[name], default, least=int(bool(default)))  # sizes, which may be 0 where they are
    with gymnax_semantics():
        env = factory(**{name: value for name, value in params.items() if name in accepted})
        defaults = env.default_params
    rest = {name: value for name, value in params.items() if name not in accepted}
    check_params(env_id, rest, [field.name for field in dataclasses.fields(defaults)], sorted(accepted))
    return env, env_id, rest


def factory_of(env_id: str) -> Callable[..., Any]:
    """What makes the environment of a gymnax id, one that was registered by its user included."""
    if env_id in CLASSES:
        return import_class(CLASSES[env_id])
    registration = import_module("gymnax.registration")
    ids = [name for name in registration.registered_envs if name != NEEDS_DOWNLOAD]
    if env_id == NEEDS_DOWNLOAD:
        raise ValueError(
            f"env={env_id!r} downloads the MNIST data set when it is made, which asyncjax does not do: "
            f"choose one of {', '.join(ids)}."
        )
    if env_id not in ids:
        listed = f"Choose one of {', '.join(ids)}."
        raise ValueError(f"env={env_id!r} is not a gymnax id. {nearest(env_id, ids, listed)}")
    return registration._registry[env_id]


def check_params(name: str, params: dict[str, Any], fields: list[str], more: list[str]) -> None:
    """Raises a TypeError for a parameter that is neither among `fields` nor `more`."""
    for param in params:
        if param not in fields:
            raise TypeError(
                f"{param}={params[param]!r} is not a parameter of {name}: it has {', '.join([*fields, *more])}."
            )


def check_value(name: str, value: Any, default: Any, least: int | None = None) -> None:
    """Raises TypeError or ValueError for a value of another kind than the default, as far as it is known.

    Whole numbers where the default is one, or it is the time limit: of at least `least`, and at least 1 for lengths.
    """
    if is_traced(value) or not isinstance(default, (bool, int, float)):
        return
    known = np.asarray(value)
    if isinstance(default, bool):
        if known.shape or not (known.dtype == bool or value in (0, 1)):
            raise TypeError(f"{name}={value!r}: give True or False.")
        return
    whole = isinstance(default, int) or name == LIMIT
    if known.shape or known.dtype.kind not in "iuf" or (whole and known != np.floor(known)):
        raise TypeError(f"{name}={value!r}: give a {'whole ' if whole else ''}number.")
    least = 1 if name in LENGTHS else least
    if whole and not (-(2**31) if least is None else least) <= known < 2**31:
        raise ValueError(f"{name}={value!r}: give a number of at least {least or 0}, below 2^31.")
    if np.isnan(known):
        raise ValueError(f"{name}={value!r}: give a number.")


def from_gymnax(env: Any, name: str, params: dict[str, Any]) -> Environment:
    """The Environment of a gymnax-style object, with `params` replacing its default parameters."""
    with gymnax_semantics():
        defaults = env.default_params
        check_params(name, params, [field.name for field in dataclasses.fields(defaults)], [])
        for param, value in params.items():
            check_value(param, value, getattr(defaults, param))
        # A whole number in the place of a float would change types in the middle of a step.
        whole = [p for p, x in params.items() if type(x) is int and isinstance(getattr(defaults, p), float)]
        env_params = dataclasses.replace(defaults, **{**params, **{p: float(params[p]) for p in whole}})
        action_space = to_space(env.action_space(env_params), None)
        state_like, observation_like = steady_types(env, env_params, action_space)
        observation_space = to_space(env.observation_space(env_params), observation_like)

    def reset(key: jax.Array) -> tuple[PyTree, PyTree]:
        observation, state = env.reset(key, env_params)
        return cast_like(state, state_like), cast_like(observation, observation_like)

    def step(key: jax.Array, state: PyTree, action: PyTree) -> tuple[PyTree, Step]:
        observation, state, reward, terminated, truncated, info = env.step(key, state, action, env_params)
        observation, final = cast_like((observation, info["final_observation"]), (observation_like,) * 2)
        terminated, truncated = jnp.asarray(terminated, bool), jnp.asarray(truncated, bool)
        # A state that is terminal and past the time limit is terminal: its value is 0.
        outcome = Step(observation, final, jnp.asarray(reward, jnp.float32), terminated, truncated & ~terminated)
        return cast_like(state, state_like), outcome

    compiled = jax.jit(with_gymnax_semantics(reset)), jax.jit(with_gymnax_semantics(step))
    return Environment(name, observation_space, action_space, *compiled, time_limit(env, env_params))


def time_limit(env: Any, params: Any) -> int | None:
    """The limit of gymnax's own truncation rule; an environment may have another rule."""
    rule = getattr(type(env), "is_truncated", None)
    limit = getattr(params, LIMIT, None)
    if rule is not import_module("gymnax.environments.environment").Environment.is_truncated:
        return None
    return None if limit is None or is_traced(limit) else int(limit)


@contextlib.contextmanager
def gymnax_semantics() -> Iterator[None]:
    """The code of gymnax mixes dtypes and ranks, and parts of it fail under x64: trace it as it was written."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def with_gymnax_semantics(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, traced under gymnax's semantics whatever the caller's settings are.

    Evaluating a jaxpr is free of promotion rules and of the default dtype, so the caller's settings
    can neither break the function nor change its numbers.
    """

    def call(*args: Any) -> Any:
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), args)
        with gymnax_semantics():
            jaxpr, shape = jax.make_jaxpr(function, return_shape=True)(*like)
        flat = jaxpr_as_fun(jaxpr)(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), flat)

    return call


def steady_types(env: Any, params: Any, action_space: Space) -> tuple[PyTree, PyTree]:
    """The types of state and observation that a loop can carry: those that `reset` and `step` agree on."""
    key = jax.eval_shape(jax.random.key, jax.ShapeDtypeStruct((), np.uint32))
    action = jax.tree.map(strong, action_space, is_leaf=lambda x: isinstance(x, (Discrete, Box)))
    observation, state = jax.tree.map(strong, jax.eval_shape(env.reset, key, params))
    before = None
    while before != (before := jax.tree.leaves((state, observation))):  # A leaf that is promoted may promote others.
        outcome = jax.eval_shape(env.step, key, state, action, params)
        if len(outcome) != 6:
            raise TypeError(
                f"step of {env!r} returns {len(outcome)} values: gymnax 1.0 environments return "
                "observation, state, reward, terminated, truncated, info."
            )
        try:
            state, observation = jax.tree.map(join_types, (state, observation), (outcome[1], outcome[0]))
        except ValueError as error:
            raise TypeError(f"reset and step of {env!r} return different structures or shapes: {error}") from error
    return state, observation


def strong(x: Any) -> jax.ShapeDtypeStruct:
    """The type of what has a shape and a dtype, without weak types."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def join_types(x: jax.ShapeDtypeStruct, y: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The type that holds both, without weak types."""
    if x.shape != y.shape:
        raise ValueError(f"{x.shape} and {y.shape}")
    return strong(x) if x.dtype == y.dtype else jax.ShapeDtypeStruct(x.shape, jnp.promote_types(x.dtype, y.dtype))


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """`tree` with the dtypes of `like`, none of them weak."""
    return jax.tree.map(lambda x, t: jnp.asarray(x, t.dtype), tree, like)


def to_space(space: Any, like: PyTree) -> Space:
    """A gymnax space as one of ours; the shape and dtype are those that really occur, where `like` tells them."""
    if isinstance(getattr(space, "n", None), (int, np.integer)) and not getattr(space, "shape", ()):
        return Discrete(int(space.n))
    if hasattr(space, "low"):
        shape = tuple(space.shape if like is None else like.shape)
        dtype = np.dtype(space.dtype if like is None else like.dtype)
        low, high = (np.broadcast_to(np.asarray(bound), shape) for bound in (space.low, space.high))
        return Box(low, high, shape, dtype)
    if not hasattr(space, "spaces"):
        raise ValueError(
            f"The space {space} is none of Discrete, Box, Dict and Tuple: wrap the environment so that it has one of"
            " these, such as a Box for several binary or discrete numbers."
        )
    if isinstance(space.spaces, dict):
        return {name: to_space(s, None if like is None else like[name]) for name, s in space.spaces.items()}
    return [to_space(s, None if like is None else like[i]) for i, s in enumerate(space.spaces)]
