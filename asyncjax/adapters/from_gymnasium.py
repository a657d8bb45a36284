"""The adapter to gymnasium: its vector environments as `asyncjax.environment.Environment`s on the host."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from asyncjax.adapters.fleet import VectorEnv
from asyncjax.adapters.from_gymnax import to_space
from asyncjax.adapters.host_environment import host_environment
from asyncjax.environment import Environment, Space, Step
from asyncjax.method import PyTree

NARROW = {"float64": np.float32, "int64": np.int32, "uint64": np.uint32}


def from_id(env_id: str, params: dict[str, Any]) -> Environment:
    """The environment of a gymnasium id.

    Args:
      env_id: as `gymnasium.make` takes it.
      params: its further arguments, `vectorization_mode`: "sync" (the default) or "async", a process for each, and
        `max_steps`: None for an environment that truncates for other reasons than its time limit.
    """
    params = dict(params)
    mode = params.pop("vectorization_mode", "sync")
    if mode not in ("sync", "async"):
        raise ValueError(f"vectorization_mode={mode!r}: choose 'sync' or 'async', which reset in the step that ends.")
    kwargs = {"autoreset_mode": AutoresetMode.SAME_STEP} | ({"context": "spawn"} if mode == "async" else {})
    try:
        spec = gymnasium.spec(env_id)
    except gymnasium.error.Error as error:
        raise ValueError(f"env='gymnasium:{env_id}' is not a gymnasium id. {error}") from error
    limit = params.pop("max_steps", params.get("max_episode_steps", spec.max_episode_steps))
    one = make_one(env_id, spec, params)
    make = functools.partial(gymnasium.make_vec, spec, vectorization_mode=mode, vector_kwargs=kwargs, **params)
    return from_vector(f"gymnasium:{env_id}", make, one, limit)


def make_one(env_id: str, spec: Any, params: dict[str, Any]) -> Any:
    """One environment, or gymnasium's error about the parameters in a sentence."""
    try:
        return gymnasium.make(spec, **params)
    except Exception as error:  # of any kind: assertions and whatever the environment's own code raises
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown and unknown[1] in params:
            raise TypeError(
                f"{unknown[1]}={params[unknown[1]]!r} is not a parameter of gymnasium:{env_id}: give those of the"
                " environment's class and of gymnasium.make, such as max_episode_steps."
            ) from error
        given = f" with {params}" if params else ""
        raise ValueError(f"env='gymnasium:{env_id}' can not be made{given}. gymnasium says: {error}") from error


def from_constructor(function: Callable[..., Any], params: dict[str, Any]) -> Environment:
    """The environment of a function that returns a `gymnasium.Env`.

    Args:
      function: with `params` it makes one environment.
      params: its arguments; where it takes no other argument of this name also `max_steps=None`, see `from_id`.
    """
    params = dict(params)
    denied = params.get("max_steps", ...) is None and not _takes(function, "max_steps")
    if denied:
        del params["max_steps"]
    construct = functools.partial(function, **params)

    def make(num_envs: int) -> Any:
        return SyncVectorEnv([construct] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)

    one = construct()
    if not isinstance(one, gymnasium.Env):
        raise TypeError(f"env={function!r} made {one!r}, which is no gymnasium.Env: give a function that makes one.")
    return from_vector(str(one), make, one, None if denied else getattr(one.spec, "max_episode_steps", None))


def _takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has an argument of this name, as those do that take any."""
    parameters = inspect.signature(function).parameters.values()
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)


def from_vector(name: str, make: Callable[[int], Any], one: Any, max_steps: int | None = None) -> Environment:
    """The environment of a function that makes vector environments.

    Args:
      name: what errors call it.
      make: N -> a `gymnasium.vector.VectorEnv` of N environments whose autoreset mode is SAME_STEP.
      one: one such environment, which says the spaces, and is closed.
      max_steps: the time limit, where episodes are truncated by it and by nothing else; below 0 there is none, as
        gymnasium writes it.
    """
    if max_steps is not None and max_steps < 0:
        max_steps = None
    spaces = one.observation_space, one.action_space
    observation_space, action_space = to_space(spaces[0], observation_types(spaces[0])), to_space(spaces[1], None)
    one.close()

    def begin(seeds: Sequence[int]) -> VectorEnv:
        vector = make(len(seeds))
        if getattr(vector.metadata.get("autoreset_mode"), "name", None) != "SAME_STEP":
            raise ValueError(
                f"{name!r} has the autoreset mode {vector.metadata.get('autoreset_mode')}: make it with"
                " autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP, which tells the last observation."
            )

        def step(action: np.ndarray) -> Step:
            observation, reward, terminated, truncated, info = vector.step(shifted(action, spaces[1], 1))
            final = last_observation(observation, info, np.flatnonzero(terminated | truncated))
            observation, final = (shifted(x, spaces[0], -1) for x in (observation, final))
            return Step(observation, final, reward, terminated, truncated)

        return VectorEnv(shifted(vector.reset(seed=list(seeds))[0], spaces[0], -1), step, vector.close)

    return host_environment(name, observation_space, action_space, begin, max_steps)


def last_observation(observation: PyTree, info: dict[str, Any], ended: np.ndarray) -> PyTree:
    """The observations before the resets: `observation` but for the environments whose episode ended."""
    if not len(ended):
        return observation
    final = jax.tree.map(np.copy, observation)
    for i in ended:
        for rows, true in zip(jax.tree.leaves(final), jax.tree.leaves(info["final_obs"][i]), strict=True):
            rows[i] = true
    return final


def shifted(value: PyTree, space: Any, sign: int) -> PyTree:
    """Integers that begin at 0 as those of a gymnasium space (sign 1), which may begin elsewhere, or back (-1)."""
    if isinstance(space, gymnasium.spaces.Dict):
        return {name: shifted(value[name], part, sign) for name, part in space.spaces.items()}
    if isinstance(space, gymnasium.spaces.Tuple):
        return tuple(shifted(x, part, sign) for x, part in zip(value, space.spaces, strict=True))
    start = sign * int(space.start) if isinstance(space, gymnasium.spaces.Discrete) else 0
    return value + start if start else value


def observation_types(space: Any) -> Space:
    """The shapes and dtypes of a gymnasium space's values in 32 bit arithmetic."""
    parts = getattr(space, "spaces", None)
    if parts is not None:
        return (
            {k: observation_types(s) for k, s in parts.items()}
            if isinstance(parts, dict)
            else [observation_types(s) for s in parts]
        )
    if space.shape is None or space.dtype is None:
        raise ValueError(f"The observation space {space} is not made of arrays: wrap the environment so that it is.")
    return jax.ShapeDtypeStruct(space.shape, NARROW.get(space.dtype.name, space.dtype))
