"""Solvers of Markov decision processes against each other: time to a certified error, on the same problems.

    python experiments/benchmark_solve.py --problems forest_1e5 garnet_1e4 --discounts 0.99 0.999 --rounds 5

Every solver stops by its own rule for the same tolerance; what it returns is then certified by our full
residual in float64, outside the clock. Problems are converted beforehand, compilation is
reported apart: it is the first call's time minus the median of the others. Peers that are not
installed are named and left out.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import asyncjax as aj
from asyncjax.mdp import MDP
from asyncjax.solvers.host import HostModel

PROBLEMS: dict[str, Callable[[], MDP]] = {
    "garnet_1e4": lambda: aj.mdp.garnet(0, 10_000, 6, 8),
    "grid_100": lambda: aj.mdp.grid_world((100, 100)),
    "forest_1e5": lambda: aj.mdp.forest(100_000),
    "garnet_1e5": lambda: aj.mdp.garnet(0, 100_000, 10, 10),
    "grid_1000": lambda: aj.mdp.grid_world((1000, 1000)),
}

Solver = Callable[[], np.ndarray]


@dataclass
class Arguments:
    """What to compare."""

    problems: tuple[str, ...] = tuple(PROBLEMS)
    """Names: garnet_1e4, grid_100, forest_1e5, garnet_1e5, grid_1000."""
    discounts: tuple[float, ...] = (0.99, 0.999)
    """Discounts."""
    solvers: tuple[str, ...] = ("asyncjax", "quantecon", "mdpsolver", "mdpax")
    """Whom to compare; asyncjax:METHOD for a method that is not the default, asyncjax:jax for the compiled one."""
    tolerance: float = 1e-4
    """The error to certify."""
    rounds: int = 5
    """Rounds, each of which runs every solver once; the median counts."""
    sweeps: bool = False
    """Measure a Jacobi sweep instead: backups per second, bytes per backup, share of the memory's bandwidth."""
    output: Path | None = None
    """Write the rows there too, as JSON lines."""


def main(arguments: Arguments) -> None:
    """Prints one row a problem, discount and solver."""
    for name in arguments.problems:
        mdp = PROBLEMS[name]()
        if arguments.sweeps:
            print_row(measure_sweep(name, mdp), arguments.output)
            continue
        for discount in arguments.discounts:
            for row in compare(arguments, name, mdp, discount):
                print_row(row, arguments.output)


def compare(arguments: Arguments, name: str, mdp: MDP, discount: float) -> list[dict[str, Any]]:
    """Interleaved rounds of all solvers on one problem."""
    solvers = {label: prepare(label, mdp, discount, arguments.tolerance) for label in arguments.solvers}
    times: dict[str, list[float]] = {label: [] for label, solver in solvers.items() if solver}
    answers: dict[str, np.ndarray] = {}
    for _ in range(arguments.rounds + 1):
        for label in times:
            solver = solvers[label]
            assert solver is not None
            begin = time.perf_counter()
            answers[label] = solver()
            times[label].append(time.perf_counter() - begin)
    rows = []
    for label, seconds in times.items():
        median = statistics.median(seconds[1:] or seconds)
        error = certified_error(mdp, answers[label], discount)
        rows.append(
            {
                "problem": name,
                "discount": discount,
                "solver": label,
                "seconds": round(median, 4),
                "first_call_extra": round(max(0.0, seconds[0] - median), 3),
                "certified_error": float(f"{error:.2g}"),
            }
        )
    return rows


def certified_error(mdp: MDP, values: np.ndarray, discount: float) -> float:
    """|TV - V| / (1 - discount) of the values that a solver returned."""
    residual = HostModel(mdp, discount).improve(np.asarray(values, np.float64))
    return max(residual.high, -residual.low) / (1 - discount)


