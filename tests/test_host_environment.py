"""Environments on the host: what they tell is what stepping them by hand tells, in every engine that can run them."""

import functools
import importlib.util
import pickle
import warnings
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import asyncjax as aj
from asyncjax.adapters.fleet import IDLE_RESETS, VectorEnv
from asyncjax.adapters.from_gymnasium import from_vector
from asyncjax.adapters.host_environment import host_environment
from asyncjax.environment import Box, Discrete, Step, make_env
from asyncjax.networks import NatureCNN, actor_critic, patches
from asyncjax.rollout import init_rollout, next_values, unroll
from tests.laws import assert_equal

KEY = jax.random.key(0)
envpool_only = pytest.mark.skipif(importlib.util.find_spec("envpool") is None, reason="EnvPool is not installed")
CARTPOLES = ["gymnasium:CartPole-v1", pytest.param("envpool:CartPole-v1", marks=envpool_only)]


class Clock(gymnasium.Env):
    """Shows the steps of the episode and a number drawn at its start; stops at `goal`, is cut at `limit`, or breaks."""

    observation_space = gymnasium.spaces.Dict(
        {"time": gymnasium.spaces.Discrete(100), "drawn": gymnasium.spaces.Box(0, 1, (2,), np.float64)}
    )
    action_space = gymnasium.spaces.Discrete(3, start=-1)
    closed: list["Clock"] = []  # noqa: RUF012 - of all clocks on purpose

    def __init__(self, goal=1000, limit=1000, breaks_at=1000):
        self.goal, self.limit, self.breaks_at = goal, limit, breaks_at

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.drawn = 0, self.np_random.random(2)
        return self.seen(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.time += 1
        if self.time == self.breaks_at:
            raise RuntimeError("the spring is broken")
        return self.seen(), float(action), self.time >= self.goal, self.time >= self.limit, {}

    def seen(self):
        return {"time": self.time, "drawn": self.drawn}

    def close(self):
        Clock.closed.append(self)


def keys(num_envs, seed=0):
    return jax.random.split(jax.random.key(seed), num_envs)


def begin(env, num_envs, seed=0):
    return jax.vmap(env.reset)(keys(num_envs, seed))


def step(env, state, action):
    action = jnp.asarray(action, env.action_space.dtype)
    return jax.vmap(env.step, in_axes=(None, 0, 0))(KEY, state, action)


def by_hand(env_id, seed, limit):
    """(first observation, action -> what one environment tells, reset): one environment of the package alone."""
    package, _, name = env_id.partition(":")
    if package == "gymnasium":
        one = gymnasium.make(name, max_episode_steps=limit)
        return one.reset(seed=int(seed))[0], lambda action: one.step(int(action)), lambda: one.reset()[0]
    import envpool  # pyright: ignore[reportMissingImports] - an extra

    from asyncjax.adapters.from_envpool import quiet

    first = lambda out: tuple(x[0] for x in out[:4])  # noqa: E731
    with quiet():
        pool: Any = envpool.make_gymnasium(name, num_envs=1, seed=[int(seed)], max_episode_steps=limit)
        begun = pool.reset()[0][0]
    return begun, lambda action: first(pool.step(np.array([action]))), lambda: pool.reset()[0][0]


@pytest.mark.parametrize("env_id", CARTPOLES)
def test_transitions_are_those_of_stepping_by_hand(env_id):
    env, rng = make_env(env_id, max_episode_steps=12), np.random.default_rng(0)
    assert (env.action_space, env.max_steps) == (Discrete(2), 12)
    assert env.observation_space.shape == (4,)
    state, observation = begin(env, 3)
    hands = [by_hand(env_id, seed, 12) for seed in state[:, 2]]
    np.testing.assert_array_equal(observation, [hand[0] for hand in hands])
    ends = []
    for _ in range(40):
        action = (rng.random(3) < 0.8).astype(np.int32)
        state, outcome = step(env, state, action)
        for i, (_, hand, reset) in enumerate(hands):
            true, reward, terminated, truncated, *_ = hand(action[i])
            ends.append((terminated, truncated))
            np.testing.assert_array_equal(outcome.final_observation[i], true)
            np.testing.assert_array_equal(outcome.observation[i], reset() if terminated or truncated else true)
            assert (outcome.reward[i], outcome.terminated[i]) == (reward, terminated)
            assert outcome.truncated[i] == (truncated and not terminated)
    assert np.any(ends, axis=0).all()  # both kinds of ends were seen


def clock(**options):
    return make_env(functools.partial(Clock, **options))


def test_types_are_narrow_and_spaces_are_ours():
    env = clock()
    assert env.action_space == Discrete(3)
    _, observation = begin(env, 2)
    assert observation["time"].dtype == env.observation_space["time"].dtype == jnp.int32
    assert observation["drawn"].dtype == env.observation_space["drawn"].dtype == jnp.float32
    with jax.enable_x64(True):
        _, outcome = step(env, begin(env, 2)[0], [0, 2])
    assert outcome.reward.dtype == outcome.observation["drawn"].dtype == jnp.float32
    np.testing.assert_array_equal(outcome.reward, [-1.0, 1.0])  # action 0 is the space's first one, -1


def test_a_time_limit_may_be_denied():
    def cart_pole():
        return gymnasium.make("CartPole-v1")

    assert make_env(cart_pole).max_steps == 500
    assert make_env(cart_pole, max_steps=None).max_steps is None
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_steps'"):
        make_env(cart_pole, max_steps=100)  # which would not be applied
    given = []
    make_env(lambda **options: given.append(options) or cart_pole(), max_steps=None)
    assert given[0] == {"max_steps": None}  # a function that takes all decides
    assert make_env("gymnasium:CartPole-v1", max_steps=None).max_steps is None
    assert make_env("gymnasium:CartPole-v1", max_episode_steps=-1).max_steps is None  # gymnasium's own way to say so


def rollouts(env, length, num_envs=2):
    act = lambda carry, observation, key: (carry, jnp.int32(2), ())  # noqa: E731
    return jax.jit(lambda key: unroll(env, act, init_rollout(env, key, num_envs), length))(KEY)


@pytest.mark.parametrize("limit_is_known", [True, False])
def test_a_truncated_episode_is_bootstrapped_from_its_true_end(limit_is_known):
    env = clock(limit=5)._replace(max_steps=5 if limit_is_known else None)
    rollout, trajectory, metrics = rollouts(env, 4 if limit_is_known else 13)
    if not limit_is_known:  # one segment over two ends
        np.testing.assert_array_equal(np.flatnonzero(trajectory.truncated[:, 0]), [4, 9])
        np.testing.assert_array_equal(trajectory.observation["time"][:, 0], [0, 1, 2, 3, 4] * 2 + [0, 1, 2])
        assert {name: float(x) for name, x in metrics.items()} == {
            "episodes": 4.0,
            "return_sum": 20.0,
            "length_sum": 20.0,
        }
        np.testing.assert_array_equal(rollout.episode_return, [3.0, 3.0])
    value = lambda times: 10.0 * times.astype(jnp.float32)  # noqa: E731
    v_t = next_values(
        value(trajectory.observation["time"][:, 0]),
        value(trajectory.bootstrap_observation["time"][:, 0]),
        trajectory.truncated[:, 0],
    )
    expected = 10.0 * np.array([1, 2, 3, 4, 5] * 2 + [1, 2, 3])
    np.testing.assert_array_equal(v_t, expected[: len(v_t)])


def test_an_end_that_is_terminal_at_the_time_limit_is_terminal():
    state = begin(env := clock(goal=1, limit=1), 1)[0]
    _, outcome = step(env, state, [0])
    assert (outcome.terminated, outcome.truncated) == (True, False)


METHODS = {
    "gymnasium:CartPole-v1": lambda env: aj.a3c(env, num_envs=4, unroll_length=5),
    "envpool:CartPole-v1": lambda env: aj.impala(env, num_envs=4, unroll_length=5),
}


@pytest.mark.parametrize("env_id", CARTPOLES)
def test_a_replay_repeats_a_threaded_run_bit_for_bit(env_id):
    method = METHODS[env_id](make_env(env_id))
    result, schedule = aj.run_threads(method, KEY, num_workers=3, num_updates=30)
    again = aj.replay(method, schedule, KEY)
    same = jax.tree.map(lambda x, y: bool((x == y).all()), result._replace(local=()), again._replace(local=()))
    assert all(jax.tree.leaves(same))
    assert result.metrics["episodes"].sum() > 0


def watching(env):
    """A method that learns nothing: workers take action 1, and their rewards are added up. It compiles fast."""

    def init(key, num_workers):
        workers = jax.vmap(lambda key: init_rollout(env, key, 2))(jax.random.split(key, num_workers))
        return jnp.float32(0.0), workers

    def work(view, rollout):
        act = lambda carry, observation, key: (carry, jnp.int32(1), ())  # noqa: E731
        rollout, trajectory, metrics = unroll(env, act, rollout, 5)
        return trajectory.reward.sum(), rollout, metrics

    policy = aj.Policy(tuple, lambda view, carry, observation, key: (jnp.int32(1), carry))
    return aj.Method(init, lambda shared: shared, work, lambda s, messages, stale: (s + messages.sum(), {}), policy)


@pytest.mark.parametrize("env_id", CARTPOLES)
def test_evaluation_plays_whole_episodes(env_id):
    env = make_env(env_id, max_episode_steps=7)
    returns = aj.evaluate(watching(env), env, jnp.float32(0.0), KEY, num_episodes=3)
    np.testing.assert_array_equal(returns, [7.0, 7.0, 7.0])


def test_emulate_refuses_and_names_the_engines_that_can():
    method, schedule = watching(clock()), aj.schedules.round_robin(4, 2)
    for engine in (aj.emulate, jax.jit(aj.emulate, static_argnums=(0,), static_argnames="num_workers")):
        with pytest.raises(ValueError, match=r"Clock.*run_threads, replay or run_ray"):
            engine(method, schedule, KEY, num_workers=2)


def test_an_error_of_the_environment_ends_the_run_and_says_what_broke():
    with pytest.raises(Exception, match="the spring is broken") as caught:
        aj.run_threads(watching(clock(breaks_at=7)), KEY, num_workers=2, num_updates=10)
    assert "Raised in worker" in "".join(caught.value.__notes__)


def test_the_seeds_of_workers_differ_and_follow_from_the_key():
    env = clock()
    several = jax.vmap(lambda key: jax.vmap(env.reset)(jax.random.split(key, 3)))
    (state, observation), (_, again), (_, other) = several(keys(4)), several(keys(4)), several(keys(4, seed=1))
    assert len(np.unique(state[..., 0])) == 4  # one vector environment for each worker
    assert len(np.unique(state[..., 2])) == len(np.unique(observation["drawn"])) // 2 == 12
    np.testing.assert_array_equal(observation["drawn"], again["drawn"])
    assert not np.isin(observation["drawn"], other["drawn"]).any()


def test_the_same_question_has_the_same_answer():
    env = clock()
    state, _ = begin(env, 2)
    for _ in range(2):
        later, outcome = step(env, state, [0, 1])
        np.testing.assert_array_equal(outcome.observation["time"], [1, 1])
    np.testing.assert_array_equal(step(env, later, [0, 1])[1].observation["time"], [2, 2])


def test_a_step_that_is_past_gets_new_episodes_and_a_warning():
    env = clock()
    old, observation = begin(env, 2)
    step(env, old, [0, 0])
    with pytest.warns(RuntimeWarning, match="2 environments that had made 0 steps are gone"):
        state, outcome = step(env, old, [1, 1])
    assert outcome.truncated.all()
    assert not outcome.terminated.any()
    assert not outcome.reward.any()
    np.testing.assert_array_equal(outcome.observation["time"], [0, 0])
    assert not np.isin(outcome.observation["drawn"], observation["drawn"]).any()
    np.testing.assert_array_equal(step(env, state, [1, 1])[1].observation["time"], [1, 1])


def test_in_another_process_a_fresh_state_is_made_again_and_an_older_one_is_said_to_be_lost():
    env, elsewhere = clock(), clock()  # another Environment knows as little of it as another process
    state, observation = begin(env, 2)
    state, outcome = step(elsewhere, state, [0, 0])
    np.testing.assert_array_equal(outcome.observation["drawn"], observation["drawn"])
    answers = []
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="that had made 1 steps are gone"):
            answers.append(step(env, state, [0, 0])[1].observation["drawn"])
    np.testing.assert_array_equal(*answers)  # what begins instead follows from the state


