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
from asyncjax.mdp.core import UNROLLED, expected_values
from asyncjax.method import Array
from asyncjax.solvers.model import Model
from asyncjax.solvers.solution import Residual

_CHUNK = 1 << 18  # states of a FunctionMDP backed up at once: their successors exist only that long
_LOOK = 5  # sweeps of a policy between two looks at how much the values still change

Extremes = tuple[jax.Array, jax.Array, jax.Array]  # min change, max change, largest absolute value


class DeviceModel(Model):
    """An MDP whose sweeps JAX compiles.

    With several devices every one holds an equal share of the states' rows, backs them up, and gets
    the others' new values after each sweep. Programs are compiled once for each shape, or each function.

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
        self.function, self.arrays = (None, self._place(mdp, padded)) if isinstance(mdp, MDP) else (mdp, None)
        self.dtype = jnp.zeros(()).dtype if self.arrays is None else self.arrays.reward.dtype
        self.epsilon = float(jnp.finfo(self.dtype).eps)
        self.factor = jnp.asarray(discount, self.dtype)

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
        if self.arrays is not None:
            backup = _best if self.num_actions * self.arrays.successor.shape[-1] <= UNROLLED else _quality
            backed_up = backup(self.arrays, values, self.factor)
            new, self.policy, extremes = _greedy(self._sharding(), backed_up, values)
        else:
            new, self.policy, extremes = _improve(self.function, self._sharding(), self.rows, values, self.factor)
        self.count(1, self.num_actions)
        return Residual(new, *(float(x) for x in jax.device_get(extremes)))

    def evaluate(self, values: jax.Array, sweeps: int, accuracy: float) -> tuple[jax.Array, float, float]:
        """Sweeps of the policy's operator until changes span less than `accuracy`: values, min and max last change."""
        limits = jnp.asarray(sweeps, jnp.int32), jnp.asarray(accuracy, self.dtype)
        chain = self.arrays and _chain(self.arrays, self.rows, self.policy)
        where = self.rows, self.policy
        new, *rest = _evaluate(self.function, self._sharding(), chain, where, values, self.factor, *limits)
        low, high, done = (x.item() for x in jax.device_get(rest))
        self.count(done, 1)
        return new, low, high

    def _sharding(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, P(*axes))

    def _place(self, mdp: MDP, padded: int) -> MDP:
        """Arrays [A, S], [A, S, K], [A, S, K] on their devices, each with its share of the states."""

        def place(array: Array) -> jax.Array:
            array = np.asarray(array)
            array = array.transpose(0, 2, 1) if array.ndim == 3 else array
            extra = np.arange(mdp.num_states, padded) % mdp.num_states
            if extra.size:
                array = np.concatenate([array, array[:, extra]], axis=1)
            return jax.device_put(array, self._sharding(None, "states"))

        return MDP(*map(place, mdp))


