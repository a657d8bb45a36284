"""A3C: plain textbook loops, probes, and what it accepts."""

import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asyncjax import schedules
from asyncjax.emulate import emulate
from asyncjax.environment import make_env
from asyncjax.evaluate import evaluate
from asyncjax.method import Stale
from asyncjax.methods.a3c import a3c, default_optimizer
from asyncjax.methods.gradient import clipped
from asyncjax.methods.n_step_q import n_step_q
from asyncjax.methods.sgd import sgd
from asyncjax.networks import FEW, MLP, ActorCritic, actor_critic, by_columns, dense
from asyncjax.rollout import unroll
from tests import probes

pytestmark = pytest.mark.usefixtures("quick_compilation")

DISCOUNT, ENTROPY, VALUE = 0.9, 0.03, 0.4
SMALL = ActorCritic(2, MLP((8,)))


def small_a3c(env, **options):
    # Without max_steps the trajectory keeps every final observation, which the textbook loop looks up by step.
    settings = {"num_envs": 2, "unroll_length": 4, "discount": DISCOUNT, "gae_lambda": 1.0, "entropy_cost": ENTROPY}
    settings |= {"value_cost": VALUE, "max_grad_norm": None, "network": SMALL, "optimizer": optax.sgd(0.1)}
    return a3c(env._replace(max_steps=None), **(settings | options))


@jax.jit
def values(params, observation):
    return jax.vmap(jax.vmap(lambda o: SMALL.apply(params, o)[1]))(observation)


def textbook_returns(params, trajectory):
    """Mnih et al. (2016), algorithm S3: backwards, one step after another."""
    final = np.asarray(values(params, trajectory.bootstrap_observation))
    g = np.zeros_like(trajectory.reward)
    length, num_envs = g.shape
    for n in range(num_envs):
        r = final[-1, n]
        for t in reversed(range(length)):
            if trajectory.terminated[t, n]:
                r = 0.0
            if trajectory.truncated[t, n]:
                r = final[t, n]
            g[t, n] = r = trajectory.reward[t, n] + DISCOUNT * r
    return g


@jax.jit
@jax.grad
def textbook_gradient(params, trajectory, g):
    total = 0.0
    length, num_envs = g.shape
    for n in range(num_envs):
        for t in range(length):
            logits, value = SMALL.apply(params, trajectory.observation[t, n])
            log_p = logits - jnp.log(jnp.sum(jnp.exp(logits)))
            total += -log_p[trajectory.action[t, n]] * (g[t, n] - jax.lax.stop_gradient(value))
            total += VALUE * 0.5 * (g[t, n] - value) ** 2
            total += ENTROPY * jnp.sum(jnp.exp(log_p) * log_p)
    return total / num_envs


@functools.partial(jax.jit, static_argnums=0)
def sample(act_and_step, params, worker):
    def act(carry, observation, noise):
        return carry, jnp.argmax(SMALL.apply(params, observation)[0] + noise).astype(jnp.int32), ()

    def draw(key, shape):
        return jax.random.gumbel(key, (*shape, 2), jnp.float32)

    env = probes.observed_action()._replace(reset=act_and_step[0], step=act_and_step[1], max_steps=None)
    return unroll(env, act, worker, 4, draw=draw)[:2]


def test_one_worker_is_the_textbook_loop_and_a_barrier_is_synchronous():
    env = probes.corridor(2, max_steps=3)  # episodes of both kinds end inside the segments
    for num_workers in (1, 3):
        key = jax.random.key(num_workers)
        method = small_a3c(env)
        shared, local = method.init(key, num_workers)
        params, workers = shared.params, [jax.tree.map(lambda x, w=w: x[w], local) for w in range(num_workers)]
        for _ in range(5):
            workers, trajectories = zip(*(sample((env.reset, env.step), params, w) for w in workers), strict=True)
            grads = [textbook_gradient(params, x, textbook_returns(params, x)) for x in trajectories]
            params = jax.tree.map(lambda p, *g: p - 0.1 * sum(g) / len(g), params, *grads)
        result = emulate(method, schedules.barrier(5, num_workers), key)
        close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)
        jax.tree.map(close, result.shared.params, params)


