"""Faults injected into recorded runs: each has to end by itself, name the first cause, and leave what can be continued.

    python experiments/fault_injection.py --engine threads --cases 160
    python experiments/fault_injection.py --engine ray --cases 40

Case n is made from seed n: the fault, the worker and the job that it strikes, the discipline, how often is recorded.
A case is right when the run ends within its time, raises what the fault is (or completes, where the fault is one to
live with), and its directory loads: the checkpoint there is what a replay of the recorded schedule gives, bit for bit.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import faulthandler
import logging
import multiprocessing
import os
import resource
import signal
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import asyncjax as aj

WORKERS = 3
UPDATES = 300  # of runs that are to complete
ENDLESS = 10**7  # of runs that the fault has to end
SERVICE = aj.service.exponential(0.002)  # seconds; all workers get along alike
TIMEOUT = {"threads": 0.5, "ray": 4.0}  # seconds that a job may take
GRACE = 20.0  # seconds from the fault to the end of the run, over a job's time-out; the machine may be busy
DISCIPLINES: dict[str, dict[str, Any]] = {
    "asynchronous": {},
    "groups": {"group_size": 2},
    "barrier": {"group_size": WORKERS, "wait": "next_version"},
    "backup workers": {"group_size": 2, "wait": "next_version"},
    "bounded": {"bound": 2},
}
# What each fault ends in: an error that names it, or nothing.
ENDS: dict[str, tuple[type[BaseException], str] | None] = {
    "exception": (Exception, "no bananas left for worker {worker}"),
    "hang": (TimeoutError, "has been busy with one job"),
    "kill": None,
    "not a number": (FloatingPointError, "made the view non-finite"),
    "slow disk": None,
    "full disk": (OSError, "File too large"),
    "exception, full disk": (Exception, "no bananas left for worker {worker}"),
    "Ctrl-C": (KeyboardInterrupt, ""),
}
IN_JOBS = ("exception", "hang", "kill", "not a number", "exception, full disk")  # the others come from outside


class Case(NamedTuple):
    """One run and what befalls it.

    Attributes:
      engine: "threads" or "ray".
      fault: a key of ENDS.
      discipline: a key of DISCIPLINES.
      worker: in whose job it happens.
      job: in which of its jobs, counted from 0.
      chunk_size: updates between two rows.
      checkpoint_every: seconds between checkpoints.
      seed: of the run, and of what else is left to chance.
    """

    engine: str
    fault: str
    discipline: str
    worker: int
    job: int
    chunk_size: int
    checkpoint_every: float
    seed: int


def make_case(engine: str, seed: int) -> Case:
    """The case of this number; the faults take turns, so that all are equally often."""
    rng = np.random.default_rng(seed)
    return Case(
        engine,
        list(ENDS)[seed % len(ENDS)],
        str(rng.choice(list(DISCIPLINES))),
        int(rng.integers(WORKERS)),
        int(rng.integers(1, 30)),
        int(rng.choice([1, 7, 50])),
        float(rng.choice([0.0, 0.1, 60.0])),
        seed,
    )


# ---------------------------------------------------------------------------------------------------------------------
# The run


class Hook:
    """What happens on the host within a job. It travels to worker processes with the method.

    The fault happens once: a file says that it did, and later that it is over.
    """

    def __init__(self) -> None:
        self.case: Case | None = None
        self.marks = Path()

    def arm(self, case: Case | None, marks: Path) -> None:
        """What is to happen next."""
        self.case, self.marks = case, marks

    def __call__(self, worker: np.ndarray, job: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(what a message is multiplied by, the process that computes it)."""
        case, factor = self.case, 1.0
        if case is not None and (int(worker), int(job)) == (case.worker, case.job):
            factor = self._strike(case.fault, worker)
        return np.asarray(factor, np.float32), np.asarray(os.getpid(), np.int32)

    def _strike(self, fault: str, worker: np.ndarray) -> float:
        happened, over = self.marks / "happened", self.marks / "over"
        if over.exists() or fault not in IN_JOBS:
            return 1.0
        first = not happened.exists()
        happened.touch()
        if fault == "not a number":  # also when the job is done again, because its message came late and was dropped
            return float("nan")
        if first and fault.startswith("exception"):
            raise RuntimeError(f"no bananas left for worker {worker}")
        if first and fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        while first and fault == "hang" and not over.exists():
            time.sleep(0.02)
        return 1.0


