"""What single corrections do, against what their papers prove."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import asyncjax as aj
from asyncjax import corrections
from laboratory.runs import trajectory


def compensation() -> dict[str, Any]:
    """Errors of a stale gradient of -log w at w = 1, with and without DC-ASGD of lambda = 1, against the distance."""
    distance = np.geomspace(0.02, 0.3, 9)
    now, then = jnp.ones(9), jnp.asarray(1 + distance, jnp.float32)
    stale = jax.grad(lambda w: -jnp.log(w).sum())(then)
    correction = corrections.delay_compensation(1.0)
    fixed, _ = correction.update(stale, correction.init(now), now, staleness=jnp.int32(1), stale_params=then)
    errors = [np.abs(np.asarray(gradient) + 1.0) for gradient in (stale, fixed)]
    return {"distance": distance, "stale_error": errors[0], "compensated_error": errors[1]}


def gaps() -> dict[str, Any]:
    """What gap-aware divides the last of 20 constant gradients by, if only that one is stale."""
    delays, factors = [0, 1, 3, 7, 15], []
    for delay in delays:
        read = np.arange(20, dtype=np.int32)
        read[-1] -= delay
        schedule = aj.Schedule(np.zeros((20, 1), np.int32), read[:, None])
        w = np.asarray(trajectory(optax.sgd(0.125), schedule, loss=jnp.sum, correction=corrections.gap_aware()))
        factors.append(0.125 / (w[-2] - w[-1]))
    return {"gap_delays": delays, "gap": factors}


def dana() -> dict[str, Any]:
    """The largest distances of DANA-Zero of one worker from Nesterov, and from DANA-Slim with eight workers."""
    step, beta = 0.05, 0.9

    def path(optimizer: Any, schedule: aj.Schedule, **options: Any) -> np.ndarray:
        return np.asarray(trajectory(optimizer, schedule, **options))

    def zero(schedule: aj.Schedule) -> np.ndarray:
        base = aj.sgd(lambda w: 0.5 * w * w, 1.0, optimizer=optax.sgd(step, beta), private_optimizer=True)
        method = corrections.dana_zero(base, beta)

        def apply(shared: Any, messages: Any, stale: aj.Stale) -> tuple[Any, Any]:
            shared, _ = method.apply(shared, messages, stale)
            return shared, {"w": method.view(shared)}

        return np.asarray(aj.emulate(method._replace(apply=apply), schedule, jax.random.key(0)).metrics["w"])

    alone = aj.schedules.sequential(60)
    eight = aj.schedules.from_service_times(aj.service.exponential(), 60, 8, jax.random.key(0))
    nesterov = path(optax.sgd(step, beta, nesterov=True), alone)
    slim = path(corrections.dana_slim(step, beta), eight, private_optimizer=True)
    return {"nesterov_gap": np.abs(zero(alone) - nesterov).max(), "slim_gap": np.abs(zero(eight) - slim).max()}
