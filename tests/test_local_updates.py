"""Local updates: closed forms on quadratics, and what it is the same as."""

from __future__ import annotations

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asyncjax as aj
from tests.laws import KEY, assert_close, noisy_quadratic, schedules


@pytest.mark.parametrize("period", [1, 2, 5])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_one_quadratic_shrinks_as_if_nobody_had_sent_anything(period: int, num_workers: int) -> None:
    run = aj.local_updates(aj.sgd(lambda w: 0.5 * w**2, 3.0, optimizer=optax.sgd(0.3)), period=period)
    result = aj.emulate(run, aj.schedules.barrier(4, num_workers), KEY)
    np.testing.assert_allclose(result.shared.params, 3.0 * 0.7 ** (4 * period), rtol=1e-5)
    assert result.metrics["loss"].shape == (4, num_workers, period)
    np.testing.assert_allclose(result.metrics["loss"][0, 0], 4.5 * 0.49 ** np.arange(period), rtol=1e-5)


@pytest.mark.parametrize("period", [1, 2, 10])
def test_workers_that_want_different_things_settle_where_their_drift_cancels(period: int) -> None:
    """Worker i has h_i (w - c_i)^2 / 2, so K steps take its distance times (1 - step h_i)^K: the messages cancel at
    sum b_i c_i / sum b_i with b_i = 1 - (1 - step h_i)^K. That is the minimum of the sum for K = 1 only."""
    curvatures, centres, step = jnp.array([0.2, 1.0, 3.0]), jnp.array([-1.0, 2.0, 5.0]), 0.25

    def loss(w: jax.Array, point: tuple[jax.Array, jax.Array]) -> jax.Array:
        return 0.5 * point[0] * (w - point[1]) ** 2

    own = aj.sgd(loss, 0.0, optimizer=optax.sgd(step), sample=lambda key, worker: (curvatures[worker], centres[worker]))
    run = aj.local_updates(own, period=period)
    result = aj.emulate(run, aj.schedules.barrier(300, 3), KEY)
    weight = 1 - (1 - step * np.asarray(curvatures)) ** period
    expected = (weight * np.asarray(centres)).sum() / weight.sum()
    np.testing.assert_allclose(result.shared.params, expected, rtol=1e-4)
    minimum = (curvatures * centres).sum() / curvatures.sum()
    assert bool(abs(expected - minimum) < 1e-5) == (period == 1)


@hypothesis.given(schedule=schedules())
@hypothesis.settings(max_examples=5)
def test_with_a_period_of_one_it_is_a_private_optimizer(schedule: aj.Schedule) -> None:
    one = aj.replay(aj.local_updates(noisy_quadratic()), schedule, KEY, num_workers=3)
    same = aj.replay(noisy_quadratic(private_optimizer=True), schedule, KEY, num_workers=3)
    assert_close(one.shared.params, same.shared.params)
    assert_close(one.metrics["loss"][..., 0], same.metrics["loss"])


def test_one_worker_is_the_synchronous_learner_and_keeps_its_optimizer() -> None:
    run = aj.local_updates(noisy_quadratic(), period=4)
    result = aj.emulate(run, aj.schedules.sequential(5), KEY)
    synchronous = aj.emulate(noisy_quadratic(), aj.schedules.sequential(20), KEY)
    assert_close(result.shared.params, synchronous.shared.params)
    assert_close(result.metrics["loss"].ravel(), synchronous.metrics["loss"].ravel())


def test_the_outer_optimizer_and_the_correction_see_how_far_a_worker_came() -> None:
    """FedAsync's weights and DiLoCo's Nesterov momentum, against the same in NumPy."""
    step, period, rate, momentum, power = 0.2, 3, 0.5, 0.9, 0.5
    run = aj.local_updates(
        aj.sgd(lambda w: 0.5 * w**2, 2.0, optimizer=optax.sgd(step)),
        period=period,
        optimizer=optax.sgd(rate, momentum, nesterov=True),
        correction=aj.corrections.polynomial(power),
    )
    schedule = aj.schedules.round_robin(12, num_workers=3)
    history, velocity = [2.0], 0.0
    for t, read in enumerate(np.asarray(schedule.read).ravel()):
        message = history[read] * (1 - (1 - step) ** period) * (1 + t - read) ** -power
        velocity = momentum * velocity + message
        history.append(history[-1] - rate * (message + momentum * velocity))
    np.testing.assert_allclose(aj.emulate(run, schedule, KEY).shared.params, history[-1], rtol=1e-4)


def test_bad_input() -> None:
    own = noisy_quadratic()
    with pytest.raises(ValueError, match="period=0: use a number of at least 1"):
        aj.local_updates(own, period=0)
    with pytest.raises(TypeError, match=r"period=1.5: give a whole number"):
        aj.local_updates(own, period=1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="optimizer=3 is no optax transformation"):
        aj.local_updates(own, optimizer=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="this method's view is something else"):
        aj.local_updates(aj.value_iteration(aj.mdp.forest(3), 0.9)).init(KEY, 2)