def _chunks(num_states: int) -> int:
    return -(-num_states // _CHUNK)


@jax.jit
def _best(rows: MDP, values: jax.Array, discount: jax.Array) -> jax.Array:
    """Complex[S]: the value of the best action, and as imaginary part the first action that has it.

    XLA for CPUs makes one loop over the states of it, which reads the arrays about as fast as memory gives them; two
    results, or a search for the maximum, it would compute in two loops, or badly.
    """
    qualities = [r + discount * expected_values(p, s, values, axis=-1) for r, s, p in zip(*rows, strict=True)]
    best, greedy = qualities[0], jnp.zeros_like(qualities[0])
    for action, quality in enumerate(qualities[1:], start=1):
        greedy = jnp.where(quality > best, action, greedy)
        best = jnp.maximum(best, quality)
    return jax.lax.complex(best, greedy)


@jax.jit
def _quality(rows: MDP, values: jax.Array, discount: jax.Array) -> jax.Array:
    """Float[A, S], for many actions or successors: a program of its own, for the same reason."""
    return rows.reward + discount * expected_values(rows.probability, rows.successor, values, axis=-1)


@partial(jax.jit, static_argnums=0)
def _greedy(
    replicated: NamedSharding, backed_up: jax.Array, values: jax.Array
) -> tuple[jax.Array, jax.Array, Extremes]:
    """(TV, greedy policy, extremes of the change), from what `_best` or `_quality` gives."""
    if jnp.iscomplexobj(backed_up):
        new, policy = backed_up.real, backed_up.imag
    else:
        new, policy = backed_up.max(axis=0), backed_up.argmax(axis=0)
    return _summary(replicated, new, policy.astype(jnp.int32), values)


@partial(jax.jit, static_argnums=(0, 1))
def _improve(
    function: FunctionMDP, replicated: NamedSharding, rows: jax.Array, values: jax.Array, discount: jax.Array
) -> tuple[jax.Array, jax.Array, Extremes]:
    """The same for a function, some states at a time."""

    def backup(states: jax.Array) -> tuple[jax.Array, jax.Array]:
        quality = action_values(function, values, discount, states)
        return quality.max(axis=0), quality.argmax(axis=0).astype(jnp.int32)

    new, policy = _in_chunks(len(values), backup, rows)
    return _summary(replicated, new, policy, values)


def _summary(
    replicated: NamedSharding, new: jax.Array, policy: jax.Array, values: jax.Array
) -> tuple[jax.Array, jax.Array, Extremes]:
    new, policy = (jax.lax.with_sharding_constraint(x, replicated)[: len(values)] for x in (new, policy))
    change = new - values
    return new, policy, (change.min(), change.max(), jnp.abs(new).max())


@jax.jit
def _chain(rows: MDP, states: jax.Array, policy: jax.Array) -> MDP:
    """The policy's rows, once for all sweeps: [S], [S, K], [S, K]."""
    here = jnp.arange(len(states), dtype=jnp.int32)
    return MDP(*(x.at[policy[states], here].get(mode="promise_in_bounds") for x in rows))


@partial(jax.jit, static_argnums=(0, 1))
def _evaluate(
    function: FunctionMDP | None,
    replicated: NamedSharding,
    chain: MDP | None,
    where: tuple[jax.Array, jax.Array],
    values: jax.Array,
    discount: jax.Array,
    sweeps: jax.Array,
    accuracy: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(values, min and max of the last change, sweeps done)."""
    rows, policy = where

    def sweep(old: jax.Array) -> jax.Array:
        if chain is not None:
            new = chain.reward + discount * expected_values(chain.probability, chain.successor, old, axis=-1)
        else:
            assert function is not None
            follow = partial(policy_backup, function)
            new = _in_chunks(len(old), lambda part: follow(part[1], old, discount, part[0]), (rows, policy[rows]))
        return jax.lax.with_sharding_constraint(new, replicated)[: len(old)]

    def goes_on(carry: tuple[jax.Array, jax.Array, jax.Array, jax.Array]) -> jax.Array:
        _, low, high, done = carry
        return (done < sweeps) & ((done == 0) | (high - low >= accuracy))

    def step(carry: tuple[jax.Array, jax.Array, jax.Array, jax.Array]) -> Any:
        old, _, _, done = carry
        some = jnp.minimum(_LOOK, sweeps - done)
        old = jax.lax.fori_loop(1, some, lambda _, values: sweep(values), old)
        new = sweep(old)
        change = new - old
        return new, change.min(), change.max(), done + some

    zero = jnp.zeros((), values.dtype)
    return jax.lax.while_loop(goes_on, step, (values, zero, zero, jnp.zeros((), jnp.int32)))


def _in_chunks(num_states: int, backup: Any, rows: Any) -> Any:
    """Maps over equal runs of states, one after the other."""
    count = _chunks(num_states)
    chunks = jax.tree.map(lambda x: x.reshape(count, -1), rows)
    return jax.tree.map(lambda x: x.reshape(-1), jax.lax.map(backup, chunks))
