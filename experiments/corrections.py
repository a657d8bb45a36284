"""What corrections of staleness gain: paired differences from no correction, over delays and service models.

    python experiments/corrections.py
    python experiments/corrections.py --methods one_step_q --envs CartPole-v1

A mean staleness of D is that of D + 1 workers. They are equal (staleness is D exactly), exponential, or heavy-tailed
(Pareto, shape 2). Every correction meets the same seeds, environments and schedules as no correction, so that the
difference of two runs is the correction's; without staleness most corrections are the identity, and it is 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import figure
import jax
import numpy as np
import optax
from figure import ACTION_VALUES, Arrays, small_network

import asyncjax as aj
from asyncjax.maps import draw_heat_map
from asyncjax.panels import COLUMN, new_figure
from asyncjax.statistics import bootstrap_interval, middle_half

KEY = jax.random.key(0)
NONE = "none"
corrections = aj.corrections
# Functions of the number of messages of a run. Adam divides by the gradient's size, so what scales every message alike
# does nothing behind it: corrections scale the message relative to fresher ones, or change its direction.
CORRECTIONS: dict[str, Callable[[int], optax.GradientTransformation | None]] = {
    NONE: lambda messages: None,
    "scale 1/(1+tau)": lambda messages: corrections.scale_by_staleness(1.0),
    "scale 1/sqrt(1+tau)": lambda messages: corrections.scale_by_staleness(0.5),
    "hinge": lambda messages: corrections.scale_by(corrections.hinge(0.5, 4.0)),
    "DC-ASGD": lambda messages: corrections.delay_compensation(0.04),
    "DC-ASGD adaptive": lambda messages: corrections.adaptive_delay_compensation(2.0),
    "gap-aware": lambda messages: corrections.gap_aware(),
    "delay-adaptive": lambda messages: corrections.scale_by(corrections.delay_adaptive(1.0, 1 / 64)),
    "PipeMare": lambda messages: corrections.pipemare(max(1, messages // 2)),
    "drop above 16": lambda messages: corrections.drop_stale(16),
}
PREDICTION = "weight prediction"
SERVICES = {
    "equal": aj.service.constant(),
    "exponential": aj.service.exponential(),
    "Pareto": aj.service.pareto(2.0),
}
OPTIMIZERS = {"sgd": lambda rate: optax.sgd(rate), "adam": lambda rate: optax.adam(rate)}


@dataclasses.dataclass(frozen=True)
class Args(figure.Common):
    """What to run."""

    methods: tuple[str, ...] = ("a3c", "one_step_q")
    """Gradient methods."""
    envs: tuple[str, ...] = ("CartPole-v1", "Catch-bsuite")
    """Any gymnax ids; Acrobot-v1 and Breakout-MinAtar take far more updates."""
    corrections: tuple[str, ...] = (*CORRECTIONS, PREDICTION)
    """Names in CORRECTIONS, and weight prediction; "none" is what the others are compared with."""
    services: tuple[str, ...] = ("equal", "exponential", "Pareto")
    """Names in SERVICES."""
    delays: tuple[int, ...] = (0, 4, 16, 64)
    """Mean staleness, updates."""
    optimizer: str = "adam"
    """adam or sgd."""
    learning_rate: float = 3e-3
    """Of the optimizer."""
    num_envs: int = 2
    """Environments of a worker."""
    unroll_length: int = 9
    """Steps per message."""
    num_updates: int = 800
    """Updates of a run."""
    points: int = 10
    """Points of a run's curve; its mean is what is compared."""


def main(args: Args) -> Arrays:
    """The figure, its data and its numbers."""
    small = {"seeds": 2, "hidden": 8, "methods": ("a3c",), "envs": ("Catch-bsuite",), "services": ("exponential",)}
    small |= {"corrections": (NONE, "scale 1/(1+tau)", PREDICTION), "delays": (0, 4), "num_envs": 1, "num_updates": 60}
    return figure.command("corrections", args, small, run, plot, report)


