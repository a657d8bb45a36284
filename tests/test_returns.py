"""Returns: hand-computed numbers, a naive loop, and the identities between them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncjax import returns

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Five transitions, discount 1/2: the second is terminal, the fourth is truncated.
R = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0])
V_TM1 = jnp.array([10.0, 20.0, 30.0, 40.0, 50.0])
V_T = jnp.array([20.0, 99.0, 40.0, 8.0, 6.0])  # 99 belongs to a terminal state: it must never count
TERMINATED = jnp.array([False, True, False, False, False])
TRUNCATED = jnp.array([False, False, False, True, False])
DISCOUNT = returns.discounts(TERMINATED, 0.5)


def test_discounts_are_zero_only_where_terminated():
    np.testing.assert_array_equal(DISCOUNT, [0.5, 0.0, 0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    ("lambda_", "expected"),
    [
        # Backwards: 5 + 6/2; cut at 4 + 8/2; 3 + 8/2; the end 2; 1 + 2/2.
        (1.0, [2.0, 2.0, 7.0, 8.0, 8.0]),
        # r + v/2 everywhere.
        (0.0, [11.0, 2.0, 23.0, 8.0, 8.0]),
        # Half of each: 3 + (40/2 + 8/2)/2 and 1 + (20/2 + 2/2)/2.
        (0.5, [6.5, 2.0, 15.0, 8.0, 8.0]),
    ],
)
def test_lambda_returns_by_hand(lambda_, expected):
    g = returns.lambda_returns(R, DISCOUNT, V_T, lambda_, TRUNCATED)
    np.testing.assert_allclose(g, expected)
    np.testing.assert_allclose(returns.gae(R, DISCOUNT, V_TM1, V_T, lambda_, TRUNCATED), np.array(expected) - V_TM1)


def test_gae_by_hand():
    # delta = (1, -18, -7, -32, -42); A_0 = 1 - 18/4, A_2 = -7 - 32/4.
    advantage = returns.gae(R, DISCOUNT, V_TM1, V_T, 0.5, TRUNCATED)
    np.testing.assert_allclose(advantage, [-3.5, -18.0, -15.0, -32.0, -42.0])


@pytest.mark.parametrize(
    ("n", "expected"),
    [(1, [11.0, 2.0, 23.0, 8.0, 8.0]), (2, [2.0, 2.0, 7.0, 8.0, 8.0]), (9, [2.0, 2.0, 7.0, 8.0, 8.0])],
)
def test_n_step_returns_by_hand(n, expected):
    np.testing.assert_allclose(returns.n_step_returns(R, DISCOUNT, V_T, n, TRUNCATED), expected)


def test_vtrace_by_hand():
    # rho = (2, 1/2, 1, 1, 3) gives min(1, rho) = (1, 1/2, 1, 1, 1);
    # delta = (1, -9, -7, -32, -42); errors: 1 - 9/2; -9; -7 - 32/2; cut: -32; -42.
    rho = jnp.array([2.0, 0.5, 1.0, 1.0, 3.0])
    out = returns.vtrace(R, DISCOUNT, V_TM1, V_T, rho, truncated_t=TRUNCATED)
    np.testing.assert_allclose(out.targets, V_TM1 + np.array([-3.5, -9.0, -23.0, -32.0, -42.0]))
    # min(1, rho) (r + discount (v_t + next error) - v_tm1)
    np.testing.assert_allclose(out.advantages, [1.0 - 4.5, 0.5 * -18.0, -7.0 - 16.0, -32.0, -42.0])


def test_each_cap_of_vtrace_is_where_its_equation_has_it():
    """One step back from a terminal one, with values of 0: the caps of delta, trace and advantage are told apart."""
    r, discount, zeros, rho = jnp.array([1.0, 1.0]), jnp.array([0.5, 0.0]), jnp.zeros(2), jnp.full(2, 8.0)
    caps: dict[str, Any] = {"clip_rho": 2.0, "clip_c": 3.0, "clip_pg_rho": 5.0}
    out = returns.vtrace(r, discount, zeros, zeros, rho, lambda_=0.5, **caps)
    # The error of the last step is 2; before it 2 + (1/2) (1/2) 3 * 2, and 5 (1 + (1/2) (1/2) 2).
    np.testing.assert_allclose(out.targets, [2.0 + 1.5, 2.0])
    np.testing.assert_allclose(out.advantages, [5.0 * 1.5, 5.0])
    without = returns.vtrace(r, discount, zeros, zeros, rho, lambda_=0.5, **{**caps, "clip_pg_rho": None})
    np.testing.assert_allclose(without.advantages, [1.5, 1.0])


def naive_lambda_returns(r, discount, v, lambda_, truncated):
    g = np.zeros(len(r))
    following = v[-1]
    for t in reversed(range(len(r))):
        mixed = v[t] if truncated[t] else (1 - lambda_) * v[t] + lambda_ * following
        g[t] = following = r[t] + discount[t] * mixed
    return g


def naive_n_step(r, discount, v, n, truncated):
    g = []
    for t in range(len(r)):
        total, weight, k = 0.0, 1.0, t
        while True:
            total += weight * r[k]
            weight *= discount[k]
            if truncated[k] or k + 1 == min(t + n, len(r)):
                break
            k += 1
        g.append(total + weight * v[k])
    return np.array(g)


@st.composite
def segments(draw):
    """A segment whose v_t continues v_tm1 wherever the episode goes on."""
    length = draw(st.sampled_from([1, 2, 6]))  # few lengths: each is compiled
    number = st.floats(-4, 4, width=32)
    r, v_tm1, other = (np.array(draw(st.lists(number, min_size=length, max_size=length))) for _ in range(3))
    end = np.array(draw(st.lists(st.sampled_from(["on", "terminated", "truncated"]), min_size=length, max_size=length)))
    following = np.append(v_tm1[1:], other[-1])
    v_t = np.where(end == "on", following, other)
    discount = np.where(end == "terminated", 0.0, 0.9)
    floats = tuple(jnp.asarray(x, jnp.float32) for x in (r, discount, v_tm1, v_t))
    return (*floats, jnp.asarray(end == "truncated"), draw(st.sampled_from([0.0, 0.3, 0.95, 1.0])))


@jax.jit
def all_returns(r, discount, v_tm1, v_t, truncated, lambda_):
    return (
        returns.lambda_returns(r, discount, v_t, lambda_, truncated),
        returns.gae(r, discount, v_tm1, v_t, lambda_, truncated),
        returns.vtrace(r, discount, v_tm1, v_t, jnp.ones_like(r), lambda_=lambda_, truncated_t=truncated),
        [returns.n_step_returns(r, discount, v_t, n, truncated) for n in (1, 2, 4, 9)],
    )


@settings(deadline=None, max_examples=60)
@given(segments())
def test_returns_equal_a_naive_loop_and_each_other(segment):
    r, discount, v_tm1, v_t, truncated, lambda_ = segment
    g, advantage, on_policy, n_step = all_returns(r, discount, v_tm1, v_t, truncated, jnp.float32(lambda_))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-4)
    close(g, naive_lambda_returns(np.asarray(r), np.asarray(discount), np.asarray(v_t), lambda_, truncated))
    for n, n_step_return in zip((1, 2, 4, 9), n_step, strict=True):
        close(n_step_return, naive_n_step(np.asarray(r), np.asarray(discount), np.asarray(v_t), n, truncated))
    close(advantage + v_tm1, g)
    close(on_policy.targets, g)
    if lambda_ == 1.0:
        close(n_step[-1], g)
        close(on_policy.advantages, advantage)


def test_returns_vmap_and_trace_their_hyperparameters():
    lambdas = jnp.array([0.0, 0.5, 1.0])
    swept = jax.jit(jax.vmap(lambda x: returns.lambda_returns(R, DISCOUNT, V_T, x, TRUNCATED)))(lambdas)
    one_by_one = [returns.lambda_returns(R, DISCOUNT, V_T, float(x), TRUNCATED) for x in lambdas]
    np.testing.assert_allclose(swept, np.stack(one_by_one))


def every_return(r, discount, v_tm1, v_t):
    rho, lambda_ = jnp.ones(len(r), jnp.float32), 0.5
    return [
        returns.lambda_returns(r, discount, v_t, lambda_),
        returns.n_step_returns(r, discount, v_t, 2),
        returns.gae(r, discount, v_tm1, v_t, lambda_),
        *returns.vtrace(r, discount, v_tm1, v_t, rho, lambda_=lambda_),
        returns.retrace(r, discount, v_tm1, v_t, rho, lambda_=lambda_),
    ]


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64, np.float16])
def test_rewards_and_values_of_any_numbers_are_the_same_numbers(dtype):
    """Lambda is not rounded to the type of the rewards: 0.5 as an integer is 0."""
    expected = every_return(R, DISCOUNT, V_TM1, V_T)
    others = [np.asarray(x).astype(dtype) for x in (R, V_TM1, V_T)]
    if dtype == np.float16:  # promotion of two floats is as strict as the user has it
        with pytest.raises(Exception, match="no available implicit dtype promotion"):
            every_return(others[0], DISCOUNT, *others[1:])
        with jax.numpy_dtype_promotion("standard"):
            got = every_return(others[0], DISCOUNT, *others[1:])
    else:
        got = every_return(others[0], DISCOUNT, *others[1:])
    for x, y in zip(got, expected, strict=True):
        assert x.dtype == jnp.float32
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: returns.gae(R, DISCOUNT, V_TM1, jnp.ones(6)), ["'v_t': (6,)", "give T of each"]),
        (lambda: returns.lambda_returns(R[:, None], DISCOUNT[:, None], V_T[:, None]), ["'r_t': (5, 1)", "jax.vmap"]),
        (lambda: returns.lambda_returns(R[:0], DISCOUNT[:0], V_T[:0]), ["'r_t': (0,)"]),
        (lambda: returns.n_step_returns(R, DISCOUNT, V_T, 0), ["n=0", "at least 1"]),
    ],
)
def test_errors_name_the_fix(call, words):
    with pytest.raises(ValueError, match=words[0].replace("(", r"\(").replace(")", r"\)")) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("n", [3.5, 2.0, "3", None])
def test_the_number_of_steps_is_whole_also_where_the_segment_is_shorter(n):
    with pytest.raises(TypeError, match=r"n=.*: give a"):
        returns.n_step_returns(R[:2], DISCOUNT[:2], V_T[:2], n)


def test_retrace_by_hand():
    """The trace of a step is the ratio of the action that begins it, cut at 1, at the end and at a truncation."""
    rho = jnp.array([9.0, 0.5, 9.0, 0.25, 2.0])
    # delta = r + v/2 - q: 1, -18 (terminal), -7, -32, -42; then -7 + 0.25 * -32 / 2 and 1 + 0.5 * -18 / 2.
    expected = [10.0 - 3.5, 20.0 - 18.0, 30.0 - 11.0, 40.0 - 32.0, 50.0 - 42.0]
    got = returns.retrace(R, DISCOUNT, V_TM1, V_T, rho, truncated_t=TRUNCATED)
    np.testing.assert_allclose(got, expected)


def test_retrace_on_policy_is_the_lambda_return_of_expected_values():
    """With rho = 1 and Q(s, a) = E Q(s, .), the target is the lambda-return started from the values."""
    v_t = jnp.append(V_TM1[1:], 6.0)
    got = returns.retrace(R, 0.5 * jnp.ones(5), V_TM1, v_t, jnp.ones(5), lambda_=0.7)
    np.testing.assert_allclose(got, returns.lambda_returns(R, 0.5 * jnp.ones(5), v_t, 0.7), rtol=1e-6)


class Chain(NamedTuple):
    """Two states, two actions, and all paths of three steps through them; `steps` are the paths' probabilities."""

    transition: np.ndarray
    reward: np.ndarray
    pi: np.ndarray
    mu: np.ndarray
    s: np.ndarray
    a: np.ndarray
    given_state: np.ndarray  # of the path, given its first state
    given_action: np.ndarray  # and its first action

    def values(self, policy: np.ndarray) -> np.ndarray:
        """V of a policy, Float[2]."""
        p = np.einsum("sa,sat->st", policy, self.transition)
        return np.linalg.solve(np.eye(2) - GAMMA * p, np.sum(policy * self.reward, 1))