def test_a_run_goes_on_from_a_state_in_new_episodes():
    method, chunks = watching(clock(limit=50)), []
    schedule = aj.schedules.round_robin(8, 2)
    aj.replay(method, schedule, KEY, callback=chunks.append, chunk_size=4)
    with pytest.warns(RuntimeWarning, match="begin new episodes"):
        result = aj.replay(method, schedule, KEY, state=chunks[0].state)
    assert result.metrics["episodes"][:2].sum() == 4  # the four that were cut off
    assert result.metrics["episodes"].sum() == 4


@pytest.mark.parametrize(
    "mixed",
    [lambda s: s[::-1], lambda s: s[:2], lambda s: s[jnp.array([0, 0, 2])], lambda s: s.at[0, 3].add(jnp.uint32(1))],
)
def test_parts_and_mixtures_of_vector_environments_are_refused(mixed):
    env = clock()
    state = mixed(begin(env, 3)[0])
    with pytest.raises(Exception, match="a part or a mixture"):
        step(env, state, [0] * len(state))


def test_environments_that_nobody_steps_are_closed():
    env = clock()
    state, _ = begin(env, 2)
    Clock.closed.clear()
    for seed in range(2 * IDLE_RESETS):
        state, _ = step(env, state, [0, 0])
        begin(env, 1, seed)
    assert len(Clock.closed) == IDLE_RESETS - 1
    np.testing.assert_array_equal(step(env, state, [0, 0])[1].observation["time"], 2 * IDLE_RESETS + 1)


