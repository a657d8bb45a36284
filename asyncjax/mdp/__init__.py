"""Tabular Markov decision processes: types, Bellman operators, problems, exact values."""

from asyncjax.mdp.check import check, check_function
from asyncjax.mdp.convert import from_arrays, from_rows, from_scipy, load, save, tabulate
from asyncjax.mdp.core import MDP, AnyMDP, FunctionMDP, action_values, bellman, policy_backup
from asyncjax.mdp.exact import exact_values, policy_values
from asyncjax.mdp.functions import hashed_garnet, mountain_car, perishable_inventory
from asyncjax.mdp.grids import frozen_lake, grid_world, sutton_barto
from asyncjax.mdp.problems import (
    corridor,
    cycle,
    forest,
    garnet,
    inventory,
    machine_replacement,
    random_walk,
    two_state,
)

__all__ = [
    "MDP",
    "AnyMDP",
    "FunctionMDP",
    "action_values",
    "bellman",
    "check",
    "check_function",
    "corridor",
    "cycle",
    "exact_values",
    "forest",
    "from_arrays",
    "from_rows",
    "from_scipy",
    "frozen_lake",
    "garnet",
    "grid_world",
    "hashed_garnet",
    "inventory",
    "load",
    "machine_replacement",
    "mountain_car",
    "perishable_inventory",
    "policy_backup",
    "policy_values",
    "random_walk",
    "save",
    "sutton_barto",
    "tabulate",
    "two_state",
]
