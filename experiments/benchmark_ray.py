"""Measures Ray against threads: updates per second by the size of the parameters and by the number of workers.

    python experiments/benchmark_ray.py                                      # 10 kB, 1 MB, 10 MB
    python experiments/benchmark_ray.py --kilobytes 10 --workers 2 8 32 128 --work-ms 50 --engines ray

SGD on a quadratic: work and update are next to nothing, what is measured is the way of parameters and gradients.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import asyncjax as aj
import figure
from asyncjax.cluster import connected


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    kilobytes: tuple[int, ...] = (10, 1_000, 10_000)
    """Sizes of the parameters, and so of a gradient."""
    workers: tuple[int, ...] = (2,)
    """Numbers of workers."""
    engines: tuple[Literal["threads", "ray"], ...] = ("threads", "ray")
    """Engines to measure."""
    num_processes: int = 2
    """Processes that the workers share on Ray."""
    work_ms: float = 0.0
    """Mean of exponential artificial service times; 0: none."""
    repeats: int = 5
    """Runs of each, the engines in turn; their median and extremes are printed."""


def main(args: Args) -> None:
    """Measures and prints a table."""
    figure.check(args, zero=("work_ms",))
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    print("| parameters | workers | engine | updates per second: median (least, most) | a job, median ms |")
    print("|---|---|---|---|---|")
    with connected(None, args.num_processes):
        for kilobytes in args.kilobytes:
            params = jnp.ones(kilobytes * 250)
            method = aj.sgd(lambda w: 0.5 * jnp.sum(w**2), params, optimizer=optax.sgd(1e-3))
            for num_workers in args.workers:
                size = (method, num_workers, kilobytes, args)
                runs = [[measure(engine, *size) for engine in args.engines] for _ in range(args.repeats)]
                for engine, of_engine in zip(args.engines, np.array(runs).transpose(1, 2, 0), strict=True):
                    speed, job = of_engine
                    least, middle, most = np.quantile(speed, [0, 0.5, 1])
                    speeds = f"{middle:,.0f} ({least:,.0f}, {most:,.0f})"
                    print(
                        f"| {kilobytes:,} kB | {num_workers} | {engine} | {speeds} | {np.median(job):.2f} |", flush=True
                    )


def measure(engine: str, method: aj.Method, num_workers: int, kilobytes: int, args: Args) -> tuple[float, float]:
    """Updates per second of one run after its first quarter, and the median milliseconds of a job with its travels."""
    options: dict[str, Any] = {"num_workers": num_workers, "num_updates": min(2000, max(120, 400_000 // kilobytes))}
    if args.work_ms:
        options["service"] = aj.service.exponential(1e-3 * args.work_ms)
    if engine == "threads":
        _, schedule = aj.run_threads(method, jax.random.key(0), **options)
    else:
        _, schedule = aj.run_ray(method, jax.random.key(0), num_processes=args.num_processes, **options)
    time, begin, end = (np.asarray(x) for x in (schedule.time, schedule.begin, schedule.end))
    first = len(time) // 4
    return (len(time) - 1 - first) / (time[-1] - time[first]), 1e3 * float(np.median(end - begin))


if __name__ == "__main__":
    figure.start(main, Args, __doc__)
