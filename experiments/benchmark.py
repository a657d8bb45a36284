"""Measures A3C's speed: the engines against each other and against a fused synchronous loop.

    python experiments/benchmark.py
    python experiments/benchmark.py --sizes 64x1x5 --repeats 3

All ways to run a size take turns, repeat after repeat, so that a noisy machine is noisy to all of them alike; what
counts are the ratios of the medians.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax

jax.config.update("jax_cpu_enable_async_dispatch", False)  # what train.py sets too
if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)  # for the ways that divide the work; others run on the first

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

import asyncjax as aj  # noqa: E402
import figure  # noqa: E402
from asyncjax.plotting.panels import COLOURS, COLUMN, new_figure  # noqa: E402
from asyncjax.runs import make_directory  # noqa: E402

KEY = jax.random.key(0)
KINDS = ("synchronous", "emulate", "event", "threads")  # how the names of ways begin
SERVICES = {"gamma": aj.service.gamma(16.0), "exponential": aj.service.exponential()}


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    env: str = "CartPole-v1"
    """Environment: any gymnax id with discrete actions."""
    sizes: tuple[str, ...] = ("16x64x20", "16x16x10", "64x1x5")
    """Workers x environments per worker x steps per message."""
    steps: int = 300_000
    """Environment steps of one timed run, rounded to whole rounds of all workers."""
    max_updates: int = 10_000
    """Updates of one timed run at most, so that small messages do not take all the time."""
    repeats: int = 7
    """Timed runs of each; the median counts."""
    threads: bool = True
    """Whether to measure host threads, too."""
    out: Path = Path("runs/benchmark.json")
    """A JSON file for the results; their picture goes beside it."""


def main(args: Args) -> list[dict[str, Any]]:
    """Prints one table per size, and draws them; returns the rows of all."""
    figure.check(args)
    figure.check_sizes(args.sizes)
    make_directory(args.out.parent, "folder", "--out")
    device = jax.devices()[0]
    print(f"{args.env} on {len(jax.devices())} x {device.device_kind} ({device.platform}), jax {jax.__version__}")
    rows = [row for size in args.sizes for row in measure(args, size)]
    args.out.write_text(json.dumps(rows, indent=1))
    plot(rows).savefig(args.out.with_suffix(".png"))
    print(args.out.with_suffix(".png"))
    return rows


def measure(args: Args, size: str) -> list[dict[str, Any]]:
    """All ways to run one size, in turns."""
    workers, envs, unroll = (int(part) for part in size.split("x"))
    rounds = min(args.steps // (envs * unroll * workers), args.max_updates // workers)
    updates = max(1, rounds) * workers
    steps = updates * envs * unroll
    seconds = in_turns(dict(ways(args, workers, envs, unroll, updates)), args.repeats, size)
    rows = [{"size": size, "name": name, **summary(steps, values)} for name, values in seconds.items()]
    show(size, rows)
    return rows


def in_turns(programs: dict[str, Callable[[], float]], repeats: int, what: str) -> dict[str, list[float]]:
    """The seconds of programs that were run once before, to compile, and then take turns."""
    for name, program in programs.items():
        start = time.perf_counter()
        program()
        print(f"\r\033[K{what}: {name}, first run {time.perf_counter() - start:.1f} s", end="", flush=True)
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            seconds[name].append(program())
    print("\r\033[K", end="")
    return seconds


def ways(args: Args, workers: int, envs: int, unroll: int, updates: int) -> Iterator[tuple[str, Callable[[], float]]]:
    """Name and program; a program returns the seconds it took."""
    env, devices = aj.make_env(args.env), jax.devices()
    on_cpu = devices[0].platform == "cpu"
    optimizer = optax.adam(1e-3)
    method = aj.a3c(env, optimizer=optimizer, num_envs=envs, unroll_length=unroll)
    whole = aj.a3c(env, optimizer=optimizer, num_envs=envs * workers, unroll_length=unroll)
    yield "synchronous, fused", timed(synchronous(whole, updates // workers))
    schedules = {"round robin": aj.schedules.round_robin(updates, workers)} | {
        name: aj.schedules.from_service_times(service, updates, workers, KEY) for name, service in SERVICES.items()
    }
    for name, schedule in schedules.items():
        yield f"emulate, {name}", timed(lambda s=schedule: aj.emulate(method, s, KEY))
        if len(devices) > 1:
            divided = timed(lambda s=schedule: aj.emulate(method, s, KEY, devices=devices))
            yield f"emulate, {name}, {len(devices)} devices", divided
        yield f"event by event, {name}", timed(lambda s=schedule: aj.emulate(method, s, KEY, width=1))
    if args.threads:

        def threads(num_threads: int | None = None) -> float:
            options: dict[str, Any] = {"num_workers": workers, "num_updates": updates, "num_threads": num_threads}
            options["devices"] = devices[:1] if on_cpu else devices
            return clock(aj.run_threads(method, KEY, **options)[1])

        yield "threads", threads
        yield "threads, one for each worker", partial(threads, workers)


def synchronous(method: aj.Method, num_updates: int) -> Callable[[], Any]:
    """What a user would write who wants no asynchrony: all environments in one batch, one scan."""

    def run(key: jax.Array) -> Any:
        shared, local = method.init(key, 1)

        def update(state: Any, _: None) -> Any:
            shared, mine = state
            view = method.view(shared)
            message, mine, metrics = method.work(view, mine)
            group, stale = jax.tree.map(lambda x: x[None], (message, view))
            shared, _metrics = method.apply(shared, group, aj.Stale(stale, jnp.zeros(1, jnp.int32)))
            return (shared, mine), metrics

        return jax.lax.scan(update, (shared, jax.tree.map(lambda x: x[0], local)), None, length=num_updates)

    compiled = jax.jit(run)
    return lambda: compiled(KEY)


def timed(program: Callable[[], Any]) -> Callable[[], float]:
    """A function that runs the program and returns the seconds it took."""

    def run() -> float:
        start = time.perf_counter()
        jax.block_until_ready(jax.tree.leaves(program()))
        return time.perf_counter() - start

    return run


def clock(schedule: aj.Schedule) -> float:
    """Seconds by the workers' clock, which begins when all is compiled, as in the second run of the compiled ways."""
    assert schedule.time is not None
    return float(schedule.time[-1])


