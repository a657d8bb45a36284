"""Q-learning, Sarsa, n-step Q, PQN: targets by hand, textbook loops, exploration, probes, what they accept."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asyncjax as aj
from asyncjax.environment import Box, Discrete, Environment, Step
from asyncjax.methods.action_value import EVALUATION_EPSILON, draw_noise, epsilon_greedy, exploration
from asyncjax.methods.target_network import TargetView as View
from asyncjax.networks import MLP
from asyncjax.q_networks import QNetwork
from tests import probes
from tests.laws import assert_close, assert_equal, stack

pytestmark = pytest.mark.usefixtures("quick_compilation")

METHODS: dict[str, Callable[..., aj.Method]] = {
    "one_step_q": aj.one_step_q,
    "one_step_sarsa": aj.one_step_sarsa,
    "n_step_q": aj.n_step_q,
    "pqn": aj.pqn,
}
POSITIONS = 10


class Table(nn.Module):
    """Q(s, .) is a row of the parameters; s is a position 0, 1, ..."""

    values: tuple[tuple[float, ...], ...] = ((0.0, 0.0),) * POSITIONS

    @nn.compact
    def __call__(self, observation: jax.Array) -> jax.Array:
        table = self.param("table", lambda key: jnp.array(self.values, jnp.float32))
        return table[observation[0].astype(jnp.int32)]


def table(params: Any) -> np.ndarray:
    return np.asarray(params["params"]["table"])


def clockwork(ends: bool = True, max_steps: int | None = None) -> Environment:
    """Positions 0, 1, ... with reward position + 1 whatever is done; the state remembers the actions. With `ends` the
    step from 1 terminates, and that from 3 is truncated in position 9."""

    def observe(position: jax.Array) -> jax.Array:
        return position.astype(jnp.float32)[None]

    def reset(key: jax.Array) -> Any:
        return (jnp.int32(0), jnp.full(POSITIONS, -1, jnp.int32)), observe(jnp.int32(0))

    def step(key: jax.Array, state: Any, action: jax.Array) -> Any:
        now, actions = state
        terminated, truncated = (now == 1) & ends, (now == 3) & ends
        final = jnp.where(truncated, 9, now + 1)
        state = (now + 1, actions.at[now].set(action))
        outcome = Step(observe(now + 1), observe(final), now.astype(jnp.float32) + 1.0, terminated, truncated)
        return state, outcome

    space = Box(np.zeros(1, np.float32), np.full(1, 10, np.float32), (1,), np.dtype(np.float32))
    return Environment("Clockwork", space, Discrete(2), reset, step, max_steps)


# Q(s, .) = (s + 1, 0), but (0, 4) in s = 3; the target network's is (s, s + 10).
ONLINE = {"params": {"table": jnp.array([[s + 1.0, 0.0] if s != 3 else [0.0, 4.0] for s in range(POSITIONS)])}}
TARGET = {"params": {"table": jnp.array([[float(s), s + 10.0] for s in range(POSITIONS)])}}
TARGETS_BY_HAND = {
    # r + v/2 with v = max of (s', s' + 10): 1 + 11/2, 2 (terminated), 3 + 13/2, 4 + 19/2 (truncated), 5 + 15/2, ...
    ("one_step_q", False): [6.5, 2.0, 9.5, 13.5, 12.5, 14.0],
    # v = Q(s', argmax of the online network's): s' itself, but 13 for s' = 3
    ("one_step_q", True): [1.5, 2.0, 9.5, 8.5, 7.5, 9.0],
    ("one_step_sarsa", False): [1.5, 2.0, 9.5, 8.5, 7.5, 9.0],  # the greedy action is the one that is taken
    # backwards: 6 + 16/2; 5 + 14/2; 4 + 19/2 (truncated); 3 + 13.5/2; 2 (terminated); 1 + 2/2
    ("n_step_q", False): [2.0, 2.0, 9.75, 13.5, 12.0, 14.0],
    ("n_step_q", True): [2.0, 2.0, 7.25, 8.5, 9.5, 9.0],
    # v = s' + 1, lambda = 1/2: 6 + 7/2; 5 + (6 + 9.5)/4; 4 + 10/2 (truncated); 3 + (4 + 9)/4; 2; 1 + (2 + 2)/4
    ("pqn", False): [2.0, 2.0, 6.25, 9.0, 8.875, 9.5],
}


def settings(name: str, double: bool, *, lambda_: float, target_period: int = 1000) -> dict[str, Any]:
    """The options that only some of the methods have."""
    if name == "pqn":
        return {"trace_lambda": lambda_}
    return {"target_period": target_period} | ({} if name == "one_step_sarsa" else {"double": double})


@pytest.mark.parametrize(
    ("name", "double", "max_steps"),
    [
        *((name, double, 10) for name, double in TARGETS_BY_HAND),
        ("n_step_q", True, None),
    ],  # None keeps all observations
)
def test_targets_by_hand(name: str, double: bool, max_steps: int | None) -> None:
    own = settings(name, double, lambda_=0.5)
    method = METHODS[name](
        clockwork(max_steps=max_steps),
        num_envs=2,
        unroll_length=6,
        discount=0.5,
        final_epsilon=0.0,
        epsilon_frames=1,
        max_grad_norm=None,
        network=Table(),
        **own,
    )
    _, local = method.init(jax.random.key(0), 1)
    view = View(ONLINE, () if name == "pqn" else TARGET, jnp.int32(1))
    message, _, metrics = jax.jit(method.work)(view, jax.tree.map(lambda x: x[0], local))
    g = np.array(TARGETS_BY_HAND[name, double])
    expected = np.zeros((POSITIONS, 2))
    q, taken = np.arange(1.0, 7.0), [0, 0, 0, 1, 0, 0]
    expected[np.arange(6), taken] = q - g
    np.testing.assert_allclose(table(message), expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], 0.5 * np.sum(np.square(q - g)), rtol=1e-6)
    np.testing.assert_allclose(metrics["q_value"], 3.5, rtol=1e-6)


def sarsa_errors(ends: bool, unroll_length: int, num_workers: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """G_s of the last step of the first segment, by worker, and the actions of two segments, all at random."""
    method = aj.one_step_sarsa(
        clockwork(ends),
        num_envs=1,
        unroll_length=unroll_length,
        discount=0.5,
        final_epsilon=1.0,
        max_grad_norm=None,
        network=Table(),
    )
    view = View(ONLINE, TARGET, jnp.int32(0))
    work = jax.jit(jax.vmap(method.work, (None, 0)))
    message, local, _ = work(view, method.init(jax.random.key(0), num_workers)[1])
    last, actions = unroll_length - 1, work(view, local)[1].rollout.env_state[1][:, 0]
    taken = np.asarray(actions)[:, last]
    gradient = np.asarray(message["params"]["table"])[np.arange(num_workers), last, taken]
    return table(ONLINE)[last, taken] - gradient, np.asarray(actions)


def test_sarsa_bootstraps_a_segment_from_the_action_that_the_next_one_begins_with() -> None:
    g, actions = sarsa_errors(ends=False, unroll_length=2)
    np.testing.assert_allclose(g, 2.0 + 0.5 * table(TARGET)[2, actions[:, 2]], rtol=1e-6)
    assert set(actions[:, 2]) == {0, 1}


def test_sarsa_draws_an_action_for_the_last_observation_of_a_truncated_episode() -> None:
    g, actions = sarsa_errors(ends=True, unroll_length=4)
    chosen = np.isclose(g, 4.0 + 0.5 * 19.0)
    np.testing.assert_allclose(g[~chosen], 4.0 + 0.5 * 9.0, rtol=1e-6)
    # Both of its actions come with both of the actions that begin the next episode.
    assert {(int(c), int(a)) for c, a in zip(chosen, actions[:, 4], strict=True)} == {(0, 0), (0, 1), (1, 0), (1, 1)}


T, N, DISCOUNT, PERIOD, LAMBDA = 3, 2, 0.9, 30, 0.7


def recorded(env: Environment) -> Environment:
    """The same, with the last T steps in the state."""

    def reset(key: jax.Array) -> Any:
        state, observation = env.reset(key)
        blank = {"s": observation, "next": observation, "r": jnp.float32(0), "end": False, "cut": False, "a": 0}
        log = jax.tree.map(lambda x: jnp.zeros((T, *jnp.shape(x)), jnp.asarray(x).dtype), blank)
        return (state, observation, log), observation

    def step(key: jax.Array, state: Any, action: jax.Array) -> Any:
        inner, observation, log = state
        inner, out = env.step(key, inner, action)
        new = {"s": observation, "next": out.final_observation, "r": out.reward, "end": out.terminated}
        new |= {"cut": out.truncated, "a": action.astype(log["a"].dtype)}
        log = jax.tree.map(lambda old, x: jnp.concatenate([old[1:], x[None]]), log, new)
        return (inner, out.observation, log), out

    return env._replace(reset=reset, step=step, max_steps=None)


def textbook(name: str, double: bool, logs: list[list[Any]], rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Mnih et al. (2016), step by step on what the workers saw: theta and theta- after the last update but one."""
    theta, target, frames = np.zeros((POSITIONS, 2)), np.zeros((POSITIONS, 2)), 0
    for update, segments in enumerate(logs[:-1]):
        bootstrap, gradient = theta if name == "pqn" else target, np.zeros_like(theta)
        for w, log in enumerate(segments):
            for n in range(N):
                g = 0.0
                for t in reversed(range(T)):
                    s, after, a = int(log["s"][n, t, 0]), int(log["next"][n, t, 0]), int(log["a"][n, t])
                    v = bootstrap[after].max()
                    if double:
                        v = bootstrap[after, theta[after].argmax()]
                    if name == "one_step_sarsa":
                        next_a = log["a"][n, t + 1] if t + 1 < T else logs[update + 1][w]["a"][n, 0]
                        v = bootstrap[after, int(next_a)]
                    last = t == T - 1 or log["cut"][n, t]
                    weight = {"one_step_q": 0.0, "one_step_sarsa": 0.0, "n_step_q": 1.0, "pqn": LAMBDA}[name]
                    ahead = v if last else (1.0 - weight) * v + weight * g
                    g = log["r"][n, t] + (0.0 if log["end"][n, t] else DISCOUNT * ahead)
                    gradient[s, a] += (theta[s, a] - g) / N / len(segments)
        theta = theta - rate * gradient
        before, frames = frames, frames + T * N * len(segments)
        if frames // PERIOD > before // PERIOD:
            target = theta
    return theta, target


