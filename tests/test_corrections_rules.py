"""Corrections: hand-computed rules, the closed forms of their papers, and bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import asyncjax as aj
from asyncjax import corrections
from tests.laws import KEY, assert_close, assert_equal
from tests.test_corrections import GRADIENT, PARAMS, quadratic


def once(correction: optax.GradientTransformationExtraArgs, gradient: Any, staleness: int, now: Any, then: Any) -> Any:
    """What comes out for the first message."""
    extra = {"staleness": jnp.int32(staleness), "stale_params": then}
    return correction.update(gradient, correction.init(now), now, **extra)[0]


# ---------------------------------------------------------------------------------------------------------------------
# Rules


@hypothesis.given(tau=st.integers(0, 50), power=st.floats(0, 4))
def test_factors_of_staleness(tau: int, power: float) -> None:
    stale = jnp.float32(tau)
    np.testing.assert_allclose(corrections.polynomial(power)(stale), (1.0 + tau) ** -power, rtol=1e-5)
    np.testing.assert_allclose(corrections.hinge(power, 3)(stale), 1 / (power * max(tau - 3, 0) + 1), rtol=1e-5)
    eta, smooth = 0.3, power + 0.01
    step = eta * corrections.delay_adaptive(eta, smooth)(stale)
    np.testing.assert_allclose(step, min(eta, 1 / (4 * smooth * tau)) if tau else eta, rtol=1e-5)


def test_constant_staleness_is_plain_sgd_with_a_smaller_step() -> None:
    def trajectory(**options: Any) -> aj.Result:
        run = aj.sgd(lambda w: 0.5 * w**2, 1.0, **options)
        schedule = aj.Schedule(np.zeros((20, 1), np.int32), np.maximum(np.arange(20) - 3, 0)[:, None])
        return aj.replay(run, schedule, KEY)

    def constant(tau: jax.Array) -> jax.Array:
        return corrections.polynomial(2.0)(jnp.maximum(tau, 3))  # the first three messages are younger

    corrected = trajectory(optimizer=optax.sgd(0.5), correction=corrections.scale_by(constant))
    assert_close(corrected, trajectory(optimizer=optax.sgd(0.5 / 16)), 1e-6)


def test_pipemare_fades_out() -> None:
    correction, factors = corrections.pipemare(4), []
    state = correction.init(PARAMS)
    for _ in range(6):
        out, state = correction.update(jnp.float32(1.0), state, staleness=jnp.int32(16))
        factors.append(out)
    np.testing.assert_allclose(factors, 16.0 ** -np.array([1, 0.75, 0.5, 0.25, 0, 0]), rtol=1e-5)


def test_delay_compensation_leaves_an_error_of_second_order() -> None:
    """For f = -log w the square of the gradient is the Hessian; with lambda = 1 error / distance^2 tends to 1."""
    distance = jnp.array([0.02, 0.01, 0.005])
    now = jnp.ones(3)
    stale_gradient = -1 / (now + distance)
    out = once(corrections.delay_compensation(1.0), stale_gradient, 1, now, now + distance)
    error = np.abs(np.asarray(out) + 1.0)
    np.testing.assert_allclose(error / np.square(distance), 1.0, rtol=0.05)
    assert np.all(np.abs(np.asarray(stale_gradient) + 1.0) > 0.95 * np.asarray(distance))


def test_adaptive_delay_compensation_normalises_the_square() -> None:
    out = once(
        corrections.adaptive_delay_compensation(2.0, 0.75, 0.0),
        GRADIENT,
        1,
        PARAMS,
        jax.tree.map(jnp.zeros_like, PARAMS),
    )
    expected = jax.tree.map(lambda g, w: g + 2.0 * g * g / np.sqrt(0.25 * g * g) * w, GRADIENT, PARAMS)
    assert_close(out, expected)


def test_what_never_had_a_gradient_has_no_compensation_even_without_eps() -> None:
    correction, zero, one = corrections.adaptive_delay_compensation(eps=0.0), jnp.zeros(2), jnp.ones(2)
    out = correction.update(zero, correction.init(one), one, staleness=jnp.int32(1), stale_params=zero)[0]
    np.testing.assert_array_equal(out, zero)


@pytest.mark.parametrize("delay", [0, 1, 5])
def test_gap_aware_divides_a_constant_gradient_by_tau_plus_1(delay: int) -> None:
    run = aj.sgd(lambda w: 3.0 * w, 0.0, optimizer=optax.sgd(0.125), correction=corrections.gap_aware(0.9))
    # Let the first steps be fresh and of full size; then the gap is `delay` of them.
    read = np.arange(12)
    read[11] -= delay
    schedule = aj.Schedule(np.zeros((12, 1), np.int32), read[:, None].astype(np.int32))
    result = aj.replay(run, schedule, KEY)
    np.testing.assert_allclose(result.shared.params, -0.375 * (11 + 1 / (delay + 1)), rtol=1e-6)


@st.composite
def traces(draw: st.DrawFn, length: int = 12, num_workers: int = 3) -> list[int]:
    """Which worker is ready next, and next."""
    return [draw(st.integers(0, num_workers - 1)) for _ in range(length)]


@hypothesis.given(order=traces(), bound=st.sampled_from([1, 3]))
def test_ringmaster_is_its_paper_s_algorithm(order: list[int], bound: int) -> None:
    """There what is dropped makes no version; here a version equal to the last. The gradients are the same."""
    w, versions_read, started_at, k = 1.0, [0, 0, 0], [1.0, 1.0, 1.0], 0  # Ringmaster ASGD, algorithm 4
    read, held = [], [0, 0, 0]
    for t, worker in enumerate(order):
        read.append(held[worker])
        if k - versions_read[worker] < bound:
            w, k = w - 0.25 * started_at[worker], k + 1
        versions_read[worker], started_at[worker], held[worker] = k, w, t + 1
    schedule = aj.Schedule(np.array(order, np.int32)[:, None], np.array(read, np.int32)[:, None])
    shared = aj.emulate(RINGMASTERS[bound], schedule, KEY, num_workers=3).shared
    assert int(shared.opt_state.count) == k
    np.testing.assert_allclose(shared.params, w, rtol=1e-6)


RINGMASTERS = {
    bound: aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=corrections.ringmaster(bound, optax.sgd(0.25)))
    for bound in (1, 3)
}


@pytest.mark.parametrize("bound", [1, 3])
def test_ringmaster_takes_versions_before_its_first_for_taken_ones(bound: int) -> None:
    """So that a new one drops what is as old as the bound."""
    correction: Any = corrections.ringmaster(bound)
    w = jnp.float32(0)
    for tau in range(6):
        update, _ = correction.update(jnp.float32(1), correction.init(w), w, staleness=tau)
        assert float(update) == (tau < bound)


@pytest.mark.parametrize(
    "factor", [corrections.polynomial(0.7), corrections.hinge(0.5, 2.0), corrections.delay_adaptive(0.5, 2.0)]
)
def test_a_factor_is_a_correction_too(factor: Any) -> None:
    gradient = {"w": jnp.array([1.0, -2.0], jnp.float32)}
    chains: Any = (factor, optax.chain(factor, optax.identity()), corrections.scale_by(factor))
    for chain in chains:
        for tau in (0, 1, 5):
            scaled, _ = chain.update(gradient, chain.init(gradient), gradient, staleness=jnp.int32(tau))
            np.testing.assert_allclose(scaled["w"], factor(jnp.float32(tau)) * gradient["w"], rtol=1e-6)


def test_the_bound_of_ringmaster_has_to_be_known() -> None:
    with pytest.raises(TypeError, match=r"bound=.* is an array of JAX's: give a whole number, such as int\(bound\)"):
        jax.vmap(lambda bound: jax.tree.leaves(corrections.ringmaster(bound).init(jnp.float32(0))))(jnp.arange(3))


def test_ringmaster_goes_on_where_a_bound_on_the_schedule_s_staleness_stops() -> None:
    """With a constant staleness of R, R of every R + 1 messages are taken, and a plain bound takes the first R."""
    schedule, optimizer = aj.schedules.fixed_delay(65, 4), optax.sgd(0.1)
    taken, stopped = (
        aj.replay(aj.sgd(lambda w: 3.0 * w, 0.0, optimizer=make(4, optimizer)), schedule, KEY).shared.params
        for make in (corrections.ringmaster, corrections.drop_stale)
    )
    np.testing.assert_allclose([taken, stopped], [-0.3 * 52, -0.3 * 4], rtol=1e-5)


def test_dropping_without_a_bound_is_sgd_and_with_bound_1_takes_only_fresh() -> None:
    schedule = aj.schedules.from_service_times(aj.service.exponential(), 30, 3, KEY)
    fresh = int(np.sum(schedule.staleness() == 0))
    plain, all_taken, only_fresh = (
        aj.replay(quadratic(optimizer), schedule, KEY).shared
        for optimizer in (
            optax.adam(0.05),
            corrections.drop_stale(jnp.inf, optax.adam(0.05)),
            corrections.drop_stale(1, optax.adam(0.05)),
        )
    )
    assert_close(all_taken, plain, 1e-6)
    assert_equal(once(corrections.ringmaster(jnp.inf), GRADIENT, 99, PARAMS, PARAMS), GRADIENT)
    assert 0 < fresh < 30
    assert only_fresh.opt_state[0].count == fresh


def test_effective_sample_size_scales() -> None:
    correction = corrections.scale_by_effective_sample_size(0.5)
    fresh, _ = correction.update(GRADIENT, correction.init(PARAMS), effective_sample_size=jnp.float32(1.0))
    halved, _ = correction.update(GRADIENT, correction.init(PARAMS), effective_sample_size=jnp.float32(0.25))
    assert_equal(fresh, GRADIENT)
    assert_equal(halved, jax.tree.map(lambda g: 0.5 * g, GRADIENT))


def momentum_state(optimizer: optax.GradientTransformation, schedule: aj.Schedule) -> Any:
    run = aj.sgd(lambda w: 0.5 * jnp.sum(jnp.array([1.0, 0.8]) * w**2), jnp.array([1.0, 2.0]), optimizer=optimizer)
    return aj.emulate(run, schedule, KEY).shared


def test_closed_loop_momentum_is_momentum_for_fresh_gradients() -> None:
    schedule = aj.schedules.sequential(30)
    closed = momentum_state(corrections.closed_loop_momentum(0.05, 0.6, gain=0.1, max_staleness=2), schedule)
    np.testing.assert_allclose(closed.opt_state.momentum, 0.6, atol=1e-3)
    np.testing.assert_allclose(closed.params, momentum_state(optax.sgd(0.05, 0.6), schedule).params, rtol=1e-2)


def test_closed_loop_momentum_holds_the_total_against_what_asynchrony_adds() -> None:
    schedule = aj.schedules.fixed_delay(200, 4)
    open_loop, closed = (
        momentum_state(corrections.closed_loop_momentum(0.02, 0.3, gain, max_staleness=4), schedule).opt_state
        for gain in (0.0, 0.1)
    )
    assert open_loop.measured > 0.35
    np.testing.assert_allclose(closed.measured, 0.3, atol=0.01)
    assert closed.momentum < 0.25


# ---------------------------------------------------------------------------------------------------------------------
# Look-aheads


@pytest.mark.parametrize(("jump", "measured"), [(0.5, 0.5), (100.0, 1.0), (-100.0, -1.0)])
def test_closed_loop_momentum_clips_what_it_measures(jump: float, measured: float) -> None:
    """Without gradients the ratio is that of two steps: here of `jump` and 1."""
    correction = aj.corrections.closed_loop_momentum(0.1, momentum=0.6, gain=0.25)
    state: Any = correction.init(jnp.float32(0.0))
    for w in map(jnp.float32, (0.0, 1.0, 1.0 + jump)):
        _, state = correction.update(jnp.float32(0.0), state, w, staleness=0, stale_params=w)
    np.testing.assert_allclose(state.measured, measured, rtol=1e-6)
    np.testing.assert_allclose(state.momentum, 0.6 + 0.25 * (0.6 - measured), rtol=1e-6)


def test_weight_prediction_is_exact_for_a_constant_gradient() -> None:
    base = aj.sgd(lambda w: 3.0 * w, 0.0, optimizer=optax.sgd(0.125))
    run = corrections.predict_weights(base, horizon=4)
    shared = aj.replay(run, aj.schedules.fixed_delay(10, 4), KEY).shared
    assert float(run.view(shared)) == -0.375 * 14


def test_predicting_nothing_changes_nothing() -> None:
    base, schedule = quadratic(optax.adam(0.05)), aj.schedules.round_robin(12, 3)
    x, y = (aj.replay(run, schedule, KEY) for run in (base, corrections.predict_weights(base, 0)))
    assert_equal(x.shared, y.shared.learner)
    assert_equal(x.metrics, y.metrics)


def dana(kind: str, decay: float = 0.9) -> aj.Method:
    if kind == "slim":
        return quadratic(corrections.dana_slim(0.05, decay), private_optimizer=True)
    return corrections.dana_zero(quadratic(optax.sgd(0.05, decay), private_optimizer=True), decay)


def test_dana_zero_of_one_worker_is_nesterov() -> None:
    run, schedule = dana("zero"), aj.schedules.sequential(25)
    nesterov = aj.emulate(quadratic(optax.sgd(0.05, 0.9, nesterov=True)), schedule, KEY).shared
    assert_close(run.view(aj.emulate(run, schedule, KEY).shared), nesterov.params, 1e-5)


def test_dana_zero_keeps_its_types_where_float64_numbers_are_swept() -> None:
    def types(eta: jax.Array) -> None:
        single, momentum = jnp.ones(3, jnp.float32), optax.sgd(eta, 0.9)
        run = aj.sgd(lambda w: jnp.sum(w * w), single, optimizer=momentum, private_optimizer=True)
        run = corrections.dana_zero(run, eta)
        shared, local = jax.eval_shape(lambda key: run.init(key, 1), KEY)
        worker = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), local)
        _, after, _ = jax.eval_shape(lambda s, w: run.work(run.view(s), w), shared, worker)
        assert after == worker

    with jax.enable_x64(True):
        jax.eval_shape(types, jnp.array(0.1))


@pytest.mark.parametrize("group_size", [1, 2])
def test_dana_zero_reads_what_dana_slim_has(group_size: int) -> None:
    service = aj.service.exponential()
    schedule = aj.schedules.from_service_times(service, 20, 4, KEY, group_size=group_size)
    runs = [dana(kind) for kind in ("zero", "slim")]
    zero, slim = (aj.replay(run, schedule, KEY) for run in runs)
    assert_close(runs[0].view(zero.shared), slim.shared.params, 1e-5)
    assert_close(zero.metrics, slim.metrics, 1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(
    ("make", "expected"),
    [(corrections.gap_aware, 1 / 8), (corrections.adaptive_delay_compensation, 1 + 2.0 * 7 / 8)],
)
def test_running_means_are_right_in_half_precision(make: Callable[[], Any], expected: float, dtype: str) -> None:
    """Constant gradients of 1 and steps of 1/8, which all dtypes have exactly, at a staleness of 7."""
    correction, one = make(), jnp.ones((), dtype)
    update, state = jax.jit(correction.update), correction.init(jnp.zeros((), dtype))
    for t in range(200):
        now, then = (jnp.asarray(max(t - tau, 0) / 8, dtype) for tau in (0, 7))
        out, state = update(one, state, now, staleness=jnp.int32(7), stale_params=then)
    np.testing.assert_allclose(float(out), expected, rtol=1e-3)


@pytest.mark.parametrize("size", [1e-4, 300.0, 2000.0])
@pytest.mark.parametrize("make", [corrections.delay_compensation, corrections.adaptive_delay_compensation])
def test_squares_leave_the_range_of_half_precision(make: Callable[[], Any], size: float) -> None:
    def corrected(dtype: str) -> float:
        correction, now, then = make(), jnp.ones((), dtype), jnp.asarray(1 - 2.0**-10, dtype)
        message, stale = jnp.asarray(size, "float16").astype(dtype), {"staleness": jnp.int32(1), "stale_params": then}
        return float(correction.update(message, correction.init(now), now, **stale)[0])

    np.testing.assert_allclose(corrected("float16"), corrected("float32"), rtol=1e-3)


# ---------------------------------------------------------------------------------------------------------------------
# Parts of the parameters


def test_a_correction_of_some_leaves_is_the_correction_of_these_alone() -> None:
    """`optax.masked` and `optax.partition` leave the others out of the message; what workers read has them all."""
    labels, stale = {"w": "corrected", "b": "not"}, {"staleness": jnp.int32(2)}
    now, then = PARAMS, jax.tree.map(lambda w: w + 0.5, PARAMS)
    correction = corrections.delay_compensation(0.3)
    alone = once(correction, {"w": GRADIENT["w"]}, 2, {"w": now["w"]}, {"w": then["w"]})
    for some in (
        optax.masked(correction, {"w": True, "b": False}),
        optax.partition({"corrected": correction, "not": optax.identity()}, labels),
    ):
        out, _ = some.update(GRADIENT, some.init(now), now, **stale, stale_params=then)
        assert_equal(out, {"w": alone["w"], "b": GRADIENT["b"]})


def test_a_correction_of_no_leaves_changes_nothing() -> None:
    none = optax.masked(corrections.gap_aware(), jax.tree.map(lambda w: False, PARAMS))
    out, _ = none.update(GRADIENT, none.init(PARAMS), PARAMS, staleness=jnp.int32(2), stale_params=PARAMS)
    assert_equal(out, GRADIENT)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: corrections.scale_by_staleness(-1.0), r"power=-1.0: use a number of at least 0"),
        (lambda: corrections.scale_by_staleness(float("nan")), r"power=nan"),
        (lambda: corrections.hinge(-2.0), r"slope=-2.0"),
        (lambda: corrections.delay_adaptive(0.1, -1.0), r"smoothness=-1.0"),
        (lambda: corrections.pipemare(0), r"num_messages=0: use a number of at least 1"),
        (lambda: corrections.drop_stale(0), r"bound=0: use a number of at least 1"),
        (lambda: corrections.ringmaster(0), r"bound=0: use a number of at least 1"),
        (lambda: corrections.ringmaster(2.5), r"bound=2.5: it counts messages, so use a whole number, or infinity"),
        (lambda: corrections.gap_aware(1.0), r"decay=1.0: a decay lies in \[0, 1\)"),
        (lambda: corrections.delay_compensation(-0.1), r"strength=-0.1"),
        (lambda: corrections.closed_loop_momentum(0.1, 1.5), r"momentum=1.5"),
        (lambda: corrections.predict_weights(dana("slim"), -1), r"horizon=-1"),
    ],
)
def test_bad_numbers(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


def test_missing_arguments() -> None:
    correction, state = corrections.delay_compensation(), optax.EmptyState()
    with pytest.raises(ValueError, match="needs stale_params, and none are given: use it where messages are gradients"):
        correction.update(GRADIENT, state, PARAMS, staleness=jnp.int32(1))
    with pytest.raises(
        ValueError, match="called without staleness=, which a private optimizer does not know: put it into a shared one"
    ):
        optax.chain(corrections.scale_by_staleness(), optax.sgd(0.1)).update(GRADIENT, (state, state))
    with pytest.raises(ValueError, match="needs effective_sample_size, and none is given"):
        corrections.scale_by_effective_sample_size().update(GRADIENT, state)


def test_look_aheads_want_parameters_and_updates() -> None:
    plain = quadratic(optax.sgd(0.1, 0.9))
    with pytest.raises(TypeError, match=r"private_optimizer=True and optimizer=optax\.sgd"):
        aj.emulate(corrections.dana_zero(plain), aj.schedules.sequential(2), KEY)
    bare = plain._replace(init=lambda key, num_workers: (jnp.zeros(2), jnp.zeros((num_workers, 1))))
    with pytest.raises(TypeError, match="has no field params"):
        aj.emulate(corrections.predict_weights(bare, 1), aj.schedules.sequential(2), KEY)
