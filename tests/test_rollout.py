"""Rollouts: bookkeeping of episodes, randomness, bootstrap observations, memory; and evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncjax.environment import make_env
from asyncjax.evaluate import evaluate
from asyncjax.method import Method, Policy
from asyncjax.rollout import init_rollout, next_observations, next_values, truncates_at_most_once, unroll
from tests import probes

pytestmark = pytest.mark.usefixtures("quick_compilation")


def coin_flips(carry, observation, key):
    return carry, jax.random.bernoulli(key).astype(jnp.int32), observation


def go_right(carry, observation, key):
    return carry, jnp.int32(1), ()


def test_statistics_count_the_episodes_that_ended_and_carry_the_rest_over():
    env = probes.corridor(5)
    rollout = init_rollout(env, jax.random.key(0), 3)
    rollout, trajectory, metrics = unroll(env, go_right, rollout, 4)
    assert not any(metrics.values())
    np.testing.assert_array_equal(rollout.episode_length, [4.0] * 3)
    rollout, trajectory, metrics = unroll(env, go_right, rollout, 4)
    assert {name: float(x) for name, x in metrics.items()} == {"episodes": 3.0, "return_sum": -15.0, "length_sum": 15.0}
    np.testing.assert_array_equal(rollout.episode_return, [-3.0] * 3)
    np.testing.assert_array_equal(trajectory.observation[:, 0, 0], [4.0, 0.0, 1.0, 2.0])
    np.testing.assert_array_equal(trajectory.terminated[:, 0], [True, False, False, False])


def test_rewards_may_be_integers():
    env = probes.corridor(5)

    def step(key, state, action):
        state, outcome = env.step(key, state, action)
        return state, outcome._replace(reward=outcome.reward.astype(jnp.int32))

    kinds = [unroll(e, go_right, init_rollout(e, jax.random.key(0), 3), 8) for e in (env, env._replace(step=step))]
    assert kinds[1][1].reward.dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, kinds[0][1:], kinds[1][1:])


def test_every_step_belongs_to_one_episode():
    env = make_env("CartPole-v1", max_steps_in_episode=15)
    rollout = init_rollout(env, jax.random.key(0), 6)
    segment = jax.jit(lambda r: unroll(env, coin_flips, r, 10))
    steps = rewards = 0.0
    for _ in range(5):
        rollout, _, metrics = segment(rollout)
        steps += float(metrics["length_sum"])
        rewards += float(metrics["return_sum"])
    assert steps + float(rollout.episode_length.sum()) == 5 * 10 * 6
    assert rewards + float(rollout.episode_return.sum()) == 5 * 10 * 6  # CartPole pays 1 a step


def test_no_random_number_is_used_twice():
    def record(carry, observation, key):
        return carry, jnp.int32(0), jax.random.key_data(key)

    env = probes.observed_value()
    rollout, first, _ = unroll(env, record, init_rollout(env, jax.random.key(0), 16), 12)
    _, second, _ = unroll(env, record, rollout, 12)
    keys = np.concatenate([first.extra, second.extra]).reshape(-1, 2)
    assert len(np.unique(keys, axis=0)) == len(keys)
    flips = np.concatenate([first.observation, second.observation])[..., 0]
    assert len(np.unique(flips, axis=1).T) == 16  # all environments differ
    assert not np.array_equal(first.observation, second.observation)


def test_noise_is_drawn_once_for_the_whole_segment():
    env, calls = probes.best_action(), []

    def draw(key, shape):
        calls.append(shape)
        return jax.random.randint(key, shape, 0, 2, jnp.int32)

    _, trajectory, _ = unroll(
        env, lambda carry, o, noise: (carry, noise, ()), init_rollout(env, jax.random.key(0), 5), 7, draw=draw
    )
    assert calls == [(7, 5)]
    np.testing.assert_array_equal(trajectory.reward, np.where(trajectory.action == 1, 1.0, -1.0))


@pytest.mark.parametrize("length", [1, 2, 7])
def test_two_bootstrap_observations_are_as_good_as_all(length):
    """With max_steps known only two slots are kept; the next values are the same as from all observations."""
    env = make_env("CartPole-v1", max_steps_in_episode=9)
    ignorant = env._replace(max_steps=None)

    def values(observation):
        return observation @ jnp.array([1.0, 2.0, 3.0, 4.0])

    seen = []
    for e in (env, ignorant):
        segment = jax.jit(lambda r, e=e: unroll(e, coin_flips, r, length))
        rollout = init_rollout(e, jax.random.key(1), 8)
        for _ in range(9):
            rollout, trajectory, _ = segment(rollout)
            next_ = jax.vmap(next_values, 1, 1)(
                values(trajectory.observation), values(trajectory.bootstrap_observation), trajectory.truncated
            )
            seen.append(np.where(trajectory.terminated, 0.0, next_))
            np.testing.assert_allclose(values(next_observations(trajectory)), next_, rtol=1e-6)
            slots = len(trajectory.bootstrap_observation)
            assert slots == (2 if truncates_at_most_once(e, length) else length)
    np.testing.assert_array_equal(seen[:9], seen[9:])


def test_next_values_by_hand():
    v = jnp.array([1.0, 2.0, 3.0, 4.0])
    cut = jnp.array([False, True, False, False])
    np.testing.assert_array_equal(next_values(v, jnp.array([9.0, 8.0]), cut), [2.0, 9.0, 4.0, 8.0])
    np.testing.assert_array_equal(next_values(v, jnp.array([5.0, 6.0, 7.0, 8.0]), cut), [2.0, 6.0, 4.0, 8.0])
    at_the_end = jnp.array([False, False, False, True])
    np.testing.assert_array_equal(next_values(v, jnp.array([9.0, 8.0]), at_the_end), [2.0, 3.0, 4.0, 8.0])


def test_memory_is_reset_where_an_episode_ends():
    env = probes.corridor(3)
    initial = jnp.int32(10)

    def remember(carry, observation, key):
        return carry + 1, jnp.int32(1), carry

    rollout = init_rollout(env, jax.random.key(0), 2, carry=initial)
    rollout, trajectory, _ = unroll(env, remember, rollout, 5, initial_carry=initial)
    np.testing.assert_array_equal(trajectory.extra, [[10, 10], [11, 11], [12, 12], [10, 10], [11, 11]])
    np.testing.assert_array_equal(trajectory.carry, [[10, 10]])
    np.testing.assert_array_equal(rollout.carry, [12, 12])


def method_of(act):
    policy = Policy(initial_carry=lambda: jnp.int32(0), act=act)
    return Method(init=None, view=lambda shared: shared, work=None, apply=None, policy=policy)  # type: ignore[arg-type]


ALWAYS = method_of(lambda view, carry, observation, key: (jnp.int32(view), carry))


def test_evaluation_counts_whole_first_episodes():
    returns = evaluate(ALWAYS, probes.corridor(6), 1, jax.random.key(0), num_episodes=4, max_steps=50)
    np.testing.assert_array_equal(returns, [-6.0] * 4)
    truncated = evaluate(ALWAYS, probes.corridor(6, max_steps=9), 0, jax.random.key(0), num_episodes=4)
    np.testing.assert_array_equal(truncated, [-9.0] * 4)
    capped = evaluate(ALWAYS, probes.corridor(6), 0, jax.random.key(0), num_episodes=4, max_steps=5)
    np.testing.assert_array_equal(capped, [-5.0] * 4)


def test_evaluation_is_greedy_or_sampled_and_fresh():
    def act(view, carry, observation, key):
        sampled = jnp.int32(0) if key is None else jax.random.randint(key, (), 0, 2, jnp.int32)
        return (jnp.int32(1) if key is None else sampled), carry

    env = probes.best_action()._replace(max_steps=1)
    assert float(evaluate(method_of(act), env, 0, jax.random.key(0), 50).mean()) == 1.0
    sampled = evaluate(method_of(act), env, 0, jax.random.key(0), 400, greedy=False)
    assert abs(float(sampled.mean())) < 0.2
    other = evaluate(method_of(act), env, 0, jax.random.key(1), 400, greedy=False)
    assert not np.array_equal(sampled, other)


def test_evaluation_carries_memory():
    alternate = method_of(lambda view, carry, observation, key: (carry % 2, carry + 1))  # left, right, left, ...
    env = probes.corridor(1)  # position 0, left: stays; right: the end
    np.testing.assert_array_equal(evaluate(alternate, env, 0, jax.random.key(0), 3, max_steps=9), [-2.0] * 3)


def test_evaluation_errors_name_the_fix():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"max_steps=None.*Corridor"):
        evaluate(ALWAYS, probes.corridor(2), 1, key)
    with pytest.raises(ValueError, match="num_episodes=0"):
        evaluate(ALWAYS, "CartPole-v1", 1, key, num_episodes=0)
    with pytest.raises(TypeError, match=r"num_episodes=2\.5: give a whole number"):
        evaluate(ALWAYS, "CartPole-v1", 1, key, num_episodes=2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"key=0 .* jax\.random\.key\(0\)"):
        evaluate(ALWAYS, "CartPole-v1", 1, 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"shared is a dict, .* give result\.shared"):
        evaluate(ALWAYS._replace(view=lambda shared: shared.params), "CartPole-v1", {}, key)
    with pytest.raises(ValueError, match=r"method\.policy is None"):
        evaluate(ALWAYS._replace(policy=None), "CartPole-v1", 1, key)
