"""Environments: the gymnax adapter for every id, and what it promises about types, ends and errors."""

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asyncjax.adapters.from_gymnax import NEEDS_DOWNLOAD, gymnax_semantics
from asyncjax.adapters.gymnax_imports import CLASSES, import_class, import_module
from asyncjax.environment import Box, Discrete, Environment, make_env
from asyncjax.networks import MinAtarCNN, actor_critic
from asyncjax.q_networks import q_network
from asyncjax.rollout import init_rollout, unroll
from tests import probes

pytestmark = pytest.mark.usefixtures("quick_compilation")

gymnax = import_module("gymnax.registration")
IDS = [name for name in gymnax.registered_envs if name != NEEDS_DOWNLOAD]
CONTINUOUS = {"Pendulum-v1", "MountainCarContinuous-v0", "PointRobot-misc", "Reacher-misc", "Swimmer-misc"}


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def zero_action(env):
    return jax.ShapeDtypeStruct(env.action_space.shape, env.action_space.dtype)


def random_action(env, key):
    space = env.action_space
    if isinstance(space, Discrete):
        return jax.random.randint(key, (), 0, space.num_values, jnp.int32)
    low, high = (jnp.asarray(bound, jnp.float32) for bound in (space.low, space.high))
    return jax.random.uniform(key, space.shape, jnp.float32, low, high)


def play(env, key, length):
    """A random episode stream: states are carried, outcomes stacked."""

    def body(state, key):
        act_key, step_key = jax.random.split(key)
        action = random_action(env, act_key)
        state, outcome = env.step(step_key, state, action)
        return state, (action, outcome)

    return jax.lax.scan(body, env.reset(key)[0], jax.random.split(key, length))[1]


def test_there_are_25_ids():
    assert len(IDS) == 25


@pytest.mark.parametrize("env_id", IDS)
def test_every_environment_can_be_carried_by_a_loop(env_id):
    env = make_env(env_id)
    key = jax.random.key(0)
    state, observation = jax.eval_shape(env.reset, key)
    next_state, outcome = jax.eval_shape(env.step, key, state, zero_action(env))
    assert types(next_state) == types(state)
    assert types(outcome.observation) == types(outcome.final_observation) == types(observation)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((state, outcome)))
    assert outcome.reward.dtype == jnp.float32
    assert outcome.terminated.dtype == outcome.truncated.dtype == bool
    assert observation.shape == env.observation_space.shape
    assert observation.dtype == env.observation_space.dtype
    assert isinstance(env.action_space, Box if env_id in CONTINUOUS else Discrete)
    assert env.max_steps is not None
    assert env.max_steps > 0


@pytest.mark.parametrize("env_id", IDS)
def test_x64_changes_nothing(env_id):
    env, key = make_env(env_id), jax.random.key(0)

    def program(_):
        state, observation = jax.eval_shape(env.reset, key)
        return str(jax.make_jaxpr(env.step)(key, state, zero_action(env))), types((state, observation))

    with jax.enable_x64(True):
        on = program(0)
    with jax.enable_x64(False):
        assert program(0) == on


@pytest.mark.parametrize("env_id", [name for name in IDS if name not in CONTINUOUS])
def test_the_default_network_takes_every_observation(env_id):
    env, key = make_env(env_id), jax.random.key(0)
    network = actor_critic(env)
    _, observation = jax.eval_shape(env.reset, key)
    logits, value = jax.eval_shape(lambda o: network.apply(network.init(key, o), o), observation)
    assert (logits.shape, value.shape) == ((env.action_space.num_values,), ())
    assert logits.dtype == value.dtype == jnp.float32


@pytest.mark.parametrize("shape", [(2, 2, 1), (1, 7, 3)])
def test_an_image_too_small_for_a_convolution_is_a_vector(shape):
    box = Box(np.zeros(shape, np.float32), np.ones(shape, np.float32), shape, np.dtype(np.float32))
    env, key = make_env("CartPole-v1")._replace(observation_space=box), jax.random.key(0)
    for network, expected in ((actor_critic(env), ((2,), ())), (q_network(env), (2,))):
        params = jax.eval_shape(network.init, key, jnp.zeros(shape))
        output = jax.eval_shape(network.apply, params, jnp.zeros(shape))
        assert jax.tree.map(jnp.shape, output) == expected


