"""Laws of the engines: they all compute the definition, and threads can be replayed bit for bit."""

from __future__ import annotations

import threading
import weakref
from functools import cache
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from hypothesis import strategies as st

import asyncjax as aj
from asyncjax.engines.division import WHOLE
from asyncjax.engines.packing import all_finite
from asyncjax.engines.program import cached_program
from asyncjax.engines.program_cache import most_maps, program_cache
from asyncjax.engines.waves import Planner, stack_reads
from tests.laws import (
    KEY,
    METHODS,
    THOROUGH,
    assert_close,
    assert_equal,
    definition,
    leaves_of_all_kinds,
    method,
    noisy_quadratic,
    raw,
    schedules,
)

WORKERS = 4
DISCIPLINES: dict[str, dict[str, Any]] = {
    "asynchronous": {},
    "groups": {"group_size": 3},
    "barrier": {"group_size": WORKERS, "wait": "next_version"},
    "backup workers": {"group_size": 2, "wait": "next_version"},
    "bounded": {"bound": 2},
    "admission": {"group_size": 2, "eta": 1},
    "leaf by leaf": {"publication": "leaf"},
    "leaf by leaf, groups": {"publication": "leaf", "group_size": 2},
    "stragglers": {"service": aj.service.straggler(0.2, 10.0, aj.service.exponential(0.001))},
}

everywhere = pytest.mark.parametrize("name", METHODS)
thoroughly = pytest.mark.parametrize("name", THOROUGH)
BY_HYPOTHESIS = ["sgd", "value iteration"]
AS_A3C = ("n_step_q", "one_step_sarsa")  # send gradients, of which groups have the mean
EVERY_PAIR = [
    (n, d) for n in METHODS for d in DISCIPLINES
    if n in THOROUGH or d == "asynchronous" or (d == "backup workers" and n not in AS_A3C)
]  # fmt: skip


@pytest.mark.parametrize(("name", "discipline"), EVERY_PAIR)
def test_replay_repeats_a_threaded_run_bit_for_bit(name: str, discipline: str) -> None:
    run, options = method(name), DISCIPLINES[discipline]
    result, schedule = aj.run_threads(run, KEY, num_workers=WORKERS, num_updates=30, **options)
    assert schedule.worker.shape == (30, options.get("group_size", 1))
    assert aj.schedules.is_realizable(schedule) or "eta" in options
    assert schedule.staleness().max() <= options.get("eta", np.inf)
    again = aj.replay(run, schedule, KEY, num_workers=WORKERS)
    assert_equal(result, again)
    if discipline in ("asynchronous", "leaf by leaf"):  # the others compile more and are the definition's, below
        assert_close(aj.emulate(run, schedule, KEY, num_workers=WORKERS), again)


@pytest.mark.parametrize(("name", "group_size"), [*((n, 1) for n in METHODS), ("sgd", 2), ("a3c", 2)])
def test_exact_emulation_is_replay_bit_for_bit(name: str, group_size: int) -> None:
    """Parameters, optimizer and worker states and metrics; also where a run continues, and with torn reads."""
    run, torn = method(name), group_size == 2
    result, schedule = aj.run_threads(
        run, KEY, num_workers=WORKERS, num_updates=200, group_size=group_size, publication="leaf" if torn else "atomic"
    )
    chunks: list[aj.Chunk] = []
    exact = aj.emulate(run, schedule, KEY, num_workers=WORKERS, chunk_size=80, callback=chunks.append, exact=True)
    assert_equal(exact, result)
    rest = aj.emulate(run, schedule, KEY, num_workers=WORKERS, chunk_size=80, state=chunks[0].state, exact=True)
    assert_equal(rest[:2], result[:2])


def test_exact_emulation_inside_jit_is_replay_bit_for_bit() -> None:
    schedule = aj.schedules.from_service_times(aj.service.exponential(), 60, WORKERS, KEY)
    exact = jax.jit(lambda key: aj.emulate(method("a3c"), schedule, key, num_workers=WORKERS, exact=True))
    assert_equal(exact(KEY), aj.replay(method("a3c"), schedule, KEY, num_workers=WORKERS))