def test_an_episode_truncated_before_the_stated_limit_is_an_error():
    env = from_vector(
        "early",
        lambda n: gymnasium.vector.SyncVectorEnv(
            [lambda: Clock(limit=2)] * n, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP
        ),
        Clock(),
        max_steps=3,
    )
    state, _ = step(env, begin(env, 1)[0], [0])
    with pytest.raises(Exception, match=r"after 2 steps, but its time limit is 3: pass max_steps=None"):
        step(env, state, [0])


def test_another_autoreset_mode_is_refused():
    env = from_vector("next", lambda n: gymnasium.vector.SyncVectorEnv([Clock] * n), Clock())
    with pytest.raises(Exception, match=r"NEXT_STEP.*SAME_STEP"):
        begin(env, 1)


def test_real_actions_reach_the_environment():
    env = make_env("gymnasium:Pendulum-v1", g=0.0)
    assert isinstance(env.action_space, Box)
    state, observation = begin(env, 2)
    _, outcome = step(env, state, [[0.0], [2.0]])
    speed = 3.0 * 2.0 * 0.05  # of a pole without gravity: 3 torque / (mass length^2) dt
    np.testing.assert_allclose(outcome.observation[:, 2] - observation[:, 2], [0.0, speed], atol=1e-5)


@envpool_only
def test_images_have_their_channels_last():
    env = make_env("envpool:Pong-v5")
    assert (env.observation_space.shape, env.observation_space.dtype) == ((84, 84, 4), np.uint8)
    state, observation = begin(env, 1)
    _, outcome = step(env, state, [0])
    assert observation.dtype == outcome.final_observation.dtype == jnp.uint8
    # The stack moves on by one frame.
    np.testing.assert_array_equal(outcome.observation[..., :-1], observation[..., 1:])
    network: Any = actor_critic(env)
    assert isinstance(network.torso, NatureCNN)
    logits, _ = jax.eval_shape(lambda x: network.init_with_output(KEY, x)[0], observation[0])
    assert logits.shape == (6,)


