"""Elastic averaging: what it conserves, and what it is without the spring."""

from __future__ import annotations

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asyncjax as aj
from tests.laws import KEY, assert_close, assert_equal, method, noisy_quadratic, schedules

# Workers start apart and feel no gradient.
STILL = aj.elastic_averaging(aj.sgd(lambda w: 0.0 * w.sum(), jnp.array([1.0, -2.0]), optimizer=optax.sgd(0.1)))


def init_apart(key: jax.Array, num_workers: int):
    centre, workers = STILL.init(key, num_workers)
    apart = workers.shared.params + jnp.arange(num_workers, dtype=jnp.float32)[:, None]
    return centre, workers._replace(shared=workers.shared._replace(params=apart))


APART = STILL._replace(init=init_apart)


@hypothesis.given(schedule=schedules())
@hypothesis.settings(max_examples=5)
def test_without_gradients_the_sum_of_all_positions_is_conserved(schedule: aj.Schedule) -> None:
    centre, workers = APART.init(KEY, 3)
    result = aj.replay(APART, schedule, KEY, num_workers=3)
    before, after = (c.params + w.shared.params.sum(0) for c, w in ((centre, workers), result[:2]))
    np.testing.assert_allclose(after, before, atol=2e-5)
    if schedule.num_workers > 1:  # worker 0 starts at the centre
        assert not np.array_equal(result.shared.params, centre.params)


def test_one_exchange_by_hand() -> None:
    """With W = 2 and rate 1 alpha is 1/2: worker 1, at distance 1 from the centre, meets it half way."""
    run = aj.elastic_averaging(aj.sgd(lambda w: 0.0 * w.sum(), jnp.zeros(2), optimizer=optax.sgd(0.1)), rate=1.0)
    centre, workers = run.init(KEY, 2)
    worker = jax.tree.map(lambda x: x[1], workers)
    worker = worker._replace(shared=worker.shared._replace(params=jnp.ones(2)))
    force, moved, _ = run.work(centre.params, worker)
    np.testing.assert_array_equal(moved.shared.params, [0.5, 0.5])
    forces, stale = force[None], aj.Stale(centre.params[None], jnp.zeros(1, jnp.int32))
    np.testing.assert_array_equal(run.apply(centre, forces, stale)[0].params, [0.5, 0.5])


def test_without_a_spring_every_worker_learns_alone() -> None:
    base, period, updates = method("sgd"), 3, 4
    run = aj.elastic_averaging(base, rate=0.0, period=period)
    result = aj.replay(run, aj.schedules.sequential(updates * 2, 2), KEY)
    assert_equal(result.shared.params, base.init(KEY, 2)[0].params)
    turns = np.full((updates * period, 1), 1, np.int32)
    alone = aj.replay(base, aj.Schedule(turns, np.arange(updates * period)[:, None].astype(np.int32)), KEY)
    assert_close(jax.tree.map(lambda x: x[1], result.local.shared), alone.shared)
    assert result.metrics["loss"].shape == (updates * 2, 1, period)


@pytest.mark.parametrize("group_size", [1, 2])
def test_a_threaded_run_replays_bit_for_bit(group_size: int) -> None:
    run = aj.elastic_averaging(noisy_quadratic(), period=2)
    result, schedule = aj.run_threads(run, KEY, num_workers=3, num_updates=15, group_size=group_size)
    again = aj.replay(run, schedule, KEY, num_workers=3)
    assert_equal(result, again)
    assert_close(aj.emulate(run, schedule, KEY, num_workers=3), again)


@pytest.mark.parametrize("delay", [0, 3])
def test_the_centre_finds_the_minimum(delay: int) -> None:
    run = aj.elastic_averaging(aj.sgd(lambda w: 0.5 * (w - 3.0) ** 2, 0.0, optimizer=optax.sgd(0.2)), rate=0.5)
    shared = aj.emulate(run, aj.schedules.fixed_delay(400, delay, num_workers=4), KEY).shared
    np.testing.assert_allclose(shared.params, 3.0, atol=1e-3)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="period=0: use a number of at least 1"):
        aj.elastic_averaging(method("sgd"), period=0)
    with pytest.raises(TypeError, match=r"period=1.5: give a whole number"):
        aj.elastic_averaging(method("sgd"), period=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"rate=-1.0: use a number of at least 0"):
        aj.elastic_averaging(method("sgd"), rate=-1.0)
    odd = method("sgd")._replace(view=lambda shared: (shared.params, 1))
    with pytest.raises(TypeError, match="this method's view is something else"):
        aj.elastic_averaging(odd).init(KEY, 2)
