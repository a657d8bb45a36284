"""The quadratic laboratory: every measurement lies on its closed form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from laboratory import chance, closed_forms, rules, stability
from laboratory.runs import grew


def test_closed_forms_by_hand() -> None:
    np.testing.assert_allclose(closed_forms.stable_step([0, 1, 2, 3]), [2, 1, 0.618034, 0.445042], rtol=1e-6)
    np.testing.assert_allclose(closed_forms.rate([closed_forms.fastest_step(2)], 2), 2 / 3, rtol=1e-4)
    assert closed_forms.stationary_variance(1.0, 0) == 1.0
    path = closed_forms.heavy_ball(0.5, 0.75, 3)
    np.testing.assert_allclose(path[:3], [1.0, 0.5, 0.5 - 0.75 * 0.5 - 0.25 * 0.25])


def test_growth_is_told_from_decay_and_overflow_is_growth() -> None:
    """Compiled, too: there a comparison with NaN is what the compiler makes of it."""
    t = np.arange(400.0)
    for path, growing in [(0.5**t, False), (0.99**t, False), (1.01**t, True), (np.where(t < 99, 2**t, np.nan), True)]:
        w = jnp.asarray(path, jnp.float32)
        assert bool(grew(w)) == bool(jax.jit(grew)(w)) == growing


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    parts = [stability.rates(), rules.compensation(), rules.gaps(), rules.dana(), chance.random_worker(500)]
    return {name: np.asarray(value) for part in parts for name, value in part.items()}


def test_elastic_workers_are_stable_up_to_the_closed_form() -> None:
    """And the closed form is where the eigenvalues of the exchange leave the unit circle."""
    found = stability.elastic([0.0, 0.9], 300)
    for n, of_workers in zip(found["elastic_workers"], found["elastic_threshold"], strict=True):
        for together, measured in enumerate(of_workers):
            exact = closed_forms.elastic_step([0.0, 0.9], n, bool(together))
            np.testing.assert_allclose(measured, exact, rtol=0.01)
            for a, below in ((exact[1] * 0.999, True), (exact[1] * 1.001, False)):
                alpha = 0.9 / n
                both = np.array([[(1 - a) * (1 - alpha), (1 - a) * alpha], [0.9, 0.1]])
                apart = np.array([[(1 - a) * (1 - alpha)]])
                radius = np.abs(np.linalg.eigvals(both if together else apart)).max()
                assert (radius < 1) == below


def test_rates_without_oscillation_and_with(arrays: dict[str, np.ndarray]) -> None:
    delays = arrays["rate_delays"]
    np.testing.assert_allclose(arrays["fastest_rate"], delays / (delays + 1), rtol=1e-4)
    for delay, steps, measured in zip(delays, arrays["rate_steps"], arrays["rate"], strict=True):
        np.testing.assert_allclose(measured, closed_forms.rate(steps, delay), rtol=0.1)


def test_a_random_worker_is_heavy_ball_in_the_mean(arrays: dict[str, np.ndarray]) -> None:
    for n, path, (value, low, high) in zip(
        arrays["workers"], arrays["mean_path"], arrays["implicit_momentum"], strict=True
    ):
        assert abs(path[1] - 0.5) < 1e-6, "the first step is a full one"
        np.testing.assert_allclose(path, closed_forms.heavy_ball(0.5, 1 - 1 / n, len(path) - 1), atol=0.12)
        assert low - 0.02 <= 1 - 1 / n <= high + 0.02
        assert abs(value - (1 - 1 / n)) < 0.03


def test_corrections_do_what_their_papers_say(arrays: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(arrays["compensated_error"][0] / arrays["distance"][0] ** 2, 1.0, rtol=0.05)
    np.testing.assert_allclose(arrays["gap"], arrays["gap_delays"] + 1, rtol=1e-5)
    assert arrays["nesterov_gap"] < 1e-5
    assert arrays["slim_gap"] < 1e-5
