"""Schedules: asynchrony as data, and where it comes from."""

from __future__ import annotations

import io
import itertools
import math
import reprlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import jax
import numpy as np

from asyncjax import files
from asyncjax.checks import check_int32, check_kind, check_least, whole
from asyncjax.discipline import Coordinator, Discipline, Wait
from asyncjax.files import PathLike
from asyncjax.service import Service, streams
from asyncjax.traced import is_traced
from asyncjax.virtual_clock import VirtualClock

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


# ---------------------------------------------------------------------------------------------------------------------
# Generators


def round_robin(num_updates: int, num_workers: int) -> Schedule:
    """Equal workers in turn, each reading right after its own update: staleness min(t, W - 1).

    Args:
      num_updates: T.
      num_workers: W; update t is of worker t mod W.

    Returns:
      A Schedule with groups of G = 1, without times.

    Raises:
      TypeError: sizes that are no whole numbers.
      ValueError: fewer than 0 updates, or fewer than 1 worker.

    Example:
      >>> import asyncjax as aj
      >>> schedule = aj.schedules.round_robin(5, num_workers=3)
      >>> schedule.worker.ravel(), schedule.read.ravel()
      (array([0, 1, 2, 0, 1], dtype=int32), array([0, 0, 0, 1, 2], dtype=int32))
    """
    num_updates, num_workers = _sizes(num_updates, num_workers)
    return _in_turn(num_updates, num_workers, num_workers - 1)


def sequential(num_updates: int, num_workers: int = 1) -> Schedule:
    """Workers in turn, each reading the newest version: read[t] = t, staleness 0, the Gauss-Seidel order.

    Args:
      num_updates: T.
      num_workers: W; update t is of worker t mod W.

    Returns:
      A Schedule with groups of G = 1, without times.

    Raises:
      TypeError: sizes that are no whole numbers.
      ValueError: fewer than 0 updates, or fewer than 1 worker.

    Example:
      >>> import asyncjax as aj
      >>> schedule = aj.schedules.sequential(5, num_workers=2)
      >>> schedule.worker.ravel(), schedule.staleness().ravel()
      (array([0, 1, 0, 1, 0], dtype=int32), array([0, 0, 0, 0, 0], dtype=int32))
    """
    return _in_turn(num_updates, num_workers, 0)


def fixed_delay(num_updates: int, delay: int, num_workers: int = 1) -> Schedule:
    """Workers in turn, update t reads version max(0, t - delay): the schedule of most theory.

    With fewer than delay + 1 workers no system could produce it (`is_realizable` is False), yet every
    engine that takes a schedule runs it.

    Args:
      num_updates: T.
      delay: updates, at least 0.
      num_workers: W; update t is of worker t mod W.

    Returns:
      A Schedule with groups of G = 1, without times.

    Raises:
      TypeError: sizes or a delay that are no whole numbers.
      ValueError: a negative delay, fewer than 0 updates, fewer than 1 worker, or 2^31 or more of any.

    Example:
      >>> import asyncjax as aj
      >>> schedule = aj.schedules.fixed_delay(5, delay=2)
      >>> schedule.read.ravel(), schedule.staleness().ravel()
      (array([0, 0, 0, 1, 2], dtype=int32), array([0, 1, 2, 2, 2], dtype=int32))
    """
    check_least(0, "a read can not come from the future; use a delay of at least 0", delay=delay)
    check_int32(delay=delay)
    return _in_turn(num_updates, num_workers, delay)


def barrier(num_updates: int, num_workers: int) -> Schedule:
    """Every update consumes one fresh message of each worker: synchronous training, Jacobi iteration; G = W.

    Args:
      num_updates: T.
      num_workers: W.

    Returns:
      A Schedule with worker[t, g] = g and read[t, g] = t, without times.

    Raises:
      TypeError: sizes that are no whole numbers.
      ValueError: fewer than 0 updates, or fewer than 1 worker.

    Example:
      >>> import asyncjax as aj
      >>> schedule = aj.schedules.barrier(2, num_workers=3)
      >>> schedule.worker.tolist(), schedule.read.tolist()
      ([[0, 1, 2], [0, 1, 2]], [[0, 0, 0], [1, 1, 1]])
    """
    num_updates, num_workers = _sizes(num_updates, num_workers)
    worker = np.broadcast_to(np.arange(num_workers, dtype=np.int32), (num_updates, num_workers))
    read = np.broadcast_to(np.arange(num_updates, dtype=np.int32)[:, None], (num_updates, num_workers))
    return Schedule(worker.copy(), read.copy())