def check_engines(name: str, schedule: aj.Schedule, width: int, chunk_size: int) -> None:
    run, expected = method(name), definition(method(name), schedule, KEY, WORKERS)
    assert_close(aj.replay(run, schedule, KEY, num_workers=WORKERS, chunk_size=chunk_size), expected)
    assert_close(aj.emulate(run, schedule, KEY, num_workers=WORKERS, width=width, chunk_size=chunk_size), expected)


@pytest.mark.parametrize("name", BY_HYPOTHESIS)
@hypothesis.given(schedule=schedules(), width=st.sampled_from([1, 2, 3]), chunk_size=st.sampled_from([3, 64]))
@hypothesis.settings(max_examples=10)
def test_all_engines_compute_the_definition(name: str, schedule: aj.Schedule, width: int, chunk_size: int) -> None:
    check_engines(name, schedule, width, chunk_size)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in (*BY_HYPOTHESIS, *AS_A3C)])
def test_all_engines_compute_the_definition_in_groups(name: str) -> None:
    service = aj.service.exponential()
    schedule = aj.schedules.from_service_times(service, 8, WORKERS, KEY, group_size=2, wait="next_version")
    check_engines(name, schedule, width=3, chunk_size=64)


@pytest.mark.parametrize("name", [*METHODS, "rtdp", "random order"])
def test_no_random_number_is_drawn_twice(name: str) -> None:
    """By JAX's own analysis of what `init` and two jobs of a worker do with their keys."""
    check_key_reuse = pytest.importorskip("jax.experimental.key_reuse._core").check_key_reuse
    lake = aj.mdp.frozen_lake("4x4")
    others = {"rtdp": lambda: aj.rtdp(lake, 0.9), "random order": lambda: aj.value_iteration(lake, 0.9, order="random")}
    run = others[name]() if name in others else method(name)

    def begin(key: jax.Array) -> Any:
        return run.init(key, 2)

    def two_jobs(view: Any, local: Any) -> Any:
        return run.work(view, run.work(view, local)[1])

    check_key_reuse(begin, KEY)
    shared, local = jax.eval_shape(begin, KEY)
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), local)
    check_key_reuse(two_jobs, jax.eval_shape(run.view, shared), one)


def no_view_and_no_private_state() -> aj.Method:
    return aj.Method(
        lambda key, num_workers: (jnp.float32(0), None),
        lambda shared: (),
        lambda view, local: (jnp.float32(1), local, {}),
        lambda shared, messages, stale: (shared + messages.sum(), {}),
    )


@pytest.mark.parametrize("make", [no_view_and_no_private_state, leaves_of_all_kinds])
def test_what_a_method_passes_around_may_be_of_any_kind(make: Any) -> None:
    run = make()
    result, schedule = aj.run_threads(run, KEY, num_workers=3, num_updates=5, publication="leaf")
    for again in (aj.replay(run, schedule, KEY, num_workers=3), definition(run, schedule, KEY, 3)):
        assert_equal(raw(again), raw(result))
    for width in (1, 2):
        assert_equal(raw(aj.emulate(run, schedule, KEY, num_workers=3, chunk_size=2, width=width)), raw(result))
    nothing = jax.vmap(lambda key: aj.emulate(run, aj.schedules.cut(schedule, 0, 0), key, num_workers=3))(
        jax.random.split(KEY, 2)
    )
    assert {name: x.shape[:2] for name, x in nothing.metrics.items()} == dict.fromkeys(result.metrics, (2, 0))


@cache
def telling() -> aj.Method:
    """SGD that reports the views its messages were computed on."""
    run = method("sgd")

    def apply(shared: Any, messages: Any, stale: aj.Stale) -> tuple[Any, Any]:
        shared, metrics = run.apply(shared, messages, stale)
        return shared, {**metrics, **{f"stale_{name}": x for name, x in stale.view.items()}}

    return run._replace(apply=apply)


