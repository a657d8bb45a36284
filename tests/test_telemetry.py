"""Telemetry: quantities with a known answer, and a watch that changes no bit."""

from __future__ import annotations

import functools
from math import erf
from typing import Any, NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import asyncjax as aj
from asyncjax import telemetry
from asyncjax.distributions import Categorical
from asyncjax.method import Halves
from asyncjax.methods.target_network import with_target_network
from tests.laws import KEY, assert_close, assert_equal, method, schedules
from tests.probes import corridor


class Learner(NamedTuple):
    """A view in parts."""

    params: jax.Array
    target: jax.Array


SHIFT = 0.7
SAMPLES = jax.random.normal(KEY, (400_000,))
PLAIN = ["staleness", "parameter_gap", "step_norm", "message_norm", "effective_learning_rate"]
LOG_RATIO = SHIFT * SAMPLES - SHIFT**2 / 2  # unit Gaussians: mu at 0, pi at SHIFT


def test_ratios_of_shifted_gaussians() -> None:
    found = telemetry.ratio_statistics(LOG_RATIO)
    np.testing.assert_allclose(found["ratio_mean"], 1.0, rtol=0.01)
    np.testing.assert_allclose(found["ratio_truncated"], 1 - erf(SHIFT / 2 / np.sqrt(2)), rtol=0.01)
    np.testing.assert_allclose(found["effective_sample_size"], np.exp(-(SHIFT**2)), rtol=0.02)
    np.testing.assert_allclose(found["ratio_clipped"], np.mean(LOG_RATIO > 0), rtol=1e-5)


def test_samples_that_the_policy_forbids_weigh_nothing() -> None:
    log_ratio = jnp.array([-np.inf, 0.0, 0.0, -np.inf])
    assert float(telemetry.ratio_statistics(log_ratio)["effective_sample_size"]) == 0.5
    assert float(telemetry.effective_sample_size(log_ratio[::3])) == 0
    assert float(telemetry.effective_sample_size(log_ratio[:0])) == 0


def test_kl_of_shifted_gaussians() -> None:
    found = telemetry.kl_estimates(LOG_RATIO)
    kl = SHIFT**2 / 2
    np.testing.assert_allclose(found["k1"].mean(), kl, rtol=0.02)
    np.testing.assert_allclose(found["k3"].mean(), kl, rtol=0.02)
    np.testing.assert_allclose(found["k2"].mean(), (SHIFT**2 + SHIFT**4 / 4) / 2, rtol=0.02)
    assert float(found["k3"].min()) >= 0


def test_truncated_ratios_of_a_table_are_the_overlap() -> None:
    """E_mu min(rho_bar, pi / mu) = sum min(rho_bar mu, pi), each action as often as mu has it."""
    mu, pi = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    log_ratio = jnp.asarray(np.repeat(np.log(pi / mu), [5, 3, 2]), jnp.float32)
    for limit in (0.5, 1.0, 2.0):
        found = telemetry.ratio_statistics(log_ratio, limit)["ratio_truncated"]
        np.testing.assert_allclose(found, np.minimum(limit * mu, pi).sum(), rtol=1e-6)
    np.testing.assert_allclose(telemetry.effective_sample_size(log_ratio), 1 / np.sum(pi**2 / mu), rtol=1e-6)


def test_samples_that_do_not_count_do_not() -> None:
    log_ratio, counts = jnp.array([0.3, -0.2, 50.0, 0.1]), jnp.array([True, True, False, True])
    some, all_of_them = telemetry.ratio_statistics(log_ratio, where=counts), log_ratio[jnp.array([0, 1, 3])]
    for name, value in telemetry.ratio_statistics(all_of_them).items():
        np.testing.assert_allclose(some[name], value, rtol=1e-6)
    for value in telemetry.ratio_statistics(log_ratio, where=jnp.zeros(4, bool)).values():
        assert value == 0


