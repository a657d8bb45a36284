"""PQN: Q(lambda) on a network with LayerNorm, without target network and replay."""

from __future__ import annotations

import flax.linen as nn
import optax

from asyncjax.environment import Environment
from asyncjax.method import Method
from asyncjax.methods.action_value import action_value_method, greedy_value
from asyncjax.methods.options import Count, Number


def pqn(
    env: Environment | str,
    *,
    optimizer: optax.GradientTransformation | None = None,
    num_envs: int = 16,
    unroll_length: int = 5,
    discount: Number = 0.99,
    trace_lambda: Number = 0.65,
    epsilon_frames: Count = 100_000,
    final_epsilon: Number | None = 0.05,
    max_grad_norm: Number | None = 10.0,
    anneal_steps: Number | None = None,
    private_optimizer: bool = False,
    correction: optax.GradientTransformation | None = None,
    network: nn.Module | None = None,
) -> Method:
    """Q(lambda) with LayerNorm, without a target network: the modern counterpart of n-step Q-learning.

    loss = sum_t (G_t - Q(s_t, a_t))^2 / 2, summed over the segment and averaged over environments, with G_t = r_t +
    discount [(1 - lambda) max_a Q(s_{t+1}, a) + lambda G_{t+1}], begun with max_a Q of the state after the segment or
    after a truncation, and with 0 after a termination. Q is the network that the worker read, without gradient in G.

    Args:
      env: an environment with discrete actions, or a gymnax id.
      optimizer: any optax transformation; None is Adam with a step size that falls from 1e-3 to 5e-5 over as
        many updates as take 800,000 environment steps in groups of one, see `action_value.default_optimizer`.
      num_envs: environments per worker, stepped together; at least 1.
      unroll_length: steps per environment and message, T; at least 1.
      discount: of future rewards per step, in [0, 1].
      trace_lambda: in [0, 1]; 0 looks one step ahead, 1 to the end of the segment.
      epsilon_frames: environment frames, counted over all workers, over which epsilon falls linearly from 1 to its
        final value.
      final_epsilon: the same for all workers, in [0, 1]; None draws each worker's from {.1, .01, .5} with {.4, .3, .3}.
      max_grad_norm: a worker scales its gradient down to this global norm before sending it; None never does.
      anneal_steps: environment steps of all workers together over which the step size falls linearly to 0; None keeps
        that of the optimizer.
      private_optimizer: each worker runs its own optimizer and sends parameter updates instead of gradients.
      correction: a transformation of every message as it arrives; see `asyncjax.corrections`.
      network: a flax module, observation -> Float[A], for one unbatched observation; None is
        `q_networks.q_network(env)`.

    Returns:
      A Method with work metrics `episodes`, `return_sum`, `length_sum` (counts and undiscounted sums over the episodes
      that ended in the segment), `q_value` (mean of Q(s_t, a_t)), `epsilon`, `loss` and `grad_norm`.

    Raises:
      ValueError: actions that are not discrete, options that exclude each other, or a number out of its range.

    Example:
      >>> import jax, asyncjax as aj
      >>> method = aj.pqn("CartPole-v1", num_envs=4, unroll_length=5)
      >>> result = aj.emulate(method, aj.schedules.round_robin(10, num_workers=2), jax.random.key(0))
      >>> int(result.shared.frames)
      200

    Source: Gallici et al., Simplifying deep temporal difference learning (2025). There one synchronous learner makes
    several epochs of minibatches of each batch; here each worker's segment is one gradient. `schedules.barrier` makes
    the workers synchronous.
    """
    return action_value_method(
        env,
        greedy_value,
        trace_lambda,
        optimizer=optimizer,
        num_envs=num_envs,
        unroll_length=unroll_length,
        discount=discount,
        epsilon_frames=epsilon_frames,
        final_epsilon=final_epsilon,
        max_grad_norm=max_grad_norm,
        anneal_steps=anneal_steps,
        private_optimizer=private_optimizer,
        correction=correction,
        network=network,
        target_period=None,
    )
