"""Asynchronous one-step Q-learning: workers send gradients towards r + discount max Q."""

from __future__ import annotations

import flax.linen as nn
import optax

from asyncjax.environment import Environment
from asyncjax.method import Method
from asyncjax.methods.action_value import action_value_method, double_value, greedy_value
from asyncjax.methods.options import Count, Number


def one_step_q(
    env: Environment | str,
    *,
    optimizer: optax.GradientTransformation | None = None,
    num_envs: int = 8,
    unroll_length: int = 5,
    discount: Number = 0.99,
    target_period: Count | None = 2_000,
    epsilon_frames: Count = 100_000,
    final_epsilon: Number | None = None,
    double: bool = True,
    dueling: bool = False,
    max_grad_norm: Number | None = 10.0,
    anneal_steps: Number | None = None,
    private_optimizer: bool = False,
    correction: optax.GradientTransformation | None = None,
    network: nn.Module | None = None,
) -> Method:
    """Asynchronous one-step Q-learning.

    loss = sum_t (r_t + discount Q(s_{t+1}, a*; theta-) - Q(s_t, a_t; theta))^2 / 2, summed over the segment and
    averaged over environments; the next state of a termination is worth 0, that of a truncation counts. By default
    a* = argmax_a Q(s_{t+1}, a; theta), double Q-learning; with `double=False` it is argmax_a Q(s_{t+1}, a; theta-).

    Args:
      env: an environment with discrete actions, or a gymnax id.
      optimizer: any optax transformation; None is Adam with a step size that falls from 1e-3 to 5e-5 over as
        many updates as take 800,000 environment steps in groups of one, see `action_value.default_optimizer`.
      num_envs: environments per worker, stepped together; at least 1.
      unroll_length: steps per environment and message, T; at least 1.
      discount: of future rewards per step, in [0, 1].
      target_period: environment frames, counted over all workers, between two copies of the parameters into the target
        network; None bootstraps from the parameters that the worker read.
      epsilon_frames: environment frames, counted over all workers, over which epsilon falls linearly from 1 to its
        final value.
      final_epsilon: the same for all workers, in [0, 1]; None draws each worker's from {.1, .01, .5} with {.4, .3, .3}.
      double: value the next state by the target network at the action that the online network prefers, which learns
        more steadily; False is the paper's: at the one that the target network prefers.
      dueling: a state value and advantages in the default network, see `q_networks.QNetwork`.
      max_grad_norm: a worker scales its gradient down to this global norm before sending it; None never does.
      anneal_steps: environment steps of all workers together over which the step size falls linearly to 0; None keeps
        that of the optimizer.
      private_optimizer: each worker runs its own optimizer and sends parameter updates instead of gradients.
      correction: a transformation of every message as it arrives; see `asyncjax.corrections`.
      network: a flax module, observation -> Float[A], for one unbatched observation; None is
        `q_networks.q_network(env, dueling)`.

    Returns:
      A Method with work metrics `episodes`, `return_sum`, `length_sum` (counts and undiscounted sums over the episodes
      that ended in the segment), `q_value` (mean of Q(s_t, a_t)), `epsilon`, `loss` and `grad_norm`.

    Raises:
      ValueError: actions that are not discrete, options that exclude each other, or a number out of its range.

    Example:
      >>> import jax, asyncjax as aj
      >>> method = aj.one_step_q("CartPole-v1", num_envs=4, unroll_length=5)
      >>> result = aj.emulate(method, aj.schedules.round_robin(10, num_workers=2), jax.random.key(0))
      >>> int(result.shared.frames)
      200

    Source: Mnih et al., Asynchronous methods for deep reinforcement learning (2016), algorithm 1. Here a worker steps
    `num_envs` environments instead of one, and the defaults are tuned for that.
    """
    return action_value_method(
        env,
        double_value if double else greedy_value,
        0.0,
        optimizer=optimizer,
        num_envs=num_envs,
        unroll_length=unroll_length,
        discount=discount,
        target_period=target_period,
        epsilon_frames=epsilon_frames,
        final_epsilon=final_epsilon,
        dueling=dueling,
        max_grad_norm=max_grad_norm,
        anneal_steps=anneal_steps,
        private_optimizer=private_optimizer,
        correction=correction,
        network=network,
    )
