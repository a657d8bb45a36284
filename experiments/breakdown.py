"""Where the time of an update goes, in the compiled engine and on threads, and what more threads wait for.

    python experiments/breakdown.py
    python experiments/breakdown.py --env Breakout-MinAtar --sizes 16x16x10

Rollout, gradient and `apply` are compiled alone, as loops; what the engines take beyond their sum is the engines' own.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import asyncjax as aj
from asyncjax.checks import check_counts
from benchmark import KEY, clock, timed
from figure import check, check_sizes, start, table


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    env: str = "CartPole-v1"
    """Environment of A3C: any gymnax id."""
    sizes: tuple[str, ...] = ("16x64x20", "64x1x5")
    """Workers x environments per worker x steps per message."""
    threads: tuple[int, ...] = (1, 2, 4, 16, 64)
    """Numbers of threads for the second table, with the environments and steps of each size; none leaves it out."""
    updates: int = 192
    """Updates of a timed run."""
    repeats: int = 5
    """Timed runs of each, in turns; the median counts."""


def main(args: Args) -> dict[str, dict[str, float]]:
    """Prints the tables; returns the microseconds of an update, by size and part."""
    check(args, zero=("threads",))
    check_sizes(args.sizes)
    for number in args.threads:
        check_counts(threads=number)
    parts = {size: breakdown(args, *(int(n) for n in size.split("x"))) for size in args.sizes}
    names = list(next(iter(parts.values())))
    rows = [[name, *(f"{of[name]:,.0f}" for of in parts.values())] for name in names]
    print(table([f"{args.env}, µs per update", *args.sizes], rows))
    for size in args.sizes if args.threads else ():
        _, envs, unroll = (int(n) for n in size.split("x"))
        head = [f"threads, {envs} x {unroll}", "updates/s", "job µs", "wait µs", "share waited", "staleness"]
        print("\n" + table(head, [contention(args, w, envs, unroll) for w in args.threads]), flush=True)
    return parts


def breakdown(args: Args, workers: int, envs: int, unroll: int) -> dict[str, float]:
    """Microseconds of an update by part."""
    method = aj.a3c(args.env, num_envs=envs, unroll_length=unroll)
    schedule = aj.schedules.round_robin(args.updates, workers)
    options: dict[str, Any] = {"num_workers": workers, "num_updates": args.updates}
    programs = {
        **{name: timed(one) for name, one in alone(method, args.updates).items()},
        "emulate, event by event": timed(lambda: aj.emulate(method, schedule, KEY, width=1, num_workers=workers)),
        "emulate, width chosen": timed(lambda: aj.emulate(method, schedule, KEY, num_workers=workers)),
        "one thread, one worker": lambda: clock(
            aj.run_threads(method, KEY, num_workers=1, num_updates=args.updates)[1]
        ),
        "one thread, all workers": lambda: clock(aj.run_threads(method, KEY, num_threads=1, **options)[1]),
    }
    for program in programs.values():
        program()
    seconds = [[program() for program in programs.values()] for _ in range(args.repeats)]
    medians = [1e6 * statistics.median(s) / args.updates for s in zip(*seconds, strict=True)]
    of = dict(zip(programs, medians, strict=True))
    summed = of["rollout"] + of["gradient"] + of["apply"]
    return of | {
        "emulate beyond the parts: snapshots, gather and scatter of workers": of["emulate, event by event"] - summed,
        "one thread, one worker, beyond the parts: dispatch and Python": of["one thread, one worker"] - summed,
        "one thread, all workers, beyond the parts": of["one thread, all workers"] - summed,
    }


def alone(method: aj.Method, num_updates: int) -> dict[str, Callable[[], Any]]:
    """The parts of an update, each in a compiled loop of its own."""
    assert method.halves is not None
    sample, gradient = method.halves.sample, method.halves.gradient
    assert gradient is not None
    shared, local = jax.jit(method.init, static_argnums=1)(KEY, 1)
    view, worker = method.view(shared), jax.tree.map(lambda x: x[0], local)
    data, _, _ = jax.jit(sample)(view, worker)
    stale = aj.Stale(jax.tree.map(lambda x: x[None], view), jnp.zeros(1, jnp.int32))

    def loop(step: Callable[[Any], Any], start: Any) -> Callable[[], Any]:
        run = jax.jit(lambda x: jax.lax.fori_loop(0, num_updates, lambda _, x: step(x), x))
        return lambda: run(start)

    def apply(state: Any) -> Any:
        return method.apply(state, jax.tree.map(lambda x: x[None], method.view(state)), stale)[0]

    def descend(params: Any) -> Any:  # a tiny step, so that no gradient is like the one before and can be left out
        return jax.tree.map(lambda p, g: p - 1e-9 * g, params, gradient(params, data)[0])

    return {
        "rollout": loop(lambda w: sample(view, w)[1], worker),
        "gradient": loop(descend, view),
        "apply": loop(apply, shared),
    }


def contention(args: Args, workers: int, envs: int, unroll: int) -> list[Any]:
    """A row of the second table: from the recorded schedule, medians over the repeats."""
    method = aj.a3c(args.env, num_envs=envs, unroll_length=unroll)
    rows = []
    for _ in range(1 + args.repeats):
        num_updates = max(args.updates, 4 * workers)
        _, schedule = aj.run_threads(method, KEY, num_workers=workers, num_threads=workers, num_updates=num_updates)
        time, begin, end = (np.asarray(x) for x in (schedule.time, schedule.begin, schedule.end))
        job, wait = (end - begin).mean(), (time[:, None] - end).mean()
        speed = schedule.num_updates / clock(schedule)
        rows.append([speed, 1e6 * job, 1e6 * wait, wait / (job + wait), schedule.staleness().mean()])
    speed, job, wait, share, staleness = np.median(rows[1:], axis=0)
    return [workers, f"{speed:,.0f}", f"{job:,.0f}", f"{wait:,.0f}", f"{share:.0%}", f"{staleness:.1f}"]


if __name__ == "__main__":
    start(main, Args, __doc__)
