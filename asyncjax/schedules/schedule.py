"""The schedule: asynchrony as data."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from asyncjax.checks import check_kind
from asyncjax.traced import is_traced

Array = np.ndarray | jax.Array


class Schedule(NamedTuple):
    """T updates, each consuming a group of G messages.

    Attributes:
      worker: Int[T, G], whose messages update t consumes, in order of arrival.
      read: Int[T, G], the version each of them had read, 0 <= read <= t; or a tree prefix of the
        view with such arrays for leaves, where reads were torn.
      time: Float[T], seconds at which update t was committed, virtual or measured; or None.
      begin: Float[T, G], seconds at which the worker read its view and began; or None.
      end: Float[T, G], seconds at which it had its message ready; or None.

    Example:
      >>> import asyncjax as aj
      >>> aj.schedules.round_robin(num_updates=5, num_workers=3).staleness().ravel()
      array([0, 1, 2, 2, 2], dtype=int32)
    """

    worker: Array
    read: Any
    time: Array | None = None
    begin: Array | None = None
    end: Array | None = None

    @property
    def num_updates(self) -> int:
        """T."""
        return self.worker.shape[0]

    @property
    def group_size(self) -> int:
        """G."""
        return self.worker.shape[1]

    @property
    def num_workers(self) -> int:
        """One more than the largest worker index."""
        return int(np.max(np.asarray(self.worker, np.int64), initial=-1)) + 1

    def staleness(self) -> Array:
        """Int[T, G]: the updates applied between the read and the apply; of a torn read, its oldest leaf's."""
        check_axes(self)
        oldest, *leaves = jax.tree.leaves(self.read)
        for leaf in leaves:
            oldest = np.minimum(oldest, leaf) if isinstance(leaf, np.ndarray) else jax.numpy.minimum(oldest, leaf)
        return np.arange(oldest.shape[0], dtype=np.int32)[:, None] - oldest.astype(np.int32)


def cut(schedule: Schedule, start: int, stop: int) -> Schedule:
    """The updates start to stop - 1, with absolute versions.

    Args:
      schedule: any; torn reads, too.
      start: the first update.
      stop: the update after the last one; counted and clipped as in a slice.

    Returns:
      A Schedule. A part that begins later than update 0 is well-formed only after what came before it.

    Example:
      >>> import asyncjax as aj
      >>> part = aj.schedules.cut(aj.schedules.round_robin(6, num_workers=2), start=2, stop=5)
      >>> part.worker.ravel(), part.read.ravel()
      (array([0, 1, 0], dtype=int32), array([1, 2, 3], dtype=int32))
    """
    return jax.tree.map(lambda x: x[start:stop], schedule)


def concatenate(schedules: Sequence[Schedule]) -> Schedule:
    """One schedule after the other; versions are taken as they stand.

    Args:
      schedules: parts with groups of one size, such as those that `cut` makes.

    Returns:
      A Schedule with the updates of all, in numpy arrays.

    Raises:
      ValueError: no schedule at all, or schedules that differ in which fields or parts of a view they have, or in G.

    Example:
      >>> import asyncjax as aj
      >>> whole = aj.schedules.round_robin(6, num_workers=2)
      >>> parts = [aj.schedules.cut(whole, 0, 2), aj.schedules.cut(whole, 2, 6)]
      >>> aj.schedules.concatenate(parts).read.ravel()
      array([0, 0, 1, 2, 3, 4], dtype=int32)
    """
    if not schedules:
        raise ValueError("schedules=[]: give one schedule or more.")
    for i, schedule in enumerate(schedules):
        if jax.tree.structure(schedule) != jax.tree.structure(schedules[0]):
            raise ValueError(
                f"schedules[{i}] has the fields {jax.tree.structure(schedule)}, but schedules[0] has"
                f" {jax.tree.structure(schedules[0])}: leave out time, begin and end of all, or of none."
            )
        if schedule.worker.shape[1:] != schedules[0].worker.shape[1:]:
            raise ValueError(
                f"schedules[{i}].worker has shape {schedule.worker.shape}, but schedules[0].worker"
                f" {schedules[0].worker.shape}: give schedules with groups of one size."
            )
    return jax.tree.map(lambda *parts: np.concatenate(parts), *schedules)


def extend(schedule: Schedule, other: Schedule) -> Schedule:
    """The updates of a schedule, and then those of another, whose workers begin anew at the version it ends with.

    So a run branches: after the first part of what was recorded comes what could have happened instead.

    Args:
      schedule: what comes first, such as a part that `cut` made.
      other: what follows, with versions and times that count from its own beginning.

    Returns:
      A Schedule with the updates of both; it has times where both have them.

    Raises:
      ValueError: schedules that differ in G, or in which parts of a view they read.

    Example:
      >>> import asyncjax as aj
      >>> recorded = aj.schedules.round_robin(100, num_workers=3)
      >>> branch = aj.schedules.extend(aj.schedules.cut(recorded, 0, 2), aj.schedules.sequential(3, num_workers=3))
      >>> branch.worker.ravel(), branch.read.ravel()
      (array([0, 1, 0, 1, 2], dtype=int32), array([0, 0, 2, 3, 4], dtype=int32))
    """
    now = 0.0 if schedule.time is None or not schedule.num_updates else float(schedule.time[-1])
    read = jax.tree.map(lambda x: x + np.int32(schedule.num_updates), other.read)
    missing: dict[str, None] = {}
    shifted: dict[str, Array] = {}
    for name in ("time", "begin", "end"):
        one, later = getattr(schedule, name), getattr(other, name)
        if one is None or later is None:
            missing[name] = None
        else:
            shifted[name] = later + now
    return concatenate([schedule._replace(**missing), other._replace(read=read, **missing, **shifted)])


