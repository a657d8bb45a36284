"""Checkpoints of a run's state: written by orbax, portable between devices, refused where they do not fit."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from asyncjax.checks import first_difference, is_key, leaf_types
from asyncjax.engines.common import initial_like
from asyncjax.engines.packing import Leaf, Packer
from asyncjax.files import PathLike
from asyncjax.method import Method, PyTree, State


class Checkpoints:
    """The checkpoints in one directory, one per saved update; the newest `keep` stay.

    A checkpoint appears under its final name only when it is complete, so a killed process leaves
    the previous ones usable.

    Args:
      directory: where they are; made on the first save.
      keep: how many to keep.
    """

    def __init__(self, directory: PathLike, keep: int = 2) -> None:
        self.directory = Path(directory).absolute()
        self._keep = keep
        self._manager: Any = None

    def save(self, state: State) -> None:
        """Writes the state, unless a checkpoint of this update is there already.

        Raises:
          OSError: it can not be written, as where the disk is full.
          ValueError: two arrays of the state share a name, as those of the keys "a.b" and of "b" in "a".
        """
        import orbax.checkpoint as ocp

        if state.update in self.updates():
            return
        tree = _arrays({"shared": state.shared, "local": state.local, "views": list(state.views.values())})
        names = leaf_types(tree)
        if len(names) < len(jax.tree.leaves(tree)):
            raise ValueError(
                f"Several arrays of the state share a name among {sorted(names)}, as a dot in a key looks like nesting:"
                " use keys without dots."
            )
        meta = {"versions": [int(v) for v in state.views], "time": float(state.time), "leaves": names}
        args = ocp.args.Composite(tree=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta))
        try:
            with _quiet_writes():
                self._open().save(int(state.update), args=args)
        except Exception as error:  # tensorstore's are ValueErrors
            path = self.directory / str(state.update)
            raise OSError(
                f"The checkpoint {path} can not be written: {_cause(error)}. See to it that there is room for it; the"
                " checkpoints before it are whole."
            ) from error

    def keep_until(self, update: int) -> None:
        """Deletes what a run that goes on from this update drops: checkpoints of later ones, and unfinished ones."""
        for later in [saved for saved in self.updates() if saved > update]:
            shutil.rmtree(self.directory / str(later))
        for unfinished in self.directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished, ignore_errors=True)  # of a failure in this process something may still be written

    def updates(self) -> list[int]:
        """The updates of which there are complete checkpoints, oldest first."""
        if not self.directory.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.directory.iterdir() if entry.name.isdigit())

    def restore(self, method: Method, num_workers: int) -> State | None:
        """The newest checkpoint's state, or None where there is none.

        Args:
          method: the method that was run, built with the same arguments.
          num_workers: W of the run.

        Raises:
          ValueError: the checkpoint was written with another method or other sizes, or is damaged.
        """
        import orbax.checkpoint as ocp

        updates = self.updates()
        if not updates:
            return None
        meta = self._read(updates, "meta", ocp.args.JsonRestore())
        shared, local = initial_like(method, num_workers)
        view = jax.eval_shape(method.view, shared)
        packer = Packer.of({"shared": shared, "local": local, "views": [view for _ in meta["versions"]]})
        like = packer.treedef.unflatten([_saved(np.zeros(leaf.shape, leaf.dtype)) for leaf in packer.leaves])
        self._check(meta["leaves"], leaf_types(like))
        tree = self._read(updates, "tree", ocp.args.StandardRestore(like))
        leaves = zip(packer.treedef.flatten_up_to(tree), packer.leaves, strict=True)
        tree = packer.treedef.unflatten([_restore_leaf(x, leaf) for x, leaf in leaves])
        views = dict(zip(meta["versions"], tree["views"], strict=True))
        return State(updates[-1], tree["shared"], tree["local"], views, meta["time"])

    def close(self) -> None:
        """Releases orbax's threads; saving again opens it again."""
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _open(self) -> Any:
        import orbax.checkpoint as ocp

        if self._manager is None:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep, create=True, enable_async_checkpointing=False
            )
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        return self._manager

    def _read(self, updates: list[int], item: str, how: Any) -> Any:
        """One item of the newest checkpoint. A damaged one is not passed over: what follows it would be lost unsaid."""
        import orbax.checkpoint as ocp

        *older, newest = updates
        try:
            return self._open().restore(newest, args=ocp.args.Composite(**{item: how}))[item]
        except (KeyError, OSError, TypeError, ValueError) as error:
            resumes = f"at update {older[-1]}, the checkpoint before it" if older else "from its beginning"
            raise ValueError(
                f"The checkpoint {self.directory / str(newest)} can not be read ({type(error).__name__}): it is"
                f" damaged. Bring it back, or delete it, and the run goes on {resumes}."
            ) from error

    def _check(self, saved: dict[str, str], wanted: dict[str, str]) -> None:
        if name := first_difference(saved, wanted):
            raise ValueError(
                f"The checkpoint in {self.directory} is of another configuration: {name} is"
                f" {saved.get(name, 'absent')} there and {wanted.get(name, 'absent')} in this method. Build the method"
                " with the arguments in the run's config.json, or start a new run directory."
            )


@contextlib.contextmanager
def _quiet_writes() -> Iterator[None]:
    """Keeps threads that write a checkpoint from logging and printing a failure: the error that is raised tells it."""
    hook = sys.unraisablehook

    def unraisable(what: Any) -> None:
        if str(what.exc_value) != "Event loop is closed":
            hook(what)

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_of_no_write)
    sys.unraisablehook = unraisable
    yield
    sys.unraisablehook = hook  # after a failure it stays: what was begun ends later


def _of_no_write(record: logging.LogRecord) -> bool:
    """Whether a logger's message is not of a checkpoint that is being written."""
    return ".orbax-checkpoint-tmp" not in record.getMessage()


def _cause(error: Exception) -> str:
    """The system's own words, where there are some; of a long sentence of tensorstore's by the number in it."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    words = os.strerror(int(code[1])) if code else getattr(error, "strerror", None)
    return words or f"{error!r}".rstrip(".")


def _arrays(tree: PyTree) -> PyTree:
    """Everything as numpy arrays, so that a checkpoint does not depend on the devices of the run."""
    return jax.tree.map(lambda x: _saved(np.asarray(jax.random.key_data(x) if is_key(x) else x)), tree)


def _saved(x: np.ndarray) -> np.ndarray | None:
    """What is saved of an array: nothing where it has no entries, which orbax refuses."""
    return x if x.size else None


def _restore_leaf(x: np.ndarray | None, leaf: Leaf) -> jax.Array:
    array = jax.numpy.zeros(leaf.shape, leaf.dtype) if x is None else jax.numpy.asarray(x)
    return jax.random.wrap_key_data(array, impl=leaf.key_impl) if leaf.key_impl else array