@pytest.mark.parametrize(
    ("name", "double", "num_workers"),
    [
        ("one_step_q", False, 1),
        ("one_step_q", True, 1),
        ("one_step_sarsa", False, 1),
        ("n_step_q", False, 1),
        ("n_step_q", False, 2),
        ("pqn", False, 1),
    ],
)
def test_synchronous_workers_are_the_textbook_loop(name: str, double: bool, num_workers: int) -> None:
    # A truncated episode takes no next action, so Sarsa's loop has none to look up.
    env = recorded(probes.corridor(2, None if name == "one_step_sarsa" else 3))
    own = settings(name, double, lambda_=LAMBDA, target_period=PERIOD)
    method = METHODS[name](
        env, optimizer=optax.sgd(0.2), num_envs=N, unroll_length=T, discount=DISCOUNT, max_grad_norm=None,
        epsilon_frames=50, network=Table(), **own,
    )  # fmt: skip
    shared, local = method.init(jax.random.key(3), num_workers)
    work, apply = jax.jit(jax.vmap(method.work, (None, 0))), jax.jit(method.apply)
    logs, history = [], [shared]
    for _ in range(13):
        view = method.view(shared)
        messages, local, _ = work(view, local)
        stale = aj.Stale(stack([view] * num_workers), jnp.zeros(num_workers, jnp.int32))
        shared, _ = apply(shared, messages, stale)
        history.append(shared)
        logs.append(
            [jax.tree.map(lambda x, w=w: np.asarray(x[w]), local.rollout.env_state[2]) for w in range(num_workers)]
        )
    theta, target = textbook(name, double, logs, 0.2)
    np.testing.assert_allclose(table(history[-2].params), theta, rtol=1e-4, atol=1e-5)
    assert history[-2].frames == 12 * num_workers * T * N
    if name == "pqn":
        assert history[-2].target == ()
    else:
        np.testing.assert_allclose(table(history[-2].target), target, rtol=1e-4, atol=1e-5)
        assert not np.allclose(target, theta)


