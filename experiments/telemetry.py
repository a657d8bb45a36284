"""What watching costs: A3C with and without measures, interleaved.

python experiments/telemetry.py
"""

from __future__ import annotations

import dataclasses
import time

import jax
import numpy as np

import asyncjax as aj
import figure

GROUPS = {
    "nothing": [],
    "staleness, gap, step, norms": [
        "staleness", "parameter_gap", "step_norm", "message_norm", "effective_learning_rate",
    ],
    "and KL of the policies": [
        "staleness", "parameter_gap", "step_norm", "message_norm", "effective_learning_rate", "policy_kl",
    ],
    "and the counterfactual gradient": [*aj.telemetry.MEASURES],
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Args:
    """Sizes."""

    env: str = "CartPole-v1"
    """The environment of A3C."""
    num_workers: int = 16
    """Workers of the round robin."""
    num_envs: int = 64
    """Environments per worker."""
    unroll_length: int = 20
    """Steps per environment and message."""
    num_updates: int = 200
    """Updates of a timed run."""
    repeats: int = 9
    """Timed runs of each kind, one after the other in turn."""


def main(args: Args) -> dict[str, float]:
    """Seconds per update of each kind, and the median of the ratios to the run without measures beside it."""
    figure.check(args)
    method = aj.a3c(args.env, num_envs=args.num_envs, unroll_length=args.unroll_length)
    runs = {name: aj.telemetry.watch(method, measures) for name, measures in GROUPS.items()}
    schedule = aj.schedules.round_robin(args.num_updates, args.num_workers)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(args.repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(
                aj.emulate(run, schedule, jax.random.key(repeat), num_workers=args.num_workers).shared
            )
            if repeat:  # the first one compiles
                seconds[name].append((time.perf_counter() - start) / args.num_updates)
    bare = np.array(seconds["nothing"])
    print(f"{'watched':34} {'ms / update':>12} {'ratio':>7} {'quartiles':>14}")
    ratios = {}
    for name, found in seconds.items():
        low, ratios[name], high = np.percentile(np.array(found) / bare, (25, 50, 75))
        print(f"{name:34} {1e3 * np.median(found):12.3f} {ratios[name]:7.3f} {low:7.3f}-{high:.3f}")
    return ratios


if __name__ == "__main__":
    figure.start(main, Args, __doc__)
