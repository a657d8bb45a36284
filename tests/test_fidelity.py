"""Fidelity: fits find the parameters that made the times, and the test has its level and its power."""

from __future__ import annotations

from typing import Any

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

import asyncjax as aj
from asyncjax import fidelity

TRUE: dict[str, tuple[aj.service.Service, dict[str, float]]] = {
    "exponential": (aj.service.exponential(0.02), {"mean": 0.02}),
    "gamma": (aj.service.gamma(5.0, 0.02), {"shape": 5.0, "mean": 0.02}),
    "lognormal": (aj.service.lognormal(0.8, 0.02), {"sigma": 0.8, "mean": 0.02}),
    "pareto": (aj.service.pareto(3.0, 0.02), {"shape": 3.0, "mean": 0.02}),
}


@pytest.mark.parametrize("family", TRUE)
def test_fits_find_the_family_and_its_parameters(family: Any) -> None:
    model, parameters = TRUE[family]
    times = model.sample(np.random.default_rng(1), 0, 20_000)
    found = fidelity.fits(times)
    for name, value in parameters.items():
        np.testing.assert_allclose(found[family].parameters[name], value, rtol=0.05)
    best = fidelity.choose(found)
    # An exponential is a gamma of shape 1, which is at least as likely.
    assert best.family == family or (family == "exponential" and best.family == "gamma")
    assert found[family].distance < 0.02


def test_two_clusters_of_times_are_resampled() -> None:
    times = np.concatenate([np.full(500, 1.0), np.full(500, 9.0)]) + np.random.default_rng(0).normal(0, 0.1, 1000)
    assert fidelity.choose(fidelity.fits(times)).family == "empirical"


def test_a_fit_for_each_worker_keeps_the_slow_one_slow() -> None:
    service = aj.service.exponential([0.01, 0.01, 0.08])
    record = aj.schedules.from_service_times(service, 3000, 3, jax.random.key(0))
    again = aj.schedules.from_service_times(fidelity.fit(record, per_worker=True), 3000, 3, jax.random.key(1))
    np.testing.assert_allclose(aj.telemetry.workers(again).mean, aj.telemetry.workers(record).mean, rtol=0.15)
    pooled = aj.schedules.from_service_times(fidelity.fit(record), 3000, 3, jax.random.key(1))
    assert aj.telemetry.workers(pooled).mean[2] < 0.5 * aj.telemetry.workers(record).mean[2]


def staleness(service: Any, first: int, **commit: Any) -> list[np.ndarray]:
    keys = jax.random.split(jax.random.key(first), 5)
    return [np.asarray(aj.schedules.from_service_times(service, 300, 6, key, **commit).staleness()) for key in keys]


def test_emulated_staleness_is_told_apart_only_where_it_differs() -> None:
    gamma = staleness(aj.service.gamma(4.0), 0)
    same = fidelity.compare(gamma, staleness(aj.service.gamma(4.0), 1), num_permutations=200)
    other = fidelity.compare(gamma, staleness(aj.service.exponential(), 1), num_permutations=200)
    assert same.p_value > 0.05
    assert other.p_value < 0.02
    assert other.distance > same.distance


@hypothesis.given(seconds=st.floats(0.01, 2.0), group_size=st.integers(1, 3), seed=st.integers(0, 99))
def test_what_an_update_took_is_found_behind_any_queue(seconds: float, group_size: int, seed: int) -> None:
    service, key = aj.service.exponential(), jax.random.key(seed)
    record = aj.schedules.from_service_times(service, 40, 4, key, group_size, commit=seconds)
    np.testing.assert_allclose(fidelity.commit_times(record), seconds, rtol=1e-9)
    again = aj.schedules.from_service_times(service, 40, 4, key, group_size, commit=fidelity.fit_commit(record))
    np.testing.assert_allclose(np.asarray(again.time), np.asarray(record.time), rtol=1e-3)
    np.testing.assert_array_equal(again.read[:20], record.read[:20])


