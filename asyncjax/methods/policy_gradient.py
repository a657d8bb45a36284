"""Asynchronous policy gradient: workers send REINFORCE gradients of whole or truncated episodes."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from asyncjax import returns
from asyncjax.actor_critic import Forward, collect, distribution, forward, make_agent, start
from asyncjax.environment import Environment, make_env
from asyncjax.method import Method, Metrics, PyTree
from asyncjax.methods.gradient import gradient_method
from asyncjax.methods.options import Number, check_options
from asyncjax.networks import Core
from asyncjax.rollout import Rollout, Trajectory
from asyncjax.surrogates import like


def default_optimizer() -> optax.GradientTransformation:
    """What `optimizer=None` means: Adam, whose step size falls from 3e-3 to 1e-4 over the first 500 updates."""
    return optax.adam(optax.linear_schedule(3e-3, 1e-4, 500))


def policy_gradient(
    env: Environment | str,
    *,
    optimizer: optax.GradientTransformation | None = None,
    num_envs: int = 4,
    unroll_length: int | None = None,
    discount: Number = 0.99,
    baseline: bool = True,
    entropy_cost: Number = 0.01,
    value_cost: Number = 0.5,
    max_grad_norm: Number | None = 1.0,
    anneal_steps: Number | None = None,
    private_optimizer: bool = False,
    correction: optax.GradientTransformation | None = None,
    core: Core | None = None,
    squash: bool = False,
    network: nn.Module | None = None,
) -> Method:
    """REINFORCE with a baseline, for discrete and real actions.

    loss = -log pi(a_t|s_t) (G_t - b(s_t)) - entropy_cost H(pi(.|s_t)) + value_cost (G_t - b(s_t))^2 / 2, the mean over
    the steps t of all environments, with G_t = r_t + discount G_{t+1}.

    Args:
      env: an environment, or a gymnax id.
      optimizer: any optax transformation; None is `default_optimizer()`, Adam with a step size
        that falls from 3e-3 to 1e-4 over 500 updates.
      num_envs: environments per worker, stepped together; at least 1.
      unroll_length: None plays whole episodes: every message holds one episode of each environment, begun anew,
        and takes as many steps as the environment's time limit, of which those after an episode's end count
        nothing. A number cuts the running episodes into segments of so many steps; the return of what is cut off is
        the baseline's prediction, or 0 without one.
      discount: of future rewards per step, in [0, 1].
      baseline: learn a value function and subtract it; False is plain REINFORCE.
      entropy_cost: weight of the entropy bonus; at least 0.
      value_cost: weight of the baseline's squared error; at least 0.
      max_grad_norm: a worker scales its gradient down to this global norm before sending it; None never does.
      anneal_steps: environment steps of all workers together over which the step size falls linearly to 0; None
        keeps it.
      private_optimizer: each worker runs its own optimizer and sends parameter updates instead of gradients.
      correction: an optax transformation of every message as it arrives, see `asyncjax.corrections`.
      core: memory of the default network, "gru" or "lstm"; None is none.
      squash: bound real actions by tanh; otherwise they are clipped.
      network: a flax module, see `actor_critic.make_agent`. None is `networks.actor_critic(env, core)`.

    Returns:
      A Method with work metrics `episodes`, `return_sum`, `length_sum`, `policy_loss`, `value_loss`, `entropy` (means
      per step), `loss` and `grad_norm`.

    Raises:
      ValueError: an action space that is neither discrete nor one vector, options that exclude each other, a number out
        of its range, or whole episodes in an environment without a time limit.

    Example:
      >>> import jax, asyncjax as aj
      >>> method = aj.policy_gradient("CartPole-v1", num_envs=2, unroll_length=20)
      >>> result = aj.emulate(method, aj.schedules.round_robin(10, num_workers=2), jax.random.key(0))
      >>> result.metrics["return_sum"].shape
      (10, 1)

    Source: Williams, Simple statistical gradient-following algorithms for connectionist reinforcement learning (1992).
    As usual, the discount weighs the return but not the step that it begins at.
    """
    env = make_env(env)
    whole = unroll_length is None
    length = env.max_steps if unroll_length is None else unroll_length
    if length is None:
        raise ValueError(
            f"unroll_length=None plays whole episodes, but env={env.name!r} states no time limit: set unroll_length."
        )
    check_options(num_envs=num_envs, unroll_length=length, discount=discount, anneal_steps=anneal_steps)
    check_options(entropy_cost=entropy_cost, value_cost=value_cost)
    agent = make_agent(env, network, core, squash)

    def segment_loss(seen: Forward, trajectory: Trajectory) -> tuple[jax.Array, Metrics]:
        """The sums over the steps of one environment that count, and how many they are."""
        pi, v_tm1, v_t = seen
        counts = first_episode(trajectory) if whole else jnp.ones_like(v_tm1)
        # A whole episode ends by itself or by the time limit; a baseline's guess of what follows has no part in it.
        tail = v_t if baseline and not whole else jnp.zeros_like(v_t)
        discount_t = returns.discounts(trajectory.terminated, discount)
        g = returns.lambda_returns(trajectory.reward, discount_t, tail, truncated_t=trajectory.truncated)
        b = v_tm1 if baseline else jnp.zeros_like(v_tm1)
        advantage = g - jax.lax.stop_gradient(b)
        terms = {
            "policy_loss": -jnp.sum(counts * pi.log_prob(trajectory.action) * advantage),
            "value_loss": 0.5 * jnp.sum(counts * jnp.square(g - b)),
            "entropy": jnp.sum(counts * pi.entropy()),
        }
        return jnp.sum(counts), terms

    def sample(params: PyTree, worker: Rollout) -> tuple[Trajectory, Rollout, Metrics]:
        if whole:
            worker = start(agent, worker.key, num_envs)
        trajectory, worker, episodes = collect(agent, params, worker, length)
        return trajectory, worker, of_first_episodes(trajectory) if whole else episodes

    def loss(params: PyTree, trajectory: Trajectory) -> tuple[jax.Array, Metrics]:
        counts, terms = jax.vmap(segment_loss, in_axes=1)(forward(agent, params, trajectory), trajectory)
        per_step = {name: jnp.sum(term) / jnp.sum(counts) for name, term in terms.items()}
        total = per_step["policy_loss"] - like(entropy_cost, counts) * per_step["entropy"]
        if baseline:
            total = total + like(value_cost, counts) * per_step["value_loss"]
        return total, per_step

    return gradient_method(
        agent.init,
        lambda key: start(agent, key, num_envs),
        sample,
        loss,
        default_optimizer() if optimizer is None else optimizer,
        max_grad_norm=max_grad_norm,
        anneal_messages=None if anneal_steps is None else anneal_steps / (num_envs * length),
        private_optimizer=private_optimizer,
        correction=correction,
        policy=agent.policy,
        distribution=partial(distribution, agent),
    )


def of_first_episodes(trajectory: Trajectory) -> Metrics:
    """What `unroll` reports of all episodes, of the first of each environment: of the others most would be short."""
    counts = jax.vmap(first_episode, in_axes=1, out_axes=1)(trajectory)
    ended = (counts * (trajectory.terminated | trajectory.truncated).astype(jnp.float32)).sum(axis=0)
    reward = trajectory.reward.astype(jnp.float32)
    sums = {"return_sum": (counts * reward).sum(axis=0), "length_sum": counts.sum(axis=0)}
    return {"episodes": ended.sum(), **{name: (ended * x).sum() for name, x in sums.items()}}


def first_episode(trajectory: Trajectory) -> jax.Array:
    """Float[T]: 1 up to and including the step that ends the first episode, 0 after it."""
    ended = jnp.cumsum((trajectory.terminated | trajectory.truncated).astype(jnp.int32))
    before = jnp.concatenate([jnp.zeros(1, jnp.int32), ended[:-1]])
    return (before == 0).astype(jnp.float32)
