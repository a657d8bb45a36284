"""Where a sweep keeps what it has: in memory, and on disk if it is to survive."""

from __future__ import annotations

import functools
import json
import sys
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from asyncjax import files
from asyncjax.sweeps.table import Setting, Table

Run = tuple[Setting, int]  # a setting and a seed


class Store:
    """Values by run.

    Args:
      directory: where every batch is written to a file of its own, and where earlier ones are read from; or None.
      key: of the sweep, which has to be that of the directory.
    """

    def __init__(self, directory: str | Path | None, key: jax.Array) -> None:
        self._values: dict[tuple[Any, int], dict[str, np.ndarray]] = {}
        self.num_batches = 0
        self.directory = None if directory is None else Path(directory)
        if self.directory is None:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        self._check_key(self.directory / "key.json", np.asarray(jax.random.key_data(key)).tolist())
        for file in sorted(self.directory.glob("batch-*.npz")):
            try:
                with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                    runs = json.loads(str(arrays["runs"]))
                    values = {name.removeprefix("value/"): arrays[name] for name in arrays.files if name != "runs"}
            except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
                raise ValueError(f"{file} is damaged: delete it, and its runs are computed again.") from error
            self._keep(runs, values)
            self.num_batches += 1

    def __contains__(self, run: Run) -> bool:
        return self._identity(*run) in self._values

    def add(self, runs: Sequence[Run], values: Mapping[str, np.ndarray]) -> None:
        """Keeps the values of a batch: arrays with a leading axis of runs."""
        identities = [self._identity(*run) for run in runs]
        # Files know no bfloat16 and the like.
        values = {name: x.astype(np.float32) if x.dtype.kind == "V" else x for name, x in values.items()}
        self._keep(identities, values)
        if self.directory is not None:
            arrays = {f"value/{name}": x for name, x in values.items()}
            # A name that no other sweep takes which writes into the directory at the same time.
            path = self.directory / f"batch-{self.num_batches:05d}-{uuid.uuid4().hex[:8]}.npz"
            files.replace_arrays(path, {"runs": json.dumps(identities), **arrays})
            self.num_batches += 1

    def table(self, settings: Sequence[Setting], seeds: Sequence[int]) -> Table:
        """The values of these settings and seeds, all of which must be there."""
        runs = [[self._values[self._identity(setting, seed)] for seed in seeds] for setting in settings]
        return Table(list(settings), list(seeds), {name: _array(name, runs) for name in (runs[0][0] if runs else ())})

    def _identity(self, setting: Setting, seed: int) -> tuple[Any, int]:
        """What tells a run from others; in a directory a text, which has to do so in any process."""
        if self.directory is None:
            return frozenset(setting.items()), seed
        return f"[{', '.join(f'({name!r}, {lasting(x)})' for name, x in sorted(setting.items()))}]", seed

    def _keep(self, identities: Sequence[Sequence], values: Mapping[str, np.ndarray]) -> None:
        for i, (setting, seed) in enumerate(identities):
            self._values[setting, seed] = {name: x[i] for name, x in values.items()}

    @staticmethod
    def _check_key(path: Path, data: list[int]) -> None:
        if not path.exists():
            if any(path.parent.glob("batch-*.npz")):
                raise ValueError(
                    f"{path} is missing, so nobody knows the key of the batches beside it: restore it, or"
                    " give another directory."
                )
            files.replace(path, json.dumps(data))
            return
        try:
            known = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is damaged: write {data} into it, or give another directory.") from error
        if known != data:
            raise ValueError(f"{path.parent} holds a sweep with another key: give that one, or another directory.")


def lasting(value: Any) -> str:
    """A setting's value as text that no other value has, in this process or another.

    Raises:
      ValueError: none of numbers, strings, None, tuples of them, and functions that can be imported by their name.
    """
    if value is None or type(value) in (bool, int, float, str):
        return repr(value)
    if type(value) is tuple:
        return f"({', '.join(map(lasting, value))}{',' * (len(value) == 1)})"
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if _imported(module, name) is not value:  # a lambda, what another function made, or an object
        raise ValueError(
            f"The setting's value {value!r} has no name by which a directory could know it again: give a name, such as"
            ' "adam", and look it up where it is used, or sweep without a directory.'
        )
    return f"{module}.{name}"


def _imported(module: str | None, name: str) -> Any:
    try:
        return functools.reduce(getattr, name.split("."), sys.modules[module or ""])
    except (AttributeError, KeyError):
        return None


def _array(name: str, runs: list[list[dict[str, np.ndarray]]]) -> np.ndarray:
    shapes = {run[name].shape for row in runs for run in row if name in run}
    if len(shapes) != 1 or any(name not in run for row in runs for run in row):
        raise ValueError(
            f"{name!r} has the shapes {sorted(shapes)} in different runs, or is missing in some: let summarize make"
            " values of one shape, whatever the setting; and give a sweep with another summary another directory."
        )
    return np.stack([np.stack([run[name] for run in row]) for row in runs])
