"""What a researcher of asynchrony measures.

`watch` adds measures by name to any run, inside the compiled program; functions of a schedule say who was stale and who
waited; the other quantities have a known answer and take arrays.
"""

from asyncjax.telemetry.clock import Workers, in_queue, throughput, updates_to_target, workers
from asyncjax.telemetry.quantities import effective_sample_size, implicit_momentum, kl_estimates, ratio_statistics
from asyncjax.telemetry.watching import MEASURES, available, watch

__all__ = [
    "MEASURES",
    "Workers",
    "available",
    "effective_sample_size",
    "implicit_momentum",
    "in_queue",
    "kl_estimates",
    "ratio_statistics",
    "throughput",
    "updates_to_target",
    "watch",
    "workers",
]
