"""The panels that pictures are made of: each draws into the axes it is given."""

from __future__ import annotations

import functools
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncjax.schedules import Schedule
from asyncjax.statistics import interquartile_mean
from asyncjax.timeline import has_times, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from asyncjax.sweeps import Table

# Okabe and Ito (2008): distinguishable with every common colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
COLUMN = (3.3, 2.3)  # inches, the column of a paper in two columns


def new_figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = COLUMN) -> tuple[Figure, Any]:
    """A figure without pyplot, and its axes: one, or an array of rows and columns."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _figure_class()(figsize=size, dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns)
    for axes in np.ravel(grid):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
        axes.xaxis.label.set_fontsize(8)
        axes.yaxis.label.set_fontsize(8)
    return figure, grid


@functools.cache
def _figure_class() -> type[Figure]:
    """Matplotlib's Figure, which shows itself at the end of a notebook's cell though pyplot does not know it."""
    from matplotlib.figure import Figure

    class SelfShowing(Figure):
        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, dpi=130)
            return buffer.getvalue()

    return SelfShowing


def draw_staleness(axes: Axes, schedule: Schedule) -> None:
    """The share of messages per staleness; the largest one per cent shares the last bar."""
    staleness = np.asarray(schedule.staleness()).ravel()
    most = int(np.quantile(staleness, 0.99)) + 1
    width = -(-(most + 1) // 60)  # at most 60 bars
    share = np.bincount(np.minimum(staleness, most) // width) / staleness.size
    axes.bar(np.arange(len(share)) * width + (width - 1) / 2, share, 0.9 * width, color=COLOURS[0])
    mean, largest = float(staleness.mean()), int(staleness.max())
    axes.axvline(mean, ymax=0.82, color=COLOURS[1], linestyle="--", label=f"mean {mean:.2f}, max {largest}")
    axes.set_xlabel("staleness (updates)" + (f"; last bar: {most // width * width} or more" if largest > most else ""))
    axes.set_ylabel("share of messages")
    _whole_numbers(axes.xaxis)
    axes.set_xlim(-0.05 * most - 0.5, 1.05 * most + 0.5)
    axes.set_ylim(0, 1.25 * share.max())  # room for the legend
    axes.legend(frameon=False, fontsize=7, loc="upper right")


def draw_staleness_per_worker(axes: Axes, schedule: Schedule) -> None:
    """Each worker's median and 5 % to 95 % range."""
    staleness, worker = np.asarray(schedule.staleness()).ravel(), np.asarray(schedule.worker).ravel()
    present = np.unique(worker)
    low, middle, high = np.array([np.percentile(staleness[worker == w], (5, 50, 95)) for w in present]).T
    axes.vlines(present, low, high, color=COLOURS[0], linewidth=max(1.0, 40 / len(present)), alpha=0.35)
    axes.plot(present, middle, "o", color=COLOURS[0], markersize=3, label="median, 5 % to 95 %")
    axes.set_xlabel("worker")
    axes.set_ylabel("staleness (updates)")
    _whole_numbers(axes.xaxis)
    axes.set_ylim(0, 1.25 * max(float(high.max()), 1.0))
    axes.legend(frameon=False, fontsize=7, loc="upper right")