@hypothesis.given(st.lists(st.floats(-60, 60), min_size=4, max_size=4))
def test_effective_sample_size_lies_between_one_sample_and_all(values: list[float]) -> None:
    size = float(telemetry.effective_sample_size(jnp.array(values)))
    assert 0.2499 <= size <= 1.0001


@hypothesis.given(mu=st.floats(-0.9, 0.9), step=st.floats(0.05, 0.9))
def test_implicit_momentum_of_heavy_ball_is_its_momentum(mu: float, step: float) -> None:
    w = [1.0, 0.8]
    for _ in range(8):
        w.append(w[-1] + mu * (w[-1] - w[-2]) - step * w[-1])
    hypothesis.assume(np.abs(np.diff(w, 2)).max() > 1e-3)
    np.testing.assert_allclose(telemetry.implicit_momentum(np.array(w), np.array(w)), (mu, step), atol=1e-6)


def test_of_a_look_ahead_the_step_is_that_of_the_parameters() -> None:
    """A gradient of 3, and steps of .1: the view also moves by what is predicted."""
    names, schedule = ["step_norm", "message_norm", "effective_learning_rate"], aj.schedules.sequential(3)
    ahead = aj.corrections.predict_weights(aj.sgd(lambda w: 3.0 * w, 1.0, optimizer=optax.sgd(0.1)), 3.0)
    metrics = aj.emulate(telemetry.watch(ahead, ["step_norm", "effective_learning_rate"]), schedule, KEY).metrics
    np.testing.assert_allclose(metrics["step_norm"], 0.3, rtol=1e-5)
    np.testing.assert_allclose(metrics["effective_learning_rate"], 0.1, rtol=1e-5)
    private = aj.sgd(lambda w: 3.0 * w, 1.0, optimizer=optax.sgd(0.1, 0.9), private_optimizer=True)
    metrics = aj.emulate(telemetry.watch(aj.corrections.dana_zero(private, 0.9), names), schedule, KEY).metrics
    np.testing.assert_allclose(metrics["step_norm"], [0.3, 0.57, 0.813], rtol=1e-5)
    np.testing.assert_allclose(metrics["message_norm"].ravel(), [0.3, 0.57, 0.813], rtol=1e-5)
    np.testing.assert_allclose(metrics["effective_learning_rate"], 1.0, rtol=1e-5)


@pytest.mark.parametrize("kind", [dict, Learner])
def test_of_a_view_with_a_part_named_params_that_part_is_measured(kind: Any) -> None:
    moving = aj.Method(
        init=lambda key, num_workers: ((jnp.float32(0), jnp.float32(0)), jnp.zeros(num_workers)),
        view=lambda shared: kind(params=shared[0], target=shared[1]),
        work=lambda view, local: (jnp.float32(0.25), local, {}),
        apply=lambda shared, messages, stale: ((shared[0] + messages.sum(), shared[1] + 10), {}),
    )
    watched = telemetry.watch(moving, ["parameter_gap", "step_norm"])
    metrics = aj.emulate(watched, aj.schedules.fixed_delay(4, 2), KEY).metrics
    np.testing.assert_allclose(metrics["parameter_gap"].ravel(), [0, 0.25, 0.5, 0.5])
    np.testing.assert_allclose(metrics["step_norm"], 0.25)


def test_a_policy_beside_a_target_network_can_be_watched() -> None:
    def learner(target: Any, frames: Any) -> aj.Method:
        del target, frames
        return aj.a3c("Catch-bsuite", num_envs=2, unroll_length=3)

    policy: Any = learner((), ()).policy
    both = with_target_network(learner, 20, 6, policy)
    schedule = aj.schedules.fixed_delay(6, 2, 3)
    for run in (learner((), ()), both):
        assert "policy_kl" in telemetry.available(run)
    found, expected = (
        aj.emulate(telemetry.watch(run, ["policy_kl"]), schedule, KEY).metrics for run in (both, learner((), ()))
    )
    assert_close(found, expected)


