"""The threads' engine with its jobs done in other processes, on this machine or on many, through Ray."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax

from asyncjax.checks import check_least, check_positive, given, whole
from asyncjax.discipline import Coordinator, Discipline, Wait
from asyncjax.engines.common import check_host, check_run, starting_state
from asyncjax.engines.host_program import HostProgram, Job, View, cached_host_program
from asyncjax.engines.packing import Packed
from asyncjax.engines.processes import Lost, Processes
from asyncjax.engines.team import Team
from asyncjax.extras import import_extra
from asyncjax.method import Chunk, Method, Result, State
from asyncjax.schedules import Schedule
from asyncjax.service import Service, streams


def run_ray(
    method: Method,
    key: jax.Array,
    *,
    num_workers: int,
    num_updates: int,
    group_size: int = 1,
    wait: Wait = "never",
    bound: int | None = None,
    eta: int | None = None,
    service: Service | None = None,
    num_processes: int | None = None,
    address: str | None = None,
    max_restarts: int = 16,
    timeout: float = 300.0,
    start_timeout: float = 300.0,
    state: State | None = None,
    callback: Callable[[Chunk], None] | None = None,
    chunk_size: int = 1024,
    check_finite: bool = True,
) -> tuple[Result, Schedule]:
    """Runs a method on worker processes of a Ray cluster and records the schedule that happened.

    The buffer is in this process: it sends a worker the newest version, waits for the message, and commits. That is
    `run_threads`, but `work` runs elsewhere. Given the recorded schedule, `replay` repeats the run bit for bit, where
    all processes run on the same kind of device.

    A process that dies is replaced, max_restarts times. Meanwhile the others go on. Its workers then go on from their
    last message that had arrived, with the version that is the newest by then: the lost job is in no schedule, nobody
    saw its random numbers, and none is used twice in the run. When this process dies, continue from a checkpoint.

    Args:
      method: four pure functions; they are pickled, closures included.
      key: the source of all chance but the schedule.
      num_workers: W.
      num_updates: T, the version at which the run ends.
      group_size: G, messages per update.
      wait: "never", or "next_version" (with group_size=num_workers: the barrier); see `Discipline`.
      bound: no worker gets more than this many messages ahead of the slowest one (SSP).
      eta: no message is staler than this: jobs wait for admission, messages for those that began before.
      service: artificial service times: a job then takes at least that many seconds.
      num_processes: what the workers share, round robin. With fewer processes than workers, one worker's job is
        computed while another's message travels. By default a process for each worker.
      address: of a Ray cluster, such as "auto" on one of its machines. None: the connection that there is, or else a
        local Ray that ends with the run (start-up takes some seconds: for many runs call `ray.init()` before).
      max_restarts: processes that may die in this run.
      timeout: seconds that one job may take before the run is given up; waiting for a shared process counts.
      start_timeout: seconds that a process may take until it is there and has compiled.
      state: where to continue, from an earlier run's callback.
      callback: called in this thread with a `Chunk` after about every `chunk_size` updates, and with
        what is left when the run ends, fails or is interrupted.
      chunk_size: updates between two callbacks.
      check_finite: stop when the view has a number that is not finite.

    Returns:
      (Result, Schedule): as from `run_threads`. All times are of this process's clock: a job begins when its view is
      sent, and ends when its message is here.

    Raises:
      ImportError: Ray is not installed.
      ValueError: for arguments that no run could follow.
      TypeError: a function of the method can not be pickled, with the reason.
      FloatingPointError: after the first update that made the view non-finite, naming the worker.
      TimeoutError: naming the worker that did not finish a job in time, or what the processes wait for.
      RuntimeError: more than max_restarts processes died.
      Whatever a worker raises, with its traceback there and a note that names the worker.

    Warns:
      Whatever a worker warns of, such as environments that were lost with its process.

    Example:
      >>> import jax, optax, asyncjax as aj
      >>> method = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(0.1))
      >>> result, schedule = aj.run_ray(  # doctest: +SKIP
      ...     method, jax.random.key(0), num_workers=4, num_updates=100
      ... )
    """
    sizes = {"num_workers": num_workers, "num_updates": num_updates}
    check_run(method, key, callback=callback, chunk_size=chunk_size, **sizes, **given(num_processes=num_processes))
    check_positive(timeout=timeout, start_timeout=start_timeout)
    check_least(0, max_restarts=max_restarts)
    check_host("run_ray")
    num_workers, num_updates, num_processes, chunk_size = whole(num_workers, num_updates, num_processes, chunk_size)
    discipline = Discipline(group_size, wait, bound, eta).check(num_workers)
    state = starting_state(state, method, key, num_workers, num_updates, "num_updates")
    parts = (0,) * len(jax.tree.leaves(jax.eval_shape(method.view, state.shared)))
    program = cached_host_program(method, num_workers, discipline.group_size, parts)
    num_processes = min(num_processes or num_workers, num_workers)
    with (
        connected(address, num_processes) as ray,
        Processes(ray, program, method, num_processes, max_restarts, start_timeout) as processes,
    ):
        team = RemoteTeam(
            processes,
            program,
            Coordinator(discipline, num_workers, state.update),
            state,
            jax.local_devices()[:1],
            None if service is None else streams(service, jax.random.fold_in(key, num_workers), num_workers),
            num_workers,
            num_updates,
            check_finite,
        )
        processes.wait_until_ready()
        return team.run(callback, chunk_size, timeout)


class RemoteTeam(Team):
    """A team whose threads wait for the jobs of processes instead of doing them."""

    def __init__(self, processes: Processes, program: HostProgram, *arguments: Any) -> None:
        self.processes = processes
        super().__init__(program, *arguments)

    def _executables(self) -> list[Any]:
        return [partial(self.processes.work, w) for w in range(self.num_threads)]

    def _work(
        self, thread: int, workers: list[int], read: list[int], view: View, local: Packed, begin: float
    ) -> list[Job]:
        """The job of the thread's worker; none when the run ended meanwhile, or when its process died."""
        try:
            return super()._work(thread, workers, read, view, local, begin)
        except Lost as lost:
            with self.buffer.commit_lock:
                self.coordinator.read[thread] = min(read) - 1  # lost, too, so that the worker may begin again
            self.processes.replace(lost)
            return []

    def _stop(self, threads: Sequence[threading.Thread]) -> None:
        self.buffer.stopping.set()  # so that no thread replaces what now ends
        self.processes.stop()
        super()._stop(threads)


@contextlib.contextmanager
def connected(address: str | None, num_cpus: int) -> Iterator[Any]:
    """The module `ray`, connected: to what it is connected to already, to this address, or to a local Ray of its own.

    Raises:
      ImportError: with the extra to install.
      ConnectionError: no cluster answers at the address.
    """
    ray = import_extra("ray", "run_ray needs Ray", "ray")
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"address": address}
    if address is None and "RAY_ADDRESS" not in os.environ:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options = {"address": "local", "num_cpus": num_cpus, "include_dashboard": False}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)  # to start a program: harmless
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    try:
        yield ray
    finally:
        ray.shutdown()
