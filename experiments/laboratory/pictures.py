"""The panels of `quadratic.py`: lines are closed forms, dots are measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from asyncjax.plotting import panels
from laboratory.closed_forms import elastic_step, fastest_step, heavy_ball, rate, stable_step, stationary_variance


def plot(arrays: dict[str, np.ndarray]) -> Any:
    """All panels."""
    width, height = panels.COLUMN
    figure, axes = panels.new_figure(3, 3, size=(3 * width, 3 * height))
    drawn = {
        "stability against the delay": draw_thresholds,
        "against momentum": draw_momentum,
        "against the eigenvalue's angle": draw_angles,
        "rate (x: fastest without oscillation)": draw_rates,
        "stationary variance": draw_variances,
        "random workers (lines: heavy ball)": draw_random_worker,
        "delay compensation (lines: slopes 1, 2)": draw_compensation,
        "gap-aware": draw_gaps,
        "elastic averaging": draw_elastic,
    }
    for letter, (title, draw), ax in zip("abcdefghi", drawn.items(), axes.ravel(), strict=True):
        draw(ax, arrays)
        ax.set_title(f"{letter}  {title}", fontsize=8, loc="left")
    return figure


def draw_momentum(axes: Any, arrays: dict[str, np.ndarray]) -> None:
    """The stability threshold of heavy ball against its momentum."""
    fresh, stale = arrays["ball_threshold"]
    curves = [("delay 0", fresh, lambda b: 2 * (1 + b)), ("delay 1", stale, lambda b: 1 - b)]
    draw_family(axes, "momentum", "stable a", arrays["betas"], curves)


def draw_angles(axes: Any, arrays: dict[str, np.ndarray]) -> None:
    """The stability threshold against the angle of the eigenvalue."""
    curves = [
        (f"delay {d}", measured, lambda x, d=d: stable_step(d, x))
        for d, measured in zip(arrays["angle_delays"], arrays["angle_threshold"], strict=True)
    ]
    draw_family(axes, "angle of the eigenvalue", "stable a", arrays["angle"], curves)


def draw_variances(axes: Any, arrays: dict[str, np.ndarray]) -> None:
    """The stationary variance against the step."""
    curves = [(f"delay {d}", arrays["variance"][d], lambda a, d=d: stationary_variance(a, d)) for d in (0, 1)]
    draw_family(axes, "a", "variance / (step noise)$^2$", arrays["variance_steps"], curves)


def draw_gaps(axes: Any, arrays: dict[str, np.ndarray]) -> None:
    """What gap-aware divides by against the delay."""
    curves = [("constant gradient", arrays["gap"], lambda d: d + 1)]
    draw_family(axes, "delay", "gap-aware divisor", arrays["gap_delays"], curves)


def draw_elastic(axes: Any, arrays: dict[str, np.ndarray]) -> None:
    """The stability threshold of elastic averaging against its rate."""
    curves = [
        (f"{n} workers, {where}", measured, lambda x, n=n, together=together: elastic_step(x, n, together))
        for n, of_workers in zip(arrays["elastic_workers"], arrays["elastic_threshold"], strict=True)
        for measured, where, together in zip(of_workers, ("apart", "together"), (False, True), strict=True)
    ]
    draw_family(axes, "rate of elastic averaging", "stable a", arrays["elastic_rates"], curves)


def draw_family(axes: Any, x: str, y: str, xs: np.ndarray, curves: list[tuple[str, np.ndarray, Callable]]) -> None:
    """Closed forms as lines and what was measured as dots, one colour each."""
    fine = np.linspace(np.min(xs), np.max(xs), 200)
    for (label, measured, exact), colour in zip(curves, panels.cycle(len(curves)), strict=True):
        axes.plot(fine, exact(fine), color=colour, linewidth=1)
        axes.plot(xs, measured, "o", color=colour, markersize=3, label=label)
    label_axes(axes, x, y)


def draw_thresholds(axes: Any, arrays: dict[str, np.ndarray]) -> None:
    """The stability threshold against the delay."""
    draw_family(
        axes,
        "delay",
        "stable a",
        arrays["delays"],
        [
            ("SGD", arrays["threshold"], stable_step),
            ("with g / (1 + tau)", arrays["threshold_scaled"], lambda d: stable_step(d) * (1 + d)),
        ],
    )
    axes.set_yscale("log")
    axes.minorticks_off()


def draw_rates(axes: Any, arrays: dict[str, np.ndarray]) -> None:
    """The rate against the step; the crosses are the fastest steps without oscillation."""
    delays = arrays["rate_delays"]
    for i, (delay, colour) in enumerate(zip(delays, panels.cycle(len(delays)), strict=True)):
        fine = np.linspace(0.02, float(stable_step(delay)), 300)
        axes.plot(fine, rate(fine, int(delay)), color=colour, linewidth=1)
        axes.plot(arrays["rate_steps"][i], arrays["rate"][i], "o", color=colour, markersize=3, label=f"delay {delay}")
        axes.plot([fastest_step(delay)], [arrays["fastest_rate"][i]], "x", color=colour, markersize=6)
    label_axes(axes, "a", "factor per update")


def draw_random_worker(axes: Any, arrays: dict[str, np.ndarray]) -> None:
    """The mean path with a uniformly random worker, over heavy ball."""
    workers, paths = arrays["workers"], arrays["mean_path"]
    for n, path, colour in zip(workers, paths, panels.cycle(len(workers)), strict=True):
        exact = heavy_ball(float(arrays["random_step"]), 1 - 1 / n, len(path) - 1)
        axes.plot(exact, color=colour, linewidth=1)
        axes.plot(np.arange(len(path))[::2], path[::2], "o", color=colour, markersize=2, label=f"{n} workers")
    label_axes(axes, "updates", "mean of w")


def draw_compensation(axes: Any, arrays: dict[str, np.ndarray]) -> None:
    """Errors of a stale gradient against the distance, with lines of slopes 1 and 2."""
    distance = arrays["distance"]
    draw_family(
        axes,
        "distance",
        "error of the gradient",
        distance,
        [
            ("stale", arrays["stale_error"], lambda x: x),
            ("DC-ASGD", arrays["compensated_error"], lambda x: x**2),
        ],
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_xticks(ticks := [0.02, 0.05, 0.1, 0.2], [f"{x:g}" for x in ticks])  # of powers of 10 there is but one


def label_axes(axes: Any, x: str, y: str) -> None:
    """Names and legend."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False, fontsize=7)
