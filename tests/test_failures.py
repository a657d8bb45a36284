"""What goes wrong ends a run at once, says what it was, and loses nothing of what was done."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asyncjax as aj
from asyncjax.checkpoints import Checkpoints
from asyncjax.engines.log import Log
from asyncjax.engines.packing import all_finite
from asyncjax.replay import _Replay
from tests.laws import KEY, assert_equal, method
from tests.test_engines import DISCIPLINES, WORKERS

ENDLESS = 10**7  # updates, for runs that have to be ended
PATIENCE = 4.0  # seconds that an update may take: a machine at work can hold a sound one up for half a second
every_discipline = pytest.mark.parametrize("options", DISCIPLINES.values(), ids=list(DISCIPLINES))
ENGINES = {"emulate": aj.emulate, "replay": aj.replay}
every_engine = pytest.mark.parametrize("engine", ENGINES.values(), ids=list(ENGINES))


class Hook:
    """What happens on the host within the jobs of `HOSTED`; a test puts its accident here.

    It is told the worker, how often that worker has called, and which of its jobs this is, counted from 1: a job whose
    message is dropped is called for again, and an empty lane of a batch repeats a job for nothing.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """No accidents."""
        self.calls = [0] * WORKERS
        self.on_call: Callable[[int, int, int], None] = lambda worker, call, job: None

    def __call__(self, worker: np.ndarray, jobs: np.ndarray) -> np.ndarray:
        with self.lock:
            self.calls[int(worker)] += 1
            call = self.calls[int(worker)]
        self.on_call(int(worker), call, int(jobs) + 1)
        return np.float32(1 + int(worker) + 0.125 * int(jobs))  # type: ignore[return-value]


hook = Hook()


def hosted() -> aj.Method:
    """A method whose jobs call `hook`, for accidents, and which sums up what it returned."""

    def init(key: jax.Array, num_workers: int) -> Any:
        del key
        shared = {"sum": jnp.float32(0), "last": jnp.float32(0)}
        return shared, (jnp.arange(num_workers, dtype=jnp.int32), jnp.zeros(num_workers, jnp.int32))

    def work(view: Any, local: Any) -> Any:
        worker, jobs = local
        result = jax.ShapeDtypeStruct((), jnp.float32)
        value = jax.pure_callback(hook, result, worker, jobs, vmap_method="sequential")
        return value, (worker, jobs + 1), {"value": value, "seen": view["sum"]}

    def apply(shared: Any, messages: jax.Array, stale: aj.Stale) -> Any:
        del stale
        return {"sum": shared["sum"] + messages.sum(), "last": messages[-1]}, {"sum": shared["sum"]}

    return aj.Method(init, lambda shared: shared, work, apply)


HOSTED = hosted()


@pytest.fixture(autouse=True)
def accidents() -> Iterator[None]:
    """No accident and no thread outlives its test."""
    hook.clear()
    yield
    hook.clear()
    assert not workers_alive()


def workers_alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("worker")]


def raise_in(worker: int, job: int) -> Callable[[int, int, int], None]:
    """An accident: this job of this worker fails."""

    def on_call(w: int, call: int, j: int) -> None:
        if (w, j) == (worker, job):
            raise RuntimeError(f"no bananas left for {w}")

    return on_call


def tires(update: int, seconds: float = 0.0) -> aj.Method:
    """`HOSTED` with an accident in its updates, which take some seconds each: this one, counted from 1, fails."""
    done = itertools.count(1)

    def tire(messages: np.ndarray) -> np.ndarray:
        time.sleep(seconds)
        if next(done) == update:
            raise RuntimeError("the optimizer is tired")
        return messages

    def apply(shared: Any, messages: jax.Array, stale: aj.Stale) -> Any:
        messages = jax.pure_callback(tire, jax.ShapeDtypeStruct(messages.shape, messages.dtype), messages)
        return HOSTED.apply(shared, messages, stale)

    return HOSTED._replace(apply=apply)


def joined(chunks: list[aj.Chunk]) -> tuple[dict[str, np.ndarray], aj.Schedule]:
    """The metrics and the schedule of all chunks, after checking that they join up."""
    done = 0
    for chunk in chunks:
        done += chunk.schedule.num_updates
        assert {len(values) for values in chunk.metrics.values()} == {chunk.schedule.num_updates}
        assert chunk.state is None or chunk.state.update == done
    metrics = jax.tree.map(lambda *parts: np.concatenate(parts), *(chunk.metrics for chunk in chunks))
    return metrics, aj.schedules.concatenate([chunk.schedule for chunk in chunks])


def assert_replayable(chunks: list[aj.Chunk], eta: int | None = None, **_: Any) -> None:
    """What was delivered is a run, to its last update."""
    metrics, schedule = joined(chunks)
    assert aj.schedules.is_realizable(schedule) or eta is not None
    assert schedule.staleness().max() <= (np.inf if eta is None else eta)
    hook.clear()
    again = aj.replay(HOSTED, schedule, KEY, num_workers=WORKERS)
    assert_equal(metrics, again.metrics)
    state = chunks[-1].state
    assert state is not None
    assert_equal((state.shared, state.local), again[:2])


# ---------------------------------------------------------------------------------------------------------------------
# A worker fails


