"""How seldom may workers communicate? Local updates between two messages, under three disciplines.

    python experiments/communication.py
    python experiments/communication.py --env CartPole-v1 --learning-rate 1e-3

A worker makes `period` updates of its own and sends how far it came; a message costs `latency` as many seconds as an
update. Three ways to receive them, on one virtual clock and with common random numbers:

    averaging     the mean of one message of every worker, who wait for each other (local SGD, FedAvg)
    buffered      the mean of the next `group_size` messages, whoever they come from (FedBuff)
    asynchronous  every message as it comes (FedAsync)

All make the same number of local updates in all, and so see as many environment steps.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import optax

import asyncjax as aj
import figure
from asyncjax.commandline import factories
from asyncjax.plotting.panels import COLOURS, COLUMN, new_figure
from asyncjax.statistics import interquartile_mean
from asyncjax.sweeps.summaries import curve
from figure import Arrays, small_network

DISCIPLINES = ("averaging", "buffered", "asynchronous")


@dataclasses.dataclass(frozen=True)
class Args(figure.Common):
    """What to run."""

    method: str = "a3c"
    """A method whose view is its parameters."""
    env: str = "Catch-bsuite"
    """Any gymnax id."""
    disciplines: tuple[str, ...] = DISCIPLINES
    """Which of the three."""
    periods: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Local updates between two messages; the first is what the others are compared with."""
    num_workers: int = 8
    """Workers."""
    group_size: int = 4
    """Of the buffered discipline, messages."""
    local_updates: int = 2048
    """Of all workers together, in a run."""
    latency: float = 4.0
    """What a message costs, in local updates."""
    learning_rate: float = 1e-2
    """Of the workers' Adam."""
    steps: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    """Of the receiver, times the mean of its messages. Each discipline and period is shown at its best one."""
    num_envs: int = 4
    """Environments of a worker."""
    unroll_length: int = 9
    """Environment steps of a local update; an episode of Catch has 9."""
    points: int = 16
    """Points of a curve; at most the updates of the shortest run."""


def main(args: Args) -> Arrays:
    """The figure, its data and its numbers."""
    figure.check(args, zero=("latency",), method=factories(), disciplines=DISCIPLINES)
    longest, shortest = max(args.periods), min(num_updates(args, d, p) for d in args.disciplines for p in args.periods)
    if shortest < args.points:
        raise ValueError(
            f"local_updates={args.local_updates}: with a period of {longest} a run has {shortest} updates, fewer than"
            f" points={args.points}; make more."
        )
    small: dict[str, Any] = {"seeds": 2, "hidden": 8, "num_envs": 2, "periods": (1, 2), "steps": (0.5,)}
    small |= {"local_updates": 64, "points": 3, "disciplines": ("averaging", "asynchronous")}
    return figure.command(f"communication-{args.method}", args, small, run, plot, report)


def num_updates(args: Args, discipline: str, period: int) -> int:
    """The updates of the receiver in which all local updates have arrived."""
    group = {"averaging": args.num_workers, "buffered": args.group_size, "asynchronous": 1}[discipline]
    return args.local_updates // (period * group)


