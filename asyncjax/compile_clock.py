"""How long compiling took, so that it is not mistaken for running."""

from __future__ import annotations

import threading
import time
from typing import Any

import jax.monitoring

PREFIX = "/jax/core/compile/"


class CompileClock:
    """Adds up the wall-clock time in which JAX traced, lowered or compiled, in any thread, since it was made.

    Traces nest and threads overlap, so it keeps the union of the intervals, not the sum of the durations.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._intervals: list[tuple[float, float]] = []  # disjoint, in order
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    @property
    def seconds(self) -> float:
        """The time so far."""
        with self._lock:
            return sum(stop - start for start, stop in self._intervals)

    def close(self) -> None:
        """Stops listening."""
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if not event.startswith(PREFIX):
            return
        stop = time.perf_counter()
        start = stop - duration_secs
        with self._lock:
            while self._intervals and self._intervals[-1][1] >= start:
                start = min(start, self._intervals.pop()[0])
            self._intervals.append((start, stop))
