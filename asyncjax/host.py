"""What `replay` and the threads share: the compiled pieces they call one by one, and the log of what they did.

Both call the same executables with the same inputs, which is why a replay repeats a threaded run bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asyncjax.data_parallel import Placement
from asyncjax.exact import isolated
from asyncjax.method import Method, Metrics, Stale, State
from asyncjax.packing import Packed, PackedMethod, Packer, all_finite, merge_metrics
from asyncjax.schedules import Schedule

Device = Any  # jax.Device, which type checkers take for a variable
Place = Any  # a Device, or a sharding over several
View = list[Packed]  # one packed tree for each separately read part


class Worked(NamedTuple):
    """What `work` gave."""

    message: Packed
    local: Packed
    metrics: Packed


class Applied(NamedTuple):
    """What `apply` gave."""

    shared: Packed
    view: View
    metrics: Packed
    finite: jax.Array


class Job(NamedTuple):
    """A worker's job, done: what it had read and what came of it."""

    worker: int
    read: list[int]  # the version of each part
    view: View
    worked: Worked
    begin: float = 0.0
    end: float = 0.0


class HostProgram:
    """`work` and `apply` of a method as two executables over packed arrays."""

    def __init__(self, packed: PackedMethod, group_size: int, placement: Placement | None = None) -> None:
        self.packed, self.group_size, self.placement = packed, group_size, placement
        view = jax.tree.map(lambda x: jax.ShapeDtypeStruct((group_size, *x.shape), x.dtype), packed.view_like)
        stale = Stale(view, jax.ShapeDtypeStruct((group_size,), jnp.int32))
        apply_metrics = jax.eval_shape(packed.apply, packed.shared.like(), packed.message.like(group_size), stale)[1]
        merge_metrics(packed.work_metrics, apply_metrics)  # raises where the two share a name
        self.work_metrics, self.apply_metrics = Packer.of(packed.work_metrics), Packer.of(apply_metrics)
        self._executables: dict[tuple[str, Place], Any] = {}
        self.load = jax.jit(self._load)
        self._unload = jax.jit(self._unpack_state)
        self._unload_view = jax.jit(packed.unpack_view)

    def home(self, device: Device) -> Place:
        """Where the buffer and `apply` are: on this device, unless the method has a place for them."""
        return device if self.placement is None else self.placement.home()

    def work_on(self, device: Device) -> Any:
        """The executable (View, Packed local) -> Worked, for one device."""
        return self._compiled("work", device, self._work, lambda: (self._view_like(), self._local_like()))

    def apply_on(self, place: Place) -> Any:
        """The executable (shared, G messages, G views, Int[G] staleness) -> Applied, for what `home` gave."""
        return self._compiled("apply", place, self._apply, self._apply_likes)

    def _compiled(self, name: str, place: Place, function: Any, likes: Callable[[], tuple[Any, ...]]) -> Any:
        """Compiled ahead of time, so that no worker is timed while it compiles."""
        if (name, place) not in self._executables:
            one = not isinstance(place, jax.sharding.Sharding)
            sharding = jax.sharding.SingleDeviceSharding(place) if one else place
            placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), likes())
            compiled = jax.jit(function, out_shardings=None if one else sharding).lower(*placed).compile()
            self._executables[name, place] = compiled
        return self._executables[name, place]

    def _apply_likes(self) -> tuple[Any, ...]:
        messages = (jax.eval_shape(self._work, self._view_like(), self._local_like()).message,) * self.group_size
        shared = jax.eval_shape(self.packed.shared.pack, self.packed.shared.like())
        views = (self._view_like(),) * self.group_size
        return shared, messages, views, jax.ShapeDtypeStruct((self.group_size,), jnp.int32)

    def _view_like(self) -> Any:
        return jax.eval_shape(self.packed.pack_view, self.packed.view_like)

    def _local_like(self) -> Any:
        return jax.eval_shape(self.packed.local.pack, self.packed.local.like())

    def _work(self, view: View, local: Packed) -> Worked:
        unpacked = self.packed.unpack_view(view), self.packed.local.unpack(local)
        either = jax.tree.leaves(view)[0].ravel()[0] > 0
        message, new, metrics = isolated(self.packed.work, either, *unpacked)
        return Worked(self.packed.message.pack(message), self.packed.local.pack(new), self.work_metrics.pack(metrics))

    def _apply(self, shared: Packed, messages: Any, views: Any, staleness: jax.Array) -> Applied:
        packed = self.packed
        group = packed.message.unpack(jax.tree.map(lambda *rows: jnp.stack(rows), *messages))
        if self.placement is not None:
            group = self.placement.divide(group)
        stale = Stale(packed.unpack_view(jax.tree.map(lambda *rows: jnp.stack(rows), *views)), staleness)
        new, metrics = isolated(packed.apply, staleness[0] > 0, packed.shared.unpack(shared), group, stale)
        view = packed.view(new)
        return Applied(
            packed.shared.pack(new), packed.pack_view(view), self.apply_metrics.pack(metrics), all_finite(view)
        )

    def _load(self, shared: Any, local: Any) -> tuple[Packed, View, list[Packed]]:
        """(Shared, Local) packed: the shared state, its view, and each worker's private state."""
        rows = self.packed.local.pack(local, 1)
        locals_ = [jax.tree.map(lambda x, w=w: x[w], rows) for w in range(self.packed.num_workers)]
        return self.packed.shared.pack(shared), self.packed.pack_view(self.packed.view(shared)), locals_

    def unload(
        self, update: int, shared: Packed, local: Sequence[Packed], views: dict[int, View], time: float
    ) -> State:
        """The state after an update, unpacked."""
        unpacked_views = {version: self._unload_view(view) for version, view in views.items()}
        unpacked_shared, unpacked_local = self._unload(shared, list(local))
        return State(update, unpacked_shared, unpacked_local, unpacked_views, time)

    def _unpack_state(self, shared: Packed, local: list[Packed]) -> Any:
        rows = jax.tree.map(lambda *rows: jnp.stack(rows), *local) if local[0] else local[0]
        return self.packed.shared.unpack(shared), self.packed.local.unpack(rows)