@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=6)
def test_torn_reads_take_each_part_from_its_version(data: st.DataObject) -> None:
    run, schedule = telling(), data.draw(schedules())
    other = np.array([[data.draw(st.integers(0, t)) for _ in row] for t, row in enumerate(schedule.worker)], np.int32)
    torn = schedule._replace(read={"w": schedule.read, "b": other})
    expected = definition(run, torn, KEY, 3)
    assert_close(aj.emulate(run, torn, KEY, num_workers=3), expected)
    assert_close(aj.replay(run, torn, KEY, num_workers=3), expected)
    np.testing.assert_array_equal(
        torn.staleness(), np.maximum(schedule.staleness(), schedule._replace(read=other).staleness())
    )


@pytest.mark.parametrize("empty", ["a", "c"])
@pytest.mark.parametrize("engine", [aj.emulate, aj.replay], ids=lambda engine: engine.__name__)
def test_torn_reads_may_name_a_part_of_the_view_that_is_empty(engine: Any, empty: str) -> None:
    """The pair in "b" reads afresh, so it doubles at each update, whatever the empty part before or after it reads."""

    def view(pair: Any) -> Any:
        return {"b": pair, empty: ()}

    doubling = aj.Method(
        init=lambda key, num_workers: ((jnp.float32(1), jnp.float32(2)), jnp.zeros(num_workers)),
        view=view,
        work=lambda view, local: (view["b"], local, {}),
        apply=lambda pair, messages, stale: (jax.tree.map(lambda x, m: x + m.sum(), pair, messages), {}),
    )
    now = np.arange(4, dtype=np.int32)[:, None]
    torn = aj.Schedule(0 * now, {"b": now, empty: 0 * now})
    assert_equal(engine(doubling, torn, KEY).shared, (jnp.float32(16), jnp.float32(32)))


def test_a_generator_that_draws_otherwise_under_vmap_runs_one_by_one() -> None:
    noisy = aj.sgd(lambda w, x: w * x, 1.0, optimizer=optax.sgd(0.1), sample=jax.random.normal)
    schedule = aj.schedules.round_robin(12, 4)
    with jax.default_prng_impl("rbg"):
        expected = aj.replay(noisy, schedule, jax.random.key(0))
        assert_close(aj.emulate(noisy, schedule, jax.random.key(0)), expected)
        assert_close(jax.jit(lambda key: aj.emulate(noisy, schedule, key))(jax.random.key(0)), expected)
        pairs = aj.schedules.from_service_times(aj.service.exponential(), 12, 4, KEY, group_size=2)

        def traced(worker: Any, read: Any) -> Any:
            return aj.emulate(noisy, aj.Schedule(worker, read), jax.random.key(0), num_workers=4)

        assert_close(jax.jit(traced)(pairs.worker, pairs.read), aj.replay(noisy, pairs, jax.random.key(0)))


def normalized(x: jax.Array) -> jax.Array:
    """A sum is added up in an order that the compiler chooses."""
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)


def test_states_continue_bit_for_bit_where_init_and_view_add_up() -> None:
    adding = aj.Method(
        init=lambda key, num_workers: (normalized(jax.random.normal(key, (8, 37))), jnp.zeros(num_workers)),
        view=normalized,
        work=lambda view, local: (0.1 * view, local, {}),
        apply=lambda shared, messages, stale: (0.9 * shared + messages.sum(0), {}),
    )
    schedule, chunks = aj.schedules.round_robin(20, 3), []
    for engine in (aj.emulate, aj.replay):
        whole = engine(adding, schedule, KEY, chunk_size=7, callback=chunks.append)
        assert_equal(engine(adding, schedule, KEY, state=chunks[0].state, chunk_size=7).shared, whole.shared)
        chunks.clear()