def run(args: Args) -> Arrays:
    """Returns of the training episodes along every run.

    Returns:
      `returns`, Float[D, P, R, S, L], and `times`, Float[D, P, S, L], at the ends of L equal stretches of a run, for D
      disciplines, P periods and R steps of the receiver; the names of all of them.
    """
    env = aj.make_env(args.env)
    learner = getattr(aj, args.method)(
        env,
        optimizer=optax.adam(args.learning_rate),
        network=small_network(args.method, env, args.hidden),
        num_envs=args.num_envs,
        unroll_length=args.unroll_length,
    )

    def method(period: int, step: float) -> aj.Method:
        return aj.local_updates(learner, period=period, optimizer=optax.sgd(step))

    def schedule(discipline: str, period: int, key: jax.Array) -> aj.Schedule:
        rules: dict[str, Any] = {
            "averaging": {"group_size": args.num_workers, "wait": "next_version"},
            "buffered": {"group_size": args.group_size},
            "asynchronous": {},
        }
        times = aj.service.gamma(16.0, args.latency + period)
        updates = num_updates(args, discipline, period)
        return aj.schedules.from_service_times(times, updates, args.num_workers, key, **rules[discipline])

    size: dict[str, Any] = {"num_workers": args.num_workers, "seeds": args.seeds, "directory": args.keep}
    settings = aj.grid(discipline=args.disciplines, period=args.periods, step=args.steps)
    summaries = [curve(args.points), figure.end_times(args.points)]
    swept = aj.sweep(method, schedule, settings, key=figure.key(), summarize=summaries, **size)
    shape = (len(args.disciplines), len(args.periods), len(args.steps), args.seeds, args.points)
    return {
        "returns": swept["return_curve"].reshape(shape),
        "times": swept["time"].reshape(shape)[:, :, 0].astype(float),  # whatever the step
        "disciplines": np.array(args.disciplines),
        "periods": np.array(args.periods),
        "steps": np.array(args.steps),
        "num_workers": np.array(args.num_workers),
    }


def along(arrays: Arrays) -> dict[str, np.ndarray]:
    """Mean returns along the runs, Float[D, P, R, S]: over the same local updates, and until the first run is over."""
    returns, times = arrays["returns"], arrays["times"]
    grid = np.linspace(0.0, times[..., -1].min(), returns.shape[-1])
    until = np.empty(returns.shape[:-1])
    for index in np.ndindex(until.shape):
        d, p, _, s = index
        until[index] = np.nanmean(np.interp(grid, times[d, p, s], returns[index]))
    return {"the same local updates": np.nanmean(returns, -1), "the same time": until}


def at_best(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of Float[D, P, R, S] the Float[D, P, S] at the step with the highest mean over seeds, and which, Int[D, P]."""
    best = means.mean(-1).argmax(-1)
    return np.take_along_axis(means, best[..., None, None], 2)[:, :, 0], best


def report(arrays: Arrays) -> str:
    """Mean returns, and what fewer messages cost, paired by seed."""
    rows = []
    for compared, means in along(arrays).items():
        chosen, best = at_best(means)
        for d, discipline in enumerate(arrays["disciplines"]):
            for p, period in enumerate(arrays["periods"]):
                cost = "" if p == 0 else figure.interval(chosen[d, p] - chosen[d, 0], 2)
                step = f"{arrays['steps'][best[d, p]]:g}"
                rows.append([compared, discipline, period, step, figure.interval(chosen[d, p]), cost])
    against = f"minus period {arrays['periods'][0]}"
    return figure.table(["compared at", "discipline", "period", "step", "mean return", against], rows)


def plot(arrays: Arrays) -> Any:
    """Mean return along the run against the period, after the same local updates and in the same virtual time."""
    picture, grid = new_figure(1, 2, size=(2 * COLUMN[0], 1.1 * COLUMN[1]))
    for axes, (compared, means) in zip(grid.ravel(), along(arrays).items(), strict=True):
        chosen, _ = at_best(means)
        for d, discipline in enumerate(arrays["disciplines"]):
            middle, low, high = interquartile_mean(chosen[d].T)
            axes.plot(arrays["periods"], middle, ".-", color=COLOURS[d], label=discipline, linewidth=1)
            axes.fill_between(arrays["periods"], low, high, color=COLOURS[d], alpha=0.2, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(arrays["periods"], [str(period) for period in arrays["periods"]])
        axes.set_xlabel("local updates between two messages")
        axes.set_ylabel("mean episode return")
        axes.set_title(f"after {compared}" if "updates" in compared else f"in {compared}", fontsize=8)
    grid.ravel()[0].legend(frameon=False, fontsize=6)
    return picture


if __name__ == "__main__":
    figure.start(main, Args, __doc__)