def test_the_gap_of_a_constant_gradient_is_tau_steps() -> None:
    run = telemetry.watch(aj.sgd(lambda w: 3.0 * w, 1.0, optimizer=optax.sgd(0.125)), PLAIN)
    schedule = aj.schedules.from_service_times(aj.service.exponential(), 20, 4, KEY)
    metrics = aj.emulate(run, schedule, KEY).metrics
    np.testing.assert_array_equal(metrics["staleness"], schedule.staleness())
    np.testing.assert_allclose(metrics["parameter_gap"], 0.375 * schedule.staleness(), rtol=1e-5)
    np.testing.assert_array_equal(metrics["step_norm"], np.full(20, 0.375, np.float32))
    np.testing.assert_allclose(metrics["effective_learning_rate"], 0.125, rtol=1e-6)
    np.testing.assert_array_equal(metrics["message_norm"], np.full((20, 1), 3.0, np.float32))


ENGINES = {"emulate": aj.emulate, "replay": aj.replay}
ON_PROBE = {name: getattr(aj, name)(corridor(2, 5), num_envs=2, unroll_length=3) for name in ("a3c", "impala")}
ON_PROBE["n_step_q"] = aj.n_step_q(corridor(2, 5), num_envs=2, unroll_length=3, target_period=20, epsilon_frames=50)


def bare(name: str) -> aj.Method:
    """The method as it is; learners on a probe, which compiles in half the time of a game."""
    return ON_PROBE[name] if name in ON_PROBE else method(name)


@functools.cache
def watched(name: str) -> aj.Method:
    """All measures of the method, built once, so that its compiled programs are shared."""
    return telemetry.watch(bare(name), telemetry.available(bare(name)))


@pytest.mark.parametrize("engine", ENGINES)
@hypothesis.given(schedule=schedules())
@hypothesis.settings(max_examples=5)
def test_watching_changes_no_bit_under_any_schedule(engine: str, schedule: aj.Schedule) -> None:
    """With corrections, whose state a watch that fused with them would change first."""
    name = "sgd, corrected"
    plain, seen = (ENGINES[engine](run, schedule, KEY, num_workers=3) for run in (bare(name), watched(name)))
    assert_equal(plain.shared, seen.shared)
    assert_equal(plain.local, seen.local)
    assert_equal(plain.metrics, {key: seen.metrics[key] for key in plain.metrics})


@pytest.mark.parametrize(
    ("name", "engine"),
    [
        ("a3c", "emulate"),
        ("impala", "replay"),
        ("value iteration", "replay"),
        ("sgd, private optimizer", "emulate"),
    ],
)
def test_watching_changes_no_bit_of_any_method(name: str, engine: str) -> None:
    schedule = aj.schedules.from_service_times(aj.service.exponential(), 8, 3, KEY, group_size=2)
    plain, seen = (ENGINES[engine](run, schedule, KEY) for run in (bare(name), watched(name)))
    assert_equal(plain.shared, seen.shared)
    assert_equal(plain.metrics, {key: seen.metrics[key] for key in plain.metrics})


def test_a_watched_threaded_run_is_replayed_without_the_watch() -> None:
    result, schedule = aj.run_threads(watched("sgd"), KEY, num_workers=3, num_updates=20)
    assert_equal(result.shared, aj.replay(method("sgd"), schedule, KEY, num_workers=3).shared)
    np.testing.assert_array_equal(result.metrics["staleness"], schedule.staleness())


