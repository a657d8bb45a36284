"""Corrections of staleness, to be composed with any method and any optimizer.

Most are optax transformations of one message; their `update` takes keyword-only `staleness`, Int[], and `stale_params`,
the parameters that the message was computed on. With one message per update they can stand in front of any optimizer,
`optax.chain(corrections.scale_by_staleness(), optax.adam(1e-3))`; for groups they are a method's `correction=` and act
on every message before the mean. Look-aheads change what workers read instead, and take a method to a method.

All leave fresh messages alone, bit for bit, except where their docstring says otherwise: on a CPU a run of fresh
messages ends in the very parameters of the run without the correction, compiled, in every engine. Under a `vmap` over
schedules the last bit may differ.

Of the named systems that are no transformation, Rennala and FedBuff are groups of K messages (FedBuff with
`correction=scale_by_staleness(0.5)`), stale-synchronous parallel is a bound of the schedule, and DANA-Slim is a private
optimizer.
"""

from asyncjax.corrections.compensation import (
    adaptive_delay_compensation,
    closed_loop_momentum,
    delay_compensation,
    gap_aware,
)
from asyncjax.corrections.dropping import drop_stale, ringmaster
from asyncjax.corrections.look_ahead import dana_slim, dana_zero, predict_weights
from asyncjax.corrections.scaling import (
    delay_adaptive,
    hinge,
    pipemare,
    polynomial,
    scale_by,
    scale_by_effective_sample_size,
    scale_by_staleness,
)

__all__ = [
    "adaptive_delay_compensation",
    "closed_loop_momentum",
    "dana_slim",
    "dana_zero",
    "delay_adaptive",
    "delay_compensation",
    "drop_stale",
    "gap_aware",
    "hinge",
    "pipemare",
    "polynomial",
    "predict_weights",
    "ringmaster",
    "scale_by",
    "scale_by_effective_sample_size",
    "scale_by_staleness",
]
