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
import optax

from asyncjax import returns
from asyncjax.actor_critic import has_memory
from asyncjax.distributions import argmax
from asyncjax.environment import Environment, make_env, require_discrete_actions
from asyncjax.method import Method, Metrics, Policy, PyTree
from asyncjax.methods.gradient import gradient_method
from asyncjax.methods.learner import annealed
from asyncjax.methods.options import Count, Number, check_options
from asyncjax.methods.target_network import TargetView, with_target_network
from asyncjax.networks import check_module, check_output
from asyncjax.q_networks import q_network
from asyncjax.rollout import Rollout, Trajectory, in_one_batch, init_rollout, next_values, unroll
from asyncjax.threefry import drawn

Value = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Data = tuple[Trajectory, jax.Array]  # a segment, and the actions chosen in its bootstrap observations

FINAL_EPSILONS, THEIR_PROBABILITIES = (0.1, 0.01, 0.5), (0.4, 0.3, 0.3)
EVALUATION_EPSILON = 0.05
OPEN = -1  # no action was chosen yet


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


def default_optimizer(steps_per_update: int) -> optax.GradientTransformation:
    """What `optimizer=None` means: Adam, whose step size falls from 1e-3 to 5e-5 over the first 800,000 steps."""
    return optax.adam(optax.linear_schedule(1e-3, 5e-5, max(1, 800_000 // steps_per_update)), eps=1e-5)


def action_value_method(
    env: Environment | str,
    value: Value,
    trace_lambda: Number,
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
      trace_lambda: 0 looks one step ahead, 1 to the end of the segment.
      optimizer: any optax transformation; None is `default_optimizer(num_envs * unroll_length)`, for groups of one.
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
      A Method whose view is (params, target, frames) and whose policy is greedy, or given a key takes a uniform action
      with probability 0.05, with the work metrics `episodes`, `return_sum`, `length_sum`,
      `q_value`, `epsilon`, `loss` and `grad_norm`.
    """
    env = make_env(env)
    num_actions = require_discrete_actions(env, "an action-value method")
    if network is not None and dueling:
        raise ValueError("dueling=True is for the default network: build it into network=, or leave one of them out.")
    check_options(num_envs=num_envs, unroll_length=unroll_length, discount=discount, trace_lambda=trace_lambda)
    check_options(target_period=target_period, epsilon_frames=epsilon_frames, final_epsilon=final_epsilon)
    check_options(max_grad_norm=max_grad_norm, anneal_steps=anneal_steps)
    net = q_network(env, dueling) if network is None else network
    check_module(net)
    q_values: Callable[[PyTree, PyTree], jax.Array] = net.apply  # type: ignore[assignment]
    tx = default_optimizer(num_envs * unroll_length) if optimizer is None else optimizer

    def init_params(key: jax.Array) -> PyTree:
        init_key, reset_key = jax.random.split(key)
        observation = drawn(env.reset, reset_key)[1]
        params = drawn(net.init, init_key, observation)
        check_output(net, (num_actions,), params, observation)
        return params

    def init_worker(key: jax.Array) -> Worker:
        rollout_key, epsilon_key = jax.random.split(key)
        rollout = init_rollout(env, rollout_key, num_envs, jnp.int32(OPEN) if commit else ())
        return Worker(rollout, draw_final_epsilon(epsilon_key, final_epsilon))

    def sample(frames: jax.Array, params: PyTree, worker: Worker) -> tuple[Data, Worker, Metrics]:
        epsilon = exploration(worker.final_epsilon, frames, epsilon_frames)

        def choose(observation: PyTree, noise: jax.Array) -> jax.Array:
            return epsilon_greedy(q_values(params, observation), noise, epsilon)

        rollout, trajectory, next_action, episodes = collect(env, choose, worker.rollout, unroll_length)
        return (trajectory, next_action), worker._replace(rollout=rollout), {**episodes, "epsilon": epsilon}

    def loss(target: PyTree, params: PyTree, data: Data) -> tuple[jax.Array, Metrics]:
        read = jax.lax.stop_gradient(params)  # bootstrapping is not differentiated
        q, target_q = (partial(q_values, p) for p in (params, read if target_period is None else target))
        errors, q_taken = td_errors(q, target_q, value, discount, trace_lambda, *data)
        return 0.5 * jnp.mean(jnp.sum(jnp.square(errors), axis=0)), {"q_value": jnp.mean(q_taken)}

    def learner(target: PyTree, frames: PyTree) -> Method:
        return gradient_method(
            init_params,
            init_worker,
            partial(sample, frames),
            partial(loss, target),
            tx,
            private_optimizer=private_optimizer,
            max_grad_norm=max_grad_norm,
            anneal_messages=None if anneal_steps is None else anneal_steps / (num_envs * unroll_length),
            correction=correction,
        )

    def act(view: TargetView, carry: PyTree, observation: PyTree, key: jax.Array | None) -> tuple[jax.Array, PyTree]:
        q = q_values(view.params, observation)
        return argmax(q) if key is None else epsilon_greedy(q, draw_noise(key), EVALUATION_EPSILON), carry

    return with_target_network(learner, target_period, num_envs * unroll_length, Policy(tuple, act))


def collect(
    env: Environment, choose: Callable[[PyTree, jax.Array], jax.Array], rollout: Rollout, length: int
) -> tuple[Rollout, Trajectory, jax.Array, Metrics]:
    """A segment, and the actions chosen in its `bootstrap_observation`, Int32[S, N].

    Where the rollout carries actions, it begins with those that are not OPEN, and carries the next ones afterwards.
    """
    commit = has_memory(rollout.carry)
    after = jnp.int32(OPEN) if commit else ()
    num_envs = len(rollout.episode_return)

    def act(chosen: PyTree, observation: PyTree, noise: jax.Array) -> tuple[PyTree, jax.Array, tuple]:
        action = choose(observation, noise)
        return after, jnp.where(chosen == OPEN, action, chosen) if commit else action, ()

    key, end_key, start_key = jax.random.split(rollout.key, 3)
    rollout, trajectory, episodes = unroll(
        env, act, rollout._replace(key=key), length, draw=draw_noise, initial_carry=after
    )
    shape = (len(jax.tree.leaves(trajectory.bootstrap_observation)[0]), num_envs)
    next_action = jax.vmap(jax.vmap(choose))(trajectory.bootstrap_observation, draw_noise(end_key, shape))
    if commit:
        # After the end of an episode the next action belongs to another state than the one to bootstrap from.
        fresh = jax.vmap(choose)(rollout.observation, draw_noise(start_key, (num_envs,)))
        ended = trajectory.terminated[-1] | trajectory.truncated[-1]
        rollout = rollout._replace(carry=jnp.where(ended, fresh, next_action[-1]))
    return rollout, trajectory, next_action, episodes


def td_errors(
    q: Callable[[PyTree], jax.Array],
    target_q: Callable[[PyTree], jax.Array],
    value: Value,
    discount: Number,
    trace_lambda: Number,
    trajectory: Trajectory,
    next_action: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """G_t - Q(s_{t-1}, a_{t-1}) and Q(s_{t-1}, a_{t-1}) along the segments of N environments, both Float[T, N].

    Args:
      q: observation -> Float[A], the network that learns.
      target_q: observation -> Float[A], the network to bootstrap from.
      value: see `action_value_method`.
      discount: of future rewards per step.
      trace_lambda: 0 looks one step ahead, 1 to the end of the segment.
      trajectory: [T, N, ...].
      next_action: Int32[S, N], chosen in the bootstrap observations.
    """
    at, end = trajectory.observation, trajectory.bootstrap_observation
    q_tm1 = in_one_batch(q)(at)
    v_tm1 = in_one_batch(value)(in_one_batch(target_q)(at), q_tm1, trajectory.action)
    v_end = in_one_batch(value)(in_one_batch(target_q)(end), in_one_batch(q)(end), next_action)

    def targets(trajectory: Trajectory, v_tm1: jax.Array, v_end: jax.Array) -> jax.Array:
        """Of one environment."""
        v_t = next_values(v_tm1, v_end, trajectory.truncated)
        discount_t = returns.discounts(trajectory.terminated, discount)
        return returns.lambda_returns(trajectory.reward, discount_t, v_t, trace_lambda, trajectory.truncated)

    g = jax.vmap(targets, in_axes=1, out_axes=1)(trajectory, v_tm1, v_end)
    q_taken = in_one_batch(lambda q, action: q[action])(q_tm1, trajectory.action)
    return jax.lax.stop_gradient(g) - q_taken, q_taken


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
