"""What corrections of staleness gain: paired differences from no correction, over tasks, delays and service models.

    python experiments/corrections.py --method a3c
    python experiments/corrections.py --method impala --envs Catch-bsuite

A mean staleness of D is that of D + 1 workers. They are equal (staleness is D exactly), exponential, or heavy-tailed
(Pareto, shape 2). Every correction meets the seeds, environments, schedules and learning rate of no correction, so that
the difference of two runs is the correction's. Compared are the final policy, by its mean return in fresh episodes, and
the mean return of the training episodes along the run, in which a worker of many has few steps.

All corrections of a method and task are one compiled program: each leaves fresh messages alone, bit for bit, so it is
switched off by telling it that every message is fresh.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

import asyncjax as aj
import figure
from asyncjax.commandline import factories
from asyncjax.plotting.heat_maps import draw_heat_map
from asyncjax.plotting.panels import COLUMN, new_figure
from asyncjax.statistics import bootstrap_interval, middle_half
from corrected import NONE, OF_GRADIENTS, OF_TRAJECTORIES, PREDICTION, SMALLER, Size, build
from figure import Arrays

MEASURES = ("final", "along")
SERVICES = {
    "equal": aj.service.constant(),
    "exponential": aj.service.exponential(),
    "Pareto": aj.service.pareto(2.0),
}


SIZES = {
    "Catch-bsuite": Size(800, 2, 9),
    "CartPole-v1": Size(1500, 4, 9),
    "Acrobot-v1": Size(1500, 4, 16),
    "Breakout-MinAtar": Size(1000, 4, 16),
}


@dataclasses.dataclass(frozen=True)
class Args(figure.Common):
    """What to run."""

    method: str = "a3c"
    """a3c, one_step_q, another gradient method, or impala."""
    envs: tuple[str, ...] = tuple(SIZES)
    """Tasks in SIZES; other gymnax ids take num_updates."""
    corrections: tuple[str, ...] = ()
    """Names in OF_GRADIENTS, or in OF_TRAJECTORIES for impala, the first of which is "none"; by default all."""
    services: tuple[str, ...] = tuple(SERVICES)
    """Names in SERVICES."""
    delays: tuple[int, ...] = (0, 4, 16, 64)
    """Mean staleness, updates."""
    learning_rate: float = 3e-3
    """Of Adam, falling linearly to 0."""
    num_updates: int | None = None
    """Updates of a run; by default what SIZES has for the task."""
    episodes: int = 20
    """Fresh episodes of the final policy."""

    @property
    def known(self) -> tuple[str, ...]:
        """The corrections that there are for the method; a run goes by its correction's index here."""
        return OF_TRAJECTORIES if self.method == "impala" else OF_GRADIENTS

    @property
    def names(self) -> tuple[str, ...]:
        """The corrections to run."""
        return self.corrections or self.known

    def size(self, env: str) -> Size:
        """Of a run on this task."""
        size = SIZES.get(env, Size(1000, 4, 9))
        return size if self.num_updates is None else size._replace(num_updates=self.num_updates)


def main(args: Args) -> Arrays:
    """The figure, its data and its numbers."""
    figure.check(args, zero=("delays",), method=factories(), services=SERVICES, corrections=args.known)
    if args.names[0] != NONE:
        raise ValueError(f"corrections={args.corrections}: begin with {NONE!r}, the baseline.")
    for env in args.envs:
        aj.make_env(env)  # of which a later one would be missed late
    small = {"seeds": 2, "hidden": 8, "envs": ("Catch-bsuite",), "services": ("exponential",), "delays": (0, 4)}
    return figure.command(f"corrections-{args.method}", args, {**small, "num_updates": 60}, run, plot, report)


def run(args: Args) -> Arrays:
    """The mean return of the final policies in fresh episodes, and that of the training episodes along the run.

    Returns:
      `final` and `along`, Float[E, C, V, D, S], for tasks, corrections, service models, delays and seeds; their names.
      A run whose parameters became infinite counts with what its policy earns then.
    """
    parts = [run_task(args, env) for env in args.envs]
    names = {name: np.array(getattr(args, name)) for name in ("envs", "services", "delays")}
    values = {name: np.stack([part[name] for part in parts]) for name in MEASURES}
    return {**values, "method": np.array(args.method), "corrections": np.array(args.names), **names}


