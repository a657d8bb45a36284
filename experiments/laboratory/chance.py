"""Noise and random workers: what holds in the mean over many runs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import asyncjax as aj
from asyncjax import telemetry
from laboratory.runs import swept, trajectory


def variances(chains: int, length: int) -> dict[str, Any]:
    """The stationary variance with unit noise on the gradient, against the step, for delays 0 and 1."""
    steps = np.array([0.1, 0.3, 0.5, 0.7, 0.85])

    def variance(a: Any, delay: int) -> jax.Array:
        w = trajectory(
            optax.sgd(a),
            aj.schedules.fixed_delay(length, delay),
            loss=lambda w, noise: jnp.sum(0.5 * w * w + w * noise),
            start=np.zeros(chains),
            sample=lambda key: jax.random.normal(key, (chains,)),
        )
        return jnp.var(w[length // 4 :]) / a**2

    return {"variance_steps": steps, "variance": [swept(lambda a, d=d: variance(a, d), steps) for d in (0, 1)]}


def random_worker(num_seeds: int) -> dict[str, Any]:
    """The mean trajectory when a uniformly random worker reports next, and the momentum that a regression finds."""
    workers, length, step = [2, 4, 8], 40, 0.5

    def mean(num_workers: int) -> np.ndarray:
        reads = np.stack([random_reads(num_workers, length, seed) for seed in range(num_seeds)])
        zeros = np.zeros((length, 1), np.int32)
        runs = jax.vmap(lambda read: trajectory(optax.sgd(step), aj.Schedule(zeros, read)))(reads)
        return np.asarray(runs, np.float64)

    runs = [mean(n) for n in workers]
    estimates = []
    for w in runs:
        paths = np.concatenate([np.ones((len(w), 1)), w], axis=1)
        rng = np.random.default_rng(0)
        draws = [paths[rng.integers(len(paths), size=len(paths))].mean(0) for _ in range(100)]
        found = [telemetry.implicit_momentum(draw, draw)[0] for draw in (paths.mean(0), *draws)]
        estimates.append([found[0], *np.percentile(found[1:], (2.5, 97.5))])
    return {
        "workers": workers,
        "random_step": step,
        "mean_path": [np.concatenate([[1.0], w.mean(0)]) for w in runs],
        "implicit_momentum": estimates,
    }


def random_reads(num_workers: int, num_updates: int, seed: int) -> np.ndarray:
    """Int[T, 1]: every update is by a uniformly random worker, which then reads at once; exponential service times."""
    worker = np.random.default_rng([num_workers, seed]).integers(num_workers, size=num_updates)
    held, read = np.zeros(num_workers, np.int32), np.empty((num_updates, 1), np.int32)
    for t, w in enumerate(worker):
        read[t, 0], held[w] = held[w], t + 1
    return read
