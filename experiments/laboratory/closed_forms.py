"""What theory says of SGD on f(w) = curvature w^2 / 2; `step` and `a` are step size times curvature."""

from __future__ import annotations

from typing import Any

import numpy as np


def stable_step(delay: Any, angle: Any = 0.0) -> Any:
    """The largest stable a for an eigenvalue of this angle: 2 sin((pi/2 - angle) / (2 delay + 1))."""
    return 2 * np.sin((np.pi / 2 - np.abs(angle)) / (2 * np.asarray(delay) + 1))


def fastest_step(delay: Any) -> Any:
    """The largest a without oscillation, where the rate is delay / (delay + 1)."""
    delay = np.asarray(delay, np.float64)
    return delay**delay / (delay + 1) ** (delay + 1)


def rate(step: Any, delay: int) -> np.ndarray:
    """The modulus of the slowest mode of w_{t+1} = w_t - a w_{t-delay}."""
    return np.array([np.abs(np.roots([1, -1, *[0] * (delay - 1), a] if delay else [1, a - 1])).max() for a in step])


def stationary_variance(step: Any, delay: int) -> Any:
    """The variance of w in units of (step size * noise)^2, for delays 0 and 1."""
    a = np.asarray(step)
    return 1 / (a * (2 - a)) if delay == 0 else (1 + a) / (a * (1 - a) * (2 + a))


def heavy_ball(step: float, momentum: float, num_updates: int) -> np.ndarray:
    """The mean of w with a uniformly random worker: momentum 1 - 1/N, step (1 - mu) a, and a full first step."""
    w = [1.0, 1.0 - step]
    for _ in range(num_updates - 1):
        w.append(w[-1] + momentum * (w[-1] - w[-2]) - (1 - momentum) * step * w[-1])
    return np.array(w)


def elastic_step(rate: Any, num_workers: int, together: bool) -> Any:
    """The largest stable a of synchronous elastic averaging, alpha = rate / W, for a rate of at most 1.

    Workers that are all at one place x have, with the centre c, (x, c) <- ((1 - a) (x - d), c + W d), d =
    alpha (x - c): an eigenvalue reaches -1 at 1 + (2 - rate) / (2 - rate - 2 alpha), the determinant 1 or -1 at
    1 + 1 / abs(1 - alpha - rate). The workers' distances from each other shrink by (1 - a) (1 - alpha), which reaches
    -1 before.
    """
    rate = np.asarray(rate)
    alpha = rate / num_workers
    if not together:
        return 1 + 1 / (1 - alpha)
    room = 2 - rate - 2 * alpha
    with np.errstate(divide="ignore"):
        return 1 + np.minimum(np.where(room > 0, (2 - rate) / room, np.inf), 1 / np.abs(1 - alpha - rate))
