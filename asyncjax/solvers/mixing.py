"""Anderson's mixing: the next iterate combines the last ones so that their residuals cancel best."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from asyncjax.solvers.model import Model

_STALLED = 10  # steps without a smaller residual


class Mixing:
    """Where an iteration V <- F(V) goes on: at sum_i c_i F(V_i), sum_i c_i = 1, the residuals cancelling best.

    c minimizes |sum_i c_i (F(V_i) - V_i)|_2.
    With a maximum in F that can go wrong: after ten steps without a smaller residual everything is forgotten, and
    a plain step from the best values begins anew.

    Args:
      model: whose values they are.
      memory: differences to keep; None for all: on a linear map of n states that is exact after n + 1 steps.
      shifted: leave constants out of residuals, because a shift of all values follows.

    Source: Walker and Ni (2011); the safeguard is ours.
    """

    def __init__(self, model: Model, memory: int | None, shifted: bool) -> None:
        self.model, self.shifted = model, shifted
        self.steps: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=None if memory is None else memory + 1)
        self.forget()

    def forget(self) -> None:
        """Begins anew."""
        self.steps.clear()
        self.best, self.best_values, self.since = np.inf, None, 0

    def mix(self, old: Any, new: Any, size: float) -> Any:
        """The values to go on from after a step from `old` to `new`, `size` being that of the residual of `old`."""
        self.since += 1
        if size < self.best:
            self.best, self.best_values, self.since = size, new, 0
        if self.since >= _STALLED:
            self.steps.clear()
            self.since = 0
            return self.best_values
        after, before = (self.model.finish(x).astype(np.float64) for x in (new, old))
        residual = after - before
        self.steps.append((after, residual - residual.mean() if self.shifted else residual))
        return self.model.start(self._combine())

    def _combine(self) -> np.ndarray:
        newest, residual = self.steps[-1]
        if len(self.steps) == 1:
            return newest
        images, residuals = (np.stack(column, axis=1) for column in zip(*self.steps, strict=True))
        steps, changes = np.diff(images, axis=1), np.diff(residuals, axis=1)
        weights = np.linalg.lstsq(changes, residual, rcond=None)[0]
        return newest - steps @ weights
