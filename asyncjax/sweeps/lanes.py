"""Many runs of equal shapes as one compiled program: lanes of a `vmap`, split over the local devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from asyncjax.engines.packing import all_finite
from asyncjax.engines.program import Program
from asyncjax.engines.waves import Layout, Plan, Planner, distinct_workers, last_use, max_live, room, stack_reads
from asyncjax.method import Array, Method, Metrics, PyTree, Result
from asyncjax.schedules import Schedule
from asyncjax.sweeps.memory import available_bytes, peak_bytes

# Of one device. More do not make a CPU quicker (measured, A3C with MLPs), and small batches are sooner safe on disk.
CPU_LANES = 16
SPLIT = jax.sharding.PartitionSpec("lanes")
Numbers = Mapping[str, Array]  # the traced numbers of a setting, by name


class Keys(NamedTuple):
    """The keys of one seed, the same in every setting."""

    run: jax.Array
    schedule: jax.Array
    summary: jax.Array


def keys_of(key: jax.Array, seed: int) -> Keys:
    """The keys of a seed: they depend on the key and the seed alone, so more seeds leave the first ones as they are."""
    return Keys(*jax.random.split(jax.random.fold_in(key, seed), 3))


class Shape(NamedTuple):
    """What the schedules of one program have in common.

    Attributes:
      layout: the static sizes of their plans.
      num_updates: T.
      read: the tree of separately read parts, with 0 for leaves.
    """

    layout: Layout
    num_updates: int
    read: PyTree

    @classmethod
    def of(cls, schedules: Sequence[Schedule], num_workers: int) -> Shape:
        """The shape in which all of these well-formed schedules of equal T, G and structure fit.

        Event by event, as the lanes of a batch keep the vector units busy. Lanes in lockstep share the bounds of
        their loops; otherwise `vmap` has to carry each lane's state past the turns that only others take.
        """
        first = schedules[0]
        lockstep = all(distinct_workers(s.worker) for s in schedules)
        live = max(max_live(last_use(stack_reads(s.read))) for s in schedules)
        num_views = room(live, num_workers + first.group_size - 1)
        layout = Planner.sizes(num_workers, first.group_size, first.group_size, not lockstep, num_views)
        return cls(layout, first.num_updates, jax.tree.map(lambda _: 0, first.read))

    def plan(self, schedule: Schedule) -> Plan:
        """The plan of one schedule."""
        layout = self.layout
        worker, read = np.asarray(schedule.worker), stack_reads(schedule.read)
        planner = Planner(worker, read, layout.num_workers, layout.width, not layout.lockstep)
        return planner.whole(layout.num_views)

    def run(self, method: Method, key: jax.Array, plan: Plan) -> Result:
        """One run, inside a transformation."""
        program, initial = Program.begun(method, key, self.layout.num_workers, self.read)
        if self.layout.lockstep:
            plan = plan._replace(num_batches=self.num_updates)
        return program.whole(self.layout, initial, plan)


class Lane(NamedTuple):
    """The inputs of a run, or of N with a leading axis."""

    numbers: dict[str, Array]  # Float[], weakly typed as Python's are
    run_key: jax.Array
    summary_key: jax.Array
    plan: Plan
    time: Array  # Float32[T], of the updates; empty where no summary asks for it


Summarize = Callable[[Method, Result, Lane], Metrics]


class LaneProgram:
    """A run of one shape, traced once, and compiled for N at a time.

    Args:
      shape: of the schedules.
      build: numbers -> method.
      summarize: (method, result, lane) -> arrays, all that leaves the device of a run.
      example: the inputs of any of the runs.
      devices: over which the lanes are split.

    Attributes:
      bytes_per_lane: what one run holds in memory at its peak, roughly.
    """

    def __init__(
        self,
        shape: Shape,
        build: Callable[[Numbers], Method],
        summarize: Summarize,
        example: Lane,
        devices: Sequence[Any] | None = None,
    ) -> None:
        self.devices = list(devices or jax.local_devices())
        self.mesh = jax.sharding.Mesh(np.asarray(self.devices), ("lanes",))

        def one(lane: Lane) -> Metrics:
            method = build(lane.numbers)
            result = shape.run(method, lane.run_key, lane.plan)
            values = summarize(method, result, lane)
            finite = all_finite(method.view(result.shared))
            return {**{name: jnp.asarray(x) for name, x in values.items()}, "finite": finite}

        # Traced once, whatever the number of lanes: what follows works on the jaxpr.
        self.jaxpr, self.values = jax.make_jaxpr(one, return_shape=True)(example)
        self.bytes_per_lane = peak_bytes(self.jaxpr.jaxpr)

        self._compiled: dict[int, Any] = {}

    def __call__(self, lanes: Sequence[Lane], size: int) -> dict[str, np.ndarray]:
        """What is kept of these runs, name -> array with a leading axis; they are padded to `size`."""
        padded = _stack([*lanes, *[lanes[-1]] * (size - len(lanes))])
        padded = jax.device_put(padded, jax.sharding.NamedSharding(self.mesh, SPLIT))
        if size not in self._compiled:
            self._compiled[size] = self._compile(padded)
        return {name: np.asarray(x)[: len(lanes)] for name, x in self._compiled[size](padded).items()}

    def batch_size(self, num_runs: int, wanted: int | None = None, max_bytes: int | None = None) -> int:
        """Runs at a time: as many as wanted or as there is memory for, in batches of equal size over all devices."""
        num_devices, on_cpu = len(self.devices), self.devices[0].platform == "cpu"
        if wanted is None:
            budget = available_bytes(self.devices[0]) // 2 if max_bytes is None else max_bytes
            shared_by = num_devices if on_cpu and max_bytes is None else 1
            most = CPU_LANES if on_cpu else num_runs
            wanted = num_devices * min(most, budget // shared_by // self.bytes_per_lane)
        limit = max(1, wanted // num_devices) * num_devices
        num_batches = -(-num_runs // limit)
        return -(-num_runs // (num_batches * num_devices)) * num_devices

    def _compile(self, lanes: Lane) -> Any:
        """The executable for as many lanes as these: a multiple of the number of devices."""
        # Each device runs its own lanes, without a word to the others: nothing for the partitioner to decide.
        spread = jax.shard_map(self._many, mesh=self.mesh, in_specs=SPLIT, out_specs=SPLIT, check_vma=False)
        return jax.jit(spread).lower(lanes).compile()

    def _many(self, lanes: Lane) -> Metrics:
        """The lanes of one device. A single one goes without the axis, which is quicker for convolutions on CPUs."""
        one = jax.extend.core.jaxpr_as_fun(self.jaxpr)
        leaves, treedef = jax.tree.leaves(lanes), jax.tree.structure(self.values)
        if lanes.run_key.shape[0] > 1:
            return treedef.unflatten(jax.vmap(one)(*leaves))
        return treedef.unflatten([x[None] for x in one(*[x[0] for x in leaves])])


def _stack(lanes: Sequence[Lane]) -> Lane:
    """The inputs of N runs, on the host but for the keys."""
    return jax.tree.map(lambda *xs: (jnp if isinstance(xs[0], jax.Array) else np).stack(xs), *lanes)
