"""Exact values on the host, in float64 whatever JAX computes in: the references of every test."""

from __future__ import annotations

import numpy as np

from asyncjax.mdp.check import check
from asyncjax.mdp.core import MDP

_DENSE = 2000  # states up to which a dense linear solve is quicker than a sparse one


def policy_values(mdp: MDP, policy: np.ndarray, discount: float) -> np.ndarray:
    """The value of a policy from one linear solve: V = (I - discount P_pi)^-1 r_pi; Float64[S].

    Args:
      mdp: the problem; tens of thousands of states at most, fewer where successors are scattered.
      policy: Int[S].
      discount: at most 1; with 1 the policy must end from every state.

    Example:
      >>> import asyncjax as aj
      >>> aj.mdp.policy_values(aj.mdp.random_walk(5), [0] * 7, 1.0)[1:-1] * 6
      array([1., 2., 3., 4., 5.])
    """
    # Imported on use: not everybody who imports asyncjax solves a sparse system.
    import scipy.sparse as sparse
    import scipy.sparse.linalg

    policy = np.asarray(policy)
    states = np.arange(mdp.num_states)
    reward = np.asarray(mdp.reward, np.float64)[policy, states]
    rows = np.broadcast_to(states[:, None], (mdp.num_states, mdp.num_successors))
    columns = np.asarray(mdp.successor)[policy, :, states]
    entries = np.asarray(mdp.probability, np.float64)[policy, :, states]
    shape = (mdp.num_states, mdp.num_states)
    chain = sparse.coo_array((entries.ravel(), (rows.ravel(), columns.ravel())), shape).tocsc()
    system = sparse.eye_array(mdp.num_states, format="csc") - discount * chain
    if mdp.num_states <= _DENSE:
        return np.linalg.solve(system.toarray(), reward)
    return np.asarray(scipy.sparse.linalg.spsolve(system, reward))


def exact_values(mdp: MDP, discount: float) -> np.ndarray:
    """The optimal values by policy iteration with linear solves, Float64[S].

    Raises:
      ValueError: a malformed MDP, or a discount that it does not admit (`check`).

    Example:
      >>> import asyncjax as aj
      >>> aj.mdp.exact_values(aj.mdp.forest(3), 0.9).round(3)
      array([26.244, 29.484, 33.484])
    """
    check(mdp, discount)
    reward, probability = np.asarray(mdp.reward, np.float64), np.asarray(mdp.probability, np.float64)
    successor, states = np.asarray(mdp.successor), np.arange(mdp.num_states)
    policy, largest = reward.argmax(axis=0), np.abs(reward[np.isfinite(reward)]).max()
    while True:
        values = policy_values(mdp, policy, discount)
        quality = reward + discount * (probability * values[successor]).sum(axis=1)
        # Changing an action only for a true gain: rounding must not make two equal policies alternate for ever.
        gain = quality.max(axis=0) - quality[policy, states]
        better = gain > 1e-12 * max(largest, np.abs(values).max())
        if not better.any():
            return values
        policy = np.where(better, quality.argmax(axis=0), policy)
