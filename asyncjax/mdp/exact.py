"""Exact values on the host, in float64 whatever JAX computes in: the references of every test."""

from __future__ import annotations

from typing import Any

import numpy as np

from asyncjax.checks import check_kind
from asyncjax.mdp.check import check, check_discount
from asyncjax.mdp.core import MDP

_DENSE = 2000  # states up to which a dense linear solve is quicker than a sparse one


def policy_values(mdp: MDP, policy: np.ndarray, discount: float) -> np.ndarray:
    """The value of a policy from one linear solve: V = (I - discount P_pi)^-1 r_pi; Float64[S].

    Args:
      mdp: the problem; tens of thousands of states at most, fewer where successors are scattered.
      policy: Int[S], of actions that are available.
      discount: at most 1; with 1 the policy must end from every state.

    Raises:
      ValueError: a policy that is none, or a discount with which it has no values.

    Example:
      >>> import asyncjax as aj
      >>> aj.mdp.policy_values(aj.mdp.random_walk(5), [0] * 7, 1.0)[1:-1] * 6
      array([1., 2., 3., 4., 5.])
    """
    _check_arrays(mdp)
    policy = _checked(mdp, np.asarray(policy))
    reward, successor, probability = rows = _rows_of(mdp, policy)
    check_discount(MDP(reward[None], successor.T[None], probability.T[None]), discount)
    return _solved(*rows, discount)


def _check_arrays(mdp: Any) -> None:
    check_kind(MDP, "give arrays, such as aj.mdp.tabulate(mdp) makes of a function", mdp=mdp)


def _rows_of(mdp: MDP, policy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the policy's actions lead to: reward Float64[S], successor Int[S, K], probability Float64[S, K]."""
    states = np.arange(mdp.num_states)
    reward, probability = (np.asarray(x, np.float64) for x in (mdp.reward, mdp.probability))
    return reward[policy, states], np.asarray(mdp.successor)[policy, :, states], probability[policy, :, states]


def _solved(reward: np.ndarray, successor: np.ndarray, probability: np.ndarray, discount: float) -> np.ndarray:
    # Imported on use: not everybody who imports asyncjax solves a sparse system.
    import scipy.sparse as sparse
    import scipy.sparse.linalg

    num_states = len(reward)
    rows = np.broadcast_to(np.arange(num_states)[:, None], successor.shape)
    shape = (num_states, num_states)
    chain = sparse.coo_array((probability.ravel(), (rows.ravel(), successor.ravel())), shape).tocsc()
    system = sparse.eye_array(num_states, format="csc") - discount * chain
    if num_states <= _DENSE:
        return np.linalg.solve(system.toarray(), reward)
    return np.asarray(scipy.sparse.linalg.spsolve(system, reward))


def _checked(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    if policy.shape != (mdp.num_states,) or policy.dtype.kind not in "iu":
        raise ValueError(f"policy is {policy.dtype}{list(policy.shape)}: give one action, a whole number, per state.")
    wrong = (policy < 0) | (policy >= mdp.num_actions)
    wrong |= np.isneginf(np.asarray(mdp.reward)[np.where(wrong, 0, policy), np.arange(mdp.num_states)])
    for state in np.flatnonzero(wrong)[:1]:
        raise ValueError(f"policy takes action {policy[state]} in state {state}, which is not available there.")
    return policy


def exact_values(mdp: MDP, discount: float) -> np.ndarray:
    """The optimal values by policy iteration with linear solves, Float64[S].

    Raises:
      ValueError: a malformed MDP, or a discount that it does not admit (`check`).

    Example:
      >>> import asyncjax as aj
      >>> aj.mdp.exact_values(aj.mdp.forest(3), 0.9).round(3)
      array([26.244, 29.484, 33.484])
    """
    _check_arrays(mdp)
    check(mdp, discount)
    reward, probability = np.asarray(mdp.reward, np.float64), np.asarray(mdp.probability, np.float64)
    successor, states = np.asarray(mdp.successor), np.arange(mdp.num_states)
    policy, tried = reward.argmax(axis=0), set()
    while policy.tobytes() not in tried:  # rounding could make equal policies alternate for ever
        tried.add(policy.tobytes())
        values = _solved(*_rows_of(mdp, policy), discount)
        quality = reward + discount * (probability * values[successor]).sum(axis=1)
        summed = np.abs(reward) + discount * (probability * np.abs(values)[successor]).sum(axis=1)
        best = quality.argmax(axis=0)
        # An action is changed for a gain beyond the rounding of the two sums compared. Other states' numbers do not
        # count: an error of a gain g grows to g / (1 - discount).
        rounding = 4 * np.finfo(np.float64).eps * (summed[best, states] + summed[policy, states])
        policy = np.where(quality[best, states] - quality[policy, states] > rounding, best, policy)
    return values
