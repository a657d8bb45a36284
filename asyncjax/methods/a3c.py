"""A3C: workers send gradients of an actor-critic loss on short segments."""

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
from asyncjax.rollout import Trajectory
from asyncjax.surrogates import like


def default_optimizer() -> optax.GradientTransformation:
    """Shared RMSProp as in the paper, with epsilon inside the root: what `optimizer=None` means."""
    return optax.rmsprop(3e-3, decay=0.99, eps=1e-2)


def a3c(
    env: Environment | str,
    *,
    optimizer: optax.GradientTransformation | None = None,
    num_envs: int = 16,
    unroll_length: int = 5,
    discount: Number = 0.99,
    gae_lambda: Number = 0.95,
    entropy_cost: Number = 0.01,
    value_cost: Number = 0.25,
    max_grad_norm: Number | None = 10.0,
    anneal_steps: Number | None = None,
    private_optimizer: bool = False,
    correction: optax.GradientTransformation | None = None,
    core: Core | None = None,
    squash: bool = False,
    network: nn.Module | None = None,
) -> Method:
    """Asynchronous advantage actor-critic, for discrete and real actions, with or without memory.

    loss = sum_t [ -log pi(a_t|s_t) A_t + value_cost (R_t - V(s_t))^2 / 2 - entropy_cost H(pi(.|s_t)) ], summed over
    the segment and averaged over environments, with R_t = r_t + discount ((1 - gae_lambda) V(s_{t+1}) + gae_lambda
    R_{t+1}) and A_t = R_t - V(s_t), both without gradient.

    Args:
      env: an environment, or a gymnax id.
      optimizer: any optax transformation; None is `default_optimizer()`, RMSProp with a step size of 3e-3.
      num_envs: environments per worker, stepped together; at least 1.
      unroll_length: steps per environment and message, T; at least 1.
      discount: of future rewards per step, in [0, 1].
      gae_lambda: in [0, 1]; 1 is the paper's return, smaller trusts the value more.
      entropy_cost: weight of the entropy bonus, which keeps the policy exploring; at least 0.
      value_cost: weight of the value's squared error; at least 0.
      max_grad_norm: a worker scales its gradient down to this global norm before sending it; None never does.
      anneal_steps: environment steps of all workers together over which the step size falls linearly to 0; None
        keeps it.
      private_optimizer: each worker runs its own optimizer and sends parameter updates instead of gradients.
      correction: an optax transformation of every message as it arrives, see `asyncjax.corrections`.
      core: memory of the default network, "gru" or "lstm"; gradients flow through the steps of one segment, so it
        learns to remember for about unroll_length steps. None is no memory.
      squash: bound real actions by tanh; otherwise they are clipped.
      network: a flax module, observation -> (logits Float[A] or (mean, log_std), value Float[]), for one unbatched
        observation; see `actor_critic.make_agent`. None is `networks.actor_critic(env, core)`.

    Returns:
      A Method with work metrics `episodes`, `return_sum`, `length_sum` (counts and undiscounted sums over the episodes
      that ended in the segment), `policy_loss`, `value_loss`, `entropy` (means per step), `loss` and `grad_norm`.

    Raises:
      ValueError: an action space that is neither discrete nor one vector, options that exclude each other, or a
        number out of its range.

    Example:
      >>> import jax, asyncjax as aj
      >>> method = aj.a3c("CartPole-v1", num_envs=4, unroll_length=5)
      >>> result = aj.emulate(method, aj.schedules.round_robin(10, num_workers=2), jax.random.key(0))
      >>> result.metrics["loss"].shape
      (10, 1)

    Source: Mnih et al., Asynchronous methods for deep reinforcement learning (2016), algorithm S3. Here a worker steps
    `num_envs` environments instead of one, and the defaults are tuned for that (the paper's return is gae_lambda = 1).
    """
    check_options(num_envs=num_envs, unroll_length=unroll_length, discount=discount, gae_lambda=gae_lambda)
    check_options(entropy_cost=entropy_cost, value_cost=value_cost, anneal_steps=anneal_steps)
    agent = make_agent(make_env(env), network, core, squash)

    def segment_loss(seen: Forward, trajectory: Trajectory) -> tuple[jax.Array, Metrics]:
        """The loss of one environment's segment, summed over its T steps."""
        pi, v_tm1, v_t = seen
        baseline = jax.lax.stop_gradient(v_tm1)
        discount_t = returns.discounts(trajectory.terminated, discount)
        advantage = returns.gae(trajectory.reward, discount_t, baseline, v_t, gae_lambda, trajectory.truncated)
        terms = {
            "policy_loss": -jnp.sum(pi.log_prob(trajectory.action) * advantage),
            "value_loss": 0.5 * jnp.sum(jnp.square(advantage + baseline - v_tm1)),
            "entropy": jnp.sum(pi.entropy()),
        }
        total = terms["policy_loss"] + like(value_cost, v_tm1) * terms["value_loss"]
        return total - like(entropy_cost, v_tm1) * terms["entropy"], terms

    # Acting is not differentiated: the loss evaluates the same parameters once more, in one large batch.
    def loss(params: PyTree, trajectory: Trajectory) -> tuple[jax.Array, Metrics]:
        values, terms = jax.vmap(segment_loss, in_axes=1)(forward(agent, params, trajectory), trajectory)
        return jnp.mean(values), {name: jnp.mean(term) / unroll_length for name, term in terms.items()}

    return gradient_method(
        agent.init,
        lambda key: start(agent, key, num_envs),
        partial(collect, agent, length=unroll_length),
        loss,
        default_optimizer() if optimizer is None else optimizer,
        max_grad_norm=max_grad_norm,
        anneal_messages=None if anneal_steps is None else anneal_steps / (num_envs * unroll_length),
        private_optimizer=private_optimizer,
        correction=correction,
        policy=agent.policy,
        distribution=partial(distribution, agent),
    )
