"""Sweeps as compiled JAX programs: on accelerators, on several devices, for problems never written down."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from asyncjax.mdp import MDP, AnyMDP, FunctionMDP, action_values, policy_backup
from asyncjax.method import Array
from asyncjax.solvers.model import Model
from asyncjax.solvers.solution import Residual

_CHUNK = 1 << 18  # states of a FunctionMDP backed up at once: their successors exist only that long


class DeviceModel(Model):
    """An MDP whose sweeps JAX compiles.

    With several devices every one holds an equal share of the states' rows, backs them up, and gets
    the others' new values after each sweep.

    Args:
      mdp: the problem; arrays, or a function of state and action.
      discount: at most 1.
      devices: where; the default device without it.
    """

    def __init__(self, mdp: AnyMDP, discount: float, devices: Sequence[Any] | None = None) -> None:
        super().__init__(mdp, discount)
        self.devices = devices or [next(iter(jnp.zeros(()).devices()))]
        self.mesh = Mesh(np.array(self.devices), ("states",))
        count = len(self.devices) if isinstance(mdp, MDP) else _chunks(mdp.num_states) * len(self.devices)
        padded = -(-mdp.num_states // count) * count
        # What fills the last share up are copies of real states, so that they leave minima and maxima alone.
        self.rows = jax.device_put(np.arange(padded, dtype=np.int32) % mdp.num_states, self._sharding("states"))
        function, self.arrays = (None, self._place(mdp, padded)) if isinstance(mdp, MDP) else (mdp, None)
        self.dtype = jnp.zeros(()).dtype if self.arrays is None else self.arrays.reward.dtype
        self.epsilon = float(jnp.finfo(self.dtype).eps)
        self.factor = jnp.asarray(discount, self.dtype)
        self._improve = jax.jit(partial(_improve, function, self._sharding()))
        self._evaluate = jax.jit(partial(_evaluate, function, self._sharding()))

    def start(self, values: np.ndarray) -> jax.Array:
        """The values on every device."""
        return jax.device_put(jnp.asarray(values, self.dtype), self._sharding())

    def finish(self, values: jax.Array) -> np.ndarray:
        """As NumPy arrays."""
        return np.asarray(values)

    def compile(self) -> None:
        """Compiles both sweeps by doing them once."""
        counts = self.backups, self.sweeps, self.updates
        residual = self.improve(self.start(np.zeros(self.num_states)))
        self.evaluate(jnp.asarray(residual.values), 1, 0.0)
        self.backups, self.sweeps, self.updates = counts

    def improve(self, values: jax.Array) -> Residual:
        """TV of all states, and the greedy policy, which `evaluate` then follows."""
        new, self.policy, summary = self._improve(self.arrays, self.rows, values, self.factor)
        self.count(1, self.num_actions)
        return Residual(new, *(float(x) for x in jax.device_get(summary)))

    def evaluate(self, values: jax.Array, sweeps: int, accuracy: float) -> tuple[jax.Array, float, float]:
        """Sweeps of the policy's operator until changes span less than `accuracy`: values, min and max last change."""
        limits = jnp.asarray(sweeps, jnp.int32), jnp.asarray(accuracy, self.dtype)
        new, *rest = self._evaluate(self.arrays, self.rows, self.policy, values, self.factor, *limits)
        low, high, done = (x.item() for x in jax.device_get(rest))
        self.count(done, 1)
        return new, low, high

    def _sharding(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, P(*axes))

    def _place(self, mdp: MDP, padded: int) -> MDP:
        """The arrays on their devices, each with its share of the last axis."""

        def place(array: Array) -> jax.Array:
            extra = np.arange(mdp.num_states, padded) % mdp.num_states
            if extra.size:
                array = np.concatenate([np.asarray(array), np.asarray(array)[..., extra]], axis=-1)
            return jax.device_put(jnp.asarray(array), self._sharding(*[None] * (np.ndim(array) - 1), "states"))

        return MDP(*map(place, mdp))


def _chunks(num_states: int) -> int:
    return -(-num_states // _CHUNK)


def _improve(
    function: FunctionMDP | None,
    replicated: NamedSharding,
    arrays: MDP | None,
    rows: jax.Array,
    values: jax.Array,
    discount: jax.Array,
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
    """(TV, greedy policy, (min change, max change, largest absolute value))."""

    def backup(states: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        quality = action_values(_either(function, arrays), values, discount, states)
        return quality.max(axis=0), quality.argmax(axis=0).astype(jnp.int32)

    new, policy = backup(None) if function is None else _in_chunks(len(values), backup, rows)
    new, policy = (jax.lax.with_sharding_constraint(x, replicated)[: len(values)] for x in (new, policy))
    change = new - values
    return new, policy, (change.min(), change.max(), jnp.abs(new).max())


def _evaluate(
    function: FunctionMDP | None,
    replicated: NamedSharding,
    arrays: MDP | None,
    rows: jax.Array,
    policy: jax.Array,
    values: jax.Array,
    discount: jax.Array,
    sweeps: jax.Array,
    accuracy: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(values, min and max of the last change, sweeps done)."""
    actions = policy[rows]
    if arrays is not None:  # the policy's rows are gathered once for all sweeps
        here = jnp.arange(len(rows), dtype=jnp.int32)
        reward, successor = arrays.reward[actions, here], arrays.successor[actions, :, here].T
        probability = arrays.probability[actions, :, here].T
        arrays = MDP(reward[None], successor[None], probability[None])

    def sweep(old: jax.Array) -> jax.Array:
        if function is not None:
            follow = partial(policy_backup, function)
            new = _in_chunks(len(old), lambda part: follow(part[1], old, discount, part[0]), (rows, actions))
        else:
            new = action_values(_either(function, arrays), old, discount)[0]
        return jax.lax.with_sharding_constraint(new, replicated)[: len(old)]

    def goes_on(carry: tuple[jax.Array, jax.Array, jax.Array, jax.Array]) -> jax.Array:
        _, low, high, done = carry
        return (done < sweeps) & ((done == 0) | (high - low >= accuracy))

    def step(carry: tuple[jax.Array, jax.Array, jax.Array, jax.Array]) -> Any:
        old, _, _, done = carry
        new = sweep(old)
        change = new - old
        return new, change.min(), change.max(), done + 1

    zero = jnp.zeros((), values.dtype)
    return jax.lax.while_loop(goes_on, step, (values, zero, zero, jnp.zeros((), jnp.int32)))


def _either(function: FunctionMDP | None, arrays: MDP | None) -> AnyMDP:
    mdp = function if arrays is None else arrays
    assert mdp is not None
    return mdp


def _in_chunks(num_states: int, backup: Any, rows: Any) -> Any:
    """Maps over equal runs of states, one after the other."""
    count = _chunks(num_states)
    chunks = jax.tree.map(lambda x: x.reshape(count, -1), rows)
    return jax.tree.map(lambda x: x.reshape(-1), jax.lax.map(backup, chunks))
