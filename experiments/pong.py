"""IMPALA learns Atari's Pong on host threads, with a network that two cores can train.

    python experiments/pong.py --minutes 60
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python experiments/pong.py --num-workers 8 --learning-rate 3e-4

EnvPool's emulators take most of the time, so that the network may cost little: two convolutions on images of 42 x 42
pixels. The return of a random policy is -20.3, a perfect game is 21. Ends at --total-steps or after --minutes,
whichever comes first; everything until then is recorded, and the learning curve is drawn.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
import tyro

import asyncjax as aj
from asyncjax import runs
from asyncjax.environment import Discrete
from asyncjax.networks import ActorCritic, layer, patches
from asyncjax.progress import Progress
from train import exit_code, last_return, prepare_jax


@dataclasses.dataclass(frozen=True)
class Args:
    """What to run, and for how long."""

    env: str = "envpool:Pong-v5"
    """One of EnvPool's Atari games."""
    num_workers: int = 4
    """Asynchronous workers, each with environments of its own."""
    num_envs: int = 8
    """Environments of each worker."""
    unroll_length: int = 20
    """Steps per environment and message."""
    learning_rate: float = 5e-4
    """Of Adam."""
    entropy_cost: float = 0.01
    """Weight of the entropy bonus."""
    discount: float = 0.99
    """Of future rewards per step, of four frames."""
    image: int = 42
    """Pixels of each side."""
    total_steps: int = 10_000_000
    """Environment steps of all workers."""
    minutes: float = 60.0
    """After which the run ends in any case."""
    seed: int = 0
    """Of everything that is random."""
    run_dir: Path = Path("runs/pong")
    """Where the run is recorded; must not exist."""


class SmallCNN(nn.Module):
    """Two convolutions and a linear layer, .45 million multiplications for an image of 42 x 42.

    Most of Pong's image never changes. Without its mean, and with what moved between the frames beside it, the ball is
    seen much sooner.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Float[H, W, C] -> Float[128]."""
        x = jax.numpy.concatenate([x[..., -1:] - x.mean(), x[..., 1:] - x[..., :-1]], axis=-1) * 4
        x = layer(patches(x, 8, 4), 16, False, nn.relu)
        x = layer(patches(x, 4, 2), 32, False, nn.relu)
        return layer(x.reshape(-1), 128, False, nn.relu)


class TimeIsUpError(Exception):
    """The run has lasted as long as it may."""


def main(args: Args) -> None:
    """Trains, records, and draws the curve of the returns."""
    prepare_jax(compilation_cache=True)
    env = aj.make_env(args.env, img_height=args.image, img_width=args.image)
    assert isinstance(env.action_space, Discrete)
    method = aj.impala(
        env,
        network=ActorCritic(env.action_space.num_values, SmallCNN()),
        optimizer=optax.adam(args.learning_rate),
        num_envs=args.num_envs,
        unroll_length=args.unroll_length,
        discount=args.discount,
        entropy_cost=args.entropy_cost,
        anneal_steps=args.total_steps,
    )
    per_update = args.num_envs * args.unroll_length
    num_updates = -(-args.total_steps // per_update)
    progress = Progress(num_updates * per_update, 0)
    end = time.monotonic() + 60 * args.minutes

    def on_row(row: runs.Row) -> None:
        progress(row)
        if time.monotonic() > end:
            raise TimeIsUpError

    config = {name: str(x) if isinstance(x, Path) else x for name, x in dataclasses.asdict(args).items()}
    recorder = aj.Recorder(args.run_dir, config, steps_per_update=per_update, on_row=on_row)
    with recorder, progress:
        try:
            aj.run_threads(
                method,
                jax.random.key(args.seed),
                num_workers=args.num_workers,
                num_updates=num_updates,
                callback=recorder,
                chunk_size=128,
            )
        except TimeIsUpError:
            print(f"Stopped after {args.minutes:g} minutes.")
    report(args.run_dir)


def report(run_dir: Path) -> None:
    """The returns of episodes, in twenty parts of the run, and the pictures."""
    recorded = runs.load(run_dir)
    metrics = recorded.metrics
    for rows in np.array_split(np.arange(len(metrics["update"])), 20):
        episodes = metrics["episodes"][rows]
        if episodes.sum():
            mean = np.nansum(metrics["return"][rows] * episodes) / episodes.sum()
            steps = metrics["env_steps"][rows[-1]]
            print(f"{steps:>12,.0f} steps: return {mean:6.2f} of {episodes.sum():.0f} episodes")
    print(f"last tenth: {last_return(metrics):.2f}; {np.median(metrics['steps_per_second']):,.0f} steps/s (median)")
    for picture in aj.plotting.save_all(recorded).values():
        print(picture)


if __name__ == "__main__":
    arguments = tyro.cli(Args, description=__doc__)
    sys.exit(exit_code(lambda: main(arguments), lambda error: f" Recorded: {arguments.run_dir}"))
