"""Runs a method under many settings with common random numbers: a grid, random samples, or what Optuna asks for.

    python experiments/sweep.py a3c --env Catch-bsuite --grid learning_rate=1e-3,2e-3 delay=0,4,16 --against delay=0
    python experiments/sweep.py a3c --random learning_rate=1e-4..1e-2:log entropy_cost=0..0.05 --samples 32
    python experiments/sweep.py a3c --optuna learning_rate=1e-4..1e-2:log delay=0..32 --samples 64
    python experiments/sweep.py --resume results/sweep-a3c-Catch-bsuite
    python experiments/sweep.py a3c --engine ray --address auto --grid learning_rate=1e-4,1e-3,1e-2 delay=0,4,16,64

What can vary: every option of the method, and delay, service, num_workers and group_size. Settings of equal shapes
share one compiled program. A sweep that was stopped continues with --resume, or with the same command again; with more
values, samples or seeds it runs only what is new.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import inspect
import itertools
import json
import os
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

import asyncjax as aj
from asyncjax import commandline, files, plotting, runs
from asyncjax.adapters.host_environment import check_compiled
from asyncjax.arguments import SERVICES, num_updates
from asyncjax.checks import check_counts
from asyncjax.cluster import connected
from asyncjax.environment import Environment
from asyncjax.plotting.panels import new_figure
from asyncjax.sweeps import summaries
from asyncjax.threads import num_cores
from spaces import Range, Space, choices_by_optuna, choices_of, import_optuna, parse_space
from train import divide_cpu, exit_code, prepare_jax


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What to run."""

    env: str = "CartPole-v1"
    """Environment: any gymnax id, or brax:ID."""
    env_params: tuple[str, ...] = ()
    """Parameters of the environment that differ from its defaults, as name=value."""
    grid: tuple[str, ...] = ()
    """Every combination of these: name=value,value,..."""
    random: tuple[str, ...] = ()
    """Samples from these, for every point of the grid: name=low..high, name=low..high:log or name=value,value,..."""
    optuna: tuple[str, ...] = ()
    """Samples that Optuna chooses by the evaluation of the ones before, from the same."""
    samples: int = 32
    """How many samples."""
    batch: int = 8
    """Samples that Optuna chooses at once."""
    against: tuple[str, ...] = ()
    """Show differences, seed by seed, from the settings with name=value; of several, differences of differences."""
    num_workers: int = 8
    """Asynchronous workers."""
    group_size: int = 1
    """Messages per update."""
    delay: int | None = None
    """Every update reads the version so many updates ago, instead of what service times lead to."""
    service: Literal["constant", "exponential", "gamma", "lognormal", "pareto", "straggler"] = "exponential"
    """Service-time model; see train.py."""
    total_steps: int = 100_000
    """Environment steps of one run."""
    seeds: int = 10
    """Seeds of every setting."""
    eval_episodes: int = 100
    """Fresh episodes on which the final policy of each run is evaluated greedily."""
    points: int = 20
    """Points of the learning curves."""
    static: tuple[str, ...] = ()
    """Names of numbers to compile in, where a method needs to know them."""
    batch_size: int | None = None
    """Runs at a time; by default by memory. For images on a CPU 1 is quickest."""
    engine: Literal["emulate", "ray"] = "emulate"
    """Where the batches run: one after the other here, or over the machines of a Ray cluster, with the same results."""
    address: str | None = None
    """Of the Ray cluster, such as auto; by default a local one."""
    batch_cpus: float = 1.0
    """CPUs of its machine that a batch on Ray takes."""
    quick: bool = False
    """A small size that takes seconds, to see whether everything works; what else is given counts."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache directory, so that the next start is quicker."""
    directory: Path | None = None
    """Where everything is kept; by default results/sweep-METHOD-ENV."""


QUICK = {"total_steps": 4000, "seeds": 3, "eval_episodes": 10, "samples": 4, "batch": 2}
COUNTS = ("samples", "batch", "num_workers", "group_size", "total_steps", "seeds", "eval_episodes", "points")
OF_LENGTH = ("num_envs", "unroll_length", "group_size")
OF_SCHEDULE = ("delay", "service", "num_workers", "group_size", "num_envs", "unroll_length")
ON_RAY = ("engine", "address", "batch_cpus")
MAY_DIFFER = (
    "argv", "grid", "random", "optuna", "samples", "against", "seeds", "batch_size", "compilation_cache", *ON_RAY,
)  # fmt: skip
Args = dict[str, Any]


def main(argv: list[str] | None = None) -> aj.Table:
    """Runs the command line; prints the table, and writes it with its pictures."""
    argv = resumed(sys.argv[1:] if argv is None else argv)
    method, args = commandline.parse(quickened(argv), "sweep.py", __doc__, sweep=Sweep)
    path = args.pop("directory") or Path("results") / f"sweep-{method}-{args['env']}"
    divide_cpu(num_cores())  # a batch of runs is split over them
    prepare_jax(args["compilation_cache"])
    table = run(method, args, path, argv)
    written = save(table, args, path)
    report(table, args)
    print(f"{path}/{', '.join(written)}")
    return table


