"""asyncjax beside what others would run, on CartPole-v1: the speed of the training loop, and the time to a good policy.

    python experiments/benchmark_peers.py speed
    python experiments/benchmark_peers.py target

Every way is a command of its own (`experiments/peers`), and all take turns, repeat after repeat. `speed` compares the
environment steps per second that each command reports for its training loop, compiled beforehand. `target` compares
the seconds that a whole command takes, imports and compiling with an empty cache included, with the number of steps
after which its final policy returns 475.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import tyro

import figure
from asyncjax.runs import make_directory

HERE = Path(__file__).resolve().parent
OURS = "asyncjax A3C, emulated"
SPEED = {
    OURS: "peers/asyncjax_a3c.py",
    "asyncjax A3C, threads": "peers/asyncjax_a3c.py --engine threads",
    "Hogwild A3C in PyTorch, 2 processes": "peers/hogwild.py --total-steps 30000 --eval-episodes 0",
    "Stable-Baselines3 A2C, 64 environments": "peers/sb3.py --total-steps 200000 --eval-episodes 0",
    "rejax PPO": "peers/rejax_ppo.py --total-steps 131072",
    "gymnax, random policy, 1,024 environments": "peers/random_policy.py",
}
TARGET = {
    OURS: "train.py a3c --engine emulate --service exponential --eval-episodes 20 --total-steps {steps}",
    "asyncjax A3C, threads": "train.py a3c --engine threads --eval-episodes 20 --total-steps {steps}",
    "Hogwild A3C in PyTorch, 2 processes": "peers/hogwild.py --total-steps {steps}",
    "Stable-Baselines3 A2C, 8 environments": "peers/sb3.py --num-envs 8 --total-steps {steps}",
    "rejax PPO": "peers/rejax_ppo.py --once --total-steps {steps}",
}
BUDGETS = (50_000, 100_000, 200_000, 400_000, 800_000)


@dataclasses.dataclass(frozen=True)
class Args:
    """What to compare."""

    what: tyro.conf.Positional[Literal["speed", "target"]]
    """speed: steps per second of the training loops. target: seconds from the command to a policy of 475."""
    repeats: int = 5
    """Runs of each; the median counts."""
    target: float = 475.0
    """target: the return, over 20 greedy episodes, that counts as solved."""
    seeds: int = 3
    """target: seeds of which the median has to reach the target within the number of steps."""
    only: tuple[str, ...] = ()
    """Names, or parts of names, of those to run; by default all."""
    out: Path | None = None
    """A JSON file for the results."""


def main(args: Args) -> dict[str, Any]:
    """Runs the comparison and prints its table."""
    figure.check(args)
    commands = SPEED if args.what == "speed" else TARGET
    chosen = {name: c for name, c in commands.items() if not args.only or any(part in name for part in args.only)}
    if not chosen:
        raise ValueError(f"only={args.only}: there is no such name; there are {', '.join(commands)}.")
    if args.out is not None:
        make_directory(args.out.parent, "folder", "--out")
    rows = speed(args, chosen) if args.what == "speed" else time_to_target(args, chosen)
    if args.out is not None:
        args.out.write_text(json.dumps(rows, indent=1))
    show(args.what, rows)
    return rows


def speed(args: Args, commands: dict[str, str]) -> dict[str, Any]:
    """Median steps per second of each way's training loop."""
    values: dict[str, list[float]] = {name: [] for name in commands}
    for repeat in range(args.repeats):
        for name, command in commands.items():
            progress(f"{repeat + 1}/{args.repeats}: {name}")
            values[name].append(run(command)["steps_per_second"])
    return {name: {"steps_per_second": statistics.median(v), "all": v} for name, v in values.items()}


def time_to_target(args: Args, commands: dict[str, str]) -> dict[str, Any]:
    """Median seconds of the whole command with the smallest budget with which the median seed reaches the target."""
    rows = {name: {"steps": budget(args, name, command), "all": []} for name, command in commands.items()}
    for repeat in range(args.repeats):
        for name, command in commands.items():
            progress(f"{repeat + 1}/{args.repeats}: {name}, {rows[name]['steps']:,} steps")
            rows[name]["all"].append(run(command.format(steps=rows[name]["steps"]), repeat)["command_seconds"])
    return {name: row | {"seconds": statistics.median(row["all"])} for name, row in rows.items()}


def budget(args: Args, name: str, command: str) -> int:
    """The smallest number of steps with which the median seed reaches the target; the largest where none does."""
    for steps in BUDGETS:
        progress(f"{name}: is it solved after {steps:,} steps?")
        evaluations = [run(command.format(steps=steps), seed)["evaluation"] for seed in range(args.seeds)]
        if statistics.median(evaluations) >= args.target:
            return steps
    print(f"\r\033[K{name}: {args.target} not reached within {BUDGETS[-1]:,} steps; last {evaluations}")
    return BUDGETS[-1]


def run(command: str, seed: int | None = None) -> dict[str, Any]:
    """What a command reports, and `command_seconds`, those of all of it, with an empty compilation cache."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, *command.split()] + ([] if seed is None else ["--seed", str(seed)])
        words[1] = str(HERE / words[1])
        ours = words[1].endswith("train.py")
        words += ["--run-dir", f"{folder}/run"] if ours else []
        environment = os.environ | {"XDG_CACHE_HOME": f"{folder}/cache", "PYTHONWARNINGS": "ignore"}
        start = time.perf_counter()
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"{' '.join(words[1:])} failed:\n{done.stderr}")
        if ours:
            returns = json.loads((Path(folder) / "run" / "summary.json").read_text())["evaluation_returns"]
            report: dict[str, Any] = {"evaluation": statistics.mean(returns)}
        else:
            report = json.loads(done.stdout.strip().splitlines()[-1])
        return report | {"command_seconds": seconds}


def progress(text: str) -> None:
    """One line that the next one replaces."""
    print(f"\r\033[K{text}", end="", flush=True)


def show(what: str, rows: dict[str, Any]) -> None:
    """The table, with the ratio of asyncjax to each."""
    from rich.console import Console
    from rich.table import Table

    print("\r\033[K", end="")
    column = "steps_per_second" if what == "speed" else "seconds"
    ours = rows.get(OURS, {}).get(column)
    table = Table(title=f"CartPole-v1, {what}", title_justify="left")
    headings = ("", "env steps/s", "asyncjax is") if what == "speed" else ("", "seconds", "steps", "asyncjax is")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for name, row in rows.items():
        ratio = None if ours is None else ours / row[column] if what == "speed" else row[column] / ours
        cells = [f"{row[column]:,.0f}"] if what == "speed" else [f"{row[column]:.1f}", f"{row['steps']:,}"]
        table.add_row(name, *cells, "" if ratio is None else f"{ratio:.3g} times as fast")
    Console().print(table)


if __name__ == "__main__":
    figure.start(main, Args, __doc__)