def train(env, num_updates, **options):
    """Four workers, staleness 3."""
    settings = {"num_envs": 8, "unroll_length": 4, "discount": 0.5, "network": SMALL}
    method = a3c(env, **settings, **options)
    return method, emulate(method, schedules.round_robin(num_updates, 4), jax.random.key(0))


def values_at(params, *xs):
    return values(params, jnp.array(xs, jnp.float32)[None, :, None])[0]


@pytest.mark.parametrize(
    ("env", "xs", "expected"),
    [
        (probes.constant_value(), [0.0], [1.0]),
        (probes.observed_value(), [-1.0, 1.0], [-1.0, 1.0]),
        (probes.discounted_value(), [0.0, 1.0], [0.5, 1.0]),
        (probes.truncated_value(), [0.0], [2.0]),
        (probes.truncated_value()._replace(max_steps=None), [0.0], [2.0]),
    ],
    ids=["constant", "observed", "discounted", "truncated", "truncated, all final observations"],
)
def test_value_probes(env, xs, expected):
    _, result = train(env, 200)
    np.testing.assert_allclose(values_at(result.shared.params, *xs), expected, atol=0.02)


@pytest.mark.parametrize(
    ("env", "private"),
    [(probes.best_action(), False), (probes.observed_action(), False), (probes.observed_action(), True)],
    ids=["policy", "policy and value", "policy and value, private optimizer"],
)
def test_policy_probes(env, private):
    method, result = train(env, 200, private_optimizer=private)
    returns = evaluate(method, env, result.shared, jax.random.key(1), num_episodes=500, greedy=False, max_steps=1)
    assert returns.mean() > 0.8
    assert np.all(values_at(result.shared.params, 1.0) > 0.7)
    assert result.metrics["return_sum"][-20:].sum() / result.metrics["episodes"][-20:].sum() > 0.8


def one_message(method, num_workers=1):
    @jax.jit
    def update(key):
        shared, local = method.init(key, num_workers)
        message, local, metrics = jax.vmap(method.work, (None, 0))(method.view(shared), local)
        view = jax.tree.map(lambda x: x[None], method.view(shared))
        stale = Stale(view, jnp.zeros(1, jnp.int32))
        return method.apply(shared, jax.tree.map(lambda x: x[:1], message), stale)[0], metrics

    return update(jax.random.key(0))


def test_private_and_shared_optimizers_agree_at_the_first_message():
    env = probes.observed_action()
    shared, _ = one_message(small_a3c(env, optimizer=optax.adam(0.1)))
    private, _ = one_message(small_a3c(env, optimizer=optax.adam(0.1), private_optimizer=True))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), shared.params, private.params)


@pytest.mark.parametrize(
    ("optimizer", "step"),
    [(optax.rmsprop(1.0, decay=0.99, eps=0.1), 3.0151), (default_optimizer(), 3e-3 / np.sqrt(0.01 + 0.01))],
    ids=["the paper's", "the default"],
)
def test_rmsprop_has_its_epsilon_inside_the_root(optimizer, step):
    """A gradient of 1: d / sqrt(0.01 d^2 + eps), which with the paper's 0.99 and 0.1 is 3.0151; outside it were 5."""
    result = emulate(sgd(lambda w: w, 0.0, optimizer=optimizer), schedules.sequential(1), jax.random.key(0))
    np.testing.assert_allclose(result.shared.params, -step, rtol=1e-4)


def test_metrics_of_a_message():
    _, metrics = one_message(small_a3c(probes.observed_action()))
    names = {"episodes", "return_sum", "length_sum", "policy_loss", "value_loss", "entropy", "loss", "grad_norm"}
    assert set(metrics) == names
    assert metrics["episodes"] == metrics["length_sum"] == 8.0
    assert 0.6 < metrics["entropy"][0] <= np.log(2.0) + 1e-6  # the first policy is nearly uniform
    per_step = metrics["policy_loss"] + VALUE * metrics["value_loss"] - ENTROPY * metrics["entropy"]
    np.testing.assert_allclose(metrics["loss"], 4 * per_step, rtol=1e-5)