@hypothesis.given(seconds=st.floats(0.01, 2.0), group_size=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_worker_that_restarts_late_reads_what_was_committed_meanwhile(
    seconds: float, group_size: int, seed: int
) -> None:
    service, key = aj.service.exponential(), jax.random.key(seed)
    record = aj.schedules.from_service_times(service, 40, 4, key, group_size, commit=0.2, restart=seconds)
    assert aj.schedules.is_realizable(record)
    time, begin = np.asarray(record.time), np.asarray(record.begin)
    np.testing.assert_array_equal(record.read, np.searchsorted(time, begin, side="right"))
    if group_size == 1:  # else a worker goes on as soon as it has handed in
        np.testing.assert_allclose(fidelity.restart_times(record), seconds, rtol=1e-9)
    restart = fidelity.fit_restart(record) if group_size == 1 else seconds
    again = aj.schedules.from_service_times(service, 40, 4, key, group_size, commit=0.2, restart=restart)
    np.testing.assert_allclose(np.asarray(again.time), time, rtol=1e-6)


def test_updates_that_take_no_time_are_fitted_as_they_are() -> None:
    record = aj.schedules.from_service_times(aj.service.exponential(), 30, 4, jax.random.key(0))
    model = fidelity.fit_commit(record)
    again = aj.schedules.from_service_times(aj.service.exponential(), 30, 4, jax.random.key(0), commit=model)
    np.testing.assert_array_equal(again.read, record.read)
    with pytest.raises(ValueError, match="at least two positive times"):
        fidelity.fit_commit(record, "gamma")


def test_a_queue_is_told_from_none_by_staleness_and_reproduced_by_the_fit() -> None:
    jobs, commit = aj.service.exponential(), aj.service.gamma(9.0, 0.3)
    queued = staleness(jobs, 0, commit=commit)
    record = aj.schedules.from_service_times(jobs, 5000, 6, jax.random.key(9), commit=commit)
    alone = fidelity.compare(queued, staleness(fidelity.fit(record), 1), num_permutations=200)
    fitted = {"commit": fidelity.fit_commit(record)}
    both = fidelity.compare(queued, staleness(fidelity.fit(record), 1, **fitted), num_permutations=200)
    assert alone.p_value < 0.02
    assert both.p_value > 0.05
    assert both.distance < 0.5 * alone.distance


def test_p_values_are_uniform_under_the_null() -> None:
    rng = np.random.default_rng(0)
    p = [fidelity.compare(*rng.normal(size=(2, 4, 8)), num_permutations=60).p_value for _ in range(150)]
    assert np.mean(np.array(p) <= 0.2) < 0.32
    assert np.mean(np.array(p) > 0.5) > 0.3


def test_a_split_that_is_observed_counts_and_so_do_ties() -> None:
    """The least p is 1 / (1 + permutations), and of runs that are all alike it is 1."""
    low, high = [np.zeros(3)] * 12, [np.ones(3)] * 12
    assert fidelity.compare(low, high, num_permutations=9).p_value == 0.1
    assert fidelity.compare(low, low, num_permutations=9).p_value == 1.0


@pytest.mark.parametrize("discipline", [{"wait": "next_version"}, {"eta": 0}, {"eta": 2}])
def test_an_update_begins_when_the_last_of_its_messages_is_there_in_whatever_place(discipline: Any) -> None:
    record = aj.schedules.from_service_times(
        aj.service.exponential(), 40, 3, jax.random.key(0), group_size=3, commit=0.25, **discipline
    )
    np.testing.assert_allclose(fidelity.commit_times(record), 0.25, rtol=1e-9)


def test_distance_by_hand() -> None:
    assert fidelity.distance([1, 2, 3, 4], [3, 4, 5, 6]) == 0.5
    assert fidelity.distance([1], [1]) == 0.0


def test_bad_input() -> None:
    bare = aj.schedules.round_robin(4, 2)
    with pytest.raises(ValueError, match="no times to fit a model to: record one with run_threads"):
        fidelity.fit(bare)
    with pytest.raises(ValueError, match="no times to fit a model to: record one with run_threads"):
        fidelity.fit_commit(bare)
    record = aj.schedules.from_service_times(aj.service.exponential(), 20, 2, jax.random.key(0))
    with pytest.raises(ValueError, match="the record has 2 workers, and there is a worker 2"):
        aj.schedules.from_service_times(fidelity.fit(record, per_worker=True), 4, 3, jax.random.key(0))
    with pytest.raises(ValueError, match="family='weibull': choose one of 'exponential'"):
        fidelity.fit(record, "weibull")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least two positive times"):
        fidelity.fits(np.zeros(3))
    with pytest.raises(ValueError, match="takes at least one and two"):
        fidelity.compare([np.zeros(2)], [np.zeros(2)])


@pytest.mark.parametrize("run", [np.array([]), np.array([1.0, np.nan])])
def test_runs_that_have_no_distribution_are_not_compared(run: np.ndarray) -> None:
    others = [np.ones(2)] * 3
    with pytest.raises(ValueError, match=r"others\[1\] has .* so it has no distribution"):
        fidelity.compare(others, [others[0], run])
    with pytest.raises(ValueError, match="x has "):
        fidelity.distance(run, others[0])
    with pytest.raises(ValueError, match="gave nan, which no split can be compared with"):
        fidelity.compare(others, others, statistic=lambda x, y: np.nan)
