"""Surrogates: hand-computed numbers, exact enumeration, and the identities between them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjax import surrogates

pytestmark = pytest.mark.usefixtures("quick_compilation")

RATIOS = np.array([4.0, 0.25, 1.1, 0.9], np.float32)
ADVANTAGES = np.array([1.0, -2.0, 3.0, 1.0], np.float32)
PLAIN = [name for name in surrogates.SurrogateName.__args__ if name != "decoupled"]
NUMBERS = st.lists(st.integers(-128, 128), min_size=6, max_size=6).map(lambda x: np.array(x, np.float32) / 64)
MASKS = st.lists(st.booleans(), min_size=6, max_size=6).map(np.array)


@partial(jax.jit, static_argnames=("name", "reciprocal"))
def value_and_gradient(name, log_ratio, advantage, where=None, log_proximal=None, **options):
    if name == "decoupled":
        options["log_proximal"] = log_proximal
    return jax.value_and_grad(partial(getattr(surrogates, name), **options))(log_ratio, advantage, where)


def close(x, y, tolerance=1e-5):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), x, y)


@pytest.mark.parametrize(
    ("name", "options", "weights"),
    [
        ("uncorrected", {}, [1, 1, 1, 1]),
        ("importance", {}, RATIOS),
        ("truncated", {}, [2, 0.25, 1.1, 0.9]),
        ("truncated", {"cap": 1.0}, [1, 0.25, 1, 0.9]),
        ("cispo", {}, [1.28, 0.25, 1.1, 0.9]),
        ("cispo", {"low": 0.5, "high": 1.0}, [2, 0.5, 1.1, 0.9]),
        ("masked", {}, [0, 0, 1.1 * 2, 0.9 * 2]),
        ("masked", {"cap": 4.5}, RATIOS),
        ("clipped", {}, [0, 0, 1.1, 0.9]),
        ("clipped", {"clip": 0.05}, [0, 0, 0, 0.9]),
        # Outward are 4, 0.25 and 1.1, with squared logarithms of 1.92, 1.92 and 0.009.
        ("m2po", {}, [0, 0, 1.1, 0.9]),
        ("m2po", {"second_moment": 0.9}, [0, 0, 1.1, 0.9]),  # equal squares leave together
        ("m2po", {"second_moment": 1.3}, RATIOS),
    ],
)
def test_gradient_weights_by_hand(name, options, weights):
    _, gradient = value_and_gradient(name, jnp.log(RATIOS), ADVANTAGES, **options)
    close(gradient, -np.array(weights, np.float32) * ADVANTAGES / 4)


@pytest.mark.parametrize(("reciprocal", "lower"), [(False, 0.8), (True, 1 / 1.2)])
def test_the_lower_end_of_a_clip_may_be_the_reciprocal_of_the_upper_one(reciprocal, lower):
    """Just within the ends 1 + 0.2 and 1 - 0.2, or 1 / 1.2, ratios have their weight, just outside none."""
    r = np.array([lower - 0.01, lower + 0.01, 1.19, 1.21], np.float32)
    advantage, expected = np.array([-1, -1, 1, 1], np.float32), np.array([0, r[1], -r[2], 0]) / 4
    _, gradient = value_and_gradient("clipped", jnp.log(r), advantage, reciprocal=reciprocal)
    close(gradient, expected)
    log_proximal = jnp.log(jnp.full(4, 3.0))
    moved = {"log_proximal": log_proximal, "reciprocal": reciprocal}
    close(value_and_gradient("decoupled", jnp.log(r) + log_proximal, advantage, **moved)[1], 3 * expected)


def test_the_weight_of_a_proximal_policy_is_capped_at_100():
    log_proximal = jnp.log(jnp.array([99.0, 5000.0]))
    _, gradient = value_and_gradient("decoupled", log_proximal, jnp.array([-1.0, -1.0]), log_proximal=log_proximal)
    close(gradient, [99 / 2, 100 / 2])


@given(NUMBERS)
def test_at_equal_policies_all_are_the_policy_gradient(advantage):
    zeros = jnp.zeros(6)
    for name in surrogates.SurrogateName.__args__:
        value, gradient = value_and_gradient(name, zeros, advantage, log_proximal=zeros)
        close(value, -advantage.mean())
        close(gradient, -advantage / 6)


@given(NUMBERS, NUMBERS, NUMBERS)
def test_identities(log_ratio, advantage, log_proximal):
    def both(name, **options):
        return value_and_gradient(name, log_ratio, advantage, **options)

    close(both("cispo", low=1.0, high=0.5), both("truncated", cap=1.5))
    plain = both("importance")
    for name, option in [("truncated", "cap"), ("masked", "cap"), ("clipped", "clip"), ("m2po", "second_moment")]:
        close(both(name, **{option: 1e6}), plain)
    close(both("decoupled", log_proximal=jnp.zeros(6)), both("clipped"))
    # A proximal policy equal to the learned one leaves the importance weight alone: the exact policy gradient.
    close(both("decoupled", log_proximal=log_ratio), plain)
    close(both("decoupled", log_proximal=log_ratio, cap=1.5)[1], both("truncated", cap=1.5)[1])
    # The trust region moves with the proximal policy; the weight only scales.
    _, gradient = value_and_gradient("clipped", log_ratio - log_proximal, advantage)
    close(both("decoupled", log_proximal=log_proximal)[1], np.exp(log_proximal) * gradient, 1e-4)


@given(NUMBERS, NUMBERS, MASKS, NUMBERS)
def test_actions_that_do_not_count_do_not_matter(log_ratio, advantage, mask, garbage):
    for name in surrogates.SurrogateName.__args__:
        one = value_and_gradient(name, log_ratio, advantage, mask, log_proximal=jnp.zeros(6))
        other = np.where(mask, log_ratio, 3 * garbage), np.where(mask, advantage, 5 * garbage)
        close(one, value_and_gradient(name, *other, mask, log_proximal=jnp.zeros(6)))
        unknown = [np.where(mask, x, np.float32(np.nan)) for x in (log_ratio, advantage, 0 * log_ratio)]
        close(one, value_and_gradient(name, *unknown[:2], mask, log_proximal=unknown[2]))
        assert np.all(np.asarray(one[1])[~mask] == 0)


@pytest.mark.parametrize("name", PLAIN)
def test_a_mask_is_a_smaller_batch(name):
    mask = np.array([True, False, True, True])
    value, gradient = value_and_gradient(name, jnp.log(RATIOS), ADVANTAGES, mask)
    smaller, of_smaller = value_and_gradient(name, jnp.log(RATIOS[mask]), ADVANTAGES[mask])
    close(value, smaller)
    close(np.asarray(gradient)[mask], of_smaller)


@given(NUMBERS, NUMBERS, st.sampled_from([0.01, 0.04, 0.5]))
def test_m2po_is_the_greedy_loop(log_ratio, advantage, limit):
    square = np.square(log_ratio)
    kept = set(np.flatnonzero(log_ratio * advantage > 0))
    while kept and np.mean([square[i] for i in kept], dtype=np.float64) > limit * (1 + 1e-5):
        largest = max(square[i] for i in kept)
        kept -= {i for i in kept if square[i] == largest}
    outward = log_ratio * advantage > 0
    weight = np.where([not outward[i] or i in kept for i in range(6)], np.exp(log_ratio), 0)
    _, gradient = value_and_gradient("m2po", log_ratio, advantage, second_moment=limit)
    close(gradient, -weight * advantage / 6, 1e-4)


def test_m2po_does_not_let_equal_ratios_in_again():
    """With one of the two the mean square is .030, with both .040."""
    log_ratio = np.array([1e-6, 0.245, 0.245], np.float32)
    _, gradient = value_and_gradient("m2po", log_ratio, np.ones(3, np.float32), second_moment=0.035)
    assert (np.asarray(gradient) != 0).tolist() == [True, False, False]


@pytest.mark.parametrize("name", surrogates.SurrogateName.__args__)
def test_extreme_ratios_stay_finite(name):
    log_ratio, advantage = jnp.array([500.0, -500.0, 500.0]), jnp.array([0.0, 1.0, -1.0])
    assert np.all(
        np.isfinite(
            np.concatenate([*map(np.ravel, value_and_gradient(name, log_ratio, advantage, log_proximal=log_ratio))])
        )
    )
    value, gradient = value_and_gradient(name, log_ratio, advantage, jnp.zeros(3, bool), log_proximal=log_ratio)
    assert value == 0
    assert np.all(np.asarray(gradient) == 0)


@pytest.mark.parametrize("name", PLAIN)
def test_numbers_of_numpy_are_taken_without_a_warning(name):
    log_ratio, advantage = np.log(RATIOS), np.float64(ADVANTAGES)
    doubles = getattr(surrogates, name)(np.float64(log_ratio), advantage)
    close(doubles, value_and_gradient(name, jnp.asarray(log_ratio), ADVANTAGES)[0])


@pytest.mark.parametrize("name", PLAIN)
def test_an_action_that_the_learned_policy_forbids_is_one_of_ratio_0(name):
    forbidden, rare = (value_and_gradient(name, jnp.array([x, 0.1]), jnp.array([1.0, -2.0])) for x in (-jnp.inf, -80.0))
    close(forbidden[0], rare[0])
    close(forbidden[1][1], rare[1][1])
    assert np.isfinite(forbidden[1][0])


@partial(jax.jit, static_argnames=("name", "cap"))
def expected_gradient(name, logits, behaviour, weighted_advantage, cap):
    def loss(logits):
        log_ratio = jax.nn.log_softmax(logits) - jax.nn.log_softmax(behaviour)
        options = {} if cap is None else {"cap": cap}
        if name == "decoupled":
            options["log_proximal"] = jax.lax.stop_gradient(log_ratio)
        return getattr(surrogates, name)(log_ratio, weighted_advantage, **options)

    return jax.grad(loss)(logits)


@given(NUMBERS, NUMBERS, NUMBERS)
def test_stale_softmax_policy_gradient_by_enumeration(logits, behaviour, advantage):
    """E_mu of each estimator over all actions, against its closed form."""
    mu, pi = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (behaviour, logits))
    score = np.eye(6) - pi  # row a: grad log pi(a) with respect to the logits

    def expected(name, cap=None):
        # A mean over the six actions with mu in the advantage is an expectation under mu.
        return expected_gradient(name, logits, behaviour, 6 * mu * advantage, cap)

    for cap in (1.0, 1.5):
        close(expected("truncated", cap=cap), -(np.minimum(cap * mu, pi) * advantage) @ score, 1e-4)
    exact = -(pi * advantage) @ score  # the policy gradient of sum_a pi(a) A(a)
    close(expected("importance"), exact, 1e-4)
    close(expected("decoupled", cap=1e6), exact, 1e-4)
    close(np.sum(mu * np.minimum(1.0, pi / mu)), 1 - 0.5 * np.abs(mu - pi).sum(), 1e-4)
