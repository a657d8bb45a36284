"""What asynchrony costs as the work grows: time per step against workers, environments, parameters and updates.

    python experiments/cost.py
    python experiments/cost.py --quick

A3C on CartPole-v1, emulated. Only one size grows at a time; the times are medians of interleaved runs, compiled before,
in seconds of one core, which work beside it lengthens less than those of a clock.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import asyncjax as aj
import figure
from asyncjax.networks import MLP, ActorCritic
from asyncjax.plotting.panels import COLOURS, COLUMN, new_figure
from figure import Arrays


class Size(NamedTuple):
    """One point of the figure."""

    workers: int = 16
    envs: int = 16
    hidden: int = 64
    updates: int = 256
    unroll: int = 10

    @property
    def steps(self) -> int:
        """Environment steps of the run."""
        return self.updates * self.envs * self.unroll


def steps_alike(*sizes: Size, steps: int = 80_000) -> list[Size]:
    """The sizes, each with the updates that make about as many environment steps, in whole rounds of the workers."""
    return [
        size._replace(updates=size.workers * max(1, steps // (size.steps // size.updates * size.workers)))
        for size in sizes
    ]


SIZES = {
    "workers": steps_alike(*(Size(workers=w, envs=1) for w in (1, 4, 16, 64, 256, 1024))),
    "environments": steps_alike(*(Size(envs=e) for e in (1, 4, 16, 64, 256, 1024))),
    "parameters": [
        Size(workers=4, envs=4, hidden=h, updates=u)
        for h, u in ((16, 512), (64, 512), (220, 256), (700, 64), (2230, 16))
    ],
    "updates": [Size(envs=1, unroll=1, updates=10**u) for u in (3, 4, 5, 6)],
}
LABELS = {
    "workers": "workers, 1 environment each",
    "environments": "environments of each of 16 workers",
    "parameters": "parameters, 4 workers x 4 environments",
    "updates": "updates of 1 environment step",
}
SMALL = {name: sizes[:2] for name, sizes in SIZES.items()}


@dataclasses.dataclass(frozen=True)
class Args(figure.Output):
    """What to measure."""

    axes: tuple[str, ...] = tuple(SIZES)
    """What grows: workers, environments, parameters, updates."""
    repeats: int = 5
    """Timed runs of each size, in turns; the median counts."""


def main(args: Args) -> Arrays:
    """The figure, its data and its numbers."""
    figure.check(args, axes=SIZES)
    return figure.command("cost", args, {"repeats": 1, "axes": ("workers", "updates")}, run, plot, report)


def run(args: Args) -> Arrays:
    """What grew, by axis, and "AXIS, seconds" of a step, Float[repeats, sizes, 2]: round robin, exponential times."""
    arrays: Arrays = {}
    for axis in args.axes:
        sizes = (SMALL if args.quick else SIZES)[axis]
        programs = [program(size, service) for size in sizes for service in (None, aj.service.exponential())]
        seconds = [[one() for one in programs] for _ in range(1 + args.repeats)][1:]
        shape = (args.repeats, len(sizes), 2)
        steps = np.array([size.steps for size in sizes])[:, None]
        arrays[f"{axis}, seconds"] = np.array(seconds).reshape(shape) / steps
        arrays[axis] = np.array([grown(axis, size) for size in sizes])
        print(f"{axis}: {np.median(arrays[f'{axis}, seconds'], 0)[:, 0] * 1e6} us per step", flush=True)
    return arrays


def grown(axis: str, size: Size) -> int:
    """The number on the axis."""
    if axis != "parameters":
        return {"workers": size.workers, "environments": size.envs, "updates": size.updates}[axis]
    shared, _ = jax.eval_shape(lambda key: method(size).init(key, 1), figure.key())
    return sum(x.size for x in jax.tree.leaves(shared.params))


def method(size: Size) -> aj.Method:
    """A3C of this size."""
    hidden = (size.hidden, size.hidden)
    network = ActorCritic(2, MLP(hidden), MLP(hidden))
    return aj.a3c("CartPole-v1", network=network, num_envs=size.envs, unroll_length=size.unroll)


def program(size: Size, service: Any) -> Callable[[], float]:
    """A function that runs the size and returns the seconds of one core that it took."""
    key, one = figure.key(), method(size)
    schedule = aj.schedules.round_robin(size.updates, size.workers)
    if service is not None:
        schedule = aj.schedules.from_service_times(service, size.updates, size.workers, key)

    def timed() -> float:
        start = time.process_time()
        jax.block_until_ready(aj.emulate(one, schedule, key, num_workers=size.workers).shared)
        return time.process_time() - start

    return timed


def plot(arrays: Arrays) -> Any:
    """Microseconds of one core per environment step, on axes of whole decades; a panel for each thing that grows."""
    names = [name for name in SIZES if name in arrays]
    picture, panels = new_figure(2, 2, (2 * COLUMN[0], 1.7 * COLUMN[1]))
    for axes, name in zip(panels.flat, names, strict=False):
        seconds, size = 1e6 * arrays[f"{name}, seconds"], arrays[name]
        for i, label in enumerate(("round robin", "exponential times")):
            low, middle, high = np.quantile(seconds[..., i], (0, 0.5, 1), axis=0)
            axes.plot(size, middle, "os"[i] + "-", color=COLOURS[i], label=label, markersize=3, linewidth=1.2)
            axes.fill_between(size, low, high, color=COLOURS[i], alpha=0.2, linewidth=0)
        if name == "parameters":
            proportional = np.median(seconds[:, -1, 0]) * size / size[-1]
            axes.plot(size, proportional, ":", color=COLOURS[6], linewidth=1, label="in proportion")
        axes.set(xscale="log", yscale="log", xlabel=LABELS[name], ylabel="µs per environment step")
        axes.set_ylim(10 ** np.floor(np.log10(seconds.min())), 10 ** np.ceil(np.log10(seconds.max())))
        axes.legend(fontsize=7, frameon=False)
    for axes in panels.flat[len(names) :]:
        axes.set_axis_off()
    return picture


def report(arrays: Arrays) -> str:
    """Median microseconds per step, and how they grow from one size to the next: below 1 is less than linear."""
    rows = []
    for name in (name for name in SIZES if name in arrays):
        size, micro = arrays[name], 1e6 * np.median(arrays[f"{name}, seconds"], 0)
        for i, label in enumerate(("round robin", "exponential")):
            slope = np.diff(np.log(micro[:, i])) / np.diff(np.log(size))
            rows += [
                [name, label, f"{n:,}", f"{x:.3g}", "" if j == 0 else f"{slope[j - 1]:+.2f}"]
                for j, (n, x) in enumerate(zip(size, micro[:, i], strict=True))
            ]
    return figure.table(["grows", "schedule", "size", "µs per step", "slope"], rows)


if __name__ == "__main__":
    figure.start(main, Args, __doc__)
