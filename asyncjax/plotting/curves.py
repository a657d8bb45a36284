"""Curves of runs or arrays, with bands over seeds, and the runs that pictures are of."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np

from asyncjax import runs
from asyncjax.files import PathLike
from asyncjax.plotting.panels import cycle, thousands
from asyncjax.statistics import interquartile_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray | jax.Array
RunLike = PathLike | runs.Run
Curve = RunLike | tuple[Array, Array] | Sequence[RunLike]

LABELS = {
    "env_steps": "environment steps",
    "update": "updates",
    "seconds": "wall-clock time (s)",
    "return": "episode return",
    "length": "episode length (steps)",
    "steps_per_second": "env steps per second",
    "updates_per_second": "updates per second",
    "staleness": "mean staleness (updates)",
}


def draw_curves(axes: Axes, curves: Curve | Mapping[str, Curve], metric: str, x: str) -> None:
    """Draws `learning_curve` into given axes."""
    named = curves if isinstance(curves, Mapping) else {"": curves}
    if not named:
        raise ValueError("curves={}: give at least one, label -> runs or arrays.")
    for (label, curve), colour in zip(named.items(), cycle(len(named)), strict=True):
        xs, ys = _curve(curve, metric, x)
        if len(ys) == 1:
            window = max(1, ys.shape[1] // 20)
            middle = running_mean(ys[0], window)
            axes.plot(xs, ys[0], color=colour, alpha=0.3, linewidth=0.7)
            smoothed = f"mean of {window} points" if window > 1 else ""
            label = ", ".join(filter(None, (label, smoothed)))
        else:
            middle, low, high = interquartile_mean(ys)
            axes.fill_between(xs, low, high, color=colour, alpha=0.25, linewidth=0)
            label = label or f"interquartile mean of {len(ys)} seeds, 95 % band"
        axes.plot(xs, middle, color=colour, label=label or None, marker="o" if len(xs) == 1 else None, markersize=4)
    axes.set_xlabel(label_of(x))
    axes.set_ylabel(label_of(metric))
    if not any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
        why = "no episode ended" if metric == "return" else "no values"
        axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", fontsize=8, color="gray")
        axes.set_xticks([])
        axes.set_yticks([])
    elif all(np.size(line.get_xdata()) == 1 for line in axes.lines):
        axes.set_xlim(*sorted((0.0, 1.2 * axes.get_xlim()[1])))  # around a single point ticks would have many digits
    thousands(axes)
    if labels := axes.get_legend_handles_labels()[1]:
        name_curves(axes, labels)


def label_of(name: str) -> str:
    """What an axis is called."""
    return LABELS.get(name, name.replace("_", " "))


def name_curves(axes: Axes, labels: Sequence[str], below: bool = False) -> None:
    """The legend: among the curves where they leave room for it, else `below` them, on paper of its own."""
    if not below and len(labels) * max(map(len, labels)) <= 120:
        axes.legend(frameon=False, fontsize=7)
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    width, height = figure.get_size_inches()
    figure.set_size_inches(max(width, 0.5 + 0.05 * max(map(len, labels))), height + 0.15 * len(labels))
    figure.legend(loc="outside lower left", frameon=False, fontsize=6)


def running_mean(y: np.ndarray, window: int) -> np.ndarray:
    """The mean of the last `window` values that are numbers; NaN where there is none."""
    number = np.isfinite(y)
    total, count = np.cumsum(np.where(number, y, 0.0)), np.cumsum(number)
    total[window:], count[window:] = total[window:] - total[:-window], count[window:] - count[:-window]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _curve(curve: Curve, metric: str, x: str) -> tuple[np.ndarray, np.ndarray]:
    """The x Float[L] and y Float[S, L] of one curve."""
    if isinstance(curve, tuple) and len(curve) == 2 and not isinstance(curve[0], (str, os.PathLike, runs.Run)):
        xs, ys = np.asarray(curve[0]), np.atleast_2d(np.asarray(curve[1], np.float64))
        if xs.shape != ys.shape[1:]:
            raise ValueError(f"x has the shape {xs.shape} and y {ys.shape}: give x Float[L] and y Float[S, L].")
        return xs, ys
    if isinstance(curve, (str, os.PathLike, runs.Run)):
        curve = [curve]
    if not isinstance(curve, Iterable):
        raise TypeError(f"curves={curve!r}: give run directories, or (x, y) with x Float[L] and y Float[S, L].")
    series = [_series(load_run(run), metric, x) for run in curve]  # pyright: ignore[reportArgumentType, reportGeneralTypeIssues]
    if not series:
        raise ValueError(f"curves={curve!r}: give at least one run.")
    series = [(xs, ys) for xs, ys in series if len(xs)] or series[:1]
    if len(series) == 1:
        return series[0][0], series[0][1][None]
    first, last = max(xs[0] for xs, _ in series), min(xs[-1] for xs, _ in series)
    if last < first:
        raise ValueError(
            f"One run begins at {x}={first:g}, another ends at {last:g}: curves have an interquartile mean where they"
            " overlap; leave one of the two out."
        )
    grid = np.linspace(first, last, max(len(xs) for xs, _ in series))
    return grid, np.stack([np.interp(grid, xs, ys) for xs, ys in series])


def _series(run: runs.Run, metric: str, x: str) -> tuple[np.ndarray, np.ndarray]:
    check_metrics(run, metric, x)
    known = np.isfinite(run.metrics[metric])  # a line of metrics has no return where no episode ended
    return run.metrics[x][known], run.metrics[metric][known]


def check_metrics(run: runs.Run, *names: str) -> None:
    """Raises ValueError for the first of these that the run has not."""
    for name in names:
        if name not in run.metrics:
            raise ValueError(
                f"The run {run.path} has no metric {name!r}; it has {', '.join(run.metrics) or 'none yet'}."
            )
        if run.metrics[name].ndim > 1:
            raise ValueError(f"The metric {name!r} is one number for each worker: choose a metric of the run.")


def load_run(source: RunLike) -> runs.Run:
    """The run in a directory, or the one given."""
    return source if isinstance(source, runs.Run) else runs.load(source)
