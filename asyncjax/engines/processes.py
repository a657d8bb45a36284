"""Worker processes on Ray: set up alike, given jobs, replaced when they die."""

from __future__ import annotations

import os
import pickle
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from asyncjax.engines.host_program import HostProgram, View, Worked, cached_host_program
from asyncjax.engines.packing import Packed
from asyncjax.method import Method, PyTree

SMALL = 64 * 1024  # bytes; Ray sends up to 100 KiB along with a request and puts more into the object store
# What a process has to have in common with this one, to compute the same bits and to compile as quickly.
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
OPTIONS = (
    "jax_platforms",
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_disable_most_optimizations",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)

Parcel = Any  # a tree of numpy arrays, or bytes of it
Warned = set[tuple[str, type[Warning], str, int]]  # text, category, file and line


def options_here() -> tuple[dict[str, str], dict[str, Any]]:
    """The environment variables and the options of JAX that `adopt` takes over in another process."""
    known = jax.config.values  # those of all threads; as attributes, options are what holds in this one
    options = {name: getattr(jax.config, name, known[name]) for name in OPTIONS if name in known}
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}, options


def adopt(variables: dict[str, str], options: dict[str, Any]) -> None:
    """Makes this process compute as that of `options_here`, if it has not computed before."""
    os.environ.update(variables)  # in time: JAX reads them when it computes first
    for name, value in options.items():
        jax.config.update(name, value)


def put(ray: Any, value: Any, **parts: Any) -> Any:
    """The reference of a value for other processes.

    Raises:
      TypeError: naming which of its parts can not be pickled, and why.
    """
    try:
        return ray.put(value)
    except Exception:
        for name, part in parts.items():
            try:
                ray.cloudpickle.dumps(part)
            except Exception as error:
                raise TypeError(
                    f"{name} can not be sent to Ray's processes ({error}): let its functions make what can not be"
                    " pickled, such as a lock or an open file, where they use it, and not refer to it from outside."
                ) from None  # Ray has pages about all that the value holds
        raise


class Lost(Exception):
    """A job was lost with the process that had it."""

    def __init__(self, process: int, actor: Any, cause: Exception) -> None:
        super().__init__(f"Worker process {process} died.")
        self.process, self.actor, self.cause = process, actor, cause


class Process:
    """A worker process, as a Ray actor: it computes `work` for whichever worker asks, and keeps nothing."""

    def __init__(self, variables: dict[str, str], options: dict[str, Any]) -> None:
        adopt(variables, options)
        jax.config.update("jax_cpu_enable_async_dispatch", False)  # a process does nothing else meanwhile

    def prepare(self, method: Method, num_workers: int, group_size: int, parts: tuple[int, ...]) -> None:
        """Compiles. Not in the constructor: an error there would pass for a death."""
        self.compiled = cached_host_program(method, num_workers, group_size, parts).work_on(jax.local_devices()[0])

    def work(self, view: Parcel, local: Parcel) -> tuple[Parcel, Warned]:
        """One job: (View, private state [1]) -> Worked, and the warnings that it gave."""
        with warnings.catch_warnings(record=True, action="always") as caught:
            worked = _wrap(self.compiled(_unwrap(view), _unwrap(local), np.zeros(1, np.int32), np.int32(1)))
        return worked, {(str(one.message), one.category, one.filename, one.lineno) for one in caught}