@lru_cache(maxsize=128)
def cached_host_program(method: Method, num_workers: int, group_size: int, parts: tuple[int, ...]) -> HostProgram:
    """One program per method, so that a replay calls the very executables of the run that it repeats."""
    return HostProgram(PackedMethod(method, num_workers, parts), group_size, method.placement)


class Log:
    """What happened, update by update: schedule and metrics, which stay on the device until they are asked for."""

    def __init__(self, program: HostProgram) -> None:
        self.program = program
        self.jobs: list[list[Job]] = []
        self.times: list[float] = []
        self.applied: list[Packed] = []

    def append(self, group: Sequence[Job], metrics: Packed, time: float) -> None:
        """One update. Messages, views and private states are let go; only what is small is kept."""
        nothing = Worked({}, {}, {})
        self.jobs.append([j._replace(view=[], worked=nothing._replace(metrics=j.worked.metrics)) for j in group])
        self.times.append(time)
        self.applied.append(metrics)

    def read(self) -> tuple[Metrics, Schedule]:
        """The metrics and the schedule of the logged updates."""
        of_work = _stack(self.program.work_metrics, [job.worked.metrics for group in self.jobs for job in group])
        metrics = {n: x.reshape(len(self.jobs), -1, *x.shape[1:]) for n, x in of_work.items()}
        return merge_metrics(metrics, _stack(self.program.apply_metrics, self.applied)), self._schedule()

    def _schedule(self) -> Schedule:
        shape = (len(self.jobs), self.program.group_size)
        flat = [job for group in self.jobs for job in group]
        worker = np.array([job.worker for job in flat], np.int32).reshape(shape)
        begin = np.array([job.begin for job in flat], np.float64).reshape(shape)
        end = np.array([job.end for job in flat], np.float64).reshape(shape)
        num_parts = self.program.packed.num_parts
        parts = [np.array([job.read[p] for job in flat], np.int32).reshape(shape) for p in range(num_parts)]
        read: Any = parts[0]
        if num_parts > 1:
            structure = jax.tree.structure(self.program.packed.view_like)
            read = structure.unflatten([parts[p] for p in self.program.packed.parts])
        return Schedule(worker, read, np.array(self.times, np.float64), begin, end)


def _stack(packer: Packer, rows: list[Packed]) -> Metrics:
    """Packed metrics of many updates as arrays over them."""
    if not rows:
        return {}
    stacked = {dtype: np.stack([np.asarray(row[dtype]) for row in rows]) for dtype in rows[0]}
    return {name: np.asarray(x) for name, x in packer.unpack(stacked).items()}  # type: ignore[arg-type]