def test_gradients_are_clipped_before_they_are_sent():
    env = probes.observed_value()
    start = small_a3c(env).init(jax.random.key(0), 1)[0].params

    @jax.jit
    @jax.vmap
    def step(limit):
        shared, metrics = one_message(small_a3c(env, optimizer=optax.sgd(1.0), max_grad_norm=limit))
        return optax.tree.norm(jax.tree.map(lambda a, b: a - b, shared.params, start)), metrics["grad_norm"][0]

    steps, norms = step(jnp.array([0.05, 0.1, 1e6]))
    norm = norms[0]
    assert norm > 0.1
    np.testing.assert_allclose(norms, norm, rtol=1e-6)  # what is reported is before clipping
    np.testing.assert_allclose(steps, [0.05, 0.1, norm], rtol=1e-4)


@pytest.mark.parametrize("x64", [False, True])
def test_numbers_can_be_swept(x64):
    env = probes.corridor(3)

    def loss(weights):
        method = small_a3c(
            env,
            discount=weights[0],
            entropy_cost=weights[1],
            value_cost=weights[2],
            gae_lambda=weights[3],
            max_grad_norm=weights[4],
            optimizer=optax.rmsprop(0.1, decay=weights[0]),  # its state has to stay float32
        )
        return one_message(method)[1]["loss"][0]

    with jax.enable_x64(x64):
        weights = jnp.array([[0.9, 0.0, 0.5, 1.0, 1.0], [0.5, 0.1, 1.0, 0.3, 1.0]])
        assert weights.dtype == (jnp.float64 if x64 else jnp.float32)
        swept = jax.jit(jax.vmap(loss))(weights)
        np.testing.assert_allclose(swept[1], jax.jit(loss)(weights[1]), rtol=1e-4)
    assert swept.dtype == jnp.float32


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize(
    "env_id", ["CartPole-v1", "Breakout-MinAtar", "FrozenLake-misc", "FourRooms-misc", "Pendulum-v1"]
)
def test_every_kind_of_observation_traces_with_steady_types(env_id, x64):
    with jax.enable_x64(x64):
        method = a3c(env_id, num_envs=2, unroll_length=3)

        def round_trip(key):
            shared, local = method.init(key, 1)
            worker = jax.tree.map(lambda x: x[0], local)
            message, after, metrics = method.work(method.view(shared), worker)
            return worker, after, method.view(shared), message, metrics

        worker, after, view, message, metrics = jax.eval_shape(round_trip, jax.random.key(0))
    assert worker == after
    assert view == message
    assert all(m.shape == () and m.dtype == jnp.float32 for m in metrics.values())


@pytest.mark.parametrize("limit", [1.0, 100.0])
def test_gradients_of_several_dtypes_are_clipped_together(limit):
    grads = {"half": jnp.full(9, 2.0, jnp.bfloat16), "single": jnp.full(4, 4.0, jnp.float32)}
    short, norm = clipped(grads, limit)
    assert float(norm) == 10.0
    assert jax.tree.map(lambda x: x.dtype, short) == jax.tree.map(lambda x: x.dtype, grads)
    for name, x in grads.items():
        np.testing.assert_allclose(np.float32(short[name]), np.float32(x) * min(1.0, limit / 10), rtol=1e-2)


def test_observations_may_be_dictionaries():
    env = probes.observed_action()

    def split(x):
        return {"sign": jnp.sign(x).astype(jnp.int32), "size": jnp.abs(x)}

    def step(key, state, action):
        state, outcome = env.step(key, state, action)
        return state, outcome._replace(
            observation=split(outcome.observation), final_observation=split(outcome.final_observation)
        )

    wrapped = env._replace(
        reset=lambda key: (env.reset(key)[0], split(env.reset(key)[1])),
        step=step,
        observation_space={"sign": env.observation_space, "size": env.observation_space},
    )
    _, metrics = one_message(a3c(wrapped, num_envs=2, unroll_length=4))
    assert np.isfinite(metrics["loss"]).all()


def test_own_networks_get_raw_observations():
    class Counting(ActorCritic):
        pass

    env = make_env("FrozenLake-misc")
    network = actor_critic(env)
    assert network.num_values == 16
    method = a3c(env, num_envs=2, unroll_length=2, network=Counting(4, MLP((3,)), num_values=16))
    params = method.init(jax.random.key(0), 1)[0].params
    assert params["params"]["torso"]["Dense_0"]["kernel"].shape == (16, 3)


