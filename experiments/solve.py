"""Solves a Markov decision process: optimal values and policy with a certified bound on their error.

    python experiments/solve.py --mdp frozen_lake_8x8
    python experiments/solve.py --mdp grid --size 1000 --discount 0.999
    python experiments/solve.py --mdp my_problem.npz --discount 0.95 --method anderson
    python experiments/solve.py --resume DIRECTORY

Writes solution.npz, summary.json and, for grids, values.png into the directory. A run that was stopped
continues from its last checkpoint with --resume.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

import asyncjax as aj
from asyncjax import files
from asyncjax.mdp import AnyMDP
from asyncjax.solvers import Progress, Solution
from asyncjax.solvers.solution import Certifies
from asyncjax.solvers.solve import Backend, MethodName

Grid = tuple[int, int]

_PEAK_UNIT = 2**30 if sys.platform == "darwin" else 2**20  # getrusage counts bytes on macOS, KiB on Linux

# name -> size -> (problem, height and width if its states are cells)
PROBLEMS: dict[str, Callable[[int], tuple[AnyMDP, Grid | None]]] = {
    "frozen_lake_4x4": lambda _: (aj.mdp.frozen_lake("4x4"), (4, 4)),
    "frozen_lake_8x8": lambda _: (aj.mdp.frozen_lake("8x8"), (8, 8)),
    "grid": lambda n: (aj.mdp.grid_world((n or 20, n or 20)), (n or 20, n or 20)),
    "sutton_barto": lambda _: (aj.mdp.sutton_barto(), (5, 5)),
    "two_state": lambda _: (aj.mdp.two_state(), None),
    "forest": lambda n: (aj.mdp.forest(n or 3), None),
    "garnet": lambda n: (aj.mdp.garnet(0, n or 10_000, 6, 8), None),
    "hashed_garnet": lambda n: (aj.mdp.hashed_garnet(0, n or 10_000, 4, 5), None),
    "corridor": lambda n: (aj.mdp.corridor(n or 20), None),
    "cycle": lambda n: (aj.mdp.cycle(n or 20), None),
    "random_walk": lambda n: (aj.mdp.random_walk(n or 5), None),
    "machine_replacement": lambda n: (aj.mdp.machine_replacement(n or 10), None),
    "inventory": lambda n: (aj.mdp.inventory(n or 3), None),
    "mountain_car": lambda n: (aj.mdp.tabulate(aj.mdp.mountain_car(n or 51, n or 51)), (n or 51, n or 51)),
    "perishable_inventory": lambda n: (aj.mdp.perishable_inventory(n or 2), None),
}


@dataclass
class Arguments:
    """What to solve, and how well."""

    mdp: str = "frozen_lake_8x8"
    """A problem by name, or an .npz file: reward, successor, probability, or reward and transition [A, S, S]."""
    size: int = 0
    """Its size, where it has one: states, or the side of the grid; perishable_inventory: days of useful life."""
    discount: float = 0.99
    """Discount."""
    method: MethodName = "modified_policy_iteration"
    """Method."""
    tolerance: float = 1e-6
    """The error to certify."""
    certifies: Certifies = "values"
    """Whether that is asked of the values, or of what the policy loses."""
    backend: Backend | None = None
    """host: compiled sparse products. jax: XLA. None: what suits problem and machine."""
    max_seconds: float = float("inf")
    """Stop after this time, with the bound that holds then."""
    checkpoint_every: float = 30.0
    """Seconds between checkpoints."""
    directory: Path | None = None
    """Where results go; by default runs/solve-MDP-DISCOUNT-METHOD."""
    resume: Path | None = None
    """Continue the run in this directory, with its arguments; only --max-seconds is taken from the command line."""


def main(arguments: Arguments) -> None:
    """Solves, shows and writes."""
    directory, initial = arguments.directory, None
    if arguments.resume is not None:
        directory, limit = arguments.resume, arguments.max_seconds
        arguments = read_arguments(directory)
        arguments.max_seconds = limit
        if (directory / "checkpoint.npz").exists():
            initial = np.load(directory / "checkpoint.npz")["values"]
    name = Path(arguments.mdp).stem
    directory = directory or Path("runs") / f"solve-{name}-{arguments.discount}-{arguments.method}"
    directory.mkdir(parents=True, exist_ok=True)
    write_json(
        directory / "arguments.json", {k: None if isinstance(v, Path) else v for k, v in asdict(arguments).items()}
    )
    mdp, grid = load_problem(arguments.mdp, arguments.size)
    print(f"{name}: {mdp.num_states:,} states, {mdp.num_actions} actions, discount {arguments.discount}", flush=True)
    solution = aj.solve(
        mdp,
        arguments.discount,
        method=arguments.method,
        tolerance=arguments.tolerance,
        certifies=arguments.certifies,
        backend=arguments.backend,
        initial=initial,
        max_seconds=arguments.max_seconds,
        callback=Watcher(directory, arguments.tolerance, arguments.checkpoint_every),
    )
    files.replace_arrays(directory / "checkpoint.npz", {"values": solution.values})
    files.replace_arrays(directory / "solution.npz", {"values": solution.values, "policy": solution.policy})
    summary = {k: v for k, v in solution._asdict().items() if k not in ("values", "policy")}
    write_json(directory / "summary.json", summary)
    if grid is not None:
        draw(solution, grid, arguments.mdp, directory / "values.png")
    print_table(solution, directory)


def read_arguments(directory: Path) -> Arguments:
    """Those of an earlier run."""
    path = directory / "arguments.json"
    if not path.exists():
        raise SystemExit(f"{directory} holds no arguments.json: --resume needs the directory of an earlier run.")
    known = {field.name for field in fields(Arguments)}
    return Arguments(**{name: value for name, value in json.loads(path.read_text()).items() if name in known})


def load_problem(name: str, size: int) -> tuple[AnyMDP, Grid | None]:
    """A problem by name or from a file."""
    if name in PROBLEMS:
        return PROBLEMS[name](size)
    if name.endswith(".npz") and Path(name).exists():
        return aj.mdp.load(name), None
    raise SystemExit(f"--mdp {name}: no such file, and no such problem; there are {', '.join(PROBLEMS)}.")


class Watcher:
    """Prints where a long run stands, and writes checkpoints."""

    def __init__(self, directory: Path, tolerance: float, checkpoint_every: float) -> None:
        self.directory, self.tolerance, self.every = directory, tolerance, checkpoint_every
        self.printed = self.saved = time.perf_counter()

    def __call__(self, progress: Progress) -> None:
        """After every full residual."""
        now = time.perf_counter()
        if now - self.printed > 2:
            self.printed = now
            text = f"{progress.sweeps:,} sweeps, bound {progress.bound:.2e} (goal {self.tolerance:.0e})"
            print(f"{progress.seconds:6.1f} s  {text}", flush=True)
        if now - self.saved > self.every:
            self.saved = now
            files.replace_arrays(self.directory / "checkpoint.npz", {"values": progress.values})


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON file."""
    path.write_text(json.dumps(values, indent=2) + "\n")


