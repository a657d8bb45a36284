"""Loggers: rows of metrics for TensorBoard and for Weights & Biases, beside the run directory.

A logger is what a `Recorder` takes as `on_row`, and a context manager that opens and closes it::

    with aj.loggers.TensorBoard("runs/one") as log, aj.Recorder("runs/one/record", {}, on_row=log) as recorder:
        aj.emulate(method, schedule, key, callback=recorder, chunk_size=100)

Both packages come with the extra `logging`. A metric's step is `env_steps` where there are any, else `update`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asyncjax.extras import import_extra
from asyncjax.files import PathLike
from asyncjax.runs import Row


class TensorBoard:
    """Writes event files that TensorBoard reads; of a continued run it then shows what goes on, not what that dropped.

    Args:
      path: the folder for them.
      config: the arguments of the run, written as text.

    Raises:
      ImportError: tensorboardX is not installed.
    """

    def __init__(self, path: PathLike, config: Mapping[str, Any] | None = None) -> None:
        self.package = import_extra("tensorboardX", "this logger needs tensorboardX", "logging")
        self.path, self.config = path, dict(config or {})
        self.writer: Any = None

    def __enter__(self) -> TensorBoard:
        return self

    def __call__(self, row: Row) -> None:
        """Writes a row. The first one tells TensorBoard that rows from there on, in earlier files, are void."""
        if self.writer is None:
            self.writer = self.package.SummaryWriter(str(self.path), purge_step=step(row))
            self.writer.add_text("config", "\n".join(f"    {name}: {value}" for name, value in self.config.items()))
        for name, value in scalars(row).items():
            self.writer.add_scalar(name, value, step(row))
        self.writer.flush()

    def __exit__(self, *_: Any) -> None:
        if self.writer is not None:
            self.writer.close()


class WeightsAndBiases:
    """Sends rows to Weights & Biases; a run that is continued in its directory continues there too.

    What was sent there stays there: where a killed run had come further than its last checkpoint, those rows are
    followed by the rows that replace them.

    Args:
      path: the folder for its files, which also names the run.
      config: the arguments of the run.
      **options: further arguments of `wandb.init`, such as project or mode="offline"; so do wandb's own environment
        variables, such as WANDB_MODE and WANDB_PROJECT.

    Raises:
      ImportError: wandb is not installed.
      ConnectionError: there is no key, or nobody answers.
    """

    def __init__(self, path: PathLike, config: Mapping[str, Any] | None = None, **options: Any) -> None:
        self.package = import_extra("wandb", "this logger needs wandb", "logging")
        self.path, self.config, self.options = Path(path), dict(config or {}), options
        if (options.get("mode") or os.environ.get("WANDB_MODE") or "online") == "online":
            self._online(self.package.login)  # now, when there is no directory yet

    def __enter__(self) -> WeightsAndBiases:
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / "wandb_id.txt"
        if not file.exists():
            file.write_text(secrets.token_hex(4))
        known = {"id": file.read_text(), "resume": "allow", "name": self.path.name, "dir": str(self.path)}
        self.run = self._online(self.package.init, config=self.config, **(known | self.options))
        self.free = self.run.starting_step  # from this step on wandb has no row
        return self

    def __call__(self, row: Row) -> None:
        """Sends a row."""
        at = max(step(row), self.free)
        if at > step(row):  # where wandb has a row it ignores another: a later place, drawn where it belongs
            self.run.define_metric("*", step_metric=axis(row))
        self.run.log(scalars(row), step=at)
        self.free = at + 1

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        self.run.finish(exit_code=0 if error is None else 1)

    def _online(self, function: Any, **arguments: Any) -> Any:
        try:
            return function(**arguments)
        except self.package.Error as error:
            raise ConnectionError(
                f"Weights & Biases: {str(error).rstrip('.')}. With WANDB_MODE=offline it needs neither a key nor a"
                " network, and `wandb sync` sends what was written later."
            ) from error


LOGGERS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def axis(row: Row) -> str:
    """What the horizontal axis counts."""
    return "env_steps" if "env_steps" in row else "update"


def step(row: Row) -> int:
    """Where a row is on it."""
    return row[axis(row)]


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a row, without those that have no value; of per-worker metrics one for each worker."""
    flat: dict[str, float | None] = {}
    for name, value in row.items():
        flat |= {f"{name}/{i}": x for i, x in enumerate(value)} if isinstance(value, list) else {name: value}
    return {name: value for name, value in flat.items() if value is not None}
