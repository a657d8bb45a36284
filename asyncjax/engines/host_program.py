"""What `replay` and the threads share: the compiled pieces that they call one by one.

Both call the same executables with the same inputs, which is why a replay repeats a threaded run bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asyncjax.apart import apart
from asyncjax.data_parallel import Placement, divided
from asyncjax.engines.packing import Packed, PackedMethod, Packer, all_finite, zeros
from asyncjax.engines.program_cache import program_cache
from asyncjax.method import Device, Method, Stale, State
from asyncjax.traced import equations

Place = Any  # a Device, or a sharding over several
View = list[Packed]  # one packed tree for each separately read part


class Worked(NamedTuple):
    """What `work` gave, a row for each of K workers; only those of its jobs are of use."""

    message: Packed
    local: Packed
    metrics: Packed


class Applied(NamedTuple):
    """What one update or several in a row gave."""

    shared: Packed
    view: View
    metrics: Packed  # a row for each update
    count: jax.Array  # the updates that were made: with `check`, none after the first bad one
    finite: jax.Array  # whether the view is, after the last one


class Job(NamedTuple):
    """A worker's job, done: what it had read and what came of it."""

    worker: int
    read: list[int]  # the version of each part
    view: View
    worked: Worked
    row: int = 0  # the worker's in `worked`
    begin: float = 0.0
    end: float = 0.0