def run(args: Args) -> Arrays:
    """The mean return of the training episodes along the run: higher is sooner, or better at the end.

    Returns:
      `returns`, Float[M, E, C, V, D, S], for methods, environments, corrections, service models, delays and seeds;
      their names. A run whose parameters became infinite counts with what its policy earns then.
    """
    assert args.corrections[0] == NONE, f"corrections={args.corrections}: begin with {NONE!r}, the baseline."

    def method(name: str, env: str, correction: str, horizon: float) -> aj.Method:
        steps = args.num_updates * args.num_envs * args.unroll_length
        made = getattr(aj, name)(
            env,
            optimizer=OPTIMIZERS[args.optimizer](args.learning_rate),
            num_envs=args.num_envs,
            unroll_length=args.unroll_length,
            network=small_network(name, aj.make_env(env), args.hidden),
            correction=None if correction == PREDICTION else CORRECTIONS[correction](args.num_updates),
            **({"epsilon_frames": steps // 4} if name in ACTION_VALUES else {}),
        )
        return corrections.predict_weights(made, horizon) if correction == PREDICTION else made

    def schedule(service: str, delay: int, key: jax.Array) -> aj.Schedule:
        return aj.schedules.from_service_times(SERVICES[service], args.num_updates, delay + 1, key)

    tasks: dict[str, Any] = {"name": args.methods, "env": args.envs, "correction": args.corrections}
    settings = aj.grid(**tasks, service=args.services, delay=args.delays)
    settings = [{**setting, "horizon": float(setting["delay"])} for setting in settings]
    size: dict[str, Any] = {"num_workers": max(args.delays) + 1, "seeds": args.seeds, "directory": args.keep}
    table = aj.sweep(method, schedule, settings, key=KEY, summarize=aj.summaries.curve(args.points), **size)
    means = np.nanmean(table["return_curve"], -1)
    names = ("methods", "envs", "corrections", "services", "delays")
    shape = [len(getattr(args, name)) for name in names]
    return {"returns": means.reshape(*shape, args.seeds), **{name: np.array(getattr(args, name)) for name in names}}


def differences(arrays: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interquartile means of the differences from no correction, with intervals, Float[M, E, C - 1, V, D] each."""
    paired = np.moveaxis(arrays["returns"][:, :, 1:] - arrays["returns"][:, :, :1], -1, 0)
    return (middle_half(paired), *bootstrap_interval(paired))


def report(arrays: Arrays) -> str:
    """Returns without correction and differences from them; those whose intervals leave out 0 are bold."""
    middle, low, high = differences(arrays)
    rows = []
    for m, e, v in np.ndindex(*(len(arrays[name]) for name in ("methods", "envs", "services"))):
        where = [arrays["methods"][m], arrays["envs"][e], arrays["services"][v]]
        plain = arrays["returns"][m, e, 0, v]
        rows.append([*where, NONE, *(figure.interval(x) for x in plain)])
        for c, name in enumerate(arrays["corrections"][1:]):
            at = zip(*(x[m, e, c, v] for x in (middle, low, high)), strict=True)  # of every delay
            rows.append([*where, name, *(difference(*x) for x in at)])
    return figure.table(
        ["method", "task", "workers", "correction", *(f"staleness {d}" for d in arrays["delays"])], rows
    )


def difference(middle: float, low: float, high: float) -> str:
    """A difference with its interval as text, bold where it leaves out 0."""
    text = f"{middle:+.2g} [{low:+.2g}, {high:+.2g}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def plot(arrays: Arrays) -> Any:
    """A heat map per method and task: differences, over delays per service model; grey where the interval has 0."""
    middle, low, high = differences(arrays)
    methods, envs, delays = arrays["methods"], arrays["envs"], arrays["delays"]
    labels = [f"{service[:3]}. {delay}" for service in arrays["services"] for delay in delays if delay]
    height = 1.1 + 0.22 * (len(arrays["corrections"]) - 1)
    picture, grid = new_figure(len(methods), len(envs), size=(len(envs) * 1.2 * COLUMN[0], len(methods) * height))
    for axes, (m, e) in zip(np.ravel(grid), np.ndindex(len(methods), len(envs)), strict=True):
        values, below, above = (x[m, e][..., delays > 0].reshape(len(middle[m, e]), -1) for x in (middle, low, high))
        resolved = (below > 0) | (above < 0)
        draw_heat_map(
            axes,
            np.where(resolved, values, np.nan) if resolved.any() else np.zeros_like(values),
            labels,
            list(arrays["corrections"][1:]),
            label="return minus uncorrected\n(-: not resolved)",
            center=0.0,
            number="+.2g",
        )
        axes.tick_params(axis="x", labelrotation=90)
        axes.set_title(f"{methods[m]}, {envs[e]}", fontsize=8)
        axes.set_xlabel("workers and mean staleness (updates)")
    return picture


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
