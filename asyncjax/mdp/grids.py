"""Grid worlds: maps of characters, four moves that may slip sideways."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from asyncjax.checks import check_counts
from asyncjax.mdp.check import check_chances
from asyncjax.mdp.convert import from_rows
from asyncjax.mdp.core import MDP

MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))  # actions 0 to 3: left, down, right, up, as (row, column)

FROZEN_LAKE = {
    "4x4": ("SFFF", "FHFH", "FFFH", "HFFG"),
    "8x8": ("SFFFFFFF", "FFFFFFFF", "FFFHFFFF", "FFFFFHFF", "FFFHFFFF", "FHHFFFHF", "FHFFHFHF", "FFFHFFFG"),
}


def frozen_lake(name: str = "4x4", slip: float = 2 / 3) -> MDP:
    """FrozenLake: reach the goal over slippery ice; reward 1 at the goal, holes end the episode.

    Args:
      name: of the map, "4x4" or "8x8".
      slip: the probability of moving at a right angle to the action.

    Returns:
      An MDP with four actions: left, down, right, up.

    Raises:
      ValueError: an unknown map, or a probability that is not from 0 to 1.

    Source: Gymnasium's FrozenLake-v1 maps and dynamics; slip=0 is its is_slippery=False.

    Example:
      >>> import asyncjax as aj
      >>> float(aj.mdp.exact_values(aj.mdp.frozen_lake("4x4"), 0.99)[0].round(8))
      0.54202593
    """
    if name not in FROZEN_LAKE:
        raise ValueError(f"frozen_lake({name!r}): there are {' and '.join(map(repr, FROZEN_LAKE))}.")
    return grid_world(FROZEN_LAKE[name], slip=slip)


def grid_world(
    grid: Sequence[str] | tuple[int, int], slip: float = 0.2, step_reward: float = 0.0, goal_reward: float = 1.0
) -> MDP:
    """A grid with four moves (left, down, right, up), each slipping to either side with probability slip / 2.

    A move against the border or a wall stays where it is. States are cells, row by row.

    Args:
      grid: rows of characters: G a goal, H a hole, # a wall, anything else free; or (height, width) of
        a free grid with a goal in its last corner.
      slip: the probability of moving at a right angle to the action.
      step_reward: for every move.
      goal_reward: for entering a goal; goals and holes end the episode.

    Returns:
      An MDP with four actions: left, down, right, up.

    Raises:
      TypeError: a height or a width that is no whole number.
      ValueError: rows of different lengths, a grid without cells, or a probability that is not from 0 to 1.

    Example:
      >>> import asyncjax as aj
      >>> mdp = aj.mdp.grid_world(["..G"], slip=0.0)
      >>> aj.mdp.exact_values(mdp, 0.5)
      array([0.5, 1. , 0. ])
    """
    cells = _cells(grid)
    check_chances(slip=slip)
    targets = np.stack([_moved(cells, *move) for move in MOVES])
    successor = np.stack([targets, np.roll(targets, 1, axis=0), np.roll(targets, -1, axis=0)], axis=2)
    chance = np.array([1.0 - slip, slip / 2, slip / 2])
    inside = ~np.isin(cells, list("GH#")).ravel()
    probability = np.where(inside[:, None], chance, 0.0)
    reward = step_reward + goal_reward * ((cells.ravel() == "G")[successor] * chance).sum(axis=2)
    copies = np.broadcast_to(probability, successor.shape)
    return from_rows(np.where(inside, reward, 0.0), successor, copies)


def _cells(grid: Sequence[str] | tuple[int, int]) -> np.ndarray:
    if not isinstance(grid, Sequence):
        raise TypeError(f"grid={grid!r}: give (height, width), or rows of text.")
    if all(isinstance(row, str) for row in grid):
        rows = [list(str(row)) for row in grid]
        if len({len(row) for row in rows}) != 1 or not rows[0]:
            raise ValueError(f"the grid's rows have lengths {[len(row) for row in rows]}; make all equal, none 0.")
        return np.array(rows)
    if len(grid) != 2:
        raise ValueError(f"grid={grid!r}: give (height, width), or rows of text.")
    height, width = grid
    check_counts(height=height, width=width)
    cells = np.full((int(height), int(width)), ".")
    cells[-1, -1] = "G"
    return cells


def _moved(cells: np.ndarray, down: int, right: int) -> np.ndarray:
    """Int[S]: the cell that a move from each cell arrives in."""
    height, width = cells.shape
    row = np.clip(np.arange(height)[:, None] + down, 0, height - 1)
    column = np.clip(np.arange(width)[None, :] + right, 0, width - 1)
    here = np.arange(height * width).reshape(height, width)
    return np.where(cells[row, column] == "#", here, here[row, column]).ravel()


def sutton_barto() -> MDP:
    """The 5 x 5 grid whose cells A = 1 and B = 3 pay 10 and 5 and carry away; leaving the grid costs 1 and stays.

    Returns:
      An MDP with 25 states and four actions: left, down, right, up.

    Example:
      >>> import asyncjax as aj
      >>> aj.mdp.exact_values(aj.mdp.sutton_barto(), 0.9)[:5].round(1)
      array([22. , 24.4, 22. , 19.4, 17.5])

    Source: Sutton and Barto (2018), example 3.5; at discount .9 V*(A) = 24.419428.
    """
    cells = np.full((5, 5), ".")
    successor = np.stack([_moved(cells, *move) for move in MOVES])
    reward = np.where(successor == np.arange(25), -1.0, 0.0)
    for cell, target, prize in ((1, 21, 10.0), (3, 13, 5.0)):
        successor[:, cell], reward[:, cell] = target, prize
    return from_rows(reward, successor[..., None], np.ones((4, 25, 1)))
