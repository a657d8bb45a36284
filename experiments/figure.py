"""What the figure scripts share: arguments that are checked, a command that runs, draws and reports; small networks."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import flax.linen as nn
import jax
import numpy as np

from asyncjax import files, runs
from asyncjax.checks import check_choice, check_positive
from asyncjax.environment import Discrete, Environment
from asyncjax.networks import MLP, ActorCritic
from asyncjax.q_networks import QNetwork
from asyncjax.statistics import bootstrap_interval, middle_half
from asyncjax.sweeps.summaries import stretch_ends
from train import exit_code, prepare_jax

Arrays = dict[str, np.ndarray]
WHERE = ("results", "quick", "redraw", "reuse", "compilation_cache", "keep")  # of which what is found does not depend
ACTION_VALUES = ("one_step_q", "one_step_sarsa", "n_step_q")


@dataclasses.dataclass(frozen=True)
class Output:
    """Where a figure goes, and how it comes about: the arguments that `command` looks at."""

    results: Path = Path("results")
    """Folder for the data and the picture."""
    quick: bool = False
    """Tiny sizes, to see that it runs: no figure to learn from."""
    redraw: bool = False
    """Draw and report the data of an earlier run, without running anything."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache directory, so that the next start is quicker."""


@dataclasses.dataclass(frozen=True)
class Common(Output):
    """The arguments that every figure of learning has."""

    seeds: int = 10
    """Seeds 0, 1, ...: each has its own parameters, environments and service times, the same in every setting."""
    hidden: int = 32
    """Size of the two layers of the networks; images have the default network."""
    keep: Path | None = None
    """Folder for finished programs' data, so that a run that was stopped continues; for equal arguments only."""


def start(main: Callable[[Any], Any], kind: type, description: str | None) -> NoReturn:
    """A script from its command line to its exit code: what is wrong with an argument is told in a sentence."""
    import tyro

    arguments = tyro.cli(kind, description=description)
    sys.exit(exit_code(lambda: main(arguments), lambda error: ""))


def check(args: Any, zero: Sequence[str] = (), **choices: Iterable[str]) -> None:
    """Raises ValueError, before anything runs, unless all numbers are positive and all names are known.

    Args:
      args: a script's arguments, each one value or several.
      zero: of the numbers that may be 0, or of which there may be none.
      **choices: argument -> the names that there are.
    """
    for field in dataclasses.fields(args):
        name, value = field.name, getattr(args, field.name)
        if value == () != field.default and name not in zero:
            raise ValueError(f"{name}=(): give at least one.")
        for one in value if isinstance(value, tuple) else (value,):
            if name in choices:
                check_choice(choices[name], **{name: one})
            elif isinstance(one, (int, float)) and not isinstance(one, bool) and not (name in zero and one == 0):
                check_positive(**{name: one})


def check_sizes(sizes: Sequence[str]) -> None:
    """Raises ValueError for a size that is not workers x environments x steps, such as 16x64x20."""
    for size in sizes:
        parts = size.split("x")
        if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
            raise ValueError(f"sizes={size!r}: give workers x environments x steps, such as 16x64x20.")


def command(
    name: str,
    args: Any,
    small: dict[str, Any],
    run: Callable[[Any], Arrays],
    plot: Callable[[Arrays], Any],
    report: Callable[[Arrays], str],
) -> Arrays:
    """Runs, or loads what an earlier run kept; writes NAME.npz and NAME.png, and prints the report.

    Args:
      name: of the files.
      args: the figure's arguments, with those of `Output`.
      small: what `--quick` replaces in them.
      run: arguments -> arrays, all that the picture and the report need, names of settings included.
      plot: arrays -> matplotlib Figure.
      report: arrays -> the numbers as text, Markdown.
    """
    if args.quick:
        args, name = dataclasses.replace(args, **small), f"{name}-quick"
    runs.make_directory(args.results, "folder", "--results")
    data, picture = args.results / f"{name}.npz", args.results / f"{name}.png"
    if args.redraw and not data.is_file():
        raise ValueError(f"--redraw: there is no {data}; run the command without it first, or change --results.")
    if not args.redraw:
        arguments = {name: x for name, x in dataclasses.asdict(args).items() if name not in WHERE}
        if data.is_file() and not args.quick:
            with np.load(data) as file:
                check_replaced(data, json.loads(str(file.get("arguments", "null"))), arguments)
        start = time.perf_counter()
        prepare_jax(args.compilation_cache)
        with quickly_compiled() if args.quick else contextlib.nullcontext():
            arrays = run(args)
        arrays |= {"seconds": np.array(time.perf_counter() - start), "arguments": np.array(json.dumps(arguments))}
        files.replace_arrays(data, arrays, compressed=True)
    with np.load(data) as file:
        arrays = dict(file)
    try:
        plot(arrays).savefig(picture)
    except KeyError as error:
        if not args.redraw:
            raise
        raise ValueError(f"{data} has no {error}: an earlier version wrote it; run without --redraw.") from error
    print(f"{report(arrays)}\n\n{picture}, {arrays['seconds']:.0f} s with compiling")
    return arrays


def check_replaced(
    path: Path,
    before: Mapping[str, Any] | None,
    arguments: Mapping[str, Any],
    elsewhere: str = "another folder with --results",
) -> None:
    """Raises ValueError where a file is of a run with other arguments; that with fewer seeds may be replaced.

    Args:
      path: the file.
      before: the arguments that it was made with; None where an earlier version wrote it without them.
      arguments: the arguments of this run.
      elsewhere: where this run's results can go.
    """
    for name, value in runs.changes(before or arguments, arguments).items():
        if name != "seeds" or value > arguments["seeds"]:
            raise ValueError(
                f"{path} has what another run found: {name} is {value!r} there and {arguments.get(name)!r} here."
                f" Give this one {elsewhere}, or delete the file."
            )


def key() -> jax.Array:
    """The source of all chance. No constant, as that would start JAX before its options are set."""
    return jax.random.key(0)


@contextlib.contextmanager
def quickly_compiled() -> Iterator[None]:
    """Programs are optimized less, as tiny runs spend nearly all of their time on compiling."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def small_network(method: str, env: Environment, hidden: int) -> nn.Module | None:
    """Two layers of this size in the default network's place; None, the default itself, for images."""
    if len(getattr(env.observation_space, "shape", ())) == 3:
        return None
    assert isinstance(env.action_space, Discrete)
    actions, sizes = env.action_space.num_values, (hidden, hidden)
    if method in ACTION_VALUES:
        return QNetwork(actions, MLP(sizes, layer_norm=True, activation=nn.relu))
    return ActorCritic(actions, MLP(sizes), MLP(sizes))


def end_times(points: int) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """A summary of a sweep: `time`, Float32[L], at the ends of so many stretches of a run, where `curve` has points."""

    def summarize(time: jax.Array) -> dict[str, jax.Array]:
        return {"time": time[stretch_ends(len(time), points) - 1]}

    return summarize


def interval(values: np.ndarray, digits: int = 3) -> str:
    """The interquartile mean over axis 0 with its 95 % bootstrap interval, as text."""
    low, high = bootstrap_interval(values)
    return f"{middle_half(values):.{digits}g} [{low:.{digits}g}, {high:.{digits}g}]"


def table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
