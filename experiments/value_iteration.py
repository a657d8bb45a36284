"""What asynchrony costs and gains in value iteration: error against backups, updates and virtual time.

    python experiments/value_iteration.py
    python experiments/value_iteration.py --problem grid
    python experiments/value_iteration.py --quick

Workers own equal blocks of states. Fixed delays are compared with the theorem (Bertsekas and Tsitsiklis 1989), then
workers without a barrier with workers at a barrier, on the same virtual clock. Draws NAME.png, writes NAME.npz and
prints the numbers.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import numpy as np

import asyncjax as aj
import figure
from asyncjax.plotting.panels import COLOURS, COLUMN, new_figure
from figure import Arrays

WAYS = ("barrier", "asynchronous")
SERVICES = ("equal", "stragglers", "slow worker")
KEPT = ("problem", "discount", "tolerance", "num_workers", "delays", "team_sizes")  # what picture and report say


@dataclasses.dataclass(frozen=True)
class Args(figure.Output):
    """What to run."""

    problem: Literal["garnet", "grid"] = "garnet"
    """garnet: random transitions, 4 actions, 5 successors. grid: a square with slip and a goal in its corner."""
    num_states: int = 1024
    """States, rounded down to a square for the grid."""
    discount: float = 0.99
    """Of future rewards, per step."""
    tolerance: float = 1e-4
    """The error, in the maximum norm, at which a run counts as done."""
    num_workers: int = 8
    """Workers of the runs with fixed delays, and of the runs against virtual time."""
    delays: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32, 64)
    """Fixed delays, in updates."""
    team_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Numbers of workers for the speed-up; the mean staleness is one less."""
    slowdown: float = 10.0
    """How many times as long a straggling job takes, or every job of the slow worker."""
    probability: float = 0.05
    """The chance that a job straggles."""


def main(args: Args) -> Arrays:
    """Runs, prints the numbers, and writes NAME.npz and NAME.png."""
    figure.check(args, zero=("delays", "probability"))
    small = {"num_states": 64, "discount": 0.9, "delays": (0, 4, 16), "team_sizes": (1, 4, 16)}
    return figure.command(f"value_iteration-{args.problem}", args, small, run, plot, report)


def services(args: Args, num_workers: int) -> dict[str, aj.service.Service]:
    """Models of a worker's time for one block, in units of the mean time without straggling."""
    one_slow = [args.slowdown] + [1.0] * (num_workers - 1)
    models = (
        aj.service.gamma(100.0),
        aj.service.straggler(args.probability, args.slowdown, aj.service.gamma(100.0)),
        aj.service.gamma(100.0, one_slow),
    )
    return dict(zip(SERVICES, models, strict=True))


def run(args: Args) -> Arrays:
    """Everything that is drawn.

    Returns:
      `start`, Float[], the error of the initial values; `jacobi`, Int[], sweeps of Jacobi iteration to the tolerance;
      `delay error D`, Float[T], the error after every update with delay D; `time NAME, WAY` and `error NAME, WAY`,
      Float[T], of every commit, for every service model with and without a barrier; `speed-up`, Float[2, 2, N], the
      time of one worker over that of a team, for equal and straggling workers, with and without a barrier; and the
      arguments in KEPT.
    """
    mdp = make_problem(args)
    exact = aj.mdp.exact_values(mdp, args.discount)
    start = np.abs(exact).max()
    sweeps = int(np.ceil(np.log(start / args.tolerance) / -np.log(args.discount)))  # that the theorem allows to Jacobi
    with jax.enable_x64(True):
        method = aj.value_iteration(mdp, args.discount, reference=exact)

        def errors(schedule: aj.Schedule) -> np.ndarray:
            return np.asarray(aj.emulate(method, schedule, figure.key()).metrics["error"])

        jacobi = errors(aj.schedules.barrier(sweeps, 1))  # the same for every team: blocks do not matter to it
        reached = int(updates_until(jacobi, args.tolerance))
        arrays: Arrays = {"start": start, "jacobi": np.array(reached)}
        for delay in args.delays:
            guaranteed = sweeps * (args.num_workers + delay)
            arrays[f"delay error {delay}"] = errors(aj.schedules.fixed_delay(guaranteed, delay, args.num_workers))

        def timed(name: str, num_workers: int, barrier: bool) -> tuple[np.ndarray, np.ndarray]:
            """Times of the commits and errors after them."""
            service = services(args, num_workers)[name]
            size, wait = (num_workers, "next_version") if barrier else (1, "never")
            patience = args.slowdown if name == "slow worker" else 4  # as long as the barrier takes, and more
            updates = reached + 1 if barrier else int(patience * reached * num_workers)
            schedule = aj.schedules.from_service_times(service, updates, num_workers, figure.key(), size, wait=wait)
            assert schedule.time is not None
            return np.asarray(schedule.time), jacobi[:updates] if barrier else errors(schedule)

        for name in SERVICES:
            for barrier in (True, False):
                label = f"{name}, {WAYS[not barrier]}"
                arrays[f"time {label}"], arrays[f"error {label}"] = timed(name, args.num_workers, barrier)
        times = np.array(
            [
                [
                    [done_at(*timed(name, w, barrier), args.tolerance) / w for w in args.team_sizes]
                    for barrier in (True, False)
                ]
                for name in ("equal", "stragglers")
            ]
        )
    # A block of a team of W has 1 / W of the states, hence the division; one worker has no barrier to wait at.
    return {**arrays, "speed-up": times[:, :, :1] / times, **{name: np.array(getattr(args, name)) for name in KEPT}}


