"""Policy gradient, memory and real actions: plain references and probes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asyncjax as aj
from asyncjax.actor_critic import action_head, collect, forward, make_agent, start
from asyncjax.environment import Box
from asyncjax.methods.policy_gradient import first_episode
from asyncjax.networks import MLP, ActorCritic, RecurrentActorCritic
from tests import probes

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = ActorCritic(2, MLP((8,)))


def rewards(method, env, shared, max_steps, greedy=True):
    return np.asarray(
        aj.evaluate(method, env, shared, jax.random.key(1), num_episodes=200, greedy=greedy, max_steps=max_steps)
    )


@pytest.mark.parametrize("baseline", [True, False])
@pytest.mark.parametrize("unroll_length", [None, 4])
def test_policy_probe(baseline, unroll_length):
    env = probes.observed_action()._replace(max_steps=2)
    method = aj.policy_gradient(
        env, num_envs=16, unroll_length=unroll_length, baseline=baseline, network=SMALL, optimizer=optax.adam(0.03)
    )
    result = aj.emulate(method, aj.schedules.round_robin(200, 4), jax.random.key(0))
    assert rewards(method, env, result.shared, 1).mean() == 1.0


@pytest.mark.parametrize("whole", [True, False])
def test_the_gradient_is_reinforce(whole):
    """Against sums over episodes, step by step: no step after a whole episode's end counts."""
    env = probes.corridor(2, max_steps=5)
    length, discount = (5 if whole else 7), 0.9
    method = aj.policy_gradient(
        env,
        num_envs=3,
        unroll_length=None if whole else length,
        discount=discount,
        baseline=False,
        entropy_cost=0.0,
        max_grad_norm=None,
        network=SMALL,
    )
    agent = make_agent(env, SMALL)
    shared, local = method.init(jax.random.key(3), 1)
    worker = jax.tree.map(lambda x: x[0], local)
    message, _, metrics = jax.jit(method.work)(shared.params, worker)
    begun = start(agent, worker.key, 3) if whole else worker
    trajectory = collect(agent, shared.params, begun, length)[0]
    # Of whole episodes one of each environment counts, or short ones would count more often than long ones.
    ends = np.asarray(trajectory.terminated | trajectory.truncated)
    assert int(metrics["episodes"]) == (3 if whole else ends.sum())
    assert not whole or int(metrics["length_sum"]) == -int(metrics["return_sum"]) == (1 + ends.argmax(0)).sum()
    weights = np.zeros((length, 3), np.float32)
    for n in range(3):
        g, ends = 0.0, np.asarray(trajectory.terminated | trajectory.truncated)[:, n]
        last = int(np.argmax(ends)) if whole and ends.any() else length - 1
        for t in reversed(range(last + 1)):
            g = float(trajectory.reward[t, n]) + discount * (0.0 if ends[t] else g)
            weights[t, n] = g
        if whole:
            np.testing.assert_array_equal(
                first_episode(jax.tree.map(lambda x, n=n: x[:, n], trajectory._replace(carry=()))),
                np.arange(length) <= last,
            )
    steps = float((weights != 0).sum())  # every reward is -1

    def expected(params):
        logits = jax.vmap(jax.vmap(lambda o: SMALL.apply(params, o)[0]))(trajectory.observation)
        log_p = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(log_p, trajectory.action[..., None], -1)[..., 0]
        return -jnp.sum(chosen * weights) / steps

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), message, jax.grad(expected)(shared.params)
    )


@pytest.mark.parametrize("core", ["gru", "lstm"])
def test_the_learner_remembers_what_the_actor_did(core):
    """Replaying a segment from its stored memory gives the actor's distributions, resets and bootstraps included."""
    env = probes.remembered_action(3)
    agent = make_agent(env, RecurrentActorCritic(2, MLP((4,)), core, features=4))
    params = agent.init(jax.random.key(0))
    rollout = start(agent, jax.random.key(1), 2)
    _, rollout, _ = collect(agent, params, rollout, 2)  # the next segment begins in the middle of an episode
    trajectory, after, _ = collect(agent, params, rollout, 5, extra=lambda pi, action: pi.log_prob(action))
    out = forward(agent, params, trajectory)
    log_prob = jax.vmap(lambda pi, action: pi.log_prob(action))(out.pi, trajectory.action)
    np.testing.assert_allclose(log_prob, trajectory.extra, rtol=1e-5, atol=1e-6)
    swapped = jax.tree.map(lambda x: x.swapaxes(0, 1), trajectory)
    by_row = jax.tree.map(lambda x: x.swapaxes(0, 1), forward(agent, params, swapped, axis=0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), by_row, out)
    bootstrap = jax.vmap(lambda c, o: agent.step(params, c, o)[2])(after.carry, after.observation)
    np.testing.assert_allclose(out.v_t[-1], bootstrap, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("core", "lowest", "highest"), [("gru", 0.9, 1.0), ("lstm", 0.9, 1.0), (None, -0.3, 0.3)])