@every_discipline
def test_a_worker_that_raises_ends_a_threaded_run_and_nothing_is_lost(options: dict[str, Any]) -> None:
    hook.on_call, chunks = raise_in(worker=1, job=4), []
    with pytest.raises(Exception, match="no bananas left for 1") as caught:
        aj.run_threads(HOSTED, KEY, num_workers=WORKERS, num_updates=ENDLESS, callback=chunks.append, **options)
    assert not workers_alive()
    assert any(note.startswith("Raised in worker 1, at update ") for note in caught.value.__notes__)
    assert_replayable(chunks, **options)


def test_a_worker_that_raises_in_its_first_job_ends_the_run_without_a_chunk() -> None:
    barrier = DISCIPLINES["barrier"]
    hook.on_call, chunks = raise_in(worker=0, job=1), []
    with pytest.raises(Exception, match="no bananas left for 0"):
        aj.run_threads(HOSTED, KEY, num_workers=WORKERS, num_updates=9, callback=chunks.append, **barrier)
    assert chunks == []


def test_when_all_workers_raise_the_caller_gets_one_of_their_errors() -> None:
    def on_call(worker: int, call: int, job: int) -> None:
        raise RuntimeError(f"no bananas left for {worker}")

    hook.on_call = on_call
    with pytest.raises(Exception, match="no bananas left for") as caught:
        aj.run_threads(HOSTED, KEY, num_workers=WORKERS, num_updates=ENDLESS)
    (note,) = [note for note in caught.value.__notes__ if note.startswith("Raised in worker")]
    assert f"no bananas left for {note.split()[3].rstrip(',')}" in str(caught.value)


@pytest.mark.parametrize("seconds", [0.0, 0.01], ids=["quick", "so slow that messages queue up"])
def test_an_apply_that_raises_ends_a_threaded_run_at_the_update_before(seconds: float) -> None:
    chunks: list[aj.Chunk] = []
    with pytest.raises(Exception, match="the optimizer is tired") as caught:
        aj.run_threads(tires(8, seconds), KEY, num_workers=WORKERS, num_updates=ENDLESS, callback=chunks.append)
    assert any(", at update 7." in note for note in caught.value.__notes__)
    assert joined(chunks)[1].num_updates == 7
    assert_replayable(chunks)


def test_a_replay_that_fails_delivers_what_it_did() -> None:
    """Worker 1 computes the updates 1, 4, 7, ... of three workers in turn."""
    hook.on_call, chunks = raise_in(worker=1, job=4), []
    with pytest.raises(Exception, match="no bananas left for 1"):
        aj.replay(
            HOSTED,
            aj.schedules.round_robin(30, 3),
            KEY,
            chunk_size=4,
            num_workers=WORKERS,
            callback=chunks.append,
        )
    assert [chunk.schedule.num_updates for chunk in chunks] == [4, 4, 2]
    assert_replayable(chunks)


def test_a_replay_that_fails_within_a_group_is_as_of_the_update_before() -> None:
    """When worker 1 fails, worker 0 has done its job for the same update: this does not count."""
    hook.on_call, chunks = raise_in(worker=1, job=4), []
    with pytest.raises(Exception, match="no bananas left for 1"):
        aj.replay(HOSTED, aj.schedules.barrier(9, WORKERS), KEY, callback=chunks.append)
    assert joined(chunks)[1].num_updates == 3
    assert_replayable(chunks)


@pytest.mark.parametrize("group_size", [1, 2])
def test_a_replay_whose_update_fails_is_as_of_the_update_before(group_size: int) -> None:
    """The jobs of the failed update are done, and do not count either."""
    chunks: list[aj.Chunk] = []
    schedule = aj.schedules.from_service_times(aj.service.exponential(), 12, WORKERS, KEY, group_size=group_size)
    with pytest.raises(Exception, match="the optimizer is tired"):
        aj.replay(
            tires(8), schedule, KEY, chunk_size=5, num_workers=WORKERS, callback=chunks.append, check_finite=False
        )
    assert [chunk.schedule.num_updates for chunk in chunks] == [5, 2]
    assert_replayable(chunks)


def test_a_replay_that_is_interrupted_at_any_line_is_as_of_one_update() -> None:
    """Ctrl-C raises between any two lines: here at each of those that make and log updates, from the third on."""
    schedule = aj.schedules.round_robin(6, WORKERS)
    made = set()
    for line in range(1000):
        chunks: list[aj.Chunk] = []
        with interrupted(line, {_Replay.update.__code__, Log.append.__code__}, skip=4):
            try:
                aj.replay(HOSTED, schedule, KEY, num_workers=WORKERS, callback=chunks.append)
            except KeyboardInterrupt:
                pass
            else:
                break
        assert_replayable(chunks)
        made.add(joined(chunks)[1].num_updates)
    assert made >= {2, 3, 4, 5}


@contextlib.contextmanager
def interrupted(line: int, functions: set[CodeType], skip: int) -> Iterator[None]:
    """Ctrl-C before this line, counted over the functions, of which the first few calls are left alone."""
    calls, lines = itertools.count(), itertools.count()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if event == "call":
            return trace if frame.f_code in functions and next(calls) >= skip else None
        if event == "line" and next(lines) == line:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("width", [1, 2, None])