def test_states_may_keep_functions() -> None:
    """As flax's do, which are other functions each time that `init` is traced."""

    def init(key: jax.Array, num_workers: int) -> Any:
        params = {"w": jax.random.normal(key, (3,))}
        trained = TrainState.create(apply_fn=lambda params, x: x @ params["w"], params=params, tx=optax.sgd(0.1, 0.9))
        return trained, jax.random.split(key, num_workers)

    def work(view: Any, key: jax.Array) -> Any:
        key, x_key = jax.random.split(key)
        x = jax.random.normal(x_key, (4, 3))
        loss, grads = jax.value_and_grad(lambda params: jnp.mean(jnp.square(view.apply_fn(params, x))))(view.params)
        return grads, key, {"loss": loss}

    def apply(shared: Any, messages: Any, stale: aj.Stale) -> Any:
        return shared.apply_gradients(grads=jax.tree.map(lambda g: g.mean(0), messages)), {}

    run, chunks = aj.Method(init, lambda shared: shared, work, apply), []
    threaded, schedule = aj.run_threads(run, KEY, num_workers=3, num_updates=12)
    again = aj.replay(run, schedule, KEY, num_workers=3, chunk_size=5, callback=chunks.append)
    assert_equal(again.shared.params, threaded.shared.params)
    rest = aj.replay(run, schedule, KEY, num_workers=3, state=chunks[0].state)
    assert_equal(rest.shared.params, threaded.shared.params)
    assert_close(aj.emulate(run, schedule, KEY, num_workers=3).shared.params, threaded.shared.params)
    seeds = jax.vmap(lambda key: aj.emulate(run, schedule, key, num_workers=3).shared.params["w"])(KEY[None])
    assert_close(seeds[0], threaded.shared.params["w"])


@pytest.mark.parametrize("name", [*THOROUGH, "a3c"])
def test_a_run_under_vmap_is_the_runs_one_by_one(name: str) -> None:
    run, schedule = method(name), aj.schedules.round_robin(10, 3)
    keys = jax.random.split(KEY, 2)
    together = jax.jit(jax.vmap(lambda key: aj.emulate(run, schedule, key)))(keys)
    for i in range(2):
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), aj.emulate(run, schedule, keys[i]))


@pytest.mark.parametrize("options", [{}, {"width": 3}], ids=["event by event", "waves"])
def test_schedules_may_be_mapped_and_traced(options: dict[str, Any]) -> None:
    run = method("sgd")
    many = [aj.schedules.fixed_delay(12, delay, num_workers=3) for delay in (0, 2, 7)]
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *many)
    expected = [aj.emulate(run, schedule, KEY) for schedule in many]
    mapped = jax.vmap(lambda schedule: aj.emulate(run, schedule, KEY, **options))(stacked)
    only_reads = jax.vmap(lambda read: aj.emulate(run, many[0]._replace(read=read), KEY, **options))(stacked.read)
    traced = jax.jit(lambda schedule: aj.emulate(run, schedule, KEY, num_workers=3, num_views=8, **options))
    for i, one in enumerate(expected):
        for results in (mapped, only_reads):
            assert_close(jax.tree.map(lambda x, i=i: x[i], results), one)
        assert_close(traced(many[i]), one)


def test_numeric_hyperparameters_may_be_mapped() -> None:
    schedule, rates = aj.schedules.round_robin(10, 3), jnp.array([0.1, 0.3])

    def final(rate: Any) -> jax.Array:
        return aj.emulate(aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(rate)), schedule, KEY).shared.params

    np.testing.assert_allclose(jax.vmap(final)(rates), [final(0.1), final(0.3)], rtol=1e-6)


