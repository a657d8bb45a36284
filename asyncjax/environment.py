"""Environments as pairs of pure functions.

One environment is unbatched: callers `vmap` it. A step resets by itself when the episode ends
(autoreset), and keeps the true last observation, so that a truncated episode can be bootstrapped.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from asyncjax.extras import import_extra
from asyncjax.method import PyTree

PACKAGES = ("gymnasium", "envpool", "brax")  # of environments; their ids are written package:id


class Discrete(NamedTuple):
    """The integers 0 .. num_values - 1, as Int32[]."""

    num_values: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one value."""
        return ()

    @property
    def dtype(self) -> np.dtype:
        """Of one value."""
        return np.dtype(np.int32)


class Box(NamedTuple):
    """Arrays of one shape and dtype with low <= x <= high.

    Attributes:
      low: the smallest value, of shape `shape`.
      high: the largest value, of shape `shape`.
      shape: the shape of one value.
      dtype: the dtype of one value.
    """

    low: np.ndarray
    high: np.ndarray
    shape: tuple[int, ...]
    dtype: np.dtype


Space = Any  # Discrete | Box | a dict or list of spaces


class Step(NamedTuple):
    """What one step of an environment tells.

    Attributes:
      observation: the observation to act on next; after the end of an episode the first one of the new episode.
      final_observation: the true observation after the action, also where the episode ended.
      reward: Float32[].
      terminated: Bool[], the episode ended in a terminal state, whose value is 0.
      truncated: Bool[], the episode was cut by a time limit: bootstrap from `final_observation`.
        Never together with `terminated`.
    """

    observation: PyTree
    final_observation: PyTree
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array


class Environment(NamedTuple):
    """An environment: pure functions of one unbatched state. Anything with these fields is one.

    Its spaces are `Discrete`s and `Box`es of this module, `aj.environment`, and a step returns a `Step`.

    Attributes:
      name: what errors and run directories call it.
      observation_space: Box, Discrete, or a dict of them.
      action_space: Discrete or Box.
      reset: key -> (EnvState, observation).
      step: (key, EnvState, action) -> (EnvState, Step); resets itself when the episode ends. The key is consumed.
        The state that it returns has the structure, shapes and dtypes of the one from `reset`.
      max_steps: the time limit: an episode is truncated after this many steps and for no other reason;
        None where that is not known.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np, asyncjax as aj
      >>> from asyncjax.environment import Box, Discrete, Environment, Step
      >>> def observe(x):
      ...     return x.astype(jnp.float32)[None]
      >>> def reset(key):  # somewhere left of 0
      ...     x = -jax.random.randint(key, (), 1, 4, jnp.int32)
      ...     return x, observe(x)
      >>> def step(key, x, action):  # left or right, until 0 is reached
      ...     x = x + 2 * action - 1
      ...     done, (start, first) = x == 0, reset(key)
      ...     told = Step(jnp.where(done, first, observe(x)), observe(x), jnp.float32(-1), done, jnp.bool_(False))
      ...     return jnp.where(done, start, x), told
      >>> line = Box(np.full(1, -np.inf, np.float32), np.zeros(1, np.float32), (1,), np.dtype(np.float32))
      >>> env = Environment("walk home", line, Discrete(2), reset, step)
      >>> result = aj.emulate(aj.a3c(env, num_envs=2), aj.schedules.round_robin(5, 2), jax.random.key(0))
      >>> result.metrics["loss"].shape
      (5, 1)
    """

    name: str
    observation_space: Space
    action_space: Space
    reset: Callable[[jax.Array], tuple[PyTree, PyTree]]
    step: Callable[[jax.Array, PyTree, PyTree], tuple[PyTree, Step]]
    max_steps: int | None = None


def make_env(env: str | Environment | Any, **params: Any) -> Environment:
    """An environment from an id, from an environment object or a constructor of one, or unchanged from an Environment.

    Those of gymnax and brax are compiled with the method. Those of gymnasium and EnvPool live on the host, see
    `asyncjax.adapters.host_environment`: the engines that step one worker at a time can run them, `emulate` can not.

    Args:
      env: a gymnax id such as "CartPole-v1"; "gymnasium:CartPole-v1", "envpool:Pong-v5" or "brax:ant", for which the
        extra `envs` is needed; an object with gymnax's `reset`, `step` and `default_params`; a function that makes
        a `gymnasium.Env`; or an Environment, which is passed through.
      **params: values that replace the environment's default parameters or, for an id, its constructor's
        arguments. Numbers of gymnax's may be traced arrays. For gymnasium's also `max_steps=None`, where an episode
        is truncated for other reasons than its time limit.

    Returns:
      An Environment. Its arithmetic is 32 bit whether `jax_enable_x64` is on or off.

    Raises:
      ValueError: unknown id, or an id whose data would have to be downloaded.
      ImportError: a package that the id needs is not installed.
      TypeError: a parameter that the environment does not have, or an object that is no environment.

    Example:
      >>> import jax, asyncjax as aj
      >>> env = aj.make_env("CartPole-v1", max_steps_in_episode=50)
      >>> state, observation = env.reset(jax.random.key(0))
      >>> observation.shape, env.action_space.num_values, env.max_steps
      ((4,), 2, 50)
    """
    if isinstance(env, Environment):
        if params:
            raise TypeError(
                f"params={sorted(params)} can not change the ready-made environment {env.name!r}: "
                "give a gymnax id, or set them where the environment is made."
            )
        return env
    from asyncjax.adapters import from_gymnax

    if isinstance(env, str):
        package, colon, env_id = env.partition(":")
        return _adapter(package).from_id(env_id, params) if colon else from_gymnax.from_id(env, params)
    missing = [name for name in ("reset", "step", "default_params") if not hasattr(env, name)]
    if missing and callable(env):
        return _adapter("gymnasium").from_constructor(env, params)
    if missing:
        raise TypeError(
            f"env={env!r} has no {', '.join(missing)}: "
            "give a gymnax id, a gymnax environment, a function that makes a gymnasium.Env or an asyncjax Environment."
        )
    return from_gymnax.from_gymnax(env, str(getattr(env, "name", type(env).__name__)), params)


def _adapter(package: str) -> ModuleType:
    """The adapter to a package of environments, or an error that names the choices or what to install."""
    if package not in PACKAGES:
        raise ValueError(
            f"env='{package}:...': there is no adapter to {package!r}. Write {', '.join(f'{p}:ID' for p in PACKAGES)},"
            " or a gymnax id without a colon."
        )
    return import_extra(f"asyncjax.adapters.from_{package}", f"env='{package}:...' needs {package}", "envs")


def check_step(name: str, told: Any) -> tuple[PyTree, Step]:
    """What an environment's `step` returned; raises TypeError unless it is (state, Step)."""
    pair = isinstance(told, (tuple, list))
    if not pair or len(told) != 2 or not all(hasattr(told[1], field) for field in Step._fields):
        what = f"({', '.join(type(x).__name__ for x in told)})" if pair else f"one {type(told).__name__}"
        raise TypeError(
            f"env={name!r}: its step returned {what}: return (state, Step(observation, final_observation, reward,"
            " terminated, truncated)), with Step of asyncjax.environment."
        )
    return told[0], told[1]


def require_discrete_actions(env: Environment, method: str) -> int:
    """The number of actions, or a ValueError that names what is needed instead."""
    if not isinstance(env.action_space, Discrete):
        raise ValueError(
            f"env={env.name!r} has the action space {env.action_space}, and {method} acts with discrete "
            "actions only: choose an environment whose action space is Discrete, such as CartPole-v1."
        )
    return env.action_space.num_values