def make_problem(args: Args) -> aj.MDP:
    """The MDP of the command line."""
    if args.problem == "garnet":
        return aj.mdp.garnet(0, args.num_states, num_actions=4, num_successors=5)
    side = int(np.sqrt(args.num_states))
    return aj.mdp.grid_world((side, side), slip=0.2, step_reward=-1.0)


def updates_until(error: np.ndarray, tolerance: float | np.ndarray) -> float:
    """The updates after which the error stays within the tolerance; NaN if it never does."""
    late = np.flatnonzero(error > tolerance)
    count = late[-1] + 1 if late.size else 0
    return count + 1.0 if count < len(error) else np.nan


def done_at(time: np.ndarray, error: np.ndarray, tolerance: float | np.ndarray) -> float:
    """The time from which on the error is within the tolerance; NaN if that is never."""
    count = updates_until(error, tolerance)
    return float(time[int(count) - 1]) if np.isfinite(count) else np.nan


def bound(arrays: Arrays, updates: np.ndarray, delay: int) -> np.ndarray:
    """What the theorem allows after so many updates: discount^floor((k + D) / (B + D)) e_0, with B = W."""
    return arrays["start"] * arrays["discount"] ** ((updates + delay) // (arrays["num_workers"] + delay))


def sweeps_to_tolerance(arrays: Arrays) -> np.ndarray:
    """Backups of all states until the error is within the tolerance, for every delay; Float[D]."""
    counts = [updates_until(arrays[f"delay error {delay}"], arrays["tolerance"]) for delay in arrays["delays"]]
    return np.array(counts) / arrays["num_workers"]


def predicted_sweeps(arrays: Arrays) -> np.ndarray:
    """Sweeps of Jacobi iteration times the mean age of what an update reads, in sweeps; Float[D].

    With updates in turn, the W blocks that update t reads with delay D were written D + 1, ..., D + W updates ago. In
    Jacobi iteration everything is one sweep old.
    """
    return arrays["jacobi"] * (arrays["delays"] + (arrays["num_workers"] + 1) / 2) / arrays["num_workers"]


def report(arrays: Arrays) -> str:
    """The numbers as tables in Markdown."""
    sweeps, predicted = sweeps_to_tolerance(arrays), predicted_sweeps(arrays)
    return "\n".join(
        [
            f"{arrays['problem']}, {arrays['num_workers']} workers, discount {arrays['discount']},"
            f" tolerance {arrays['tolerance']:g}; Jacobi: {arrays['jacobi']:.0f} sweeps",
            table("delay in updates", arrays["delays"]),
            *(row("sweeps", sweeps, 0), row("predicted", predicted, 0), row("over no delay", sweeps / sweeps[0], 2)),
            table("", ("time, barrier", "time, asynchronous", "ratio", "sweeps, barrier", "sweeps, asynchronous")),
            *(row(name, compared(arrays, name), 2) for name in SERVICES),
            table("speed-up, workers", arrays["team_sizes"]),
            *(
                row(f"{kind}, {way}", values, 2)
                for kind, pair in zip(("equal", "stragglers"), arrays["speed-up"], strict=True)
                for way, values in zip(WAYS, pair, strict=True)
            ),
        ]
    )


def compared(arrays: Arrays, name: str) -> np.ndarray:
    """Times with and without a barrier until the tolerance, their ratio, and the sweeps that both took."""
    curves = [(arrays[f"time {name}, {way}"], arrays[f"error {name}, {way}"]) for way in WAYS]
    slow, fast = (done_at(*curve, arrays["tolerance"]) for curve in curves)
    barrier, asynchronous = (updates_until(error, arrays["tolerance"]) for _, error in curves)
    return np.array([slow, fast, slow / fast, barrier, asynchronous / arrays["num_workers"]])


def table(name: str, columns: Any) -> str:
    """The head of a table in Markdown."""
    return f"\n| {name} | " + " | ".join(map(str, columns)) + " |\n" + "|---" * (len(columns) + 1) + "|"


def row(name: str, values: np.ndarray, digits: int) -> str:
    """A row of numbers; large ones without decimals."""
    return f"| {name} | " + " | ".join(f"{x:.{0 if x >= 100 else digits}f}" for x in values) + " |"


def plot(arrays: Arrays) -> Any:
    """Four panels: error under fixed delays, their cost, error against virtual time, speed-up."""
    picture, grid = new_figure(2, 2, size=(2 * COLUMN[0], 2 * COLUMN[1] + 0.4))
    draw_delays(grid[0, 0], arrays)
    draw_cost(grid[0, 1], arrays)
    draw_times(grid[1, 0], arrays)
    draw_speed_up(grid[1, 1], arrays)
    for axes in (grid[0, 0], grid[0, 1], grid[1, 1]):
        axes.legend(frameon=False, fontsize=6, handlelength=3)
    grid[1, 0].legend(frameon=False, fontsize=6, ncols=2, loc="upper right", handlelength=1.8, columnspacing=1)
    return picture


def draw_delays(axes: Any, arrays: Arrays) -> None:
    """The error under some fixed delays, and the theorem's bounds, dashed."""
    workers, shown = arrays["num_workers"], [d for d in arrays["delays"] if d in (0, 4, 16, 64)]
    for delay, colour in zip(shown, COLOURS, strict=False):
        error = arrays[f"delay error {delay}"]
        updates = np.unique(np.geomspace(1, len(error), 400).astype(int))
        axes.loglog(updates / workers, error[updates - 1], color=colour, label=f"delay {delay}")
        axes.loglog(updates / workers, bound(arrays, updates, delay), "--", color=colour, linewidth=0.8)
    axes.set_ylim(arrays["tolerance"], 2 * arrays["start"])
    axes.set_xlim(left=1)
    axes.set_xlabel("backups (sweeps)")
    above = axes.secondary_xaxis("top", functions=(lambda x: x * workers, lambda x: x / workers))
    above.set_xlabel("updates", fontsize=8)
    above.tick_params(labelsize=7)
    axes.set_ylabel("error; dashed: the bound")


def draw_cost(axes: Any, arrays: Arrays) -> None:
    """Sweeps until the tolerance, against the delay in sweeps."""
    delays = arrays["delays"] / arrays["num_workers"]
    axes.plot(delays, sweeps_to_tolerance(arrays), "o", color=COLOURS[0], markersize=4, label="measured")
    axes.plot(delays, predicted_sweeps(arrays), color=COLOURS[1], label="Jacobi x mean age of what is read")
    axes.axhline(arrays["jacobi"], color=COLOURS[6], linestyle=":", label="Jacobi")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("delay (sweeps)")
    axes.set_ylabel(f"sweeps to an error of {arrays['tolerance']:g}")


def draw_times(axes: Any, arrays: Arrays) -> None:
    """The error against virtual time, with and without a barrier."""
    for name, colour in zip(SERVICES, COLOURS, strict=False):
        for way, style in zip(WAYS, ("--", "-"), strict=True):
            time, error = arrays[f"time {name}, {way}"], arrays[f"error {name}, {way}"]
            stop = int(np.nan_to_num(updates_until(error, arrays["tolerance"]), nan=len(error)))
            some = np.unique(np.linspace(0, stop - 1, 400).astype(int))
            axes.semilogy(time[some], error[some], style, color=colour, label=f"{name}, {way}", linewidth=1)
    axes.set_ylim(arrays["tolerance"] / 2, 3e3 * arrays["start"])  # room for the legend
    axes.set_xlabel("virtual time (jobs of one worker)")
    axes.set_ylabel("error")


def draw_speed_up(axes: Any, arrays: Arrays) -> None:
    """The speed-up of a team over one worker."""
    for kind, colour, pair in zip(("equal", "stragglers"), COLOURS, arrays["speed-up"], strict=False):
        for way, style, values in zip(WAYS, ("s--", "o-"), pair, strict=True):
            axes.loglog(arrays["team_sizes"], values, style, color=colour, markersize=3, label=f"{kind}, {way}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.set_xlabel("workers (mean staleness: one less)")
    axes.set_ylabel("speed-up over one worker")


if __name__ == "__main__":
    figure.start(main, Args, __doc__)
