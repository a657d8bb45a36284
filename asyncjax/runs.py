"""Run directories: what a run leaves on disk, readable whenever and however it stopped.

    config.json      the arguments             schedule.npz   the schedule that was run; while it runs, in schedule/
    versions.json    packages and device       checkpoints/   where to continue from
    metrics.jsonl    one line per chunk        timeline.json  the workers, for Perfetto

Every file but metrics.jsonl is replaced as a whole; of metrics.jsonl a torn last line is ignored.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import math
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from asyncjax.checkpoints import Checkpoints
from asyncjax.extras import import_extra
from asyncjax.files import PathLike
from asyncjax.method import Method, State
from asyncjax.schedules import Schedule, directory

PACKAGES = ("asyncjax", "jax", "jaxlib", "flax", "optax", "gymnax", "gymnasium", "envpool", "brax", "ray", "numpy")
INTEGERS = ("update", "env_steps")
_BEFORE_CONFIG = (".probe", "versions.json.tmp", "versions.json", "config.json.tmp")  # what a new run writes first
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory, loaded.

    Attributes:
      path: the directory.
      config: the arguments of the run.
      versions: package -> version, and the device.
      metrics: name -> Float[L], one entry per line of metrics.jsonl, NaN where a line has no value;
        per-worker metrics are Float[L, W].
      schedule: the recorded schedule; None when the run was killed before it was written first.
    """

    path: Path
    config: dict[str, Any]
    versions: dict[str, str]
    metrics: dict[str, np.ndarray]
    schedule: Schedule | None

    def restore(self, method: Method, num_workers: int | None = None) -> State | None:
        """The state of the newest checkpoint, to pass as `state=` to an engine; None where there is none.

        Args:
          method: the method that was run, built with the same arguments.
          num_workers: W; by default the config's `num_workers`.
        """
        if num_workers is None:
            num_workers = self.config.get("num_workers")
        if num_workers is None:
            raise ValueError(
                f"num_workers=None, and the config of {self.path} does not say: give the number of workers."
            )
        return Checkpoints(self.path / "checkpoints").restore(method, num_workers)


def load(path: PathLike) -> Run:
    """Reads a run directory.

    Raises:
      ValueError: the directory holds no run.

    Example:
      >>> import asyncjax as aj
      >>> run = aj.runs.load("runs/one")  # doctest: +SKIP
      >>> run.metrics["return"][-1], run.schedule.staleness().mean()  # doctest: +SKIP
      (500.0, 6.93)
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} holds no run: there is no config.json. Give the directory that a run printed.")
    config = read_json(path / "config.json")
    if "argv" in config:
        raise ValueError(
            f"{path} is a sweep, not a run: it goes on with `python experiments/sweep.py --resume {path}`."
        )
    versions = read_json(path / "versions.json")
    return Run(path, config, versions, columns(read_rows(path)), directory.load(path))


def read_rows(path: PathLike) -> list[Row]:
    """The complete lines of metrics.jsonl; the last one may be torn by a kill in the middle of a write."""
    file = Path(path) / "metrics.jsonl"
    lines = file.read_text().split("\n") if file.exists() else []
    # What follows the last newline is no line yet.
    return [_parsed(line, f"{file}, line {i}") for i, line in enumerate(lines[:-1], 1) if line]


def read_json(file: Path) -> Any:
    """What a JSON file of a run directory holds; raises ValueError where it is missing or damaged."""
    if not file.is_file():
        raise ValueError(f"{file} is missing: the run directory is not complete; bring the file back from a copy.")
    return _parsed(file.read_text(), str(file))


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is damaged ({error}): mend it, or bring it back from a copy.") from error


def columns(rows: list[Row]) -> dict[str, np.ndarray]:
    """Rows as one array per name, NaN where a row lacks it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _column(name, [row.get(name) for row in rows]) for name in names}


def _column(name: str, values: list[Any]) -> np.ndarray:
    if name in INTEGERS:
        return np.asarray(values, np.int64)
    width = max((len(value) for value in values if isinstance(value, list)), default=0)
    if not width:
        return np.asarray([math.nan if value is None else value for value in values], np.float64)
    padded = [[*(value or []), *[None] * (width - len(value or []))] for value in values]
    return np.asarray(padded, np.float64)  # None becomes NaN


