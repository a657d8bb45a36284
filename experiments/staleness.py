"""How much staleness a method tolerates, and at which learning rate: returns over both, as heat maps.

    python experiments/staleness.py
    python experiments/staleness.py --env CartPole-v1 --methods a3c

Update t reads version t - delay, whatever the delay: the workers, their environments and their random numbers stay the
same, so that staleness is the only thing that changes. All runs of a method are one compiled program.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import optax

import asyncjax as aj
import figure
from asyncjax.commandline import factories
from asyncjax.plotting.heat_maps import draw_heat_map
from asyncjax.plotting.panels import COLUMN, new_figure
from asyncjax.statistics import bootstrap_interval, middle_half, paired_difference
from figure import Arrays, small_network

OPTIONS: dict[str, dict[str, int]] = {  # a trajectory is longer than a gradient's segment; an episode of Catch has 9
    "impala": {"unroll_length": 18},
    "ppo": {"unroll_length": 36, "num_minibatches": 2},
}
METHOD_NAMES = {"a3c": "A3C", "impala": "IMPALA", "ppo": "PPO"}


@dataclasses.dataclass(frozen=True)
class Args(figure.Common):
    """What to run."""

    methods: tuple[str, ...] = ("a3c", "impala", "ppo")
    """Methods."""
    env: str = "Catch-bsuite"
    """Any gymnax id."""
    delays: tuple[int, ...] = (0, 4, 16, 64)
    """Staleness, updates."""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    """Of Adam."""
    num_workers: int = 8
    """Workers, in turn."""
    num_envs: int = 2
    """Environments of a worker."""
    num_updates: int = 600
    """Updates of a run, one message each."""


def main(args: Args) -> Arrays:
    """The figure, its data and its numbers."""
    figure.check(args, zero=("delays",), methods=factories())
    small = {"seeds": 2, "hidden": 8, "methods": ("a3c", "impala"), "delays": (0, 8), "learning_rates": (1e-3, 1e-2)}
    return figure.command("staleness", args, {**small, "num_updates": 40}, run, plot, report)


def run(args: Args) -> Arrays:
    """The return of the training episodes in the last fifth of each run.

    Returns:
      `returns`, Float[M, D, R, S], for M methods, D delays, R learning rates and S seeds; `methods`, `delays`,
      `learning_rates`. A run whose parameters became infinite has NaN.
    """
    env = aj.make_env(args.env)

    def method(name: str, learning_rate: float) -> aj.Method:
        sizes = {"num_envs": args.num_envs, **OPTIONS.get(name, {"unroll_length": 9})}
        network = small_network(name, env, args.hidden)
        return getattr(aj, name)(env, optimizer=optax.adam(learning_rate), network=network, **sizes)

    def schedule(delay: int) -> aj.Schedule:
        return aj.schedules.fixed_delay(args.num_updates, delay, args.num_workers)

    settings = aj.grid(name=args.methods, delay=args.delays, learning_rate=args.learning_rates)
    size: dict[str, Any] = {"num_workers": args.num_workers, "seeds": args.seeds, "directory": args.keep}
    swept = aj.sweep(method, schedule, settings, key=figure.key(), summarize=aj.summaries.curve(5), **size)
    returns = np.where(swept["finite"], swept["return_curve"][..., -1], np.nan)
    shape = (len(args.methods), len(args.delays), len(args.learning_rates), args.seeds)
    names = {name: np.array(getattr(args, name)) for name in ("methods", "delays", "learning_rates")}
    return {"returns": returns.reshape(shape), **names}


def report(arrays: Arrays) -> str:
    """For every method and delay the best learning rate, its return, and what the delay costs, paired by seed."""
    rates, rows = arrays["learning_rates"], []
    # Of a learning rate with which a seed diverged there is no mean.
    chosen = np.nan_to_num(middle_half(np.moveaxis(arrays["returns"], -1, 0)), nan=-np.inf).argmax(-1)
    for m, method in enumerate(arrays["methods"]):
        at_best = [returns[r] for returns, r in zip(arrays["returns"][m], chosen[m], strict=True)]
        for d, delay in enumerate(arrays["delays"]):
            cost = "" if d == 0 else figure.interval(at_best[d] - at_best[0], 2)
            resolved = "" if d == 0 else ("yes" if paired_difference(at_best[d], at_best[0]).resolved else "no")
            rows.append([method, delay, f"{rates[chosen[m, d]]:g}", figure.interval(at_best[d], 2), cost, resolved])
    return figure.table(["method", "staleness", "best learning rate", "return", "minus fresh", "resolved"], rows)


def plot(arrays: Arrays) -> Any:
    """A heat map per method: interquartile means over seeds, with half the width of their intervals."""
    methods = list(arrays["methods"])
    height = 0.9 + 0.36 * len(arrays["learning_rates"])
    picture, grid = new_figure(1, len(methods), size=(len(methods) * 0.85 * COLUMN[0], height))
    for m, axes in enumerate(np.ravel(grid)):
        returns = np.moveaxis(arrays["returns"][m], -1, 0)
        low, high = bootstrap_interval(returns)
        draw_heat_map(
            axes,
            middle_half(returns).T,
            list(arrays["delays"]),
            [f"{rate:g}" for rate in arrays["learning_rates"]],
            label="episode return",
            spread=(high - low).T / 2,
            number=".2f",
        )
        axes.set_title(METHOD_NAMES.get(str(methods[m]), str(methods[m])), fontsize=8)
        axes.set_xlabel("staleness (updates)")
        axes.set_ylabel("learning rate" if m == 0 else "")
    return picture


if __name__ == "__main__":
    figure.start(main, Args, __doc__)