GAMMA = 0.8


def chain(seed: int) -> Chain:
    rng = np.random.default_rng(seed)
    transition, reward = rng.dirichlet(np.ones(2), (2, 2)), rng.normal(size=(2, 2))
    pi, mu = rng.dirichlet(np.ones(2), 2), rng.dirichlet(2 * np.ones(2), 2)
    paths = [(s, a) for s in np.ndindex(2, 2, 2, 2) for a in np.ndindex(2, 2, 2)]
    s, a = (np.array(x) for x in zip(*paths, strict=True))
    rows = np.arange(3)
    acting = mu[s[:, :3], a]
    moving = np.prod(transition[s[:, rows], a[:, rows], s[:, rows + 1]], 1)
    return Chain(transition, reward, pi, mu, s, a, moving * np.prod(acting, 1), moving * np.prod(acting[:, 1:], 1))


@pytest.mark.parametrize("seed", range(3))
def test_the_fixed_point_of_retrace_is_q_of_the_target_policy(seed):
    """The expected target over all of the behaviour's paths leaves Q^pi as it is."""
    c = chain(seed)
    v = c.values(c.pi)
    q = c.reward + GAMMA * c.transition @ v
    s, a = c.s[:, :3], c.a
    inputs = (c.reward[s, a], q[s, a], v[c.s[:, 1:]], (c.pi / c.mu)[s, a])
    targets = jax.vmap(lambda r, q, v, rho: returns.retrace(r, jnp.full(3, GAMMA), q, v, rho, lambda_=0.9))(
        *(jnp.asarray(x, jnp.float32) for x in inputs)
    )
    for first in np.ndindex(2, 2):
        chosen = (c.s[:, 0] == first[0]) & (c.a[:, 0] == first[1])
        expected = np.sum(c.given_action[chosen] * np.asarray(targets)[chosen, 0])
        np.testing.assert_allclose(expected, q[first], rtol=1e-4, atol=1e-5)