def from_service_times(
    service: Service,
    num_updates: int,
    num_workers: int,
    key: jax.Array,
    group_size: int = 1,
    bound: int | None = None,
    wait: Wait = "never",
    commit: Service | float = 0.0,
    restart: Service | float = 0.0,
    eta: int | None = None,
) -> Schedule:
    """The schedule that workers with these service times produce on a virtual clock.

    A worker reads the newest version, is busy for a service time, hands in its message and, when the
    waiting rule allows, reads again. Its G-th message completes an update, which takes the commit time:

      time[t] = max(time[t - 1], end[t, G - 1]) + commit[t]

    Commits are serial. A message that is ready during one waits in the queue, first come, first served, and its worker
    with it, as on threads. With commit times of 0 there is no queue. Ties go to the worker that began first.

    Args:
      service: a model of `asyncjax.service`.
      num_updates: T.
      num_workers: W.
      key: the source of the service times; worker w's n-th time depends on (key, w, n) alone.
      group_size: G, messages per update.
      bound: no worker gets more than this many messages ahead of the slowest one (SSP).
      wait: "never", or "next_version" (with group_size=num_workers: the barrier); see `Discipline`.
      commit: seconds that an update takes, a number or a model of `asyncjax.service`.
      restart: seconds between a worker's update and its next read, in which a real one waits for a lock or a core. It
        reads what is committed meanwhile, too, so the mean staleness falls below W - 1.
      eta: no message is staler than this: jobs wait for admission, messages for those that began before; see
        `Discipline`.

    Raises:
      ValueError: sizes, a discipline or a commit time that no run could have.

    Example:
      >>> import jax, asyncjax as aj
      >>> s = aj.schedules.from_service_times(aj.service.exponential(1.0), 1000, 8, jax.random.key(0))
      >>> bool(abs(s.staleness().mean() - 7) < 1)
      True
      >>> s = aj.schedules.from_service_times(aj.service.constant(1.0), 1000, 8, jax.random.key(0), commit=0.25)
      >>> round(aj.telemetry.throughput(s), 1)  # min(8 / (1 + 0.25), 1 / 0.25)
      4.0

    Source: with exponential times the machine-repairman model, Cox and Smith, Queues (1961).
    """
    num_updates, num_workers = _sizes(num_updates, num_workers)
    coordinator = Coordinator(Discipline(group_size, wait, bound, eta), num_workers)
    times_of = [stream.__next__ for stream in streams(service, key, num_workers)]
    commits = _seconds("commit", commit, jax.random.fold_in(key, 0), 1)[0]
    restarts = _seconds("restart", restart, jax.random.fold_in(key, 1), num_workers)
    clock = VirtualClock(coordinator, times_of, commits, restarts)
    worker, read, begin, end, time = clock.run(num_updates)
    shape = (num_updates, coordinator.discipline.group_size)
    return Schedule(
        np.asarray(worker, np.int32).reshape(shape),
        np.asarray(read, np.int32).reshape(shape),
        np.asarray(time, np.float64),
        np.asarray(begin, np.float64).reshape(shape),
        np.asarray(end, np.float64).reshape(shape),
    )


def _seconds(name: str, value: Service | float, key: jax.Array, count: int) -> list[Callable[[], float]]:
    """What gives the next time, for each of so many; their random numbers are no worker's service times."""
    if isinstance(value, Service):
        return [stream.__next__ for stream in streams(value, key, count)]
    if not isinstance(value, (int, float, np.number)) or not 0 <= value < math.inf:
        raise ValueError(f"{name}={value}: give seconds of at least 0, or a model such as service.exponential(0.01).")
    return [lambda: float(value)] * count


def _in_turn(num_updates: int, num_workers: int, delay: int) -> Schedule:
    num_updates, num_workers = _sizes(num_updates, num_workers)
    updates = np.arange(num_updates, dtype=np.int32)[:, None]
    return Schedule(updates % np.int32(num_workers), np.maximum(updates - np.int32(delay), 0))


def _sizes(num_updates: int, num_workers: int) -> list[int]:
    """The two as Python's numbers, checked."""
    check_least(0, "a schedule has at least 0 updates", num_updates=num_updates)
    check_least(1, "at least one worker is needed", num_workers=num_workers)
    check_int32(num_updates=num_updates, num_workers=num_workers)
    return whole(num_updates, num_workers)


