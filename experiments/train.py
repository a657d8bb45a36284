"""Trains a method in an environment, asynchronously, and records the run.

    python experiments/train.py a3c --env CartPole-v1 --engine threads --num-workers 8 --total-steps 500000 --seed 0
    python experiments/train.py --resume RUN_DIR

A run that was stopped in any way continues with --resume RUN_DIR (and --total-steps, to make it longer).
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from asyncjax import commandline, plotting, runs, schedules, service
from asyncjax.emulate import emulate
from asyncjax.environment import Environment, make_env
from asyncjax.evaluate import evaluate
from asyncjax.method import Chunk, Method, Result, State
from asyncjax.progress import Progress
from asyncjax.recorder import Recorder
from asyncjax.replay import replay
from asyncjax.schedules import Schedule
from asyncjax.threads import run_threads

SERVICES: dict[str, Callable[[float], service.Service]] = {
    "constant": service.constant,
    "exponential": service.exponential,
    "gamma": lambda mean: service.gamma(16.0, mean),
    "lognormal": lambda mean: service.lognormal(0.5, mean),
    "pareto": lambda mean: service.pareto(2.0, mean),
    "straggler": lambda mean: service.straggler(0.05, 10.0, mean),
}


@dataclasses.dataclass(frozen=True)
class Training:
    """What to train, where and how long."""

    env: str = "CartPole-v1"
    """Environment: any gymnax id."""
    engine: Literal["threads", "emulate", "replay"] = "threads"
    """threads: workers on host threads, as fast as the machine allows, each run another schedule;
    emulate: one compiled program for a given schedule, deterministic; replay: a given schedule, update by update."""
    num_workers: int = 8
    """Asynchronous workers."""
    total_steps: int = 500_000
    """Environment steps of all workers together, rounded up to whole updates."""
    seed: int = 0
    """Seed of everything that is random."""
    eval_episodes: int = 100
    """Fresh episodes on which the final policy is evaluated greedily; 0 for none."""


@dataclasses.dataclass(frozen=True)
class Asynchrony:
    """Who waits for whom, and how long work takes."""

    group_size: int = 1
    """Messages per update. With --wait next-version and as many as workers, training is synchronous."""
    wait: Literal["never", "next_version"] = "never"
    """Whether a worker begins its next job at once, or waits until a newer version exists."""
    bound: int | None = None
    """No worker gets more than so many messages ahead of the slowest one (stale-synchronous parallel)."""
    publication: Literal["atomic", "leaf"] = "atomic"
    """threads: publish new parameters as a whole, or leaf by leaf, so that reads may be torn."""
    service: Literal["constant", "exponential", "gamma", "lognormal", "pareto", "straggler"] | None = None
    """Service-time model of the workers: gamma of shape 16, log-normal of sigma 0.5, Pareto of shape 2, straggler: one
    job in 20 takes ten times as long. emulate, replay: None is constant, workers in turn. threads: sleeps so long
    in addition to the work; None is no sleep."""
    service_mean: float = 0.01
    """Mean service time in seconds."""
    schedule: Path | None = None
    """emulate, replay: run this recorded schedule.npz instead, --total-steps at most."""


@dataclasses.dataclass(frozen=True)
class Output:
    """What is written, and when."""

    run_dir: Path | None = None
    """Run directory; by default runs/<env>-<method>-<engine>-<seed>-<time>."""
    checkpoint_every: float = 60.0
    """Seconds between checkpoints."""
    log_every: int | None = None
    """Updates per line of metrics.jsonl; by default a hundredth of the run, 1024 at most."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache directory, so that the next start is quicker."""


@dataclasses.dataclass(frozen=True)
class Resume:
    """Continues a run from its last checkpoint, with the configuration recorded there."""

    resume: Path
    """The run directory."""
    total_steps: int | None = None
    """Environment steps of the whole run, to make it longer than first planned."""


Config = dict[str, Any]  # every option by name, and "method": what config.json holds


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    run_dir: list[Path] = []  # known from the moment it exists, for the messages below
    try:
        config, path, resumed = parse(argv)
        train(config, path, resumed, run_dir)
    except KeyboardInterrupt:
        where = f" Continue with: python experiments/train.py --resume {run_dir[0]}" if run_dir else ""
        print(f"\nInterrupted.{where}", file=sys.stderr)
        return 130
    except Exception as error:
        return explain(error, run_dir[0] if run_dir else None)
    return 0


def parse(argv: list[str]) -> tuple[Config, Path, bool]:
    """The configuration, the run directory, and whether it is continued."""
    if any(word.split("=")[0] == "--resume" for word in argv):
        resume = tyro.cli(Resume, args=argv, prog="train.py")
        config = runs.load(resume.resume).config
        if resume.total_steps is not None:
            config["total_steps"] = resume.total_steps
        return config, resume.resume, True
    commands = {name: command(name, factory) for name, factory in commandline.factories().items()}
    arguments = tyro.extras.subcommand_cli_from_dict(
        commands, args=argv, prog="train.py", description=__doc__, config=(tyro.conf.OmitArgPrefixes,)
    )
    config = {"method": type(arguments).__name__}
    for part in (arguments.options, arguments.training, arguments.asynchrony, arguments.output):
        config |= {name: str(value) if isinstance(value, Path) else value for name, value in vars(part).items()}
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = Path("runs") / f"{config['env']}-{config['method']}-{config['engine']}-{config['seed']}-{stamp}"
    return config, Path(config.pop("run_dir") or path), False


def command(name: str, factory: Callable[..., Method]) -> type:
    """The dataclass of one subcommand: the method's own options and those of every run."""
    parts = {"options": commandline.options(factory), "training": Training, "asynchrony": Asynchrony, "output": Output}
    fields = [(key, kind, dataclasses.field(default_factory=kind)) for key, kind in parts.items()]
    made = dataclasses.make_dataclass(name, fields)
    made.__doc__ = (factory.__doc__ or "").split("\n")[0]
    return made


def train(config: Config, path: Path, resumed: bool, run_dir: list[Path]) -> None:
    """One run from its configuration to its summary."""
    if config["compilation_cache"]:
        keep_compiled_programs()
    env = make_env(config["env"])
    method = commandline.build(commandline.factories()[config["method"]], env, config)
    schedule = make_schedule(config)
    updates = schedule.num_updates if schedule is not None else num_updates(config)
    config["log_every"] = config["log_every"] or max(1, min(updates // 100, 1024))
    state = runs.load(path).restore(method) if resumed else None
    per_update = steps_per_update(config, schedule)
    progress = Progress(updates * per_update, state.update * per_update if state else 0)
    recorder = Recorder(
        path, config, resume=state, steps_per_update=per_update, checkpoint_every=config["checkpoint_every"],
        restarting_clock=config["engine"] == "threads", on_row=progress,
    )
    run_dir.append(path)
    print(f"{config['method']} on {env.name}, {config['engine']}, {config['num_workers']} workers -> {path}", flush=True)
    with recorder, progress:
        result = run(config, method, schedule, updates, state, recorder)
    summarize(config, env, method, result, path)