def test_cosine_of_one_dimension_is_the_sign_of_what_was_and_is() -> None:
    run = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(0.9))
    names = ["gradient_cosine", "gradient_norm_ratio"]
    schedule = aj.schedules.fixed_delay(30, 3)

    def apply(shared: Any, messages: Any, stale: aj.Stale) -> Any:
        after, _ = run.apply(shared, messages, stale)
        return after, {"then": stale.view[0], "now": shared.params}

    metrics = aj.replay(telemetry.watch(run._replace(apply=apply), names), schedule, KEY).metrics
    then, now = metrics["then"], metrics["now"]
    assert {-1.0, 1.0} == set(np.sign(then * now))
    np.testing.assert_allclose(metrics["gradient_cosine"][:, 0], np.sign(then * now), rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm_ratio"][:, 0], np.abs(then / now), rtol=1e-5)


def test_fresh_gradients_are_along_themselves_and_policies_at_no_distance() -> None:
    """And stale ones of an actor-critic, on the trajectory that was sent, are not."""
    fresh = aj.replay(watched("a3c"), aj.schedules.sequential(4, 3), KEY).metrics
    for name, value in {"gradient_cosine": 1.0, "gradient_norm_ratio": 1.0, "policy_kl": 0.0}.items():
        np.testing.assert_allclose(fresh[name], value, atol=1e-6)
    stale = aj.replay(watched("a3c"), aj.schedules.fixed_delay(8, 6, 3), KEY).metrics
    assert np.all(stale["policy_kl"][1:] > 0)
    assert np.all(np.abs(stale["gradient_cosine"]) <= 1 + 1e-6)
    assert stale["gradient_cosine"][-1] < 1 - 1e-5


@pytest.mark.parametrize(("unroll_length", "segments"), [(5, 4), (32, 2), (65, 1)])
def test_policies_are_compared_on_whole_segments_of_about_64_observations(unroll_length: int, segments: int) -> None:
    run = aj.a3c("CartPole-v1", num_envs=4, unroll_length=unroll_length)
    halves: Any = run.halves
    shared, local = run.init(KEY, 1)
    data, *_ = halves.sample(run.view(shared), jax.tree.map(lambda x: x[0], local))
    compared = halves.distribution(run.view(shared), data).logits
    assert compared.shape == (segments, unroll_length, 2)
    for n in range(segments):
        one = jax.tree.map(lambda x, n=n: x[:, n : n + 1], data)
        np.testing.assert_allclose(compared[n], halves.distribution(run.view(shared), one).logits[0], rtol=1e-5)


def test_the_divergence_is_of_the_newest_policy_from_the_one_that_was_read() -> None:
    """KL(read || newest) of two actions whose logits differ by 1 more with every update: it is not symmetric."""
    acting = aj.Method(
        init=lambda key, num_workers: (jnp.float32(0), jnp.zeros(num_workers)),
        view=lambda logit: logit,
        work=lambda view, local: (view, local, {}),
        apply=lambda logit, messages, stale: (logit + 1, {}),
        halves=Halves(
            lambda view, local: (view, local, {}),
            distribution=lambda view, data: Categorical(jnp.stack([view, 0 * view])),
        ),
    )
    found = aj.replay(telemetry.watch(acting, ["policy_kl"]), aj.schedules.fixed_delay(5, 2), KEY).metrics["policy_kl"]
    p = [np.array([np.exp(k), 1]) / (1 + np.exp(k)) for k in range(5)]
    expected = [np.sum(p[max(0, t - 2)] * np.log(p[max(0, t - 2)] / p[t])) for t in range(5)]
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4, atol=1e-6)


def test_the_effective_learning_rate_of_sgd_is_its_own_whatever_the_group() -> None:
    run = aj.sgd(lambda w, x: w * x, 1.0, optimizer=optax.sgd(0.125), sample=jax.random.normal)
    metrics = aj.replay(telemetry.watch(run, ["effective_learning_rate"]), aj.schedules.barrier(4, 3), KEY).metrics
    np.testing.assert_allclose(metrics["effective_learning_rate"], 0.125, rtol=1e-4)