def test_an_emulation_that_fails_has_delivered_the_chunks_before(width: int | None) -> None:
    """Worker 1 computes the updates 1, 4, 7, 10, ... of three workers in turn; a chunk is one compiled call."""
    hook.on_call, chunks = raise_in(worker=1, job=4), []
    schedule = aj.schedules.round_robin(30, 3)
    with pytest.raises(Exception, match="no bananas left for 1"):
        aj.emulate(HOSTED, schedule, KEY, chunk_size=4, width=width, num_workers=WORKERS, callback=chunks.append)
    assert [chunk.schedule.num_updates for chunk in chunks] == [4, 4]
    assert_replayable(chunks)


@every_engine
def test_after_a_failure_a_run_continues_from_its_last_chunk(engine: Any) -> None:
    schedule, chunks = aj.schedules.round_robin(30, 3), []
    hook.on_call = raise_in(worker=1, job=4)
    with pytest.raises(Exception, match="no bananas left"):
        engine(HOSTED, schedule, KEY, chunk_size=4, num_workers=WORKERS, callback=chunks.append)
    hook.clear()
    rest = engine(HOSTED, schedule, KEY, chunk_size=4, num_workers=WORKERS, state=chunks[-1].state)
    assert_equal(rest[:2], engine(HOSTED, schedule, KEY, chunk_size=4, num_workers=WORKERS)[:2])


def test_a_checkpoint_that_can_not_be_written_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    ignored: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)  # as what is printed to stderr is
    noise = np.random.default_rng(0).normal(size=(50, 500))  # which can not be compressed
    state, checkpoints = aj.State(3, list(noise), np.zeros(2), {}), Checkpoints(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"The checkpoint {tmp_path / '3'} can not be written: File too large\. See"):
            checkpoints.save(state)
        time.sleep(0.2)  # the other writes that were begun end
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (ignored, caplog.records, capfd.readouterr()) == ([], [], ("", ""))
    assert checkpoints.updates() == []
    checkpoints.close()


def test_unfinished_checkpoints_go_when_a_run_goes_on(tmp_path: Path) -> None:
    for name in ("3", "5.orbax-checkpoint-tmp"):
        (tmp_path / name / "tree").mkdir(parents=True)
    Checkpoints(tmp_path).keep_until(3)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


# ---------------------------------------------------------------------------------------------------------------------
# A worker is stuck


def test_a_stuck_worker_is_named_with_the_timeout_that_may_be_raised() -> None:
    released, chunks = threading.Event(), []

    def on_call(worker: int, call: int, job: int) -> None:
        if (worker, call) == (0, 3):
            released.wait()

    hook.on_call = on_call
    try:
        with pytest.raises(TimeoutError, match=r"worker 0 has been busy .* timeout=4\.0 s\. .* raise timeout="):
            aj.run_threads(
                HOSTED,
                KEY,
                num_workers=WORKERS,
                num_updates=ENDLESS,
                timeout=PATIENCE,
                callback=chunks.append,
                **DISCIPLINES["barrier"],
            )
        assert workers_alive() == ["worker 0"]  # a job can not be ended from outside
    finally:
        released.set()
        for thread in threading.enumerate():
            if thread.name.startswith("worker"):
                thread.join()
    assert_replayable(chunks)


def test_a_stuck_update_ends_the_run_too() -> None:
    released, applied, chunks = threading.Event(), list[int](), list[aj.Chunk]()

    def count(value: np.ndarray) -> np.ndarray:
        applied.append(1)
        if len(applied) == 6:
            released.wait()
        return value

    def apply(shared: Any, messages: jax.Array, stale: aj.Stale) -> Any:
        message = jax.pure_callback(count, jax.ShapeDtypeStruct((), jnp.float32), messages[0])
        return HOSTED.apply(shared, message[None], stale)

    sized = {"num_workers": WORKERS, "num_updates": ENDLESS, "timeout": PATIENCE}
    try:
        with pytest.raises(TimeoutError, match=r"writer has been busy with one commit .* timeout=4\.0 s") as caught:
            aj.run_threads(HOSTED._replace(apply=apply), KEY, callback=chunks.append, **sized)
    finally:
        released.set()
        for thread in threading.enumerate():
            if thread.name.startswith("worker"):
                thread.join()
    delivered = joined(chunks)[1].num_updates  # fewer than 5 where one commit held several updates
    assert delivered <= 5
    assert f"at update {delivered};" in str(caught.value)
    assert_replayable(chunks)


# ---------------------------------------------------------------------------------------------------------------------
# The caller stops the run


@every_discipline
def test_ctrl_c_ends_the_threads_and_delivers_the_rest(options: dict[str, Any]) -> None:
    chunks: list[aj.Chunk] = []

    def on_call(worker: int, call: int, job: int) -> None:
        if (worker, call) == (1, 4):
            os.kill(os.getpid(), signal.SIGINT)

    hook.on_call = on_call
    with pytest.raises(KeyboardInterrupt):
        aj.run_threads(
            HOSTED,
            KEY,
            num_workers=WORKERS,
            num_updates=ENDLESS,
            chunk_size=ENDLESS,
            callback=chunks.append,
            **options,
        )
    assert not workers_alive()
    assert len(chunks) == 1
    assert_replayable(chunks, **options)