def check(schedule: Schedule, num_workers: int | None = None) -> Schedule:
    """Raises an error unless the schedule is well-formed; returns it with numpy arrays.

    Args:
      schedule: any.
      num_workers: W; None allows any.

    Returns:
      The schedule, with `worker` and `read` as numpy arrays of int32.

    Raises:
      TypeError: what is no Schedule.
      ValueError: arrays of other shapes than the class says, a version that does not exist yet, a worker that there is
        not, or times of updates that fall, or are not finite. Equal times may follow each other.

    Example:
      >>> import numpy as np, asyncjax as aj
      >>> aj.schedules.check(aj.Schedule(worker=np.array([[0], [1], [0]]), read=np.array([[0], [0], [1]]))).num_updates
      3
    """
    check_kind(Schedule, "give one of asyncjax.schedules, or a recorded one", schedule=schedule)
    worker = _integers("worker", schedule.worker)
    _reads(schedule)
    read = jax.tree.map(lambda leaf: _integers("read", leaf), schedule.read)
    if worker.shape[1] < 1:
        raise ValueError(f"schedule.worker has shape {worker.shape}: an update consumes at least one message.")
    _check_times(schedule, worker.shape)
    for leaf in jax.tree.leaves(read):
        _check_versions(leaf, worker.shape)
    _check_workers(worker, num_workers)
    return schedule._replace(worker=worker, read=read)


def _check_times(schedule: Schedule, shape: tuple[int, ...]) -> None:
    """Raises ValueError for times of other shapes than (T, G) asks for, or updates whose times fall."""
    for name, wanted in {"time": shape[:1], "begin": shape, "end": shape}.items():
        times = getattr(schedule, name)
        if times is not None and np.shape(times) != wanted:
            raise ValueError(
                f"schedule.{name} has shape {np.shape(times)}, schedule.worker {shape}: give {wanted}, or None."
            )
    if schedule.time is None:
        return
    time = np.asarray(schedule.time)
    wrong = np.flatnonzero(~np.isfinite(time) | np.append([False], time[1:] < time[:-1])[: shape[0]])
    if wrong.size:
        t = wrong[0]
        after = f", after {time[t - 1]}" if t else ""
        raise ValueError(f"schedule.time[{t}] = {time[t]}{after}: give finite seconds that never fall, or None.")


def _check_versions(read: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raises ValueError for reads, of one leaf, of another shape than (T, G), or of what does not exist yet."""
    if read.shape != shape:
        raise ValueError(f"schedule.read has shape {read.shape}, schedule.worker {shape}: both are Int[T, G].")
    wrong = np.argwhere((read < 0) | (read > np.arange(shape[0])[:, None]))
    if wrong.size:
        t, g = wrong[0]
        raise ValueError(
            f"schedule.read[{t}, {g}] = {read[t, g]}: update {t} can read the versions 0 to {t};"
            f" version {read[t, g]} does not exist yet."
            + (" A later part of a run goes after what came before: schedules.concatenate." if t == 0 else "")
        )


def _check_workers(worker: np.ndarray, num_workers: int | None) -> None:
    """Raises ValueError for a worker that there is not."""
    wrong = np.argwhere((worker < 0) | (worker >= (np.inf if num_workers is None else num_workers)))
    if wrong.size:
        t, g = wrong[0]
        raise ValueError(
            f"schedule.worker[{t}, {g}] = {worker[t, g]}: there is no such worker; workers are numbered from 0"
            + ("." if num_workers is None else f" to {num_workers - 1}. Pass num_workers={worker.max() + 1} or more.")
        )


def check_axes(schedule: Schedule) -> None:
    """Raises ValueError unless worker and read are Int[T, G], also while they are traced."""
    _integers("worker", schedule.worker)
    for leaf in _reads(schedule):
        _integers("read", leaf)


def _reads(schedule: Schedule) -> list[Any]:
    """The arrays of what was read; raises ValueError where there is none, or a list in an array's place."""
    leaves = jax.tree.leaves(schedule.read)
    if not leaves:
        raise ValueError(f"schedule.read={schedule.read} has no arrays: give the versions that were read, Int[T, G].")
    if not all(np.ndim(leaf) for leaf in leaves):
        raise ValueError(
            f"schedule.read={reprlib.repr(schedule.read)} is made of single numbers: give an array, such as"
            " np.array([[0], [0]])."
        )
    return leaves


def _integers(name: str, value: Any) -> Any:
    array = value if is_traced(value) else np.asarray(value)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        fix = f"for one message per update add an axis: {name}[:, None]" if array.ndim == 1 else "give whole numbers"
        raise ValueError(f"schedule.{name} is {array.dtype}{list(array.shape)}, but wants Int[T, G]; {fix}.")
    if not is_traced(array) and array.size and array.max() > np.iinfo(np.int32).max:
        raise ValueError(f"schedule.{name} has {array.max()}: use at most {np.iinfo(np.int32).max}, the largest int32.")
    return array.astype(np.int32)
