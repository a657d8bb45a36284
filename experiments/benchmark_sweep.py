"""Many settings in one program against single runs one after the other, compilation included.

    python experiments/benchmark_sweep.py

A3C, each setting with its learning rate and delay. Who writes a loop over settings makes a method for each of them,
and every one is compiled; a sweep compiles once. The single runs are timed for a few settings, and the mean of
those is what each of all would take.
"""

from __future__ import annotations

import dataclasses
import time

import jax
import numpy as np
import optax

import asyncjax as aj
import figure
from asyncjax.sweeps.lanes import keys_of


@dataclasses.dataclass(frozen=True)
class Args:
    """What to time."""

    env: str = "Catch-bsuite"
    """Environment: any gymnax id, or brax:ID."""
    settings: int = 64
    """Settings of the sweep, half as many learning rates as settings and two delays."""
    singles: int = 3
    """Settings of which the single run is timed."""
    updates: int = 500
    """Updates of a run."""


def main(args: Args) -> float:
    """Prints the times; returns their ratio."""
    figure.check(args)
    settings = aj.grid(learning_rate=np.geomspace(1e-4, 1e-2, args.settings // 2), delay=[0, 16])
    env, key = aj.make_env(args.env), jax.random.key(0)

    def method(learning_rate: float) -> aj.Method:
        return aj.a3c(env, optimizer=optax.adam(learning_rate), num_envs=4)

    def schedule(delay: int) -> aj.Schedule:
        return aj.schedules.fixed_delay(args.updates, delay)

    jax.block_until_ready(jax.jit(lambda x: x + 1)(key.shape[0] if key.shape else 1))  # the backend's own start
    start = time.perf_counter()
    table = aj.sweep(method, schedule, settings, key=key, seeds=1, progress=False)
    together = time.perf_counter() - start
    apart = []
    for setting in np.random.default_rng(0).permutation(len(settings))[: args.singles]:
        start = time.perf_counter()
        chosen = settings[setting]
        result = aj.emulate(method(chosen["learning_rate"]), schedule(chosen["delay"]), keys_of(key, 0).run)
        loss = result.metrics["loss"][-max(1, round(0.1 * args.updates)) :].mean()
        apart.append(time.perf_counter() - start)
        # Hundreds of sampled actions later a rounding may have flipped one: most runs agree, not each has to.
        print(f"{chosen}: {apart[-1]:.1f} s alone, loss {loss:.4g}, in the sweep {table['loss'][setting, 0]:.4g}")
    one_by_one = len(settings) * float(np.mean(apart))
    print(
        f"{len(settings)} settings together {together:.1f} s; one by one {one_by_one:.0f} s, by {args.singles} of them"
    )
    print(f"ratio {one_by_one / together:.1f}")
    return one_by_one / together


if __name__ == "__main__":
    figure.start(main, Args, __doc__)