# ---------------------------------------------------------------------------------------------------------------------
# Properties


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
    num_updates, group_size = worker.shape
    if group_size < 1:
        raise ValueError(f"schedule.worker has shape {worker.shape}: an update consumes at least one message.")
    for name, shape in {"time": worker.shape[:1], "begin": worker.shape, "end": worker.shape}.items():
        times = getattr(schedule, name)
        if times is not None and np.shape(times) != shape:
            raise ValueError(
                f"schedule.{name} has shape {np.shape(times)}, schedule.worker {worker.shape}: give {shape}, or None."
            )
    if schedule.time is not None:
        time = np.asarray(schedule.time)
        wrong = np.flatnonzero(~np.isfinite(time) | np.append([False], time[1:] < time[:-1])[:num_updates])
        if wrong.size:
            t = wrong[0]
            after = f", after {time[t - 1]}" if t else ""
            raise ValueError(f"schedule.time[{t}] = {time[t]}{after}: give finite seconds that never fall, or None.")
    for leaf in jax.tree.leaves(read):
        if leaf.shape != worker.shape:
            raise ValueError(
                f"schedule.read has shape {leaf.shape}, schedule.worker {worker.shape}: both are Int[T, G]."
            )
        wrong = np.argwhere((leaf < 0) | (leaf > np.arange(num_updates)[:, None]))
        if wrong.size:
            t, g = wrong[0]
            raise ValueError(
                f"schedule.read[{t}, {g}] = {leaf[t, g]}: update {t} can read the versions 0 to {t};"
                f" version {leaf[t, g]} does not exist yet."
                + (" A later part of a run goes after what came before: schedules.concatenate." if t == 0 else "")
            )
    limit = np.inf if num_workers is None else num_workers
    wrong = np.argwhere((worker < 0) | (worker >= limit))
    if wrong.size:
        t, g = wrong[0]
        raise ValueError(
            f"schedule.worker[{t}, {g}] = {worker[t, g]}: there is no such worker; workers are numbered from 0"
            + ("." if num_workers is None else f" to {num_workers - 1}. Pass num_workers={worker.max() + 1} or more.")
        )
    return schedule._replace(worker=worker, read=read)


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
        raise ValueError(
            f"schedule.{name} is {array.dtype}{list(array.shape)}, but wants Int[T, G];"
            f" for one message per update add an axis: {name}[:, None]."
        )
    if not is_traced(array) and array.size and array.max() > np.iinfo(np.int32).max:
        raise ValueError(f"schedule.{name} has {array.max()}: use at most {np.iinfo(np.int32).max}, the largest int32.")
    return array.astype(np.int32)


def is_realizable(schedule: Schedule) -> bool:
    """Whether workers with one job at a time could have produced this schedule.

    A worker reads only after it has handed in its previous message. The messages of update t are handed
    in while version t is the newest, the last of them makes version t + 1. So of one worker's consecutive
    messages (t, g) and (t', g'), the second reads version t or newer, and t + 1 or newer if g = G - 1.
    Torn reads count by their oldest leaf. Under `eta` a message may wait for those that began before it, while
    its worker goes on: such schedules need not be realizable in this sense.

    Args:
      schedule: any well-formed one.

    Returns:
      A bool.

    Raises:
      TypeError: what is no Schedule.
      ValueError: a schedule that is not well-formed, see `check`.

    Example:
      >>> import asyncjax as aj
      >>> [aj.schedules.is_realizable(aj.schedules.fixed_delay(9, delay=2, num_workers=w)) for w in (2, 3)]
      [False, True]
    """
    schedule = check(schedule)
    num_updates, group_size = schedule.worker.shape
    read = (np.arange(num_updates, dtype=np.int32)[:, None] - schedule.staleness()).ravel()
    handed_in = np.arange(num_updates)[:, None] + (np.arange(group_size) == group_size - 1)
    earlier, later = successive(schedule.worker)
    return bool(np.all(read[later] >= handed_in.ravel()[earlier]))


def successive(worker: Array, begin: Array | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Places, among the T G messages, of every two messages of one worker that follow each other: (earlier, later).

    Args:
      worker: Int[T, G].
      begin: Float[T, G], when jobs began, if that is the order; by default it is that of consumption.
    """
    of = np.ravel(worker)
    order = np.argsort(of, kind="stable") if begin is None else np.lexsort((np.ravel(begin), of))
    same = of[order][1:] == of[order][:-1]
    return order[:-1][same], order[1:][same]


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


# ---------------------------------------------------------------------------------------------------------------------
# Files


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