def test_a_traced_schedule_that_does_not_fit_is_an_error() -> None:
    run = method("sgd")
    with pytest.raises(ValueError, match="pass num_workers="):
        jax.jit(lambda schedule: aj.emulate(run, schedule, KEY).shared)(aj.schedules.round_robin(3, 2))
    tight = jax.jit(lambda schedule: aj.emulate(run, schedule, KEY, num_workers=1).shared)
    with pytest.raises(jax.errors.JaxRuntimeError, match="num_views=1: this schedule keeps 4 views"):
        jax.block_until_ready(tight(aj.schedules.fixed_delay(10, 3)))
    with pytest.raises(jax.errors.JaxRuntimeError, match="does not exist yet"):
        jax.block_until_ready(tight(aj.schedules.sequential(3)._replace(read=np.array([[0], [2], [0]]))))


@pytest.mark.parametrize("engine", [aj.emulate, aj.replay])
def test_a_second_run_traces_nothing(engine: Any) -> None:
    traces = []
    plain = noisy_quadratic()

    def work(view: Any, local: Any) -> Any:
        traces.append(1)
        return plain.work(view, local)

    run, schedule = plain._replace(work=work), aj.schedules.round_robin(10, 3)
    engine(run, schedule, KEY)
    count = len(traces)
    engine(run, schedule, jax.random.key(1))
    assert count == len(traces) > 0


def test_a_run_of_w_workers_keeps_w_views_whatever_the_staleness() -> None:
    slow = aj.service.exponential([1.0, 1.0, 1.0, 100.0])
    schedule = aj.schedules.from_service_times(slow, 400, 4, KEY)
    assert schedule.staleness().max() > 50

    def views_kept(s: aj.Schedule) -> int:
        return Planner(np.asarray(s.worker), stack_reads(s.read), s.num_workers, width=2).layout.num_views

    assert views_kept(schedule) == 4
    assert views_kept(aj.schedules.barrier(50, 8)) == 1
    assert views_kept(aj.schedules.round_robin(50, 6)) == 6


@pytest.mark.parametrize(
    ("engine", "name"), [*((aj.emulate, name) for name in [*THOROUGH, "a3c"]), *((aj.replay, name) for name in METHODS)]
)
def test_a_run_continues_bit_for_bit_from_any_chunk(engine: Any, name: str) -> None:
    run, schedule = method(name), aj.schedules.from_service_times(aj.service.exponential(1.0), 20, WORKERS, KEY)
    chunks: list[aj.Chunk] = []
    whole = engine(run, schedule, KEY, chunk_size=6, callback=chunks.append)
    assert [chunk.state.update for chunk in chunks if chunk.state] == [6, 12, 18, 20]
    assert_equal(whole.metrics, jax.tree.map(lambda *xs: np.concatenate(xs), *[c.metrics for c in chunks]))
    assert_equal(aj.schedules.concatenate([c.schedule for c in chunks]), schedule)
    for chunk in chunks:
        rest = engine(run, schedule, KEY, chunk_size=6, state=chunk.state)
        assert_equal(rest[:2], whole[:2])
        assert chunk.state is not None
        assert_equal(
            rest.metrics, {n: x[chunk.state.update :] for n, x in whole.metrics.items()} if rest.metrics else {}
        )


@everywhere
def test_the_whole_record_of_a_continued_threaded_run_replays(name: str) -> None:
    run, chunks = method(name), list[aj.Chunk]()
    aj.run_threads(run, KEY, num_workers=WORKERS, num_updates=12, chunk_size=5, callback=chunks.append)
    first, state = chunks[0].schedule, chunks[0].state
    assert state is not None
    result, rest = aj.run_threads(run, KEY, num_workers=WORKERS, num_updates=20, state=state)
    assert first.num_updates == state.update
    assert rest.begin is not None
    assert first.time is not None
    assert rest.begin.min() >= first.time[-1]
    whole = aj.schedules.concatenate([first, rest])
    assert_equal(aj.replay(run, whole, KEY, num_workers=WORKERS)[:2], result[:2])