@pytest.mark.parametrize("group_size", [1, 3])
def test_the_target_network_is_renewed_by_the_frames_of_all_workers(group_size: int) -> None:
    env = probes.best_action()
    method = aj.n_step_q(env, num_envs=2, unroll_length=5, target_period=70, network=Table(), optimizer=optax.sgd(0.1))
    service = aj.service.exponential()
    schedule = aj.schedules.from_service_times(service, 12, 4, jax.random.key(0), group_size=group_size)
    chunks: list[Any] = []
    aj.replay(method, schedule, jax.random.key(1), num_workers=4, chunk_size=1, callback=chunks.append)
    states = [chunk.state.shared for chunk in chunks]
    for before, after in itertools.pairwise(states):
        assert after.frames == before.frames + 10 * group_size
        due = int(after.frames) // 70 > int(before.frames) // 70
        assert_equal(after.target, after.params if due else before.target)


def test_final_epsilons_are_drawn_as_in_the_paper() -> None:
    method = aj.one_step_q(probes.best_action(), num_envs=1, unroll_length=1)
    final = np.asarray(jax.jit(method.init, static_argnums=1)(jax.random.key(0), 4000)[1].final_epsilon)
    for epsilon, probability in {0.1: 0.4, 0.01: 0.3, 0.5: 0.3}.items():
        share = np.mean(final == np.float32(epsilon))
        assert abs(share - probability) < 4 * np.sqrt(probability * (1 - probability) / len(final))
    assert set(final) == {np.float32(x) for x in (0.1, 0.01, 0.5)}


