"""What a researcher of asynchrony measures: quantities with a known answer, and a watch that adds them to any run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from asyncjax.method import Method, Metrics, PyTree, Stale

# ---------------------------------------------------------------------------------------------------------------------
# Quantities


def effective_sample_size(log_ratio: jax.Array) -> jax.Array:
    """The fraction of the samples that count after weighting: ESS / n = (sum w)^2 / (n sum w^2), w = exp(log_ratio).

    Args:
      log_ratio: Float[n], log pi(a|s) - log mu(a|s) for data of mu.

    Returns:
      Float[], in [1/n, 1]; as n grows it tends to 1 / E_mu w^2.

    Example:
      >>> import jax.numpy as jnp, asyncjax as aj
      >>> float(aj.telemetry.effective_sample_size(jnp.zeros(5)))
      1.0

    Source: Kong, A note on importance sampling using standardized weights (1992).
    """
    weight = jnp.exp(log_ratio - jnp.max(log_ratio))  # a common factor cancels
    return jnp.square(jnp.sum(weight)) / (weight.size * jnp.sum(jnp.square(weight)))


def kl_estimates(log_ratio: jax.Array) -> dict[str, jax.Array]:
    """Estimates of KL(mu, pi) per sample of mu, r = pi / mu: k1 = -log r, k2 = (log r)^2 / 2, k3 = r - 1 - log r.

    Args:
      log_ratio: Float[...], log r.

    Returns:
      Float[...] each. k1 and k3 are unbiased, k3 is never negative, k2 is biased but varies least near 0.

    Source: Schulman, Approximating KL divergence (2020).
    """
    return {"k1": -log_ratio, "k2": 0.5 * jnp.square(log_ratio), "k3": jnp.expm1(log_ratio) - log_ratio}


def ratio_statistics(log_ratio: jax.Array, clip: float | jax.Array = 1.0) -> Metrics:
    """Importance ratios r = pi / mu over samples of mu: mean (1 in expectation), truncated mean, share, maximum.

    Args:
      log_ratio: Float[...], log r.
      clip: rho_bar, where ratios are truncated.

    Returns:
      `ratio_mean`, `ratio_truncated` = mean of min(rho_bar, r), which for rho_bar = 1 tends to 1 - the total variation,
      `ratio_clipped` = the share above rho_bar, `ratio_max`, and `effective_sample_size` as a fraction.
    """
    ratio, limit = jnp.exp(log_ratio), jnp.asarray(clip, log_ratio.dtype)
    return {
        "ratio_mean": jnp.mean(ratio),
        "ratio_truncated": jnp.mean(jnp.minimum(ratio, limit)),
        "ratio_clipped": jnp.mean((ratio > limit).astype(ratio.dtype)),
        "ratio_max": jnp.max(ratio),
        "effective_sample_size": effective_sample_size(jnp.ravel(log_ratio)),
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


# ---------------------------------------------------------------------------------------------------------------------
# Watching a run

Measure = Callable[[Any, Any, PyTree, Stale], jax.Array]
"""(shared before, shared after, messages, stale) -> Float[] or Float[G]."""


def _gaps(before: Any, after: Any, messages: PyTree, stale: Stale) -> jax.Array:
    del after, messages
    return jax.vmap(lambda read: optax.tree.norm(optax.tree.sub(before.params, read)))(stale.view)


def _step(before: Any, after: Any, messages: PyTree, stale: Stale) -> jax.Array:
    del messages, stale
    return optax.tree.norm(optax.tree.sub(after.params, before.params))


def _messages(before: Any, after: Any, messages: PyTree, stale: Stale) -> jax.Array:
    del before, after, stale
    return jax.vmap(optax.tree.norm)(messages)


def _effective_rate(before: Any, after: Any, messages: PyTree, stale: Stale) -> jax.Array:
    mean = optax.tree.norm(jax.tree.map(lambda x: x.mean(0), messages))
    return jnp.where(mean > 0, _step(before, after, messages, stale) / jnp.where(mean > 0, mean, 1), 0)


MEASURES: dict[str, Measure] = {
    "staleness": lambda before, after, messages, stale: stale.staleness,
    "parameter_gap": _gaps,
    "step_norm": _step,
    "message_norm": _messages,
    "effective_learning_rate": _effective_rate,
}


def watch(method: Method, names: Sequence[str]) -> Method:
    """The same method, with more metrics of `apply`, whose arithmetic is not touched.

    XLA may fuse the measures with the update, and then the last bit of the run may differ, as between any two programs.

    Args:
      method: one whose shared state has `params` and whose view is those; "staleness" and "message_norm" do for any.
      names: "staleness", Int[T, G]; "parameter_gap", the norm of theta_t - theta_read, Float[T, G]; "step_norm", that
        of the update, Float[T]; "message_norm", Float[T, G]; "effective_learning_rate", the norm of the update over
        that of the mean message, Float[T].

    Returns:
      A Method; with no names the method itself.

    Raises:
      ValueError: a name that does not exist.
      TypeError: a name that this method has no parameters for.

    Example:
      >>> import jax, optax, asyncjax as aj
      >>> method = aj.sgd(lambda w: 3.0 * w, 1.0, optimizer=optax.sgd(0.125))
      >>> watched = aj.telemetry.watch(method, ["parameter_gap"])
      >>> result = aj.emulate(watched, aj.schedules.fixed_delay(4, delay=2), jax.random.key(0))
      >>> result.metrics["parameter_gap"].ravel().tolist()  # staleness times step size times gradient
      [0.0, 0.375, 0.75, 0.75]
    """
    if unknown := [name for name in names if name not in MEASURES]:
        raise ValueError(f"names={unknown}: there is no such measure; choose from {', '.join(MEASURES)}.")
    if not names:
        return method

    def apply(shared: Any, messages: PyTree, stale: Stale) -> tuple[Any, Metrics]:
        _check_parameters(method, shared, names)
        after, metrics = method.apply(shared, messages, stale)
        return after, {**metrics, **{name: MEASURES[name](shared, after, messages, stale) for name in names}}

    return method._replace(apply=apply)


def _check_parameters(method: Method, shared: Any, names: Sequence[str]) -> None:
    wanted = [name for name in names if name not in {"staleness", "message_norm"}]
    params = getattr(shared, "params", None)
    if wanted and (params is None or jax.tree.structure(method.view(shared)) != jax.tree.structure(params)):
        raise TypeError(
            f"{wanted[0]} compares parameters, but this method's view is not its params: leave it out, or watch a"
            " gradient method such as sgd or a3c."
        )