def draw_timeline(axes: Axes, schedule: Schedule, start: float | None = None, stop: float | None = None) -> None:
    """The jobs of the workers between start and stop, and the commits as ticks above them."""
    from matplotlib.collections import PolyCollection

    begin, end, commit = times(schedule)
    start, stop = _window(commit, begin, schedule, start, stop)
    scale, unit = (1e3, "ms") if stop - start < 1 else (1.0, "s")
    worker, staleness = np.asarray(schedule.worker), np.asarray(schedule.staleness())
    seen = (end >= start) & (begin <= stop)
    if not seen.any():
        raise ValueError(
            f"start={start:g}, stop={stop:g}: there is nothing to see; jobs are from {begin.min():g} to {end.max():g}."
        )
    colours = _staleness_colours(staleness[seen])
    left, right = (np.clip([begin[seen], end[seen]], start, stop) - start) * scale
    low, high = worker[seen] - 0.4, worker[seen] + 0.4
    corners = np.stack([[left, left, right, right], [low, high, high, low]], axis=-1).swapaxes(0, 1)
    few = schedule.num_workers <= 64  # else the gaps would cover the bars
    edges: Any = {"edgecolors": "white", "linewidths": 0.4} if few else {"linewidths": 0}
    axes.add_collection(PolyCollection(list(corners), facecolors=colours, **edges))
    inside, room = commit[(commit >= start) & (commit <= stop)], max(1.0, 0.05 * schedule.num_workers)
    axes.plot((inside - start) * scale, np.full(len(inside), -0.4 - 0.5 * room), "|", color=COLOURS[6], markersize=4)
    axes.set_xlim(0, (stop - start) * scale)
    axes.set_ylim(schedule.num_workers - 0.4, -0.4 - 1.1 * room)
    axes.set_yticks(range(0, schedule.num_workers, -(-schedule.num_workers // 8)))
    clock = f"time since {start:.3g} s ({unit})" if has_times(schedule) else f"updates since {start:g}"
    axes.set_xlabel(f"{clock}; ticks: commits")
    axes.set_ylabel("worker")
    axes.set_title(f"colour: staleness 0 (light) to {staleness[seen].max(initial=1)} (dark)", fontsize=7, loc="left")


def draw_settings(axes: Axes, table: Table, x: str, value: str) -> list[str]:
    """A value of a sweep against the setting x: a curve for each choice of the others; returns their labels."""
    known = table.settings[0] if table.settings else {}
    if x not in known:
        raise ValueError(f"x={x!r}: the table's settings have {', '.join(known) or 'no names'}.")
    middle, low, high = table.interval(value)
    if middle.ndim > 1:
        raise ValueError(f"value={value!r} is an array of each run: choose of {', '.join(table.scalars)}.")
    curves: dict[frozenset, list[int]] = {}
    for i, setting in enumerate(table.settings):
        curves.setdefault(frozenset(setting.items() - {(x, setting[x])}), []).append(i)
    labels = [table.label(rows[0], without=x) for rows in curves.values()]
    for rows, label, colour in zip(curves.values(), labels, cycle(len(curves)), strict=True):
        at: Any = [table.settings[i][x] for i in rows]
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in at)
        if numbers and len(at) > 1:  # else a band would have no width
            order = np.argsort(at, kind="stable")
            at, rows = np.array(at)[order], [rows[i] for i in order]
            axes.fill_between(at, low[rows], high[rows], color=colour, alpha=0.2, linewidth=0)
            draw_bars(axes, at, middle[rows], None, colour, label, "o-")
            _mark_infinite(axes, at[np.isinf(middle[rows])], colour)
        else:
            at = at if numbers else [getattr(v, "__name__", str(v)) for v in at]
            bars = lengths(middle[rows], low[rows], high[rows])
            draw_bars(axes, at, middle[rows], bars, colour, label, "o")
            _mark_infinite(axes, [x for x, y in zip(at, middle[rows], strict=True) if np.isinf(y)], colour)
    return labels


def _mark_infinite(axes: Axes, at: Any, colour: str) -> None:
    """Arrows out of the picture's top where a value is infinite, such as a time to what was never reached."""
    if len(at):
        options: Any = {"transform": axes.get_xaxis_transform(), "clip_on": False, "markersize": 5}
        axes.plot(at, np.full(len(at), 0.98), "^", color=colour, markeredgecolor="white", **options)


def draw_speedup(axes: Axes, workers: np.ndarray, speedup: np.ndarray, colour: str, label: str, style: str) -> None:
    """A curve Float[N]; of several seeds, Float[S, N], the interquartile mean with bars for its 95 % interval."""
    middle, bars = speedup, None
    if speedup.ndim == 2:
        middle, low, high = interquartile_mean(speedup)
        bars = lengths(middle, low, high)
    draw_bars(axes, workers, middle, bars, colour, label, style)


def lengths(middle: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """How far the ends of intervals are from their middles, Float[2, N]: rounding can put one on the wrong side."""
    with np.errstate(invalid="ignore"):  # of what is infinite
        return np.nan_to_num(np.maximum([middle - low, high - middle], 0), nan=0.0, posinf=0.0)


def draw_bars(axes: Axes, x: Any, y: np.ndarray, bars: Any, colour: str, label: str, style: str) -> None:
    """A curve Float[N] with bars, Float[2, N] or None."""
    look: Any = {"markersize": 3, "linewidth": 1.2, "elinewidth": 0.8, "capsize": 1.5}
    axes.errorbar(x, y, bars, fmt=style, color=colour, label=label or None, **look)


def powers_of_two(axes: Axes) -> None:
    """Logarithmic axes with a tick at 1, 2, 4, ..., in plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(base=2, numticks=16))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:g}")


def _window(
    commit: np.ndarray, begin: np.ndarray, schedule: Schedule, start: float | None, stop: float | None
) -> tuple[float, float]:
    """By default about eight jobs per worker, in the middle of the run; of a short run all, from the first job on."""
    half = max(1, 4 * schedule.num_workers // schedule.group_size)
    middle = len(commit) // 2
    if start is None:
        start = float(commit[middle - half] if middle > half else begin.min())
    stop = float(commit[min(len(commit) - 1, middle + half)]) if stop is None else stop
    return start, max(stop, start + 1e-9)


def _staleness_colours(staleness: np.ndarray) -> Any:
    from matplotlib import colormaps

    return colormaps["Blues"](0.2 + 0.8 * staleness / staleness.max(initial=1))


def _whole_numbers(axis: Axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=7, integer=True))


def thousands(axes: Axes) -> None:
    """Ticks such as 250k where the numbers are large."""
    from matplotlib.ticker import EngFormatter

    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        if 5000 <= max(abs(low), abs(high)) < 1e15:
            axis.set_major_formatter(EngFormatter(sep=""))


def cycle(n: int) -> list[str]:
    """The first n colours, over again where there are not enough."""
    return [COLOURS[i % len(COLOURS)] for i in range(n)]
