"""Solves a Markov decision process: optimal values and policy with a certified bound on their error.

    python experiments/solve.py --mdp frozen_lake_8x8
    python experiments/solve.py --mdp grid --size 1000 --discount 0.999
    python experiments/solve.py --mdp my_problem.npz --discount 0.95 --method anderson
    python experiments/solve.py --resume DIRECTORY

Writes solution.npz, summary.json and, for grids, values.png into the directory. A run that was stopped
continues from its last checkpoint with --resume.
"""

from __future__ import annotations

import inspect
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

import asyncjax as aj
from asyncjax import files, runs
from asyncjax.checks import check_least, nearest
from asyncjax.mdp import AnyMDP
from asyncjax.solvers import Progress, Solution
from asyncjax.solvers.solution import Certifies
from asyncjax.solvers.solve import Backend, MethodName
from train import exit_code

Grid = tuple[int, int]

_PEAK_UNIT = 2**30 if sys.platform == "darwin" else 2**20  # getrusage counts bytes on macOS, KiB on Linux

# name -> (problem, height and width if its states are cells), a function of its size, where it has one
PROBLEMS: dict[str, Callable[..., tuple[AnyMDP, Grid | None]]] = {
    "frozen_lake_4x4": lambda: (aj.mdp.frozen_lake("4x4"), (4, 4)),
    "frozen_lake_8x8": lambda: (aj.mdp.frozen_lake("8x8"), (8, 8)),
    "grid": lambda n=20: (aj.mdp.grid_world((n, n)), (n, n)),
    "sutton_barto": lambda: (aj.mdp.sutton_barto(), (5, 5)),
    "two_state": lambda: (aj.mdp.two_state(), None),
    "forest": lambda n=3: (aj.mdp.forest(n), None),
    "garnet": lambda n=10_000: (aj.mdp.garnet(0, n, 6, 8), None),
    "hashed_garnet": lambda n=10_000: (aj.mdp.hashed_garnet(0, n, 4, 5), None),
    "corridor": lambda n=20: (aj.mdp.corridor(n), None),
    "cycle": lambda n=20: (aj.mdp.cycle(n), None),
    "random_walk": lambda n=5: (aj.mdp.random_walk(n), None),
    "machine_replacement": lambda n=10: (aj.mdp.machine_replacement(n), None),
    "inventory": lambda n=3: (aj.mdp.inventory(n), None),
    "mountain_car": lambda n=51: (aj.mdp.tabulate(aj.mdp.mountain_car(n, n)), (n, n)),
    "perishable_inventory": lambda n=2: (aj.mdp.perishable_inventory(n), None),
}
MAY_DIFFER = ("max_seconds", "checkpoint_every", "directory", "resume")  # the last two are in older arguments.json


@dataclass
class Arguments:
    """What to solve, and how well."""

    mdp: str = "frozen_lake_8x8"
    """A problem by name, or an .npz file: reward, successor, probability, or reward and transition [A, S, S]."""
    size: int = 0
    """Its size, where it has one: states, or the side of the grid; perishable_inventory: days of useful life. 0 is the
    problem's default."""
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
    """Where results go; by default runs/solve-MDP-DISCOUNT-METHOD, with what else is not the default."""


@dataclass
class Resume:
    """Continues a run from its last checkpoint, with the arguments recorded there."""

    resume: Path
    """The directory of the run."""
    max_seconds: float = float("inf")
    """Stop after this time, with the bound that holds then."""


def main(argv: list[str] | None = None) -> None:
    """Solves, shows and writes."""
    arguments, directory, initial = parse(sys.argv[1:] if argv is None else argv)
    mdp, grid = load_problem(arguments.mdp, arguments.size)
    name = Path(arguments.mdp).stem
    print(f"{name}: {mdp.num_states:,} states, {mdp.num_actions} actions, discount {arguments.discount}", flush=True)
    watcher = Watcher(directory, arguments)
    solution = aj.solve(
        mdp,
        arguments.discount,
        method=arguments.method,
        tolerance=arguments.tolerance,
        certifies=arguments.certifies,
        backend=arguments.backend,
        initial=initial,
        max_seconds=arguments.max_seconds,
        callback=watcher,
    )
    watcher.begin()
    files.replace_arrays(directory / "checkpoint.npz", {"values": solution.values})
    files.replace_arrays(directory / "solution.npz", {"values": solution.values, "policy": solution.policy})
    summary = {k: v for k, v in solution._asdict().items() if k not in ("values", "policy")}
    write_json(directory / "summary.json", summary)
    if grid is not None:
        draw(solution, mdp, grid, arguments.mdp, directory / "values.png")
    print_table(solution, directory)


