"""The largest stable step, and how fast a run converges below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import asyncjax as aj
from asyncjax import corrections
from laboratory.closed_forms import fastest_step, stable_step
from laboratory.runs import grew, largest_stable, swept, trajectory


def thresholds(delays: Sequence[int], num_updates: int) -> dict[str, Any]:
    """The stability threshold against the delay, plain and corrected by g / (1 + tau)."""

    def measured(delay: int) -> np.ndarray:
        schedule = aj.schedules.fixed_delay(num_updates, delay)

        def grows(a: jax.Array, power: jax.Array) -> jax.Array:
            return grew(trajectory(optax.chain(corrections.scale_by_staleness(power), optax.sgd(a)), schedule))

        return largest_stable(grows, [0.0, 1.0])

    found = np.array([measured(delay) for delay in delays])
    return {"delays": delays, "threshold": found[:, 0], "threshold_scaled": found[:, 1]}


def momentum_thresholds(betas: Sequence[float], num_updates: int) -> dict[str, Any]:
    """The stability threshold of heavy ball against its momentum: 2 (1 + beta) fresh, 1 - beta at delay 1."""

    def measured(delay: int) -> np.ndarray:
        schedule = aj.schedules.fixed_delay(num_updates, delay)
        return largest_stable(lambda a, beta: grew(trajectory(optax.sgd(a, beta), schedule)), betas)

    return {"betas": betas, "ball_threshold": [measured(delay) for delay in (0, 1)]}


def angles(num_angles: int, num_updates: int) -> dict[str, Any]:
    """The stability threshold of a complex eigenvalue, as temporal differences have them, against its angle."""
    angle, delays = np.linspace(0, 1.4, num_angles), [0, 1, 3]

    def measured(delay: int) -> np.ndarray:
        schedule = aj.schedules.fixed_delay(num_updates, delay)

        def grows(a: jax.Array, phi: jax.Array) -> jax.Array:
            turn = jnp.stack([jnp.stack([jnp.cos(phi), -jnp.sin(phi)]), jnp.stack([jnp.sin(phi), jnp.cos(phi)])])

            def field(w: jax.Array) -> jax.Array:  # its gradient is turn @ w, which is no gradient of a function
                return jnp.dot(w, jax.lax.stop_gradient(turn @ w))

            return grew(trajectory(optax.sgd(a), schedule, loss=field, start=[1.0, 0.5]))

        return largest_stable(grows, angle.tolist())

    return {"angle": angle, "angle_delays": delays, "angle_threshold": [measured(d) for d in delays]}


def elastic(rates: Sequence[float], num_updates: int) -> dict[str, Any]:
    """The stability threshold of synchronous elastic averaging against its rate, from one place and from several."""
    workers = [2, 4]

    def measured(num_workers: int, together: bool) -> np.ndarray:
        schedule = aj.schedules.barrier(num_updates, num_workers)

        def grows(a: jax.Array, rate: jax.Array) -> jax.Array:
            base = aj.sgd(lambda w: 0.5 * w * w, 1.0, optimizer=optax.sgd(a))
            method = aj.elastic_averaging(base, rate=rate)

            def init(key: jax.Array, num_workers: int) -> Any:
                centre, worker = method.init(key, num_workers)
                place = jnp.arange(1.0, num_workers + 1, dtype=jnp.float32)
                shared = worker.shared if together else worker.shared._replace(params=place)
                return centre, worker._replace(shared=shared)

            loss = aj.emulate(method._replace(init=init), schedule, jax.random.key(0)).metrics["loss"]
            return grew(jnp.sqrt(loss))

        return largest_stable(grows, rates)

    found = [[measured(n, together) for together in (False, True)] for n in workers]
    return {"elastic_rates": rates, "elastic_workers": workers, "elastic_threshold": found}


def rates() -> dict[str, Any]:
    """The rate of convergence against the step, and at the fastest step without oscillation."""
    delays, length = [1, 2, 4], 48
    steps = np.array([np.linspace(0.1, 0.95, 9) * stable_step(delay) for delay in delays])

    def decay(a: Any, delay: int) -> jax.Array:
        w = trajectory(optax.sgd(a), aj.schedules.fixed_delay(4 * length, delay))
        size = [jnp.abs(w[i * length : (i + 1) * length]).max() for i in (1, 3)]
        return (size[1] / size[0]) ** (1 / (2 * length))

    def at_fastest(delay: int) -> float:
        """A double root r has w_{t+2} - 2 r w_{t+1} + r^2 w_t = 0, which is solved for r."""
        w = np.asarray(trajectory(optax.sgd(float(fastest_step(delay))), aj.schedules.fixed_delay(60, delay)))
        t = 8 * delay
        w0, w1, w2 = (float(w[t + i]) for i in range(3))
        return (w1 - np.sqrt(max(w1 * w1 - w0 * w2, 0.0))) / w0

    return {
        "rate_delays": delays,
        "rate_steps": steps,
        "rate": [swept(lambda a, d=d: decay(a, d), s) for d, s in zip(delays, steps, strict=True)],
        "fastest_rate": [at_fastest(delay) for delay in delays],
    }
