"""A3C of asyncjax on gymnax's CartPole-v1, emulated or on threads, with the numbers that the other scripts here print.

python experiments/peers/asyncjax_a3c.py --engine emulate --num-workers 16 --num-envs 64 --unroll-length 20
"""

from __future__ import annotations

import argparse
import json
import time

import jax

jax.config.update("jax_cpu_enable_async_dispatch", False)  # what train.py sets too

import asyncjax as aj  # noqa: E402


def main() -> None:
    """Trains once to compile, once to measure, and prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["emulate", "threads"], default="emulate")
    parser.add_argument("--num-workers", type=int, default=16)
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--unroll-length", type=int, default=20)
    parser.add_argument("--total-steps", type=int, default=500_000)
    args = parser.parse_args()
    per_update = args.num_envs * args.unroll_length
    updates = -(-args.total_steps // per_update)
    env = aj.make_env("CartPole-v1")
    method = aj.a3c(env, num_envs=args.num_envs, unroll_length=args.unroll_length)
    schedule, key, seconds = aj.schedules.round_robin(updates, args.num_workers), jax.random.key(0), []
    for _ in range(2):
        start = time.perf_counter()
        if args.engine == "emulate":
            result = aj.emulate(method, schedule, key)
        else:
            result, _ = aj.run_threads(method, key, num_workers=args.num_workers, num_updates=updates)
        jax.block_until_ready(result.shared)
        seconds.append(time.perf_counter() - start)
    evaluation = float(aj.evaluate(method, env, result.shared, jax.random.key(1), num_episodes=20).mean())
    speed = updates * per_update / seconds[1]
    print(json.dumps({"steps_per_second": speed, "compile_seconds": seconds[0] - seconds[1], "evaluation": evaluation}))


if __name__ == "__main__":
    main()
