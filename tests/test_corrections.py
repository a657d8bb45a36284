"""Corrections: identities at staleness 0, hand-computed rules, and the closed forms of their papers."""

from __future__ import annotations

import functools
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

PARAMS = {"w": jnp.array([1.0, -2.0, 3.0]), "b": jnp.float32(0.5)}
GRADIENT = {"w": jnp.array([0.3, -0.7, 1e-9]), "b": jnp.float32(-2.5)}

# Every correction that leaves fresh messages alone.
IDENTITIES: dict[str, Callable[[], optax.GradientTransformationExtraArgs]] = {
    "staleness": corrections.scale_by_staleness,
    "polynomial": lambda: corrections.scale_by(corrections.polynomial(0.3)),
    "hinge": lambda: corrections.scale_by(corrections.hinge(slope=1.0, grace=1.0)),
    "delay-adaptive": lambda: corrections.scale_by(corrections.delay_adaptive(0.5, smoothness=2.0)),
    "pipemare": lambda: corrections.pipemare(4),
    "drop": lambda: corrections.drop_stale(2),
    "delay compensation": lambda: corrections.delay_compensation(0.5),
    "adaptive": corrections.adaptive_delay_compensation,
    "gap-aware": corrections.gap_aware,
}
NORMAL = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)  # XLA flushes the others to 0
UPDATES = {name: jax.jit(make().update) for name, make in IDENTITIES.items()}
everywhere = pytest.mark.parametrize("name", IDENTITIES)


