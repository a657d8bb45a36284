"""What `learning.py` found, side by side: a row of panels per environment, a column per engine, a line per method.

    python experiments/learning.py a3c --env CartPole-v1 --engine emulate
    python experiments/learning.py a3c --env CartPole-v1 --engine threads
    python experiments/curves.py

Reads the METHOD-ENV-ENGINE.json files of a folder, draws the learning curves with 95 % bootstrap bands, and prints the
final returns with their intervals, and whether threads and emulation differ.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import figure
from asyncjax.plotting.panels import COLUMN, cycle, new_figure, thousands
from asyncjax.statistics import interquartile_mean, middle_half

ENGINES = ("emulate", "threads")
NAME = re.compile(rf"(?P<method>\w+)-(?P<env>.+)-(?P<engine>{'|'.join(ENGINES)})\.json")


class Learned(NamedTuple):
    """Ten seeds, or as many as there are, of one method on one environment and engine."""

    steps: np.ndarray  # Float[L], environment steps
    returns: np.ndarray  # Float[S, L], of the episodes that ended, with exploration
    evaluation: np.ndarray  # Float[S], of the final policies
    staleness: float  # mean, in updates


Table = dict[str, dict[str, dict[str, Learned]]]  # environment -> method -> engine


@dataclasses.dataclass(frozen=True)
class Args:
    """What to draw."""

    results: Path = Path("results")
    """Folder with the files of `learning.py`; the picture goes there, too."""
    envs: tuple[str, ...] = ()
    """Environments to draw, in this order; by default all."""


def main(args: Args) -> Table:
    """Draws results/learning.png and prints the table."""
    learned = load(args.results, args.envs)
    path = args.results / "learning.png"
    plot(learned).savefig(path)
    print(f"{report(learned)}\n\n{path}")
    return learned


def load(folder: Path, envs: tuple[str, ...] = ()) -> Table:
    """The files of a folder, by environment, method and engine.

    Raises:
      ValueError: no file of `learning.py` there, or none of an environment that was asked for.
    """
    learned: Table = {env: {} for env in envs}
    for path in sorted(folder.glob("*.json")):
        file = NAME.fullmatch(path.name)
        if file is None or (envs and file["env"] not in envs):
            continue
        data: dict[str, Any] = json.loads(path.read_text())
        steps, returns, evaluation = (np.asarray(data[name]) for name in ("steps", "returns", "evaluation"))
        one = Learned(steps, returns, evaluation, data["staleness"])
        learned.setdefault(file["env"], {}).setdefault(file["method"], {})[file["engine"]] = one
    missing = [env for env, methods in learned.items() if not methods]
    if missing or not learned:
        raise ValueError(
            f"{folder} has no results {'of ' + ', '.join(missing) if missing else 'that learning.py wrote'}: run"
            " `python experiments/learning.py METHOD --env ENV --results FOLDER` first."
        )
    return learned


def plot(learned: Table) -> Any:
    """Return against environment steps: a row per environment, a column per engine."""
    methods = sorted({method for by_method in learned.values() for method in by_method})
    colours = dict(zip(methods, cycle(len(methods)), strict=True))
    picture, grid = new_figure(len(learned), 2, size=(2 * COLUMN[0], 0.75 * len(learned) * COLUMN[1]))
    lines = {}
    for row, (env, by_method) in zip(np.reshape(grid, (-1, 2)), learned.items(), strict=True):
        for axes, engine in zip(row, ENGINES, strict=True):
            for method, by_engine in by_method.items():
                if engine in by_engine:
                    steps, returns, *_ = by_engine[engine]
                    middle, low, high = interquartile_mean(returns)
                    style = "-" if methods.index(method) < 8 else "--"  # there are eight colours
                    (lines[method],) = axes.plot(steps, middle, style, color=colours[method], linewidth=1)
                    axes.fill_between(steps, low, high, color=colours[method], alpha=0.2, linewidth=0)
            axes.set_title(f"{env}, {engine}", fontsize=8)
            axes.set_xlabel("environment steps")
            thousands(axes)
            if not axes.lines:
                axes.set_visible(False)
        row[0].set_ylabel("return, exploring")
        low, high = zip(*(axes.get_ylim() for axes in row if axes.lines), strict=True)
        row[1].sharey(row[0])
        row[0].set_ylim(min(low), max(high))
    picture.legend([lines[m] for m in methods], methods, loc="outside upper center", ncols=4, frameon=False, fontsize=7)
    return picture


def report(learned: Table) -> str:
    """Final returns of both engines, and the difference of the two."""
    rows = []
    for env, by_method in learned.items():
        for method, by_engine in by_method.items():
            cells = [f"{figure.interval(x.evaluation)}, {x.staleness:.1f}" for x in map(by_engine.get, ENGINES) if x]
            both = [by_engine[engine].evaluation for engine in ENGINES if engine in by_engine]
            cells = cells if len(both) == 2 else [cells[0], "-"] if "emulate" in by_engine else ["-", cells[0]]
            rows.append([env, method, *cells, difference(*both) if len(both) == 2 else "-"])
    head = ["environment", "method", *(f"{engine}, mean staleness" for engine in ENGINES), "emulate minus threads"]
    return figure.table(head, rows)


def difference(x: np.ndarray, y: np.ndarray) -> str:
    """Interquartile mean of x minus that of y, whose seeds are no pairs, and its interval: both are resampled."""
    rng = np.random.default_rng(0)
    draws = [middle_half(rng.choice(x, len(x))) - middle_half(rng.choice(y, len(y))) for _ in range(1000)]
    low, high = np.percentile(draws, (2.5, 97.5))
    return f"{middle_half(x) - middle_half(y):.2g} [{low:.2g}, {high:.2g}]"


if __name__ == "__main__":
    figure.start(main, Args, __doc__)
