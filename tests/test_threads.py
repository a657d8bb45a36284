"""Laws of threads that carry several workers each: however they are dealt, it is the same engine."""

from __future__ import annotations

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import asyncjax as aj
from asyncjax.engines import packing
from asyncjax.method import Metrics
from asyncjax.threads import default_threads
from tests.laws import KEY, assert_equal, method
from tests.test_engines import DISCIPLINES

WORKERS = 5


def single_jobs(run: aj.Method) -> aj.Method:
    """The same method as an object of its own, for which nothing is compiled yet: `replay` then does one job a call."""
    return run._replace(work=lambda view, local: run.work(view, local))


@pytest.mark.parametrize(
    ("discipline", "num_threads"),
    [
        *((d, 2) for d in DISCIPLINES if d != "stragglers"),
        ("asynchronous", 1),
        ("backup workers", 1),
        ("backup workers", 3),
    ],
)
def test_a_replay_of_single_jobs_repeats_a_run_whose_threads_carried_several_workers(
    discipline: str, num_threads: int
) -> None:
    run, options = method("sgd"), DISCIPLINES[discipline]
    options = {**options, "group_size": WORKERS} if discipline == "barrier" else options
    result, schedule = aj.run_threads(run, KEY, num_workers=WORKERS, num_updates=40, num_threads=num_threads, **options)
    assert schedule.num_updates == 40
    assert aj.schedules.is_realizable(schedule)
    assert_equal(aj.replay(single_jobs(run), schedule, KEY, num_workers=WORKERS), result)


def test_the_bits_of_a_job_do_not_depend_on_what_was_done_in_the_same_call() -> None:
    run = method("a3c")
    result, schedule = aj.run_threads(run, KEY, num_workers=WORKERS, num_updates=30, num_threads=2)
    assert_equal(aj.replay(single_jobs(run), schedule, KEY, num_workers=WORKERS), result)


@pytest.mark.parametrize("num_threads", [2, WORKERS])
@pytest.mark.parametrize("name", ["sgd", "impala"])
def test_large_leaves_that_lie_apart_change_no_bit(
    name: str, num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = method(name)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "LARGE", 1)
        apart = single_jobs(run)
        result, schedule = aj.run_threads(apart, KEY, num_workers=WORKERS, num_updates=20, num_threads=num_threads)
    assert_equal(aj.replay(run, schedule, KEY, num_workers=WORKERS), result)


def test_a_packed_tree_has_one_vector_for_each_dtype_and_one_for_each_large_leaf() -> None:
    tree = {"a": jnp.arange(3), "b": jnp.ones((2, 2)), "c": jnp.ones((packing.LARGE // 4,)), "d": jnp.zeros(())}
    packer = packing.Packer.of(tree)
    packed = packer.pack(tree)
    assert {key: x.shape for key, x in packed.items()} == {"int32": (3,), "float32": (5,), "float32:2": tree["c"].shape}
    assert_equal(packer.unpack(packed), tree)


def test_a_barrier_s_groups_are_in_the_order_of_the_workers_however_they_arrive() -> None:
    """The last worker is the quickest; what is recorded is the barrier of the schedules."""
    service = aj.service.constant([0.03, 0.02, 0.01])
    options = {"group_size": 3, "wait": "next_version", "service": service}
    _, schedule = aj.run_threads(method("sgd"), KEY, num_workers=3, num_updates=4, **options)  # type: ignore[arg-type]
    assert_equal(schedule[:2], aj.schedules.barrier(4, 3)[:2])
    assert (np.diff(np.asarray(schedule.end), axis=1) < 0).any()


def test_one_thread_reads_once_for_all_its_workers_and_then_applies_their_messages_in_order() -> None:
    _, schedule = aj.run_threads(method("sgd"), KEY, num_workers=WORKERS, num_updates=23, num_threads=1)
    np.testing.assert_array_equal(schedule.worker[:, 0], np.arange(23) % WORKERS)
    np.testing.assert_array_equal(schedule.staleness()[:, 0], np.arange(23) % WORKERS)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_each_update_counts_though_several_are_one_call(num_threads: int) -> None:
    """The sum of all messages, each once, and the private states of all workers: exact in small integers."""

    def init(key: jax.Array, num_workers: int) -> tuple[jax.Array, jax.Array]:
        del key
        return jnp.int32(0), jnp.arange(num_workers, dtype=jnp.int32)

    def work(view: jax.Array, local: jax.Array) -> tuple[jax.Array, jax.Array, Metrics]:
        return local, local + 10, {"read": view}

    def apply(shared: jax.Array, messages: jax.Array, stale: aj.Stale) -> tuple[jax.Array, Metrics]:
        return shared + messages.sum(), {"staleness": stale.staleness, "seen": stale.view}

    counting = aj.Method(init, lambda shared: shared, work, apply)
    result, schedule = aj.run_threads(counting, KEY, num_workers=WORKERS, num_updates=57, num_threads=num_threads)
    worker, before = schedule.worker[:, 0], np.zeros(WORKERS, int)
    messages = []
    for w in worker:
        messages.append(w + 10 * before[w])
        before[w] += 1
    sums = np.cumsum([0, *messages])
    assert int(result.shared) == sums[-1]
    np.testing.assert_array_equal(result.local, np.arange(WORKERS) + 10 * before)
    np.testing.assert_array_equal(result.metrics["staleness"], schedule.staleness())
    np.testing.assert_array_equal(result.metrics["seen"][:, 0], sums[np.asarray(schedule.read)[:, 0]])
    np.testing.assert_array_equal(result.metrics["read"], sums[np.asarray(schedule.read)])


def test_workers_that_wait_for_each_other_have_a_thread_each() -> None:
    """Work that calls back to Python may block; here every job waits for one of every other worker."""
    meet = threading.Barrier(WORKERS, timeout=60.0)

    def work(view: jax.Array, local: jax.Array) -> tuple[jax.Array, jax.Array, Metrics]:
        place = jax.pure_callback(lambda _: np.int32(meet.wait()), jax.ShapeDtypeStruct((), jnp.int32), local)
        return jnp.float32(1), local, {"place": place, "view": view}

    meeting = aj.Method(
        lambda key, num_workers: (jnp.float32(0), jnp.arange(num_workers, dtype=jnp.int32)),
        lambda shared: shared,
        work,
        lambda shared, messages, stale: (shared + messages.sum(), {}),
    )
    result, _ = aj.run_threads(
        meeting, KEY, num_workers=WORKERS, num_updates=15, group_size=WORKERS, wait="next_version"
    )
    np.testing.assert_array_equal(np.sort(result.metrics["place"], axis=1), np.tile(np.arange(WORKERS), (15, 1)))


def test_threads_are_as_many_as_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    started = list[str]()
    start = threading.Thread.start

    def count(thread: threading.Thread) -> None:
        started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", count)
    aj.run_threads(method("sgd"), KEY, num_workers=64, num_updates=64)
    assert len([name for name in started if name.startswith("worker")]) == min(64, default_threads(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_threads": 0}, "num_threads"),
        ({"num_threads": 2, "service": aj.service.constant(0.001)}, "num_threads=2 with service=.*Leave num_threads"),
    ],
)
def test_a_number_of_threads_that_no_run_could_have_is_an_error(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        aj.run_threads(method("sgd"), KEY, num_workers=WORKERS, num_updates=10, **options)