def run_task(args: Args, env: str) -> Arrays:
    """`final` and `along`, Float[C, V, D, S]: of one task, whose runs are one program."""
    size = args.size(env)

    def method(choice: float, step: float, horizon: float) -> aj.Method:
        on = {name: choice == args.known.index(name) for name in args.names}
        return build(args.method, env, size, args.hidden, on, step, horizon)

    def schedule(service: str, delay: int, key: jax.Array) -> aj.Schedule:
        return aj.schedules.from_service_times(SERVICES[service], size.num_updates, delay + 1, key)

    wanted = [setting(args, c, v, d) for c in args.names for v in args.services for d in args.delays]
    different = list({repr(s): s for s in wanted}.values())
    table = aj.sweep(
        method,
        schedule,
        different,
        key=figure.key(),
        seeds=args.seeds,
        summarize=[aj.summaries.evaluation(env, args.episodes), aj.summaries.curve(4)],
        num_workers=max(args.delays) + 1,
        directory=None if args.keep is None else args.keep / f"{args.method}-{env}",
    )
    rows = [different.index(s) for s in wanted]
    shape = (len(args.names), len(args.services), len(args.delays), args.seeds)
    means = {"final": table["evaluation"], "along": mean_of_known(table["return_curve"])}
    return {name: x[rows].reshape(shape) for name, x in means.items()}


def mean_of_known(curves: np.ndarray) -> np.ndarray:
    """The mean of each curve's points; NaN in all of them, for a run too short to end an episode, stays NaN."""
    known = np.isfinite(curves)
    return np.where(known, curves, 0).sum(-1) / np.where(known.any(-1), known.sum(-1), np.nan)


def setting(args: Args, name: str, service: str, delay: int) -> dict[str, Any]:
    """What distinguishes a run. One worker alone is never stale: there corrections and service models do nothing."""
    if delay == 0:
        name, service = name if name == SMALLER else NONE, args.services[0]
    step = args.learning_rate * (1 / 3 if name == SMALLER else 1.0)
    horizon = float(delay) if name == PREDICTION else 0.0
    return {
        "choice": float(args.known.index(name)),
        "step": step,
        "horizon": horizon,
        "service": service,
        "delay": delay,
    }


def differences(arrays: Arrays, measure: str = "final") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interquartile means of the differences from no correction, with intervals, Float[E, C - 1, V, D] each."""
    paired = np.moveaxis(arrays[measure][:, 1:] - arrays[measure][:, :1], -1, 0)
    return (middle_half(paired), *bootstrap_interval(paired))


def report(arrays: Arrays) -> str:
    """Returns without correction and differences from them; those whose intervals leave out 0 are bold."""
    rows = []
    for measure in MEASURES:
        middle, low, high = differences(arrays, measure)
        for e, v in np.ndindex(len(arrays["envs"]), len(arrays["services"])):
            where = [measure, arrays["envs"][e], arrays["services"][v]]
            rows.append([*where, NONE, *(uncorrected(x) for x in arrays[measure][e, 0, v])])
            for c, name in enumerate(arrays["corrections"][1:]):
                at = zip(*(x[e, c, v] for x in (middle, low, high)), strict=True)  # of every delay
                rows.append([*where, name, *(difference(*x) for x in at)])
    head = ["return", "task", "workers", "correction", *(f"staleness {d}" for d in arrays["delays"])]
    return figure.table(head, rows)


def uncorrected(values: np.ndarray) -> str:
    """The interquartile mean over seeds as text, or a dash as in `difference`."""
    return "-" if np.isnan(values).any() else figure.interval(values)


def difference(middle: float, low: float, high: float) -> str:
    """A difference with its interval as text, bold where it leaves out 0; a dash where a run ended no episode."""
    if np.isnan(middle):
        return "-"
    middle_text, low_text, high_text = (f"{x:+.0f}" if abs(x) >= 99.5 else f"{x:+.2g}" for x in (middle, low, high))
    text = f"{middle_text} [{low_text}, {high_text}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def plot(arrays: Arrays) -> Any:
    """A heat map per task: differences, over delays per service model; grey where the interval has 0."""
    middle, low, high = differences(arrays)
    envs, names, delays = arrays["envs"], list(arrays["corrections"][1:]), arrays["delays"]
    labels = [f"{service[:3]}. {delay}" for service in arrays["services"] for delay in delays if delay]
    picture, grid = new_figure(1, len(envs), size=(len(envs) * 1.2 * COLUMN[0], 1.1 + 0.22 * len(names)))
    for axes, e in zip(np.ravel(grid), range(len(envs)), strict=True):
        values, below, above = (x[e][..., delays > 0].reshape(len(names), -1) for x in (middle, low, high))
        resolved = (below > 0) | (above < 0)
        draw_heat_map(
            axes,
            np.where(resolved, values, np.nan),
            labels,
            names,
            label="return minus uncorrected\n(-: not resolved)",
            center=0.0,
            number="+.0f" if np.nanmax(np.abs(values[resolved]), initial=0) >= 100 else "+.2g",
        )
        axes.tick_params(axis="x", labelrotation=90)
        axes.set_title(f"{arrays['method']}, {envs[e]}", fontsize=8)
        axes.set_xlabel("workers and mean staleness (updates)")
    return picture


if __name__ == "__main__":
    figure.start(main, Args, __doc__)