def test_exploration_is_uniform_with_probability_epsilon() -> None:
    q, epsilon, draws = jnp.array([0.0, 2.0, 1.0]), 0.3, 20_000
    noise = draw_noise(jax.random.key(0), (draws,))
    actions = np.asarray(jax.vmap(epsilon_greedy, (None, 0, None))(q, noise, epsilon))
    shares = np.bincount(actions, minlength=3) / draws
    np.testing.assert_allclose(shares, [0.1, 0.8, 0.1], atol=4 * np.sqrt(0.25 / draws))
    highest = jnp.full(2, np.nextafter(np.float32(1), np.float32(0)))
    assert all(int(epsilon_greedy(jnp.zeros(a), highest, 1.0)) == a - 1 for a in range(1, 40))


def test_epsilon_falls_with_the_frames_of_all_workers() -> None:
    frames = jnp.array([0, 25, 50, 100, 1_000_000])
    np.testing.assert_allclose(exploration(jnp.float32(0.1), frames, 100), [1.0, 0.775, 0.55, 0.1, 0.1], rtol=1e-6)
    method = aj.one_step_q(probes.best_action(), num_envs=2, unroll_length=5, final_epsilon=0.2, epsilon_frames=200)
    schedule = aj.schedules.round_robin(30, 4)
    result = aj.emulate(method, schedule, jax.random.key(0))
    expected = 1.0 - 0.8 * np.minimum(schedule.read * 10 / 200, 1.0)  # a version is ten frames of whichever worker
    np.testing.assert_allclose(result.metrics["epsilon"], expected, rtol=1e-5)


def test_evaluation_is_greedy_or_nearly_so() -> None:
    method = aj.n_step_q(clockwork(), network=Table())
    view, observation = View(ONLINE, TARGET, jnp.int32(0)), jnp.array([3.0])
    assert method.policy is not None
    act = method.policy.act
    assert act(view, (), observation, None) == (1, ())
    actions = jax.vmap(lambda key: act(view, (), observation, key)[0])(jax.random.split(jax.random.key(0), 4000))
    share = EVALUATION_EPSILON / 2
    assert abs(float(jnp.mean(actions == 0)) - share) < 4 * np.sqrt(share / 4000)


def test_double_is_the_same_where_the_target_network_is_the_online_one() -> None:
    messages = [
        one_message(aj.one_step_q(probes.corridor(3), num_envs=2, unroll_length=4, double=double, network=SMALL))[0]
        for double in (False, True)
    ]
    assert_equal(*messages)


