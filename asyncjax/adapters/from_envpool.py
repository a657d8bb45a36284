"""The adapter to EnvPool: environments in C++ threads, among them Atari's, as `asyncjax.environment.Environment`s."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import envpool  # pyright: ignore[reportMissingImports] - an extra
import jax
import jax.numpy as jnp
import numpy as np

from asyncjax.adapters.fleet import VectorEnv
from asyncjax.adapters.from_gymnasium import observation_types
from asyncjax.adapters.from_gymnax import to_space
from asyncjax.adapters.host_environment import host_environment
from asyncjax.checks import nearest
from asyncjax.environment import Box, Environment, Step
from asyncjax.method import PyTree


def from_id(env_id: str, params: dict[str, Any]) -> Environment:
    """The environment of an EnvPool id. Atari's are preprocessed as usual: 84 x 84 x 4 grey frames, every fourth one.

    Args:
      env_id: such as "Pong-v5".
      params: EnvPool's options for it, such as `num_threads` (of each worker; 1 unless told), `stack_num`,
        `frame_skip`, `episodic_life`, `reward_clip`, `max_episode_steps`.
    """
    if env_id not in (ids := envpool.list_all_envs()):
        listed = "envpool.list_all_envs() lists them."
        raise ValueError(f"env='envpool:{env_id}' is not an EnvPool id. {nearest(env_id, ids, listed)}")
    params = {"num_threads": 1, **params}
    with quiet():
        try:
            spec = envpool.make_spec(env_id, **params)
        except TypeError as error:
            raise TypeError(f"{params} are not all options of envpool:{env_id}: {error}") from error
        space: Any = spec.observation_space
        observation_space, action_space = to_space(space, observation_types(space)), to_space(spec.action_space, None)

    def begin(seeds: Sequence[int]) -> VectorEnv:
        with quiet():
            pool: Any = envpool.make_gymnasium(env_id, num_envs=len(seeds), seed=list(seeds), **params)
            observation, _ = pool.reset()

        def step(action: np.ndarray) -> Step:
            final, reward, terminated, truncated, _ = pool.step(action)
            ended = np.flatnonzero(terminated | truncated).astype(np.int32)
            observation = final
            if len(ended):  # EnvPool itself would reset these in the next step, without telling from their last one
                observation = jax.tree.map(np.copy, final)
                first, _ = pool.reset(ended)
                jax.tree.map(lambda rows, new: rows.__setitem__(ended, new), observation, first)
            return Step(observation, final, reward, terminated, truncated)

        return VectorEnv(observation, step, pool.close)

    limit = int(spec.config.max_episode_steps)
    env = host_environment(f"envpool:{env_id}", observation_space, action_space, begin, limit)
    return channels_last(env) if is_image(observation_space) else env


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without gymnasium's warnings that the bounds of EnvPool's spaces are rounded to 32 bits."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*precision lowered by casting")
        yield


def is_image(space: Any) -> bool:
    """Whether observations are images, which EnvPool gives with the channels first."""
    return isinstance(space, Box) and len(space.shape) == 3 and space.dtype == np.uint8


def channels_last(env: Environment) -> Environment:
    """The environment with images as convolutions take them, [H, W, C] from [C, H, W]; turned on the device."""
    turn = lambda x: jnp.moveaxis(x, 0, -1)  # noqa: E731
    space = env.observation_space
    low, high = (np.moveaxis(bound, 0, -1) for bound in (space.low, space.high))

    def reset(key: jax.Array) -> tuple[PyTree, PyTree]:
        state, observation = env.reset(key)
        return state, turn(observation)

    @functools.wraps(env.step)
    def step(key: jax.Array, state: PyTree, action: PyTree) -> tuple[PyTree, Step]:
        state, outcome = env.step(key, state, action)
        final = turn(outcome.final_observation)
        return state, outcome._replace(observation=turn(outcome.observation), final_observation=final)

    return env._replace(observation_space=Box(low, high, low.shape, space.dtype), reset=reset, step=step)