def quickened(argv: list[str]) -> list[str]:
    """The command with the small sizes of --quick before what it gives itself, of which the last counts."""
    switches = [word for word in argv if word in ("--quick", "--no-quick")]
    small = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    return [*argv[:1], *(small if switches[-1:] == ["--quick"] else ()), *argv[1:]]


def resumed(argv: list[str]) -> list[str]:
    """The recorded command of a directory after --resume, with what else is given now."""
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--resume=") else [word])]
    if "--resume" not in argv:
        return argv
    at = argv.index("--resume")
    path, rest = Path("".join(argv[at + 1 : at + 2])), argv[:at] + argv[at + 2 :]
    if not (path / "config.json").is_file():
        raise ValueError(f"--resume {path}: there is no sweep; give the directory that a sweep printed.")
    before = json.loads((path / "config.json").read_text())["argv"]
    return [*before, *rest, "--directory", str(path)]


def record(path: Path, config: Args) -> None:
    """Writes the configuration, or raises ValueError if the directory holds another one."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--directory {path} can not be written ({error.strerror}): choose another one.") from error
    if (path / "config.json").exists():
        runs.check_config(path, config, MAY_DIFFER)
    files.replace(path / "config.json", json.dumps(config))


def run(name: str, args: Args, path: Path, argv: list[str]) -> aj.Table:
    """The table of all settings; what is asked for is recorded once it is known to make sense."""
    check_counts(**{name: args[name] for name in COUNTS})
    factory, env = commandline.factories()[name], commandline.make_env_from(args["env"], args["env_params"])
    check_compiled(env)
    spaces = spaces_of(factory, args)
    settings = choices_of(spaces["grid"], spaces["random"], args["samples"])
    for setting in settings:  # raises where options do not go together
        make_schedule(env, {**args, **setting, "total_steps": 1, "key": jax.random.key(0)})
        commandline.build(factory, env, {**args, **setting})  # in a program its checks do not see the values
    varied = {name: values for space in spaces.values() for name, values in space.items()}
    check_against(args["against"], varied)
    if spaces["optuna"]:
        import_optuna()
    record(path, {"method": name, "argv": argv, **args})
    sweep = sweep_of(factory, env, args, varied, path / "runs")
    # Connected once, as Optuna's choices are a sweep for each batch.
    ray = connected(args["address"], os.cpu_count() or 1) if args["engine"] == "ray" else contextlib.nullcontext()
    with ray:
        begun.append(path)
        return by_optuna(sweep, spaces["optuna"], args) if spaces["optuna"] else sweep(settings)


def spaces_of(factory: Callable[..., aj.Method], args: Args) -> dict[str, Space]:
    """What varies: "grid", "random" and "optuna"."""
    of_sweep, of_method = typing.get_type_hints(Sweep), typing.get_type_hints(commandline.options(factory))
    kinds = {**of_method, **{name: of_sweep[name] for name in OF_SCHEDULE if name in of_sweep}}
    spaces = {kind: parse_space(args[kind], kinds) for kind in ("grid", "random", "optuna")}
    for space in spaces.values():
        rates = space.get("learning_rate", [])
        for rate in [rates.low] if isinstance(rates, Range) else rates:
            commandline.make_optimizer(None, rate)  # raises where it is not positive, which traced ones can not
    if spaces["optuna"] and (spaces["grid"] or spaces["random"]):
        raise ValueError("--optuna can not be combined with --grid or --random: name everything that varies there.")
    return spaces


def check_against(against: tuple[str, ...], varied: Space) -> None:
    """Raises ValueError for settings to compare with that there will not be: not when everything has run."""
    for specification in against:
        for name, chosen in parse_space([specification], dict.fromkeys(varied, Any)).items():
            values = varied[name]
            if isinstance(values, list) and len(values) < 2:
                raise ValueError(f"--against {specification}: {name} has no other value to compare with; vary it.")
            if isinstance(values, list) and isinstance(chosen, list) and chosen[0] not in values:
                raise ValueError(f"--against {specification}: {name} varies over {values}; choose one of them.")


def sweep_of(
    factory: Callable[..., aj.Method], env: Environment, args: Args, varied: Space, directory: Path
) -> Callable[[list[dict[str, Any]]], aj.Table]:
    """`aj.sweep` as a function of the settings, in which these names vary."""
    of_method = [name for name in varied if name in inspect.signature(factory).parameters or name == "learning_rate"]
    of_schedule = [name for name in varied if name in OF_SCHEDULE]
    return functools.partial(
        aj.sweep,
        named(lambda **values: commandline.build(factory, env, {**args, **values}), of_method),
        named(lambda **values: make_schedule(env, {**args, **values}), [*of_schedule, "key"]),
        key=jax.random.key(0),
        seeds=args["seeds"],
        summarize=[
            summaries.evaluation(env, args["eval_episodes"]),
            summaries.final(),
            summaries.curve(min(args["points"], shortest(env, args, varied))),
            summaries.mean_staleness,
        ],
        num_workers=None if "num_workers" in varied else args["num_workers"],
        static=args["static"],
        batch_size=args["batch_size"],
        directory=directory,
        **{name: args[name] for name in ON_RAY},
    )


def by_optuna(sweep: Callable[[list[dict[str, Any]]], aj.Table], space: Space, args: Args) -> aj.Table:
    """The table of what Optuna asked for, batch by batch; what an earlier sweep has run it asks for again."""

    def value(settings: list[dict[str, Any]]) -> np.ndarray:
        return sweep(settings).interval("evaluation")[0]

    return sweep(choices_by_optuna(space, args["samples"], args["batch"], value))


def make_schedule(env: Environment, values: Args) -> aj.Schedule:
    """The schedule of a run: a fixed delay, or what the service times lead to."""
    workers, group_size = values["num_workers"], values["group_size"]
    updates = length(env, values)
    if values["delay"] is None:
        service = SERVICES[values["service"]](1.0)
        return aj.schedules.from_service_times(service, updates, workers, values["key"], group_size)
    if group_size != 1:
        raise ValueError(f"group_size={group_size} with delay={values['delay']}: a fixed delay is of single messages.")
    return aj.schedules.fixed_delay(updates, values["delay"], workers)


def length(env: Environment, values: Args) -> int:
    """The updates of a run."""
    return num_updates(values["total_steps"], commandline.steps_per_message(env, values) * values["group_size"])


def shortest(env: Environment, args: Args, varied: Space) -> int:
    """The least updates that a run of the sweep has."""
    sizes = {name: varied[name] for name in OF_LENGTH if name in varied}
    ends = [[x.low, x.high] if isinstance(x, Range) else x for x in sizes.values()]
    return min(length(env, {**args, **dict(zip(sizes, one, strict=True))}) for one in itertools.product(*ends))


def named(function: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    """The function with these parameters, by which `aj.sweep` knows what to pass."""

    def call(**values: Any) -> Any:
        return function(**values)

    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def report(table: aj.Table, args: Args) -> None:
    """Prints the table, the best settings first where they were sampled, and the differences that were asked for."""
    shown = table if args["grid"] else table.sorted("evaluation")
    print(shown.text("evaluation", "return", "staleness"))
    for against in args["against"]:
        space = parse_space([against], dict.fromkeys(table.settings[0], Any))
        table = table.against(**{name: values[0] for name, values in space.items()})  # type: ignore[index]
        print(f"\n{table.text('evaluation', 'return')}")


def save(table: aj.Table, args: Args, path: Path) -> list[str]:
    """Writes the table, the learning curves and, where they vary, the settings' evaluations; returns their names."""
    table.save(path / "table.csv")
    if importlib.util.find_spec("pyarrow"):
        table.save(path / "table.parquet")
    best = table.sorted("evaluation").first(6)
    points = best["return_curve"].shape[-1]
    share = np.arange(1, points + 1) / points
    curves = {best.label(i): (share * args["total_steps"], y) for i, y in enumerate(best["return_curve"])}
    plotting.learning_curve(curves).savefig(path / "curves.png")
    if not table.varied:
        (path / "settings.png").unlink(missing_ok=True)  # an earlier command's
        return ["table.csv", "curves.png"]
    draw_settings(table, "evaluation return").savefig(path / "settings.png")
    return ["table.csv", "settings.png", "curves.png"]