def test_the_cnn_is_a_convolution_and_a_layer():
    x = jax.random.normal(jax.random.key(0), (10, 10, 4), jnp.float32)
    network: Any = MinAtarCNN(channels=5, hidden=7)
    params = network.init(jax.random.key(1), x)
    first, second = params["params"]["Dense_0"], params["params"]["Dense_1"]
    kernel = first["kernel"].reshape(3, 3, 4, 5)
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x[None], kernel, (1, 1), "VALID", dimension_numbers=dimensions)[0]
    y = jax.nn.relu(y).reshape(-1) @ second["kernel"]
    np.testing.assert_allclose(network.apply(params, x), jax.nn.relu(y), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Catch-bsuite", "DeepSea-bsuite", "FourRooms-misc", "Pendulum-v1"])
def test_steps_are_those_of_gymnax(env_id):
    env = make_env(env_id)
    with gymnax_semantics():
        theirs, params = gymnax.make(env_id)
    step = jax.jit(env.step)
    key = jax.random.key(3)
    ours, observation = env.reset(key)
    with gymnax_semantics():
        expected, state = theirs.reset(key, params)
        np.testing.assert_array_equal(observation, expected)
        for key in jax.random.split(jax.random.key(1), 12):
            action = random_action(env, key)
            ours, outcome = step(key, ours, action)
            expected, state, reward, terminated, truncated, info = theirs.step(key, state, action, params)
            np.testing.assert_allclose(outcome.observation, expected, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(outcome.final_observation, info["final_observation"], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(outcome.reward, reward, rtol=1e-5, atol=1e-6)
            assert (outcome.terminated, outcome.truncated) == (terminated, truncated & ~terminated)


def test_termination_and_truncation_are_told_apart():
    _, outcome = play(make_env("CartPole-v1", max_steps_in_episode=12), jax.random.key(0), 300)
    assert outcome.terminated.any()
    assert outcome.truncated.any()
    assert not (outcome.terminated & outcome.truncated).any()
    done = outcome.terminated | outcome.truncated
    fell = np.abs(outcome.final_observation[:, 2]) > 12 * 2 * np.pi / 360
    np.testing.assert_array_equal(fell, outcome.terminated)
    # The next observation is a fresh one where the episode ended, and the true one elsewhere.
    assert np.all(np.abs(outcome.observation[done]) <= 0.05)
    assert np.all(np.abs(outcome.final_observation[done]).max(-1) > 0.05)
    np.testing.assert_array_equal(outcome.observation[~done], outcome.final_observation[~done])
    ends = np.flatnonzero(done)
    assert np.diff(ends, prepend=-1).max() == 12
    np.testing.assert_array_equal(np.diff(ends, prepend=-1)[np.asarray(outcome.truncated)[ends]], 12)


def test_an_end_at_the_time_limit_that_is_terminal_is_terminal():
    _, outcome = play(make_env("DeepSea-bsuite"), jax.random.key(0), 32)  # 8 rows, and a limit of 8 steps
    np.testing.assert_array_equal(np.flatnonzero(outcome.terminated), [7, 15, 23, 31])
    assert not outcome.truncated.any()
    assert not outcome.final_observation[7].any()  # below the last row nothing is seen
    assert outcome.observation[7, 0, 0] == 1.0


def test_parameters_reach_the_environment():
    assert make_env("CartPole-v1", max_steps_in_episode=50).max_steps == 50
    assert make_env("DeepSea-bsuite", size=5).observation_space.shape == (5, 5)  # a constructor's argument
    assert make_env("FrozenLake-misc", map_name="8x8").observation_space == Discrete(64)
    assert make_env(gymnax.make("CartPole-v1")[0], max_steps_in_episode=9).max_steps == 9


def test_parameters_can_be_swept():
    def fall(gravity):
        env = make_env("CartPole-v1", gravity=gravity)
        state, _ = env.reset(jax.random.key(0))
        for _ in range(3):
            state, outcome = env.step(jax.random.key(1), state, jnp.int32(1))
        return outcome.observation

    swept = jax.vmap(fall)(jnp.array([1.0, 9.8, 30.0]))
    np.testing.assert_allclose(swept[1], fall(9.8), rtol=1e-5)
    assert len(np.unique(np.asarray(swept[:, 3]))) == 3


def test_the_same_id_is_the_same_object_also_when_first_made_inside_a_transformation():
    inside = []
    jax.vmap(lambda x: inside.append(make_env("DeepSea-bsuite")) or x)(jnp.zeros(2))
    env = make_env("DeepSea-bsuite")
    assert env is inside[0]
    assert env.reset(jax.random.key(0))[1].shape == (8, 8)


def test_an_environment_that_looks_at_arrays_while_it_is_made_can_be_made_inside_a_transformation():
    def first(key):
        return make_env("FourRooms-misc", max_steps_in_episode=50).reset(key)

    jax.tree.map(np.testing.assert_array_equal, jax.jit(first)(jax.random.key(0)), first(jax.random.key(0)))


def test_an_environment_passes_through_unchanged():
    env = probes.constant_value()
    assert isinstance(env, Environment)
    assert make_env(env) is env
    with pytest.raises(TypeError, match=r"size.*ConstantValue.*gymnax id"):
        make_env(env, size=3)


@pytest.mark.parametrize(
    ("env", "params", "error", "words"),
    [
        ("CartPol-v1", {}, ValueError, ["CartPol-v1", "CartPole-v1"]),
        ("breakout-minatar", {}, ValueError, ["Breakout-MinAtar"]),
        ("xyz", {}, ValueError, ["'xyz'", "Choose one of", "Acrobot-v1"]),
        (NEEDS_DOWNLOAD, {}, ValueError, ["downloads", "Catch-bsuite"]),
        ("CartPole-v1", {"gravty": 1.0}, TypeError, ["gravty=1.0", "gravity", "max_steps_in_episode"]),
        ("DeepSea-bsuite", {"sise": 3}, TypeError, ["sise=3", "deterministic", "size"]),
        (7, {}, TypeError, ["env=7", "reset", "gymnax id"]),
    ],
)
def test_errors_name_the_fix(env, params, error, words):
    with pytest.raises(error) as caught:
        make_env(env, **params)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("told", "what"),
    [
        (lambda x: (x, x, x, x, {}), r"\((\w+, ){4}dict\)"),
        (lambda x: (x, {}), r"\(\w+, dict\)"),
        (lambda x: x, "one "),
    ],
)
def test_a_step_that_tells_something_else_is_named(told, what):
    env = probes.constant_value()._replace(step=lambda key, state, action: told(jnp.float32(0)))
    with pytest.raises(TypeError, match=rf"its step returned {what}.*: return \(state, Step\(observation,"):
        unroll(env, lambda c, o, key: (c, jnp.int32(0), ()), init_rollout(env, jax.random.key(0), 2), 3)


def test_classes_are_those_of_the_ids():
    assert {env_id: import_class(path) for env_id, path in CLASSES.items()} == {
        env_id: gymnax._registry[env_id] for env_id in IDS
    }


def test_an_environment_that_the_user_has_registered_is_found(monkeypatch):
    cart_pole: Any = import_class(CLASSES["CartPole-v1"])

    class Short(cart_pole):
        def __init__(self, steps):
            self.steps = steps

        @property
        def default_params(self):
            return super().default_params.replace(max_steps_in_episode=self.steps)

    monkeypatch.setitem(gymnax._registry, "Short-v0", Short)
    monkeypatch.setattr(gymnax, "registered_envs", [*IDS, "Short-v0"])
    assert make_env("Short-v0", steps=3).max_steps == 3


def test_making_an_environment_imports_its_module_alone_and_all_else_when_it_is_used():
    program = """
import sys
import asyncjax.environment
assert "gymnax" not in sys.modules
asyncjax.environment.make_env("CartPole-v1")
slow = {"seaborn", "pandas", "scipy.stats", "matplotlib", "gymnax.registration"} & set(sys.modules)
assert not slow, slow
cart_pole = sys.modules["gymnax.environments.classic_control.cartpole"].CartPole
import matplotlib
matplotlib.use("Agg")
import gymnax, jax
assert type(gymnax.make("CartPole-v1")[0]) is cart_pole is gymnax.environments.CartPole
env, params = gymnax.make("Pong-misc")
_, state = env.reset(jax.random.key(0), params)
env.render(state, params)
assert {"seaborn", "matplotlib.pyplot"} <= set(sys.modules)
import matplotlib.pyplot
assert matplotlib.pyplot is sys.modules["matplotlib.pyplot"] and matplotlib.pyplot.figure
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600)