def vtrace_operator(c: Chain, v: np.ndarray, clip_rho: float, clip_c: float) -> np.ndarray:
    """The expected V-trace target of each state, Float[2], from the values v."""
    s = c.s[:, :3]
    inputs = (c.reward[s, c.a], v[s], v[c.s[:, 1:]], (c.pi / c.mu)[s, c.a])
    targets = jax.vmap(
        lambda r, v_tm1, v_t, rho: (
            returns.vtrace(r, jnp.full(3, GAMMA), v_tm1, v_t, rho, clip_rho=clip_rho, clip_c=clip_c).targets
        )
    )(*(jnp.asarray(x, jnp.float32) for x in inputs))
    weighted = c.given_state * np.asarray(targets)[:, 0]
    return np.array([np.sum(weighted[c.s[:, 0] == first]) for first in range(2)])


@pytest.mark.parametrize("clip_rho", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(2))
def test_the_fixed_point_of_vtrace_is_set_by_the_cap_of_rho_and_not_of_c(seed, clip_rho):
    """It is V of the policy proportional to min(clip_rho mu, pi); the operator contracts as the paper says."""
    c = chain(seed)
    between = np.minimum(clip_rho * c.mu, c.pi)
    v = c.values(between / between.sum(1, keepdims=True))
    other = v + np.array([1.0, -0.5])
    for clip_c in (0.2, clip_rho):
        found = vtrace_operator(c, v, clip_rho, clip_c)
        np.testing.assert_allclose(found, v, rtol=1e-4, atol=1e-5)
        factor = 1.0 - (1.0 - GAMMA) * between.sum(1).min()
        gap = np.abs(vtrace_operator(c, other, clip_rho, clip_c) - found).max()
        assert gap <= factor * np.abs(other - v).max() + 1e-5
    assert np.abs(v - c.values(c.pi)).max() > (1e-3 if clip_rho < 1.0 else 0.0)