def test_ctrl_c_while_the_last_job_ends_loses_nothing_either() -> None:
    chunks: list[aj.Chunk] = []

    def on_call(worker: int, call: int, job: int) -> None:
        while worker == 0 and workers_alive() != ["worker 0"]:  # until the others have done all updates, and ended
            time.sleep(0.01)
        if worker == 0:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    hook.on_call = on_call
    with pytest.raises(KeyboardInterrupt):
        aj.run_threads(HOSTED, KEY, num_workers=WORKERS, num_updates=20, callback=chunks.append)
    assert joined(chunks)[1].num_updates == 20
    assert_replayable(chunks)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, LookupError])
def test_whatever_the_callback_raises_ends_the_threads_and_the_rest_is_delivered(stop: type[BaseException]) -> None:
    chunks: list[aj.Chunk] = []

    def callback(chunk: aj.Chunk) -> None:
        chunks.append(chunk)
        if len(chunks) == 2:
            raise stop("enough")

    with pytest.raises(stop, match="enough"):
        aj.run_threads(HOSTED, KEY, num_workers=WORKERS, num_updates=ENDLESS, chunk_size=5, callback=callback)
    assert not workers_alive()
    assert_replayable(chunks)


def test_a_callback_that_keeps_failing_raises_its_first_error() -> None:
    calls = []

    def callback(chunk: aj.Chunk) -> None:
        calls.append(chunk)
        raise LookupError(f"call {len(calls)}")

    with pytest.raises(LookupError, match="call 1") as caught:
        aj.run_threads(HOSTED, KEY, num_workers=WORKERS, num_updates=ENDLESS, chunk_size=5, callback=callback)
    if len(calls) > 1:
        assert "call 2" in caught.value.__notes__[0]


def test_a_workers_error_is_raised_even_where_the_callback_then_fails_too() -> None:
    hook.on_call = raise_in(worker=1, job=4)

    def callback(chunk: aj.Chunk) -> None:
        raise LookupError("disk full")

    with pytest.raises(Exception, match="no bananas left for 1") as caught:
        aj.run_threads(HOSTED, KEY, num_workers=WORKERS, num_updates=ENDLESS, chunk_size=ENDLESS, callback=callback)
    assert any("disk full" in note for note in caught.value.__notes__)


@every_engine
@pytest.mark.parametrize("stop", [KeyboardInterrupt, LookupError])
def test_whatever_the_callback_raises_ends_a_run_under_a_schedule(engine: Any, stop: type[BaseException]) -> None:
    chunks: list[aj.Chunk] = []

    def callback(chunk: aj.Chunk) -> None:
        chunks.append(chunk)
        if len(chunks) == 2:
            raise stop("enough")

    schedule = aj.schedules.round_robin(20, 3)
    with pytest.raises(stop, match="enough"):
        engine(method("sgd"), schedule, KEY, chunk_size=6, callback=callback)
    assert joined(chunks)[1].num_updates == 12
    rest = engine(method("sgd"), schedule, KEY, chunk_size=6, state=chunks[-1].state)
    assert_equal(rest[:2], engine(method("sgd"), schedule, KEY, chunk_size=6)[:2])


# ---------------------------------------------------------------------------------------------------------------------
# Numbers that are not finite

EXPLODING = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(1e15))  # 1, 1e15, 1e30, infinity


