"""The pictures: each function takes a run, or plain arrays, and returns a Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncjax.plotting.curves import Curve, RunLike, check_metrics, draw_curves, label_of, load_run, name_curves
from asyncjax.plotting.heat_maps import draw_heat_map, draw_value_map
from asyncjax.plotting.panels import (
    COLOURS,
    COLUMN,
    cycle,
    draw_settings,
    draw_speedup,
    draw_staleness,
    draw_staleness_per_worker,
    draw_timeline,
    new_figure,
    powers_of_two,
    thousands,
)
from asyncjax.schedules import Schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from asyncjax.sweeps import Table


def learning_curve(curves: Curve | Mapping[str, Curve], metric: str = "return", x: str = "env_steps") -> Figure:
    """A metric against experience; of several seeds the interquartile mean with a 95 % bootstrap band.

    Args:
      curves: a run, a sequence of runs that differ in their seed, arrays (x Float[L], y Float[S, L]
        or Float[L]), or a mapping label -> one of these.
      metric: a name in the run's metrics.
      x: "env_steps", "update" or "seconds".

    Returns:
      A Figure; of a single seed it has the curve and its running mean.

    Raises:
      ValueError: no run at all, a directory that holds none, a run without the metric or without x, or arrays whose
        lengths L differ.

    Example:
      >>> import asyncjax as aj
      >>> steps, returns = [0, 100], [[0.0, 5.0], [2.0, 6.0], [4.0, 8.0], [90.0, 9.0]]  # four seeds
      >>> figure = aj.plotting.learning_curve((steps, returns))
      >>> figure.axes[0].lines[0].get_ydata().tolist()  # the mean of the middle two
      [3.0, 7.0]
    """
    figure, axes = new_figure()
    draw_curves(axes, curves, metric, x)
    return figure


def staleness_histogram(source: RunLike | Schedule) -> Figure:
    """How stale the messages were: a histogram of all, and each worker's median and 5 % to 95 % range.

    Args:
      source: a run or a schedule.

    Returns:
      A Figure of two columns.

    Raises:
      ValueError: a directory that holds no run, a run without a schedule, or a schedule without updates.

    Example:
      >>> import asyncjax as aj
      >>> figure = aj.plotting.staleness_histogram(aj.schedules.round_robin(100, num_workers=4))
      >>> [axes.get_xlabel() for axes in figure.axes]
      ['staleness (updates)', 'worker']
    """
    schedule = _schedule(source)
    figure, (left, right) = new_figure(1, 2, size=(2 * COLUMN[0], COLUMN[1]))
    draw_staleness(left, schedule)
    draw_staleness_per_worker(right, schedule)
    return figure


def worker_timeline(source: RunLike | Schedule, start: float | None = None, stop: float | None = None) -> Figure:
    """When each worker worked, coloured by the staleness of its message, and the commits.

    Args:
      source: a run or a schedule.
      start: seconds; updates for a schedule without times. By default the window is some jobs long, in the middle of
        the run.
      stop: the same.

    Returns:
      A Figure.

    Raises:
      ValueError: a directory that holds no run, a run without a schedule, a schedule without updates, or a window
        without jobs.

    Example:
      >>> import jax, asyncjax as aj
      >>> times = aj.service.exponential(0.01)
      >>> schedule = aj.schedules.from_service_times(times, 100, num_workers=4, key=jax.random.key(0))
      >>> aj.plotting.worker_timeline(schedule, start=0.1, stop=0.2).axes[0].get_xlabel()
      'time since 0.1 s (ms); ticks: commits'
    """
    figure, axes = new_figure(size=(2 * COLUMN[0], COLUMN[1]))
    draw_timeline(axes, _schedule(source), start, stop)
    return figure


def speedup_curve(
    curves: Mapping[str, tuple[Any, Any]],
    reference: Mapping[str, tuple[Any, Any]] | None = None,
    x_label: str = "workers",
    y_label: str = "speed-up over one worker",
) -> Figure:
    """Speed-up against workers on axes of powers of two, with the ideal line.

    Args:
      curves: label -> (workers Int[N], speed-up Float[N] or, seed by seed, Float[S, N]); of several seeds the
        interquartile mean with its 95 % bootstrap interval.
      reference: the same, for numbers from elsewhere: dashed, in the colour of the curve with the same label.
      x_label: what is on the x axis.
      y_label: what is on the y axis.

    Returns:
      A Figure.

    Raises:
      ValueError: no curve at all, or one with other than N speed-ups for its N numbers of workers.

    Example:
      >>> import asyncjax as aj
      >>> figure = aj.plotting.speedup_curve(
      ...     {"A3C": ([1, 2, 4, 8], [1.0, 1.9, 3.7, 7.0])}, reference={"A3C": ([1, 2, 4, 8], [1.0, 2.1, 3.7, 6.9])}
      ... )
    """
    if not curves and not reference:
        raise ValueError("curves={}: give at least one, label -> (workers, speed-up).")
    both = [*curves.items(), *(reference or {}).items()]
    for label, (x, y) in both:
        if np.ndim(x) != 1 or not np.size(x) or np.ndim(y) not in (1, 2) or np.shape(y)[-1] != len(x):
            raise ValueError(
                f"the curve {label!r} has workers of shape {np.shape(x)} and speed-ups of shape {np.shape(y)}: give"
                " Int[N] and Float[N] or, seed by seed, Float[S, N]."
            )
    figure, axes = new_figure()
    workers = np.concatenate([np.asarray(x, np.float64) for _, (x, _) in both])
    ends = np.array([workers.min(), workers.max()])
    axes.plot(ends, ends, ":", color=COLOURS[6], linewidth=1, label="ideal")
    named = dict(zip(dict.fromkeys(label for label, _ in both), cycle(len(both)), strict=False))
    for label, (x, y) in curves.items():
        draw_speedup(axes, np.asarray(x), np.asarray(y, np.float64), named[label], label, "o-")
    for label, (x, y) in (reference or {}).items():
        draw_speedup(axes, np.asarray(x), np.asarray(y, np.float64), named[label], f"{label}, reference", "s--")
    powers_of_two(axes)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend(frameon=False, fontsize=7)
    return figure


def setting_curve(table: Table, x: str, value: str = "return") -> Figure:
    """What a sweep found against one of its settings: interquartile means with 95 % bootstrap bands.

    Args:
      table: of `sweep`, or of differences, `table.against(...)`.
      x: a setting's name; numbers in their order, of other values bars take the place of bands. Arrows point to
        what is infinite, such as the time to a target that was not reached.
      value: one of `table.scalars`.

    Returns:
      A Figure; each choice of the other settings that vary is a curve.

    Raises:
      KeyError: a value that the table does not have.
      ValueError: a setting that it does not have, or a value that is more than one number a run.

    Example:
      >>> import numpy as np, asyncjax as aj
      >>> settings = aj.grid(learning_rate=[0.1, 0.2], delay=[0, 4, 16])
      >>> table = aj.Table(settings, seeds=range(10), values={"loss": np.random.default_rng(0).normal(size=(6, 10))})
      >>> aj.plotting.setting_curve(table, "delay", "loss").axes[0].get_legend_handles_labels()[1]
      ['learning_rate=0.1', 'learning_rate=0.2']
    """
    figure, axes = new_figure()
    labels = draw_settings(axes, table, x, value)
    y = label_of(value)
    axes.set_xlabel(x.replace("_", " "))
    axes.set_ylabel(f"difference in {y}" if table.baseline else y)
    thousands(axes)
    if any(labels):
        name_curves(axes, labels, below=True)
    return figure


def heat_map(
    values: Any,
    *,
    x: Sequence[Any],
    y: Sequence[Any],
    x_label: str,
    y_label: str,
    label: str,
    spread: Any = None,
    center: float | None = None,
    number: str = ".3g",
) -> Figure:
    """A number for each pair of settings: as colour, and written into its cell.

    Args:
      values: Float[Y, X]; NaN is grey with a dash. The first row is at the bottom.
      x: the X settings along the columns, numbers or names.
      y: the Y settings along the rows.
      x_label: what they are, with the unit.
      y_label: what they are, with the unit.
      label: what the numbers are, with the unit.
      spread: Float[Y, X], half the width of an interval, written below the number.
      center: the number that is white, for differences: what lies above has one hue and what lies below another.
      number: how numbers are written, Python's format.

    Raises:
      ValueError: values that are not [Y, X].

    Example:
      >>> import asyncjax as aj
      >>> names = {"x_label": "staleness (updates)", "y_label": "learning rate", "label": "return"}
      >>> figure = aj.plotting.heat_map([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], x=[0, 8, 16], y=[1e-3, 1e-2], **names)
    """
    values = np.asarray(values, np.float64)
    if values.shape != (len(y), len(x)):
        raise ValueError(
            f"values has shape {list(values.shape)}, but there are {len(y)} settings y and {len(x)} settings x:"
            f" give Float[{len(y)}, {len(x)}], or swap x and y."
        )
    spread = None if spread is None else np.asarray(spread, np.float64)
    height = min(max(0.9 + (0.3 if spread is None else 0.36) * len(y), 1.6), 2 * COLUMN[1])
    figure, axes = new_figure(size=(COLUMN[0], height))
    draw_heat_map(axes, values, x, y, label=label, spread=spread, center=center, number=number)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure


def value_map(
    values: Any,
    shape: tuple[int, int],
    policy: Any = None,
    still: Any = None,
    label: str = "value",
    x_label: str = "",
    y_label: str = "",
) -> Figure:
    """The values of a grid's cells as colours, and its policy as arrows.

    Args:
      values: Float[S], one per state, row by row.
      shape: height and width of the grid, in cells.
      policy: Int[S], the action of each state, of `mdp.grid_world`: left, down, right, up. Left out on grids with
        more than 40 cells on a side, where arrows can not be told apart.
      still: Bool[S], cells in which nothing is to be decided, such as goals, holes and walls: grey, without an arrow.
      label: what the values are, with the unit.
      x_label: what the columns are; nothing for a map.
      y_label: what the rows are; nothing for a map.

    Raises:
      ValueError: not one value for each cell.

    Example:
      >>> import asyncjax as aj
      >>> solution = aj.solve(aj.mdp.frozen_lake("4x4"), 0.99)
      >>> figure = aj.plotting.value_map(solution.values, (4, 4), solution.policy)
    """
    values = np.asarray(values, np.float64)
    if values.shape != (shape[0] * shape[1],):
        raise ValueError(f"values has shape {list(values.shape)}, the grid {shape}: give one value per cell.")
    still = np.zeros(shape, bool) if still is None else np.asarray(still, bool).reshape(shape)
    arrows = None if policy is None or max(shape) > 40 else np.asarray(policy).reshape(shape)
    figure, axes = new_figure(size=(COLUMN[0], COLUMN[0] * min(0.8 * shape[0] / shape[1], 1.5) + 0.1))
    draw_value_map(axes, values.reshape(shape), arrows, still, label)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure


def dashboard(run: RunLike) -> Figure:
    """One page about a run: return, speed, staleness and workers.

    Args:
      run: a directory, or what `asyncjax.runs.load` gave. Without returns its loss is drawn, without either its
        staleness.

    Returns:
      A Figure of two rows and two columns.

    Raises:
      ValueError: a directory that holds no run, or a run without the metrics or without a schedule.

    Example:
      >>> import pathlib, numpy as np, asyncjax as aj
      >>> metrics = {"update": [10, 20], "seconds": [0.5, 1.0], "updates_per_second": [20.0, 20.0], "loss": [2.0, 1.0]}
      >>> metrics = {name: np.asarray(column) for name, column in metrics.items()}
      >>> run = aj.runs.Run(pathlib.Path("run"), {}, {}, metrics, aj.schedules.round_robin(20, num_workers=4))
      >>> [axes.get_ylabel() for axes in aj.plotting.dashboard(run).axes]
      ['loss', 'updates per second', 'share of messages', 'worker']
    """
    run = load_run(run)
    schedule = _schedule(run)
    figure, grid = new_figure(2, 2, size=(2 * COLUMN[0], 2 * COLUMN[1]))
    x = "env_steps" if "env_steps" in run.metrics else "update"
    metric = next((name for name in ("return", "loss") if name in run.metrics), "staleness")
    speed = "steps_per_second" if "steps_per_second" in run.metrics else "updates_per_second"
    check_metrics(run, metric, x, "seconds", speed)
    draw_curves(grid[0, 0], run, metric, x)
    rest = slice(min(1, len(run.metrics["seconds"]) - 1), None)  # the first row's time has compiling in it
    draw_curves(grid[0, 1], (run.metrics["seconds"][rest], run.metrics[speed][rest]), speed, "seconds")
    grid[0, 1].set_ylim(bottom=0)
    draw_staleness(grid[1, 0], schedule)
    draw_timeline(grid[1, 1], schedule)
    return figure


def save_all(run: RunLike) -> dict[str, Path]:
    """Draws a run's pictures into its directory; returns name -> path."""
    run = load_run(run)
    figures = {"dashboard": dashboard(run)}
    if "return" in run.metrics:
        figures["return"] = learning_curve(run)
    figures["staleness"] = staleness_histogram(run)
    figures["workers"] = worker_timeline(run)
    paths = {name: run.path / f"{name}.png" for name in figures}
    for name, figure in figures.items():
        figure.savefig(paths[name])
    return paths


def _schedule(source: RunLike | Schedule) -> Schedule:
    if isinstance(source, Schedule):
        schedule = source
    elif (schedule := (run := load_run(source)).schedule) is None:
        raise ValueError(f"The run {run.path} has no schedule yet: it was stopped before its first checkpoint.")
    if not schedule.num_updates:
        raise ValueError("The schedule has no updates, so there is nothing to draw.")
    return schedule
