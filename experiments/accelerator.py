"""Measures on one accelerator what benchmark.py measures on CPUs: speed by size, waves, a large sweep, memory.

    python experiments/accelerator.py
    python experiments/accelerator.py --workers 16 --envs 4 16 --runs 32 --updates 256     (small, to try it on CPUs)

A3C on CartPole-v1, emulated round robin in groups of one. Ways to run take turns, after a first run that compiles. Its
size is for some minutes of a GPU.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import asyncjax as aj
import figure
from asyncjax.runs import make_directory
from benchmark import KEY, in_turns, summary, timed


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    workers: int = 256
    """Asynchronous workers."""
    envs: tuple[int, ...] = (16, 256, 2048)
    """Environments of each worker."""
    unroll: int = 20
    """Steps of a message."""
    updates: int = 4096
    """Updates of a timed run."""
    repeats: int = 3
    """Timed runs of each; the median counts."""
    runs: int = 1024
    """Runs of the sweep; 0 for none."""
    parameters: int = 4_000_000
    """Parameters of the model whose memory is measured; 0 for none."""
    out: Path | None = None
    """A JSON file for the results."""


def main(args: Args) -> dict[str, Any]:
    """Prints a line for each measurement, as it comes; returns them."""
    figure.check(args, zero=("runs", "parameters"))
    if args.out is not None:
        make_directory(args.out.parent, "folder", "--out")
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}, {args.workers} workers", flush=True)
    found: dict[str, Any] = {"memory": memory(args)} if args.parameters else {}
    found |= {f"{envs} environments": speed(args, envs) for envs in args.envs}
    if args.runs:
        found["sweep"] = sweep(args.runs)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1))
    return found


def speed(args: Args, envs: int) -> dict[str, float]:
    """Environment steps per second in waves and event by event; goals: 50 million, and 20 times at 256 x 16."""
    method = aj.a3c("CartPole-v1", optimizer=optax.adam(1e-3), num_envs=envs, unroll_length=args.unroll)
    few = max(1, args.updates // 16)  # event by event takes longer
    counts = {"waves": args.updates, "event by event": few}
    schedules = {name: aj.schedules.round_robin(count, args.workers) for name, count in counts.items()}
    run = {
        "waves": timed(lambda: aj.emulate(method, schedules["waves"], KEY)),
        "event by event": timed(lambda: aj.emulate(method, schedules["event by event"], KEY, width=1)),
    }
    seconds = in_turns(run, args.repeats, f"{envs} environments")
    steps = envs * args.unroll
    speeds = {name: summary(counts[name] * steps, seconds[name])["steps_per_second"] for name in run}
    ratio = speeds["waves"] / speeds["event by event"]
    print(
        f"{envs} environments x {args.unroll} steps: {speeds['waves']:,.0f} steps/s in waves,"
        f" {speeds['event by event']:,.0f} event by event, ratio {ratio:.1f}",
        flush=True,
    )
    return {**speeds, "ratio": ratio}


def sweep(runs: int) -> dict[str, float]:
    """Seconds of a sweep over learning rates, delays and seeds, compiling included and, begun again, not."""
    seeds = max(1, runs // 16)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        aj.sweep(
            method=lambda learning_rate: aj.a3c("Catch-bsuite", optimizer=optax.adam(learning_rate)),
            schedule=lambda delay: aj.schedules.fixed_delay(500, delay),
            settings=aj.grid(learning_rate=[5e-4, 1e-3, 2e-3, 4e-3], delay=[0, 4, 16, 64]),
            seeds=seeds,
            key=KEY,
        )
        seconds.append(time.perf_counter() - start)
    print(f"sweep of {16 * seeds} runs of 500 updates: {seconds[0]:.1f} s, and again {seconds[1]:.1f} s", flush=True)
    return {"runs": 16 * seeds, "first": seconds[0], "again": seconds[1]}


def memory(args: Args) -> dict[str, float | None]:
    """The most that the device held, in copies of the parameters; goal: 2 (W + 2). Measured first: a peak stays one."""
    stats = jax.devices()[0].memory_stats() or {}
    before = stats.get("bytes_in_use", 0)
    loss = lambda w, x: 0.5 * jnp.sum(jnp.square(w - x))  # noqa: E731
    sample = lambda key: jax.random.normal(key, ())  # noqa: E731
    method = aj.sgd(loss, jnp.ones(args.parameters), optimizer=optax.adam(0.1), sample=sample)
    start = time.perf_counter()
    aj.emulate(method, aj.schedules.round_robin(4 * args.workers, args.workers), KEY)
    seconds = time.perf_counter() - start
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    copies = None if peak is None else (peak - before) / (4 * args.parameters)
    said = "this backend does not tell" if copies is None else f"{copies:.0f} copies"
    goal = 2 * (args.workers + 2)
    print(f"memory, {args.parameters:,} parameters: {said}, goal {goal}; {seconds:.1f} s", flush=True)
    return {"copies": copies, "goal": goal}


if __name__ == "__main__":
    figure.start(main, Args, __doc__)