@thoroughly
def test_relabelled_workers_with_their_states_change_nothing(name: str) -> None:
    run, schedule = method(name), aj.schedules.from_service_times(aj.service.exponential(1.0), 15, 3, KEY)
    new_label = np.array([2, 0, 1], np.int32)
    plain = aj.emulate(run, schedule, KEY, width=1)

    def init(key: jax.Array, num_workers: int) -> Any:
        shared, local = run.init(key, num_workers)
        return shared, jax.tree.map(lambda x: x[jnp.argsort(jnp.asarray(new_label))], local)

    renamed = schedule._replace(worker=new_label[schedule.worker])
    result = aj.emulate(run._replace(init=init), renamed, KEY, width=1)
    assert_equal(result.shared, plain.shared)
    assert_equal(result.metrics, plain.metrics)
    assert_equal(jax.tree.map(lambda x: x[new_label], result.local), plain.local)


def test_a_group_at_one_point_is_one_batch_step_for_sgd_and_not_for_momentum() -> None:
    """K gradients at one point with step eta / K, against one mean-gradient step with eta."""

    def final(optimizer: Any, schedule: aj.Schedule) -> jax.Array:
        run = aj.sgd(lambda w, x: 0.5 * (w - x) ** 2, 1.0, optimizer=optimizer, sample=jax.random.normal)
        return aj.emulate(run, schedule, KEY, num_workers=4).shared.params

    one_by_one = aj.Schedule(np.arange(4, dtype=np.int32)[:, None], np.zeros((4, 1), np.int32))
    at_once = aj.schedules.barrier(1, 4)
    np.testing.assert_allclose(final(optax.sgd(0.1), one_by_one), final(optax.sgd(0.4), at_once), rtol=1e-6)
    differs = abs(final(optax.sgd(0.1, 0.9), one_by_one) - final(optax.sgd(0.4, 0.9), at_once))
    assert float(differs) > 1e-3


@hypothesis.given(schedule=schedules())
def test_a_constant_gradient_makes_the_schedule_irrelevant(schedule: aj.Schedule) -> None:
    steps = schedule.num_updates
    assert float(aj.replay(EVEN, schedule, KEY, num_workers=3).shared.params) == 1.0 - 0.375 * steps


EVEN = aj.sgd(lambda w: 3.0 * w, 1.0, optimizer=optax.sgd(0.125))  # exact in binary


def test_equal_workers_are_a_ring_buffer_with_delay_n_minus_1() -> None:
    """Constant service, N workers, no randomness: w_{k+1} = w_k - eta w_{max(0, k - N + 1)}."""
    eta, num_workers, history = np.float32(0.25), 4, [np.float32(1.0)]
    for k in range(40):
        history.append(history[-1] - eta * history[max(0, k - num_workers + 1)])
    run = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(float(eta)))
    schedule = aj.schedules.from_service_times(aj.service.constant(2.0), 40, num_workers, KEY)
    assert float(aj.replay(run, schedule, KEY).shared.params) == history[-1]
    np.testing.assert_allclose(aj.emulate(run, schedule, KEY).shared.params, history[-1], rtol=1e-6)


@pytest.mark.parametrize("delay", range(4))
def test_fixed_delay_is_stable_just_below_the_threshold_and_not_above(delay: int) -> None:
    """On a quadratic of curvature 1 stable iff eta < 2 sin(pi / (2 (2 delay + 1)))."""
    threshold = 2 * np.sin(np.pi / (2 * (2 * delay + 1)))

    def size(eta: jax.Array) -> jax.Array:
        run = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(eta))
        schedule = aj.schedules.fixed_delay(3000, delay)
        return jnp.abs(aj.emulate(run, schedule, KEY).shared.params)

    below, above = jax.jit(jax.vmap(size))(threshold * jnp.array([0.99, 1.01]))
    assert below < 1e-3
    assert above > 100 or not np.isfinite(above)


