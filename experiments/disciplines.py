"""What waiting, grouping and torn reads cost and gain: return against updates, and against virtual time.

    python experiments/disciplines.py
    python experiments/disciplines.py --env CartPole-v1 --method impala

Five disciplines on one virtual clock, with common random numbers: a worker's n-th job takes the same time under all.

    synchronous   an update consumes one fresh message of every worker; the fast wait for the slowest
    asynchronous  an update consumes one message; nobody waits; reads are atomic, as under a lock
    torn          the same times, but a worker fetches its leaves one after the other during the first half of a job
    bounded       asynchronous, but nobody gets more than `bound` messages ahead of the slowest
    grouped       an update consumes the next `group_size` messages, whoever they come from
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
from asyncjax.plotting.panels import COLOURS, COLUMN, new_figure, thousands
from asyncjax.statistics import interquartile_mean
from asyncjax.sweeps.summaries import curve, stretch_ends
from figure import Arrays, small_network

DISCIPLINES = ("synchronous", "asynchronous", "torn", "bounded", "grouped")
SERVICES = ("equal", "exponential", "straggling")


@dataclasses.dataclass(frozen=True)
class Args(figure.Common):
    """What to run."""

    method: str = "a3c"
    """A gradient or trajectory method."""
    env: str = "Catch-bsuite"
    """Any gymnax id."""
    disciplines: tuple[str, ...] = DISCIPLINES
    """Which of the five; asynchronous is what the others are compared with."""
    num_workers: int = 8
    """Workers."""
    num_envs: int = 4
    """Environments of a worker."""
    unroll_length: int = 9
    """Steps per message; an episode of Catch has 9."""
    messages: int = 2000
    """Messages that a run consumes, whatever the discipline."""
    learning_rates: tuple[float, ...] = (3e-3, 1e-2)
    """Of Adam. Each discipline is shown at its best one, since larger groups bear larger steps."""
    bound: int = 2
    """Of the bounded discipline, messages."""
    group_size: int = 4
    """Of the grouped one, messages."""
    slowdown: float = 10.0
    """How many times as long a straggling job takes."""
    probability: float = 0.05
    """The chance that a job straggles, in the straggling service model."""
    points: int = 40
    """Points of a curve."""


def main(args: Args) -> Arrays:
    """The figure, its data and its numbers."""
    figure.check(args, zero=("bound", "probability"), method=factories(), disciplines=DISCIPLINES)
    if "asynchronous" not in args.disciplines:
        raise ValueError(f"disciplines={args.disciplines}: add 'asynchronous', with which the others are compared.")
    small = {"seeds": 2, "hidden": 8, "num_envs": 2, "messages": 160, "learning_rates": (3e-3,), "points": 5}
    small["disciplines"] = DISCIPLINES[:4]  # each group size is a program of its own
    return figure.command(f"disciplines-{args.method}", args, small, run, plot, report)


def run(args: Args) -> Arrays:
    """Returns of the training episodes along every run.

    Returns:
      `returns`, Float[D, V, R, S, L], and `times`, Float[D, V, S, L], at the ends of L equal stretches of a run, for D
      disciplines, V service models and R learning rates; `updates`, Float[D, L], there; the names of all of them.
    """
    env = aj.make_env(args.env)

    def method(learning_rate: float) -> aj.Method:
        sizes = {"num_envs": args.num_envs, "unroll_length": args.unroll_length}
        network = small_network(args.method, env, args.hidden)
        return getattr(aj, args.method)(env, optimizer=optax.adam(learning_rate), network=network, **sizes)

    learner, _ = jax.eval_shape(lambda key: method(1e-3).init(key, 1), figure.key())
    num_leaves = len(jax.tree.leaves(method(1e-3).view(learner)))

    def schedule(discipline: str, service: str, key: jax.Array) -> aj.Schedule:
        return make_schedule(args, discipline, service, key, num_leaves)

    settings = aj.grid(discipline=args.disciplines, service=SERVICES, learning_rate=args.learning_rates)
    shape = (len(args.disciplines), len(SERVICES), len(args.learning_rates), args.seeds, args.points)
    size: dict[str, Any] = {"num_workers": args.num_workers, "seeds": args.seeds, "directory": args.keep}

    summaries = [curve(args.points), figure.end_times(args.points)]
    swept = aj.sweep(method, schedule, settings, key=figure.key(), summarize=summaries, **size)
    ends = [stretch_ends(num_updates(args, discipline), args.points) for discipline in args.disciplines]
    return {
        "returns": swept["return_curve"].reshape(shape),
        "times": swept["time"].reshape(shape)[:, :, 0].astype(float),  # whatever the learning rate
        "updates": np.array(ends),
        "learning_rates": np.array(args.learning_rates),
        "disciplines": np.array(args.disciplines),
        "services": np.array(SERVICES),
    }


def make_schedule(args: Args, discipline: str, service: str, key: jax.Array, num_leaves: int) -> aj.Schedule:
    """The schedule of a discipline; the service model has mean 1 without its stragglers."""
    models = {
        "equal": aj.service.gamma(100.0),
        "exponential": aj.service.exponential(),
        "straggling": aj.service.straggler(args.probability, args.slowdown, aj.service.gamma(100.0)),
    }
    rules: dict[str, Any] = {
        "synchronous": {"group_size": args.num_workers, "wait": "next_version"},
        "bounded": {"bound": args.bound},
        "grouped": {"group_size": args.group_size},
    }
    made = aj.schedules.from_service_times(
        models[service], num_updates(args, discipline), args.num_workers, key, **rules.get(discipline, {})
    )
    return aj.faults.tear(made, num_leaves) if discipline == "torn" else made


def num_updates(args: Args, discipline: str) -> int:
    """The updates in which all messages are consumed."""
    return args.messages // {"synchronous": args.num_workers, "grouped": args.group_size}.get(discipline, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Numbers and picture


def on_time_grid(arrays: Arrays, service: int) -> tuple[np.ndarray, np.ndarray]:
    """Virtual times from 0 to where the first run is done, and returns then, Float[D, R, S, L]."""
    times, returns = arrays["times"][:, service], arrays["returns"][:, service]
    grid = np.linspace(0.0, times[..., -1].min(), times.shape[-1])
    each = [
        [[np.interp(grid, t, y) for t, y in zip(ts, ys, strict=True)] for ys in rates]
        for ts, rates in zip(times, returns, strict=True)
    ]
    return grid, np.array(each)


def best(returns: np.ndarray) -> np.ndarray:
    """Int[D], the learning rate with the highest mean along the run and over seeds, of Float[D, R, S, L]."""
    return np.nanmean(returns, (2, 3)).argmax(1)


def report(arrays: Arrays) -> str:
    """Mean returns over messages and over time, and differences from asynchronous, paired by seed."""
    rows = []
    for v, service in enumerate(arrays["services"]):
        curves = {"same messages": arrays["returns"][:, v], "same time": on_time_grid(arrays, v)[1]}
        for name, returns in curves.items():
            chosen = best(returns)
            means = np.stack([np.nanmean(r[k], -1) for r, k in zip(returns, chosen, strict=True)])
            asynchronous = means[list(arrays["disciplines"]).index("asynchronous")]
            for d, discipline in enumerate(arrays["disciplines"]):
                rate = arrays["learning_rates"][chosen[d]]
                against = "" if discipline == "asynchronous" else figure.interval(means[d] - asynchronous, 2)
                rows.append([service, name, discipline, f"{rate:g}", figure.interval(means[d]), against])
    head = ["workers", "compared at", "discipline", "learning rate", "mean return", "minus asynchronous"]
    return figure.table(head, rows)


def plot(arrays: Arrays) -> Any:
    """A row per service model: return against messages' share of the run, and against virtual time."""
    services = arrays["services"]
    picture, grid = new_figure(len(services), 2, size=(2 * COLUMN[0], 0.85 * len(services) * COLUMN[1]))
    for v, service in enumerate(services):
        at_updates, at_times = arrays["returns"][:, v], on_time_grid(arrays, v)
        for axes, returns in ((grid[v, 0], at_updates), (grid[v, 1], at_times[1])):
            for d, (label, rate) in enumerate(zip(arrays["disciplines"], best(returns), strict=True)):
                x = arrays["updates"][d] if axes is grid[v, 0] else at_times[0]
                middle, low, high = interquartile_mean(returns[d, rate])
                axes.plot(x, middle, color=COLOURS[d], label=label, linewidth=1)
                axes.fill_between(x, low, high, color=COLOURS[d], alpha=0.2, linewidth=0)
            axes.set_ylabel("episode return")
            axes.set_title(f"{service} workers", fontsize=8)
            thousands(axes)
        grid[v, 0].set_xscale("log")
        grid[v, 0].set_xlabel("updates")
        grid[v, 1].set_xlabel("virtual time (mean jobs of one worker)")
    grid[0, 1].legend(frameon=False, fontsize=6)
    return picture


if __name__ == "__main__":
    figure.start(main, Args, __doc__)
