"""Host threads on one shared, versioned buffer of parameters."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax

from asyncjax.checks import check_choice, check_devices, check_positive, given, whole
from asyncjax.discipline import Coordinator, Discipline, Wait
from asyncjax.engines.common import check_host, check_run, starting_state
from asyncjax.engines.host_program import cached_host_program
from asyncjax.engines.team import Team
from asyncjax.method import Chunk, Device, Method, Result, State
from asyncjax.schedules import Schedule
from asyncjax.service import Service, streams

Publication = Literal["atomic", "leaf"]


def run_threads(
    method: Method,
    key: jax.Array,
    *,
    num_workers: int,
    num_updates: int,
    num_threads: int | None = None,
    group_size: int = 1,
    wait: Wait = "never",
    bound: int | None = None,
    eta: int | None = None,
    publication: Publication = "atomic",
    service: Service | None = None,
    devices: Sequence[Device] | None = None,
    timeout: float = 300.0,
    state: State | None = None,
    callback: Callable[[Chunk], None] | None = None,
    chunk_size: int = 1024,
    check_finite: bool = True,
) -> tuple[Result, Schedule]:
    """Runs a method on real threads and records the schedule that happened.

    A thread reads the buffer (a pointer swap, so consistent and without waiting), calls `work` on what it
    read, for each of its workers, and commits: one lock makes the commits serial and numbers them. Given the
    recorded schedule, `replay` repeats the run bit for bit.

    Threads beyond the machine's cores only wait for each other, and each call of a compiled function costs
    0.1 ms or more. So a thread carries several workers: their jobs, on one view, are one call, and so are their
    updates. Every message is still an update of its own, with its own staleness.

    Args:
      method: four pure functions.
      key: the source of all chance but the schedule.
      num_workers: W.
      num_updates: T, the version at which the run ends.
      num_threads: what the workers are dealt to, round robin. By default as many as this machine has cores, two at
        least and one for each device; but one for each worker (what num_threads=num_workers says) with `service`, or
        where `work` calls back to Python, as environments on the host do.
      group_size: G, messages per update.
      wait: "never", or "next_version" (with group_size=num_workers: the barrier); see `Discipline`.
      bound: no worker gets more than this many messages ahead of the slowest one (SSP).
      eta: no message is staler than this: jobs wait for admission, messages for those that began before.
      publication: "atomic", or "leaf": leaf by leaf, so that readers may see torn views, which
        are recorded as such.
      service: artificial service times: a job then takes at least that many seconds.
      devices: where the threads run, round robin; the buffer lives on the first, or where `data_parallel` has put
        it. All local ones by default.
      timeout: seconds that one job or one commit may take before the run is given up.
      state: where to continue, from an earlier run's callback.
      callback: called in this thread with a `Chunk` after about every `chunk_size` updates, and with
        what is left when the run ends, fails or is interrupted.
      chunk_size: updates between two callbacks.
      check_finite: stop when the view has a number that is not finite.

    Returns:
      (Result, Schedule): as from the other engines, and the schedule that happened with the measured
      seconds of reads, messages and commits. With `state`, both cover the updates since then.

    Raises:
      ValueError: for arguments that no run could follow.
      FloatingPointError: after the first update that made the view non-finite, naming the worker.
      TimeoutError: naming the worker that did not finish a job in time, or the writer.
      Whatever a worker raises, with a note that names the worker.

    Example:
      >>> import jax, optax, asyncjax as aj
      >>> method = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(0.1))
      >>> result, schedule = aj.run_threads(method, jax.random.key(0), num_workers=4, num_updates=100)
      >>> schedule.num_updates, aj.schedules.is_realizable(schedule)
      (100, True)
    """
    sizes = {"num_workers": num_workers, "num_updates": num_updates}
    check_run(method, key, callback=callback, chunk_size=chunk_size, **sizes, **given(num_threads=num_threads))
    check_positive(timeout=timeout)
    check_choice(get_args(Publication), publication=publication)
    check_host("run_threads")
    num_workers, num_updates, num_threads, chunk_size = whole(num_workers, num_updates, num_threads, chunk_size)
    discipline = Discipline(group_size, wait, bound, eta).check(num_workers)
    state = starting_state(state, method, key, num_workers, num_updates, "num_updates")
    num_leaves = len(jax.tree.leaves(jax.eval_shape(method.view, state.shared)))
    parts = tuple(range(num_leaves)) if publication == "leaf" else (0,) * num_leaves
    program = cached_host_program(method, num_workers, discipline.group_size, parts)
    devices = jax.local_devices() if devices is None else devices
    check_devices(devices)
    alone = service is not None or program.work_calls_back  # a worker that may sleep or wait has its thread for itself
    if num_threads is None:
        num_threads = num_workers if alone else default_threads(len(devices))
    if service is not None and num_threads < num_workers:
        raise ValueError(
            f"num_threads={num_threads} with service=: a worker that takes its own time has its own thread, and there"
            f" are {num_workers} workers. Leave num_threads out."
        )
    team = Team(
        program,
        Coordinator(discipline, num_workers, state.update),
        state,
        devices,
        None if service is None else streams(service, jax.random.fold_in(key, num_workers), num_workers),
        min(num_threads, num_workers),
        num_updates,
        check_finite,
    )
    return team.run(callback, chunk_size, timeout)


def default_threads(num_devices: int) -> int:
    """As many as this process has cores, but two at least, or nothing would be asynchronous; as many on each device."""
    return -(-max(num_cores(), 2) // num_devices) * num_devices


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
