"""The quadratic laboratory: what delay does to SGD, measured over every closed form that there is.

    python experiments/quadratic.py            # results/quadratic.png, and a table of measured against exact
    python experiments/quadratic.py --quick    # in seconds

All runs are of asyncjax's engines, on f(w) = curvature w^2 / 2; `a` is step size times curvature, tau the staleness.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import asyncjax as aj
from asyncjax import corrections, panels, telemetry


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

    @property
    def delays(self) -> list[int]:
        """Delays of the stability threshold."""
        return [0, 1, 2, 3] if self.quick else [0, 1, 2, 3, 4, 6, 8, 12, 16]


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
    arrays = run(dataclasses.replace(args, updates=600, seeds=500) if args.quick else args)
    print(f"{'':48} {'measured':>10} {'exact':>10} {'error':>9} {'allowed':>9}")
    for row in table(arrays):
        mark = "" if row.error <= row.tolerance else "  <- outside"
        print(f"{row.name:48} {row.measured:10.5f} {row.exact:10.5f} {row.error:9.1e} {row.tolerance:9.0e}{mark}")
    args.results.mkdir(parents=True, exist_ok=True)
    plot(arrays).savefig(args.results / "quadratic.png")
    print(args.results / "quadratic.png")
    return arrays


def run(args: Args) -> dict[str, np.ndarray]:
    """Measures everything; name -> array."""
    parts = [thresholds, momentum_thresholds, angles, rates, variances, random_worker, compensation, gaps, dana]
    return {name: np.asarray(value) for part in parts for name, value in part(args).items()}


# ---------------------------------------------------------------------------------------------------------------------
# Closed forms


def stable_step(delay: Any, angle: Any = 0.0) -> Any:
    """The largest stable a for an eigenvalue of this angle: 2 sin((pi/2 - angle) / (2 delay + 1))."""
    return 2 * np.sin((np.pi / 2 - np.abs(angle)) / (2 * np.asarray(delay) + 1))


def fastest_step(delay: Any) -> Any:
    """The largest a without oscillation, where the rate is delay / (delay + 1)."""
    delay = np.asarray(delay, np.float64)
    return delay**delay / (delay + 1) ** (delay + 1)


def rate(step: Any, delay: int) -> np.ndarray:
    """The modulus of the slowest mode of w_{t+1} = w_t - a w_{t-delay}."""
    return np.array([np.abs(np.roots([1, -1, *[0] * (delay - 1), a] if delay else [1, a - 1])).max() for a in step])


def stationary_variance(step: Any, delay: int) -> Any:
    """The variance of w in units of (step size * noise)^2, for delays 0 and 1."""
    a = np.asarray(step)
    return 1 / (a * (2 - a)) if delay == 0 else (1 + a) / (a * (1 - a) * (2 + a))


def heavy_ball(step: float, momentum: float, num_updates: int) -> np.ndarray:
    """The mean of w with a uniformly random worker: momentum 1 - 1/N, step (1 - mu) a, and a full first step."""
    w = [1.0, 1.0 - step]
    for _ in range(num_updates - 1):
        w.append(w[-1] + momentum * (w[-1] - w[-2]) - (1 - momentum) * step * w[-1])
    return np.array(w)


# ---------------------------------------------------------------------------------------------------------------------
# Measurements


def trajectory(
    optimizer: optax.GradientTransformation,
    schedule: aj.Schedule,
    *,
    loss: Callable[..., jax.Array] = lambda w: 0.5 * jnp.sum(w * w),
    start: Any = 1.0,
    key: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """The parameters after every update, from the metrics of a method that reports them."""
    method = aj.sgd(loss, jnp.asarray(start, jnp.float32), optimizer=optimizer, **options)

    def apply(shared: Any, messages: Any, stale: aj.Stale) -> tuple[Any, Any]:
        shared, metrics = method.apply(shared, messages, stale)
        return shared, {**metrics, "w": shared.params}

    return aj.emulate(method._replace(apply=apply), schedule, jax.random.key(0) if key is None else key).metrics["w"]


def swept(measure: Callable[[Any], jax.Array], steps: np.ndarray) -> np.ndarray:
    """The measure at every step size, in one program."""
    return np.asarray(jax.jit(jax.vmap(measure))(jnp.asarray(steps, jnp.float32)))


def largest_stable(grows: Callable[[jax.Array], jax.Array], rounds: int = 5) -> float:
    """Closes in, 16 steps at once, on the first step size between 0.004 and 4.3 whose run grows."""
    low, high = 0.004, 4.3
    many = jax.jit(jax.vmap(grows))
    for _ in range(rounds):
        steps = np.linspace(low, high, 16)
        first = int(np.argmax(np.asarray(many(jnp.asarray(steps, jnp.float32)))))
        low, high = steps[max(first - 1, 0)], steps[first]
    return float((low + high) / 2)


def grew(w: jax.Array) -> jax.Array:
    """Whether the last quarter of a trajectory reaches further than the one before it, and has not underflowed."""
    size = jnp.linalg.norm(w.reshape(w.shape[0], -1), axis=1)  # what turns slowly still has a length
    quarter = w.shape[0] // 4
    late, early = size[-quarter:].max(), size[-2 * quarter : -quarter].max()
    # What overflowed has grown. (XLA takes ~(late < early) for late >= early, which is not the same for NaN.)
    return ~jnp.isfinite(late) | ((late >= early) & (late >= 1e-20))


def thresholds(args: Args) -> dict[str, Any]:
    """The stability threshold against the delay, plain and corrected by g / (1 + tau)."""

    def measured(delay: int, correction: optax.GradientTransformation) -> float:
        schedule = aj.schedules.fixed_delay(args.updates, delay)
        return largest_stable(lambda a: grew(trajectory(optax.chain(correction, optax.sgd(a)), schedule)))

    scaled = corrections.scale_by_staleness()
    return {
        "delays": args.delays,
        "threshold": [measured(delay, optax.identity()) for delay in args.delays],
        "threshold_scaled": [measured(delay, scaled) for delay in args.delays],
    }


def momentum_thresholds(args: Args) -> dict[str, Any]:
    """The stability threshold of heavy ball against its momentum: 2 (1 + beta) fresh, 1 - beta at delay 1."""
    betas = [0.0, 0.5, 0.9] if args.quick else [0.0, 0.2, 0.4, 0.6, 0.8, 0.9]

    def measured(beta: float, delay: int) -> float:
        schedule = aj.schedules.fixed_delay(args.updates, delay)
        return largest_stable(lambda a: grew(trajectory(optax.sgd(a, beta), schedule)))

    return {"betas": betas, "ball_threshold": [[measured(beta, delay) for beta in betas] for delay in (0, 1)]}


def angles(args: Args) -> dict[str, Any]:
    """The stability threshold of a complex eigenvalue, as temporal differences have them, against its angle."""
    angle = np.linspace(0, 1.4, 3 if args.quick else 8)
    delays = [0, 1, 3]

    def measured(phi: float, delay: int) -> float:
        c, s = np.cos(phi), np.sin(phi)
        turn = jnp.array([[c, -s], [s, c]], jnp.float32)
        schedule = aj.schedules.fixed_delay(args.updates, delay)

        def field(w: jax.Array) -> jax.Array:  # its gradient is turn @ w, which is no gradient of a function
            return jnp.dot(w, jax.lax.stop_gradient(turn @ w))

        return largest_stable(lambda a: grew(trajectory(optax.sgd(a), schedule, loss=field, start=[1.0, 0.5])))

    return {
        "angle": angle,
        "angle_delays": delays,
        "angle_threshold": [[measured(p, d) for p in angle] for d in delays],
    }


def rates(args: Args) -> dict[str, Any]:
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


def variances(args: Args) -> dict[str, Any]:
    """The stationary variance with unit noise on the gradient, against the step, for delays 0 and 1."""
    steps = np.array([0.1, 0.3, 0.5, 0.7, 0.85])
    chains, length = (64, 600) if args.quick else (256, 2000)

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


def random_worker(args: Args) -> dict[str, Any]:
    """The mean trajectory when a uniformly random worker reports next, and the momentum that a regression finds."""
    workers, length, step = [2, 4, 8], 40, 0.5

    def mean(num_workers: int) -> np.ndarray:
        reads = np.stack([random_reads(num_workers, length, seed) for seed in range(args.seeds)])
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


def compensation(args: Args) -> dict[str, Any]:
    """Errors of a stale gradient of -log w at w = 1, with and without DC-ASGD of lambda = 1, against the distance."""
    del args
    distance = np.geomspace(0.02, 0.3, 9)
    now, then = jnp.ones(9), jnp.asarray(1 + distance, jnp.float32)
    stale = jax.grad(lambda w: -jnp.log(w).sum())(then)
    correction = corrections.delay_compensation(1.0)
    fixed, _ = correction.update(stale, correction.init(now), now, staleness=jnp.int32(1), stale_params=then)
    errors = [np.abs(np.asarray(gradient) + 1.0) for gradient in (stale, fixed)]
    return {"distance": distance, "stale_error": errors[0], "compensated_error": errors[1]}


def gaps(args: Args) -> dict[str, Any]:
    """What gap-aware divides the last of 20 constant gradients by, if only that one is stale."""
    del args
    delays, factors = [0, 1, 3, 7, 15], []
    for delay in delays:
        read = np.arange(20, dtype=np.int32)
        read[-1] -= delay
        schedule = aj.Schedule(np.zeros((20, 1), np.int32), read[:, None])
        w = np.asarray(trajectory(optax.sgd(0.125), schedule, loss=jnp.sum, correction=corrections.gap_aware()))
        factors.append(0.125 / (w[-2] - w[-1]))
    return {"gap_delays": delays, "gap": factors}


def dana(args: Args) -> dict[str, Any]:
    """The largest distances of DANA-Zero of one worker from Nesterov, and from DANA-Slim with eight workers."""
    del args
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


# ---------------------------------------------------------------------------------------------------------------------
# Table and picture


def table(arrays: dict[str, np.ndarray]) -> list[Row]:
    """Measured against exact, with the relative error that the measurement's resolution allows."""
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