@pytest.mark.parametrize(("window", "stride"), [(8, 4), (4, 2), (3, 1)])
def test_a_linear_layer_on_patches_is_a_convolution(window, stride):
    x = jax.random.normal(KEY, (21, 19, 2), jnp.float32)
    kernel = jax.random.normal(KEY, (window, window, 2, 3), jnp.float32)
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x[None], kernel, (stride, stride), "VALID", dimension_numbers=dimensions)[0]
    blocks = kernel.reshape(window // stride, stride, window // stride, stride, 2, 3).swapaxes(1, 2)
    np.testing.assert_allclose(patches(x, window, stride) @ blocks.reshape(-1, 3), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CARTPOLES)
def test_a_pickled_environment_begins_anew_from_the_seeds(name):
    cloudpickle = pytest.importorskip("cloudpickle")  # comes with gymnasium
    here = make_env(name)
    there = pickle.loads(cloudpickle.dumps(here))
    state, _ = begin(here, 3)
    other = state
    for action in np.random.default_rng(0).integers(0, 2, (20, 3)).astype(np.int32):
        state, outcome = step(here, state, action)
        other, same = step(there, other, action)
        assert_equal((state, outcome), (other, same))


@pytest.mark.skipif(importlib.util.find_spec("brax") is None, reason="brax is not installed")
def test_brax_is_compiled_and_resets_itself():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of brax's own dependencies, at their import
        env = make_env("brax:fast", episode_length=3)
    state, _ = begin(env, 2)
    advance = jax.jit(functools.partial(step, env))
    for time in range(1, 7):  # its position and speed grow where the action is positive
        state, outcome = advance(state, np.array([[-1.0], [1.0]], np.float32))
        speed = 0.02 * ((time - 1) % 3 + 1)
        np.testing.assert_array_equal(outcome.truncated, [time % 3 == 0] * 2)
        np.testing.assert_allclose(outcome.final_observation[:, 1], [0.0, speed], rtol=1e-5)
        np.testing.assert_allclose(outcome.observation[:, 1], [0.0, speed * (time % 3 > 0)], rtol=1e-5)
    with pytest.raises(ValueError, match=r"brax:antt.*ant"):
        make_env("brax:antt")


@pytest.mark.parametrize(
    ("env", "params", "error", "words"),
    [
        ("gymnasium:CartPol-v1", {}, ValueError, ["gymnasium:CartPol-v1", "CartPole"]),
        ("gymnasium:CartPole-v1", {"vectorization_mode": "fast"}, ValueError, ["'fast'", "'sync'", "'async'"]),
        ("gymnasium:CartPole-v1", {"gravty": 1.0}, TypeError, ["gravty"]),
        pytest.param("envpool:Pon-v5", {}, ValueError, ["envpool:Pon-v5", "Pong-v5"], marks=envpool_only),
        pytest.param("envpool:Pong-v5", {"stak_num": 2}, TypeError, ["stak_num"], marks=envpool_only),
        ("gym:CartPole-v1", {}, ValueError, ["'gym'", "gymnasium:ID", "envpool:ID", "brax:ID"]),
        (dict, {}, TypeError, ["dict", "no gymnasium.Env"]),
    ],
)
def test_errors_name_the_fix(env, params, error, words):
    with pytest.raises(error) as caught:
        make_env(env, **params)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "asyncjax.adapters.from_envpool", None)
    with pytest.raises(ImportError, match=r'pip install "asyncjax\[envs\]"'):
        make_env("envpool:Pong-v5")


def test_any_arrays_will_do():
    here = lambda n: np.zeros((n, 1), np.float32)  # noqa: E731
    outcome = lambda a: Step(here(len(a)), here(len(a)), a, a > 1, a < 0)  # noqa: E731
    space = Box(np.zeros(1, np.float32), np.ones(1, np.float32), (1,), np.dtype(np.float32))
    env = host_environment("flat", space, Discrete(3), lambda s: VectorEnv(here(len(s)), outcome, list))
    state, observation = env.reset(KEY)  # one environment, not mapped
    assert (state.shape, observation.shape) == ((4,), (1,))
    assert float(env.step(KEY, state, jnp.int32(2))[1].reward) == 2.0
