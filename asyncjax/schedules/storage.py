"""Schedules as files."""

from __future__ import annotations

import io
import itertools
from collections import OrderedDict
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import jax
import numpy as np

from asyncjax import files
from asyncjax.files import PathLike
from asyncjax.schedules.schedule import Schedule, check_axes


def save(schedule: Schedule, path: PathLike) -> None:
    """Writes the schedule to one .npz file; whoever reads it sees the old file or the whole new one.

    Args:
      schedule: any; torn reads, too.
      path: the file, taken as it is: no suffix is added. An old one is replaced.

    Raises:
      OSError: the file can not be written, for instance as its directory does not exist.
      ValueError: workers or reads that are no Int[T, G].

    Example:
      >>> import pathlib, tempfile, numpy as np, asyncjax as aj
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     path = pathlib.Path(directory) / "schedule.npz"
      ...     aj.schedules.save(aj.schedules.round_robin(3, num_workers=2), path)
      ...     sorted(np.load(path).files)
      ['read', 'worker']
    """
    check_axes(schedule)
    arrays = {
        name: np.asarray(value) for name, value in schedule._asdict().items() if name != "read" and value is not None
    }
    for keys, leaf in jax.tree_util.tree_flatten_with_path(schedule.read)[0]:
        arrays["/".join(["read", *map(_entry, keys)])] = np.asarray(leaf)
    files.replace_arrays(path, arrays, compressed=True)


def load(path: PathLike) -> Schedule:
    """Reads what `save` wrote. Torn reads come back as nested dictionaries, ordered by their leaves, and tuples.

    Args:
      path: the file.

    Returns:
      A Schedule of numpy arrays; times that the file does not have are None.

    Raises:
      OSError: there is no such file (FileNotFoundError), or it can not be read, such as a directory.
      ValueError: a file that is no .npz, is damaged, holds pickled objects, or lacks the workers or the reads.

    Example:
      >>> import pathlib, tempfile, asyncjax as aj
      >>> with tempfile.TemporaryDirectory() as directory:
      ...     path = pathlib.Path(directory) / "schedule.npz"
      ...     aj.schedules.save(aj.schedules.round_robin(5, num_workers=3), path)
      ...     aj.schedules.load(path).staleness().ravel()
      array([0, 1, 2, 2, 2], dtype=int32)
    """
    stream = io.BytesIO(Path(path).read_bytes())
    try:
        with np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # of zipfile, zlib, tokenize, NumPy, ...: what damaged bytes raise, nobody lists
        raise ValueError(f"{path} is no schedule; write one with asyncjax.schedules.save.") from error
    if "worker" not in arrays or not any(name.split("/")[0] == "read" for name in arrays):
        raise ValueError(f"{path} holds {sorted(arrays)} and is no schedule; use asyncjax.schedules.save to write one.")
    read = {tuple(name.split("/")[1:]): array for name, array in arrays.items() if name.split("/")[0] == "read"}
    fields = {name: arrays.get(name) for name in ("time", "begin", "end")}
    return Schedule(arrays["worker"], _nest(read), **fields)


def leaf_names(read: Any) -> list[tuple[str, ...]]:
    """Each leaf's path as far as a file keeps it: keys of dictionaries, while fields of tuples become positions."""
    paths = [[_entry(key) for key in keys] for keys, _ in jax.tree_util.tree_flatten_with_path(read)[0]]
    return [tuple("." if entry.startswith(".") else entry for entry in path) for path in paths]


def _entry(key: Any) -> str:
    """A path entry as text: "=key" in a dictionary, "#key" if it is a number, ".position" or ".field" in a tuple."""
    if isinstance(key, jax.tree_util.DictKey):
        return f"#{key.key}" if type(key.key) is int else "=" + quote(str(key.key), safe="")
    return f".{getattr(key, 'idx', getattr(key, 'name', key))}"


def _nest(leaves: dict[tuple[str, ...], np.ndarray]) -> Any:
    if () in leaves:
        return leaves[()]
    heads = list(dict.fromkeys(path[0] for path in leaves))  # in the order of the leaves, which the engines go by
    children = [_nest({path[1:]: leaf for path, leaf in leaves.items() if path[0] == head}) for head in heads]
    if heads[0].startswith("."):
        return tuple(children)
    keys: list[Any] = [int(head[1:]) if head.startswith("#") else unquote(head[1:]) for head in heads]
    nested = dict(zip(keys, children, strict=True))
    # JAX takes the leaves of a plain dictionary in the order of its keys.
    return nested if all(a < b for a, b in itertools.pairwise(keys)) else OrderedDict(nested)
