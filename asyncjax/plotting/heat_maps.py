"""Maps: a number for each cell as a colour, for tables of two settings and for grid worlds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncjax.mdp.grids import MOVES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SEQUENTIAL, DIVERGING = "viridis", "PuOr"  # both keep their order in every common colour vision, and in grey
MOST_NUMBERS = 16  # columns; with more the numbers in the cells could not be read


def draw_heat_map(
    axes: Axes,
    values: np.ndarray,
    columns: Sequence[Any],
    rows: Sequence[Any],
    *,
    label: str,
    spread: np.ndarray | None = None,
    center: float | None = None,
    number: str = ".3g",
) -> None:
    """Draws `plotting.heat_map` into given axes."""
    image = _image(axes, values, center, label, origin="lower", aspect="auto")
    axes.set_xticks(range(len(columns)), [_text(x) for x in columns])
    axes.set_yticks(range(len(rows)), [_text(y) for y in rows])
    axes.tick_params(length=0)
    if len(columns) > MOST_NUMBERS:
        return
    texts = {}
    for (row, column), value in np.ndenumerate(values):
        texts[row, column] = "-" if np.isnan(value) else format(value, number)
        if spread is not None and np.isfinite(value + spread[row, column]):
            texts[row, column] += f"\n±{format(spread[row, column], number if number.endswith('f') else '.2g')}"
    longest = max((len(line) for text in texts.values() for line in text.split("\n")), default=1)
    size = min(7.0, 220.0 / (len(columns) * longest))  # as wide as a cell
    for (row, column), text in texts.items():
        axes.text(
            column, row, text, ha="center", va="center", fontsize=size, color=_ink(image, float(values[row, column]))
        )


def draw_value_map(axes: Axes, values: np.ndarray, policy: np.ndarray | None, still: np.ndarray, label: str) -> None:
    """Draws `plotting.value_map` into given axes; everything is [height, width], and `still` cells are grey."""
    image = _image(axes, np.where(still, np.nan, values), None, label, origin="upper", aspect="equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    if policy is None:
        return
    row, column = np.nonzero(~still)
    step = np.array(MOVES)[policy[row, column]]
    colours = [_ink(image, value) for value in values[row, column]]
    arrows = step[:, 1], -step[:, 0]  # rows count downwards, y upwards
    axes.quiver(
        column, row, *arrows, color=colours, pivot="mid", angles="uv", scale=1.6 * max(values.shape), width=0.006
    )


def _image(axes: Axes, values: np.ndarray, center: float | None, label: str, **options: Any) -> Any:
    """The cells as colours, grey where there is no number, and the colour bar."""
    from matplotlib import colormaps
    from matplotlib.colors import CenteredNorm

    colours = colormaps[SEQUENTIAL if center is None else DIVERGING].with_extremes(bad="0.85")
    norm = None if center is None else CenteredNorm(center)
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colours, norm=norm, interpolation="nearest", **options)
    assert axes.figure is not None
    bar = axes.figure.colorbar(image, ax=axes)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_visible(False)
    axes.spines[:].set_visible(False)
    return image


def _ink(image: Any, value: float) -> str:
    """Black or white, whichever is legible on the value's colour."""
    red, green, blue, _ = image.cmap(image.norm(value)) if np.isfinite(value) else (1.0,) * 4
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _text(setting: Any) -> str:
    return f"{setting:g}" if isinstance(setting, (int, float, np.number)) else str(setting)
