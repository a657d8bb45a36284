"""IMPALA: workers send trajectories, the learner corrects their staleness by V-trace."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from asyncjax import surrogates
from asyncjax.actor_critic import make_agent
from asyncjax.environment import Environment, make_env
from asyncjax.method import Method, Metrics, PyTree
from asyncjax.methods.a3c import default_optimizer
from asyncjax.methods.options import Count, Number, check_options
from asyncjax.methods.rows import evaluate_rows, staleness_metrics, through
from asyncjax.methods.trajectory import trajectory_method
from asyncjax.networks import Core
from asyncjax.rollout import Trajectory
from asyncjax.surrogates import Surrogate, SurrogateName, average, like


def impala(
    env: Environment | str,
    *,
    optimizer: optax.GradientTransformation | None = None,
    num_envs: int = 16,
    unroll_length: int = 20,
    discount: Number = 0.99,
    trace_lambda: Number = 0.95,
    clip_rho: Number = 1.0,
    clip_c: Number = 1.0,
    clip_pg_rho: Number = 1.0,
    surrogate: SurrogateName | Surrogate = "truncated",
    entropy_cost: Number = 0.01,
    value_cost: Number = 0.25,
    reward_clip: Number | None = None,
    max_grad_norm: Number | None = 10.0,
    max_staleness: Count | None = None,
    anneal_steps: Number | None = None,
    correction: optax.GradientTransformation | None = None,
    core: Core | None = None,
    squash: bool = False,
    network: nn.Module | None = None,
) -> Method:
    """Importance weighted actor-learners, for discrete and real actions, with or without memory.

    loss = sum_t [ -min(clip_pg_rho, r_t) log pi(a_t|s_t) A_t + value_cost (vs_t - V(s_t))^2 / 2 - entropy_cost
    H(pi(.|s_t)) ] at the newest parameters, summed over the segment and averaged over the environments of the group's
    G trajectories; r_t = pi(a_t|s_t) / mu(a_t|s_t), vs_t are V-trace's targets, A_t = reward_t + discount
    vs_{t+1} - V(s_t).

    Args:
      env: an environment, or a gymnax id.
      optimizer: any optax transformation; None is `a3c.default_optimizer()`, RMSProp with a step size of 3e-3.
      num_envs: environments per worker, stepped together; at least 1.
      unroll_length: steps per environment and message, T; at least 1.
      discount: of future rewards per step, in [0, 1].
      trace_lambda: in [0, 1]; 1 is the paper's V-trace, smaller trusts the value more.
      clip_rho: cap of the ratio in V-trace's temporal differences; it sets whose value is learned.
      clip_c: cap of the ratio in V-trace's traces; it sets the speed only.
      clip_pg_rho: cap of the ratio in the policy gradient, where the surrogate is "truncated".
      surrogate: how the policy gradient weighs stale data, a function's name in `asyncjax.surrogates`, with its own
        defaults, or a function like those. "decoupled" needs epochs: see `ppo`.
      entropy_cost: weight of the entropy bonus, which keeps the policy exploring; at least 0.
      value_cost: weight of the value's squared error; at least 0.
      reward_clip: rewards are clipped to [-reward_clip, reward_clip] for learning; None learns from them as they are.
      max_grad_norm: the gradient is scaled down to this global norm; None never does.
      max_staleness: messages computed on older parameters than so many updates are rejected; None takes all.
      anneal_steps: environment steps of all workers, rejected ones left out, after which the step size has fallen
        linearly to 0; None never.
      correction: an optax transformation of every message's gradient, see `asyncjax.corrections`; for groups of G it
        takes G gradients more, through one message's rows each. Scaling and dropping suit it; delay compensation does
        not, as the gradient is at the newest parameters already.
      core: memory of the default network, "gru" or "lstm"; the learner runs it from the memory that the worker had at
        the start of the segment, so it learns to remember for about unroll_length steps. None is no memory.
      squash: bound real actions by tanh; otherwise they are clipped.
      network: a flax module, observation -> (logits Float[A] or (mean, log_std), value Float[]), for one unbatched
        observation; see `actor_critic.make_agent`. None is `networks.actor_critic(env, core)`.

    Returns:
      A Method with work metrics `episodes`, `return_sum`, `length_sum` (counts and undiscounted sums over the episodes
      that ended in the segment), and apply metrics `policy_loss`, `value_loss`, `entropy` (means per step),
      `grad_norm`, `rejected`, and of the ratios r `ratio_mean`, `ratio_max`, `effective_sample_size` and `kl`.

    Raises:
      ValueError: an action space that is neither discrete nor one vector, options that exclude each other, or a
        number out of its range.

    Example:
      >>> import jax, asyncjax as aj
      >>> method = aj.impala("CartPole-v1", num_envs=4, unroll_length=5)
      >>> schedule = aj.schedules.from_service_times(aj.service.exponential(), 10, 4, jax.random.key(1), group_size=2)
      >>> aj.emulate(method, schedule, jax.random.key(0)).metrics["kl"].shape
      (10,)

    Source: Espeholt et al., IMPALA: Scalable distributed deep-RL with importance weighted actor-learner architectures
    (2018). A worker steps `num_envs` environments instead of one; the paper's lambda is 1, and its rewards are clipped.
    """
    policy_loss = surrogates.named(surrogate)
    if policy_loss is surrogates.decoupled:
        raise ValueError("surrogate='decoupled' is about several epochs over the data: use asyncjax.ppo for it.")
    if policy_loss is surrogates.truncated:
        policy_loss = partial(policy_loss, cap=clip_pg_rho)
    check_options(discount=discount, trace_lambda=trace_lambda, clip_rho=clip_rho, clip_c=clip_c)
    check_options(clip_pg_rho=clip_pg_rho, entropy_cost=entropy_cost, value_cost=value_cost, reward_clip=reward_clip)
    agent = make_agent(make_env(env), network, core, squash)

    evaluate = partial(evaluate_rows, agent, discount=discount, lambda_=trace_lambda, caps=(clip_rho, clip_c))

    def loss(
        params: PyTree, rows: Trajectory, accepted: jax.Array, mine: jax.Array | None
    ) -> tuple[jax.Array, Metrics]:
        if reward_clip is not None:
            limit = like(reward_clip, rows.reward)
            rows = rows._replace(reward=jnp.clip(rows.reward, -limit, limit))
        log_ratio, entropy, value, target, advantage = evaluate(params, rows)
        log_ratio, entropy, value = through(mine, log_ratio, entropy, value)
        counts = jnp.broadcast_to(accepted[:, None], log_ratio.shape)
        terms = {
            "policy_loss": policy_loss(log_ratio, advantage, counts),
            "value_loss": 0.5 * average(jnp.square(target - value), counts),
            "entropy": average(entropy, counts),
        }
        total = terms["policy_loss"] + like(value_cost, value) * terms["value_loss"]
        total = total - like(entropy_cost, value) * terms["entropy"]
        return unroll_length * total, {**terms, **staleness_metrics(log_ratio, accepted if mine is None else mine)}

    return trajectory_method(
        agent,
        lambda params, rows, accepted: (rows, {}),
        loss,
        default_optimizer() if optimizer is None else optimizer,
        num_envs=num_envs,
        unroll_length=unroll_length,
        max_grad_norm=max_grad_norm,
        max_staleness=max_staleness,
        anneal_steps=anneal_steps,
        correction=correction,
    )
