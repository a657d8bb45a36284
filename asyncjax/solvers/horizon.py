"""How long a problem without a discount can last, which is what bounds errors there."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from asyncjax.mdp import MDP
from asyncjax.solvers.host_model import HostModel


def longest_time(mdp: MDP, expired: Callable[[], bool]) -> float:
    """An upper bound on the expected number of steps to the end under any policy, from any state.

    Any w >= 1 + max_a P w bounds it. Value iteration from 0 rises to the least such w; once a sweep adds less than
    d < 1 everywhere, w / (1 - d) is one.

    Args:
      mdp: a problem that `check(mdp, 1.0)` lets pass.
      expired: whether there is no time left to find one; the largest number is one, too.
    """
    counted = MDP(
        np.where(np.isneginf(mdp.reward), -np.inf, 1.0), mdp.successor, np.asarray(mdp.probability, np.float64)
    )
    model = HostModel(counted, 1.0)
    time = np.zeros(mdp.num_states)
    while not expired():
        residual = model.improve(time)
        if residual.high <= 0.01:
            return float(residual.scale / (1 - residual.high))
        time, _, _ = model.evaluate(residual.values, 50, 0.001)
    return sys.float_info.max