@every_engine
@pytest.mark.parametrize("chunk_size", [1, 2, 100])
def test_the_update_that_made_the_parameters_infinite_is_named_and_delivered(engine: Any, chunk_size: int) -> None:
    chunks: list[aj.Chunk] = []
    with pytest.raises(FloatingPointError, match=r"Update 2, from worker 0, .* pass check_finite=False"):
        engine(EXPLODING, aj.schedules.sequential(10, 2), KEY, chunk_size=chunk_size, callback=chunks.append)
    metrics, schedule = joined(chunks)
    assert schedule.num_updates == 3
    assert [chunk.state is None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    norms = metrics["grad_norm"].ravel()
    np.testing.assert_allclose(norms[:2], [1, 1e15], rtol=1e-5)
    assert norms[2] > 0.999e30  # infinite where the compiler does square 1e30


@pytest.mark.parametrize("name", ["asynchronous", "groups", "barrier", "bounded", "leaf by leaf"])
def test_threads_name_the_update_and_worker_that_made_the_parameters_infinite(name: str) -> None:
    chunks: list[aj.Chunk] = []
    with pytest.raises(
        FloatingPointError, match=r"Update \d+, from worker [\d, ]+, made the view non-finite"
    ) as caught:
        aj.run_threads(
            EXPLODING, KEY, num_workers=WORKERS, num_updates=ENDLESS, callback=chunks.append, **DISCIPLINES[name]
        )
    metrics, schedule = joined(chunks)
    last = schedule.num_updates - 1
    workers = ", ".join(map(str, schedule.worker[last]))
    assert str(caught.value).startswith(f"Update {last}, from worker {workers}, ")
    assert chunks[-1].state is None
    again = aj.replay(EXPLODING, schedule, KEY, num_workers=WORKERS, check_finite=False)
    assert_equal(metrics, again.metrics)
    assert not np.isfinite(again.shared.params)


def slow_apply(shared: Any, messages: jax.Array, stale: aj.Stale) -> Any:
    def slowly(value: np.ndarray) -> np.ndarray:
        time.sleep(0.01)
        return value

    return HOSTED.apply(shared, jax.pure_callback(slowly, messages, messages), stale)


SLOW = HOSTED._replace(apply=slow_apply)


def test_no_job_is_done_twice_while_the_last_update_is_on_its_way() -> None:
    """An environment on the host can not be asked for one step twice."""
    jobs: list[tuple[int, int]] = []
    hook.on_call = lambda worker, call, job: jobs.append((worker, job))
    aj.run_threads(SLOW, KEY, num_workers=WORKERS, num_updates=20)
    assert len(set(jobs)) == len(jobs)


@pytest.mark.parametrize("group_size", [1, 2])
def test_messages_that_queued_up_are_updates_one_by_one(group_size: int) -> None:
    """An update takes long, so that whoever commits finds several groups; the third update makes it infinite."""

    def apply(shared: Any, messages: jax.Array, stale: aj.Stale) -> Any:
        new, metrics = SLOW.apply(shared, messages, stale)
        grown = jnp.where(new["sum"] > 80, jnp.inf, new["sum"])
        return {"sum": grown, "last": new["last"]}, metrics

    slow, chunks = HOSTED._replace(apply=apply), []
    with pytest.raises(FloatingPointError) as caught:
        aj.run_threads(
            slow, KEY, num_workers=WORKERS, num_updates=ENDLESS, group_size=group_size, callback=chunks.append
        )
    metrics, schedule = joined(chunks)
    assert aj.schedules.is_realizable(schedule)
    last = schedule.num_updates - 1
    assert str(caught.value).startswith(f"Update {last}, from worker {', '.join(map(str, schedule.worker[last]))}, ")
    assert np.all(np.isfinite(metrics["sum"][:-1]))
    read = np.unique(np.asarray(schedule.read))
    assert group_size > 1 or len(read) < schedule.num_updates  # some versions were never in the buffer
    hook.clear()
    again = aj.replay(slow, schedule, KEY, num_workers=WORKERS, check_finite=False)
    assert_equal(metrics, again.metrics)


@pytest.mark.parametrize("workers", [{"num_workers": 2}, {"num_workers": 5, "num_threads": 1}], ids=str)
def test_without_the_check_for_finite_numbers_all_engines_go_on(workers: dict[str, Any]) -> None:
    """Also where several updates are one call, and the first of them is infinite."""
    result, schedule = aj.run_threads(EXPLODING, KEY, num_updates=20, check_finite=False, **workers)
    for again in (result, *(engine(EXPLODING, schedule, KEY, check_finite=False) for engine in ENGINES.values())):
        assert again.metrics["loss"].shape == (20, 1)
        assert not np.isfinite(again.shared.params)


def test_under_vmap_what_is_not_finite_stays_with_its_run() -> None:
    def final(rate: jax.Array) -> jax.Array:
        run = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(rate))
        return aj.emulate(run, aj.schedules.sequential(10), KEY).shared.params

    good, bad = jax.vmap(final)(jnp.array([0.5, 1e15]))
    np.testing.assert_allclose(good, 0.5**10)
    assert not np.isfinite(bad)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_many_small_numbers_of_few_bits_are_finite(dtype: Any) -> None:
    weights = jnp.full(2**21, 0.0625, dtype)  # their sum, 2**17, is more than 16 bits hold
    assert all_finite({"weights": weights, "steps": jnp.int32(1)})
    for bad in (jnp.inf, -jnp.inf, jnp.nan):
        assert not all_finite({"weights": weights.at[7].set(bad)})


def test_integers_and_empty_views_are_finite() -> None:
    def init(key: jax.Array, num_workers: int) -> Any:
        return jnp.int32(0), jnp.zeros((num_workers, 0))

    counting = aj.Method(init, lambda n: {"n": n}, lambda v, x: (v["n"], x, {}), lambda n, m, s: (n + 1, {}))
    for engine in ENGINES.values():
        assert int(engine(counting, aj.schedules.round_robin(5, 2), KEY).shared) == 5


# ---------------------------------------------------------------------------------------------------------------------
# Arguments that no run could follow


def threads(**options: Any) -> Callable[[], Any]:
    return lambda: aj.run_threads(method("sgd"), KEY, **{"num_workers": 2, "num_updates": 5, **options})


def emulated(**options: Any) -> Callable[[], Any]:
    return lambda: aj.emulate(method("sgd"), aj.schedules.round_robin(5, 2), KEY, **options)


