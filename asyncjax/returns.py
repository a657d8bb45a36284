"""Returns and advantages of one trajectory, unbatched: `jax.vmap` gives the batch.

A transition goes from time t-1 to t. For a segment of T transitions the suffix `_tm1` marks what
belongs to its start (the value of the state acted in) and `_t` what belongs to its end: the reward, the value
of the true next state, and `discount_t`, which is 0 where the episode terminated. `truncated_t` marks
a cut by a time limit: the next state's value still counts, but what comes after it is another episode. Integers are
taken as floats; arrays of other shapes than [T], which is at least 1, raise a ValueError.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from asyncjax.checks import check_least

Scalar = float | jax.Array


def discounts(terminated_t: jax.Array, discount: Scalar) -> jax.Array:
    """discount_t, Float32[T]: 0 where the episode terminated, `discount` elsewhere, also where it was truncated."""
    return jnp.where(terminated_t, 0.0, jnp.asarray(discount, jnp.float32))


def lambda_returns(
    r_t: jax.Array,
    discount_t: jax.Array,
    v_t: jax.Array,
    lambda_: Scalar = 1.0,
    truncated_t: jax.Array | None = None,
) -> jax.Array:
    """G_t = r_t + discount_t [(1 - lambda) v_t + lambda G_{t+1}], started from the last v_t.

    lambda = 1 is the return of Mnih et al. (2016): as many rewards as the segment still holds, then the value.

    Args:
      r_t: Float[T], rewards.
      discount_t: Float[T], 0 where the episode terminated.
      v_t: Float[T], value of the true next state.
      lambda_: in [0, 1], a number or Float[T].
      truncated_t: Bool[T]; where it holds, the return is r_t + discount_t v_t.

    Returns:
      Float[T].

    Raises:
      ValueError: arrays that are not all of one shape [T], or T = 0.

    Example:
      >>> import jax.numpy as jnp, asyncjax as aj
      >>> aj.returns.lambda_returns(jnp.array([1.0, 2.0]), jnp.array([0.5, 0.5]), jnp.array([7.0, 4.0])).tolist()
      [3.0, 4.0]

    Source: Sutton and Barto, Reinforcement Learning (2018), section 12.1.
    """
    r_t, discount_t, v_t = floats(r_t=r_t, discount_t=discount_t, v_t=v_t)
    lambda_t = trace(lambda_, truncated_t, r_t)

    def backward(g: jax.Array, x: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        r, discount, v, lambda_ = x
        g = r + discount * ((1.0 - lambda_) * v + lambda_ * g)
        return g, g

    return jax.lax.scan(backward, v_t[-1], (r_t, discount_t, v_t, lambda_t), reverse=True)[1]


def n_step_returns(
    r_t: jax.Array,
    discount_t: jax.Array,
    v_t: jax.Array,
    n: int,
    truncated_t: jax.Array | None = None,
) -> jax.Array:
    """The next n rewards, discounted, then the value; fewer where the segment or the episode ends before.

    G^1_t = r_t + discount_t v_t;  G^n_t = r_t + discount_t G^{n-1}_{t+1}.

    Args:
      r_t: Float[T], rewards.
      discount_t: Float[T], 0 where the episode terminated.
      v_t: Float[T], value of the true next state.
      n: at least 1; T or more is `lambda_returns` with lambda = 1.
      truncated_t: Bool[T]; where it holds, the return is r_t + discount_t v_t.

    Returns:
      Float[T].

    Raises:
      TypeError: n that is no whole number.
      ValueError: arrays that are not all of one shape [T], T = 0, or n below 1.

    Example:
      >>> import jax.numpy as jnp, asyncjax as aj
      >>> aj.returns.n_step_returns(jnp.array([1.0, 2.0, 4.0]), jnp.ones(3), jnp.array([0.0, 0.5, 8.0]), 2).tolist()
      [3.5, 14.0, 12.0]

    Source: Sutton and Barto, Reinforcement Learning (2018), section 7.1.
    """
    check_least(1, "a return looks at least 1 step ahead", n=n)
    r_t, discount_t, v_t = floats(r_t=r_t, discount_t=discount_t, v_t=v_t)
    stop = flags(truncated_t, r_t).at[-1].set(True)
    g = r_t + discount_t * v_t
    for _ in range(min(n, len(r_t)) - 1):
        g = r_t + discount_t * jnp.where(stop, v_t, jnp.roll(g, -1))
    return g


def gae(
    r_t: jax.Array,
    discount_t: jax.Array,
    v_tm1: jax.Array,
    v_t: jax.Array,
    lambda_: Scalar = 1.0,
    truncated_t: jax.Array | None = None,
) -> jax.Array:
    """Generalized advantages: A_t = delta_t + discount_t lambda A_{t+1}, delta_t = r_t + discount_t v_t - v_tm1.

    Equal to `lambda_returns(...) - v_tm1` where v_t continues v_tm1.

    Args:
      r_t: Float[T], rewards.
      discount_t: Float[T], 0 where the episode terminated.
      v_tm1: Float[T], value of the state acted in.
      v_t: Float[T], value of the true next state.
      lambda_: in [0, 1], a number or Float[T].
      truncated_t: Bool[T]; where it holds, the advantage is delta_t.

    Returns:
      Float[T].

    Raises:
      ValueError: arrays that are not all of one shape [T], or T = 0.

    Example:
      >>> import jax.numpy as jnp, asyncjax as aj
      >>> r, discount = jnp.array([1.0, 2.0]), jnp.array([0.5, 0.5])
      >>> aj.returns.gae(r, discount, jnp.array([1.0, 7.0]), jnp.array([7.0, 4.0]), 1.0).tolist()
      [2.0, -3.0]

    Source: Schulman et al., High-dimensional continuous control using generalized advantage estimation (2016).
    """
    r_t, discount_t, v_tm1, v_t = floats(r_t=r_t, discount_t=discount_t, v_tm1=v_tm1, v_t=v_t)
    delta_t = r_t + discount_t * v_t - v_tm1
    return decayed_sums(delta_t, discount_t * trace(lambda_, truncated_t, r_t))


class VTrace(NamedTuple):
    """Targets of the values and advantages of the policy gradient, both Float[T]."""

    targets: jax.Array
    advantages: jax.Array


def vtrace(
    r_t: jax.Array,
    discount_t: jax.Array,
    v_tm1: jax.Array,
    v_t: jax.Array,
    rho_tm1: jax.Array,
    *,
    lambda_: Scalar = 1.0,
    truncated_t: jax.Array | None = None,
    clip_rho: Scalar = 1.0,
    clip_c: Scalar = 1.0,
    clip_pg_rho: Scalar | None = 1.0,
) -> VTrace:
    """V-trace: off-policy corrected returns from the ratios rho = pi(a|s) / mu(a|s).

    vs_{t-1} = v_tm1 + delta_t + discount_t c_tm1 (vs_t - v_t), where delta_t = min(clip_rho, rho_tm1)
    (r_t + discount_t v_t - v_tm1) and c_tm1 = lambda min(clip_c, rho_tm1). The advantage is
    min(clip_pg_rho, rho_tm1) (r_t + discount_t [lambda vs_t + (1 - lambda) v_t] - v_tm1).

    Args:
      r_t: Float[T], rewards.
      discount_t: Float[T], 0 where the episode terminated.
      v_tm1: Float[T], value of the state acted in.
      v_t: Float[T], value of the true next state.
      rho_tm1: Float[T], probability of the action under the learner's policy over that under the actor's.
      lambda_: in [0, 1], a number or Float[T].
      truncated_t: Bool[T]; where it holds, the correction of later steps is cut.
      clip_rho: cap in delta; it sets the fixed point.
      clip_c: cap of the traces; it sets the speed only.
      clip_pg_rho: cap in the advantage; None leaves the ratio out, for losses that weigh actions themselves.

    Returns:
      VTrace. On-policy, with lambda = 1, the targets are the n-step returns.

    Raises:
      ValueError: arrays that are not all of one shape [T], or T = 0.

    Example:
      >>> import jax.numpy as jnp, asyncjax as aj
      >>> r, discount, rho = jnp.array([1.0, 2.0]), jnp.array([0.5, 0.5]), jnp.array([4.0, 0.5])
      >>> aj.returns.vtrace(r, discount, jnp.array([1.0, 7.0]), jnp.array([7.0, 4.0]), rho).targets.tolist()
      [3.75, 5.5]

    Source: Espeholt et al., IMPALA (2018), section 4.1; the mixing by lambda in the advantage is rlax's.
    """
    r_t, discount_t, v_tm1, v_t, rho_tm1 = floats(r_t=r_t, discount_t=discount_t, v_tm1=v_tm1, v_t=v_t, rho_tm1=rho_tm1)
    lambda_t = trace(lambda_, truncated_t, r_t)
    delta_t = capped(rho_tm1, clip_rho) * (r_t + discount_t * v_t - v_tm1)
    errors = decayed_sums(delta_t, discount_t * lambda_t * capped(rho_tm1, clip_c))
    # After the last step and after a truncation nothing is known of vs - v.
    next_error = lambda_t * jnp.append(errors[1:], 0.0)
    advantages = r_t + discount_t * (v_t + next_error) - v_tm1
    if clip_pg_rho is not None:
        advantages = capped(rho_tm1, clip_pg_rho) * advantages
    return VTrace(v_tm1 + errors, advantages)


def retrace(
    r_t: jax.Array,
    discount_t: jax.Array,
    q_tm1: jax.Array,
    v_t: jax.Array,
    rho_tm1: jax.Array,
    *,
    lambda_: Scalar = 1.0,
    truncated_t: jax.Array | None = None,
) -> jax.Array:
    """Retrace targets of action values, safe for any behaviour: c = lambda min(1, pi(a|s) / mu(a|s)).

    G_{t-1} = q_tm1 + delta_t + discount_t c_t (G_t - q_t), where delta_t = r_t + discount_t v_t - q_tm1.

    Args:
      r_t: Float[T], rewards.
      discount_t: Float[T], 0 where the episode terminated.
      q_tm1: Float[T], Q(s, a) of the action taken.
      v_t: Float[T], E_pi Q(s', .) in the true next state.
      rho_tm1: Float[T], probability of the action taken under the target policy over that under the behaviour.
      lambda_: in [0, 1], a number or Float[T]: like rho, of the action taken, so the first is without effect.
      truncated_t: Bool[T]; where it holds, the correction of later steps is cut.

    Returns:
      Float[T], targets for q_tm1, whose fixed point is Q^pi for any behaviour that tries every action.

    Raises:
      ValueError: arrays that are not all of one shape [T], or T = 0.

    Example:
      >>> import jax.numpy as jnp, asyncjax as aj
      >>> half, one = jnp.full(2, 0.5), jnp.ones(2)
      >>> aj.returns.retrace(jnp.array([1.0, 2.0]), half, jnp.zeros(2), jnp.array([0.0, 4.0]), one).tolist()
      [3.0, 4.0]

    Source: Munos et al., Safe and efficient off-policy reinforcement learning (2016), equation 3.
    """
    r_t, discount_t, q_tm1, v_t, rho_tm1 = floats(r_t=r_t, discount_t=discount_t, q_tm1=q_tm1, v_t=v_t, rho_tm1=rho_tm1)
    # The trace of a transition belongs to the action that begins it, so a step's error decays by the next one's.
    c_t = jnp.append(trace(lambda_, None, r_t)[1:] * jnp.minimum(rho_tm1[1:], 1.0), 0.0)
    c_t = jnp.where(flags(truncated_t, r_t), 0.0, c_t)
    return q_tm1 + decayed_sums(r_t + discount_t * v_t - q_tm1, discount_t * c_t)


def floats(**segment: jax.Array) -> list[jax.Array]:
    """The arrays of one segment in one dtype; integers, such as rewards of 0 and 1, become floats.

    Raises:
      ValueError: arrays that are not all of one shape [T], such as a batch, or T + 1 values.
    """
    arrays = [jnp.asarray(x) for x in segment.values()]
    shapes = dict(zip(segment, (x.shape for x in arrays), strict=True))
    if len(set(shapes.values())) > 1 or arrays[0].ndim != 1 or not arrays[0].size:
        raise ValueError(
            f"The arrays of a segment have one shape, [T], but these have {shapes}: give T of each, the values v_tm1 of"
            " the states acted in apart from the values v_t of the next ones, and jax.vmap for a batch."
        )
    dtypes = [x.dtype for x in arrays]
    dtype = jnp.result_type(*[dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)] or [float])
    return [x.astype(dtype) for x in arrays]


def flags(truncated_t: jax.Array | None, like: jax.Array) -> jax.Array:
    """Bool[T]: where the episode was truncated; nowhere for None.

    Raises:
      ValueError: another shape than [T]: one flag would be taken for all.
    """
    if truncated_t is None:
        return jnp.zeros(like.shape, bool)
    truncated_t = jnp.asarray(truncated_t)
    if truncated_t.shape != like.shape:
        raise ValueError(f"truncated_t has the shape {truncated_t.shape}, the rewards {like.shape}: give Bool[T].")
    return truncated_t.astype(bool)


def capped(rho: jax.Array, cap: Scalar) -> jax.Array:
    """min(cap, rho) in the dtype of rho, also where the cap is a float64 tracer."""
    return jnp.minimum(rho, jnp.asarray(cap, rho.dtype))


def trace(lambda_: Scalar, truncated_t: jax.Array | None, like: jax.Array) -> jax.Array:
    """lambda_t, Float[T]: `lambda_`, and 0 where the episode was truncated."""
    if jnp.shape(lambda_) not in {(), like.shape}:
        raise ValueError(
            f"lambda_ has the shape {jnp.shape(lambda_)}, the rewards {like.shape}: give one, or Float[T]."
        )
    lambda_t = jnp.broadcast_to(jnp.asarray(lambda_, like.dtype), like.shape)
    return lambda_t if truncated_t is None else jnp.where(flags(truncated_t, like), 0.0, lambda_t)


def decayed_sums(x_t: jax.Array, decay_t: jax.Array) -> jax.Array:
    """s_t = x_t + decay_t s_{t+1}, with 0 after the end."""

    def backward(s: jax.Array, x: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        s = x[0] + x[1] * s
        return s, s

    return jax.lax.scan(backward, jnp.zeros_like(x_t[-1]), (x_t, decay_t), reverse=True)[1]