def plot(arrays: dict[str, np.ndarray]) -> Any:
    """Lines are closed forms, dots are measured."""
    width, height = panels.COLUMN
    figure, axes = panels.new_figure(2, 4, size=(4 * width, 2 * height))
    draw_thresholds(axes[0, 0], arrays)
    draw_family(
        axes[0, 1],
        "momentum",
        "stable a",
        arrays["betas"],
        [
            ("delay 0", arrays["ball_threshold"][0], lambda b: 2 * (1 + b)),
            ("delay 1", arrays["ball_threshold"][1], lambda b: 1 - b),
        ],
    )
    draw_family(
        axes[0, 2],
        "angle of the eigenvalue",
        "stable a",
        arrays["angle"],
        [
            (f"delay {d}", m, lambda x, d=d: stable_step(d, x))
            for d, m in zip(arrays["angle_delays"], arrays["angle_threshold"], strict=True)
        ],
    )
    draw_rates(axes[0, 3], arrays)
    draw_family(
        axes[1, 0],
        "a",
        "variance / (step noise)$^2$",
        arrays["variance_steps"],
        [(f"delay {d}", arrays["variance"][d], lambda a, d=d: stationary_variance(a, d)) for d in (0, 1)],
    )
    draw_random_worker(axes[1, 1], arrays)
    draw_compensation(axes[1, 2], arrays)
    draw_family(
        axes[1, 3],
        "delay",
        "gap-aware divisor",
        arrays["gap_delays"],
        [("constant gradient", arrays["gap"], lambda d: d + 1)],
    )
    return figure