def quadratic(optimizer: optax.GradientTransformation, **options: Any) -> aj.Method:
    """A random target per message, so that no message is like another."""

    def loss(params: Any, target: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum(jnp.square(params["w"] - target)) + 0.1 * jnp.square(params["b"])

    return aj.sgd(loss, PARAMS, optimizer=optimizer, sample=lambda key: jax.random.normal(key, (3,)), **options)


def once(correction: optax.GradientTransformationExtraArgs, gradient: Any, staleness: int, now: Any, then: Any) -> Any:
    """What comes out for the first message."""
    extra = {"staleness": jnp.int32(staleness), "stale_params": then}
    return correction.update(gradient, correction.init(now), now, **extra)[0]


# ---------------------------------------------------------------------------------------------------------------------
# Laws of all


@everywhere
@hypothesis.given(values=st.lists(NORMAL, min_size=16, max_size=16))
def test_fresh_messages_pass_bit_for_bit(name: str, values: list[float]) -> None:
    """Whatever the gradients, the parameters and the correction's state after messages that were stale."""
    update, numbers = UPDATES[name], np.array(values, np.float32).reshape(4, 4)
    first, gradient, params, moved = ({"w": jnp.array(row[:3]), "b": jnp.float32(row[3])} for row in numbers)
    state = IDENTITIES[name]().init(params)
    _, state = update(first, state, params, staleness=jnp.int32(5), stale_params=params)
    out, _ = update(gradient, state, moved, staleness=jnp.int32(0), stale_params=moved)
    assert_equal(out, gradient)


ENGINES = {"emulate": aj.emulate, "replay": aj.replay}
_RUNS: dict[tuple[str, str], aj.Method] = {}


def built(name: str, optimizer: str) -> aj.Method:
    """A method built once, so that its compiled programs are shared; name "" is without a correction."""
    if (name, optimizer) not in _RUNS:
        tx = {"sgd": lambda: optax.sgd(0.1), "adam": lambda: optax.adam(0.05)}[optimizer]()
        _RUNS[name, optimizer] = quadratic(tx, correction=IDENTITIES[name]() if name else None)
    return _RUNS[name, optimizer]


@everywhere
@pytest.mark.parametrize("engine", ENGINES)
@hypothesis.given(data=st.data(), group_size=st.sampled_from([1, 2]))
@hypothesis.settings(max_examples=4)
def test_a_fresh_run_is_the_uncorrected_one_bit_for_bit(
    name: str, engine: str, data: st.DataObject, group_size: int
) -> None:
    """Compiled, in every engine, under any order of workers that are all fresh."""
    worker = np.array([[data.draw(st.integers(0, 2)) for _ in range(group_size)] for _ in range(8)], np.int32)
    read = np.broadcast_to(np.arange(8, dtype=np.int32)[:, None], worker.shape)
    schedule = aj.Schedule(worker, read)
    plain, corrected = (ENGINES[engine](built(n, "adam"), schedule, KEY, num_workers=3) for n in ("", name))
    assert_equal(plain.shared.params, corrected.shared.params)
    assert_equal(plain.shared.opt_state, corrected.shared.opt_state)
    assert_equal(plain.metrics, corrected.metrics)


@pytest.mark.parametrize("factory", ["impala", "ppo"])
def test_trajectory_methods_take_corrections_as_gradient_methods_do(factory: str) -> None:
    """A fresh message: the uncorrected update, bit for bit; stale ones: what the rule says."""
    options = {"num_envs": 2, "unroll_length": 3, "optimizer": optax.sgd(0.1), "max_grad_norm": None}
    if factory == "ppo":
        options |= {"epochs": 1, "num_minibatches": 1, "normalize_advantages": False}
    make = getattr(aj, factory)
    plain, halved, dropping = (
        make("Catch-bsuite", **options, correction=c)
        for c in (None, corrections.scale_by_staleness(), corrections.drop_stale(2))
    )
    shared, local = jax.jit(plain.init, static_argnums=1)(KEY, 1)
    message, _, _ = jax.jit(plain.work)(shared.params, jax.tree.map(lambda x: x[0], local))

    @functools.cache
    def compiled(run: aj.Method) -> Any:
        return jax.jit(run.apply)

    def step(run: aj.Method, *staleness: int) -> Any:
        """Of one update from so many copies of the message."""
        begin = shared._replace(correction_state=run.init(KEY, 1)[0].correction_state)
        messages, views = (
            jax.tree.map(lambda x: jnp.stack([x] * len(staleness)), tree) for tree in (message, shared.params)
        )
        after, _ = compiled(run)(begin, messages, aj.Stale(views, jnp.array(staleness, jnp.int32)))
        return jax.tree.map(jnp.subtract, after.params, shared.params)

    whole = step(plain, 1)
    assert_equal(step(halved, 0), whole)
    assert_equal(step(dropping, 1), whole)
    assert_close(step(halved, 1), jax.tree.map(lambda x: x / 2, whole), 1e-6)
    assert_close(step(halved, 1, 3), jax.tree.map(lambda x: (x / 2 + x / 4) / 2, whole), 1e-5)
    assert all(not np.any(x) for x in jax.tree.leaves(step(dropping, 2)))


@everywhere
def test_stale_messages_do_not(name: str) -> None:
    """The identity at staleness 0 is not the identity everywhere."""
    schedule = aj.schedules.fixed_delay(12, 3)
    plain, corrected = (
        aj.replay(quadratic(optax.adam(0.05), **o), schedule, KEY) for o in ({}, {"correction": IDENTITIES[name]()})
    )
    assert not np.array_equal(plain.shared.params["w"], corrected.shared.params["w"])


@everywhere
def test_chained_in_front_of_the_optimizer_it_is_the_same_arithmetic(name: str) -> None:
    """Bit for bit where every operation is compiled alone, so that none is fused with another."""
    passed = quadratic(optax.adam(0.05), correction=IDENTITIES[name]())
    chained = quadratic(optax.chain(IDENTITIES[name](), optax.adam(0.05)))
    x, y = (run.init(KEY, 1)[0] for run in (passed, chained))
    for t, staleness in enumerate([0, 3, 1]):
        gradient, read = (jax.tree.map(lambda w, s=s + t: jnp.cos(s + w)[None], PARAMS) for s in (0.0, 1.0))
        stale = aj.Stale(read, jnp.array([staleness], jnp.int32))
        x, y = (run.apply(shared, gradient, stale)[0] for run, shared in ((passed, x), (chained, y)))
    assert_equal(x.params, y.params)
    assert_equal((x.correction_state, x.opt_state), y.opt_state)


@everywhere
def test_a_group_is_the_mean_of_messages_corrected_one_after_the_other(name: str) -> None:
    correction, rng = IDENTITIES[name](), np.random.default_rng(0)
    run = quadratic(optax.sgd(0.1), correction=correction)
    shared, _ = run.init(KEY, 2)
    shared = shared._replace(params=jax.tree.map(lambda x: x + 0.25, shared.params))  # all have moved since init
    gradients, reads = (
        jax.tree.map(lambda x: rng.normal(size=(3, *x.shape)).astype(x.dtype), PARAMS) for _ in range(2)
    )
    staleness = jnp.array([3, 0, 5], jnp.int32)
    result, _ = jax.jit(run.apply)(shared, gradients, aj.Stale(reads, staleness))
    state, mean = correction.init(PARAMS), jax.tree.map(jnp.zeros_like, PARAMS)
    for g in range(3):
        gradient, read = (jax.tree.map(lambda x, g=g: jnp.asarray(x[g]), tree) for tree in (gradients, reads))
        out, state = correction.update(gradient, state, shared.params, staleness=staleness[g], stale_params=read)
        mean = jax.tree.map(lambda m, x: m + x / 3, mean, out)
    assert_close(result.params, jax.tree.map(lambda w, m: w - 0.1 * m, shared.params, mean))
    assert_close(result.correction_state, state)


OPTIMIZERS: dict[str, Callable[[optax.GradientTransformation], optax.GradientTransformation]] = {
    "in front of Adam": lambda c: optax.chain(c, optax.adam(0.05)),
    "behind clipping, before RMSProp": lambda c: optax.chain(optax.clip(0.5), c, optax.rmsprop(0.05)),
    "behind momentum": lambda c: optax.chain(optax.trace(0.9), c, optax.scale(-0.01)),
    "two": lambda c: optax.chain(c, corrections.scale_by_staleness(0.5), optax.lion(0.01)),
}


@pytest.mark.parametrize("where", OPTIMIZERS)
def test_a_threaded_run_with_corrections_replays_bit_for_bit(where: str) -> None:
    run = quadratic(OPTIMIZERS[where](corrections.adaptive_delay_compensation(0.2)))
    result, schedule = aj.run_threads(run, KEY, num_workers=3, num_updates=25)
    again = aj.replay(run, schedule, KEY, num_workers=3)
    assert_equal(result, again)
    assert_close(aj.emulate(run, schedule, KEY, num_workers=3), again)


def test_numbers_may_be_traced_and_mapped() -> None:
    schedule, powers = aj.schedules.fixed_delay(20, 3), jnp.array([0.0, 0.5, 2.0])

    def final(power: Any) -> jax.Array:
        correction = optax.chain(
            corrections.scale_by(corrections.hinge(power, power)),
            corrections.scale_by_staleness(power),
            corrections.adaptive_delay_compensation(power, power / 4, power),
            corrections.drop_stale(power + 3),
        )
        run = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(0.1), correction=correction)
        return aj.emulate(run, schedule, KEY).shared.params

    np.testing.assert_allclose(jax.jit(jax.vmap(final))(powers), [final(float(p)) for p in powers], rtol=1e-5)


