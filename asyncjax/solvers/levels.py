"""The order in which information travels: states by their distance from where the rewards are."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from asyncjax.mdp import MDP

Block = tuple[int, int]  # begin and end of a run of states


def sources(mdp: MDP) -> np.ndarray:
    """Int[n]: the states whose best reward stands out from what most states get; information starts there."""
    best = np.asarray(mdp.reward).max(axis=0)
    usual = np.median(best)
    return np.flatnonzero(np.abs(best - usual) > 0.05 * np.abs(best - usual).max())


def levels(mdp: MDP, first: np.ndarray, limit: int | None = None) -> tuple[np.ndarray, list[Block]] | None:
    """States in breadth-first order against the direction of the transitions.

    A Gauss-Seidel sweep in this order carries the values of the first states to all others at once,
    where Jacobi sweeps carry them one transition further each.

    Args:
      mdp: the problem.
      first: Int[n], the states of level 0.
      limit: give up, with None, if there are more levels than this.

    Returns:
      Int[S], the states in order, and the runs of that order that are one level; what can not reach
      level 0 is the last of them.
    """
    import scipy.sparse as sparse
    from scipy.sparse import csgraph

    num_actions, width, num_states = mdp.successor.shape
    degree = num_actions * width
    successor = np.asarray(mdp.successor).transpose(2, 0, 1).reshape(-1)
    starts = np.arange(0, num_states * degree + 1, degree)
    # The columns of the transition graph are the rows of the reversed one. One more node leads to level 0.
    reverse = sparse.csr_array((np.ones(len(successor), np.int8), successor, starts), (num_states,) * 2).tocsc()
    edges = np.concatenate([reverse.indices, first]).astype(np.int32)
    starts = np.append(reverse.indptr, len(edges)).astype(np.int32)
    graph = sparse.csr_array((np.ones(len(edges)), edges, starts), (num_states + 1,) * 2)
    order, predecessor = csgraph.breadth_first_order(graph, num_states)
    position = np.empty(num_states + 1, np.int64)
    position[order] = np.arange(len(order))
    parent = position[predecessor[order[1:]]]  # never decreases: a level's parents are the level before
    cuts = [0, 1]
    while cuts[-1] < len(order):
        if limit is not None and len(cuts) > limit:
            return None
        cuts.append(1 + int(np.searchsorted(parent, cuts[-1])))
    unreached = np.setdiff1d(np.arange(num_states), order, assume_unique=True)
    ends = [cut - 1 for cut in cuts[1:]] + ([num_states] if unreached.size else [])
    return np.concatenate([order[1:], unreached]), list(pairwise(ends))


def reordered(mdp: MDP, order: np.ndarray) -> MDP:
    """The same problem with state i standing for state order[i] of this one."""
    rank = np.empty(mdp.num_states, np.int32)
    rank[order] = np.arange(mdp.num_states, dtype=np.int32)
    successor = rank[np.asarray(mdp.successor).transpose(0, 2, 1)[:, order]]
    probability = np.asarray(mdp.probability).transpose(0, 2, 1)[:, order]
    return MDP(np.asarray(mdp.reward)[:, order], successor.transpose(0, 2, 1), probability.transpose(0, 2, 1))
