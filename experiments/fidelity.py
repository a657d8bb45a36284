"""Fidelity: does emulating with fitted service times give the staleness and the returns of real threads?

python experiments/fidelity.py            # results/fidelity.png, and a table of tests
python experiments/fidelity.py --quick    # small runs, a check of the script
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

import asyncjax as aj
from asyncjax import fidelity, panels, telemetry


@dataclasses.dataclass(frozen=True)
class Args:
    """What to record and to emulate."""

    env: str = "CartPole-v1"
    """The environment of A3C."""
    num_workers: int = 8
    """Worker threads."""
    num_updates: int = 3000
    """Updates of a run."""
    records: int = 5
    """Threaded runs, each with a seed of its own."""
    seeds: int = 10
    """Emulated runs."""
    per_worker: bool = False
    """A service model for every worker instead of one for all."""
    quick: bool = False
    """Two records and three seeds of 100 updates."""
    results: Path = Path("results")
    """Folder for the picture."""


def main(args: Args) -> dict[str, fidelity.Comparison]:
    """Records, fits, emulates, tests, draws."""
    if args.quick:
        args = dataclasses.replace(args, num_updates=100, records=2, seeds=3)
    method = aj.a3c(args.env)
    size: dict[str, Any] = {"num_workers": args.num_workers, "num_updates": args.num_updates}
    recorded = [aj.run_threads(method, jax.random.key(seed), **size) for seed in range(args.records)]
    model = fidelity.fit(recorded[0][1], per_worker=args.per_worker)
    report(recorded[0][1], model)
    emulated = []
    for seed in range(args.records, args.records + args.seeds):
        key = jax.random.key(seed)
        schedule = aj.schedules.from_service_times(
            model, args.num_updates, args.num_workers, jax.random.fold_in(key, 1)
        )
        emulated.append((aj.emulate(method, schedule, key, num_workers=args.num_workers), schedule))
    sides = {"threads": recorded, "emulated": emulated}
    values = {
        "staleness": {name: [s.staleness() for _, s in runs] for name, runs in sides.items()},
        "return": {name: [returns(r) for r, _ in runs] for name, runs in sides.items()},
    }
    tests = {name: fidelity.compare(*of_sides.values()) for name, of_sides in values.items()}
    print(f"{'':12} {'threads':>9} {'emulated':>9} {'distance':>9} {'p':>7}")
    for name, test in tests.items():
        means = [np.mean(np.concatenate([np.ravel(x) for x in runs])) for runs in values[name].values()]
        print(f"{name:12} {means[0]:9.3f} {means[1]:9.3f} {test.distance:9.3f} {test.p_value:7.3f}")
    args.results.mkdir(parents=True, exist_ok=True)
    draw(values, tests).savefig(args.results / "fidelity.png")
    print(args.results / "fidelity.png")
    return tests


def report(schedule: aj.Schedule, model: aj.service.Service) -> None:
    """The fits of all jobs together, and which model was chosen."""
    for one in fidelity.fits(fidelity.service_times(schedule)).values():
        known = {name: round(float(x), 6) for name, x in one.parameters.items() if np.ndim(x) == 0}
        print(f"{one.family:12} log-likelihood {one.log_likelihood:9.3f}  distance {one.distance:.3f}  {known}")
    of_workers = telemetry.workers(schedule)
    share = float(np.nansum(of_workers.idle) / np.nansum(of_workers.busy + of_workers.idle))
    print(f"chosen: {model.name}; idle share {share:.3f}; staleness in queue {np.nanmean(of_workers.in_queue):.3f}")


def returns(result: aj.Result) -> np.ndarray:
    """Mean returns of the segments of the second half in which an episode ended."""
    episodes, total = (result.metrics[name][len(result.metrics["loss"]) // 2 :] for name in ("episodes", "return_sum"))
    return total[episodes > 0] / episodes[episodes > 0]


def draw(values: dict[str, dict[str, list[np.ndarray]]], tests: dict[str, fidelity.Comparison]) -> Any:
    """Distribution functions, a line for every run."""
    figure, axes = panels.new_figure(1, 2, size=(2 * panels.COLUMN[0], panels.COLUMN[1]))
    for ax, (quantity, of_sides) in zip(axes.ravel(), values.items(), strict=True):
        for (side, runs), colour in zip(of_sides.items(), panels.cycle(2), strict=True):
            for i, run in enumerate(runs):
                x = np.sort(np.ravel(run))
                label = side if i == 0 else None
                ax.step(x, np.arange(1, x.size + 1) / x.size, where="post", color=colour, linewidth=0.7, label=label)
        ax.set_xlabel(f"{quantity} (p = {tests[quantity].p_value:.2g})")
        ax.set_ylabel("share of messages" if quantity == "staleness" else "share of segments")
        ax.legend(frameon=False, fontsize=7)
    return figure


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