def to_pandas(paths: PathLike | Run | Iterable[PathLike | Run]) -> Any:
    """Run directories as one long table: a row per line of metrics, with the run's arguments in every row.

    Args:
      paths: a run, a pattern such as "runs/*", or several of them. What holds no run among a pattern's matches is
        left out.

    Returns:
      A pandas.DataFrame with the columns `run`, the metrics, and the config; where a metric and an option share a name,
      the option's column is `config_NAME`. Per-worker metrics are `NAME_0`, `NAME_1`, ...

    Raises:
      ValueError: no run there.
      ImportError: pandas is not installed.

    Example:
      >>> import asyncjax as aj
      >>> table = aj.runs.to_pandas("runs/*")  # doctest: +SKIP
      >>> table.groupby(["method", "num_workers"])["return"].mean()  # doctest: +SKIP
    """
    pd = import_extra("pandas", "to_pandas needs pandas", "logging")
    several = [paths] if isinstance(paths, (str, os.PathLike, Run)) else list(paths)
    found = [run for path in several for run in ([path] if isinstance(path, Run) else _matches(path))]
    if not found:
        raise ValueError(
            f"There is no run in {', '.join(map(str, several))}: give run directories or a pattern of them."
        )
    tables = [pd.DataFrame(_table(run)) for run in found]
    some = [table for table in tables if len(table)]  # without rows a column has no type, and others lose theirs
    return pd.concat(some or tables, ignore_index=True)


def _matches(pattern: PathLike) -> list[Run]:
    """The runs that a pattern names, sorted; a path without a wildcard has to be one."""
    if not glob.has_magic(os.fspath(pattern)):
        return [load(pattern)]
    paths = [Path(path) for path in sorted(glob.glob(os.fspath(pattern)))]
    files = ("config.json", "versions.json")  # a sweep's directory has but the first of them
    return [load(path) for path in paths if all((path / name).is_file() for name in files)]


def _table(run: Run) -> dict[str, Any]:
    """Name -> column."""
    length = len(next(iter(run.metrics.values()), ()))
    table: dict[str, Any] = {"run": [str(run.path)] * length}
    for name, values in run.metrics.items():
        table |= {f"{name}_{i}": x for i, x in enumerate(values.T)} if values.ndim == 2 else {name: values}
    options = {f"config_{name}" if name in table else name: value for name, value in run.config.items()}
    return table | {name: [value] * length for name, value in options.items()}


def create(path: Path) -> None:
    """Makes a new run directory, or raises ValueError with the reason and a way out."""
    make_directory(path, "run directory", "--run-dir")
    if any(file.name not in _BEFORE_CONFIG for file in path.iterdir()):  # else its run was killed as it began
        raise ValueError(
            f"The run directory {path} exists and is not empty: continue its run with --resume {path} (in Python"
            " resume=True), or choose another directory with --run-dir."
        )


def make_directory(path: Path, what: str, option: str) -> None:
    """Makes a directory and tries it: raises ValueError, with the option that names another, where it is no use."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"The {what} {path} can not be written ({error.strerror}): choose another one with {option}."
        ) from error


def check_config(
    path: Path, config: Mapping[str, Any], may_differ: Iterable[str] = (), file: str = "config.json"
) -> None:
    """Raises ValueError unless `config` is the one recorded in the run directory, in this file."""
    found = changes(read_json(path / file), config)
    others = [name for name in found if name not in may_differ]
    for name in sorted(others, key=("method", "env").__contains__, reverse=True):  # before what is tuned for them
        raise ValueError(
            f"{path} is a run of another configuration: {name} is {found[name]!r} there and {config.get(name)!r} here."
            f" Give {name}={found[name]!r}, or choose another run directory."
        )


def differences(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run directory's configuration has otherwise than this one: name -> the recorded value."""
    return changes(read_json(path / "config.json"), config)


def changes(saved: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What a recorded configuration has otherwise than this one: name -> the recorded value."""
    given = json.loads(json.dumps(dict(config)))  # tuples are lists there
    pairs = {name: (saved.get(name), given.get(name)) for name in {**saved, **given}}
    return {name: old for name, (old, new) in pairs.items() if old != new and not (_is_nan(old) and _is_nan(new))}


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value


def versions() -> dict[str, str]:
    """What a run depends on: packages, Python, platform and device."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    device = jax.devices()[0]
    return found | {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": f"{len(jax.devices())} x {device.platform} {device.device_kind}",
    }