def prepare(label: str, mdp: MDP, discount: float, tolerance: float) -> Solver | None:
    """A call without arguments that solves the problem; None where the solver is not installed."""
    package, _, option = label.partition(":")
    if package == "asyncjax":
        how: dict[str, Any] = {"backend": "jax"} if option == "jax" else {"method": option} if option else {}
        return lambda: aj.solve(mdp, discount, tolerance=tolerance, **how).values
    if importlib.util.find_spec(package) is None:
        print(f"{package} is not installed: left out", file=sys.stderr)
        return None
    return PEERS[package](mdp, discount, tolerance)


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
    from quantecon.markov import DiscreteDP  # type: ignore[import-not-found]

    reward, successor, probability = closed_rows(mdp)
    num_states, num_actions, width = successor.shape
    pairs = num_states * num_actions
    arrays = probability.ravel(), successor.ravel(), np.arange(0, pairs * width + 1, width)
    state, action = np.divmod(np.arange(pairs), num_actions)
    problem = DiscreteDP(reward.ravel(), sparse.csr_matrix(arrays, (pairs, num_states)), discount, state, action)
    return lambda: problem.solve(method="mpi", epsilon=tolerance, max_iter=10**6).v


def mdpsolver_solver(mdp: MDP, discount: float, tolerance: float) -> Solver:
    """Modified policy iteration of mdpsolver."""
    import mdpsolver  # type: ignore[import-not-found]

    reward, successor, probability = closed_rows(mdp)
    model = mdpsolver.model()
    model.mdp(
        discount=discount,
        rewards=reward.tolist(),
        tranMatWithZeros=[],
        tranMatElementwise=[],
        tranMatProbs=probability.tolist(),
        tranMatColumns=successor.tolist(),
    )

    def run() -> np.ndarray:
        model.solve(algorithm="mpi", tolerance=tolerance, update="standard")
        return np.array(model.getValueVector())

    return run


def mdpax_solver(mdp: MDP, discount: float, tolerance: float) -> Solver:
    """Value iteration of mdpax; it computes transitions from functions, which here read the arrays."""
    import jax
    import jax.numpy as jnp
    from mdpax.core.problem import Problem  # type: ignore[import-not-found]
    from mdpax.solvers.value_iteration import ValueIteration  # type: ignore[import-not-found]

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
    solver = ValueIteration(Table(), gamma=discount, epsilon=tolerance, convergence_test="max_diff", verbose=0)
    start = solver.values

    def run() -> np.ndarray:
        solver.values, solver.iteration = start, 0  # or it goes on from its last answer
        return np.asarray(solver.solve(max_iterations=10**6).values)

    return run


PEERS: dict[str, Callable[[MDP, float, float], Solver]] = {
    "quantecon": quantecon_solver,
    "mdpsolver": mdpsolver_solver,
    "mdpax": mdpax_solver,
}


def measure_sweep(name: str, mdp: MDP, repeats: int = 7) -> dict[str, Any]:
    """One full Jacobi sweep: the bytes it must move against what plain copying moves in the same time."""
    model = HostModel(mdp, 0.99)
    values = model.improve(np.zeros(mdp.num_states)).values
    seconds = statistics.median(_timed(lambda: model.improve(values)) for _ in range(repeats))
    per_backup = mdp.num_successors * 12 + 8  # a probability and an index for each successor, and the reward
    moved = mdp.num_states * (mdp.num_actions * per_backup + 16)  # values in and out
    bandwidth = measured_bandwidth(model)
    return {
        "problem": name,
        "milliseconds": round(1e3 * seconds, 3),
        "backups_per_second": round(mdp.num_states * mdp.num_actions / seconds / 1e6) * 10**6,
        "bytes_per_backup": per_backup,
        "gigabytes_per_second": round(moved / seconds / 1e9, 1),
        "bandwidth": round(bandwidth / 1e9, 1),
        "share": round(moved / seconds / bandwidth, 2),
    }


def measured_bandwidth(model: HostModel, size: int = 1 << 25) -> float:
    """Bytes per second that the model's threads read together, from arrays far larger than the caches."""
    from concurrent.futures import ThreadPoolExecutor

    arrays = [np.ones(size) for _ in range(model.num_threads)]
    with ThreadPoolExecutor(model.num_threads) as threads:
        seconds = min(_timed(lambda: list(threads.map(np.sum, arrays))) for _ in range(5))
    return sum(array.nbytes for array in arrays) / seconds


def _timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def print_row(row: dict[str, Any], output: Path | None) -> None:
    """One line of JSON."""
    print(json.dumps(row), flush=True)
    if output is not None:
        with output.open("a") as file:
            file.write(json.dumps(row) + os.linesep)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Arguments, description=__doc__))
