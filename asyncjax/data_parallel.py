"""Learners on devices of their own, and batches divided over several of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from asyncjax.checks import check_devices
from asyncjax.method import Device, Method, PyTree

Divide = Callable[[PyTree], PyTree]
_divide: ContextVar[Divide] = ContextVar("divide", default=lambda rows: rows)


def divide_rows() -> Divide:
    """What divides rows [B, ...] over the learner's devices; on one device it does nothing.

    For an update that gathers rows from all over its batch, such as minibatches: XLA would give all of them to every
    device. It holds where it is called, in a method's `apply`; functions that JAX may cache get it as an argument.
    """
    return _divide.get()


class Placement(NamedTuple):
    """Where `apply` runs.

    Attributes:
      devices: one, or several over which the messages of a group are divided.
      axis: of a message's leaves, the one that is divided; the group has an axis before it.
    """

    devices: tuple[Device, ...]
    axis: int = 1

    def home(self) -> NamedSharding:
        """Where the buffer lies: a copy on each device."""
        return NamedSharding(Mesh(np.array(self.devices), ("devices",)), PartitionSpec())

    def divide(self, messages: PyTree) -> PyTree:
        """Messages [G, ...], divided over the devices: by messages as far as G allows, else along `axis`.

        Whole messages first, because methods line the rows of all messages up, message by message.
        """
        num_devices = len(self.devices)
        leaves = jax.tree.leaves(messages)
        by_message = math.gcd(leaves[0].shape[0], num_devices)
        by_row = num_devices // by_message
        for leaf in leaves:
            size = leaf.shape[self.axis + 1] if leaf.ndim > self.axis + 1 else None
            if by_row > 1 and (size is None or size % by_row):
                raise ValueError(
                    f"A message's leaf of shape {leaf.shape[1:]} can not be divided by {by_row} along axis={self.axis}"
                    f" (groups of {leaf.shape[0]}, {num_devices} devices). Trajectories have their environments on"
                    f" axis 1: make num_envs a multiple of {by_row}, use fewer devices or another group_size; gradients"
                    " can not be divided."
                )
        mesh = Mesh(np.array(self.devices).reshape(by_message, by_row), ("messages", "rows"))
        spec = PartitionSpec("messages", *([None] * self.axis + ["rows"] if by_row > 1 else []))
        return jax.lax.with_sharding_constraint(messages, NamedSharding(mesh, spec))


@contextlib.contextmanager
def divided(messages: PyTree, placement: Placement | None) -> Iterator[PyTree]:
    """The messages of a group, divided over the learner's devices if there are several, as `divide_rows` then does."""
    if placement is None or len(placement.devices) == 1:
        yield messages
        return
    token = _divide.set(partial(_divide_rows, len(placement.devices)))
    try:
        yield placement.divide(messages)
    finally:
        _divide.reset(token)


def _divide_rows(num_devices: int, rows: PyTree) -> PyTree:
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    if num_rows % num_devices:
        raise ValueError(
            f"Minibatches of {num_rows} segments can not be divided over {num_devices} devices: choose fewer"
            " minibatches or devices, more environments or larger groups, so that each has a multiple of that."
        )
    mesh = AbstractMesh((num_devices,), ("rows",), axis_types=(AxisType.Auto,))
    return jax.lax.with_sharding_constraint(rows, NamedSharding(mesh, PartitionSpec("rows")))


def data_parallel(method: Method, devices: Sequence[Device], *, axis: int = 1) -> Method:
    """The same method with a learner on these devices, which share the batch of every update among them.

    Each device computes the gradient of its part of a group's trajectories, and the sum goes on:
    grad L(w; batch) = sum_d grad L(w; batch_d) / D. That is equal to the method on one device up to the rounding of
    sums, and `replay` of a run on threads is still bit for bit.

    `run_threads` and `replay` take notice; the workers' devices are `run_threads`' argument. `emulate` repeats every
    update on each of its devices, as always. On Ray the learner is in the calling process, like the buffer.

    Args:
      method: with one device any method; with several one whose messages are data: `impala`, `ppo`. A minibatch of
        `ppo` has rows from all devices, and is divided anew.
      devices: D of this process; one device moves the learner there and divides nothing.
      axis: of a message's leaves, which is divided; 1 has the environments of trajectories, [T, N, ...].

    Returns:
      A Method. With D > 1 the group size or the number of environments, or both together, must be multiples of D, and
      so must a minibatch's segments; otherwise engines raise a ValueError.

    Raises:
      ValueError: no devices, one of them twice, or a negative axis.

    Example:
      >>> import jax, asyncjax as aj
      >>> actors, learners = jax.devices()[:1], jax.devices()[-1:]  # the same one, where there is only one
      >>> method = aj.data_parallel(aj.impala("CartPole-v1", num_envs=4, unroll_length=5), learners)
      >>> options = {"num_workers": 2, "num_updates": 4}
      >>> result, schedule = aj.run_threads(method, jax.random.key(0), devices=actors, **options)
      >>> result.metrics["kl"].shape
      (4,)

    Source: actors on some devices and the learner on others are the Sebulba architecture of Hessel et al., Podracer
    architectures for scalable reinforcement learning (2021). There each device of the learner has an optimizer of its
    own that sees the mean gradient; here XLA divides one program.
    """
    check_devices(devices, distinct=True)
    if axis < 0:
        raise ValueError(f"axis={axis}: count the axes of a message's leaves from 0.")
    return method._replace(placement=Placement(tuple(devices), axis))
