"""Solvers of Markov decision processes against each other: time to a certified error, on the same problems.

    python experiments/benchmark_solve.py --problems forest_1e5 garnet_1e4 --discounts 0.99 0.999 --rounds 5

Every solver stops by its own rule for the same tolerance and starts from nothing in every round; what it
returns is then certified by our full residual in float64, outside the clock. Problems are converted
beforehand, compilation is reported apart: it is the first call's time minus the median of the others. Peers
that are not installed are named and left out.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
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

Call = Callable[[], np.ndarray]  # solves, and returns the values
Solver = Callable[[], Call]  # makes a call that knows nothing of earlier ones: peers go on from their last answer


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
    mdpax_sweeps: int = 10**6
    """Stop mdpax after so many, where it would take hours; its certified error then tells how far it came."""
    sweeps: bool = False
    """Measure a Jacobi sweep instead: backups per second, bytes per backup, share of the memory's bandwidth."""
    output: Path | None = None
    """Write the rows there too, as JSON lines."""


def main(arguments: Arguments) -> None:
    """Prints one row a problem, discount and solver."""
    for name in arguments.problems:
        mdp = PROBLEMS[name]()
        if arguments.sweeps:
            for row in measure_sweeps(name, mdp):
                print_row(row, arguments.output)
            continue
        for discount in arguments.discounts:
            for row in compare(arguments, name, mdp, discount):
                print_row(row, arguments.output)


def compare(arguments: Arguments, name: str, mdp: MDP, discount: float) -> list[dict[str, Any]]:
    """Interleaved rounds of all solvers on one problem."""
    solvers = {label: prepare(label, mdp, discount, arguments) for label in arguments.solvers}
    times: dict[str, list[float]] = {label: [] for label, solver in solvers.items() if solver}
    answers: dict[str, np.ndarray] = {}
    for _ in range(arguments.rounds + 1):
        for label in times:
            solver = solvers[label]
            assert solver is not None
            call = solver()
            begin = time.perf_counter()
            answers[label] = call()
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


def prepare(label: str, mdp: MDP, discount: float, arguments: Arguments) -> Solver | None:
    """A solver of the problem; None where it is not installed."""
    package, _, option = label.partition(":")
    if package == "asyncjax":
        how: dict[str, Any] = {"backend": "jax"} if option == "jax" else {"method": option} if option else {}
        return lambda: lambda: aj.solve(mdp, discount, tolerance=arguments.tolerance, **how).values
    if importlib.util.find_spec(package) is None:
        print(f"{package} is not installed: left out", file=sys.stderr)
        return None
    return PEERS[package](mdp, discount, arguments)


def closed_rows(mdp: MDP) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrays [S, A], [S, A, K], [S, A, K] for solvers that know no end: there an absorbing state repeats itself."""
    successor = mdp.successor.transpose(2, 0, 1).copy()
    probability = mdp.probability.transpose(2, 0, 1).copy()
    state, action = np.nonzero(probability.sum(axis=2) == 0)
    assert not mdp.reward[action, state].any(), "an end with a reward needs one more state"
    successor[state, action, 0], probability[state, action, 0] = state, 1.0
    return mdp.reward.T, successor, probability


def quantecon_solver(mdp: MDP, discount: float, arguments: Arguments) -> Solver:
    """Modified policy iteration of quantecon, in its sparse state-action form."""
    import scipy.sparse as sparse
    from quantecon.markov import DiscreteDP  # type: ignore[import-not-found]

    reward, successor, probability = closed_rows(mdp)
    num_states, num_actions, width = successor.shape
    pairs = num_states * num_actions
    arrays = probability.ravel(), successor.ravel(), np.arange(0, pairs * width + 1, width)
    state, action = np.divmod(np.arange(pairs), num_actions)
    problem = DiscreteDP(reward.ravel(), sparse.csr_matrix(arrays, (pairs, num_states)), discount, state, action)
    return lambda: lambda: problem.solve(method="mpi", epsilon=arguments.tolerance, max_iter=10**6).v


def mdpsolver_solver(mdp: MDP, discount: float, arguments: Arguments) -> Solver:
    """Modified policy iteration of mdpsolver."""
    import mdpsolver  # type: ignore[import-not-found]

    reward, successor, probability = (x.tolist() for x in closed_rows(mdp))

    def fresh() -> Call:
        model = mdpsolver.model()
        model.mdp(discount=discount, rewards=reward, tranMatProbs=probability, tranMatColumns=successor)

        def run() -> np.ndarray:
            model.solve(algorithm="mpi", tolerance=arguments.tolerance, update="standard")
            return np.array(model.getValueVector())

        return run

    return fresh


def mdpax_solver(mdp: MDP, discount: float, arguments: Arguments) -> Solver:
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
    how: dict[str, Any] = {"epsilon": arguments.tolerance, "convergence_test": "max_diff", "verbose": 0}
    solver = ValueIteration(Table(), gamma=discount, **how)
    start = solver.values

    def fresh() -> Call:
        solver.values, solver.iteration = start, 0
        return lambda: np.asarray(solver.solve(max_iterations=arguments.mdpax_sweeps).values)

    return fresh


PEERS: dict[str, Callable[[MDP, float, Arguments], Solver]] = {
    "quantecon": quantecon_solver,
    "mdpsolver": mdpsolver_solver,
    "mdpax": mdpax_solver,
}


def measure_sweeps(name: str, mdp: MDP, repeats: int = 11) -> Iterator[dict[str, Any]]:
    """One full Jacobi sweep: the bytes it must move against those that plain summing reads in the same time."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    model = HostModel(mdp, 0.99)
    values = model.improve(np.zeros(mdp.num_states)).values
    arrays, vector = MDP(*map(jnp.asarray, mdp)), jnp.asarray(values)
    operator = jax.jit(partial(aj.mdp.bellman, discount=0.99))
    per_backup = mdp.num_successors * 12 + 8  # a probability and an index for each successor, and the reward
    moved = mdp.num_states * (mdp.num_actions * per_backup + 16)  # values in and out
    sweeps: dict[str, tuple[int, Callable[[], Any]]] = {
        "solver: values, policy, certificate": (model.num_threads, lambda: model.improve(values)),
        "bellman, compiled: values": (os.cpu_count() or 1, lambda: operator(arrays, vector).block_until_ready()),
    }
    for what, (num_threads, sweep) in sweeps.items():
        sweep()
        seconds = statistics.median(_timed(sweep) for _ in range(repeats))
        bandwidth = measured_bandwidth(num_threads)
        yield {
            "problem": name,
            "sweep": what,
            "threads": num_threads,
            "milliseconds": round(1e3 * seconds, 3),
            "backups_per_second": round(mdp.num_states * mdp.num_actions / seconds / 1e6) * 10**6,
            "bytes_per_backup": per_backup,
            "gigabytes_per_second": round(moved / seconds / 1e9, 1),
            "bandwidth": round(bandwidth / 1e9, 1),
            "share": round(moved / seconds / bandwidth, 2),
        }


def measured_bandwidth(num_threads: int, size: int = 1 << 25) -> float:
    """Bytes per second that so many threads read together, from arrays far larger than the caches."""
    from concurrent.futures import ThreadPoolExecutor

    arrays = [np.ones(size) for _ in range(num_threads)]
    with ThreadPoolExecutor(num_threads) as threads:
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
