"""Environments on the host: a learner's environment steps per second beside those of the environments alone.

    python experiments/benchmark_host.py
    python experiments/benchmark_host.py --env-params img_height=42 img_width=42

EnvPool's Pong under a random policy, and IMPALA on it with the smallest network there is use for, in turn. The ratio is
what stepping through a compiled policy, keeping the frames and learning leave of the emulator's speed. Images of 36 MB
a message are mapped anew by the C library each time, unless it is told to keep its memory by setting before
GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8589934592.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

import asyncjax as aj
import figure
from asyncjax import commandline
from asyncjax.environment import Discrete
from asyncjax.networks import ActorCritic
from train import prepare_jax


@dataclasses.dataclass(frozen=True)
class Args:
    """What to time."""

    env: str = "Pong-v5"
    """One of EnvPool's Atari environments."""
    env_params: tuple[str, ...] = ()
    """EnvPool's options, as name=value."""
    num_workers: int = 1
    """Pools of one thread each under the random policy; workers of the learner."""
    num_envs: int = 64
    """Environments of each."""
    unroll_length: int = 20
    """Steps per environment and message."""
    stride: int = 4
    """The network sees every so many-th pixel of each row and column."""
    hidden: int = 32
    """Units of its only layer."""
    messages: int = 8
    """Messages of each worker in a turn that count; two come before them."""
    repeats: int = 5
    """Turns."""


class EveryFewPixels(nn.Module):
    """The smallest network: a linear layer on a part of the pixels."""

    stride: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Float[H, W, C] -> Float[hidden]."""
        middle = slice(self.stride // 2, None, self.stride)
        return nn.relu(nn.Dense(self.hidden)(x[middle, middle].ravel()))


def main(args: Args) -> float:
    """Prints the speeds of each turn and their medians; returns the ratio of these."""
    figure.check(args)
    prepare_jax(compilation_cache=True)
    env = commandline.make_env_from(f"envpool:{args.env}", args.env_params)
    assert isinstance(env.action_space, Discrete)
    network = ActorCritic(env.action_space.num_values, EveryFewPixels(args.stride, args.hidden))
    method = aj.impala(env, network=network, num_envs=args.num_envs, unroll_length=args.unroll_length)
    ways = {"random policy": lambda: random_policy(args), "impala": lambda: learner(args, method)}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.repeats + 1):
        for name, way in ways.items():
            speed = way()
            if turn:  # the first turn compiles, and begins the emulators
                speeds[name].append(speed)
                print(f"turn {turn}: {name} {speed:,.0f} steps/s", flush=True)
    medians = {name: float(np.median(x)) for name, x in speeds.items()}
    ratio = medians["impala"] / medians["random policy"]
    spread = {name: f"{min(x):,.0f} to {max(x):,.0f}" for name, x in speeds.items()}
    for name, median in medians.items():
        print(f"{name}: {median:,.0f} environment steps/s ({spread[name]})")
    print(f"ratio {ratio:.2f}")
    return ratio


def random_policy(args: Args) -> float:
    """Environment steps per second of the pools alone, one to a thread."""
    import envpool  # pyright: ignore[reportMissingImports] - an extra

    params = commandline.values_of(args.env_params)
    pools: list[Any] = [
        envpool.make_gymnasium(args.env, num_envs=args.num_envs, num_threads=1, seed=seed, **params)
        for seed in range(args.num_workers)
    ]
    steps = args.messages * args.unroll_length

    def play(pool: Any) -> None:
        actions = np.random.default_rng(0).integers(pool.action_space.n, size=(steps, args.num_envs), dtype=np.int32)
        for action in actions:
            pool.step(action)

    for pool in pools:
        pool.reset()
        pool.step(np.zeros(args.num_envs, np.int32))
    start = time.perf_counter()
    together([lambda pool=pool: play(pool) for pool in pools])
    seconds = time.perf_counter() - start
    for pool in pools:
        pool.close()
    return args.num_workers * steps * args.num_envs / seconds


def learner(args: Args, method: aj.Method) -> float:
    """Environment steps per second of `run_threads` after each worker's first two messages."""
    warm = 2 * args.num_workers
    updates = warm + args.messages * args.num_workers
    _, schedule = aj.run_threads(method, jax.random.key(0), num_workers=args.num_workers, num_updates=updates)
    assert schedule.time is not None
    seconds = float(schedule.time[-1] - schedule.time[warm - 1])
    return (updates - warm) * args.unroll_length * args.num_envs / seconds


def together(functions: list[Callable[[], None]]) -> None:
    """Each in a thread of its own."""
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    figure.start(main, Args, __doc__)