def test_parameters_of_several_dtypes_are_measured_together() -> None:
    params = {"half": jnp.full(9, 2.0, jnp.bfloat16), "single": jnp.full(4, 4.0, jnp.float32)}
    run = aj.sgd(lambda p: p["half"].astype(jnp.float32).sum() + p["single"].sum(), params, optimizer=optax.sgd(0.5))
    watched = telemetry.watch(run, telemetry.available(run))
    metrics = aj.replay(watched, aj.schedules.fixed_delay(3, 1), KEY).metrics
    np.testing.assert_allclose(np.float32(metrics["message_norm"]), np.sqrt(13), rtol=1e-2)
    np.testing.assert_allclose(np.float32(metrics["parameter_gap"][1:]), np.sqrt(13) / 2, rtol=1e-2)


def test_the_counterfactual_gradient_holds_the_data_fixed() -> None:
    """On f(w; x) = (w - x)^2 / 2 two gradients of one sample differ by the gap, whatever the sample."""
    run = aj.sgd(lambda w, x: 0.5 * (w - x) ** 2, 1.0, optimizer=optax.sgd(0.1), sample=jax.random.normal)
    names = ["gradient_norm_ratio", "message_norm", "parameter_gap"]
    update = aj.replay(telemetry.watch(run, names), aj.schedules.fixed_delay(20, 2), KEY).metrics
    stale, fresh = update["message_norm"], update["message_norm"] / update["gradient_norm_ratio"]
    gap = update["parameter_gap"]  # of the two one is the sum where they have different signs
    np.testing.assert_allclose(np.minimum(abs(abs(stale - fresh) - gap), abs(stale + fresh - gap)), 0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# What a schedule tells


@hypothesis.given(seed=st.integers(0, 10**6), group_size=st.integers(1, 3), num_workers=st.integers(3, 5))
def test_workers_split_the_staleness_of_a_schedule(seed: int, group_size: int, num_workers: int) -> None:
    service, key = aj.service.gamma([0.5, 1.0, 2.0, 3.0, 4.0]), jax.random.key(seed)
    schedule = aj.schedules.from_service_times(service, 30, num_workers, key, group_size=group_size)
    found, staleness = telemetry.workers(schedule, num_workers), schedule.staleness()
    assert found.messages.sum() == staleness.size
    np.testing.assert_array_equal(found.histogram.sum(0), np.bincount(staleness.ravel()))
    sent = found.messages > 0
    np.testing.assert_allclose((found.mean * found.messages)[sent].sum(), staleness.sum())
    assert np.nanmax(found.maximum) == staleness.max()
    queue = telemetry.in_queue(schedule)
    assert np.all((queue >= 0) & (queue <= staleness))
    np.testing.assert_allclose(found.idle[sent], 0, atol=1e-9)  # who never waits is never idle
    assert schedule.time is not None
    assert telemetry.throughput(schedule) == 30 / schedule.time[-1]


def test_workers_of_a_record_without_the_times_of_updates_were_busy_just_the_same() -> None:
    service, key = aj.service.exponential(), jax.random.key(0)
    schedule = aj.schedules.from_service_times(service, 30, 3, key)
    found, without = telemetry.workers(schedule), telemetry.workers(schedule._replace(time=None))
    np.testing.assert_array_equal(without.busy, found.busy)
    assert np.isnan(without.in_queue).all()


def test_at_a_barrier_everybody_waits_for_the_slowest() -> None:
    service = aj.service.constant([1.0, 3.0])
    schedule = aj.schedules.from_service_times(service, 10, 2, KEY, group_size=2, wait="next_version")
    found = telemetry.workers(schedule)
    np.testing.assert_allclose(found.busy, [10.0, 30.0])
    np.testing.assert_allclose(found.idle, [18.0, 0.0])  # two seconds after each of its jobs but the last
    assert telemetry.throughput(schedule) == 1 / 3


def test_a_message_queues_while_others_are_applied() -> None:
    """Ready at 1.5, when version 1 is the newest, but applied after updates 1 and 2."""
    schedule = aj.Schedule(
        np.array([[0], [0], [0], [1]], np.int32),
        np.array([[0], [1], [2], [0]], np.int32),
        np.array([1.0, 2.0, 3.0, 4.0]),
        np.array([[0.0], [1.0], [2.0], [0.0]]),
        np.array([[1.0], [2.0], [3.0], [1.5]]),
    )
    assert telemetry.in_queue(schedule).ravel().tolist() == [0, 0, 0, 2]
    assert telemetry.workers(schedule).in_queue.tolist() == [0.0, 2.0]


def test_of_nothing_there_are_numbers_too() -> None:
    of_none = telemetry.workers(aj.schedules.round_robin(0, 2))
    assert of_none.messages.tolist() == [0]
    assert telemetry.ratio_statistics(jnp.zeros(0), where=jnp.zeros(0, bool))["ratio_max"] == 0


def test_updates_to_target() -> None:
    values = [0.0, 3.0, np.nan, 1.0, 5.0, 5.0]
    assert telemetry.updates_to_target(values, 3.0) == 2
    assert telemetry.updates_to_target(values, 3.0, window=2) == 5
    assert telemetry.updates_to_target(values, 5.1) == np.inf
    assert telemetry.updates_to_target([0.1, 0.2, 0.3], 0.2, window=3) == 3  # but for rounding the mean is the target
    assert telemetry.updates_to_target([np.nan], 0.0) == np.inf


@hypothesis.given(level=st.floats(-1e3, 1e3), window=st.integers(1, 60))
def test_a_constant_reaches_itself_whatever_the_rounding(level: float, window: int) -> None:
    assert telemetry.updates_to_target(np.full(60, level), level, window) == window


def test_throughput_is_of_the_updates_that_are_there() -> None:
    """A run that was continued has times from its beginning on, and updates since then."""
    schedule = aj.schedules.from_service_times(aj.service.constant(0.5), 40, 4, KEY)
    later = schedule._replace(**{name: np.asarray(getattr(schedule, name)) + 100 for name in ("time", "begin", "end")})
    assert telemetry.throughput(later) == telemetry.throughput(schedule) == 8.0


def test_a_watch_of_a_watched_method_sees_the_same() -> None:
    names = ["gradient_cosine", "message_norm", "gradient_norm_ratio"]
    once = telemetry.watch(bare("a3c"), names)
    twice = functools.reduce(lambda run, name: telemetry.watch(run, [name]), names, bare("a3c"))
    schedule = aj.schedules.fixed_delay(4, 2, 2)
    assert_equal(*(aj.replay(run, schedule, KEY).metrics for run in (once, twice)))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"names='staleness': give a list of names, such as \['staleness'\]"):
        telemetry.watch(method("sgd"), "staleness")
    with pytest.raises(ValueError, match=r"schedule.worker\[1, 0\] = 1: there is no such worker"):
        telemetry.workers(aj.schedules.round_robin(4, 2), num_workers=1)
    with pytest.raises(ValueError, match="has no updates"):
        telemetry.throughput(aj.schedules.from_service_times(aj.service.constant(), 0, 2, KEY))
    with pytest.raises(ValueError, match="there is no such measure; choose from staleness, parameter_gap"):
        telemetry.watch(method("sgd"), ["stalness"])
    with pytest.raises(ValueError, match=r"names=\['policy_kl'\]: this method can not be asked for that; it has stal"):
        telemetry.watch(method("sgd"), ["staleness", "policy_kl"])
    with pytest.raises(ValueError, match=r"names=\['gradient_cosine'\].*a private optimizer"):
        telemetry.watch(method("sgd, private optimizer"), ["gradient_cosine"])
    assert telemetry.available(bare("impala")) == ["staleness", "parameter_gap", "step_norm", "policy_kl"]
    with pytest.raises(ValueError, match="a fit takes at least 4 points"):
        telemetry.implicit_momentum(np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="has no times, so what was in flight"):
        telemetry.in_queue(aj.schedules.round_robin(3, 2))
    with pytest.raises(ValueError, match="average at least one"):
        telemetry.updates_to_target([1.0], 1.0, window=0)
    assert telemetry.watch(method("sgd"), []) is method("sgd")