def replayed(**options: Any) -> Callable[[], Any]:
    return lambda: aj.replay(method("sgd"), aj.schedules.round_robin(5, 2), KEY, **options)


ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "no updates": (threads(num_updates=0), r"num_updates=0: give a positive number"),
    "no workers": (threads(num_workers=0), r"num_workers=0: give a positive number"),
    "negative workers": (threads(num_workers=-3), r"num_workers=-3: give a positive number"),
    "no chunk": (threads(chunk_size=0), r"chunk_size=0: give a positive number"),
    "no time": (threads(timeout=0.0), r"timeout=0\.0: give a positive number"),
    "not a time": (threads(timeout=float("nan")), r"timeout=nan: give a positive number"),
    "no group": (threads(group_size=0), r"group_size=0: an update consumes at least one"),
    "group": (threads(group_size=3, wait="next_version"), r"group_size=3 .* num_workers is 2.*smaller group"),
    "wait": (threads(wait="forever"), r"wait='forever': choose one of 'never', 'next_version'"),
    "bound": (threads(bound=0), r"bound=0: .* at least 1"),
    "bound and wait": (threads(bound=1, wait="next_version"), r"bound and wait='next_version' exclude each other"),
    "publication": (threads(publication="torn"), r"publication='torn': choose one of 'atomic', 'leaf'"),
    "service": (threads(service=aj.service.constant([1e-4])), r"constant.* has 1 entries.* worker 1: .*per worker"),
    "emulate, chunk": (emulated(chunk_size=-1), r"chunk_size=-1: give a positive number"),
    "emulate, width": (emulated(width=0), r"width=0: give a positive number"),
    "emulate, workers": (emulated(num_workers=0), r"num_workers=0: give a positive number"),
    "emulate, views": (emulated(num_views=0), r"num_views=0: give a positive number"),
    "emulate, missing worker": (emulated(num_workers=1), r"worker\[1, 0\] = 1: .* Pass num_workers=2 or more"),
    "replay, chunk": (replayed(chunk_size=0), r"chunk_size=0: give a positive number"),
    "replay, workers": (replayed(num_workers=0), r"num_workers=0: give a positive number"),
    "replay, missing worker": (replayed(num_workers=1), r"worker\[1, 0\] = 1: .* Pass num_workers=2 or more"),
    "half a worker": (threads(num_workers=2.5), r"num_workers=2\.5: give a whole number"),
    "JAX's number of workers": (threads(num_workers=jnp.int32(2)), r"num_workers=Array.* JAX's: .* int\(num_workers\)"),
    "JAX's group": (threads(group_size=jnp.int32(2)), r"group_size=Array.* JAX's: give a whole number"),
    "exact batches": (emulated(width=4, exact=True), r"width=4 and exact=True exclude each other: .* drop one"),
    "emulate, JAX's width": (emulated(width=jnp.int32(2)), r"width=Array.* JAX's: give a whole number"),
    "half a group": (threads(group_size=1.5), r"group_size=1\.5: give a whole number"),
    "words for a number": (threads(num_updates="5"), r"num_updates='5': give a whole number"),
    "words for a time": (threads(timeout="5"), r"timeout='5': give a positive number"),
    "seconds for a model": (threads(service=0.01), r"service=0\.01 is no Service: give a model, such as"),
    "no devices": (threads(devices=[]), r"devices=\[\]: give one device or more"),
    "a result for a state": (threads(state=aj.Result(1, 2, {})), r"state=Result.* is no State: give the state of a"),
    "emulate, no devices": (emulated(devices=[]), r"devices=\[\]: give one device or more, each once"),
    "emulate, a device twice": (emulated(devices=jax.devices()[:1] * 2), r"devices=.*: give one device or more, each"),
    "emulate, one device": (emulated(devices=jax.devices()[0]), r"devices=.*: give a list of devices"),
    "emulate, half a chunk": (emulated(chunk_size=2.5), r"chunk_size=2\.5: give a whole number"),
    "a number for a callback": (threads(callback=3), r"callback=3 is no function: give one"),
    "emulate, a number for a callback": (emulated(callback=3), r"callback=3 is no function: give one"),
    "replay, a number for a callback": (replayed(callback=3), r"callback=3 is no function: give one"),
    "a name for devices": (threads(devices="cpu"), r"devices='cpu': give a list of devices"),
    "names for devices": (threads(devices=["cpu"]), r"devices=\['cpu'\]: give a list of devices"),
    "one device": (threads(devices=jax.devices()[0]), r"devices=.*: give a list of devices"),
    "nothing for a time": (threads(timeout=None), r"timeout=None: give a number"),
    "nothing for a chunk": (threads(chunk_size=None), r"chunk_size=None: give a number"),
    "emulate, nothing for a chunk": (emulated(chunk_size=None), r"chunk_size=None: give a number"),
    "replay, words": (replayed(chunk_size="3"), r"chunk_size='3': give a whole number"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_names_the_argument_its_value_and_the_fix(case: str) -> None:
    call, message = ERRORS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize(
    "engine", [aj.emulate, aj.replay, aj.run_threads, aj.run_ray], ids=lambda engine: engine.__name__
)
def test_what_is_no_method_no_key_and_no_schedule_is_named(engine: Any) -> None:
    real = {"num_workers": 2, "num_updates": 5} if engine in (aj.run_threads, aj.run_ray) else {}
    schedule = () if real else (aj.schedules.round_robin(5, 2),)
    with pytest.raises(TypeError, match=r"method=<function a3c.* is no Method: give what a factory returns"):
        engine(aj.a3c, *schedule, KEY, **real)
    with pytest.raises(TypeError, match=r"key=3 is no random key: give jax\.random\.key\(3\)"):
        engine(method("sgd"), *schedule, 3, **real)
    with pytest.raises(ValueError, match=r"key is of the generator .*jax_default_prng_impl', 'rbg'"):
        engine(method("sgd"), *schedule, jax.random.key(0, impl="rbg"), **real)
    with pytest.raises(ValueError, match=r"key has the shape \(2,\): give one key"):
        engine(method("sgd"), *schedule, jax.random.split(KEY), **real)
    with pytest.raises(ValueError, match=r"key has the shape \(2, 2\): give one key"):
        engine(method("sgd"), *schedule, jax.random.key_data(jax.random.split(KEY)), **real)
    if schedule:
        with pytest.raises(TypeError, match=r"schedule=\(.*\) is no Schedule: give one of asyncjax\.schedules"):
            engine(method("sgd"), (0, *schedule), KEY)


@every_engine
def test_a_run_of_no_updates_ends_where_it_began(engine: Any) -> None:
    result = engine(method("sgd"), aj.schedules.round_robin(0, 2), KEY)
    assert_equal(result.shared, jax.jit(lambda key: method("sgd").init(key, 1))(KEY)[0])
    some = engine(method("sgd"), aj.schedules.round_robin(3, 2), KEY).metrics
    assert {name: (0, *x.shape[1:]) for name, x in some.items()} == {n: x.shape for n, x in result.metrics.items()}
    assert {name: x.dtype for name, x in some.items()} == {name: x.dtype for name, x in result.metrics.items()}


@every_engine
def test_the_later_part_of_a_run_alone_is_told_what_is_missing(engine: Any) -> None:
    state = state_after(6)
    _, rest = aj.run_threads(method("sgd"), KEY, num_workers=2, num_updates=9, state=state)
    with pytest.raises(ValueError, match=r"goes after what came before: schedules\.concatenate"):
        engine(method("sgd"), rest, KEY, state=state)


@every_engine
def test_a_schedule_that_no_run_could_follow_is_refused(engine: Any) -> None:
    plain = aj.schedules.round_robin(5, 2)
    with pytest.raises(ValueError, match=r"schedule\.read\[1, 0\] = 3: .* does not exist yet"):
        engine(method("sgd"), plain._replace(read=np.array([[0], [3], [0], [0], [0]])), KEY)
    with pytest.raises(ValueError, match=r"schedule\.worker\[0, 0\] = -1: there is no such worker"):
        engine(method("sgd"), plain._replace(worker=plain.worker - 1), KEY)
    with pytest.raises(ValueError, match=r"worker has shape \(5, 0\): an update consumes at least one message"):
        engine(method("sgd"), aj.Schedule(plain.worker[:, :0], plain.worker[:, :0]), KEY)
    with pytest.raises(ValueError, match="no prefix of the view"):
        engine(method("a3c"), plain._replace(read=(plain.read, plain.read)), KEY)
    with pytest.raises(ValueError, match="no prefix of the view"):
        engine(method("sgd"), plain._replace(read={"b": plain.read, "v": plain.read}), KEY)
    with pytest.raises(ValueError, match=r"schedule\.worker is object\[\], but wants Int\[T, G\]"):
        engine(method("sgd"), plain._replace(worker=None), KEY)
    with pytest.raises(ValueError, match=r"schedule\.read=None has no arrays"):
        engine(method("sgd"), plain._replace(read=None), KEY)


def test_a_schedule_without_an_axis_of_messages_is_refused_under_transformations_too() -> None:
    """Three schedules of five updates: not one of three updates in groups of five."""
    worker = np.zeros((3, 5), np.int32)

    def run(worker: Any) -> Any:
        return aj.emulate(method("sgd"), aj.Schedule(worker, worker), KEY, num_workers=1).shared

    for mapped in (jax.vmap(run), jax.jit(jax.vmap(run)), lambda worker: jax.jit(run)(worker[0])):
        with pytest.raises(ValueError, match=r"schedule\.worker is int32\[5\], but wants Int\[T, G\]; for one"):
            mapped(worker)


@every_engine
def test_a_state_of_another_method_is_refused(engine: Any) -> None:
    state, schedule = state_after(3), aj.schedules.round_robin(9, 2)
    other = aj.sgd(lambda w: w.sum(), jnp.ones(3), optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"state\.shared\.params.* is .*, but in this method .*: continue with the"):
        engine(other, schedule, KEY, state=state)
    with pytest.raises(ValueError, match=r"state\.shared\.params.* is .*, but in this method .*: continue with the"):
        aj.run_threads(other, KEY, num_workers=2, num_updates=9, state=state)


def test_schedules_that_do_not_go_together_are_not_joined() -> None:
    plain = aj.schedules.round_robin(5, 2)
    with pytest.raises(ValueError, match=r"schedules=\[\]: give one schedule or more"):
        aj.schedules.concatenate([])
    with pytest.raises(ValueError, match=r"schedules\[1\] has the fields .*: leave out time, begin and end of all"):
        aj.schedules.concatenate([plain, plain._replace(time=np.arange(5.0))])


def test_work_and_apply_must_not_report_one_metric_twice() -> None:
    plain = method("sgd")

    def apply(shared: Any, messages: Any, stale: aj.Stale) -> Any:
        return plain.apply(shared, messages, stale)[0], {"loss": jnp.float32(0), "other": jnp.float32(0)}

    twice, sentence = plain._replace(apply=apply), r"Both work and apply report the metrics \['loss'\]; rename"
    for engine in ENGINES.values():
        with pytest.raises(ValueError, match=sentence):
            engine(twice, aj.schedules.round_robin(5, 2), KEY)
    with pytest.raises(ValueError, match=sentence):
        aj.run_threads(twice, KEY, num_workers=2, num_updates=5)
    with pytest.raises(ValueError, match=sentence):
        jax.vmap(lambda key: aj.emulate(twice, aj.schedules.round_robin(5, 2), key))(jax.random.split(KEY, 2))


def mistaken(**functions: Any) -> aj.Method:
    """A method that adds up numbers, with these of its functions replaced."""
    right = {
        "init": lambda key, num_workers: (jnp.float32(0), jnp.zeros(num_workers)),
        "view": lambda shared: shared,
        "work": lambda view, local: (view, local, {}),
        "apply": lambda shared, messages, stale: (shared + messages.sum(), {}),
    }
    return aj.Method(**(right | functions))


MISTAKES: dict[str, tuple[aj.Method, str]] = {
    "three of init": (
        mistaken(init=lambda key, w: (1.0, 2.0, 3.0)),
        r"init returned no pair: return \(shared, local\)",
    ),
    "one local for all": (
        mistaken(init=lambda key, w: (0.0, jnp.zeros(()))),
        r"init made a leaf of shape \(\) .* axis 0",
    ),
    "too many workers": (mistaken(init=lambda key, w: (0.0, jnp.zeros(w + 1))), r"of shape \(3,\) .* of 2 workers"),
    "no metrics": (mistaken(work=lambda view, local: (view, local)), r"work returned 2 values: .*\(message, local, m"),
    "apply alone": (mistaken(apply=lambda s, m, stale: s), r"apply returned one .*: return \(shared, metrics\)"),
    "nested": (
        mistaken(work=lambda v, x: (v, x, {"a": {"b": v}})),
        "work reported the metrics .* name -> array, or {}",
    ),
    "None for metrics": (mistaken(apply=lambda s, m, stale: (s, None)), "apply reported the metrics None: give a dict"),
    "another dtype": (
        mistaken(work=lambda v, x: (v, x > 0, {})),
        r"work gave the private state back with it = bool\[\]",
    ),
    "a list for a tuple": (
        mistaken(init=lambda key, w: (0.0, (jnp.zeros(w),)), work=lambda v, x: (v, list(x), {})),
        r"work gave the private state back as .*\[\*\].*, but it was .*\(\*,\).*: keep its structure",
    ),
    "a key for a metric": (
        mistaken(work=lambda v, x: (v, x, {"key": jax.random.key(0)})),
        r"work reported the metric key, a random key: report its jax\.random\.key_data",
    ),
    "the group's axis": (
        mistaken(apply=lambda s, m, stale: (m, {})),
        r"apply .* shared .* it = float32\[1\], but it was f",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_a_method_names_the_function_and_what_it_is_to_return(case: str) -> None:
    run, sentence = MISTAKES[case]
    for engine in ENGINES.values():
        with pytest.raises((ValueError, TypeError), match=sentence):
            engine(run, aj.schedules.round_robin(3, 2), KEY)
    with pytest.raises((ValueError, TypeError), match=sentence):
        aj.run_threads(run, KEY, num_workers=2, num_updates=3)


# ---------------------------------------------------------------------------------------------------------------------
# States that do not fit


def state_after(num_updates: int, num_workers: int = 2) -> aj.State:
    chunks: list[aj.Chunk] = []
    aj.replay(method("sgd"), aj.schedules.round_robin(num_updates, num_workers), KEY, callback=chunks.append)
    assert chunks[-1].state is not None
    return chunks[-1].state


def test_threads_can_not_run_back_to_before_their_state() -> None:
    with pytest.raises(
        ValueError, match=r"num_updates has 5 updates, but the state is already at update 6: ask for more"
    ):
        aj.run_threads(method("sgd"), KEY, num_workers=2, num_updates=5, state=state_after(6))


@every_engine
def test_a_schedule_that_ends_before_its_state_is_refused(engine: Any) -> None:
    with pytest.raises(ValueError, match="schedule has 5 updates, but the state is already at update 6"):
        engine(method("sgd"), aj.schedules.round_robin(5, 2), KEY, state=state_after(6))


@pytest.mark.parametrize("engine", [*ENGINES.values(), aj.run_threads], ids=[*ENGINES, "threads"])
def test_a_state_of_other_workers_is_refused(engine: Any) -> None:
    options = {"num_updates": 9} if engine is aj.run_threads else {"schedule": aj.schedules.sequential(9, 3)}
    with pytest.raises(ValueError, match=r"state\.local is of 2 workers, but num_workers=3: .* as many workers"):
        engine(method("sgd"), key=KEY, num_workers=3, state=state_after(6), **options)


@every_engine
def test_a_state_continues_only_the_schedule_it_comes_from(engine: Any) -> None:
    """In turn, three workers have read versions 4 and 5 when update 6 is done; the state has no version 2."""
    state = state_after(6, num_workers=3)
    with pytest.raises(ValueError, match=r"reads version 2\b.* continue with the schedule that the state comes from"):
        engine(method("sgd"), aj.schedules.fixed_delay(9, 4, num_workers=3), KEY, state=state)


def test_threads_may_be_asked_for_nothing_more() -> None:
    state = state_after(6)
    result, schedule = aj.run_threads(method("sgd"), KEY, num_workers=2, num_updates=6, state=state)
    assert_equal(result[:2], (state.shared, state.local))
    assert schedule.num_updates == 0
