"""Problems of the literature, and small ones whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asyncjax.checks import check_counts, check_least
from asyncjax.mdp.check import check_chances
from asyncjax.mdp.convert import from_arrays, from_rows
from asyncjax.mdp.core import MDP


def two_state() -> MDP:
    """Two states, two actions; at discount .9 the optimal values are (42.44186, 36.04651).

    Example:
      >>> import asyncjax as aj
      >>> aj.mdp.exact_values(aj.mdp.two_state(), 0.9).round(5)
      array([42.44186, 36.04651])
    """
    return from_arrays([[[0.5, 0.5], [0.8, 0.2]], [[0.0, 1.0], [0.1, 0.9]]], [[5.0, -1.0], [10.0, 2.0]])


def forest(num_states: int = 3, r1: float = 4.0, r2: float = 2.0, p: float = 0.1) -> MDP:
    """Forest management: wait (action 0) or cut (1); a fire burns a waiting forest down with probability p.

    Args:
      num_states: age classes of the forest.
      r1: the reward for waiting in the oldest class.
      r2: the reward for cutting in the oldest class; in between it is 1, in the youngest 0.
      p: the probability of a fire.

    Returns:
      An MDP with two actions.

    Raises:
      TypeError: a number of states that is no whole number.
      ValueError: fewer than 2 states, or a probability that is not from 0 to 1.

    Example:
      >>> import asyncjax as aj
      >>> aj.mdp.exact_values(aj.mdp.forest(3), 0.9).round(3)
      array([26.244, 29.484, 33.484])

    Source: the example problem of the MDPtoolbox packages.
    """
    check_chances(p=p)
    check_least(2, num_states=num_states)
    age = np.arange(num_states)
    reward = np.zeros((2, num_states))
    reward[0, -1], reward[1, 1:-1], reward[1, -1] = r1, 1.0, r2
    successor = np.zeros((2, num_states, 2), np.int32)
    successor[0, :, 0] = np.minimum(age + 1, num_states - 1)
    probability = np.broadcast_to(np.array([[1 - p, p], [0.0, 1.0]])[:, None], successor.shape)
    return from_rows(reward, successor, probability)


def garnet(seed: int, num_states: int, num_actions: int, num_successors: int) -> MDP:
    """A random MDP: uniform distinct successors, probabilities from uniform cuts of [0, 1], normal rewards.

    Args:
      seed: another one makes another problem; at least 0.
      num_states: S.
      num_actions: A.
      num_successors: K, at most S.

    Returns:
      An MDP in float64.

    Raises:
      TypeError: a seed or sizes that are no whole numbers.
      ValueError: a negative seed, sizes below 1, or more successors than states.

    Example:
      >>> import asyncjax as aj
      >>> mdp = aj.mdp.garnet(0, num_states=10, num_actions=2, num_successors=3)
      >>> mdp.successor.shape, bool(abs(mdp.probability.sum(axis=1) - 1).max() < 1e-12)
      ((2, 3, 10), True)

    Source: Archibald, McKinnon and Thomas (1995), "On the generation of Markov decision processes".
    """
    check_least(0, seed=seed)
    check_counts(num_states=num_states, num_actions=num_actions, num_successors=num_successors)
    if not 1 <= num_successors <= num_states:
        raise ValueError(f"num_successors={num_successors}: use 1 to {num_states}, the number of states.")
    random = np.random.default_rng(seed)
    shape = (num_actions, num_states, num_successors)
    if 2 * num_successors > num_states:
        successor = random.random((*shape[:2], num_states)).argsort(axis=2)[..., :num_successors]
    else:
        successor = _distinct(random, num_actions * num_states, num_successors, num_states).reshape(shape)
    cuts = np.sort(random.random((*shape[:2], num_successors - 1)), axis=2)
    edges = (np.zeros((*shape[:2], 1)), cuts, np.ones((*shape[:2], 1)))
    return from_rows(random.standard_normal(shape[:2]), successor, np.diff(np.concatenate(edges, axis=2), axis=2))


def _distinct(random: np.random.Generator, rows: int, size: int, num_states: int) -> np.ndarray:
    """Int32[rows, size] without repetitions in a row: rows that have some are drawn again."""
    if size**2 > 16 * num_states:  # that would take long: one row in about exp(size^2 / (2 num_states)) has none
        drawn = [random.choice(num_states, size, replace=False) for _ in range(rows)]
        return np.array(drawn, np.int32)
    drawn = np.sort(random.integers(num_states, size=(rows, size), dtype=np.int32), axis=1)
    while (repeated := np.flatnonzero((np.diff(drawn, axis=1) == 0).any(axis=1))).size:
        drawn[repeated] = np.sort(random.integers(num_states, size=(repeated.size, size), dtype=np.int32), axis=1)
    return drawn


def corridor(num_states: int) -> MDP:
    """One action, one way: from s to s + 1, and from the last state out with reward 1; V(s) = discount^(n-1-s).

    Args:
      num_states: n.

    Returns:
      An MDP with one action; every episode ends.

    Raises:
      TypeError: a number of states that is no whole number.
      ValueError: fewer than 1 state.

    Example:
      >>> import asyncjax as aj
      >>> aj.mdp.exact_values(aj.mdp.corridor(4), 0.5)
      array([0.125, 0.25 , 0.5  , 1.   ])
    """
    check_counts(num_states=num_states)
    successor = np.minimum(np.arange(num_states) + 1, num_states - 1)[None, :, None]
    inside = (np.arange(num_states) < num_states - 1).astype(np.float64)
    return from_rows(1.0 - inside[None], successor, inside[None, :, None])


def cycle(num_states: int, reward: float = 1.0) -> MDP:
    """One action round a ring with the same reward everywhere: V = reward / (1 - discount).

    Args:
      num_states: of the ring.
      reward: of every step.

    Returns:
      An MDP with one action; no episode ends.

    Raises:
      TypeError: a number of states that is no whole number.
      ValueError: fewer than 1 state.

    Example:
      >>> import asyncjax as aj
      >>> aj.mdp.exact_values(aj.mdp.cycle(3, reward=2.0), 0.5)
      array([4., 4., 4.])
    """
    check_counts(num_states=num_states)
    successor = ((np.arange(num_states) + 1) % num_states)[None, :, None]
    return from_rows(np.full((1, num_states), reward), successor, np.ones((1, num_states, 1)))


def random_walk(num_states: int = 5, num_actions: int = 1) -> MDP:
    """A walk left or right with equal chance between two terminal states; reaching the right one pays 1.

    States 1 to n are the walk, 0 and n + 1 its ends; at discount 1 the values are s / (n + 1).
    All actions do the same.

    Args:
      num_states: n, without the ends.
      num_actions: A.

    Returns:
      An MDP with n + 2 states; every episode ends.

    Raises:
      TypeError: numbers of states or actions that are no whole numbers.
      ValueError: fewer than 1 of either.

    Example:
      >>> import asyncjax as aj
      >>> aj.mdp.exact_values(aj.mdp.random_walk(3), 1.0)  # s / 4, and 0 at the ends
      array([0.  , 0.25, 0.5 , 0.75, 0.  ])

    Source: Sutton and Barto (2018), example 6.2.
    """
    check_counts(num_states=num_states, num_actions=num_actions)
    state = np.arange(num_states + 2)
    inside = (state > 0) & (state <= num_states)
    successor = np.stack([np.maximum(state - 1, 0), np.minimum(state + 1, num_states + 1)], axis=1)
    reward = np.where(state == num_states, 0.5, 0.0)
    probability = np.where(inside[:, None], np.full(2, 0.5), 0.0)
    copies = (num_actions, *successor.shape)
    return from_rows(
        np.broadcast_to(reward, copies[:2]), np.broadcast_to(successor, copies), np.broadcast_to(probability, copies)
    )


def machine_replacement(
    num_states: int = 10, wear: float = 0.3, operating_cost: float = 1.0, replacement_cost: float = 5.0
) -> MDP:
    """A machine wears by one class with some probability; keep it (action 0) at a growing cost, or replace it (1).

    Args:
      num_states: classes of wear; class s costs s * operating_cost per period.
      wear: the probability of going one class up.
      operating_cost: per class and period.
      replacement_cost: of a new machine, which starts in class 0 next period.

    Returns:
      An MDP with two actions.

    Raises:
      TypeError: a number of classes that is no whole number.
      ValueError: fewer than 2 classes, or a probability that is not from 0 to 1.

    Example:
      >>> import asyncjax as aj
      >>> aj.solve(aj.mdp.machine_replacement(6), 0.9).policy
      array([0, 0, 1, 1, 1, 1], dtype=int32)
    """
    check_chances(wear=wear)
    check_least(2, num_states=num_states)
    state = np.arange(num_states)
    reward = np.stack([-operating_cost * state, np.full(num_states, -replacement_cost)])
    keep = np.stack([np.minimum(state + 1, num_states - 1), state], axis=1)
    probability = np.broadcast_to(np.array([[wear, 1 - wear], [1.0, 0.0]])[:, None], (2, num_states, 2))
    return from_rows(reward, np.stack([keep, np.zeros_like(keep)]), probability)


def inventory(
    capacity: int = 3,
    demand: Sequence[float] = (0.25, 0.5, 0.25),
    price: float = 8.0,
    fixed_cost: float = 4.0,
    unit_cost: float = 2.0,
    holding_cost: float = 1.0,
) -> MDP:
    """Stock control with lost sales: action a orders a units, which arrive before the period's demand.

    r(s, a) = price E min(demand, s + a) - (fixed_cost + unit_cost a if a > 0) - holding_cost (s + a)

    Args:
      capacity: the most that fits; orders beyond it are not available.
      demand: probabilities of a demand of 0, 1, 2, ... units.
      price: of a unit sold.
      fixed_cost: of an order.
      unit_cost: of a unit ordered.
      holding_cost: per unit and period.

    Returns:
      An MDP with capacity + 1 states, the stock, and as many actions.

    Raises:
      TypeError: a capacity that is no whole number.
      ValueError: a capacity below 0, or a demand whose probabilities are negative or do not sum to 1.

    Example:
      >>> import asyncjax as aj
      >>> aj.mdp.inventory().reward[:, 0].tolist()  # of ordering 0 to 3 units with nothing in stock
      [0.0, -1.0, -2.0, -5.0]

    Source: Puterman (1994), section 3.2, with its numbers as defaults.
    """
    check_least(0, capacity=capacity)
    chance = np.asarray(demand, np.float64)
    if not (chance >= 0).all() or abs(chance.sum() - 1) > 1e-9:
        raise ValueError(f"demand={demand}: probabilities are at least 0 and sum to 1.")
    order, stock = np.arange(capacity + 1)[:, None], np.arange(capacity + 1)[None, :]
    supply = order + stock
    left = np.maximum(supply[..., None] - np.arange(len(chance)), 0)
    sold = ((supply[..., None] - left) * chance).sum(axis=-1)
    reward = price * sold - np.where(order > 0, fixed_cost + unit_cost * order, 0.0) - holding_cost * supply
    available = supply <= capacity
    probability = np.where(available[..., None], chance, 0.0)
    return from_rows(np.where(available, reward, -np.inf), np.where(available[..., None], left, 0), probability)
