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
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax

jax.config.update("jax_cpu_enable_async_dispatch", False)  # what train.py sets too

import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402

import asyncjax as aj  # noqa: E402

KEY = jax.random.key(0)
SERVICES = {"gamma": aj.service.gamma(16.0), "exponential": aj.service.exponential()}


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    env: str = "CartPole-v1"
    """Environment: any gymnax id with discrete actions."""
    sizes: tuple[str, ...] = ("16x64x20", "16x16x10", "64x1x5")
    """Workers x environments per worker x steps per message."""
    steps: int = 200_000
    """Environment steps of one timed run, rounded to whole rounds of all workers."""
    repeats: int = 7
    """Timed runs of each; the median counts."""
    threads: bool = True
    """Whether to measure host threads, too."""
    out: Path | None = None
    """A JSON file for the results."""


def main(args: Args) -> list[dict[str, Any]]:
    """Prints one table per size; returns the rows of all."""
    device = jax.devices()[0]
    print(f"{args.env} on {len(jax.devices())} x {device.device_kind} ({device.platform}), jax {jax.__version__}")
    rows = [row for size in args.sizes for row in measure(args, size)]
    if args.out is not None:
        args.out.write_text(json.dumps(rows, indent=1))
    return rows


def measure(args: Args, size: str) -> list[dict[str, Any]]:
    """All ways to run one size, in turns."""
    workers, envs, unroll = (int(part) for part in size.split("x"))
    updates = max(1, args.steps // (envs * unroll * workers)) * workers
    steps = updates * envs * unroll
    programs, seconds = dict(ways(args, workers, envs, unroll, updates)), {}
    for name, program in programs.items():
        start = time.perf_counter()
        program()
        seconds[name] = []
        print(f"\r\033[K{size}: {name}, first run {time.perf_counter() - start:.1f} s", end="", flush=True)
    for _ in range(args.repeats):
        for name, program in programs.items():
            seconds[name].append(program())
    print("\r\033[K", end="")
    rows = [{"size": size, "name": name, **summary(steps, values)} for name, values in seconds.items()]
    show(size, rows)
    return rows


def ways(args: Args, workers: int, envs: int, unroll: int, updates: int) -> Iterator[tuple[str, Callable[[], float]]]:
    """Name and program; a program returns the seconds it took."""
    env = aj.make_env(args.env)
    optimizer = optax.adam(1e-3)
    method = aj.a3c(env, optimizer=optimizer, num_envs=envs, unroll_length=unroll)
    whole = aj.a3c(env, optimizer=optimizer, num_envs=envs * workers, unroll_length=unroll)
    yield "synchronous, fused", timed(synchronous(whole, updates // workers))
    schedules = {"round robin": aj.schedules.round_robin(updates, workers)} | {
        name: aj.schedules.from_service_times(service, updates, workers, KEY) for name, service in SERVICES.items()
    }
    for name, schedule in schedules.items():
        yield f"emulate, {name}", timed(lambda s=schedule: aj.emulate(method, s, KEY))
        yield f"event by event, {name}", timed(lambda s=schedule: aj.emulate(method, s, KEY, width=1))
    if args.threads:

        def threads(num_threads: int | None = None) -> float:
            options: dict[str, Any] = {"num_workers": workers, "num_updates": updates, "num_threads": num_threads}
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
    """Median speed, and the spread of the seconds as a fraction of their median."""
    median = statistics.median(seconds)
    return {"steps_per_second": steps / median, "spread": (max(seconds) - min(seconds)) / median}


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
        event = speed.get(name.replace("emulate", "event by event")) if name.startswith("emulate") else None
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
    import tyro

    main(tyro.cli(Args, description=__doc__))
    sys.exit(0)