def draw_settings(table: aj.Table, label: str) -> Any:
    """A heat map where two names span a full grid; otherwise a panel for each name."""
    names, (middle, low, high) = table.varied, table.interval("evaluation")
    axes_values = [list(dict.fromkeys(s[name] for s in table.settings)) for name in names]
    pairs = list(itertools.product(*axes_values))
    place = {tuple(s[name] for name in names): i for i, s in enumerate(table.settings)}
    if len(names) == 2 and len(table.settings) == len(pairs) and place.keys() == set(pairs):
        y, x = axes_values
        order = np.reshape([place[pair] for pair in pairs], (len(y), len(x)))
        return plotting.heat_map(
            middle[order], x=x, y=y, x_label=names[1].replace("_", " "), y_label=names[0].replace("_", " "),
            label=label, spread=((high - low) / 2)[order],
        )  # fmt: skip
    figure, grid = new_figure(len(names), 1, size=(3.4, 2.3 * len(names)))
    for name, axes in zip(names, np.ravel(grid), strict=True):
        values = [s[name] if isinstance(s[name], (int, float)) else str(s[name]) for s in table.settings]
        axes.errorbar(values, middle, (middle - low, high - middle), fmt="o", markersize=3, linewidth=0.8)
        positive = [v for v in values if isinstance(v, (int, float)) and v > 0]
        if len(positive) == len(values) and max(positive) > 20 * min(positive):
            axes.set_xscale("log")
        axes.set_xlabel(name.replace("_", " "))
        axes.set_ylabel("evaluation return")
    return figure


def finished(_: BaseException) -> str:
    """Advice, once there are finished runs."""
    if not any(path.is_file() for directory in begun for path in (directory / "runs").rglob("*")):
        return ""
    return "\nWhat was finished is kept: the same command, or --resume DIRECTORY, goes on from there."


begun: list[Path] = []  # the directory of the sweep that runs

if __name__ == "__main__":
    sys.exit(exit_code(main, finished))