def draw_family(axes: Any, x: str, y: str, xs: np.ndarray, curves: list[tuple[str, np.ndarray, Callable]]) -> None:
    """Closed forms as lines and what was measured as dots, one colour each."""
    fine = np.linspace(np.min(xs), np.max(xs), 200)
    for (label, measured, exact), colour in zip(curves, panels.cycle(len(curves)), strict=True):
        axes.plot(fine, exact(fine), color=colour, linewidth=1)
        axes.plot(xs, measured, "o", color=colour, markersize=3, label=label)
    label_axes(axes, x, y)


def draw_thresholds(axes: Any, arrays: dict[str, np.ndarray]) -> None:
    """The stability threshold against the delay."""
    draw_family(
        axes,
        "delay",
        "stable a",
        arrays["delays"],
        [
            ("SGD", arrays["threshold"], stable_step),
            ("with g / (1 + tau)", arrays["threshold_scaled"], lambda d: stable_step(d) * (1 + d)),
        ],
    )
    axes.set_yscale("log")
    axes.minorticks_off()


def draw_rates(axes: Any, arrays: dict[str, np.ndarray]) -> None:
    """The rate against the step; the crosses are the fastest steps without oscillation."""
    delays = arrays["rate_delays"]
    for i, (delay, colour) in enumerate(zip(delays, panels.cycle(len(delays)), strict=True)):
        fine = np.linspace(0.02, float(stable_step(delay)), 300)
        axes.plot(fine, rate(fine, int(delay)), color=colour, linewidth=1)
        axes.plot(arrays["rate_steps"][i], arrays["rate"][i], "o", color=colour, markersize=3, label=f"delay {delay}")
        axes.plot([fastest_step(delay)], [arrays["fastest_rate"][i]], "x", color=colour, markersize=6)
    label_axes(axes, "a", "factor per update")


def draw_random_worker(axes: Any, arrays: dict[str, np.ndarray]) -> None:
    """The mean path with a uniformly random worker, over heavy ball."""
    workers, paths = arrays["workers"], arrays["mean_path"]
    for n, path, colour in zip(workers, paths, panels.cycle(len(workers)), strict=True):
        exact = heavy_ball(float(arrays["random_step"]), 1 - 1 / n, len(path) - 1)
        axes.plot(exact, color=colour, linewidth=1)
        axes.plot(np.arange(len(path))[::2], path[::2], "o", color=colour, markersize=2, label=f"{n} workers")
    label_axes(axes, "updates", "mean of w")


def draw_compensation(axes: Any, arrays: dict[str, np.ndarray]) -> None:
    """Errors of a stale gradient against the distance, with lines of slopes 1 and 2."""
    distance = arrays["distance"]
    draw_family(
        axes,
        "distance",
        "error of the gradient",
        distance,
        [
            ("stale", arrays["stale_error"], lambda x: x),
            ("DC-ASGD", arrays["compensated_error"], lambda x: x**2),
        ],
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()


def label_axes(axes: Any, x: str, y: str) -> None:
    """Names and legend."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False, fontsize=7)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