class Processes:
    """P processes for W workers, round robin. A context manager; leaving it ends them.

    What a job needs comes with it: a view, and the worker's private state as of its last message that arrived. So
    any process can do it, and what a process takes with it when it dies is its jobs, nothing else.

    Args:
      ray: the module, connected.
      program: of the method.
      method: what the processes run.
      num_processes: P.
      max_restarts: how many may die.
      start_timeout: seconds that the start of a process may take.
    """

    def __init__(
        self,
        ray: Any,
        program: HostProgram,
        method: Method,
        num_processes: int,
        max_restarts: int,
        start_timeout: float,
    ) -> None:
        self.ray, self.max_restarts, self.start_timeout = ray, max_restarts, start_timeout
        packed = program.packed
        method = method._replace(placement=None)  # the learner's, which is here; devices can not be pickled
        parts: Mapping[str, Any] = {f"method.{name}": part for name, part in method._asdict().items()}
        sizes = packed.num_workers, program.group_size, packed.parts
        self.recipe = [put(ray, method, **parts), *map(ray.put, sizes)]
        self.options = options_here()  # a process is replaced from a thread, where other ones may hold
        self.warned: dict[Any, Any] = {}  # by which filters know what was shown before
        self.losses = (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError, ray.exceptions.OutOfMemoryError)
        self.lock, self.sending = threading.Lock(), threading.Lock()  # two, so that a slow put delays no end
        self.num_restarts = 0
        self.stopped = False
        self.sent: tuple[Packed, Any] = ({}, None)  # the view sent last, and what was sent for it
        self.running = [self._start() for _ in range(num_processes)]  # (actor, what is there when it is ready)

    def _start(self) -> tuple[Any, Any]:
        actor = self.ray.remote(Process).options(num_cpus=1, max_restarts=0).remote(*self.options)
        return actor, actor.prepare.remote(*self.recipe)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """Kills the processes; what waits for one gets `Lost`."""
        with self.lock:
            self.stopped = True
            for actor, _ in self.running:
                self.ray.kill(actor)

    def wait_until_ready(self) -> None:
        """Returns when all processes have compiled."""
        for process in range(len(self.running)):
            self._wait_for(process)

    def work(self, worker: int, view: View, local: Packed, *_: Any) -> Worked:
        """One job of a worker, as an executable of `HostProgram.work_on` does it.

        Raises:
          Lost: the process died.
          Whatever the job raised, with the traceback from there.

        Warns:
          Whatever the job warned of.
        """
        process = worker % len(self.running)
        actor, _ = self.running[process]
        try:
            worked, warned = self.ray.get(actor.work.remote(self._send(view), _wrap(local)))
        except self.losses as error:
            raise Lost(process, actor, error) from error
        for text, category, file, line in warned:
            warnings.warn_explicit(text, category, file, line, registry=self.warned)
        return _unwrap(worked)

    def replace(self, lost: Lost) -> None:
        """Returns when a new process is ready in place of the one that died, or when all were stopped meanwhile.

        Raises:
          RuntimeError: too many have died.
          TimeoutError: the new one does not start.
        """
        with self.lock:
            if self.stopped:
                return
            if self.running[lost.process][0] is lost.actor:  # otherwise another of its workers was quicker
                if self.num_restarts == self.max_restarts:
                    raise RuntimeError(
                        f"Worker process {lost.process} died, and {self.num_restarts} died before: max_restarts="
                        f"{self.max_restarts}. Find out why they die, or raise max_restarts=; the run can go on"
                        " from its last chunk or checkpoint."
                    ) from lost.cause
                self.num_restarts += 1
                self.ray.kill(lost.actor)  # perhaps it was only out of reach
                self.running[lost.process] = self._start()
        self._wait_for(lost.process)

    def _wait_for(self, process: int) -> None:
        actor, ready = self.running[process]
        if not self.ray.wait([ready], timeout=self.start_timeout)[0]:
            cpus, free = (f().get("CPU", 0) for f in (self.ray.cluster_resources, self.ray.available_resources))
            raise TimeoutError(
                f"Worker process {process} has not started; start_timeout={self.start_timeout} s. The cluster has"
                f" {cpus:g} CPUs, {free:g} of them free, and each process takes one: add machines, use fewer processes"
                " (num_processes=) or raise start_timeout=."
            )
        try:
            self.ray.get(ready)
        except self.losses as error:
            self.replace(Lost(process, actor, error))

    def _send(self, view: View) -> Any:
        """The view as an argument: one put for each version, however many workers read it."""
        with self.sending:
            if self.sent[0] is not view[0]:
                parcel = _wrap(view)
                self.sent = view[0], parcel if isinstance(parcel, bytes) else self.ray.put(parcel)
            return self.sent[1]


def _wrap(tree: PyTree) -> Parcel:
    """Arrays for the journey: as bytes, which Ray is quickest with, or in a form that shared memory can hold."""
    arrays = jax.tree.map(np.asarray, tree)
    small = sum(x.nbytes for x in jax.tree.leaves(arrays)) < SMALL
    return pickle.dumps(arrays, protocol=5) if small else arrays


def _unwrap(parcel: Parcel) -> PyTree:
    return pickle.loads(parcel) if isinstance(parcel, bytes) else parcel