def hooked(hook: Any) -> aj.Method:
    """Adam on a noisy quadratic, whose jobs call the hook and count themselves: metrics `job` and `process`."""
    base = aj.sgd(
        lambda w, target: 0.5 * jnp.sum(jnp.square(w - target)),
        jnp.ones(3, jnp.float32),
        optimizer=optax.adam(1e-2),
        sample=lambda key: jax.random.normal(key, (3,), jnp.float32),
    )

    def init(key: jax.Array, num_workers: int) -> Any:
        shared, local = base.init(key, num_workers)
        return shared, (jnp.arange(num_workers, dtype=jnp.int32), jnp.zeros(num_workers, jnp.int32), local)

    def work(view: Any, local: Any) -> Any:
        worker, job, inner = local
        likes = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
        factor, process = jax.pure_callback(hook, likes, worker, job)
        message, inner, metrics = base.work(view, inner)
        message = jax.tree.map(lambda x: factor * x, message)
        return message, (worker, job + 1, inner), {**metrics, "job": job, "process": process}

    return base._replace(init=init, work=work, halves=None)


class Disk(aj.Recorder):
    """A recorder on a disk that becomes slow, or full, when the fault happens."""

    def __init__(self, case: Case, marks: Path, path: Path) -> None:
        config = {"num_workers": WORKERS, **case._asdict()}
        super().__init__(path, config, checkpoint_every=case.checkpoint_every)
        self.case, self.marks = case, marks
        self.full = False

    def __call__(self, chunk: aj.Chunk) -> None:
        """Records the chunk, or fails to."""
        if self.case.fault in ("slow disk", "full disk") and self.update > self.case.job:
            (self.marks / "happened").touch()
            self._trouble()
        super().__call__(chunk)

    def __exit__(self, *failure: Any) -> None:
        if self.case.fault == "exception, full disk":  # not before, or the disk might be the first cause
            self._trouble()
        super().__exit__(*failure)

    def _trouble(self) -> None:
        if self.case.fault == "slow disk":
            time.sleep(0.2)
        elif not self.full:
            self.full = True
            room = int(np.random.default_rng(self.case.seed).integers(0, 400))  # for part of a row, or for one more
            limit = (self.path / "metrics.jsonl").stat().st_size + room
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


HOOK = Hook()
METHOD = hooked(HOOK)  # one, so that its programs are compiled once


def run(case: Case, folder: Path) -> None:
    """The run, recorded in folder / "run"; it raises what it raises."""
    HOOK.arm(case, folder)
    options: dict[str, Any] = {"num_workers": WORKERS, "timeout": TIMEOUT[case.engine], **DISCIPLINES[case.discipline]}
    if case.engine == "ray":
        options["num_processes"] = 2
    completes = ENDS[case.fault] is None and (case.engine, case.fault) != ("threads", "kill")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with Disk(case, folder, folder / "run") as recorder:
            if case.fault == "Ctrl-C":
                interrupt_later(case, folder)
            getattr(aj, f"run_{case.engine}")(
                METHOD,
                jax.random.key(case.seed),
                num_updates=UPDATES if completes else ENDLESS,
                service=SERVICE,
                chunk_size=case.chunk_size,
                callback=recorder,
                **options,
            )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        (folder / "over").touch()


def interrupt_later(case: Case, marks: Path) -> None:
    """Ctrl-C at a random moment, starting up included; again every 5 s, as CPython ignores one in a destructor."""

    def interrupt(*_: Any) -> None:
        if not (marks / "happened").exists():
            (marks / "happened").touch()
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
    signal.signal(signal.SIGALRM, interrupt)
    longest = {"threads": 0.5, "ray": 10.0}[case.engine]
    signal.setitimer(signal.ITIMER_REAL, np.random.default_rng(case.seed).uniform(0.01, longest), 5.0)


# ---------------------------------------------------------------------------------------------------------------------
# The judgement


