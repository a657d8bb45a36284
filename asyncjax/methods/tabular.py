"""Asynchronous Q-learning and Sarsa with a table: workers walk through an MDP and send temporal-difference targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from asyncjax.mdp.core import AnyMDP
from asyncjax.method import Array, Method, Metrics, Policy, Stale
from asyncjax.methods.dynamic_programming import check_problem, check_reference, distance, in_order
from asyncjax.methods.options import Number, check_options
from asyncjax.methods.walk import make_walk


class Table(NamedTuple):
    """Shared state: action values Float[A, S] and how often each pair was updated, Int32[A, S]."""

    q: jax.Array
    count: jax.Array


class Learner(NamedTuple):
    """A worker's state: where it stands, the action it takes next, the steps of its episode so far, and its key."""

    state: jax.Array
    action: jax.Array
    age: jax.Array
    key: jax.Array


class Experience(NamedTuple):
    """Message: for n steps the pair, its new target, and its value as the worker read it."""

    state: jax.Array
    action: jax.Array
    target: jax.Array
    read: jax.Array


def tabular_q(
    mdp: AnyMDP,
    discount: Number,
    *,
    step_size: Number | Callable[[jax.Array], jax.Array] = 0.1,
    epsilon: Number = 0.1,
    on_policy: bool = False,
    stale_error: bool = False,
    unroll_length: int = 1,
    reward_noise: Number = 0.0,
    start: Array | int | None = None,
    max_steps: int | None = None,
    initial_q: Number = 0.0,
    reference: Array | None = None,
) -> Method:
    """Asynchronous tabular Q-learning: Q(s, a) <- Q(s, a) + step_size [r + discount max_b Q_stale(s', b) - Q(s, a)].

    Args:
      mdp: the problem, with S states and A actions.
      discount: in [0, 1]; at 1 every policy must come to an end.
      step_size: a number, or a function of how often the pair has been updated, Int32[] from 1 on.
      epsilon: the chance of a uniformly random action, in [0, 1]; otherwise the worker acts greedily on its view.
      on_policy: back up Q_stale(s', a') for the action a' that the worker takes next: Sarsa.
      stale_error: False takes the error against the newest Q(s, a), which is stable under any delay; True sends the
        whole error as it was read, as gradients are: with one state and a constant delay D it is stable iff
        step_size (1 - discount) < 2 sin(pi / (2 (2 D + 1))).
      unroll_length: steps in a message, all with the same view.
      reward_noise: standard deviation of normal noise on the rewards.
      start: states Int[n], from one of which, drawn uniformly, every episode begins; all by default.
      max_steps: steps after which an episode is broken off, without changing the targets; never by default.
      initial_q: of all pairs.
      reference: Float[A, S], such as the exact action values; adds the metric `error`.

    Returns:
      A Method with shared state `Table`. Work metrics: `reward`, mean per step; `td_error`, mean |target - read|.
      Of apply: `error`, max |Q - reference| over the available actions after the update.

    Raises:
      ValueError: a malformed MDP, a discount without values, or a count below 1.

    Example:
      >>> import jax, asyncjax as aj
      >>> method = aj.tabular_q(aj.mdp.corridor(3), 0.5, step_size=1.0)
      >>> aj.emulate(method, aj.schedules.round_robin(60, num_workers=2), jax.random.key(0)).shared.q.tolist()
      [[0.25, 0.5, 1.0]]

    Source: Tsitsiklis, Asynchronous stochastic approximation and Q-learning (1994); Sarsa as in Mnih et al.,
    Asynchronous methods for deep reinforcement learning (2016), with a table for the network.
    """
    check_problem(mdp, discount, unroll_length=unroll_length)
    check_options(epsilon=epsilon, reward_noise=reward_noise, step_size=None if callable(step_size) else step_size)
    check_reference(reference, mdp.num_actions, mdp.num_states)
    walk = make_walk(mdp, start, max_steps)
    shape = (mdp.num_actions, mdp.num_states)

    def init(key: jax.Array, num_workers: int) -> tuple[Table, Learner]:
        q = jnp.full(shape, initial_q, jnp.result_type(float))

        def learner(key: jax.Array) -> Learner:
            key, start_key, action_key = jax.random.split(key, 3)
            state = walk.begin(start_key)
            return Learner(state, walk.act(q, state, epsilon, action_key), jnp.int32(0), key)

        return Table(q, jnp.zeros(shape, jnp.int32)), jax.vmap(learner)(jax.random.split(key, num_workers))

    def work(q: jax.Array, learner: Learner) -> tuple[Experience, Learner, Metrics]:
        def step(learner: Learner, _: None) -> tuple[Learner, tuple[Experience, jax.Array]]:
            key, step_key, action_key, noise_key = jax.random.split(learner.key, 4)
            state, action = learner.state, learner.action
            successor, terminated, here, age = walk.step(state, action, learner.age, step_key)
            next_action = walk.act(q, here, epsilon, action_key)
            if on_policy:  # not next_action: where an episode is broken off, that belongs to the next one
                value = q[walk.act(q, successor, epsilon, action_key), successor]
            else:
                value = jnp.max(walk.quality(q, successor))
            reward = walk.pair(state, action)[0].astype(q.dtype)
            reward += jnp.asarray(reward_noise, q.dtype) * jax.random.normal(noise_key, dtype=q.dtype)
            target = reward + jnp.asarray(discount, q.dtype) * jnp.where(terminated, 0, value)
            return Learner(here, next_action, age, key), (Experience(state, action, target, q[action, state]), reward)

        learner, (steps, reward) = jax.lax.scan(step, learner, length=unroll_length)
        metrics = {"reward": jnp.mean(reward), "td_error": jnp.mean(jnp.abs(steps.target - steps.read))}
        return steps, learner, metrics

    def learn(table: Table, step: Experience) -> Table:
        pair = (step.action, step.state)
        count = table.count.at[pair].add(1)
        rate = jnp.asarray(step_size(count[pair]) if callable(step_size) else step_size, table.q.dtype)
        error = step.target - (step.read if stale_error else table.q[pair])
        return Table(table.q.at[pair].add(rate * error), count)

    def apply(shared: Table, messages: Experience, stale: Stale) -> tuple[Table, Metrics]:
        del stale
        shared = in_order(learn, shared, jax.tree.map(jnp.ravel, messages))  # [G, n]: the messages' steps in order
        if reference is None:
            return shared, {}
        available = jnp.isfinite(jnp.asarray(reference))
        return shared, {"error": distance(*(jnp.where(available, x, 0) for x in (shared.q, jnp.asarray(reference))))}

    def act(q: jax.Array, carry: tuple, state: jax.Array, key: jax.Array | None) -> tuple[jax.Array, tuple]:
        greedy = jnp.argmax(walk.quality(q, state)).astype(jnp.int32)
        return greedy if key is None else walk.act(q, state, epsilon, key), carry

    return Method(init=init, view=lambda shared: shared.q, work=work, apply=apply, policy=Policy(tuple, act))


def tabular_sarsa(mdp: AnyMDP, discount: Number, **options: Any) -> Method:
    """Asynchronous tabular Sarsa: Q(s, a) <- Q(s, a) + step_size [r + discount Q_stale(s', a') - Q(s, a)].

    a' is the action that the worker takes next, so it learns the values of its own epsilon-greedy policy.

    Args:
      mdp: the problem, with S states and A actions.
      discount: in [0, 1]; at 1 every policy must come to an end.
      **options: those of `tabular_q`, whose `on_policy=True` this is.

    Example:
      >>> import jax, asyncjax as aj
      >>> method = aj.tabular_sarsa(aj.mdp.cycle(3), 0.5, step_size=1.0)
      >>> aj.emulate(method, aj.schedules.sequential(90), jax.random.key(0)).shared.q.round(4).tolist()
      [[2.0, 2.0, 2.0]]

    Source: Rummery and Niranjan, On-line Q-learning using connectionist systems (1994).
    """
    if "on_policy" in options:
        raise TypeError(f"on_policy={options['on_policy']}: tabular_sarsa is tabular_q(on_policy=True); use that one.")
    return tabular_q(mdp, discount, on_policy=True, **options)
