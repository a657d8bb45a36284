"""Loggers: rows of metrics for TensorBoard and for Weights & Biases, beside the run directory.

A logger is what a `Recorder` takes as `on_row`, and a context manager that opens and closes it::

    with aj.loggers.TensorBoard("runs/one") as log, aj.Recorder("runs/one/record", {}, on_row=log) as recorder:
        aj.emulate(method, schedule, key, callback=recorder, chunk_size=100)

Both packages come with the extra `logging`. A metric's step is `env_steps` where there are any, else `update`.
"""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asyncjax.runs import PathLike, Row


class TensorBoard:
    """Writes event files that TensorBoard reads.

    Args:
      path: the folder for them.
      config: the arguments of the run, written as text.

    Raises:
      ImportError: tensorboardX is not installed.
    """

    def __init__(self, path: PathLike, config: Mapping[str, Any] | None = None) -> None:
        self.package = required("tensorboardX")
        self.path, self.config = path, dict(config or {})

    def __enter__(self) -> TensorBoard:
        self.writer = self.package.SummaryWriter(str(self.path))
        self.writer.add_text("config", "\n".join(f"    {name}: {value}" for name, value in self.config.items()))
        return self

    def __call__(self, row: Row) -> None:
        """Writes a row."""
        for name, value in scalars(row).items():
            self.writer.add_scalar(name, value, step(row))
        self.writer.flush()

    def __exit__(self, *_: Any) -> None:
        self.writer.close()


class WeightsAndBiases:
    """Sends rows to Weights & Biases; a run that is continued in its directory continues there too.

    Args:
      path: the folder for its files, which also names the run.
      config: the arguments of the run.
      **options: further arguments of `wandb.init`, such as project or mode="offline"; so do wandb's own environment
        variables, such as WANDB_MODE and WANDB_PROJECT.

    Raises:
      ImportError: wandb is not installed.
    """

    def __init__(self, path: PathLike, config: Mapping[str, Any] | None = None, **options: Any) -> None:
        self.package = required("wandb")
        self.path, self.config, self.options = Path(path), dict(config or {}), options

    def __enter__(self) -> WeightsAndBiases:
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / "wandb_id.txt"
        if not file.exists():
            file.write_text(secrets.token_hex(4))
        known = {"id": file.read_text(), "resume": "allow", "name": self.path.name, "dir": str(self.path)}
        self.run = self.package.init(config=self.config, **(known | self.options))
        return self

    def __call__(self, row: Row) -> None:
        """Sends a row."""
        self.run.log(scalars(row), step=step(row))

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        self.run.finish(exit_code=0 if error is None else 1)


LOGGERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def step(row: Row) -> int:
    """What the horizontal axis counts."""
    return row.get("env_steps", row["update"])


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a row, without those that have no value; of per-worker metrics one for each worker."""
    flat: dict[str, float | None] = {}
    for name, value in row.items():
        flat |= {f"{name}/{i}": x for i, x in enumerate(value)} if isinstance(value, list) else {name: value}
    return {name: value for name, value in flat.items() if value is not None}


def required(package: str) -> Any:
    """The package; where it is missing, an ImportError that says how to get it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f'this logger needs {package}: pip install "asyncjax[logging]".') from error
