"""How many times faster W workers reach a score than one, and why: time per update, and updates to the score.

    python experiments/speedup.py
    python experiments/speedup.py --methods a3c --envs Catch-bsuite
    python experiments/speedup.py --threads      # real seconds, on as many cores as there are

Table 2 of Mnih et al. (2016) in virtual time: a job takes an exponential service time of mean 1, an update none. As
there, a worker has one environment. Its speed-up is the product of two factors that only a controlled experiment can
tell apart: updates come W times as often, and then more or fewer of them are needed than one worker needs.

Scores are those of the greedy policy of the newest parameters: after every update one more environment is stepped with
it, which changes nothing in the run. So neither a worker's exploration nor the length of its episodes counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import asyncjax as aj
import figure
from asyncjax.commandline import factories
from asyncjax.environment import Environment
from asyncjax.plotting.panels import COLOURS, COLUMN, draw_speedup, new_figure, powers_of_two
from asyncjax.rollout import Rollout, init_rollout, unroll
from asyncjax.sweeps.lanes import keys_of
from asyncjax.sweeps.store import Store
from figure import ACTION_VALUES, Arrays, small_network


class Task(NamedTuple):
    """An environment, and when it counts as learned.

    Attributes:
      target: mean return per episode of `window` greedy episodes in a row.
      window: more where rewards are noisy, so that chance alone does not reach the target.
      params: of the environment, where they differ from its defaults.
    """

    target: float
    window: int = 20
    params: Mapping[str, Any] = MappingProxyType({})


TASKS = {
    "CartPole-v1": Task(150.0),
    "Catch-bsuite": Task(0.5),
    "DeepSea-bsuite": Task(0.8, params={"size": 5}),  # a random policy finds the treasure once in 32 episodes
    "UmbrellaChain-bsuite": Task(0.6, window=200),  # ten steps; nine of them pay 1 or -1 by chance
    "Acrobot-v1": Task(-150.0),  # this and the next one are learned by A3C alone in so few steps
    "FourRooms-misc": Task(0.9, params={"max_steps_in_episode": 100}),  # a random walk has left the first room by then
}
# Mnih et al. (2016), Table 2: mean over seven Atari games, for 1, 2, 4, 8 and 16 threads.
PAPER = {
    "one_step_q": (1.0, 3.0, 6.3, 13.3, 24.1),
    "one_step_sarsa": (1.0, 2.8, 5.9, 13.1, 22.1),
    "n_step_q": (1.0, 2.7, 5.9, 10.7, 17.2),
    "a3c": (1.0, 2.1, 3.7, 6.9, 12.5),
}
PAPER_WORKERS = (1, 2, 4, 8, 16)


@dataclasses.dataclass(frozen=True)
class Args(figure.Common):
    """What to run."""

    methods: tuple[str, ...] = ("one_step_q", "one_step_sarsa", "n_step_q", "a3c")
    """Methods."""
    envs: tuple[str, ...] = ("CartPole-v1", "Catch-bsuite", "DeepSea-bsuite", "UmbrellaChain-bsuite")
    """Those of TASKS."""
    workers: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of workers; the first is what the others are compared with."""
    steps: int = 50_000
    """Environment steps of all workers; a run without the score by then counts as slower than all that have it."""
    learning_rate: float = 1e-3
    """Of Adam, for all methods."""
    unroll_length: int = 5
    """Environment steps per update."""
    threads: bool = False
    """Host threads and their real seconds instead of virtual time."""


