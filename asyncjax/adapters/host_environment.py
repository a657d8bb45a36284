"""Environments that live on the host, behind the protocol of `asyncjax.environment`: compiled programs call them back.

On the device the state of such an environment is a ticket: which vector environment it belongs to, its place in it, the
seed it began with and the steps made since. Under `vmap` all environments of a batch are one vector environment, so a
step of a batch is one call. The host's side is in `asyncjax.adapters.fleet`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asyncjax.adapters.fleet import Fleet, VectorEnv
from asyncjax.environment import Environment, Space, Step
from asyncjax.method import PyTree
from asyncjax.traced import equations

MARK = "step on the host of "  # the jitted step's name says in every program that the host is called


def host_environment(
    name: str,
    observation_space: Space,
    action_space: Space,
    make: Callable[[Sequence[int]], VectorEnv],
    max_steps: int | None = None,
) -> Environment:
    """An Environment whose `reset` and `step` call the host.

    A run on it is repeated by `replay` bit for bit where the environments follow from their seeds. A checkpoint does
    not hold them: a run that continues in another process, or from before the newest step, warns and begins new
    episodes, seeded by the old seeds and the step; those that were cut off count as truncated, with reward 0.

    Args:
      name: what errors call it.
      observation_space: of one environment.
      action_space: of one environment.
      make: N seeds in [0, 2^31 - 1) -> N environments, each begun with its seed.
      max_steps: the time limit, where episodes are truncated by it and by nothing else.

    Returns:
      An Environment for the engines that step one worker at a time; `emulate` refuses it.

    Example:
      >>> import jax, numpy as np
      >>> from asyncjax.adapters.fleet import VectorEnv
      >>> from asyncjax.adapters.host_environment import host_environment
      >>> from asyncjax.environment import Box, Discrete, Step
      >>> def make(seeds):
      ...     here = np.array(seeds, np.float32)[:, None]
      ...     stay = lambda action: Step(here, here, action.astype(np.float32), action > 1, action < 0)
      ...     return VectorEnv(here, stay, lambda: None)
      >>> real = Box(np.float32(0), np.float32(2**31), (1,), np.dtype(np.float32))
      >>> env = host_environment("stay", real, Discrete(3), make)
      >>> state, observation = jax.vmap(env.reset)(jax.random.split(jax.random.key(0), 3))
      >>> jax.vmap(env.step)(jax.random.split(jax.random.key(1), 3), state, np.arange(3, dtype=np.int32))[1].terminated
      Array([False, False,  True], dtype=bool)
    """
    observation_like = types_of(observation_space)
    fleet = Fleet(name, make, observation_like, max_steps)
    ticket_like = jax.ShapeDtypeStruct((4,), np.uint32)
    told: Any = [jax.ShapeDtypeStruct((), dtype) for dtype in (np.float32, np.bool_, np.bool_)]
    step_like = Step(observation_like, observation_like, *told)

    def reset(key: jax.Array) -> tuple[jax.Array, PyTree]:
        seed = jax.random.bits(key, (), jnp.uint32)
        return jax.pure_callback(fleet.reset, (ticket_like, observation_like), seed, vmap_method="broadcast_all")

    def step(key: jax.Array, state: jax.Array, action: PyTree) -> tuple[jax.Array, Step]:
        del key  # the environments on the host have random numbers of their own
        # The new ticket comes from the host: so no step can be called before the one that precedes it.
        return jax.pure_callback(fleet.step, (ticket_like, step_like), state, action, vmap_method="broadcast_all")

    step.__name__ = MARK + name
    return Environment(name, observation_space, action_space, reset, jax.jit(step), max_steps)


def types_of(space: Space) -> PyTree:
    """The shapes and dtypes of a space's values."""
    if isinstance(space, dict):
        return {name: types_of(part) for name, part in space.items()}
    if isinstance(space, list):
        return tuple(types_of(part) for part in space)
    return jax.ShapeDtypeStruct(space.shape, space.dtype)


def lives_on_host(jaxpr: Any) -> str | None:
    """The name of a host environment that is stepped in what `jax.make_jaxpr` traced, or None."""
    names = (str(equation.params.get("name")) for equation in equations(jaxpr))
    return next((name.removeprefix(MARK) for name in names if name.startswith(MARK)), None)


def check_compiled(env: Environment) -> None:
    """Raises ValueError for an environment from here, before anything is made for a run that `emulate` would refuse."""
    if getattr(env.step, "__name__", "").startswith(MARK):
        raise not_emulated(env.name)


def not_emulated(name: str) -> ValueError:
    """The error of `emulate` for a host environment."""
    return ValueError(
        f"env={name!r} lives on the host, where a step can not be undone, and emulate may compute a message twice: use"
        " run_threads, replay or run_ray, or an environment that is compiled."
    )
