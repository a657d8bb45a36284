"""Pictures of a run: learning curves, staleness, workers. Colour-blind-safe, legible in a paper's column.

Every function takes a run (a directory, or what `asyncjax.runs.load` gave) or plain arrays and returns
a matplotlib Figure; pyplot and its global state are not used. Save with `figure.savefig("name.png")`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from asyncjax import runs
from asyncjax.panels import (
    COLUMN,
    cycle,
    draw_staleness,
    draw_staleness_per_worker,
    draw_timeline,
    new_figure,
    thousands,
)
from asyncjax.schedules import Schedule
from asyncjax.statistics import interquartile_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RunLike = str | os.PathLike[str] | runs.Run
Curve = RunLike | tuple[np.ndarray, np.ndarray] | Sequence[RunLike]

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


def learning_curve(curves: Curve | Mapping[str, Curve], metric: str = "return", x: str = "env_steps") -> Figure:
    """A metric against experience; of several seeds the interquartile mean with a 95 % bootstrap band.

    Args:
      curves: a run, a sequence of runs that differ in their seed, arrays (x Float[L], y Float[S, L]
        or Float[L]), or a mapping label -> one of these.
      metric: a name in the run's metrics.
      x: "env_steps", "update" or "seconds".
    """
    figure, axes = new_figure()
    draw_curves(axes, curves, metric, x)
    return figure


def staleness_histogram(source: RunLike | Schedule) -> Figure:
    """How stale the messages were: a histogram of all, and each worker's median and 5 % to 95 % range."""
    schedule = _schedule(source)
    figure, (left, right) = new_figure(1, 2, size=(2 * COLUMN[0], COLUMN[1]))
    draw_staleness(left, schedule)
    draw_staleness_per_worker(right, schedule)
    return figure


def worker_timeline(source: RunLike | Schedule, start: float | None = None, stop: float | None = None) -> Figure:
    """When each worker worked, coloured by the staleness of its message, and the commits.

    Args:
      source: a run or a schedule.
      start: seconds; by default the window is some jobs long, in the middle of the run.
      stop: seconds.
    """
    figure, axes = new_figure(size=(2 * COLUMN[0], COLUMN[1]))
    draw_timeline(axes, _schedule(source), start, stop)
    return figure


def dashboard(run: RunLike) -> Figure:
    """One page about a run: return, speed, staleness and workers."""
    run = _run(run)
    schedule = _schedule(run)
    figure, grid = new_figure(2, 2, size=(2 * COLUMN[0], 2 * COLUMN[1]))
    x = "env_steps" if "env_steps" in run.metrics else "update"
    metric = next((name for name in ("return", "loss") if name in run.metrics), "staleness")
    speed = "steps_per_second" if "steps_per_second" in run.metrics else "updates_per_second"
    draw_curves(grid[0, 0], run, metric, x)
    draw_curves(grid[0, 1], run, speed, "seconds")
    grid[0, 1].set_ylim(bottom=0)
    draw_staleness(grid[1, 0], schedule)
    draw_timeline(grid[1, 1], schedule)
    return figure


def save_all(run: RunLike) -> dict[str, Path]:
    """Draws a run's pictures into its directory; returns name -> path."""
    run = _run(run)
    figures = {"dashboard": dashboard(run)}
    if "return" in run.metrics:
        figures["return"] = learning_curve(run)
    figures["staleness"] = staleness_histogram(run)
    figures["workers"] = worker_timeline(run)
    paths = {name: run.path / f"{name}.png" for name in figures}
    for name, figure in figures.items():
        figure.savefig(paths[name])
    return paths


def draw_curves(axes: Axes, curves: Curve | Mapping[str, Curve], metric: str, x: str) -> None:
    """Draws `learning_curve` into given axes."""
    named = curves if isinstance(curves, Mapping) else {"": curves}
    for (label, curve), colour in zip(named.items(), cycle(len(named)), strict=True):
        xs, ys = _curve(curve, metric, x)
        if len(ys) == 1:
            window = max(1, ys.shape[1] // 20)
            middle = running_mean(ys[0], window)
            axes.plot(xs, ys[0], color=colour, alpha=0.3, linewidth=0.7)
            label = label or (f"mean of {window} points" if window > 1 else "")
        else:
            middle, low, high = interquartile_mean(ys)
            axes.fill_between(xs, low, high, color=colour, alpha=0.25, linewidth=0)
            label = label or f"interquartile mean of {len(ys)} seeds, 95 % band"
        axes.plot(xs, middle, color=colour, label=label or None)
    axes.set_xlabel(LABELS.get(x, x.replace("_", " ")))
    axes.set_ylabel(LABELS.get(metric, metric.replace("_", " ")))
    thousands(axes)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=7)


def running_mean(y: np.ndarray, window: int) -> np.ndarray:
    """The mean of the last `window` values that are numbers; NaN where there is none."""
    number = np.isfinite(y)
    total, count = np.cumsum(np.where(number, y, 0.0)), np.cumsum(number)
    total[window:], count[window:] = total[window:] - total[:-window], count[window:] - count[:-window]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _curve(curve: Curve, metric: str, x: str) -> tuple[np.ndarray, np.ndarray]:
    """The x Float[L] and y Float[S, L] of one curve."""
    if isinstance(curve, tuple) and len(curve) == 2 and not isinstance(curve[0], (str, os.PathLike, runs.Run)):
        return np.asarray(curve[0]), np.atleast_2d(np.asarray(curve[1], np.float64))
    if isinstance(curve, (str, os.PathLike, runs.Run)):
        curve = [curve]
    series = [_series(_run(run), metric, x) for run in curve]  # pyright: ignore[reportArgumentType, reportGeneralTypeIssues]
    series = [(xs, ys) for xs, ys in series if len(xs)] or series[:1]
    if len(series) == 1:
        return series[0][0], series[0][1][None]
    first, last = max(xs[0] for xs, _ in series), min(xs[-1] for xs, _ in series)
    grid = np.linspace(first, last, max(len(xs) for xs, _ in series))
    return grid, np.stack([np.interp(grid, xs, ys) for xs, ys in series])


def _series(run: runs.Run, metric: str, x: str) -> tuple[np.ndarray, np.ndarray]:
    for name in (metric, x):
        if name not in run.metrics:
            raise ValueError(
                f"The run {run.path} has no metric {name!r}; it has {', '.join(run.metrics) or 'none yet'}."
            )
    known = np.isfinite(run.metrics[metric])  # a line of metrics has no return where no episode ended
    return run.metrics[x][known], run.metrics[metric][known]


def _run(source: RunLike) -> runs.Run:
    return source if isinstance(source, runs.Run) else runs.load(source)


def _schedule(source: RunLike | Schedule) -> Schedule:
    if isinstance(source, Schedule):
        return source
    run = _run(source)
    if run.schedule is None:
        raise ValueError(f"The run {run.path} has no schedule yet: it was stopped before its first checkpoint.")
    return run.schedule
