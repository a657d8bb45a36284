"""A3C: workers send gradients of an actor-critic loss on short segments."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from asyncjax import networks, returns
from asyncjax.distributions import Categorical, gumbel
from asyncjax.environment import Environment, make_env, require_discrete_actions
from asyncjax.method import Method, Metrics, Policy, PyTree
from asyncjax.methods.gradient import gradient_method
from asyncjax.rollout import Rollout, Trajectory, init_rollout, next_values, require_at_least_one, unroll

Number = float | jax.Array


def scaled(weight: Number, x: jax.Array) -> jax.Array:
    """Weight * x in the dtype of x, also where the weight is a float64 tracer."""
    return jnp.asarray(weight, x.dtype) * x


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
    private_optimizer: bool = False,
    network: nn.Module | None = None,
) -> Method:
    """Asynchronous advantage actor-critic for discrete actions.

    loss = sum_t [ -log pi(a_t|s_t) A_t + value_cost (R_t - V(s_t))^2 / 2 - entropy_cost H(pi(.|s_t)) ], summed over
    the segment and averaged over environments, with R_t = r_t + discount ((1 - gae_lambda) V(s_{t+1}) + gae_lambda
    R_{t+1}) and A_t = R_t - V(s_t), both without gradient.

    Args:
      env: an environment with discrete actions, or a gymnax id.
      optimizer: any optax transformation; None is `default_optimizer()`, RMSProp with a step size of 3e-3.
      num_envs: environments per worker, stepped together; at least 1.
      unroll_length: steps per environment and message, T; at least 1.
      discount: of future rewards per step, in [0, 1].
      gae_lambda: in [0, 1]; 1 is the paper's return, smaller trusts the value more.
      entropy_cost: weight of the entropy bonus, which keeps the policy exploring; at least 0.
      value_cost: weight of the value's squared error; at least 0.
      max_grad_norm: a worker scales its gradient down to this global norm before sending it; None never does.
      private_optimizer: each worker runs its own optimizer and sends parameter updates instead of gradients.
      network: a flax module, observation -> (logits Float[A], value Float[]), for one unbatched observation;
        None is `networks.actor_critic(env)`.

    Returns:
      A Method with work metrics `episodes`, `return_sum`, `length_sum` (counts and undiscounted sums over the episodes
      that ended in the segment), `policy_loss`, `value_loss`, `entropy` (means per step), `loss` and `grad_norm`.

    Raises:
      ValueError: continuous actions, or a count below 1.

    Example:
      >>> import jax, asyncjax as aj
      >>> method = aj.a3c("CartPole-v1", num_envs=4, unroll_length=5)
      >>> result = aj.emulate(method, aj.schedules.round_robin(10, num_workers=2), jax.random.key(0))
      >>> result.metrics["loss"].shape
      (10, 1)

    Source: Mnih et al., Asynchronous methods for deep reinforcement learning (2016), algorithm S3. Here a worker steps
    `num_envs` environments instead of one, and the defaults are tuned for that (the paper's return is gae_lambda = 1).
    """
    env = make_env(env)
    num_actions = require_discrete_actions(env, "a3c")
    require_at_least_one(num_envs=num_envs, unroll_length=unroll_length)
    net = networks.actor_critic(env) if network is None else network

    def init_params(key: jax.Array) -> PyTree:
        init_key, reset_key = jax.random.split(key)
        return net.init(init_key, env.reset(reset_key)[1])

    def heads(params: PyTree, observation: PyTree) -> Any:
        return jax.vmap(functools.partial(net.apply, params))(observation)

    def trajectory_loss(params: PyTree, trajectory: Trajectory) -> tuple[jax.Array, Metrics]:
        """The loss of one environment's segment, summed over its T steps."""
        logits, v_tm1 = heads(params, trajectory.observation)
        _, v_bootstrap = heads(jax.lax.stop_gradient(params), trajectory.bootstrap_observation)
        baseline = jax.lax.stop_gradient(v_tm1)
        v_t = next_values(baseline, v_bootstrap, trajectory.truncated)
        discount_t = returns.discounts(trajectory.terminated, discount)
        advantage = returns.gae(trajectory.reward, discount_t, baseline, v_t, gae_lambda, trajectory.truncated)
        pi = Categorical(logits)
        terms = {
            "policy_loss": -jnp.sum(pi.log_prob(trajectory.action) * advantage),
            "value_loss": 0.5 * jnp.sum(jnp.square(advantage + baseline - v_tm1)),
            "entropy": jnp.sum(pi.entropy()),
        }
        total = terms["policy_loss"] + scaled(value_cost, terms["value_loss"]) - scaled(entropy_cost, terms["entropy"])
        return total, terms

    def loss(params: PyTree, worker: Rollout) -> tuple[jax.Array, tuple[Rollout, Metrics]]:
        def act(carry: PyTree, observation: PyTree, noise: jax.Array) -> tuple[PyTree, jax.Array, tuple]:
            # Acting is not differentiated: the loss evaluates the same parameters once more, in one large batch.
            logits, _ = net.apply(jax.lax.stop_gradient(params), observation)
            return carry, Categorical(logits).sample_with(noise), ()

        worker, trajectory, episodes = unroll(
            env, act, worker, unroll_length, draw=lambda key, shape: gumbel(key, (*shape, num_actions))
        )
        values, terms = jax.vmap(trajectory_loss, in_axes=(None, 1))(params, trajectory)
        per_step = {name: jnp.mean(term) / unroll_length for name, term in terms.items()}
        return jnp.mean(values), (worker, {**episodes, **per_step})

    def act_for_evaluation(params: PyTree, carry: PyTree, observation: PyTree, key: jax.Array | None) -> Any:
        pi = Categorical(net.apply(params, observation)[0])
        return pi.mode() if key is None else pi.sample(key), carry

    return gradient_method(
        init_params,
        lambda key: init_rollout(env, key, num_envs),
        loss,
        default_optimizer() if optimizer is None else optimizer,
        max_grad_norm=max_grad_norm,
        private_optimizer=private_optimizer,
        policy=Policy(initial_carry=tuple, act=act_for_evaluation),
    )
