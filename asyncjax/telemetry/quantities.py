"""Quantities with a known answer: importance ratios, divergences, implicit momentum."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from asyncjax.method import Metrics
from asyncjax.surrogates import average, like, ratio


def effective_sample_size(log_ratio: jax.Array, where: jax.Array | None = None) -> jax.Array:
    """The fraction of the samples that count after weighting: ESS / n = (sum w)^2 / (n sum w^2), w = exp(log_ratio).

    Args:
      log_ratio: Float[...], log pi(a|s) - log mu(a|s) for n samples of mu.
      where: Bool[...], which samples count; None is all.

    Returns:
      Float[], in [1/n, 1]; as n grows it tends to 1 / E_mu w^2. 0 where no sample counts.

    Example:
      >>> import jax.numpy as jnp, asyncjax as aj
      >>> float(aj.telemetry.effective_sample_size(jnp.zeros(5)))
      1.0

    Source: Kong, A note on importance sampling using standardized weights (1992).
    """
    counts = jnp.broadcast_to(True if where is None else where, log_ratio.shape)
    # A common factor cancels: the largest weight is 1, if any is above 0.
    largest = jnp.max(jnp.where(counts, log_ratio, -jnp.inf), initial=jnp.finfo(jnp.result_type(log_ratio)).min)
    weight = jnp.where(counts, jnp.exp(jnp.where(counts, log_ratio - largest, 0.0)), 0.0)
    mean, second = average(weight, where), average(jnp.square(weight), where)
    return jnp.square(mean) / jnp.maximum(second, jnp.finfo(weight.dtype).tiny)


def kl_estimates(log_ratio: jax.Array) -> dict[str, jax.Array]:
    """Estimates of KL(mu, pi) per sample of mu, r = pi / mu: k1 = -log r, k2 = (log r)^2 / 2, k3 = r - 1 - log r.

    Args:
      log_ratio: Float[...], log r.

    Returns:
      Float[...] each. k1 and k3 are unbiased, k3 is never negative, k2 is biased but varies least near 0.

    Source: Schulman, Approximating KL divergence (2020).
    """
    return {"k1": -log_ratio, "k2": 0.5 * jnp.square(log_ratio), "k3": jnp.expm1(log_ratio) - log_ratio}


def ratio_statistics(log_ratio: jax.Array, clip: float | jax.Array = 1.0, where: jax.Array | None = None) -> Metrics:
    """Importance ratios r = pi / mu over samples of mu.

    Args:
      log_ratio: Float[...], log r; ratios are counted as e^20 at most.
      clip: rho_bar, where ratios are truncated.
      where: Bool[...], which samples count; None is all. Where none does, everything is 0.

    Returns:
      `ratio_mean`, 1 in expectation; `ratio_truncated`, the mean of min(rho_bar, r), which for rho_bar = 1 tends to
      1 - the total variation; `ratio_clipped`, the share above rho_bar; `ratio_max`; `effective_sample_size` as a
      fraction; and `kl`, the estimate E[r - 1 - log r] of KL(mu, pi).
    """
    r, limit = ratio(log_ratio), like(clip, log_ratio)
    return {
        "ratio_mean": average(r, where),
        "ratio_truncated": average(jnp.minimum(r, limit), where),
        "ratio_clipped": average((r > limit).astype(r.dtype), where),
        "ratio_max": jnp.max(r if where is None else jnp.where(where, r, 0.0), initial=0.0),
        "effective_sample_size": effective_sample_size(log_ratio, where),
        "kl": average(kl_estimates(jnp.minimum(log_ratio, 20.0))["k3"], where),
    }


def implicit_momentum(params: np.ndarray, gradients: np.ndarray) -> tuple[float, float]:
    """Momentum and step of the heavy ball that fits a trajectory: w_{t+1} - w_t = mu (w_t - w_{t-1}) - step g(w_t).

    Least squares over t = 1, 2, ... The law holds in the mean over schedules, so average trajectories and gradients
    over seeds first; with a uniformly random one of N workers and step size eta it is mu = 1 - 1/N, step = eta / N.

    Args:
      params: Float[T + 1, ...], w_0 to w_T.
      gradients: Float[T + 1, ...] or Float[T, ...], the gradient at each of them (not the stale one).

    Returns:
      (mu, step).

    Raises:
      ValueError: fewer than four points.

    Example:
      >>> import asyncjax as aj
      >>> w = [1.0, 0.9]
      >>> for _ in range(5): w.append(w[-1] + 0.5 * (w[-1] - w[-2]) - 0.1 * w[-1])
      >>> mu, step = aj.telemetry.implicit_momentum(w, w)
      >>> round(mu, 6), round(step, 6)
      (0.5, 0.1)

    Source: Mitliagkas et al., Asynchrony begets momentum, with an application to deep learning (2016).
    """
    params, gradients = np.asarray(params, np.float64), np.asarray(gradients, np.float64)
    if len(params) < 4 or len(gradients) < len(params) - 1:
        raise ValueError(
            f"params has {len(params)} points and gradients {len(gradients)}: a fit takes at least 4 points, and the"
            " gradient at each but the last."
        )
    step = np.diff(params, axis=0)
    unknowns = np.stack([step[:-1].ravel(), -gradients[1 : len(params) - 1].ravel()], axis=1)
    mu, eta = np.linalg.lstsq(unknowns, step[1:].ravel(), rcond=None)[0]
    return float(mu), float(eta)