def summary(steps: int, seconds: list[float]) -> dict[str, float]:
    """Median speed, the extremes, and the spread of the seconds as a fraction of their median."""
    low, median, high = min(seconds), statistics.median(seconds), max(seconds)
    speeds = {"steps_per_second": steps / median, "slowest": steps / high, "fastest": steps / low}
    return {**speeds, "spread": (high - low) / median}


def plot(rows: list[dict[str, Any]]) -> Any:
    """A panel for each size: the median speed of each way as a bar, its extremes, and its ratio to the first way."""
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    most = max(sum(row["size"] == size for row in rows) for size in sizes)
    picture, grid = new_figure(1, len(sizes), (1.2 * COLUMN[0] * len(sizes), 0.8 + 0.22 * most))
    for axes, size in zip(np.atleast_1d(grid), sizes, strict=True):
        of_size = [row for row in rows if row["size"] == size]
        low, speed, high = (np.array([r[k] for r in of_size]) for k in ("slowest", "steps_per_second", "fastest"))
        place, first = np.arange(len(of_size)), speed[0]
        kinds = [next(i for i, kind in enumerate(KINDS) if row["name"].startswith(kind)) for row in of_size]
        axes.barh(place, speed, color=[COLOURS[i] for i in kinds], alpha=0.8)
        axes.errorbar(speed, place, xerr=[speed - low, high - speed], fmt="none", color=COLOURS[6], linewidth=0.8)
        for y, x, end in zip(place, speed, high, strict=True):
            axes.annotate(f"{x / first:.2f}", (end, y), (3, 0), textcoords="offset points", va="center", fontsize=6)
        axes.set_yticks(place, [r["name"] for r in of_size], fontsize=6)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.15 * high.max())
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e3:,.0f}k")
        axes.set_xlabel("env steps/s (median, extremes)")
        axes.set_title(f"{size}; numbers: / {of_size[0]['name']}", fontsize=7, loc="left")
    return picture


def show(size: str, rows: list[dict[str, Any]]) -> None:
    """The table of one size, with the ratios that matter."""
    from rich.console import Console
    from rich.table import Table

    speed = {row["name"]: row["steps_per_second"] for row in rows}
    table = Table(title=f"{size} (workers x environments x steps)", title_justify="left")
    for column in ("", "env steps/s", "/ synchronous", "/ event by event", "spread"):
        table.add_column(column, justify="left" if not column else "right")
    for row in rows:
        name = row["name"]
        kind, _, of = name.partition(", ")
        event = speed.get(f"event by event, {of.split(', ')[0]}") if kind == "emulate" else None
        table.add_row(
            name,
            f"{speed[name]:,.0f}",
            f"{speed[name] / speed['synchronous, fused']:.2f}",
            f"{speed[name] / event:.2f}" if event else "",
            f"{row['spread']:.0%}",
        )
    Console().print(table)
    if "threads" in speed:
        print(f"threads / emulate, round robin: {speed['threads'] / speed['emulate, round robin']:.2f}")


if __name__ == "__main__":
    figure.start(main, Args, __doc__)