def test_a_method_may_run_again_under_another_configuration() -> None:
    """With doubles after singles and the other way round, and with keys of another kind."""

    def init(key: jax.Array, num_workers: int) -> Any:
        return jnp.ones(3), jax.random.split(key, num_workers)

    def work(w: jax.Array, key: jax.Array) -> Any:
        return w + jax.random.normal(key, w.shape, w.dtype), jax.random.fold_in(key, 1), {}

    method = aj.Method(init, lambda w: w, work, lambda w, messages, stale: (w - 0.1 * messages.mean(0), {}))
    schedule = aj.schedules.round_robin(3, 2)
    for doubles in (False, True, False):
        with jax.enable_x64(doubles):
            of_replay = aj.replay(method, schedule, KEY).shared
            of_emulate = aj.emulate(method, schedule, KEY).shared
            of_threads = aj.run_threads(method, KEY, num_workers=2, num_updates=3)[0].shared
            assert of_replay.dtype == of_emulate.dtype == of_threads.dtype == (jnp.float64 if doubles else jnp.float32)
            np.testing.assert_allclose(of_replay, of_emulate, rtol=1e-6)
    with jax.default_prng_impl("rbg"):
        key = jax.random.key(0)
        assert_close(aj.emulate(method, schedule, key), aj.replay(method, schedule, key))


def test_numbers_of_a_small_type_do_not_overflow() -> None:
    small: Any = np.int8
    descent = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(0.01))
    service = aj.service.exponential()
    rule: dict[str, Any] = {"group_size": small(2), "eta": small(2)}
    assert aj.schedules.from_service_times(service, 150, small(3), KEY, **rule).staleness().max() <= 2
    done = aj.run_threads(descent, KEY, num_workers=small(2), num_updates=150, chunk_size=small(100), **rule)[1]
    assert done.num_updates == 150
    schedule = aj.schedules.round_robin(150, small(2))
    runs = [run(descent, schedule, KEY, chunk_size=small(100), num_workers=small(2)) for run in (aj.emulate, aj.replay)]
    assert_close(runs[0], runs[1])
    bound: Any = np.uint8(255)
    assert aj.faults.sawtooth(300, bound).staleness().max() == 255


@pytest.mark.parametrize("largest", [np.float32(np.finfo(np.float32).max), np.float16(np.finfo(np.float16).max)])
def test_the_largest_numbers_are_finite(largest: Any) -> None:
    assert all_finite({"a": jnp.full(9, largest), "b": jnp.arange(3)})
    for wrong in (np.inf, -np.inf, np.nan):
        assert not all_finite({"a": jnp.full(9, largest).at[4].set(wrong)})


def test_threads_leave_no_thread_behind() -> None:
    before = threading.active_count()
    aj.run_threads(method("sgd"), KEY, num_workers=3, num_updates=10)
    assert threading.active_count() == before


def test_the_programs_of_old_methods_are_let_go_though_they_are_in_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    class Compiled:
        def __init__(self, method: int) -> None:
            self.run = self.__init__

    maps = most_maps()
    monkeypatch.setattr("asyncjax.engines.program_cache.num_maps", lambda: maps)  # of this process they may be many
    compile_it = program_cache(Compiled)
    first, *_, last = (weakref.ref(compile_it(method)) for method in range(4))
    assert compile_it(0) is first() is not None, "the last used"
    maps += 1  # no room for another
    compile_it(4)
    assert [args for args, _ in compile_it.programs] == [(method,) for method in (3, 0, 4)]
    for other in range(5, 9):
        compile_it(other)
    assert first() is not None, "where others have the maps it helps nobody to forget all programs, one after the other"
    maps += 5_001
    compile_it(9)
    assert first() is last() is None
    assert [args for args, _ in compile_it.programs] == [(method,) for method in (6, 7, 8, 9)]


def test_emulated_programs_are_freed_with_the_engines_cache():
    method = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(0.1))
    aj.emulate(method, aj.schedules.round_robin(4, 2), jax.random.key(0), chunk_size=2, callback=lambda chunk: None)
    programs = len(cached_program.programs)
    program = weakref.ref(cached_program(method, 2, (0,), False, WHOLE))
    assert len(cached_program.programs) == programs  # the one that ran
    cached_program.forget()
    assert program() is None
