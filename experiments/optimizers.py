"""Which optimizer is most robust to its learning rate, fresh and at a staleness of 16: 50 random learning rates each.

    python experiments/optimizers.py
    python experiments/optimizers.py --method n_step_q --env CartPole-v1

Mnih et al. (2016) draw learning rates log-uniformly and compare momentum SGD, RMSProp with statistics of each worker's
own and RMSProp with shared statistics, sorted by score: the shared one was the most robust. Here the same workers run
under both delays, so that what differs is staleness; Adam and Muon join. Robustness is the decades of learning rate in
which a run keeps half of what the best optimizer gains over a random policy.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import asyncjax as aj
import figure
from asyncjax.commandline import factories
from asyncjax.plotting.panels import COLOURS, COLUMN, new_figure
from asyncjax.statistics import bootstrap_interval
from figure import Arrays, small_network

Number = float | jax.Array


class Optimizer(NamedTuple):
    """What is made of a learning rate, and whether every worker keeps one of its own."""

    make: Any
    private: bool = False


SHARED = "shared RMSProp"
OPTIMIZERS = {
    "momentum SGD": Optimizer(lambda rate: optax.sgd(rate, momentum=0.99)),
    "private RMSProp": Optimizer(lambda rate: optax.rmsprop(rate, decay=0.99, eps=1e-2), private=True),
    SHARED: Optimizer(lambda rate: optax.rmsprop(rate, decay=0.99, eps=1e-2)),
    "Adam": Optimizer(lambda rate: optax.adam(rate)),
    "Muon": Optimizer(lambda rate: optax.contrib.muon(rate)),
}


@dataclasses.dataclass(frozen=True)
class Args(figure.Common):
    """What to run."""

    method: str = "a3c"
    """A gradient method; trajectory methods have no private optimizer."""
    env: str = "Catch-bsuite"
    """Any gymnax id."""
    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)
    """Names in OPTIMIZERS."""
    num_rates: int = 50
    """Learning rates, the same for all optimizers."""
    lowest: float = 1e-5
    """They are drawn log-uniformly from here ..."""
    highest: float = 1.0
    """... to here."""
    delays: tuple[int, ...] = (0, 16)
    """Staleness, updates; at most num_workers - 1, so that real workers could have it."""
    num_workers: int = 17
    """Workers, in turn."""
    num_envs: int = 2
    """Environments of a worker."""
    unroll_length: int = 9
    """Steps per message; an episode of Catch has 9."""
    num_updates: int = 600
    """Updates of a run."""


def main(args: Args) -> Arrays:
    """The figure, its data and its numbers."""
    figure.check(args, zero=("delays",), method=factories(), optimizers=OPTIMIZERS)
    small = {"seeds": 1, "hidden": 8, "optimizers": ("shared RMSProp", "private RMSProp"), "num_rates": 4}
    return figure.command(
        f"optimizers-{args.method}", args, {**small, "num_envs": 1, "num_updates": 60}, run, plot, report
    )


def run(args: Args) -> Arrays:
    """The return of the training episodes in the last fifth of each run.

    Returns:
      `returns`, Float[O, D, R, S], for O optimizers, D delays, R learning rates and S seeds; `random`, Float[], that of
      the first policy; `optimizers`, `delays`, `rates`. A run whose parameters became infinite has NaN.
    """
    env = aj.make_env(args.env)
    lowest, highest = np.log(args.lowest), np.log(args.highest)
    rates = np.exp(np.sort(np.random.default_rng(0).uniform(lowest, highest, args.num_rates)))

    def method(optimizer: str, rate: Number) -> aj.Method:
        make, private = OPTIMIZERS[optimizer]
        sizes = {"num_envs": args.num_envs, "unroll_length": args.unroll_length}
        network = small_network(args.method, env, args.hidden)
        chosen = {"optimizer": make(rate), "private_optimizer": private}
        return getattr(aj, args.method)(env, network=network, **chosen, **sizes)

    def schedule(delay: int) -> aj.Schedule:
        return aj.schedules.fixed_delay(args.num_updates, delay, args.num_workers)

    settings = aj.grid(optimizer=args.optimizers, delay=args.delays, rate=rates)
    size: dict[str, Any] = {"num_workers": args.num_workers, "seeds": args.seeds, "directory": args.keep}
    swept = aj.sweep(method, schedule, settings, key=figure.key(), summarize=aj.summaries.curve(5), **size)
    shape = (len(args.optimizers), len(args.delays), args.num_rates, args.seeds)
    curves = np.where(swept["finite"][..., None], swept["return_curve"], np.nan)
    still = swept["return_curve"].reshape(*shape, 5)[:, :, 0]  # at the smallest rate nothing has been learned yet
    return {
        "returns": curves[..., -1].reshape(shape),
        "random": np.array(np.nanmean(still[..., 0])),
        "optimizers": np.array(args.optimizers),
        "delays": np.array(args.delays),
        "rates": rates,
        "decades": np.array((highest - lowest) / np.log(10)),
    }


def gains(arrays: Arrays) -> np.ndarray:
    """Float[O, D, R, S], returns over that of the first policy, a failed run's being 0, in units of the best.

    The best is that of all optimizers, delays and learning rates; where nothing was learned all are 0.
    """
    gain = np.nan_to_num(arrays["returns"] - arrays["random"], nan=0.0)
    best = gain.mean(-1).max()
    return gain / best if best > 0 else np.zeros_like(gain)


def report(arrays: Arrays) -> str:
    """For every optimizer and delay: its best return, and the decades in which half of the best gain is kept."""
    good = arrays["decades"] * (gains(arrays) >= 0.5).mean(-1)  # Float[O, D, R]
    shared = good[list(arrays["optimizers"]).index(SHARED)] if SHARED in arrays["optimizers"] else np.nan * good[0]
    rows = []
    for o, name in enumerate(arrays["optimizers"]):
        for d, delay in enumerate(arrays["delays"]):
            mean = np.nan_to_num(arrays["returns"][o, d], nan=float(arrays["random"])).mean(-1)
            lost = "" if d == 0 else mean_interval(good[o, d] - good[o, 0])
            less = mean_interval(good[o, d] - shared[d])
            best = f"{mean.max():.2f} at {arrays['rates'][mean.argmax()]:.1e}"
            rows.append([name, delay, best, mean_interval(good[o, d]), lost, less])
    head = ["optimizer", "staleness", "best mean return", "decades of learning rate", "minus fresh", f"minus {SHARED}"]
    return figure.table(head, rows)


def mean_interval(values: np.ndarray) -> str:
    """The mean over learning rates with its bootstrap interval, as text."""
    low, high = bootstrap_interval(values, lambda x: x.mean(0))
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


def plot(arrays: Arrays) -> Any:
    """A column per delay: returns against the learning rate, the mean over seeds and its 95 % band, and sorted."""
    delays = arrays["delays"]
    picture, grid = new_figure(2, len(delays), size=(len(delays) * COLUMN[0], 2 * COLUMN[1]))
    grid = grid.reshape(2, len(delays))
    returns = np.nan_to_num(arrays["returns"], nan=float(arrays["random"]))
    means = returns.mean(-1)
    margin = 0.05 * np.ptp(means) + 0.01
    for d, delay in enumerate(delays):
        for o, (name, colour) in enumerate(zip(arrays["optimizers"], COLOURS, strict=False)):
            mean = means[o, d]
            grid[0, d].semilogx(arrays["rates"], mean, ".-", color=colour, label=name, linewidth=0.8, markersize=3)
            low, high = bootstrap_interval(returns[o, d].T, lambda ys: ys.mean(0))
            grid[0, d].fill_between(arrays["rates"], low, high, color=colour, alpha=0.2, linewidth=0)
            grid[1, d].plot(np.arange(1, len(mean) + 1), np.sort(mean)[::-1], color=colour, linewidth=1)
        grid[0, d].set_title(f"staleness {delay}", fontsize=8)
        grid[0, d].set_xlabel("learning rate")
        grid[1, d].set_xlabel("learning rates, the best first")
        for axes in grid[:, d]:
            axes.set_ylabel("episode return")
            axes.set_ylim(means.min() - margin, means.max() + margin)
    grid[0, 0].legend(frameon=False, fontsize=6)
    return picture


if __name__ == "__main__":
    figure.start(main, Args, __doc__)