def draw(solution: Solution, grid: Grid, name: str, path: Path) -> None:
    """Values as colours; the policy as arrows, where the problem moves over a grid."""
    if name == "mountain_car":
        figure = aj.plotting.value_map(solution.values, grid, x_label="velocity", y_label="position")
    else:
        figure = aj.plotting.value_map(solution.values, grid, solution.policy, ends(name, grid))
    figure.axes[0].set_title(f"{name}, {solution.method}\nerror at most {solution.bound:.1e}", fontsize=8)
    figure.savefig(path)


def ends(name: str, grid: Grid) -> np.ndarray:
    """Bool[S]: cells in which nothing is to be decided."""
    mdp, _ = load_problem(name, grid[0])
    assert isinstance(mdp, aj.MDP)
    return mdp.probability.sum(axis=(0, 1)) == 0


def print_table(solution: Solution, directory: Path) -> None:
    """The result in a few lines."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    met = "met" if solution.converged else "NOT met: stopped by rounding or --max-seconds"
    for label, value in (
        ("method", solution.method),
        ("values", f"{solution.values.min():.6g} to {solution.values.max():.6g}"),
        ("error of the values", f"at most {solution.bound:.2e}"),
        ("loss of the policy", f"at most {solution.policy_bound:.2e}"),
        ("tolerance", f"{met} (asked of the {solution.certifies})"),
        ("sweeps, backups", f"{solution.sweeps:,}, {solution.backups:,}"),
        ("seconds", f"{solution.seconds:.3f}, and {solution.compile_seconds:.2f} to compile"),
        ("peak memory", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _PEAK_UNIT:.2f} GiB"),
        ("written to", str(directory)),
    ):
        table.add_row(label, value)
    Console().print(table)


if __name__ == "__main__":
    import tyro

    try:
        main(tyro.cli(Arguments, description=__doc__))
    except (ValueError, TypeError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
