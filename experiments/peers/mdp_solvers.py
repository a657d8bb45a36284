"""Solvers of other packages, on the problems of benchmark_solve.py: (problem, discount, tolerance) -> Solver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from asyncjax.mdp import MDP

Call = Callable[[], np.ndarray]  # solves, and returns the values
Solver = Callable[[], Call]  # makes a call that knows nothing of earlier ones: peers go on from their last answer


def closed_rows(mdp: MDP) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrays [S, A], [S, A, K], [S, A, K] for solvers that know no end: there an absorbing state repeats itself."""
    successor = mdp.successor.transpose(2, 0, 1).copy()
    probability = mdp.probability.transpose(2, 0, 1).copy()
    state, action = np.nonzero(probability.sum(axis=2) == 0)
    assert not mdp.reward[action, state].any(), "an end with a reward needs one more state"
    successor[state, action, 0], probability[state, action, 0] = state, 1.0
    return mdp.reward.T, successor, probability


def quantecon_solver(mdp: MDP, discount: float, tolerance: float) -> Solver:
    """Modified policy iteration of quantecon, in its sparse state-action form."""
    import scipy.sparse as sparse
    from quantecon.markov import DiscreteDP

    reward, successor, probability = closed_rows(mdp)
    num_states, num_actions, width = successor.shape
    pairs = num_states * num_actions
    arrays = probability.ravel(), successor.ravel(), np.arange(0, pairs * width + 1, width)
    state, action = np.divmod(np.arange(pairs), num_actions)
    problem = DiscreteDP(reward.ravel(), sparse.csr_matrix(arrays, (pairs, num_states)), discount, state, action)
    return lambda: lambda: problem.solve(method="mpi", epsilon=tolerance, max_iter=10**6).v


def mdpsolver_solver(mdp: MDP, discount: float, tolerance: float) -> Solver:
    """Modified policy iteration of mdpsolver."""
    import mdpsolver

    reward, successor, probability = (x.tolist() for x in closed_rows(mdp))

    def fresh() -> Call:
        model = mdpsolver.model()
        model.mdp(discount=discount, rewards=reward, tranMatProbs=probability, tranMatColumns=successor)

        def run() -> np.ndarray:
            model.solve(algorithm="mpi", tolerance=tolerance, update="standard")
            return np.array(model.getValueVector())

        return run

    return fresh


def mdpax_solver(mdp: MDP, discount: float, tolerance: float) -> Solver:
    """Value iteration of mdpax; it computes transitions from functions, which here read the arrays."""
    import jax
    import jax.numpy as jnp
    from mdpax.core.problem import Problem
    from mdpax.solvers.value_iteration import ValueIteration

    jax.config.update("jax_enable_x64", True)
    reward, successor, probability = (jnp.asarray(x) for x in closed_rows(mdp))

    class Table(Problem):
        """The arrays as a problem."""

        name = "table"

        def _construct_state_space(self) -> Any:
            return jnp.arange(mdp.num_states, dtype=jnp.int32)[:, None]

        def _construct_action_space(self) -> Any:
            return jnp.arange(mdp.num_actions, dtype=jnp.int32)[:, None]

        def _construct_random_event_space(self) -> Any:
            return jnp.arange(mdp.num_successors, dtype=jnp.int32)[:, None]

        def state_to_index(self, state: Any) -> Any:
            return state[0]

        def random_event_probability(self, state: Any, action: Any, random_event: Any) -> Any:
            return probability[state[0], action[0], random_event[0]]

        def transition(self, state: Any, action: Any, random_event: Any) -> Any:
            return successor[state[0], action[0], random_event[0]][None], reward[state[0], action[0]]

    # Its default, the span of the changes, certifies a policy and leaves the values far off.
    how: dict[str, Any] = {"epsilon": tolerance, "convergence_test": "max_diff", "verbose": 0}
    solver = ValueIteration(Table(), gamma=discount, **how)
    start = solver.values

    def fresh() -> Call:
        solver.values, solver.iteration = start, 0
        return lambda: np.asarray(solver.solve(max_iterations=10**6).values)

    return fresh


PEERS: dict[str, Callable[[MDP, float, float], Solver]] = {
    "quantecon": quantecon_solver,
    "mdpsolver": mdpsolver_solver,
    "mdpax": mdpax_solver,
}