def test_memory_probe(core, lowest, highest):
    env = probes.remembered_action(3)
    settings = {"optimizer": optax.adam(0.01), "num_envs": 16, "unroll_length": 6, "entropy_cost": 0.001}
    method = aj.a3c(env, core=core, **settings)
    result = aj.emulate(method, aj.schedules.round_robin(250, 2), jax.random.key(0))
    assert lowest <= rewards(method, env, result.shared, 3).mean() <= highest


@pytest.mark.parametrize("squash", [False, True])
def test_real_actions_probe(squash):
    env = probes.nearest_number()
    network = ActorCritic(1, MLP((8,)), MLP((8,)), continuous=True)
    settings = {"optimizer": optax.adam(0.02), "num_envs": 16, "unroll_length": 4, "entropy_cost": 0.0}
    method = aj.a3c(env, network=network, squash=squash, **settings)
    result = aj.emulate(method, aj.schedules.round_robin(300, 2), jax.random.key(0))
    assert rewards(method, env, result.shared, 1).mean() > 0.9


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("bounds", [(-1.0, -0.8), (0.1, 0.7), (-3.4e38, 3.4e38), (1 / 3, 1e5)])
def test_no_rounding_leads_out_of_the_bounds(bounds, squash):
    low, high = (np.array([bound], np.float32) for bound in bounds)
    env = probes.nearest_number()._replace(action_space=Box(low, high, (1,), np.dtype(np.float32)))
    _, _, to_env = action_head(env, squash)
    actions = np.array([to_env(jnp.array([x])) for x in (-20.0, -1.0, 0.0, 0.5, 1.0, 20.0)])
    assert np.all((low <= actions) & (actions <= high)), actions


def test_actions_keep_to_the_bounds():
    low, high = np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32)
    env = probes.nearest_number()._replace(action_space=Box(low, high, (2,), np.dtype(np.float32)))
    for squash in (False, True):
        _, _, to_env = action_head(env, squash)
        np.testing.assert_allclose(to_env(jnp.array([-99.0, 99.0])), [-2.0, 10.0])
        np.testing.assert_allclose(to_env(jnp.zeros(2)), [0.0, 5.0])
    unbounded = Box(np.full(1, -np.inf, np.float32), np.full(1, np.inf, np.float32), (1,), np.dtype(np.float32))
    _, _, to_env = action_head(env._replace(action_space=unbounded))
    np.testing.assert_allclose(to_env(jnp.array([99.0])), [99.0])
    from_zero = Box(np.zeros(1, np.float32), np.full(1, np.inf, np.float32), (1,), np.dtype(np.float32))
    _, _, to_env = action_head(env._replace(action_space=from_zero))
    np.testing.assert_allclose([to_env(jnp.array([x]))[0] for x in (-99.0, 99.0)], [0.0, 99.0])
    with pytest.raises(ValueError, match=r"squash=True .*NearestNumber.* have no bounds: leave it out"):
        action_head(env._replace(action_space=from_zero), squash=True)


def test_whole_episodes_need_a_time_limit():
    with pytest.raises(ValueError, match=r"ObservedAction.*states no time limit: set unroll_length"):
        aj.policy_gradient(probes.observed_action())


@pytest.mark.parametrize("private", [False, True])
def test_annealing_counts_the_messages_of_all_workers(private):
    """A constant gradient, steps of eta (1 - k G / K): after K messages nothing moves any more."""
    method = aj.gradient_method(
        lambda key: jnp.float32(0.0),
        lambda key: key,
        lambda w, key: ((), key, {}),
        lambda w, data: (w, {}),
        optax.sgd(1.0),
        private_optimizer=private,
        anneal_messages=8,
    )
    for schedule in (aj.schedules.round_robin(12, 3), aj.schedules.barrier(6, 2)):
        group = schedule.group_size
        expected = -sum(max(0.0, 1 - k * group / 8) for k in range(schedule.num_updates))
        result = aj.emulate(method, schedule, jax.random.key(0))
        np.testing.assert_allclose(result.shared.params, expected, rtol=1e-6)
