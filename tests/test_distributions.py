"""Distributions against numpy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncjax.distributions import Categorical, Gaussian, gumbel

pytestmark = pytest.mark.usefixtures("quick_compilation")

P = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], np.float32)
Q = np.array([[0.2, 0.2, 0.6], [0.3, 0.3, 0.4]], np.float32)
PI, OTHER = Categorical(jnp.log(jnp.asarray(P)) + 3.0), Categorical(jnp.log(jnp.asarray(Q)))


def test_closed_forms():
    np.testing.assert_allclose(PI.log_prob(jnp.array([1, 2])), np.log([0.25, 0.7]), rtol=1e-6)
    np.testing.assert_allclose(PI.entropy(), -np.sum(P * np.log(P), -1), rtol=1e-6)
    np.testing.assert_allclose(PI.kl(OTHER), np.sum(P * np.log(P / Q), -1), rtol=1e-5)
    np.testing.assert_array_equal(PI.mode(), [0, 2])
    assert PI.mode().dtype == jnp.int32


def test_samples_have_the_right_frequencies():
    actions = jax.vmap(PI.sample)(jax.random.split(jax.random.key(0), 20_000))
    frequency = np.stack([(actions == a).mean(0) for a in range(3)], -1)
    np.testing.assert_allclose(frequency, P, atol=0.015)
    assert actions.dtype == jnp.int32


def test_noise_drawn_in_advance_gives_the_same_samples():
    key = jax.random.key(1)
    np.testing.assert_array_equal(PI.sample(key), PI.sample_with(gumbel(key, (2, 3))))


def test_forbidden_actions_have_finite_entropy_and_gradients():
    def entropy(x):
        return Categorical(jnp.array([0.0, 0.0, -jnp.inf]).at[0].set(x)).entropy()

    np.testing.assert_allclose(entropy(0.0), np.log(2.0), rtol=1e-6)
    assert np.isfinite(jax.grad(entropy)(0.3))
    forbidden = Categorical(jnp.array([0.0, -jnp.inf]))
    np.testing.assert_allclose(forbidden.kl(Categorical(jnp.zeros(2))), np.log(2.0), rtol=1e-6)
    assert np.isinf(Categorical(jnp.zeros(2)).kl(forbidden))


@jax.jit
def measured(x):
    pi = Categorical(x)
    return pi.log_probs(), pi.entropy(), pi.kl(pi), jax.grad(lambda x: Categorical(x).entropy())(x)


LOGITS = st.sampled_from([2, 3, 6]).flatmap(  # few lengths: each is compiled
    lambda length: st.lists(st.floats(-20, 20, width=32), min_size=length, max_size=length)
)


@settings(deadline=None, max_examples=40)
@given(LOGITS)
def test_gradient_of_entropy_and_bounds(logits):
    log_probs, entropy, divergence, gradient = measured(jnp.asarray(logits, jnp.float32))
    p = np.exp(np.asarray(log_probs, np.float64))
    assert -1e-5 <= float(entropy) <= np.log(len(logits)) + 1e-5
    np.testing.assert_allclose(divergence, 0.0, atol=1e-6)
    exact = -p * (np.log(np.maximum(p, 1e-300)) + float(entropy))
    np.testing.assert_allclose(gradient, exact, atol=1e-5)


def test_gaussians_against_closed_forms():
    """Unit Gaussians shifted by m: KL = m^2 / 2 and an effective sample size of exp(-m^2) n."""
    mean, log_std = jnp.array([0.3, -1.0]), jnp.array([0.2, -0.5])
    pi = Gaussian(mean, log_std)
    x = jnp.array([0.1, 0.4])
    densities = np.exp(-0.5 * ((x - mean) / np.exp(log_std)) ** 2) / np.sqrt(2 * np.pi) / np.exp(log_std)
    np.testing.assert_allclose(pi.log_prob(x), np.log(densities).sum(), rtol=1e-5)
    np.testing.assert_allclose(pi.entropy(), np.sum(0.5 * np.log(2 * np.pi * np.e) + log_std), rtol=1e-6)
    unit, shifted = Gaussian(jnp.zeros(1), jnp.zeros(1)), Gaussian(jnp.full(1, 0.5), jnp.zeros(1))
    np.testing.assert_allclose(unit.kl(shifted), 0.125, rtol=1e-6)
    x = jnp.linspace(-9.0, 9.0, 4001)[:, None]
    log_p, log_q = jax.vmap(unit.log_prob)(x), jax.vmap(shifted.log_prob)(x)
    p, ratio = jnp.exp(log_p), jnp.exp(log_q - log_p)
    np.testing.assert_allclose(jnp.sum(p * ratio**2) * (18 / 4000), np.exp(0.25), rtol=1e-4)


def test_one_log_std_stands_for_that_of_every_row():
    mean, log_std, noise = jnp.array([[0.3, -1.0], [2.0, 0.5]]), jnp.array([0.2, -0.5]), jnp.ones((2, 2))
    one, each = Gaussian(mean, log_std), Gaussian(mean, jnp.stack([log_std] * 2))
    other = Gaussian(jnp.zeros((2, 2)), jnp.zeros(()))
    for of in (lambda pi: pi.log_prob(noise), lambda pi: pi.kl(other), lambda pi: other.kl(pi), Gaussian.entropy):
        np.testing.assert_array_equal(of(one), of(each))
    np.testing.assert_array_equal(one.sample_with(noise), each.sample_with(noise))


def test_the_kl_of_gaussians_is_its_integral():
    p, q = Gaussian(jnp.array([0.3]), jnp.array([0.2])), Gaussian(jnp.array([-0.4]), jnp.array([-0.1]))
    x = jnp.linspace(-12.0, 12.0, 8001)[:, None]
    log_p, log_q = jax.vmap(p.log_prob)(x), jax.vmap(q.log_prob)(x)
    integral = jnp.sum(jnp.exp(log_p) * (log_p - log_q)) * (24 / 8000)
    np.testing.assert_allclose(p.kl(q), integral, rtol=1e-4)


def test_gaussian_samples_have_their_moments():
    pi = Gaussian(jnp.array([2.0, -1.0]), jnp.log(jnp.array([0.5, 3.0])))
    keys = jax.random.split(jax.random.key(0), 20_000)
    samples = jax.vmap(pi.sample)(keys)
    np.testing.assert_allclose(samples.mean(0), pi.mean, atol=0.08)
    np.testing.assert_allclose(samples.std(0), [0.5, 3.0], rtol=0.03)
    np.testing.assert_array_equal(pi.mode(), pi.mean)
