"""What the value-based methods share: epsilon-greedy workers that send gradients of one squared error.

The methods differ in how they value a state and in how far they look ahead, lambda::

    G_t  = r_t + discount_t [(1 - lambda) v_t + lambda G_{t+1}],     v_t = value(Q(s_t, .; theta-))
    loss = sum_t (G_t - Q(s_{t-1}, a_{t-1}; theta))^2 / 2

theta- is the target network, a copy of theta that is renewed every `target_period` environment frames of all workers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from asyncjax import returns
from asyncjax.distributions import argmax
from asyncjax.environment import Environment, make_env, require_discrete_actions
from asyncjax.method import Method, Metrics, Policy, PyTree, Stale
from asyncjax.methods.gradient import Learner, annealed, gradient_method
from asyncjax.q_networks import q_network
from asyncjax.rollout import Rollout, Trajectory, init_rollout, next_values, require_at_least_one, unroll
from asyncjax.traced import concrete

Number = float | jax.Array
Count = int | jax.Array
Value = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

FINAL_EPSILONS, THEIR_PROBABILITIES = (0.1, 0.01, 0.5), (0.4, 0.3, 0.3)
EVALUATION_EPSILON = 0.05
OPEN = -1  # no action was chosen yet


class QLearner(NamedTuple):
    """Shared state: the fields of `Learner`, the target network and the environment frames of all workers so far.

    Attributes:
      params: the parameters.
      opt_state: see `Learner`, like the next two.
      correction_state: as there.
      messages: as there.
      target: like `params`; `()` without a target network.
      frames: Int32[].
    """

    params: PyTree
    opt_state: PyTree
    correction_state: PyTree
    messages: PyTree
    target: PyTree
    frames: jax.Array


class View(NamedTuple):
    """What a worker reads; see `QLearner`."""

    params: PyTree
    target: PyTree
    frames: jax.Array


class Worker(NamedTuple):
    """A worker's state.

    Attributes:
      rollout: its environments; with `commit`, `carry` is the action that was chosen for the next step, or OPEN.
      final_epsilon: Float32[], where its exploration ends.
    """

    rollout: Rollout
    final_epsilon: jax.Array


def greedy_value(q_t: jax.Array, online_q_t: jax.Array, a_t: jax.Array) -> jax.Array:
    """max_a Q(s', a; theta-)."""
    del online_q_t, a_t
    return jnp.max(q_t)


def double_value(q_t: jax.Array, online_q_t: jax.Array, a_t: jax.Array) -> jax.Array:
    """Q(s', argmax_a Q(s', a; theta); theta-): van Hasselt et al., Deep reinforcement learning with double Q (2016)."""
    del a_t
    return q_t[argmax(online_q_t)]


def taken_value(q_t: jax.Array, online_q_t: jax.Array, a_t: jax.Array) -> jax.Array:
    """Q(s', a'; theta-), a' the action taken next."""
    del online_q_t
    return q_t[a_t]


def default_optimizer() -> optax.GradientTransformation:
    """What `optimizer=None` means: Adam, whose step size falls from 1e-3 to 5e-5 over the first 10,000 updates."""
    return optax.adam(optax.linear_schedule(1e-3, 5e-5, 10_000), eps=1e-5)


def action_value_method(
    env: Environment | str,
    value: Value,
    lambda_: Number,
    *,
    optimizer: optax.GradientTransformation | None,
    num_envs: int,
    unroll_length: int,
    discount: Number,
    target_period: Count | None,
    epsilon_frames: Count,
    final_epsilon: Number | None,
    max_grad_norm: Number | None,
    anneal_steps: Number | None,
    private_optimizer: bool,
    correction: optax.GradientTransformation | None,
    network: nn.Module | None,
    dueling: bool = False,
    commit: bool = False,
) -> Method:
    """An action-value method from the value of a state and the length of the look-ahead.

    Args:
      env: with discrete actions, or a gymnax id.
      value: (Q(s', .; theta-) Float[A], Q(s', .; theta) Float[A], the action chosen in s') -> Float[].
      lambda_: 0 looks one step ahead, 1 to the end of the segment.
      optimizer: any optax transformation; None is `default_optimizer()`.
      num_envs: environments per worker.
      unroll_length: steps per environment and message.
      discount: of future rewards per step.
      target_period: environment frames of all workers between two target networks; None has none, and bootstraps from
        the parameters themselves.
      epsilon_frames: environment frames of all workers over which epsilon falls from 1 to its final value.
      final_epsilon: of all workers; None draws one for each from {.1, .01, .5} with probabilities {.4, .3, .3}.
      max_grad_norm: see `gradient_method`.
      anneal_steps: environment frames of all workers over which the step size falls linearly to 0; None keeps it.
      private_optimizer: see `gradient_method`.
      correction: see `gradient_method`.
      network: a flax module, observation -> Float[A]; None is `q_network(env, dueling)`.
      dueling: see `q_networks.QNetwork`.
      commit: choose the action after a segment within it, with the parameters read for it, and take it in the next one.
        It is what `value` gets for the last state; without `commit`, that is another draw.

    Returns:
      A Method whose view is (params, target, frames).
    """
    env = make_env(env)
    require_discrete_actions(env, "an action-value method")
    if network is not None and dueling:
        raise ValueError(
            "dueling=True is for the default network: build it into network=, or leave one of the two out."
        )
    net = q_network(env, dueling) if network is None else network
    tx = default_optimizer() if optimizer is None else optimizer
    _check(num_envs, unroll_length, discount, lambda_, target_period, epsilon_frames, final_epsilon)
    no_action = jnp.int32(OPEN) if commit else ()

    def init_params(key: jax.Array) -> PyTree:
        init_key, reset_key = jax.random.split(key)
        return net.init(init_key, env.reset(reset_key)[1])

    def init_worker(key: jax.Array) -> Worker:
        rollout_key, epsilon_key = jax.random.split(key)
        return Worker(
            init_rollout(env, rollout_key, num_envs, no_action), draw_final_epsilon(epsilon_key, final_epsilon)
        )

    def collect(params: PyTree, epsilon: jax.Array, rollout: Rollout) -> tuple[Rollout, Trajectory, jax.Array, Metrics]:
        """A segment, and the actions chosen in its `bootstrap_observation`, Int32[S, N]."""

        def choose(observation: PyTree, noise: jax.Array) -> jax.Array:
            return epsilon_greedy(net.apply(params, observation), noise, epsilon)

        def act(chosen: PyTree, observation: PyTree, noise: jax.Array) -> tuple[PyTree, jax.Array, tuple]:
            action = choose(observation, noise)
            return no_action, jnp.where(chosen == OPEN, action, chosen) if commit else action, ()

        key, end_key, start_key = jax.random.split(rollout.key, 3)
        rollout, trajectory, episodes = unroll(
            env, act, rollout._replace(key=key), unroll_length, draw=draw_noise, initial_carry=no_action
        )
        shape = (len(jax.tree.leaves(trajectory.bootstrap_observation)[0]), num_envs)
        next_action = jax.vmap(jax.vmap(choose))(trajectory.bootstrap_observation, draw_noise(end_key, shape))
        if commit:
            # After the end of an episode the next action belongs to another state than the one to bootstrap from.
            fresh = jax.vmap(choose)(rollout.observation, draw_noise(start_key, (num_envs,)))
            ended = trajectory.terminated[-1] | trajectory.truncated[-1]
            rollout = rollout._replace(carry=jnp.where(ended, fresh, next_action[-1]))
        return rollout, trajectory, next_action, episodes

    def segment_loss(
        params: PyTree, target: PyTree, trajectory: Trajectory, next_action: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The loss of one environment's segment, summed over its T steps, and the mean of Q(s, a)."""

        def q(params: PyTree, observation: PyTree) -> jax.Array:
            return jax.vmap(partial(net.apply, params))(observation)

        q_tm1, end = q(params, trajectory.observation), trajectory.bootstrap_observation
        v_tm1 = jax.vmap(value)(q(target, trajectory.observation), q_tm1, trajectory.action)
        v_end = jax.vmap(value)(q(target, end), q(params, end), next_action)
        g = returns.lambda_returns(
            trajectory.reward,
            returns.discounts(trajectory.terminated, discount),
            next_values(v_tm1, v_end, trajectory.truncated),
            lambda_,
            trajectory.truncated,
        )
        q_taken = jax.vmap(lambda q, action: q[action])(q_tm1, trajectory.action)
        return 0.5 * jnp.sum(jnp.square(jax.lax.stop_gradient(g) - q_taken)), jnp.mean(q_taken)

    def loss(target: PyTree, frames: jax.Array, params: PyTree, worker: Worker) -> tuple:
        target = jax.lax.stop_gradient(params) if target_period is None else target
        epsilon = exploration(worker.final_epsilon, frames, epsilon_frames)
        # Acting is not differentiated: the loss evaluates the same parameters once more, in one large batch.
        rollout, trajectory, next_action, episodes = collect(jax.lax.stop_gradient(params), epsilon, worker.rollout)
        values, q_values = jax.vmap(segment_loss, (None, None, 1, 1))(params, target, trajectory, next_action)
        metrics = {**episodes, "q_value": jnp.mean(q_values), "epsilon": epsilon}
        return jnp.mean(values), (worker._replace(rollout=rollout), metrics)

    def learner(target: PyTree = (), frames: PyTree = ()) -> Method:
        """The gradient method of those who see this target network and so many frames."""
        return gradient_method(
            init_params,
            init_worker,
            partial(loss, target, frames),
            tx,
            private_optimizer=private_optimizer,
            max_grad_norm=max_grad_norm,
            anneal_messages=None if anneal_steps is None else anneal_steps / (num_envs * unroll_length),
            correction=correction,
        )

    def init(key: jax.Array, num_workers: int) -> tuple[QLearner, PyTree]:
        shared, workers = learner().init(key, num_workers)
        return QLearner(*shared, () if target_period is None else shared.params, jnp.int32(0)), workers

    def work(view: View, local: PyTree) -> tuple[PyTree, PyTree, Metrics]:
        return learner(view.target, view.frames).work(view.params, local)

    def apply(shared: QLearner, messages: PyTree, stale: Stale) -> tuple[QLearner, Metrics]:
        *inner, target, before = shared
        inner, metrics = learner().apply(Learner(*inner), messages, stale._replace(view=stale.view.params))
        frames = before + jnp.int32(len(stale.staleness) * num_envs * unroll_length)
        if target_period is not None:
            period = jnp.asarray(target_period, jnp.int32)
            due = frames // period > before // period
            target = jax.tree.map(lambda new, old: jnp.where(due, new, old), inner.params, target)
        return QLearner(*inner, target, frames), metrics

    def act(view: View, carry: PyTree, observation: PyTree, key: jax.Array | None) -> tuple[jax.Array, PyTree]:
        q = net.apply(view.params, observation)
        return argmax(q) if key is None else epsilon_greedy(q, draw_noise(key), EVALUATION_EPSILON), carry

    def view(shared: QLearner) -> View:
        return View(shared.params, shared.target, shared.frames)

    return Method(init, view, work, apply, Policy(tuple, act))


def draw_noise(key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
    """Float32[*shape, 2] in [0, 1), what `epsilon_greedy` takes."""
    return jax.random.uniform(key, (*shape, 2), jnp.float32)


def epsilon_greedy(q: jax.Array, noise: jax.Array, epsilon: Number) -> jax.Array:
    """A uniform action with probability epsilon, else argmax_a q; Int32[], of Float[A] and Float32[2] in [0, 1)."""
    uniform = jnp.floor(noise[1] * jnp.float32(q.shape[0])).astype(jnp.int32)
    return jnp.where(noise[0] < epsilon, uniform, argmax(q))


def exploration(final_epsilon: jax.Array, frames: jax.Array, epsilon_frames: Count) -> jax.Array:
    """Epsilon: from 1 to its final value, linearly over `epsilon_frames`."""
    return final_epsilon + (1.0 - final_epsilon) * annealed(frames, epsilon_frames)


def draw_final_epsilon(key: jax.Array, final_epsilon: Number | None) -> jax.Array:
    """This one, or one drawn as in Mnih et al. (2016); Float32[]."""
    if final_epsilon is not None:
        return jnp.asarray(final_epsilon, jnp.float32)
    values, probabilities = (jnp.array(x, jnp.float32) for x in (FINAL_EPSILONS, THEIR_PROBABILITIES))
    return jax.random.choice(key, values, p=probabilities)


def _check(
    num_envs: int,
    unroll_length: int,
    discount: Number,
    lambda_: Number,
    target_period: Count | None,
    epsilon_frames: Count,
    final_epsilon: Number | None,
) -> None:
    counts = {"num_envs": num_envs, "unroll_length": unroll_length}
    counts |= {"target_period": target_period, "epsilon_frames": epsilon_frames}
    known_counts = {name: concrete(count) for name, count in counts.items() if count is not None}
    require_at_least_one(**{name: int(np.min(count)) for name, count in known_counts.items() if count is not None})
    for name, number in {"discount": discount, "lambda_": lambda_, "final_epsilon": final_epsilon}.items():
        known = None if number is None else concrete(number)
        if known is not None and not np.all((known >= 0) & (known <= 1)):
            raise ValueError(f"{name}={number} has to lie between 0 and 1.")
