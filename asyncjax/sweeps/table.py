"""What a sweep gives: values by setting and seed, their intervals, and differences seed by seed."""

from __future__ import annotations

import csv
import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asyncjax import statistics
from asyncjax.extras import import_extra

Setting = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Table:
    """Values of N settings x S seeds; `table["return"]` is Float[N, S, ...].

    Attributes:
      settings: N dictionaries with the same names.
      seeds: S; what a seed's row does in one setting pairs with what it does in the others.
      values: name -> array with the axes N, S and those of one run's value.
      baseline: of differences, the values of settings that were subtracted; empty otherwise.

    Raises:
      KeyError: from `table[name]`, a name that `values` does not have.

    Example:
      >>> import numpy as np, asyncjax as aj
      >>> losses = np.array([[1.0, 3.0], [1.5, 3.5], [2.0, 4.0]])
      >>> table = aj.Table(aj.grid(delay=[0, 2, 4]), seeds=[0, 1], values={"loss": losses})
      >>> print(table.against(delay=0))  # row by row less the first row
      delay             loss
          2  0.5 [0.5, 0.5]*
          4        1 [1, 1]*
      difference from delay=0 seed by seed, * if resolved, interquartile mean of 2 seeds [95 % bootstrap interval]
    """

    settings: Sequence[Setting]
    seeds: Sequence[int]
    values: dict[str, np.ndarray]
    baseline: Setting = dataclasses.field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.values:
            raise KeyError(f"{name!r}: the table has {', '.join(self.values)}.")
        return self.values[name]

    @property
    def scalars(self) -> list[str]:
        """The names of the values that are one number a run."""
        return [name for name, x in self.values.items() if x.ndim == 2]

    @property
    def varied(self) -> list[str]:
        """The names in which the settings differ."""
        names = self.settings[0] if self.settings else {}
        return [name for name in names if any(s[name] != self.settings[0][name] for s in self.settings)]

    def select(self, **values: Any) -> Table:
        """The settings that have these values.

        Raises:
          ValueError: there are none.
        """
        rows = [i for i, s in enumerate(self.settings) if _has(s, values)]
        if not rows:
            raise ValueError(f"No setting has {_words(values)}. {self._choices(values)}")
        return self._rows(rows, self.values)

    def against(self, **baseline: Any) -> Table:
        """Per seed, every setting minus the one that differs from it in having these values.

        `table.against(delay=0)` is what each delay changes at equal learning rates and so on. Differences can
        be differenced again: `table.against(delay=0).against(learning_rate=1e-3)` is how what a delay changes depends
        on the learning rate. The baseline's own settings, all zeros, are left out.

        Raises:
          ValueError: a setting has no such partner.
        """
        index = {_identity(s): i for i, s in enumerate(self.settings)}
        pairs = []
        for i, setting in enumerate(self.settings):
            partner = index.get(_identity({**setting, **baseline}))
            if partner is None:
                raise ValueError(
                    f"The setting {_words(setting)} has no partner with {_words(baseline)}. {self._choices(baseline)}"
                )
            if partner != i:
                pairs.append((i, partner))
        numeric = {name: np.asarray(x, np.float64) for name, x in self.values.items() if name != "finite"}
        differences = {n: x[[i for i, _ in pairs]] - x[[j for _, j in pairs]] for n, x in numeric.items()}
        kept = self._rows([i for i, _ in pairs], {})
        return dataclasses.replace(kept, values=differences, baseline={**self.baseline, **baseline})

    def sorted(self, name: str) -> Table:
        """The settings by the interquartile mean of a scalar, the largest first, those without a number last."""
        self._check_scalars(name)
        order = np.argsort(-np.nan_to_num(self.interval(name)[0], nan=-np.inf), kind="stable")
        return self._rows(order.tolist(), self.values)

    def first(self, count: int) -> Table:
        """The first so many settings."""
        return self._rows(list(range(min(count, len(self.settings)))), self.values)

    def label(self, index: int, *, without: str = "") -> str:
        """A setting in words: what sets it apart, but for this name."""
        names = [name for name in self.varied if name != without]
        return _words({name: self.settings[index][name] for name in names}) if names else ""

    def interval(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The interquartile mean over seeds and the ends of its 95 % bootstrap interval, each Float[N, ...]."""
        middle, low, high = statistics.interquartile_mean(np.moveaxis(np.asarray(self[name], np.float64), 1, 0))
        return middle, low, high

    def seeds_needed(self, name: str, effect: float) -> np.ndarray:
        """Int[N, ...]: the seeds with which a paired test would resolve differences of this size.

        See `statistics.seeds_needed`; the table has to be one of differences, so that their spread is the paired one.
        """
        if not self.baseline:
            raise ValueError("The table is not one of differences: take table.against(...) first.")
        return statistics.seeds_needed(np.moveaxis(self[name], 1, 0), effect)

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per run: the setting, the seed, and every value that is one number."""
        return [
            {**setting, "seed": seed, **{name: self.values[name][i, j].item() for name in self.scalars}}
            for i, setting in enumerate(self.settings)
            for j, seed in enumerate(self.seeds)
        ]

    def summary(self) -> list[dict[str, Any]]:
        """One dictionary per setting: its varied values, and name, name_low and name_high of every scalar."""
        rows: list[dict[str, Any]] = [{name: s[name] for name in self.varied} for s in self.settings]
        for name in self.scalars:
            for suffix, column in zip(("", "_low", "_high"), self.interval(name), strict=True):
                for row, value in zip(rows, column, strict=True):
                    row[name + suffix] = float(value)
        return rows

    def save(self, path: str | Path) -> None:
        """Writes `rows` as CSV, or as Parquet where the path ends so (extra: sweep)."""
        path = Path(path)
        rows = [{name: _short(x) if callable(x) else x for name, x in row.items()} for row in self.rows()]
        if path.suffix == ".parquet":
            _save_parquet(path, rows)
            return
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(rows)

    def __str__(self) -> str:
        """`text` of what runs are judged by, or of everything if they report nothing of the kind."""
        return self.text(*[n for n in ("evaluation", "return", "loss") if n in self.scalars])

    def text(self, *names: str) -> str:
        """A line per setting: interquartile means with their intervals, of these scalars or of all."""
        self._check_scalars(*names)
        names = names or tuple(n for n in self.scalars if n != "finite")
        cells = [[*self.varied, *names]]
        intervals = {name: self.interval(name) for name in names}
        for i, setting in enumerate(self.settings):
            columns = [self._interval_text(*(x[i] for x in intervals[name])) for name in names]
            cells.append([*(_short(setting[name]) for name in self.varied), *columns])
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        what = f"difference from {_words(self.baseline)} seed by seed, * if resolved, " if self.baseline else ""
        if "finite" in self.values and not self["finite"].all():
            lines.append(f"{np.sum(~self['finite'])} of {self['finite'].size} runs ended with parameters not finite")
        lines.append(f"{what}interquartile mean of {len(self.seeds)} seeds [95 % bootstrap interval]")
        return "\n".join(lines)

    def _check_scalars(self, *names: str) -> None:
        for name in names:
            if self[name].ndim != 2:
                raise ValueError(f"{name} is an array of each run: choose of {', '.join(self.scalars)}, or plot it.")

    def _interval_text(self, middle: Any, low: Any, high: Any) -> str:
        """Of a difference with a mark if it is resolved."""
        mark = "" if not self.baseline else "*" if statistics.leaves_out_zero(low, high, len(self.seeds)) else " "
        return f"{middle:.4g} [{low:.4g}, {high:.4g}]{mark}"

    def _rows(self, rows: list[int], values: dict[str, np.ndarray]) -> Table:
        chosen = {name: x[rows] for name, x in values.items()}
        return dataclasses.replace(self, settings=[self.settings[i] for i in rows], values=chosen)

    def _choices(self, names: Setting) -> str:
        """What there is, for a message about what there is not."""
        has = [
            f"{name}: {', '.join(_short(v) for v in dict.fromkeys(s.get(name) for s in self.settings))}"
            for name in names
        ]
        return f"The table has {'; '.join(has)}."


def _identity(setting: Setting) -> frozenset[tuple[str, Any]]:
    return frozenset(setting.items())


def _has(setting: Setting, values: Setting) -> bool:
    return all(name in setting and setting[name] == value for name, value in values.items())


def _words(values: Setting) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in values.items()) or "no values"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value.__name__ if hasattr(value, "__name__") else textwrap.shorten(str(value), 60, placeholder="...")


def _save_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    needs = "Parquet needs pyarrow (save as .csv without it)"
    pyarrow, parquet = import_extra("pyarrow", needs, "sweep"), import_extra("pyarrow.parquet", needs, "sweep")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