def parse(argv: list[str]) -> tuple[Arguments, Path, np.ndarray | None]:
    """What to solve, where it is kept, and the values of a run that is continued."""
    import tyro

    if any(word.split("=")[0] == "--resume" for word in argv):
        resume = tyro.cli(Resume, args=argv, description=__doc__)
        arguments = replace(read_arguments(resume.resume), max_seconds=resume.max_seconds)
        checkpoint = resume.resume / "checkpoint.npz"
        return arguments, resume.resume, np.load(checkpoint)["values"] if checkpoint.exists() else None
    arguments = tyro.cli(Arguments, args=argv, description=__doc__)
    directory = arguments.directory or default_directory(arguments)
    if (directory / "arguments.json").exists():  # another problem's solution would be lost
        runs.check_config(directory, recorded(arguments), MAY_DIFFER, file="arguments.json")
    return arguments, directory, None


def default_directory(arguments: Arguments) -> Path:
    """Named by what the solution depends on."""
    usual = Arguments()
    parts = [Path(arguments.mdp).stem, arguments.size or None, arguments.discount, arguments.method]
    parts += [f"{arguments.tolerance:g}" if arguments.tolerance != usual.tolerance else None]
    parts += [x for x, default in ((arguments.certifies, usual.certifies), (arguments.backend, None)) if x != default]
    return Path("runs") / "-".join(["solve", *(str(part) for part in parts if part is not None)])


def recorded(arguments: Arguments) -> dict[str, Any]:
    """What arguments.json holds."""
    return {name: value for name, value in asdict(arguments).items() if name != "directory"}


def read_arguments(directory: Path) -> Arguments:
    """Those of an earlier run."""
    path = directory / "arguments.json"
    if not path.exists():
        raise ValueError(f"--resume {directory}: there is no arguments.json; give the directory of an earlier run.")
    known = {field.name for field in fields(Arguments)} - {"directory"}
    return Arguments(**{name: value for name, value in runs.read_json(path).items() if name in known})


def load_problem(name: str, size: int) -> tuple[AnyMDP, Grid | None]:
    """A problem by name or from a file."""
    check_least(0, size=size)
    sized = [known for known, make in PROBLEMS.items() if inspect.signature(make).parameters]
    if name not in PROBLEMS and not (name.endswith(".npz") and Path(name).exists()):
        hint = nearest(name, PROBLEMS, f"There are {', '.join(PROBLEMS)}.")
        raise ValueError(f"--mdp {name}: no such file, and no such problem. {hint}")
    if size and name not in sized:
        raise ValueError(f"--size {size}: {name} has one size only; leave it out, or take one of {', '.join(sized)}.")
    return PROBLEMS[name](*([size] if size else [])) if name in PROBLEMS else (aj.mdp.load(name), None)


class Watcher:
    """Prints where a long run stands, and writes checkpoints. The directory begins when solving does: see `begin`."""

    def __init__(self, directory: Path, arguments: Arguments) -> None:
        self.directory, self.arguments, self.begun = directory, arguments, False
        self.printed = self.saved = time.perf_counter()

    def begin(self) -> None:
        """Makes the directory with its arguments: not earlier, as what `solve` refuses should leave nothing behind."""
        if not self.begun:
            self.begun = True
            runs.make_directory(self.directory, "directory", "--directory")
            write_json(self.directory / "arguments.json", recorded(self.arguments))

    def __call__(self, progress: Progress) -> None:
        """After every full residual."""
        self.begin()
        now = time.perf_counter()
        if now - self.printed > 2:
            self.printed = now
            text = f"{progress.sweeps:,} sweeps, bound {progress.bound:.2e} (goal {self.arguments.tolerance:.0e})"
            print(f"{progress.seconds:6.1f} s  {text}", flush=True)
        if now - self.saved > self.arguments.checkpoint_every:
            self.saved = now
            files.replace_arrays(self.directory / "checkpoint.npz", {"values": progress.values})


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes a JSON file."""
    files.replace(path, json.dumps(values, indent=2) + "\n")


def draw(solution: Solution, mdp: AnyMDP, grid: Grid, name: str, path: Path) -> None:
    """Values as colours; the policy as arrows, where the problem moves over a grid."""
    if name == "mountain_car":
        figure = aj.plotting.value_map(solution.values, grid, x_label="velocity", y_label="position")
    else:
        figure = aj.plotting.value_map(solution.values, grid, solution.policy, ends(mdp))
    figure.axes[0].set_title(f"{name}, {solution.method}\nerror at most {solution.bound:.1e}", fontsize=8)
    figure.savefig(path)


def ends(mdp: AnyMDP) -> np.ndarray:
    """Bool[S]: cells in which nothing is to be decided."""
    assert isinstance(mdp, aj.MDP)
    return mdp.probability.sum(axis=(0, 1)) == 0


def print_table(solution: Solution, directory: Path) -> None:
    """The result in a few lines."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # the directory as a whole
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
    sys.exit(exit_code(main, lambda error: ""))
