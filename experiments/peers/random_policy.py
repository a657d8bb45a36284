"""gymnax alone under a random policy: nothing that steps these environments can be faster.

python experiments/peers/random_policy.py --env CartPole-v1 --num-envs 1024
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import gymnax
import jax


def main() -> None:
    """Steps twice, the first time to compile, and prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--num-envs", type=int, default=1024)
    parser.add_argument("--total-steps", type=int, default=2_000_000)
    args = parser.parse_args()
    env, params = gymnax.make(args.env)
    length = max(1, args.total_steps // args.num_envs)

    def one(key: jax.Array) -> jax.Array:
        def step(state: Any, key: jax.Array) -> Any:
            choose, move = jax.random.split(key)
            action = env.action_space(params).sample(choose)
            _, state, reward, *_ = env.step(move, state, action, params)
            return state, reward

        begin, rest = jax.random.split(key)
        _, state = env.reset(begin, params)
        state = jax.tree.map(lambda x: jax.numpy.asarray(x, jax.numpy.result_type(x)), state)  # no weak types in a scan
        _, rewards = jax.lax.scan(step, state, jax.random.split(rest, length))
        return rewards.sum()

    program = jax.jit(jax.vmap(one))
    keys, seconds = jax.random.split(jax.random.key(0), args.num_envs), []
    for _ in range(2):
        start = time.perf_counter()
        jax.block_until_ready(program(keys))
        seconds.append(time.perf_counter() - start)
    row = {"steps_per_second": length * args.num_envs / seconds[1], "compile_seconds": seconds[0] - seconds[1]}
    print(json.dumps(row | {"evaluation": None}))


if __name__ == "__main__":
    main()