class HostProgram:
    """`work` and `apply` of a method as two executables over packed arrays.

    Both do what they are asked for `count` times in a loop, so that a call costs its dispatch once. The loop's body is
    compiled apart from the loop: a job has the same bits whatever was done in the same call.
    """

    def __init__(self, packed: PackedMethod, group_size: int, placement: Placement | None = None) -> None:
        self.packed, self.group_size, self.placement = packed, group_size, placement
        # Of its own for each placement: a jitted one may have been traced where nothing was divided, or over others.
        self.apply = packed.apply if placement is None else partial(packed.method.apply)
        self.work_metrics, self.apply_metrics = map(Packer.of, (packed.work_metrics, packed.apply_metrics(group_size)))
        # What calls back to Python may wait for another worker, or fail: each job, each update is then a call.
        self.work_calls_back = calls_back(packed.work, packed.view_like, packed.local.like())
        self.apply_calls_back = calls_back(packed.apply, *packed.apply_like(group_size))
        self._executables: dict[tuple[str, Place, int], Any] = {}
        self.load = jax.jit(self._load, static_argnums=2)
        self._row = jax.jit(lambda rows, row: jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, row, 1), rows))
        self.choose = jax.jit(self._choose)
        self._unload = jax.jit(self._unpack_state)
        self._unload_view = jax.jit(packed.unpack_view)

    def home(self, device: Device) -> Place:
        """Where the buffer and `apply` are: on this device, unless the method has a place for them."""
        return device if self.placement is None else self.placement.home()

    def work_on(self, device: Device, size: int = 1) -> Any:
        """The executable (View, private states [K], Int[K] rows, count) -> Worked, for one device; K = size."""
        return self._compiled("work", device, size, self._work, lambda: self._work_likes(size))

    def apply_on(self, place: Place, size: int = 1) -> Any:
        """The executable (shared, G messages [K], G views, rows, staleness, count, check) -> Applied.

        It is for what `home` gave; rows and staleness are Int[N, G]. With G = 1 it makes up to N = K updates with
        messages of one Worked, else one.
        """
        return self._compiled("apply", place, size, self._apply, lambda: self._apply_likes(size))

    @property
    def size(self) -> int:
        """K, for which `work` was compiled last, or 1."""
        return next((size for name, _, size in reversed(self._executables) if name == "work"), 1)

    def updates_a_call(self, size: int) -> int:
        """N of `apply_on`."""
        return size if self.group_size == 1 else 1

    def _compiled(self, name: str, place: Place, size: int, function: Any, likes: Callable[[], tuple[Any, ...]]) -> Any:
        """Compiled ahead of time, so that no worker is timed while it compiles."""
        if (name, place, size) not in self._executables:
            one = not isinstance(place, jax.sharding.Sharding)
            sharding = jax.sharding.SingleDeviceSharding(place) if one else place
            placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), likes())
            compiled = jax.jit(function, out_shardings=None if one else sharding).lower(*placed).compile()
            self._executables[name, place, size] = compiled
        return self._executables[name, place, size]

    def _work_likes(self, size: int) -> tuple[Any, ...]:
        view = jax.eval_shape(self.packed.pack_view, self.packed.view_like)
        return view, self._rows(self.packed.local, size), _int32(size), _int32()

    def _apply_likes(self, size: int) -> tuple[Any, ...]:
        view = jax.eval_shape(self.packed.pack_view, self.packed.view_like)
        shared = jax.eval_shape(self.packed.shared.pack, self.packed.shared.like())
        messages = (self._rows(self.packed.message, size),) * self.group_size
        each = _int32(self.updates_a_call(size), self.group_size)
        return shared, messages, (view,) * self.group_size, each, each, _int32(), jax.ShapeDtypeStruct((), jnp.bool_)

    def _rows(self, packer: Packer, size: int) -> Packed:
        return jax.eval_shape(partial(packer.pack, batch_dims=1), packer.like(size))

    def _work(self, view: View, local: Packed, rows: jax.Array, count: jax.Array) -> Worked:
        packed = self.packed
        unpacked_view, size = packed.unpack_view(view), rows.shape[0]

        def job(i: jax.Array, worked: Worked) -> Worked:
            private = packed.local.unpack(_at(worked.local, rows[i]))
            message, new, metrics = apart(packed.work, count > 0, unpacked_view, private)
            done = Worked(packed.message.pack(message), packed.local.pack(new), self.work_metrics.pack(metrics))
            set_row = partial(jax.lax.dynamic_update_index_in_dim, index=rows[i], axis=0)
            return jax.tree.map(set_row, worked, done)

        message, metrics = zeros((self._rows(packed.message, size), self._rows(self.work_metrics, size)))
        start = Worked(message, local, metrics)
        return job(jnp.int32(0), start) if size == 1 else jax.lax.fori_loop(0, count, job, start)

    def _apply(
        self,
        shared: Packed,
        messages: tuple[Packed, ...],
        views: tuple[View, ...],
        rows: jax.Array,
        staleness: jax.Array,
        count: jax.Array,
        check: jax.Array,
    ) -> Applied:
        packed = self.packed
        stale_views = packed.unpack_view(jax.tree.map(lambda *x: jnp.stack(x), *views))

        def update(carry: Any) -> Any:
            i, _, shared, reported = carry
            of_group = [_at(message, rows[i, g]) for g, message in enumerate(messages)]
            group = packed.message.unpack(jax.tree.map(lambda *x: jnp.stack(x), *of_group))
            with divided(group, self.placement) as group:
                new, metrics = apart(self.apply, count > 0, shared, group, Stale(stale_views, staleness[i]))
            reported = jax.tree.map(lambda all_, x: all_.at[i].set(x), reported, self.apply_metrics.pack(metrics))
            return i + 1, all_finite(packed.view(new)), new, reported

        reported = zeros(self._rows(self.apply_metrics, rows.shape[0]))
        start = jnp.int32(0), jnp.bool_(True), packed.shared.unpack(shared), reported
        made, finite, new, reported = jax.lax.while_loop(
            lambda carry: (carry[0] < count) & (carry[1] | ~check), update, start
        )
        return Applied(packed.shared.pack(new), packed.pack_view(packed.view(new)), reported, made, finite)

    def _load(self, shared: Any, local: Any, num_threads: int) -> tuple[Packed, View, list[Packed]]:
        """(Shared, Local) packed: the shared state, its view, and the private states of each thread's workers.

        Thread t has the workers t, t + num_threads, ...; where it has fewer than others, its last row is of no use.
        """
        packed = self.packed.local.pack(local, 1)
        size = -(-self.packed.num_workers // num_threads)
        workers = [
            np.minimum(np.arange(size) * num_threads + t, self.packed.num_workers - 1) for t in range(num_threads)
        ]
        rows = [jax.tree.map(lambda x, of=of: x[of], packed) for of in workers]
        return self.packed.shared.pack(shared), self.packed.pack_view(self.packed.view(shared)), rows

    def _choose(self, first: Packed, second: Packed, rows: jax.Array) -> Packed:
        """The first, but these rows (Bool[K]) of the second."""
        pick = lambda a, b: jnp.where(jnp.expand_dims(rows, range(1, a.ndim)), b, a)  # noqa: E731
        return jax.tree.map(pick, first, second)

    def unload(
        self,
        update: int,
        shared: Packed,
        local: Sequence[tuple[Packed, int]],
        views: dict[int, View],
        time: float,
        place: Place,
    ) -> State:
        """The state after an update, unpacked, in this place; of each worker's private states the row that counts."""
        rows = jax.device_put([self._row(stack, np.int32(row)) for stack, row in local], place)
        unpacked_views = {version: self._unload_view(view) for version, view in views.items()}
        unpacked_shared, unpacked_local = self._unload(shared, rows)
        return State(update, unpacked_shared, unpacked_local, unpacked_views, time)

    def _unpack_state(self, shared: Packed, local: list[Packed]) -> Any:
        rows = jax.tree.map(lambda *rows: jnp.concatenate(rows), *local)
        return self.packed.shared.unpack(shared), self.packed.local.unpack(rows)


def calls_back(function: Callable[..., Any], *likes: Any) -> bool:
    """Whether a compiled function calls back to Python, as environments on the host do."""
    return any("callback" in equation.primitive.name for equation in equations(jax.make_jaxpr(function)(*likes).jaxpr))


def _int32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _at(rows: Packed, row: jax.Array) -> Packed:
    return jax.tree.map(lambda x: x[row], rows)


@program_cache
def cached_host_program(method: Method, num_workers: int, group_size: int, parts: tuple[int, ...]) -> HostProgram:
    """One program per method, so that a replay calls the very executables of the run that it repeats."""
    return HostProgram(PackedMethod(method, num_workers, parts), group_size, method.placement)
