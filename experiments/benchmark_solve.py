"""Solvers of Markov decision processes against each other: time to a certified error, on the same problems.

    python experiments/benchmark_solve.py --problems forest_1e5 garnet_1e4 --discounts 0.99 0.999 --rounds 5
    python experiments/benchmark_solve.py --problems grid_1000 --solvers asyncjax mdpax --rounds 0 --limit 120

Every solver stops by its own rule for the same tolerance and starts from nothing in every round; what it
returns is then certified by our full residual in float64, outside the clock. Each has a process of its own, and
only one of them works at a time. Problems are converted beforehand, compilation is reported apart: it is the first
call's time minus the median of the others. Peers that are not installed are named and left out.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import asyncjax as aj
from asyncjax.checks import check_choice, check_least
from asyncjax.mdp import MDP
from asyncjax.solvers.device_model import DeviceModel
from asyncjax.solvers.host_model import HostModel
from peers.mdp_solvers import PEERS, Solver

PROBLEMS: dict[str, Callable[[], MDP]] = {
    "garnet_1e4": lambda: aj.mdp.garnet(0, 10_000, 6, 8),
    "grid_100": lambda: aj.mdp.grid_world((100, 100)),
    "forest_1e5": lambda: aj.mdp.forest(100_000),
    "garnet_1e5": lambda: aj.mdp.garnet(0, 100_000, 10, 10),
    "grid_1000": lambda: aj.mdp.grid_world((1000, 1000)),
}


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
    """Rounds, each of which runs every solver once; the median counts. 0: only the first call, compilation included."""
    limit: float = float("inf")
    """Seconds after which a call is stopped; its time, and its ratio to the first solver's, are then lower bounds."""
    sweeps: bool = False
    """Measure a Jacobi sweep instead: backups per second, bytes per backup, share of the memory's bandwidth."""
    output: Path | None = None
    """Write the rows there too, as JSON lines."""


def main(arguments: Arguments) -> None:
    """Prints one row a problem, discount and solver."""
    check_least(0, rounds=arguments.rounds)
    for name in arguments.problems:
        check_choice(PROBLEMS, problems=name)
    for label in arguments.solvers:
        check_choice(("asyncjax", *PEERS), solvers=label.partition(":")[0])
    for name in arguments.problems:
        if arguments.sweeps:
            for row in measure_sweeps(name, PROBLEMS[name]()):
                print_row(row, arguments.output)
            continue
        for discount in arguments.discounts:
            for row in compare(arguments, name, discount):
                print_row(row, arguments.output)


def compare(arguments: Arguments, name: str, discount: float) -> list[dict[str, Any]]:
    """Interleaved rounds of all solvers on one problem."""
    contestants = [Contestant(label, name, discount, arguments.tolerance) for label in arguments.solvers]
    contestants = [contestant for contestant in contestants if contestant.installed]
    for _ in range(arguments.rounds + 1):
        for contestant in contestants:
            contestant.run(arguments.limit)
    for contestant in contestants:
        contestant.stop()
    return [{"problem": name, "discount": discount, **contestant.row(contestants[0])} for contestant in contestants]


class Contestant:
    """A solver with its problem in a process of its own, which may be stopped at any moment.

    Attributes:
      label: its name.
      installed: whether it is there.
      seconds: of every call; the last one's is the limit if it was `stopped`.
    """

    def __init__(self, label: str, problem: str, discount: float, tolerance: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=serve, args=(end, label, problem, discount, tolerance), daemon=True)
        self.process.start()
        end.close()  # so that reading from a process that has died is an error
        self.label, self.installed = label, self.pipe.recv()
        self.seconds: list[float] = []
        self.error, self.stopped = np.nan, False

    def run(self, limit: float) -> None:
        """One more call, unless an earlier one was stopped."""
        if self.stopped:
            return
        self.pipe.send("prepare")
        self.pipe.recv()  # the call begins
        self.stopped = not self.pipe.poll(None if limit == np.inf else limit)
        if self.stopped:
            self.seconds.append(limit)
            self.stop()
        else:
            self.seconds.append(self.pipe.recv())
            self.error = self.pipe.recv()

    def stop(self) -> None:
        """Ends the process, whatever it does."""
        self.process.kill()
        self.process.join()

    @property
    def median(self) -> float:
        """Seconds of a call; if it was stopped, of that one."""
        return self.seconds[-1] if self.stopped else statistics.median(self.seconds[1:] or self.seconds)

    def row(self, first: Contestant) -> dict[str, Any]:
        """What to print, with the ratio to another one's time."""
        return {
            "solver": self.label,
            "seconds": round(self.median, 4),
            "ratio": None if first.stopped else float(f"{self.median / first.median:.3g}"),
            "at_least": self.stopped,
            "first_call_extra": round(max(0.0, self.seconds[0] - self.median), 3),
            "certified_error": None if self.stopped else float(f"{self.error:.2g}"),
        }


def serve(pipe: Connection, label: str, problem: str, discount: float, tolerance: float) -> None:
    """A contestant's process: says whether the solver is there, and solves whenever it is told to."""
    mdp = PROBLEMS[problem]()
    solver = prepare(label, mdp, discount, tolerance)
    pipe.send(solver is not None)
    while solver is not None:
        pipe.recv()
        call = solver()
        pipe.send("begin")
        begin = time.perf_counter()
        values = call()
        pipe.send(time.perf_counter() - begin)
        pipe.send(certified_error(mdp, values, discount))


def certified_error(mdp: MDP, values: np.ndarray, discount: float) -> float:
    """|TV - V| / (1 - discount) of the values that a solver returned."""
    residual = HostModel(mdp, discount).improve(np.asarray(values, np.float64))
    return max(residual.high, -residual.low) / (1 - discount)


def prepare(label: str, mdp: MDP, discount: float, tolerance: float) -> Solver | None:
    """A solver of the problem; None where it is not installed."""
    package, _, option = label.partition(":")
    if package == "asyncjax":
        how: dict[str, Any] = {"backend": "jax"} if option == "jax" else {"method": option} if option else {}
        return lambda: lambda: aj.solve(mdp, discount, tolerance=tolerance, **how).values
    if importlib.util.find_spec(package) is None:
        print(f"{package} is not installed: left out", file=sys.stderr)
        return None
    return PEERS[package](mdp, discount, tolerance)


def measure_sweeps(name: str, mdp: MDP, repeats: int = 11) -> Iterator[dict[str, Any]]:
    """One full Jacobi sweep: the bytes it must move against those that plain summing reads in the same time."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    model = HostModel(mdp, 0.99)
    values = model.improve(np.zeros(mdp.num_states)).values
    compiled = DeviceModel(mdp, 0.99)
    arrays, vector = MDP(*map(jnp.asarray, mdp)), jnp.asarray(values)
    operator = jax.jit(partial(aj.mdp.bellman, discount=0.99))
    per_backup = mdp.num_successors * 12 + 8  # a probability and an index for each successor, and the reward
    moved = mdp.num_states * (mdp.num_actions * per_backup + 16)  # values in and out
    sweeps: dict[str, tuple[int, Callable[[], Any]]] = {
        "solver: values, policy, certificate": (model.num_threads, lambda: model.improve(values)),
        'the same, backend="jax"': (
            os.cpu_count() or 1,
            lambda: jax.block_until_ready(compiled.improve(vector).values),
        ),
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
    from figure import start  # not in the solvers' processes, which import this file, too

    start(main, Arguments, __doc__)
