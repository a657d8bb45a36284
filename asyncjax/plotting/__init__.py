"""Pictures of a run: learning curves, staleness, workers. Colour-blind-safe, legible in a paper's column.

Every function takes a run (a directory, or what `asyncjax.runs.load` gave) or plain arrays and returns
a matplotlib Figure; pyplot and its global state are not used. Save with `figure.savefig("name.png")`.
"""

from asyncjax.plotting.curves import draw_curves
from asyncjax.plotting.figures import (
    dashboard,
    heat_map,
    learning_curve,
    save_all,
    setting_curve,
    speedup_curve,
    staleness_histogram,
    value_map,
    worker_timeline,
)

__all__ = [
    "dashboard",
    "draw_curves",
    "heat_map",
    "learning_curve",
    "save_all",
    "setting_curve",
    "speedup_curve",
    "staleness_histogram",
    "value_map",
    "worker_timeline",
]