def judge(case: Case, folder: Path) -> list[str]:
    """Runs a case; returns what was wrong, nothing if all was right."""
    faulthandler.dump_traceback_later(120, exit=True, file=2)  # a run that hangs shows where
    error = None
    try:
        if (case.engine, case.fault) == ("threads", "kill"):  # the worker's process is this one
            child = multiprocessing.get_context("spawn").Process(target=run, args=(case, folder))
            child.start()
            child.join()
            assert child.exitcode == -signal.SIGKILL, child.exitcode
        else:
            run(case, folder)
    except BaseException as caught:
        error = caught
    ended = time.time()
    faulthandler.cancel_dump_traceback_later()
    wrong = []
    if not (folder / "happened").exists():
        wrong.append("the fault did not happen")
    elif (took := ended - (folder / "happened").stat().st_mtime) > TIMEOUT[case.engine] + GRACE:
        wrong.append(f"it took {took:.1f} s to end")
    return wrong + ([] if named(case, error) else [f"ended in {error!r}"]) + unloadable(case, folder / "run")


def named(case: Case, error: BaseException | None) -> bool:
    """Whether the error is the one that this fault should end in."""
    wanted = ENDS[case.fault]
    if wanted is None or error is None:
        return wanted is None and error is None
    return isinstance(error, wanted[0]) and wanted[1].format(worker=case.worker) in str(error)


def unloadable(case: Case, path: Path) -> list[str]:
    """What is wrong with the run directory."""
    try:
        recorded = aj.runs.load(path)
        state = recorded.restore(METHOD, WORKERS)
    except Exception as error:
        return [f"does not load: {error!r}"]
    rows = recorded.metrics.get("update", np.zeros(0, np.int64))
    if np.any(np.diff(rows) <= 0):
        return [f"rows out of order: {rows}"]
    if state is None:
        return []
    if recorded.schedule is None or recorded.schedule.num_updates < state.update:
        return [f"a checkpoint at update {state.update} without its schedule"]
    start = aj.schedules.cut(recorded.schedule, 0, state.update)
    again = aj.replay(METHOD, start, jax.random.key(case.seed), num_workers=WORKERS)
    same = equal((state.shared, state.local), again[:2])
    return [] if same else [f"the checkpoint at update {state.update} is not the replay's"]


def equal(x: Any, y: Any) -> bool:
    """Whether two trees are equal, bit for bit."""

    def numbers(leaf: Any) -> np.ndarray:
        is_key = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return all(np.array_equal(numbers(a), numbers(b)) for a, b in pairs)


@dataclasses.dataclass(frozen=True)
class Args:
    """What to run."""

    engine: Literal["threads", "ray"] = "threads"
    """Engine."""
    cases: int = 160
    """How many."""
    first: int = 0
    """Number of the first."""
    limit: float = 3600.0
    """No case is begun after so many seconds."""


def main(args: Args) -> int:
    """Runs all, prints a table; returns the number of cases that went wrong."""
    from asyncjax.cluster import connected

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    logging.getLogger("jax").setLevel(logging.CRITICAL)  # it logs what is raised as well
    started = time.monotonic()
    seconds, wrongs = collections.defaultdict[str, list[float]](list), collections.Counter[str]()
    with connected(None, 2) if args.engine == "ray" else contextlib.nullcontext():
        for seed in range(args.first, args.first + args.cases):
            case, began = make_case(args.engine, seed), time.monotonic()
            if began - started > args.limit:
                break
            with tempfile.TemporaryDirectory() as folder:
                wrong = judge(case, Path(folder))
            seconds[case.fault].append(time.monotonic() - began)
            wrongs[case.fault] += bool(wrong)
            print(f"{seed}: {case.fault}, {case.discipline}: {seconds[case.fault][-1]:.1f} s", *wrong, flush=True)
    print("| fault | engine | cases | wrong | seconds, median | longest |\n|---|---|---|---|---|---|")
    for fault, took in seconds.items():
        row = f"{len(took)} | {wrongs[fault]} | {np.median(took):.1f} | {max(took):.1f}"
        print(f"| {fault} | {args.engine} | {row} |")
    return wrongs.total()


if __name__ == "__main__":
    raise SystemExit(bool(main(tyro.cli(Args, description=__doc__))))