def test_dueling_values_have_the_state_value_as_their_mean() -> None:
    network, x = QNetwork(3, MLP((4,)), dueling=True), jnp.array([0.3, -1.0])
    params = network.init(jax.random.key(0), x)
    heads = params["params"]
    features: Any = MLP((4,)).apply({"params": heads["torso"]}, x)
    value = features @ heads["Dense_1"]["kernel"] + heads["Dense_1"]["bias"]
    advantage = features @ heads["Dense_0"]["kernel"] + heads["Dense_0"]["bias"]
    q: Any = network.apply(params, x)
    np.testing.assert_allclose(jnp.mean(q), value[0], rtol=1e-5)
    np.testing.assert_allclose(q - q[0], advantage - advantage[0], rtol=1e-5, atol=1e-6)


def one_message(method: aj.Method) -> Any:
    """The first message, its metrics, and the shared state that it leads to."""

    @jax.jit
    def update(key: jax.Array) -> Any:
        shared, local = method.init(key, 1)
        view = method.view(shared)
        message, _, metrics = method.work(view, jax.tree.map(lambda x: x[0], local))
        stale = aj.Stale(jax.tree.map(lambda x: x[None], view), jnp.zeros(1, jnp.int32))
        return message, metrics, method.apply(shared, jax.tree.map(lambda x: x[None], message), stale)[0]

    return update(jax.random.key(0))


def test_private_optimizers_and_corrections_see_the_parameters_only() -> None:
    # Not Adam, whose first step makes as much of a gradient that is rounding error as of any other.
    options = {"optimizer": optax.sgd(0.1, momentum=0.9), "num_envs": 2, "unroll_length": 4, "network": Table()}
    make = functools.partial(aj.n_step_q, probes.corridor(3), **options)
    plain = one_message(make())[2].params
    for options in ({"private_optimizer": True}, {"correction": aj.corrections.delay_compensation()}):
        assert_close(one_message(make(**options))[2].params, plain)


def values_at(params: Any, *xs: float) -> np.ndarray:
    return np.asarray(jax.vmap(functools.partial(SMALL.apply, params))(jnp.array(xs, jnp.float32)[:, None]))


SMALL = QNetwork(2, MLP((8,)))


def train(name: str, env: Environment, **options: Any) -> tuple[aj.Method, aj.Result]:
    """Four workers, staleness 3."""
    settings: dict[str, Any] = {"num_envs": 8, "unroll_length": 4, "discount": 0.5, "network": SMALL}
    settings |= {"epsilon_frames": 1000, "final_epsilon": 0.2, "optimizer": optax.rmsprop(3e-3, decay=0.99, eps=1e-2)}
    settings |= {} if name == "pqn" else {"target_period": 200}
    method = METHODS[name](env, **(settings | options))
    return method, aj.emulate(method, aj.schedules.round_robin(300, 4), jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "env", "xs", "expected"),
    [
        ("one_step_q", probes.constant_value(), [0.0], [1.0]),
        ("one_step_sarsa", probes.observed_value(), [-1.0, 1.0], [-1.0, 1.0]),
        ("n_step_q", probes.discounted_value(), [0.0, 1.0], [0.5, 1.0]),
        ("one_step_q", probes.discounted_value(), [0.0, 1.0], [0.5, 1.0]),
        ("one_step_sarsa", probes.truncated_value(), [0.0], [2.0]),
        ("pqn", probes.truncated_value(), [0.0], [2.0]),
    ],
    ids=lambda x: getattr(x, "name", None),
)
def test_value_probes(name: str, env: Environment, xs: list[float], expected: list[float]) -> None:
    _, result = train(name, env, final_epsilon=1.0)  # both actions are tried equally often
    q = values_at(result.shared.params, *xs)
    np.testing.assert_allclose(q, np.broadcast_to(np.array(expected)[:, None], q.shape), atol=0.05)


@pytest.mark.parametrize("name", METHODS)
def test_policy_probe(name: str) -> None:
    env = probes.observed_action()
    method, result = train(name, env)
    (right, wrong), (wrong_too, right_too) = values_at(result.shared.params, -1.0, 1.0)
    np.testing.assert_allclose([right, right_too], 1.0, atol=0.1)
    assert max(wrong, wrong_too) < -0.5  # rarely tried, so learned more slowly
    returns = aj.evaluate(method, env, result.shared, jax.random.key(1), num_episodes=20, max_steps=1)
    assert returns.mean() == 1.0


