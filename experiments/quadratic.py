"""The quadratic laboratory: what delay does to SGD, measured over every closed form that there is.

    python experiments/quadratic.py            # results/quadratic.png, and a table of measured against exact
    python experiments/quadratic.py --quick    # in seconds

All runs are of asyncjax's engines, on f(w) = curvature w^2 / 2; `a` is step size times curvature, tau the staleness.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

import figure
from asyncjax.runs import make_directory
from laboratory.chance import random_worker, variances
from laboratory.closed_forms import elastic_step, stable_step, stationary_variance
from laboratory.pictures import plot
from laboratory.rules import compensation, dana, gaps
from laboratory.stability import angles, elastic, momentum_thresholds, rates, thresholds


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    quick: bool = False
    """Fewer delays, steps and seeds: a check in seconds, not a figure."""
    updates: int = 2000
    """Updates of a run whose growth is measured."""
    seeds: int = 4000
    """Schedules over which the random worker is averaged."""
    results: Path = Path("results")
    """Folder for the picture."""


class Row(NamedTuple):
    """One line of the table."""

    name: str
    measured: float
    exact: float
    tolerance: float

    @property
    def error(self) -> float:
        """Relative."""
        return abs(self.measured - self.exact) / abs(self.exact)


def main(args: Args) -> dict[str, np.ndarray]:
    """Measures, prints the table and draws the picture."""
    figure.check(args)
    make_directory(args.results, "folder", "--results")
    arrays = run(dataclasses.replace(args, updates=600, seeds=500) if args.quick else args)
    print(f"{'':48} {'measured':>10} {'exact':>10} {'error':>9} {'allowed':>9}")
    for row in table(arrays):
        mark = "" if row.error <= row.tolerance else "  <- outside"
        print(f"{row.name:48} {row.measured:10.5f} {row.exact:10.5f} {row.error:9.1e} {row.tolerance:9.0e}{mark}")
    path = args.results / ("quadratic-quick.png" if args.quick else "quadratic.png")
    plot(arrays).savefig(path)
    print(path)
    return arrays


def run(args: Args) -> dict[str, np.ndarray]:
    """Measures everything; name -> array."""
    few = args.quick
    parts = [
        thresholds([0, 1, 2, 3] if few else [0, 1, 2, 3, 4, 6, 8, 12, 16], args.updates),
        momentum_thresholds([0.0, 0.5, 0.9] if few else [0.0, 0.2, 0.4, 0.6, 0.8, 0.9], args.updates),
        angles(3 if few else 8, args.updates),
        elastic([0.0, 0.5, 0.9] if few else [0.0, 0.2, 0.4, 0.6, 0.8, 0.9], args.updates),
        rates(),
        variances(*((64, 600) if few else (256, 2000))),
        random_worker(args.seeds),
        compensation(),
        gaps(),
        dana(),
    ]
    return {name: np.asarray(value) for part in parts for name, value in part.items()}


def table(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Measured against exact, with the relative error that the measurement's resolution allows."""
    return [*stability_rows(arrays), *other_rows(arrays)]


def stability_rows(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Of the largest stable steps."""
    rows = []
    for i, delay in enumerate(arrays["delays"]):
        exact = float(stable_step(delay))
        rows.append(Row(f"stable step, delay {delay}", float(arrays["threshold"][i]), exact, 0.01))
        scaled = float(arrays["threshold_scaled"][i])
        rows.append(Row(f"stable step, delay {delay}, g / (1 + tau)", scaled, exact * (1 + delay), 0.01))
    for i, beta in enumerate(arrays["betas"]):
        fresh, stale = arrays["ball_threshold"][:, i]
        rows.append(Row(f"stable step, heavy ball {beta}", float(fresh), 2 * (1 + beta), 0.01))
        rows.append(Row(f"stable step, heavy ball {beta}, delay 1", float(stale), 1 - beta, 0.02))
    for delay, measured in zip(arrays["angle_delays"], arrays["angle_threshold"], strict=True):
        for phi, value in zip(arrays["angle"], measured, strict=True):
            name = f"stable step, eigenvalue angle {phi:.2f}, delay {delay}"
            rows.append(Row(name, float(value), float(stable_step(delay, phi)), 0.02))
    for n, of_workers in zip(arrays["elastic_workers"], arrays["elastic_threshold"], strict=True):
        for together, measured in enumerate(of_workers):
            for beta, value in zip(arrays["elastic_rates"], measured, strict=True):
                name = f"stable step, {n} elastic workers {'together' if together else 'apart'}, rate {beta}"
                rows.append(Row(name, float(value), float(elastic_step(beta, n, bool(together))), 0.01))
    return rows


def other_rows(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Of rates, variances, momentum and the corrections."""
    rows = []
    for delay, value in zip(arrays["rate_delays"], arrays["fastest_rate"], strict=True):
        rows.append(Row(f"fastest rate without oscillation, delay {delay}", float(value), delay / (delay + 1), 0.01))
    for delay in (0, 1):
        for a, value in zip(arrays["variance_steps"], arrays["variance"][delay], strict=True):
            name = f"stationary variance, a = {a}, delay {delay}"
            rows.append(Row(name, float(value), float(stationary_variance(a, delay)), 0.03))
    for n, (value, low, high) in zip(arrays["workers"], arrays["implicit_momentum"], strict=True):
        exact = 1 - 1 / n
        rows.append(Row(f"implicit momentum, {n} workers", float(value), exact, max(high - exact, exact - low) / exact))
    slope = np.diff(np.log(arrays["compensated_error"][:2]))[0] / np.diff(np.log(arrays["distance"][:2]))[0]
    rows.append(Row("order of DC-ASGD's error", float(slope), 2.0, 0.05))
    for delay, value in zip(arrays["gap_delays"], arrays["gap"], strict=True):
        rows.append(Row(f"gap-aware divisor, delay {delay}", float(value), delay + 1.0, 1e-4))
    rows.append(Row("1 + distance, DANA-Zero of 1 worker to Nesterov", 1 + float(arrays["nesterov_gap"]), 1.0, 1e-5))
    rows.append(Row("1 + distance, DANA-Zero to DANA-Slim, 8 workers", 1 + float(arrays["slim_gap"]), 1.0, 1e-5))
    return rows


if __name__ == "__main__":
    figure.start(main, Args, __doc__)
