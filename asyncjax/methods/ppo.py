"""Asynchronous PPO: workers send trajectories, the learner makes several passes over them."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from asyncjax import surrogates
from asyncjax.actor_critic import forward, make_agent
from asyncjax.environment import Environment, make_env
from asyncjax.method import Method, Metrics, PyTree
from asyncjax.methods.options import Count, Number, check_options
from asyncjax.methods.rows import evaluate_rows, staleness_metrics, through
from asyncjax.methods.trajectory import trajectory_method
from asyncjax.networks import Core
from asyncjax.rollout import Trajectory
from asyncjax.surrogates import Surrogate, SurrogateName, average, like, ratio


class Batch(NamedTuple):
    """What all epochs keep fixed: rows of segments, [B, T, ...].

    Attributes:
      trajectory: the segments.
      value: Float[B, T], V(s) at the start of the update.
      target: Float[B, T], of the value.
      advantage: Float[B, T].
      log_proximal: Float[B, T], log-probability of the action at the start of the update, less the behaviour's.
    """

    trajectory: Trajectory
    value: jax.Array
    target: jax.Array
    advantage: jax.Array
    log_proximal: jax.Array


def default_optimizer() -> optax.GradientTransformation:
    """What `optimizer=None` means."""
    return optax.adam(1e-3, eps=1e-5)


def ppo(
    env: Environment | str,
    *,
    optimizer: optax.GradientTransformation | None = None,
    num_envs: int = 16,
    unroll_length: int = 64,
    epochs: int = 2,
    num_minibatches: int | None = None,
    discount: Number = 0.99,
    gae_lambda: Number = 0.95,
    surrogate: SurrogateName | Surrogate = "decoupled",
    clip: Number = 0.2,
    reciprocal_clip: bool = False,
    value_clip: Number | None = None,
    normalize_advantages: bool = True,
    vtrace: bool = False,
    max_staleness: Count | None = None,
    entropy_cost: Number = 0.01,
    value_cost: Number = 0.5,
    max_grad_norm: Number | None = 0.5,
    anneal_steps: Number | None = None,
    correction: optax.GradientTransformation | None = None,
    core: Core | None = None,
    squash: bool = False,
    network: nn.Module | None = None,
) -> Method:
    """Asynchronous proximal policy optimization, for discrete and real actions, with or without memory.

    loss = mean_t [ -L_t + value_cost (R_t - V(s_t))^2 / 2 - entropy_cost H(pi(.|s_t)) ], where for "clipped" L_t =
    min(r_t A_t, clip(r_t, 1 - clip, 1 + clip) A_t), r = pi / mu, and for "decoupled" L_t is the same of r = pi / prox,
    times min(prox / mu, 100). mu is the policy that acted, some updates ago; prox the newest one when the update
    begins. Advantages A_t, by GAE or V-trace, and targets R_t are computed with prox's parameters, before the epochs.

    Args:
      env: an environment, or a gymnax id.
      optimizer: any optax transformation; None is `default_optimizer()`, Adam with a step size of 1e-3.
      num_envs: environments per worker, stepped together; at least 1.
      unroll_length: steps per environment and message, T; at least 1.
      epochs: passes over the trajectories of an update.
      num_minibatches: optimizer steps per epoch, each on whole environments' segments; divides group size * num_envs.
        None is 4, or the most below it that do.
      discount: of future rewards per step, in [0, 1].
      gae_lambda: in [0, 1]; smaller trusts the value more.
      surrogate: the policy's loss, a function's name in `asyncjax.surrogates`, with its own defaults, or a function
        like those. The proximal policy of "decoupled" is that at the start of the update.
      clip: how far the ratio is rewarded for moving from 1, in "clipped" and "decoupled".
      reciprocal_clip: clip below at 1 / (1 + clip) instead of 1 - clip.
      value_clip: values are not rewarded for moving further than this from those at the start of the update; None is
        the plain squared error.
      normalize_advantages: shift and scale the advantages of a minibatch to mean 0 and standard deviation 1.
      vtrace: correct advantages and targets for the staleness of the data, by V-trace with caps of 1.
      max_staleness: messages computed on older parameters than so many updates are rejected; None takes all.
      entropy_cost: weight of the entropy bonus, which keeps the policy exploring; at least 0.
      value_cost: weight of the value's squared error; at least 0.
      max_grad_norm: a minibatch's gradient is scaled down to this global norm; None never does.
      anneal_steps: environment steps of all workers, rejected ones left out, after which the step size has fallen
        linearly to 0; None never.
      correction: an optax transformation of every message's gradient, see `asyncjax.corrections`; for groups of G it
        takes G gradients more, through one message's rows each. Scaling and dropping suit it; delay compensation does
        not, as the gradient is at the newest parameters already.
      core: memory of the default network, "gru" or "lstm"; the learner runs it from the memory that the worker had at
        the start of the segment. None is no memory.
      squash: bound real actions by tanh; otherwise they are clipped.
      network: a flax module, observation -> (logits Float[A] or (mean, log_std), value Float[]), for one unbatched
        observation; see `actor_critic.make_agent`. None is `networks.actor_critic(env, core)`.

    Returns:
      A Method with work metrics `episodes`, `return_sum`, `length_sum` (counts and undiscounted sums over the episodes
      that ended in the segment), and apply metrics: means over the minibatches `policy_loss`, `value_loss`, `entropy`,
      `grad_norm`, `clip_fraction` (actions whose ratio is outside 1 +- clip); of prox / mu `ratio_mean`, `ratio_max`,
      `effective_sample_size`, `kl`; and `rejected`, messages.

    Raises:
      ValueError: an action space that is neither discrete nor one vector, options that exclude each other, a number out
        of its range, or a group whose segments can not be divided into `num_minibatches`.

    Example:
      >>> import jax, asyncjax as aj
      >>> method = aj.ppo("CartPole-v1", num_envs=4, unroll_length=8, num_minibatches=2)
      >>> result = aj.emulate(method, aj.schedules.round_robin(10, num_workers=2), jax.random.key(0))
      >>> round(float(result.metrics["ratio_max"][0]), 4)  # the first message is fresh
      1.0

    Source: Schulman et al., Proximal policy optimization (2017); Hilton et al., Batch size-invariance for policy
    optimization (2022) for the decoupled loss; Petrenko et al., Sample Factory (2020) for asynchrony.
    """
    check_options(discount=discount, gae_lambda=gae_lambda, clip=clip, value_clip=value_clip)
    check_options(entropy_cost=entropy_cost, value_cost=value_cost)
    agent = make_agent(make_env(env), network, core, squash)
    policy_loss = surrogates.named(surrogate)
    decoupled = policy_loss is surrogates.decoupled
    if policy_loss in (surrogates.clipped, surrogates.decoupled):
        policy_loss = partial(policy_loss, clip=clip, reciprocal=reciprocal_clip)
    caps = (1.0, 1.0) if vtrace else None
    evaluate = partial(evaluate_rows, agent, discount=discount, lambda_=gae_lambda, caps=caps)

    def prepare(params: PyTree, rows: Trajectory, accepted: jax.Array) -> tuple[Batch, Metrics]:
        segment = evaluate(params, rows)
        batch = Batch(rows, segment.value, segment.target, segment.advantage, segment.log_ratio)
        return batch, staleness_metrics(segment.log_ratio, accepted)

    def loss(params: PyTree, batch: Batch, accepted: jax.Array, mine: jax.Array | None) -> tuple[jax.Array, Metrics]:
        pi, value, _ = forward(agent, params, batch.trajectory, axis=0)
        log_ratio = pi.log_prob(batch.trajectory.action) - batch.trajectory.extra
        log_ratio, entropy, value = through(mine, log_ratio, pi.entropy(), value)
        counts = jnp.broadcast_to(accepted[:, None], value.shape)
        advantage = normalized(batch.advantage, counts) if normalize_advantages else batch.advantage
        moved = log_ratio - batch.log_proximal if decoupled else log_ratio
        proximal = {"log_proximal": batch.log_proximal} if decoupled else {}
        terms = {
            "policy_loss": policy_loss(log_ratio, advantage, counts, **proximal),
            "value_loss": average(value_error(value, batch, value_clip), counts),
            "entropy": average(entropy, counts),
        }
        total = terms["policy_loss"] + like(value_cost, value) * terms["value_loss"]
        outside = jnp.abs(ratio(moved) - 1.0) > like(clip, value)
        clip_fraction = average(outside.astype(value.dtype), counts)
        return total - like(entropy_cost, value) * terms["entropy"], {**terms, "clip_fraction": clip_fraction}

    return trajectory_method(
        agent,
        prepare,
        loss,
        default_optimizer() if optimizer is None else optimizer,
        num_envs=num_envs,
        unroll_length=unroll_length,
        epochs=epochs,
        num_minibatches=num_minibatches,
        max_grad_norm=max_grad_norm,
        max_staleness=max_staleness,
        anneal_steps=anneal_steps,
        correction=correction,
    )


def value_error(value: jax.Array, batch: Batch, clip: Number | None) -> jax.Array:
    """Half the squared error of the values, or of those kept within `clip` of the old ones where that is more."""
    error = jnp.square(batch.target - value)
    if clip is not None:
        limit = like(clip, value)
        near = batch.value + jnp.clip(value - batch.value, -limit, limit)
        error = jnp.maximum(error, jnp.square(batch.target - near))
    return 0.5 * error


def normalized(x: jax.Array, where: jax.Array) -> jax.Array:
    """(x - mean) / standard deviation, over the entries that count."""
    centred = x - average(x, where)
    return centred / (jnp.sqrt(average(jnp.square(centred), where)) + 1e-8)
