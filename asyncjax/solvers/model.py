"""What solvers need of a problem: sweeps, and their number."""

from __future__ import annotations

from typing import Any

import numpy as np

from asyncjax.mdp import AnyMDP
from asyncjax.solvers.solution import Residual


class Model:
    """An MDP with a discount, whose sweeps run somewhere, on arrays of that place.

    Attributes:
      mdp: the problem.
      discount: at most 1.
      epsilon: relative rounding of its arithmetic.
      policy: Int[S], the greedy policy of the last `improve`.
      backups: evaluations of single actions so far.
      sweeps: passes over all states so far.
      updates: new versions of the values so far.
    """

    policy: Any
    epsilon: float

    def __init__(self, mdp: AnyMDP, discount: float) -> None:
        self.mdp, self.discount = mdp, discount
        self.num_states, self.num_actions = mdp.num_states, mdp.num_actions
        self.backups = self.sweeps = self.updates = 0

    def start(self, values: np.ndarray) -> Any:
        """Float[S] in the order of the problem -> values as this model wants them."""
        raise NotImplementedError

    def finish(self, values: Any) -> np.ndarray:
        """The inverse of `start`, for values and policies."""
        raise NotImplementedError

    def improve(self, values: Any) -> Residual:
        """TV of all states, and the greedy policy, which `evaluate` then follows."""
        raise NotImplementedError

    def evaluate(self, values: Any, sweeps: int, accuracy: float) -> tuple[Any, float, float]:
        """Sweeps of the policy's operator until changes span less than `accuracy`: values, min and max last change.

        The argument `values` must not be used any more.
        """
        raise NotImplementedError

    def count(self, sweeps: int, actions: int, versions: int = 1) -> None:
        """Adds passes over all states, each with so many actions and giving so many new versions."""
        self.sweeps += sweeps
        self.backups += sweeps * actions * self.num_states
        self.updates += sweeps * versions