@everywhere
def test_a_chained_correction_refuses_groups(name: str) -> None:
    run = quadratic(optax.chain(IDENTITIES[name](), optax.adam(0.05)))
    with pytest.raises(ValueError, match=r"a group of 4: pass it as correction="):
        aj.emulate(run, aj.schedules.barrier(2, 4), KEY)


def test_a_private_optimizer_s_updates_are_scaled() -> None:
    """FedAsync: the server shrinks stale updates."""
    options = {"sample": None, "private_optimizer": True, "correction": corrections.scale_by_staleness()}
    run = aj.sgd(lambda w: 3.0 * w, 0.0, optimizer=optax.sgd(0.125), **options)
    result = aj.replay(run, aj.schedules.fixed_delay(3, 1), KEY)
    assert float(result.shared.params) == -0.375 * (1 + 0.5 + 0.5)


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


@pytest.mark.parametrize("delay", [0, 1, 5])
def test_gap_aware_divides_a_constant_gradient_by_tau_plus_1(delay: int) -> None:
    run = aj.sgd(lambda w: 3.0 * w, 0.0, optimizer=optax.sgd(0.125), correction=corrections.gap_aware(0.9))
    # Let the first steps be fresh and of full size; then the gap is `delay` of them.
    read = np.arange(12)
    read[11] -= delay
    schedule = aj.Schedule(np.zeros((12, 1), np.int32), read[:, None].astype(np.int32))
    result = aj.replay(run, schedule, KEY)
    np.testing.assert_allclose(result.shared.params, -0.375 * (11 + 1 / (delay + 1)), rtol=1e-6)


def test_ringmaster_without_a_bound_is_sgd_and_with_bound_1_takes_only_fresh() -> None:
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


@pytest.mark.parametrize("group_size", [1, 2])
def test_dana_zero_reads_what_dana_slim_has(group_size: int) -> None:
    service = aj.service.exponential()
    schedule = aj.schedules.from_service_times(service, 20, 4, KEY, group_size=group_size)
    runs = [dana(kind) for kind in ("zero", "slim")]
    zero, slim = (aj.replay(run, schedule, KEY) for run in runs)
    assert_close(runs[0].view(zero.shared), slim.shared.params, 1e-5)
    assert_close(zero.metrics, slim.metrics, 1e-5)


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
    with pytest.raises(ValueError, match="called without staleness=: use it in a method"):
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