def main(args: Args) -> Arrays:
    """The figure, its data and its numbers."""
    figure.check(args, methods=factories(), envs=TASKS)
    small = {"seeds": 2, "hidden": 8, "methods": ("one_step_q", "a3c"), "envs": ("Catch-bsuite",), "steps": 2000}
    name = "speedup-threads" if args.threads else "speedup"
    return figure.command(name, args, {**small, "workers": (1, 4)}, run, plot, report)


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def run(args: Args) -> Arrays:
    """Updates and time to the score.

    Returns:
      `methods`, `envs`, `workers`; `updates` and `time`, Float[M, E, W, S], infinite where the score was not reached;
      `limit`, Int[], the updates that a run had.
    """
    updates, times = on_threads(args) if args.threads else in_virtual_time(args)
    names: Arrays = {name: np.array(getattr(args, name)) for name in ("methods", "envs", "workers")}
    limit = np.array(args.steps // args.unroll_length)
    return {**names, "updates": updates, "time": times, "limit": limit, "threads": np.array(args.threads)}


def in_virtual_time(args: Args) -> tuple[np.ndarray, np.ndarray]:
    """Updates and virtual time to the score, Float[M, E, W, S] each: all teams and seeds of a task in one program."""
    num_updates = args.steps // args.unroll_length

    def schedule(team: int, key: jax.Array) -> aj.Schedule:
        return aj.schedules.from_service_times(aj.service.exponential(), num_updates, team, key)

    def summarize(result: aj.Result, env: str, time: jax.Array) -> dict[str, jax.Array]:
        reached = first_reach(result, TASKS[env])
        at = jnp.clip(reached - 1, 0, num_updates - 1).astype(jnp.int32)
        return {"reached": reached, "seconds": jnp.where(jnp.isfinite(reached), time[at], jnp.inf)}

    swept = aj.sweep(
        lambda name, env: make(args, name, env),
        schedule,
        aj.grid(name=args.methods, env=args.envs, team=args.workers),
        key=figure.key(),
        seeds=args.seeds,
        num_workers=max(args.workers),  # so that all teams share one program; idle workers do nothing
        summarize=summarize,
        directory=args.keep,
    )
    shape = (len(args.methods), len(args.envs), len(args.workers), args.seeds)
    return swept["reached"].reshape(shape).astype(float), swept["seconds"].reshape(shape).astype(float)


def on_threads(args: Args) -> tuple[np.ndarray, np.ndarray]:
    """Updates and seconds to the score, Float[M, E, W, S] each: one run after the other."""
    settings, store = aj.grid(name=args.methods, env=args.envs, team=args.workers), Store(args.keep, figure.key())
    for setting in settings:
        todo = [seed for seed in range(args.seeds) if (setting, seed) not in store]
        method = make(args, setting["name"], setting["env"])
        run = partial(aj.run_threads, method, num_workers=setting["team"], num_threads=setting["team"])
        if todo:
            run(figure.key(), num_updates=20)  # compiles
        for seed in todo:
            result, schedule = run(keys_of(figure.key(), seed).run, num_updates=args.steps // args.unroll_length)
            reached = float(first_reach(result, TASKS[setting["env"]]))
            seconds = committed(schedule)[int(reached) - 1] if np.isfinite(reached) else np.inf
            store.add([(setting, seed)], {"updates": np.array([reached]), "seconds": np.array([seconds])})
    table = store.table(settings, range(args.seeds))
    shape = (len(args.methods), len(args.envs), len(args.workers), args.seeds)
    return table["updates"].reshape(shape), table["seconds"].reshape(shape)


def committed(schedule: aj.Schedule) -> np.ndarray:
    """Float[T], the times of the updates."""
    assert schedule.time is not None
    return np.asarray(schedule.time)


@cache
def make_env(name: str) -> Environment:
    """The environment of a task."""
    return aj.make_env(name, **TASKS[name].params)


def make(args: Args, name: str, env_name: str) -> aj.Method:
    """The paper's setting: one environment per worker; and an environment beside them in which the policy is judged."""
    env = make_env(env_name)
    exploring = {"epsilon_frames": args.steps // 10, "target_period": 500} if name in ACTION_VALUES else {}
    method = getattr(aj, name)(
        env,
        optimizer=optax.adam(args.learning_rate),
        num_envs=1,
        unroll_length=args.unroll_length,
        network=small_network(name, env, args.hidden),
        **exploring,
    )
    return judged(method, env, args.unroll_length)


class Judged(NamedTuple):
    """A method's shared state, and the environment in which its greedy policy acts."""

    learner: Any
    rollout: Rollout


def judged(method: aj.Method, env: Environment, length: int) -> aj.Method:
    """Steps one environment greedily with the newest parameters after every update.

    Adds the metrics `greedy_episodes` and `greedy_return`: how many of its episodes ended, and their returns' sum.
    """
    policy = method.policy
    assert policy is not None

    def init(key: jax.Array, num_workers: int) -> tuple[Judged, Any]:
        learner, local = method.init(key, num_workers)
        rollout = init_rollout(env, jax.random.fold_in(key, num_workers), 1, policy.initial_carry())
        return Judged(learner, rollout), local

    def apply(shared: Judged, messages: Any, stale: aj.Stale) -> tuple[Judged, dict[str, jax.Array]]:
        learner, metrics = method.apply(shared.learner, messages, stale)
        view = method.view(learner)

        def act(carry: Any, observation: Any, noise: Any) -> tuple[Any, Any, tuple]:
            action, carry = policy.act(view, carry, observation, None)
            return carry, action, ()

        rollout, _, ended = unroll(env, act, shared.rollout, length, initial_carry=policy.initial_carry())
        judgement = {"greedy_episodes": ended["episodes"], "greedy_return": ended["return_sum"]}
        return Judged(learner, rollout), {**metrics, **judgement}

    return method._replace(init=init, apply=apply, view=lambda shared: method.view(shared.learner))


def first_reach(result: aj.Result, task: Task) -> jax.Array:
    """The updates after which the greedy policy first had learned the task, infinite where it never had; Float[]."""
    episodes, returns = (jnp.asarray(result.metrics[f"greedy_{name}"]) for name in ("episodes", "return"))
    count, total = jnp.cumsum(episodes), jnp.cumsum(returns)
    before = jnp.searchsorted(count, count - task.window, side="right") - 1  # the last update before the window
    mean = (total - total[before]) / jnp.maximum(count - count[before], 1.0)
    enough = (before >= 0) & (mean >= task.target)
    return jnp.where(enough.any(), jnp.argmax(enough).astype(jnp.float32) + 1, jnp.inf)


# ---------------------------------------------------------------------------------------------------------------------
# Numbers and picture


class SpeedUp(NamedTuple):
    """Ratios of medians over seeds with their 95 % bootstrap intervals, Float[3, W] each: middle, low, high.

    Attributes:
      total: the speed-up.
      time_per_update: how many times more often updates come.
      updates: how many times fewer of them are needed.
      at_least: these are lower bounds, since half of the runs of the first team did not reach the score in time.
    """

    total: np.ndarray
    time_per_update: np.ndarray
    updates: np.ndarray
    at_least: bool


def speed_ups(updates: np.ndarray, times: np.ndarray, limit: float, resamples: int = 2000) -> SpeedUp:
    """The speed-up over the first row and its two factors, of Float[W, S].

    Medians, as runs that have not reached the score are infinite. Where half of the runs have not, the ratio is NaN;
    but where that is so of the first row its median is at least the `limit` of updates and, in jobs of mean 1, of time.
    """
    seeds = updates.shape[1]
    drawn = np.random.default_rng(0).integers(0, seeds, (resamples, seeds))

    def ratio(values: np.ndarray) -> np.ndarray:
        medians = np.concatenate([np.median(values, 1)[:, None], np.median(values[:, drawn], 2)], 1)
        first, each = (np.where(np.isfinite(x), x, np.nan) for x in (np.minimum(medians[:1], limit), medians))
        return first / each

    def ends(ratios: np.ndarray) -> np.ndarray:
        # A resample in which half of the runs fail has no ratio; of few such ones the interval can do without.
        known = np.isfinite(ratios).mean(1) > 0.9
        low, high = np.nanpercentile(np.where(known[:, None], ratios, 0.0), (2.5, 97.5), 1)
        return np.where(known, [ratios[:, 0], low, high], [ratios[:, 0], *2 * [np.full(len(known), np.nan)]])

    total, fewer = ratio(times), ratio(updates)
    return SpeedUp(ends(total), ends(total / fewer), ends(fewer), bool(np.isinf(np.median(updates[0]))))


def report(arrays: Arrays) -> str:
    """Speed-ups beside the paper's, their two factors, and how many runs did not reach the score."""
    rows, failed = [], np.isinf(arrays["updates"]).sum(-1)
    for m, method in enumerate(arrays["methods"]):
        for e, env in enumerate(arrays["envs"]):
            result = of_task(arrays, m, e)
            least = ", at least" if result.at_least else ""
            named = {
                f"speed-up{least}": result.total,
                "by time": result.time_per_update,
                f"by data{least}": result.updates,
            }
            rows += [
                [method, env, name, *(f"{x:.2f} [{low:.2f}, {high:.2f}]" for x, low, high in values.T)]
                for name, values in named.items()
            ]
            once = np.median(arrays["updates"][m, e, 0])
            rows.append([method, env, f"not reached; median of one: {once:.0f} updates", *failed[m, e]])
        if not arrays["threads"] and method in PAPER:
            known = dict(zip(PAPER_WORKERS, PAPER[str(method)], strict=True))
            rows.append([method, "seven Atari games", "the paper", *(known.get(w, "") for w in arrays["workers"])])
    return figure.table(["method", "task", "", *(f"{w} workers" for w in arrays["workers"])], rows)


def of_task(arrays: Arrays, method: int, env: int) -> SpeedUp:
    """The speed-up of one method on one task; seconds of threads have no known limit."""
    limit = np.inf if arrays["threads"] else float(arrays["limit"])
    return speed_ups(arrays["updates"][method, env], arrays["time"][method, env], limit)


def plot(arrays: Arrays) -> Any:
    """A panel per task, speed-up against workers, triangles being lower bounds; and one for the paper's numbers."""
    workers, envs = arrays["workers"], list(arrays["envs"])
    panels = [*envs, "Mnih et al. (2016), Atari"]
    columns = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    picture, grid = new_figure(rows, columns, size=(columns * COLUMN[0], rows * COLUMN[1]))
    flat = np.ravel(grid)
    for axes in flat[len(panels) :]:
        axes.axis("off")
    for e, (axes, title) in enumerate(zip(flat, panels, strict=False)):
        axes.plot(workers, workers, ":", color=COLOURS[6], linewidth=1, label="ideal")
        for m, (method, colour) in enumerate(zip(arrays["methods"], COLOURS, strict=False)):
            if title in envs:
                beside = workers * 1.03 ** (m - (len(arrays["methods"]) - 1) / 2)  # or intervals would hide each other
                draw_measured(axes, beside, of_task(arrays, m, e), colour, str(method))
            elif method in PAPER:
                draw_speedup(axes, np.array(PAPER_WORKERS), np.array(PAPER[str(method)]), colour, str(method), "s--")
        powers_of_two(axes)
        axes.set_title(title, fontsize=8)
        axes.set_xlabel("threads" if arrays["threads"] and title in envs else "workers")
        axes.set_ylabel("speed-up over one")
    spare = flat[-1] if len(flat) > len(panels) else flat[0]
    spare.legend(*flat[0].get_legend_handles_labels(), frameon=False, fontsize=6 if spare is flat[0] else 8)
    return picture


def draw_measured(axes: Any, workers: np.ndarray, speed_up: SpeedUp, colour: str, label: str) -> None:
    """Points with intervals; of lower bounds, triangles without."""
    middle, low, high = speed_up.total
    axes.plot(
        workers, middle, "^:" if speed_up.at_least else "o-", color=colour, label=label, markersize=4, linewidth=1
    )
    if not speed_up.at_least:
        axes.vlines(workers, low, high, color=colour, linewidth=0.8)


if __name__ == "__main__":
    figure.start(main, Args, __doc__)