@pytest.mark.parametrize("x64", [False, True])
def test_numbers_can_be_swept(x64: bool) -> None:
    def loss(weights: jax.Array, counts: jax.Array) -> jax.Array:
        method = aj.n_step_q(
            probes.corridor(3),
            num_envs=2,
            unroll_length=4,
            discount=weights[0],
            final_epsilon=weights[1],
            target_period=counts[0],
            epsilon_frames=counts[1],
            network=Table(),
            optimizer=optax.sgd(0.1, momentum=weights[1]),
            max_grad_norm=weights[1],
            anneal_steps=1e6 * weights[0],
        )
        _, metrics, shared = one_message(method)
        return metrics["loss"] + optax.tree.norm(shared.target)

    with jax.enable_x64(x64):
        weights, counts = jnp.array([[0.9, 0.1], [0.5, 1.0]]), jnp.array([[4, 10], [100, 20]])
        swept = jax.jit(jax.vmap(loss))(weights, counts)
        np.testing.assert_allclose(swept[1], jax.jit(loss)(weights[1], counts[1]), rtol=1e-4)
    assert swept.dtype == jnp.float32


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("env_id", ["Breakout-MinAtar", "FrozenLake-misc"])
def test_images_and_discrete_observations_trace_with_steady_types(name: str, env_id: str, x64: bool) -> None:
    with jax.enable_x64(x64):
        method = METHODS[name](env_id, num_envs=2, unroll_length=3)

        def round_trip(key: jax.Array) -> Any:
            shared, local = method.init(key, 1)
            worker = jax.tree.map(lambda x: x[0], local)
            view = method.view(shared)
            message, after, metrics = method.work(view, worker)
            stale = aj.Stale(jax.tree.map(lambda x: x[None], view), jnp.zeros(1, jnp.int32))
            return (
                worker,
                after,
                shared,
                method.apply(shared, jax.tree.map(lambda x: x[None], message), stale)[0],
                metrics,
            )

        worker, after, shared, updated, metrics = jax.eval_shape(round_trip, jax.random.key(0))
    assert worker == after
    assert shared == updated
    assert set(metrics) == {"episodes", "return_sum", "length_sum", "q_value", "epsilon", "loss", "grad_norm"}
    assert all(m.shape == () and m.dtype == jnp.float32 for m in metrics.values())


@pytest.mark.parametrize(
    ("name", "env", "options", "words"),
    [
        ("one_step_q", "Pendulum-v1", {}, ["Pendulum-v1", "Box", "discrete"]),
        ("one_step_sarsa", "CartPole-v1", {"num_envs": 0}, ["num_envs=0", "at least 1"]),
        ("n_step_q", "CartPole-v1", {"target_period": 0}, ["target_period=0", "at least 1"]),
        ("n_step_q", "CartPole-v1", {"epsilon_frames": -5}, ["epsilon_frames=-5", "at least 1"]),
        ("n_step_q", "CartPole-v1", {"final_epsilon": 1.5}, ["final_epsilon=1.5", "between 0 and 1"]),
        ("one_step_q", "CartPole-v1", {"discount": float("nan")}, ["discount=nan", "between 0 and 1"]),
        ("pqn", "CartPole-v1", {"trace_lambda": -0.1}, ["trace_lambda=-0.1", "between 0 and 1"]),
        ("one_step_q", "CartPole-v1", {"dueling": True, "network": SMALL}, ["dueling=True", "network="]),
        ("one_step_q", "CartPole-v1", {"max_grad_norm": -1.0}, ["max_grad_norm=-1.0", "above 0"]),
        ("n_step_q", "Acrobot-v1", {"network": SMALL}, ["network=QNetwork", "(2,)", "(3,)"]),
    ],
)
def test_errors_name_the_fix(name: str, env: str, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"=") as caught:
        METHODS[name](env, **options).init(jax.random.key(0), 1)
    assert all(word in str(caught.value) for word in words), caught.value
