"""Telemetry: quantities with a known answer, and a watch that changes no bit."""

from __future__ import annotations

from math import erf

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import asyncjax as aj
from asyncjax import telemetry
from tests.laws import KEY, assert_close, assert_equal, method, noisy_quadratic

SHIFT = 0.7
SAMPLES = jax.random.normal(KEY, (400_000,))
LOG_RATIO = SHIFT * SAMPLES - SHIFT**2 / 2  # unit Gaussians: mu at 0, pi at SHIFT


def test_ratios_of_shifted_gaussians() -> None:
    found = telemetry.ratio_statistics(LOG_RATIO)
    np.testing.assert_allclose(found["ratio_mean"], 1.0, rtol=0.01)
    np.testing.assert_allclose(found["ratio_truncated"], 1 - erf(SHIFT / 2 / np.sqrt(2)), rtol=0.01)
    np.testing.assert_allclose(found["effective_sample_size"], np.exp(-(SHIFT**2)), rtol=0.02)
    np.testing.assert_allclose(found["ratio_clipped"], np.mean(LOG_RATIO > 0), rtol=1e-5)


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


def test_the_gap_of_a_constant_gradient_is_tau_steps() -> None:
    run = telemetry.watch(aj.sgd(lambda w: 3.0 * w, 1.0, optimizer=optax.sgd(0.125)), list(telemetry.MEASURES))
    schedule = aj.schedules.from_service_times(aj.service.exponential(), 20, 4, KEY)
    metrics = aj.emulate(run, schedule, KEY).metrics
    np.testing.assert_array_equal(metrics["staleness"], schedule.staleness())
    np.testing.assert_allclose(metrics["parameter_gap"], 0.375 * schedule.staleness(), rtol=1e-5)
    np.testing.assert_array_equal(metrics["step_norm"], np.full(20, 0.375, np.float32))
    np.testing.assert_allclose(metrics["effective_learning_rate"], 0.125, rtol=1e-6)
    np.testing.assert_array_equal(metrics["message_norm"], np.full((20, 1), 3.0, np.float32))


@pytest.mark.parametrize("group_size", [1, 2])
def test_watching_does_not_touch_the_arithmetic(group_size: int) -> None:
    """Bit for bit where every operation is compiled alone, so that none is fused with a measure."""
    plain = noisy_quadratic()
    watched = telemetry.watch(plain, list(telemetry.MEASURES))
    shared, _ = plain.init(KEY, 1)
    read = jax.tree.map(lambda x: jnp.stack([x + 0.5] * group_size), shared.params)
    stale = aj.Stale(read, jnp.full(group_size, 2, jnp.int32))
    (x, _), (y, metrics) = (run.apply(shared, jax.tree.map(jnp.sin, read), stale) for run in (plain, watched))
    assert_equal(x, y)
    assert metrics["parameter_gap"].shape == (group_size,)
    schedule = aj.schedules.from_service_times(aj.service.exponential(), 20, 3, KEY, group_size=group_size)
    with_measures, without = (aj.replay(run, schedule, KEY)[:2] for run in (watched, plain))
    assert_close(with_measures, without)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="there is no such measure; choose from staleness, parameter_gap"):
        telemetry.watch(method("sgd"), ["stalness"])
    odd = method("sgd")._replace(view=lambda shared: (shared.params, 1))
    with pytest.raises(TypeError, match="step_norm compares parameters"):
        telemetry.watch(odd, ["step_norm"]).apply(odd.init(KEY, 1)[0], (), aj.Stale((), jnp.zeros(1, jnp.int32)))
    with pytest.raises(ValueError, match="a fit takes at least 4 points"):
        telemetry.implicit_momentum(np.ones(3), np.ones(3))
    assert telemetry.watch(method("sgd"), []) is method("sgd")
