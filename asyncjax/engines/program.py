"""The compiled loop behind `emulate`: a chunk of a schedule as one function of packed arrays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from asyncjax.adapters.host_environment import lives_on_host, not_emulated
from asyncjax.apart import apart
from asyncjax.engines.common import begin
from asyncjax.engines.cost import cost_of, waiting
from asyncjax.engines.division import WHOLE, Division
from asyncjax.engines.packing import Packed, PackedMethod, Packer, all_finite, merge_metrics, zeros
from asyncjax.engines.program_cache import program_cache
from asyncjax.engines.waves import OUT_OF_RANGE, Layout, Plan, read_parts
from asyncjax.method import Array, Method, Metrics, PyTree, Result, Stale, State

SMALL = 2**26  # bytes: what views and messages may always take together
MEETING = 3e-4  # seconds in which devices that share a batch send and wait, measured with two cores as two devices


class Carry(NamedTuple):
    """What the loop carries.

    The workers' private states are packed, as they have many small leaves. Views and messages are not: their
    leaves are the operands of matrix products, for which a slice of a packed vector would be copied out first.
    """

    shared: PyTree
    local: Packed  # [W, ...]
    views: PyTree  # [S + 1, ...]; the last row is for views that nothing will read
    messages: PyTree  # [M, ...]
    first_bad: jax.Array  # the first update of the chunk that made the view non-finite, or -1


class Program:
    """A method compiled for W workers and a view that is read in parts (one, unless reads are torn).

    If it is exact, `work` and `apply` are compiled apart from the loop, as `replay` compiles them.
    """

    def __init__(self, packed: PackedMethod, exact: bool = False, division: Division = WHOLE) -> None:
        self.packed, self.exact, self.division = packed, exact, division
        work = jax.make_jaxpr(packed.work)(packed.view_like, packed.local.like()).jaxpr
        if name := lives_on_host(work):
            raise not_emulated(name)
        self._compiled: dict[Any, Any] = {}
        # Not decorated: jit's cache would keep every program for ever.
        self._load, self._row = jax.jit(self._fresh_carry, static_argnums=0), jax.jit(_row)
        self._unload = jax.jit(self._unpacked)
        backend = division.devices[0].platform if division.devices else jax.default_backend()
        fixed, by_size = cost_of(work).seconds(backend)
        fixed = max(fixed + (MEETING if division.size > 1 else 0.0), 1e-9)
        # Of one more message in a batch, and of one that waits for its update, over the cost of the batch itself.
        self.lane_cost = by_size / division.size / fixed
        self.wait_cost = waiting(num_bytes(packed.message), backend) / fixed

    def fits(self, layout: Layout) -> bool:
        """Whether W workers take no more than 2 (W + 2) copies of the parameters, or little memory at all.

        A batch of A lanes has the views that it computes on, on each device those of its share, and the messages that
        come of it, beside all views and the messages that wait. Four copies are for the parameters, an optimizer's
        state and what an update makes of them.
        """
        view, message = sum(map(num_bytes, self.packed.view_parts)), num_bytes(self.packed.message)
        of_share = layout.width // self.division.size
        needed = (layout.num_views + 1 + of_share) * view + (layout.width + layout.num_messages) * message
        return needed <= max((layout.num_workers - 2) * (view + message), SMALL)

    @classmethod
    def begun(
        cls, method: Method, key: jax.Array, num_workers: int, read: PyTree, exact: bool = False
    ) -> tuple[Program, tuple[PyTree, PyTree]]:
        """A program for reads of this structure and its initial (Shared, Local), inside a transformation.

        Neither is cached or jitted by a cache: the method may close over tracers, which must not outlive their trace.
        """
        initial = begin(method, num_workers, key)
        parts = read_parts(read, jax.eval_shape(method.view, initial[0]))
        return cls(PackedMethod(method, num_workers, parts, initial), exact), initial

    def whole(self, layout: Layout, initial: tuple[PyTree, PyTree], plan: Plan) -> Result:
        """The run of a whole plan from (Shared, Local), inside a transformation."""
        carry, metrics = self.run(layout, self._fresh_carry(layout, *initial, 0, []), plan, checked=False)
        return Result(carry.shared, self.packed.local.unpack(carry.local), metrics)

    def compiled(self, layout: Layout, checked: bool) -> Callable[[Carry, Plan], tuple[Carry, Metrics]]:
        """The jitted chunk for a layout; the carry is donated."""
        if (layout, checked) not in self._compiled:
            run = self.division.spread(partial(self.run, layout, checked=checked))
            self._compiled[layout, checked] = jax.jit(run, donate_argnums=0)
        return self._compiled[layout, checked]

    # -- into and out of the carry -------------------------------------------------------------------------------------

    def load(self, layout: Layout, state: State, slot_of: dict[int, int]) -> Carry:
        """The carry at the start of an update, in arrays of its own, since the loop donates them."""
        known = {**state.views, state.update: None}
        if missing := [version for version in slot_of if version not in known]:
            raise ValueError(
                f"state.views holds the versions {sorted(state.views)}, but the schedule still reads version"
                f" {missing[0]} after update {state.update}: continue with the schedule that the state comes from."
            )
        older = [(slot, known[version]) for version, slot in slot_of.items() if version != state.update]
        newest = slot_of.get(state.update, layout.num_views)
        return self.division.to_all(self._load(layout, state.shared, state.local, newest, older))

    def _fresh_carry(
        self, layout: Layout, shared: PyTree, local: PyTree, newest: Array, older: list[tuple[Array, PyTree]]
    ) -> Carry:
        views = zeros(self.packed.view_like, layout.num_views + 1)
        for slot, view in [(newest, self.packed.view(shared)), *older]:
            views = _write(views, slot, view)
        messages = zeros(self.packed.message.like(), layout.num_messages)
        shared, local = jax.tree.map(jnp.copy, (shared, self.packed.local.pack(local, 1)))
        return Carry(shared, local, views, messages, jnp.int32(-1))

    def unload(self, carry: Carry, update: int, slot_of: dict[int, int]) -> State:
        """The state after an update, in arrays of its own."""
        carry = self.division.of_first(carry)
        views = {version: self._row(carry.views, slot) for version, slot in slot_of.items() if version != update}
        shared, local = self._unload(carry.shared, carry.local)
        return State(update, shared, local, views)

    def _unpacked(self, shared: PyTree, local: Packed) -> tuple[PyTree, PyTree]:
        return jax.tree.map(jnp.copy, (shared, self.packed.local.unpack(local)))

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(self, layout: Layout, carry: Carry, plan: Plan, checked: bool) -> tuple[Carry, Metrics]:
        """A chunk: batches of messages, each followed by the updates that have all they need."""
        num_updates, group_size = plan.message_of.shape
        of_work = zeros(self.packed.work_metrics, num_updates * group_size)
        of_apply = zeros(self.packed.apply_metrics(group_size), num_updates)

        def batch(k: Any, loop: tuple[Carry, Metrics, Metrics]) -> tuple[Carry, Metrics, Metrics]:
            carry, of_work, of_apply = loop
            carry, messages, reported = self._work(layout, carry, plan, k)
            of_work = _put(of_work, plan.job[k], reported)
            body = partial(self._update, plan, messages, checked)
            if layout.lockstep:
                carry, of_apply = body(k, (carry, of_apply))
            else:
                first, last = plan.first_update[k], plan.first_update[k + 1]
                carry, of_apply = jax.lax.fori_loop(first, last, body, (carry, of_apply))
            return carry, of_work, of_apply

        loop = carry, of_work, of_apply
        carry, of_work, of_apply = jax.lax.fori_loop(0, plan.num_batches, batch, loop) if num_updates else loop
        of_work = {name: x.reshape(num_updates, group_size, *x.shape[1:]) for name, x in of_work.items()}
        return carry, merge_metrics(of_work, of_apply)

    def _work(self, layout: Layout, carry: Carry, plan: Plan, k: Any) -> tuple[Carry, PyTree, Metrics]:
        """Computes batch k; returns also where all messages lie, and what the work reported."""
        share, gather = self.division.share, self.division.gather
        local = self.packed.local.unpack(_take(carry.local, share(plan.worker[k]))[0])
        view, _ = self._take_views(carry.views, share(plan.view_slot[k]))
        lanes = partial(self._work_lanes, layout.width // self.division.size)
        messages, local, reported = self._call(lanes, plan.worker[k, 0] >= 0, view, local)
        messages, local, reported = gather((messages, self.packed.local.pack(local, 1), reported))
        empty = plan.job[k] == OUT_OF_RANGE
        worker = jnp.where(empty, OUT_OF_RANGE, plan.worker[k])
        carry = carry._replace(local=_put(carry.local, worker, local))
        if layout.num_messages:
            messages = _put(carry.messages, plan.message_slot[k], messages)
            carry = carry._replace(messages=messages)
        return carry, messages, reported

    def _call(self, function: Any, true: Array, *args: Any) -> Any:
        return apart(function, true, *args) if self.exact else function(*args)

    def _work_lanes(self, width: int, views: PyTree, locals_: PyTree) -> tuple[PyTree, PyTree, Metrics]:
        """`work` on a leading axis of lanes; on a single lane with the very arithmetic of `work` without the axis."""
        if width > 1:
            return jax.vmap(self.packed.work, axis_size=width)(views, locals_)
        one_view, one_local = jax.tree.map(lambda x: x[0], (views, locals_))
        return jax.tree.map(lambda x: x[None], self.packed.work(one_view, one_local))

    def _update(
        self, plan: Plan, messages: PyTree, checked: bool, u: Any, loop: tuple[Carry, Metrics]
    ) -> tuple[Carry, Metrics]:
        """Applies update u of the chunk."""
        carry, of_apply = loop
        group = jax.tree.map(lambda x: x[plan.message_of[u]], messages)
        # Telemetry may be all that reads the older views. Were the write not to wait for it, XLA would copy them all.
        older, write_slot = self._take_views(carry.views, plan.stale_slot[u], plan.write_slot[u])
        stale = Stale(older, plan.staleness[u])
        shared, reported = self._call(self.packed.apply, stale.staleness[0] >= 0, carry.shared, group, stale)
        view = self.packed.view(shared)
        views = _write(carry.views, write_slot, view)
        first_bad = carry.first_bad
        if checked:
            first_bad = jnp.where((first_bad < 0) & ~all_finite(view), u, first_bad)
        return carry._replace(shared=shared, views=views, first_bad=first_bad), _write(of_apply, u, reported)

    def _take_views(self, views: PyTree, slots: Array, then: Any = ()) -> tuple[PyTree, Any]:
        """The views in these slots, Int[N, L], stacked on axis 0, and `then`, as `_take` does."""
        leaves, treedef = jax.tree.flatten(views)
        by_part = [slots[:, part] for part in self.packed.parts]
        taken, then = _take(leaves, treedef.flatten_up_to(treedef.unflatten(by_part)), then)
        return treedef.unflatten(taken), then


@program_cache
def cached_program(
    method: Method, num_workers: int, parts: tuple[int, ...], exact: bool, division: Division
) -> Program:
    """One program per method, so that a second run compiles nothing."""
    return Program(PackedMethod(method, num_workers, parts), exact, division)


def _take(rows: Any, index: Any, then: Any = ()) -> tuple[Any, Any]:
    """Rows, Int[N], of a tree of arrays in the carry, as arrays of their own. `index` is one, or a list for each leaf.

    XLA would fuse the gather into every use. The last use may come after the carry is written, and then the
    whole carry is copied in every turn of the loop. It does not see through a condition, which is always true.
    What depends on `then`, which is returned as it is, comes after the gather for the same reason.
    """
    leaves, treedef = jax.tree.flatten(rows)
    indices = index if isinstance(index, list) else [index] * len(leaves)
    if not leaves:
        return rows, then

    def gather() -> tuple[list[jax.Array], Any]:
        gathered = [x.at[i].get(mode="clip") for x, i in zip(leaves, indices, strict=True)]
        return jax.lax.optimization_barrier((gathered, then))

    taken, then = jax.lax.cond(indices[0][0] >= 0, gather, gather)
    return treedef.unflatten(taken), then


def num_bytes(packer: Packer) -> int:
    """Of a tree."""
    return sum(leaf.num_bytes() for leaf in packer.leaves)


def _row(rows: PyTree, index: Array) -> PyTree:
    return jax.tree.map(lambda x: x[index], rows)


def _put(rows: Any, index: Array, values: Any) -> Any:
    """Sets many rows; indices that are out of range mark padding and are dropped."""
    return jax.tree.map(lambda x, v: x.at[index].set(v, mode="drop"), rows, values)


def _write(rows: Any, index: Any, value: Any) -> Any:
    """Sets one row, in place."""
    return jax.tree.map(lambda x, v: jax.lax.dynamic_update_index_in_dim(x, v, index, 0), rows, value)
