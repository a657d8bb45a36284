"""The compiled engine: any schedule as one program, under `jit` and `vmap` if you like."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np

from asyncjax import threefry
from asyncjax.checks import check_devices, given, whole
from asyncjax.engines.common import check_run, chunks, concatenate_metrics, not_finite, starting_state
from asyncjax.engines.division import Division
from asyncjax.engines.program import Program, cached_program
from asyncjax.engines.waves import (
    Layout,
    Plan,
    Planner,
    distinct_workers,
    last_use,
    max_live,
    read_parts,
    stack_reads,
)
from asyncjax.engines.width import choose
from asyncjax.method import Chunk, Device, Method, Metrics, PyTree, Result, State
from asyncjax.schedules import Schedule, check, cut
from asyncjax.traced import concrete, under_transformation

FLAG = "--xla_cpu_use_fusion_emitters=false"  # in XLA_FLAGS it makes all runs exact; XLA knows it until jax 0.10


def emulate(
    method: Method,
    schedule: Schedule,
    key: jax.Array,
    *,
    state: State | None = None,
    callback: Callable[[Chunk], None] | None = None,
    chunk_size: int = 1024,
    width: int | None = None,
    num_workers: int | None = None,
    num_views: int | None = None,
    check_finite: bool = True,
    exact: bool = False,
    devices: Sequence[Device] | None = None,
) -> Result:
    """Runs a method under a schedule as compiled code.

    The result is that of the definition in `asyncjax.method`, event by event, up to rounding. Messages
    are computed in batches (`asyncjax.engines.waves`), and only views that are still to be used are kept.

    Inside `jit`, `vmap` and the like the run is one program, without callbacks and without the check for
    finite numbers. The schedule may be traced too; under `jit` say `num_workers` then, as it can not be
    read off. Forward-mode derivatives (`jax.jvp`) exist; reverse mode does not, as how long the loops run depends on
    data.

    Args:
      method: four pure functions.
      schedule: any well-formed schedule, realizable or not.
      key: the source of all chance.
      state: where to continue, from an earlier run's callback; the schedule is still the whole one, or for another
        course from there on `schedules.extend(schedules.cut(schedule, 0, state.update), other)`. None starts with
        `method.init`.
      callback: called with a `Chunk` after every `chunk_size` updates.
      chunk_size: updates per call of the compiled program. It decides which messages are computed
        together, so only runs with equal chunks are promised to agree bit for bit.
      width: messages computed in one batch; by default chosen for the schedule and the backend.
        `width=group_size` runs event by event. 1 if JAX's default generator is one that draws other
        numbers under `vmap`, as "rbg" does: what is computed together then differs from the run by its definition.
        With D `devices` a multiple of D, and D where it would be 1: one on each.
      num_workers: W, by default one more than the largest worker of the schedule.
      num_views: room for views when the schedule is traced under `jit`; by default enough for any
        realizable schedule, W + G - 1.
      check_finite: stop when the view has a number that is not finite.
      exact: on CPUs, and not under `vmap`, agree with `replay` bit for bit, metrics included: messages are computed one
        by one, on each device, and `work` and `apply` compiled apart from the loop, so that nothing around them changes
        how they round.
      devices: over which the messages of a batch are divided; None is the one that JAX chooses, and divides nothing.
        Each repeats all updates (callbacks in `apply` come once from each), and has all views and states in its memory,
        so that this pays where `work` takes most of the time. The result is on the first.
        `jax.config.update("jax_num_cpu_devices", 2)` before anything else makes two devices of a CPU; there XLA ends
        the process if one waits a minute for another.

    Returns:
      Result(shared, local, metrics).

    Raises:
      ValueError: for a schedule that reads the future or names missing workers; a width together with `exact`, or one
        that the devices can not share; devices inside `jit` and `vmap`, or one of them twice.
      FloatingPointError: after the first update that made the view non-finite, naming the worker.

    Example:
      >>> import jax, optax, asyncjax as aj
      >>> method = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(0.1))
      >>> result = aj.emulate(method, aj.schedules.round_robin(100, 4), jax.random.key(0))
      >>> result.metrics["loss"].shape
      (100, 1)
    """
    sizes = given(width=width, num_workers=num_workers, num_views=num_views)
    check_run(method, key, schedule, callback=callback, chunk_size=chunk_size, **sizes)
    width, num_workers, num_views, chunk_size = whole(width, num_workers, num_views, chunk_size)
    if exact and width not in (None, 1):
        raise ValueError(
            f"width={width} and exact=True exclude each other: lanes of a batch round otherwise; drop one."
        )
    if devices is not None:
        check_devices(devices, distinct=True)
        if width is not None and width % len(devices):
            many = len(devices)
            fix = "leave it out" if exact else f"give a multiple of {many}, or leave it out"
            raise ValueError(f"width={width}: {many} devices can not share that; {fix}.")
    exact = exact or FLAG in os.environ.get("XLA_FLAGS", "").split()
    known = concrete(schedule)
    if num_workers is None:
        if known is None:
            raise ValueError("The schedule is traced, so the number of workers is unknown: pass num_workers=.")
        num_workers = max(int(known.num_workers), 1)
    if under_transformation():
        if state is not None or callback is not None or devices is not None:
            raise ValueError(
                "state=, callback= and devices= need the host: use them outside jit and vmap, or leave them out here."
            )
        return _emulate_traced(method, schedule, known, key, num_workers, width, num_views, exact)
    schedule = check(schedule, num_workers)
    state = starting_state(state, method, key, num_workers, schedule.num_updates, "schedule")
    parts = read_parts(schedule.read, jax.eval_shape(method.view, state.shared))
    program = cached_program(method, num_workers, parts, exact, Division(tuple(devices or ())))
    chunk_size = min(chunk_size, max(1, schedule.num_updates))
    planner = _planner(schedule, program, width, chunk_size, state.update)
    carry, step = program.load(planner.layout, state, planner.slot_of), program.compiled(planner.layout, check_finite)
    collected: list[Metrics] = []
    for start, stop in chunks(state.update, schedule.num_updates, chunk_size):
        carry, metrics = step(carry, planner.chunk(start, stop, chunk_size))
        first_bad = int(carry.first_bad)
        bad = start + first_bad if first_bad >= 0 else None
        done = stop if bad is None else bad + 1
        collected.append({name: np.asarray(values)[: done - start] for name, values in metrics.items()})
        if callback is not None:
            time = 0.0 if schedule.time is None else float(schedule.time[done - 1])
            now = program.unload(carry, stop, planner.slot_of)._replace(time=time) if bad is None else None
            callback(Chunk(now, collected[-1], cut(schedule, start, done)))
        if bad is not None:
            raise not_finite(bad, schedule.worker[bad])
    last = program.unload(carry, schedule.num_updates, {})
    metrics = concatenate_metrics(collected) if collected else program.packed.no_metrics(schedule.group_size)
    return Result(last.shared, last.local, metrics)


def _planner(
    schedule: Schedule, program: Program, width: int | None, chunk_size: int | None = None, start: int = 0
) -> Planner:
    worker, read, num_workers = np.asarray(schedule.worker), stack_reads(schedule.read), program.packed.num_workers
    if width is None and (program.exact or not threefry.is_default()):
        # One on each device: lanes of a batch are not always, bit for bit or at all, what they are one by one.
        width = program.division.size
    costs = {"lane": program.lane_cost, "wait": program.wait_cost, "fits": program.fits}
    options = {"shares": program.division.size, "chunk_size": chunk_size}
    width, early = choose(worker, read, num_workers, width, **costs, **options)
    return Planner(worker, read, num_workers, width, early, start=start)


def _emulate_traced(
    method: Method,
    schedule: Schedule,
    known: Schedule | None,
    key: jax.Array,
    num_workers: int,
    width: int | None,
    num_views: int | None,
    exact: bool,
) -> Result:
    """The run as one program, for use inside `jit` and `vmap`."""
    program, initial = Program.begun(method, key, num_workers, schedule.read, exact)
    if known is not None and np.ndim(known.worker) == 2 and all(x.ndim == 2 for x in jax.tree.leaves(known.read)):
        planner = _planner(check(known, num_workers), program, width)
        layout, plan = planner.layout, planner.whole()
    else:
        layout, plan = _plan_traced(schedule, known, num_workers, width, num_views)
    return jax.jit(partial(program.whole, layout))(initial, plan)


def _plan_traced(
    schedule: Schedule, known: Schedule | None, num_workers: int, width: int | None, num_views: int | None
) -> tuple[Layout, Plan]:
    """A plan for a traced schedule: its sizes are fixed now, its contents come from the host when the program runs."""
    num_updates, group_size = schedule.worker.shape
    distinct = group_size == 1
    if known is not None:
        batch = _unbatch(known)
        num_views = max(max_live(last_use(stack_reads(check(s, num_workers).read))) for s in batch)
        distinct = all(distinct_workers(s.worker) for s in batch)
    lanes = width or (group_size if threefry.is_default() else 1)
    early = not distinct or lanes < group_size
    layout = Planner.sizes(num_workers, group_size, lanes, early, num_views or num_workers + group_size - 1)

    def on_host(worker: np.ndarray, read: PyTree) -> Plan:
        valid = check(Schedule(worker, read), num_workers)
        planner = Planner(np.asarray(valid.worker), stack_reads(valid.read), num_workers, lanes, early)
        return planner.whole(layout.num_views)

    parts = len(jax.tree.leaves(schedule.read))
    shapes = Planner.shapes(layout, num_updates, group_size, parts)
    plan = jax.pure_callback(on_host, shapes, schedule.worker, schedule.read, vmap_method="sequential")
    if layout.lockstep and lanes == group_size:  # a batch is an update: under vmap all lanes make equally many turns
        plan = plan._replace(num_batches=np.int32(num_updates))
    return layout, plan


def _unbatch(known: Schedule) -> list[Schedule]:
    """The schedules in front of whose two axes vmap has put others."""
    leaves, treedef = jax.tree.flatten((known.worker, known.read))
    lead = np.broadcast_shapes(*(x.shape[:-2] for x in leaves))
    flat = [np.broadcast_to(x, (*lead, *x.shape[-2:])).reshape(-1, *x.shape[-2:]) for x in leaves]
    return [Schedule(*treedef.unflatten(row)) for row in zip(*flat, strict=True)]
