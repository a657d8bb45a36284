"""Statistics of few seeds, against textbook values."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from asyncjax import statistics


def test_interquartile_mean() -> None:
    ys = np.array([[0.0], [1.0], [2.0], [1000.0]])
    middle, low, high = statistics.interquartile_mean(ys)
    assert middle[0] == 1.5, "the lowest and the highest quarter do not count"
    assert low[0] <= 1.5 <= high[0]
    for value in statistics.interquartile_mean(np.full((5, 3), 7.0)):
        np.testing.assert_array_equal(value, np.full(3, 7.0))


@pytest.mark.parametrize(("num_seeds", "left_out"), [(3, 0), (4, 1), (5, 1), (7, 1), (8, 2), (10, 2), (11, 2)])
def test_a_quarter_rounded_down_is_left_out_at_each_end(num_seeds: int, left_out: int) -> None:
    ys = np.random.default_rng(num_seeds).normal(size=num_seeds) ** 3
    kept = sorted(ys)[left_out : num_seeds - left_out]
    np.testing.assert_allclose(statistics.middle_half(ys), np.mean(kept))


def test_a_sample_of_the_bootstrap_has_as_many_seeds_as_there_are() -> None:
    """The mean of two draws of 0 and 1 is 1 / 2 half of the time: between the quantiles of 30 and 70 % nothing else."""
    low, high = statistics.bootstrap_interval(np.array([0.0, 1.0]), np.mean, level=0.4)
    assert low == high == 0.5


def test_an_interval_of_differences_is_of_the_level_that_is_asked_for() -> None:
    x, y = np.random.default_rng(4).normal(size=(2, 20))
    found = statistics.paired_difference(x, y, level=0.5, num_resamples=200)
    assert (found.low, found.high) == statistics.bootstrap_interval(x - y, level=0.5, num_resamples=200)


@hypothesis.given(shift=st.floats(-100, 100), scale=st.floats(0.1, 10))
def test_intervals_move_with_the_data(shift: float, scale: float) -> None:
    ys = np.random.default_rng(0).normal(size=(12, 2))
    plain, moved = statistics.interquartile_mean(ys, 50), statistics.interquartile_mean(scale * ys + shift, 50)
    for x, y in zip(plain, moved, strict=True):
        np.testing.assert_allclose(scale * x + shift, y, atol=1e-9)


def test_the_bootstrap_interval_of_a_mean_is_the_normal_one_and_covers_as_often_as_it_says() -> None:
    ys = np.random.default_rng(2).normal(size=(40, 300))  # 300 experiments of 40 seeds
    low, high = statistics.bootstrap_interval(ys, lambda x: x.mean(0), level=0.9)
    np.testing.assert_allclose(np.mean(high - low), 2 * 1.645 / np.sqrt(40), rtol=0.05)
    assert 0.84 < np.mean((low < 0) & (high > 0)) < 0.94


def test_pairs_resolve_what_independent_seeds_do_not() -> None:
    rng = np.random.default_rng(2)
    luck, noise = 10 * rng.normal(size=(2, 10))[0], rng.normal(size=10)
    paired = statistics.paired_difference(luck + 1 + 0.1 * noise, luck)
    alone = statistics.paired_difference(luck + 1 + 0.1 * noise, 10 * rng.normal(size=10))
    assert paired.resolved
    assert not alone.resolved
    assert paired.low < 1.1
    assert paired.high > 0.9


def test_seeds_needed_is_the_textbook_number() -> None:
    """For a standard deviation as large as the effect: (1.96 + 0.84)^2 = 7.85, so 8 pairs."""
    differences = np.array([-1.0, 1.0]) / np.sqrt(2)
    assert statistics.seeds_needed(differences, 1.0) == 8
    assert statistics.seeds_needed(differences, 0.1) == 785
    assert statistics.seeds_needed(np.zeros(5), 1.0) == 2


@hypothesis.given(missing=st.integers(0, 7), sign=st.sampled_from([-1.0, 1.0]))
def test_a_seed_without_a_value_is_not_the_best_one(missing: int, sign: float) -> None:
    """Nor the worst: the other columns have their means, and this one has none."""
    ys = sign * np.random.default_rng(3).normal(size=(8, 2))
    ys[missing, 1] = np.nan
    difference = statistics.paired_difference(ys, np.full((8, 2), -100.0))
    for x in difference[1:]:
        np.testing.assert_array_equal(np.isnan(x), [False, True])
    np.testing.assert_array_equal(difference.resolved, [True, False])
    np.testing.assert_allclose(statistics.middle_half(-ys), -statistics.middle_half(ys))


def test_times_that_are_infinite_have_intervals_that_reach_there() -> None:
    some = statistics.interquartile_mean(np.array([3.0, 5.0, 4.0, 6.0, 7.0, 8.0, 9.0, np.inf]))
    assert some[0] == 6.5
    assert np.isfinite(some[1])
    assert some[2] == np.inf
    low, high = statistics.bootstrap_interval(np.full(4, np.inf))
    assert (low, high) == (np.inf, np.inf)


def test_one_seed_resolves_nothing_and_two_may() -> None:
    assert not statistics.paired_difference(np.ones(1), np.zeros(1)).resolved
    assert statistics.paired_difference(np.ones(2), np.zeros(2)).resolved


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: statistics.bootstrap_interval(np.zeros((0, 2))), "ys has no rows"),
        (lambda: statistics.interquartile_mean(np.zeros((0, 2))), "ys has no rows"),
        (lambda: statistics.bootstrap_interval(np.zeros(3), level=95), "level=95: a probability"),
        (lambda: statistics.bootstrap_interval(np.zeros(3), num_resamples=0), "num_resamples=0: draw at least one"),
        (lambda: statistics.seeds_needed(np.array([1.0, np.nan]), 1.0), r"not finite in the rows \[1\]"),
        (lambda: statistics.paired_difference(np.zeros(3), np.zeros(4)), "rows are pairs"),
        (lambda: statistics.seeds_needed(np.zeros(1), 1.0), "at least two seeds"),
        (lambda: statistics.seeds_needed(np.zeros(3), 0.0), "effect=0.0: give the size"),
        (lambda: statistics.seeds_needed(np.arange(3.0), 1e-12), "effect=1e-12 is too small beside the spread"),
    ],
)
def test_bad_input(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()