@pytest.mark.parametrize("features", [2, 6])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_a_layer_by_columns_is_the_layer(features, batch):
    """Values and all gradients, for one example, for many in one call and under vmap over weights, too."""
    x = jax.random.normal(jax.random.key(0), (*batch, 5), jnp.float32)
    layers = nn.Dense(features, dot_general=by_columns), nn.Dense(features)
    params = jax.vmap(layers[0].init, (0, None))(jax.random.split(jax.random.key(1), 3), x)

    def loss(layer, params, x):
        y = layer.apply(params, x)
        return jnp.sum(jnp.sin(y)), y

    ways = [jax.grad(functools.partial(loss, layer), (0, 1), has_aux=True) for layer in layers]
    got, expected = (jax.vmap(way, (0, None))(params, x) for way in ways)
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


def test_heads_with_few_outputs_go_by_columns_on_cpus():
    assert (dense(FEW).dot_general is by_columns) == (jax.default_backend() == "cpu")
    assert dense(1).dot_general is dense(FEW + 1).dot_general is None


@pytest.mark.parametrize(
    ("env", "options", "words"),
    [
        ("CartPole-v1", {"core": "rnn"}, ["core='rnn'", "gru", "lstm"]),
        ("CartPole-v1", {"core": "gru", "network": SMALL}, ["core='gru'", "network="]),
        ("CartPole-v1", {"num_envs": 0}, ["num_envs=0", "at least 1"]),
        ("CartPole-v1", {"unroll_length": -2}, ["unroll_length=-2", "at least 1"]),
        ("CartPole-v1", {"num_envs": 2.5}, ["num_envs=2.5", "whole number"]),
        ("CartPole-v1", {"num_envs": jnp.int32(2)}, ["num_envs=Array(2, dtype=int32)", "int(num_envs)"]),
        ("CartPole-v1", {"discount": 1.01}, ["discount=1.01", "between 0 and 1"]),
        ("CartPole-v1", {"gae_lambda": -0.1}, ["gae_lambda=-0.1", "between 0 and 1"]),
        ("CartPole-v1", {"entropy_cost": -1.0}, ["entropy_cost=-1.0", "at least 0"]),
        ("CartPole-v1", {"max_grad_norm": 0.0}, ["max_grad_norm=0.0", "above 0"]),
        ("CartPole-v1", {"anneal_steps": 0}, ["anneal_steps=0", "above 0"]),
        ("CartPole-v1", {"squash": True}, ["squash=True", "CartPole-v1", "no bounds"]),
        ("CartPole-v1", {"network": ActorCritic(5, MLP((8,)))}, ["network=ActorCritic", "((5,), ())", "((2,), ())"]),
        ("Pendulum-v1", {"network": SMALL}, ["network=ActorCritic", "((2,), ())", "(((1,), (1,)), ())"]),
        ("CartPole", {}, ["CartPole-v1"]),
    ],
)
def test_errors_name_the_fix(env, options, words):
    with pytest.raises((ValueError, TypeError), match=r"env|=") as caught:
        a3c(env, **options).init(jax.random.key(0), 1)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(("name", "value"), [("optimizer", None), ("optimizer", 1e-3), ("correction", optax.sgd)])
def test_what_is_no_optax_transformation_is_named(name, value):
    options: dict[str, Any] = {"optimizer": optax.sgd(0.1)} | {name: value}
    with pytest.raises(TypeError, match=rf"{name}=.* is no optax transformation: give one, such as optax.adam"):
        sgd(lambda w: w, 0.0, **options)


@pytest.mark.parametrize("network", ["mlp", MLP])
@pytest.mark.parametrize("method", [a3c, n_step_q])
def test_what_is_no_network_is_named(method, network):
    with pytest.raises(TypeError, match=r"network=.* is no Module: give a flax module"):
        method("CartPole-v1", network=network)


def test_parameters_to_learn_are_floats():
    with pytest.raises(TypeError, match=r"params=1 are not all floats"):
        sgd(lambda w: w, 1, optimizer=optax.sgd(0.1)).init(jax.random.key(0), 1)
