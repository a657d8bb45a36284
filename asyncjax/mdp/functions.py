"""Problems written as functions of state and action: too large for arrays if you like, tabulated if you do not."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from asyncjax.checks import (
    check_choice,
    check_counts,
    check_int32,
    check_least,
    check_positive,
    check_whole,
)
from asyncjax.mdp.core import FunctionMDP

Issue = Literal["lifo", "fifo"]


def mountain_car(num_positions: int = 51, num_velocities: int = 41) -> FunctionMDP:
    """The mountain car on a grid of positions and velocities: -1 a step until the car is on the right hill.

    v <- v + 0.001 (a - 1) - 0.0025 cos(3 x), then x <- x + v, both clipped to the grid; at the left wall v becomes 0.

    From a grid point the car arrives between four others and goes to each with its weight in the bilinear
    interpolation, so values are those of an interpolated value function.

    Args:
      num_positions: grid points from -1.2 to 0.6; those from 0.5 on are the goal.
      num_velocities: grid points from -0.07 to 0.07.

    Returns:
      A FunctionMDP with S = num_positions num_velocities states, A = 3 actions (left, none, right) and K = 4.

    Raises:
      TypeError: numbers of grid points that are no whole numbers.
      ValueError: fewer than 2 of either, or 2^31 states or more.

    Example:
      >>> import asyncjax as aj
      >>> mdp = aj.mdp.mountain_car(num_positions=5, num_velocities=3)
      >>> mdp.num_states, mdp.num_actions, mdp.num_successors
      (15, 3, 4)

    Source: Moore (1990); the constants of Gymnasium's MountainCar-v0. Discretization: Munos and Moore (2002).
    """
    check_least(2, num_positions=num_positions, num_velocities=num_velocities)
    num_states = _num_states(
        int(num_positions) * int(num_velocities), num_positions=num_positions, num_velocities=num_velocities
    )

    def transition(state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        row, column = jnp.divmod(state, num_velocities)
        position = -1.2 + 1.8 * row.astype(float) / (num_positions - 1)
        velocity = -0.07 + 0.14 * column.astype(float) / (num_velocities - 1)
        ended = 18 * row >= 17 * (num_positions - 1)  # position >= 0.5, without rounding
        velocity = velocity + 0.001 * (action.astype(float) - 1.0) - 0.0025 * jnp.cos(3.0 * position)
        velocity = jnp.clip(velocity, -0.07, 0.07)
        position = jnp.clip(position + velocity, -1.2, 0.6)
        velocity = jnp.where((position <= -1.2) & (velocity < 0.0), 0.0, velocity)  # the left wall stops it
        rows, row_weights = _between((position + 1.2) / 1.8 * (num_positions - 1), num_positions)
        columns, column_weights = _between((velocity + 0.07) / 0.14 * (num_velocities - 1), num_velocities)
        successor = (rows[:, None] * num_velocities + columns[None, :]).ravel()
        probability = (row_weights[:, None] * column_weights[None, :]).ravel()
        return jnp.where(ended, 0.0, -1.0), successor, jnp.where(ended, 0.0, probability)

    return FunctionMDP(num_states, 3, transition)


def _num_states(number: int, **arguments: int) -> int:
    """The number of states; raises ValueError, naming the arguments that it follows from, if int32 can not hold it."""
    if number >= 2**31:
        names = ", ".join(f"{name}={value}" for name, value in arguments.items())
        raise ValueError(
            f"{names}: these make {number} states, of which int32 can number {2**31 - 1}; use smaller ones."
        )
    return number


def _between(x: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """The grid points on both sides of a coordinate, and their weights."""
    below = jnp.clip(jnp.floor(x).astype(jnp.int32), 0, size - 2)
    weight = jnp.clip(x - below.astype(x.dtype), 0.0, 1.0)
    return jnp.stack([below, below + 1]), jnp.stack([1.0 - weight, weight])


def perishable_inventory(
    useful_life: int = 2,
    lead_time: int = 1,
    max_order: int = 10,
    max_demand: int = 100,
    demand_mean: float = 4.0,
    demand_variation: float = 0.5,
    order_cost: float = 3.0,
    shortage_cost: float = 5.0,
    wastage_cost: float = 7.0,
    holding_cost: float = 1.0,
    issue: Issue = "lifo",
) -> FunctionMDP:
    """One product that perishes: order daily, sell the newest or the oldest first, throw away what is too old.

    A state is (orders on their way, stock by age, newest first), each from 0 to max_order: (max_order + 1) to the
    power of (lead_time - 1 + useful_life) states. The reward is minus the expected cost of the day.

    Args:
      useful_life: days that a unit can be sold, m.
      lead_time: days from order to arrival, L.
      max_order: the largest order; also the number of actions less one.
      max_demand: demand above it counts as it.
      demand_mean: of the gamma distribution that is rounded to a day's demand.
      demand_variation: its coefficient of variation.
      order_cost: per unit ordered.
      shortage_cost: per unit of demand not met.
      wastage_cost: per unit thrown away.
      holding_cost: per unit kept for the next day.
      issue: which units are sold first.

    Returns:
      A FunctionMDP with max_order + 1 actions and K = max_demand + 1.

    Raises:
      TypeError: counts of days, orders or demands that are no whole numbers.
      ValueError: useful_life or lead_time below 1, max_order or max_demand below 0, a mean or a variation of the demand
        that is not positive, an issue that is neither "lifo" nor "fifo", or 2^31 states or more.

    Example:
      >>> import asyncjax as aj
      >>> mdp = aj.mdp.perishable_inventory(useful_life=2, lead_time=1, max_order=10)
      >>> mdp.num_states, mdp.num_actions  # 11^(1 - 1 + 2)
      (121, 11)

    Source: De Moor, Gijsbrechts and Boute (2022); details as in the package mdpax.
    """
    check_counts(useful_life=useful_life, lead_time=lead_time)
    check_least(0, max_order=max_order, max_demand=max_demand)
    check_positive(demand_mean=demand_mean, demand_variation=demand_variation)
    check_choice(get_args(Issue), issue=issue)
    base, places = int(max_order) + 1, int(lead_time) - 1 + int(useful_life)
    sizes = {"useful_life": useful_life, "lead_time": lead_time, "max_order": max_order}
    num_states = _num_states(base**places, **sizes)
    size = base ** np.arange(places - 1, -1, -1, dtype=np.int32)  # of a digit

    def transition(state: jax.Array, order: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        digits = (state.astype(jnp.int32) // size) % base
        pipeline, stock = jnp.append(order.astype(jnp.int32), digits[: lead_time - 1]), digits[lead_time - 1 :]
        demand = jnp.arange(max_demand + 1, dtype=jnp.int32)[:, None]
        newer = stock if issue == "lifo" else stock[::-1]  # in the order in which it is sold
        before = jnp.cumsum(newer, dtype=jnp.int32) - newer
        left = newer[None] - jnp.clip(demand - before[None], 0, newer[None])
        left = left if issue == "lifo" else left[:, ::-1]
        short = jnp.maximum(demand[:, 0] - stock.sum(dtype=jnp.int32), 0)
        counts = jnp.stack([short, left[:, -1], left[:, :-1].sum(axis=1, dtype=jnp.int32)]).astype(float)
        cost = jnp.array([shortage_cost, wastage_cost, holding_cost], float) @ counts
        arriving = jnp.broadcast_to(pipeline[None], (max_demand + 1, lead_time))
        after = jnp.concatenate([arriving, left[:, :-1]], axis=1)
        chance = demand_chances()
        successor = (after * size[None]).sum(axis=1, dtype=jnp.int32)
        return -(order_cost * order.astype(float) + (chance * cost).sum()), successor, chance

    def demand_chances() -> jax.Array:
        shape = 1.0 / demand_variation**2
        edges = jnp.arange(max_demand, dtype=float) + 0.5
        below = jax.scipy.special.gammainc(shape, edges * shape / demand_mean)
        return jnp.diff(jnp.concatenate([jnp.zeros(1), below, jnp.ones(1)]))

    return FunctionMDP(num_states, base, transition)


def hashed_garnet(seed: int, num_states: int, num_actions: int, num_successors: int) -> FunctionMDP:
    """A random MDP that takes no memory: successors, probabilities and rewards are hashes of state and action.

    Unlike those of `garnet`, successors may coincide, probabilities are uniform numbers divided by their sum, and
    rewards are uniform in [-1, 1]. Beyond 2^32 / (2 K + 1) pairs, rows repeat.

    Args:
      seed: another one makes another problem; from 0 to 2^32 - 1.
      num_states: S.
      num_actions: A.
      num_successors: K.

    Returns:
      A FunctionMDP.

    Raises:
      TypeError: a seed or sizes that are no whole numbers.
      ValueError: a seed below 0 or from 2^32 on, sizes below 1 or from 2^31 on.

    Example:
      >>> import asyncjax as aj
      >>> aj.mdp.hashed_garnet(0, 10_000_000, 4, 5).num_successors
      5
    """
    check_whole(seed=seed)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}: use one of 0 to {2**32 - 1}.")
    sizes = {"num_states": num_states, "num_actions": num_actions, "num_successors": num_successors}
    check_counts(**sizes)
    check_int32(**sizes)
    count = 2 * num_successors + 1

    def transition(state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        pair = state.astype(jnp.uint32) * jnp.uint32(num_actions) + action.astype(jnp.uint32)
        bits = _hash(_hash(pair * jnp.uint32(count) + jnp.arange(count, dtype=jnp.uint32)) ^ jnp.uint32(seed))
        uniform = ((bits >> 8).astype(float) + 0.5) * 2.0**-24
        weight = uniform[:num_successors]
        successor = (bits[num_successors:-1] % jnp.uint32(num_states)).astype(jnp.int32)
        return 2.0 * uniform[-1] - 1.0, successor, weight / weight.sum()

    return FunctionMDP(num_states, num_actions, transition)


def _hash(x: jax.Array) -> jax.Array:
    """UInt32 -> UInt32, one to one; constants of Wellons' lowbias32."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
