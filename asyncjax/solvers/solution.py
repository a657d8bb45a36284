"""What a solver returns, and the bounds that make it a certificate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

Certifies = Literal["values", "policy"]

_AT_REST = 100  # full residuals without a smaller bound


class Solution(NamedTuple):
    """The answer, and how wrong it can be at most.

    Attributes:
      values: Float[S].
      policy: Int[S], greedy with respect to the last values that were backed up.
      bound: no value is further than this from the optimal one.
      policy_bound: following the policy loses at most this much from any state.
      certifies: which of the two bounds the tolerance was asked of.
      converged: whether it was met; if not, rounding or a limit stopped the solver.
      method: what computed it.
      backups: single evaluations r(s, a) + discount sum P V.
      sweeps: passes over all states, be it for all actions or for the policy's.
      updates: new versions of the values.
      seconds: run time without `compile_seconds`.
      compile_seconds: preparation that depends on shapes only and happens once.
    """

    values: np.ndarray
    policy: np.ndarray
    bound: float
    policy_bound: float
    certifies: Certifies
    converged: bool
    method: str
    backups: int
    sweeps: int
    updates: int
    seconds: float
    compile_seconds: float


class Progress(NamedTuple):
    """Where a solver stands: what a callback gets.

    Attributes:
      values: Float[S], the newest; `solve(..., initial=values)` continues from them.
      bound: their certificate so far.
      sweeps: passes over all states so far.
      seconds: run time so far.
    """

    values: np.ndarray
    bound: float
    sweeps: int
    seconds: float


class Residual(NamedTuple):
    """One full sweep V -> TV of one snapshot: what every bound is computed from.

    Attributes:
      values: TV.
      low: min (TV - V).
      high: max (TV - V).
      scale: the largest absolute value in TV.
    """

    values: np.ndarray
    low: float
    high: float
    scale: float


@dataclass(frozen=True)
class Certificate:
    """From residuals to bounds.

    With low <= TV - V <= high everywhere, and discounted expected times to the end (1 / (1 - discount) where no
    episode ends) between h and H,

        (H - 1) min(low, 0) + (h - 1) max(low, 0)  <=  V* - TV  <=  (H - 1) max(high, 0) + (h - 1) min(high, 0).

    Where no episode ends, so that adding a constant to V adds discount times it to TV, TV can be shifted into the
    middle (MacQueen 1966). All this holds only for residuals of one consistent snapshot, never for the differences of
    in-place or asynchronous sweeps.

    Attributes:
      shortest: h; 1 where some step is an episode's last.
      horizon: H.
      rounding: the relative error of one backup in floating point.
    """

    shortest: float
    horizon: float
    rounding: float

    @property
    def closed(self) -> bool:
        """Whether no episode ends."""
        return self.shortest > 1

    def shift(self, low: float, high: float) -> float:
        """What to add to TV."""
        return sum(self._interval(low, high)) / 2 if self.closed else 0.0

    def bounds(self, residual: Residual) -> tuple[float, float]:
        """Bounds on the error of the shifted values, and on the loss of the policy that attained the maximum."""
        low, high = self._interval(residual.low, residual.high)
        shift, floor = self.shift(residual.low, residual.high), self.floor(residual)
        return max(high - shift, shift - low) + floor, high - low + 2 * floor

    def floor(self, residual: Residual) -> float:
        """The bound that rounding allows: no sweep gets below it. Shifted values may be much larger than TV."""
        return self.horizon * self.rounding * self.scale(residual)

    def least_floor(self, residual: Residual, bound: float) -> float:
        """The same for the answer, which with this bound may be much smaller than what the solver was started with."""
        answer = float(abs(residual.values + self.shift(residual.low, residual.high)).max())
        return self.horizon * self.rounding * max(answer - bound, 0.0)

    @property
    def amplification(self) -> float:
        """How much longer the horizon H may really be, as probabilities are rounded, too: 1 / (1 - H rounding)."""
        lost = self.horizon * self.rounding
        return 1 / (1 - lost) if lost < 1 else np.inf

    def scale(self, residual: Residual) -> float:
        """What no shifted value exceeds."""
        return residual.scale + abs(self.shift(residual.low, residual.high))

    def _interval(self, low: float, high: float) -> tuple[float, float]:
        """Where V* - TV lies."""
        long, short = self.horizon - 1, self.shortest - 1
        return long * min(low, 0.0) + short * max(low, 0.0), long * max(high, 0.0) + short * min(high, 0.0)


def check_finite(values: Any) -> None:
    """Raises where values have left the range of their type."""
    if not np.isfinite(values).all():
        raise FloatingPointError("The values are not finite any more: the rewards are too large for their type.")


class Run:
    """When a solver stops, and whom it tells how far it is.

    Attributes:
      bound: the certificate of the values so far.
      policy_bound: that of the policy.
      finished: whether to stop: the tolerance is met, or rounding or the time allows no more.
    """

    def __init__(
        self,
        certificate: Certificate,
        tolerance: float,
        certifies: Certifies,
        expired: Callable[[], bool],
        tell: Callable[[Residual, float], None],
    ) -> None:
        self.certificate, self.tolerance, self.certifies = certificate, tolerance, certifies
        self.expired, self.tell = expired, tell
        self.bound = self.policy_bound = self.best = np.inf
        self.since = 0  # the best bound
        self.finished = False

    def done(self, residual: Residual) -> bool:
        """Takes note of a full residual; whether to stop at it."""
        amplification = self.certificate.amplification
        check_finite(self.certificate.scale(residual))
        bound, policy_bound = self.certificate.bounds(residual)
        trusted = np.isfinite(amplification)
        self.bound = bound * amplification if trusted else np.inf
        self.policy_bound = policy_bound * amplification if trusted else np.inf
        self.tell(residual, self.bound)
        self.since = 0 if bound < self.best else self.since + 1
        self.best = min(self.best, bound)
        self.finished = self.converged or self._exact(residual, bound) or self.expired()
        return self.finished

    def _exact(self, residual: Residual, bound: float) -> bool:
        """Whether rounding allows no more.

        Where a policy goes round in cycles, a sweep takes only 1 - discount of an error off, and values come to rest
        as soon as that is less than rounding: a horizon's length above the floor.
        """
        floor = self.certificate.floor(residual)
        at_rest = self.since >= _AT_REST and bound <= self.certificate.horizon * floor
        return at_rest or (bound <= 2 * floor and bound <= 2 * self.certificate.least_floor(residual, bound))

    @property
    def converged(self) -> bool:
        """Whether the tolerance is met."""
        return (self.bound if self.certifies == "values" else self.policy_bound) <= self.tolerance

    @property
    def wanted(self) -> float:
        """The size of a sweep's change at which a full residual is worth its time."""
        return self.tolerance / self.certificate.horizon
