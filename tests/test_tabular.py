"""Asynchronous tabular Q-learning and Sarsa against their exact answers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import asyncjax as aj
from tests.laws import KEY, assert_equal

pytestmark = pytest.mark.usefixtures("quick_compilation")

ONE_STATE = aj.mdp.cycle(1)  # reward 1, for ever


def exact_q(mdp: aj.MDP, discount: float) -> np.ndarray:
    """The optimal action values, Float64[A, S]."""
    values = aj.mdp.exact_values(mdp, discount)
    return np.asarray(mdp.reward) + discount * (mdp.probability * values[mdp.successor]).sum(1)


def test_with_certain_transitions_a_step_size_of_1_is_exact() -> None:
    """Then it is value iteration of one pair at a time, under any delays."""
    mdp = aj.mdp.grid_world(["..#", "#..", "..G"], slip=0.0, step_reward=-1.0)
    reference = exact_q(mdp, 0.5)
    schedule = aj.schedules.from_service_times(aj.service.exponential(), 1500, 4, KEY)
    run = aj.tabular_q(mdp, 0.5, step_size=1.0, epsilon=1.0, reference=reference)
    result = aj.emulate(run, schedule, KEY)
    reached = np.asarray(result.shared.count) > 0
    np.testing.assert_allclose(np.where(reached, result.shared.q, reference), reference, atol=1e-6)
    assert reached.mean() > 0.9
    assert int(result.shared.count.sum()) == 1500


def test_decreasing_step_sizes_find_the_optimal_values_of_a_random_problem() -> None:
    mdp, discount = aj.mdp.garnet(3, 4, 2, 2), 0.5
    reference = exact_q(mdp, discount)
    run = aj.tabular_q(
        mdp, discount, step_size=lambda n: 1 / (1 + 0.5 * n.astype(float)), epsilon=0.5, unroll_length=10
    )
    schedule = aj.schedules.from_service_times(aj.service.exponential(), 4000, 4, KEY)
    np.testing.assert_allclose(aj.emulate(run, schedule, KEY).shared.q, reference, atol=0.05)


@pytest.mark.parametrize("stale_error", [False, True])
def test_noisy_rewards_give_the_mean_and_the_variance_of_the_theory(stale_error: bool) -> None:
    """Mean m / (1 - discount), variance a s^2 / ((1 - discount) (2 - a (1 - discount))) for a step size a."""
    discount, step, noise, runs = 0.5, 0.4, 2.0, 4000
    run = aj.tabular_q(ONE_STATE, discount, step_size=step, reward_noise=noise, initial_q=2.0, stale_error=stale_error)
    schedule = aj.schedules.sequential(40)
    q = jax.jit(jax.vmap(lambda key: aj.emulate(run, schedule, key).shared.q[0, 0]))(jax.random.split(KEY, runs))
    variance = step * noise**2 / ((1 - discount) * (2 - step * (1 - discount)))
    assert abs(float(q.mean()) - 2.0) < 5 * np.sqrt(variance / runs)
    assert abs(float(q.var()) - variance) < 5 * variance * np.sqrt(2 / runs)


def test_a_stale_error_is_stable_just_below_the_threshold_and_a_stale_target_far_above() -> None:
    """Stable iff a (1 - discount) < 2 sin(pi / (2 (2 delay + 1))); against the newest value every a <= 1 is."""
    discount, delays = 0.5, np.arange(4)
    thresholds = 2 * np.sin(np.pi / (2 * (2 * delays + 1))) / (1 - discount)
    schedules = [aj.schedules.fixed_delay(500, delay) for delay in range(4)]
    read = np.stack([np.asarray(schedule.read) for schedule in schedules])

    def error(step: jax.Array, read: jax.Array, stale_error: bool) -> jax.Array:
        run = aj.tabular_q(ONE_STATE, discount, step_size=step, stale_error=stale_error)
        schedule = schedules[0]._replace(read=read)
        return jnp.abs(aj.emulate(run, schedule, KEY, num_workers=1, num_views=4).shared.q[0, 0] - 2)

    steps, reads = np.concatenate([0.95 * thresholds, 1.05 * thresholds]), np.concatenate([read, read])
    below, above = np.split(np.asarray(jax.jit(jax.vmap(lambda a, r: error(a, r, True)))(steps, reads)), 2)
    assert (below < 0.02).all()
    assert ((above > 100) | ~np.isfinite(above)).all()
    assert (jax.jit(jax.vmap(lambda a, r: error(a, r, False)))(np.ones(4), read) < 1e-3).all()


def test_sarsa_evaluates_the_random_walk_that_it_takes() -> None:
    run = aj.tabular_sarsa(
        aj.mdp.random_walk(5), 1.0, step_size=lambda n: n.astype(float) ** -0.7, start=3, unroll_length=10
    )
    q = aj.emulate(run, aj.schedules.round_robin(3000, 4), KEY).shared.q
    np.testing.assert_allclose(q[0, 1:-1], np.arange(1, 6) / 6, atol=0.05)


def test_sarsa_learns_the_values_of_its_own_policy_and_q_learning_the_best_ones() -> None:
    """In a state with rewards 0 and 1, acting at random is worth half as much as acting best."""
    mdp = aj.mdp.from_arrays(np.ones((2, 1, 1)), [[0.0], [1.0]])

    def q(build: Any) -> np.ndarray:
        run = build(mdp, 0.5, epsilon=1.0, step_size=lambda n: 1 / (1 + 0.5 * n.astype(float)))
        return np.asarray(aj.emulate(run, aj.schedules.round_robin(4000, 2), KEY).shared.q[:, 0])

    np.testing.assert_allclose(q(aj.tabular_q), [1.0, 2.0], atol=0.01)
    np.testing.assert_allclose(q(aj.tabular_sarsa), [0.5, 1.5], atol=0.05)


def test_where_an_episode_is_broken_off_sarsa_goes_on_from_where_it_came() -> None:
    """State 0 has only action 0 and leads to state 1, which has only action 1 and pays 4 for ever."""
    mdp = aj.mdp.from_arrays(np.tile([0.0, 1.0], (2, 2, 1)), [[1.0, -np.inf], [-np.inf, 4.0]])
    run = aj.tabular_sarsa(mdp, 0.5, step_size=1.0, max_steps=1, unroll_length=5)
    q = aj.emulate(run, aj.schedules.sequential(100), KEY).shared.q
    np.testing.assert_allclose(q, [[5.0, 0.0], [0.0, 8.0]], rtol=1e-5)


def test_the_error_is_of_the_actions_that_are_available() -> None:
    """Of the others the reference is minus infinity, and the table has what it began with."""
    mdp = aj.mdp.from_arrays(np.tile([0.0, 1.0], (2, 2, 1)), [[1.0, -np.inf], [-np.inf, 4.0]])
    reference = exact_q(mdp, 0.5)
    assert np.isneginf(reference).sum() == 2
    run = aj.tabular_q(mdp, 0.5, step_size=1.0, max_steps=1, unroll_length=5, initial_q=7.0, reference=reference)
    errors = aj.emulate(run, aj.schedules.sequential(100), KEY).metrics["error"]
    assert errors.max() <= 2.0
    assert abs(errors[-1]) < 1e-5


def test_with_one_action_sarsa_is_q_learning() -> None:
    mdp, schedule = aj.mdp.garnet(0, 5, 1, 2), aj.schedules.round_robin(100, 3)
    results = [aj.emulate(build(mdp, 0.9), schedule, KEY) for build in (aj.tabular_q, aj.tabular_sarsa)]
    assert_equal(results[0], results[1])


def test_actions_that_are_not_available_are_never_taken() -> None:
    mdp = aj.mdp.inventory()
    run = aj.tabular_q(mdp, 0.9, epsilon=0.8, initial_q=-100.0, unroll_length=20, max_steps=7)
    result = aj.emulate(run, aj.schedules.round_robin(100, 2), KEY)
    taken = np.asarray(result.shared.count) > 0
    np.testing.assert_array_equal(taken, np.isfinite(mdp.reward))
    assert run.policy is not None
    for state in range(mdp.num_states):
        for key in (None, KEY):
            action, _ = run.policy.act(result.shared.q, (), jnp.int32(state), key)
            assert np.isfinite(mdp.reward[int(action), state])


@pytest.mark.parametrize("build", [aj.tabular_q, aj.tabular_sarsa])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epsilon": -1.0}, "epsilon=-1.0: give a number between 0 and 1"),
        ({"step_size": -1.0}, "step_size=-1.0: give a number of at least 0"),
        ({"reference": np.zeros(1)}, r"reference has the shape \(1,\): give one of \(1, 1\)"),
        ({"max_steps": 2.5}, "max_steps=2.5: give a whole number"),
        ({"start": 0.5}, "start=0.5: episodes begin in one or more of the states 0 to 0"),
    ],
)
def test_options_that_no_walk_has_are_refused(build: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        build(ONE_STATE, 0.9, **options)
