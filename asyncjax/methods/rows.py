"""Batches of trajectories as rows: one for each environment's segment, and what losses of them are made of."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from asyncjax import returns
from asyncjax.actor_critic import Agent, Forward, forward
from asyncjax.method import Metrics, PyTree
from asyncjax.methods.options import Number
from asyncjax.rollout import Trajectory
from asyncjax.surrogates import ratio
from asyncjax.telemetry.quantities import ratio_statistics


class Rows(NamedTuple):
    """What is known of the rows of a batch: whether they count, Bool[B], and whose they are, Int[B]."""

    accepted: jax.Array
    message: jax.Array


def as_rows(messages: Trajectory) -> Trajectory:
    """[G, T, N, ...] -> [G N, T, ...], one row for each environment's segment."""
    return jax.tree.map(lambda x: x.swapaxes(1, 2).reshape(-1, x.shape[1], *x.shape[3:]), messages)


def minibatches(key: jax.Array, num_rows: int, epochs: int, num_minibatches: int) -> jax.Array:
    """Int32[epochs * num_minibatches, num_rows / num_minibatches]: the rows of every step, each once an epoch."""
    if num_rows % num_minibatches:
        raise ValueError(
            f"num_minibatches={num_minibatches} does not divide the {num_rows} segments of a group (group size times"
            " num_envs): minibatches are made of whole segments. Choose a divisor."
        )
    rows = jnp.arange(num_rows, dtype=jnp.int32)
    if num_minibatches == 1:
        return jnp.broadcast_to(rows, (epochs, num_rows))
    shuffled = jax.vmap(lambda k: jax.random.permutation(k, rows))(jax.random.split(key, epochs))
    return shuffled.reshape(epochs * num_minibatches, -1)


class Segment(NamedTuple):
    """Segments as some parameters see them; every field is Float[B, T].

    Attributes:
      log_ratio: log pi(a|s) - log mu(a|s).
      entropy: of pi(.|s).
      value: V(s).
      target: V-trace's target of the value, without gradient.
      advantage: of the action, without gradient and without an importance weight of its own.
    """

    log_ratio: jax.Array
    entropy: jax.Array
    value: jax.Array
    target: jax.Array
    advantage: jax.Array


def evaluate_rows(
    agent: Agent,
    params: PyTree,
    rows: Trajectory,
    *,
    discount: Number,
    lambda_: Number,
    caps: tuple[Number, Number] | None,
) -> Segment:
    """Values, V-trace targets and advantages r_t + discount_t [lambda vs_t + (1 - lambda) v_t] - v_tm1.

    Args:
      agent: whose network.
      params: its parameters.
      rows: segments, [B, T, ...], with log mu(a|s) as `extra`.
      discount: per step.
      lambda_: of V-trace.
      caps: of rho and c; None ignores that the data are stale, which makes it GAE.
    """
    clip_rho, clip_c = caps or (1.0, 1.0)

    def segment(seen: Forward, trajectory: Trajectory) -> Segment:
        """Of one environment."""
        log_ratio = seen.pi.log_prob(trajectory.action) - trajectory.extra
        found = returns.vtrace(
            trajectory.reward,
            returns.discounts(trajectory.terminated, discount),
            jax.lax.stop_gradient(seen.v_tm1),
            seen.v_t,
            jnp.ones_like(log_ratio) if caps is None else jax.lax.stop_gradient(ratio(log_ratio)),
            lambda_=lambda_,
            truncated_t=trajectory.truncated,
            clip_rho=clip_rho,
            clip_c=clip_c,
            clip_pg_rho=None,
        )
        return Segment(log_ratio, seen.pi.entropy(), seen.v_tm1, found.targets, found.advantages)

    return jax.vmap(segment)(forward(agent, params, rows, axis=0), rows)


def staleness_metrics(log_ratio: jax.Array, accepted: jax.Array) -> Metrics:
    """How far the policy has moved from the behaviour's, over the accepted rows of log-ratios, Float[B, T].

    `ratio_mean` (1 in expectation), `ratio_max`, `effective_sample_size` as a fraction, (E r)^2 / E r^2, and `kl`, the
    estimate E[r - 1 - log r] of KL(mu, pi).
    """
    found = ratio_statistics(log_ratio, where=accepted[:, None])
    return {name: found[name] for name in ("ratio_mean", "ratio_max", "effective_sample_size", "kl")}


def within(staleness: jax.Array, limit: Number | None) -> jax.Array:
    """Whether messages are as fresh as this, Bool[G]; None takes all."""
    if limit is None:
        return staleness <= jnp.iinfo(jnp.int32).max
    return staleness.astype(jnp.float32) <= jnp.asarray(limit, jnp.float32)


def take(tree: PyTree, rows: jax.Array) -> PyTree:
    """These rows of every leaf."""
    return jax.tree.map(lambda x: x[rows], tree)


def through(mine: jax.Array | None, *values: jax.Array) -> tuple[jax.Array, ...]:
    """These values of rows, Float[B, T], but constants except in the rows Bool[B]; None is all rows."""
    if mine is None:
        return values
    return tuple(jnp.where(mine[:, None], x, jax.lax.stop_gradient(x)) for x in values)
