"""PPO of rejax on gymnax's CartPole-v1, compiled as a whole.

python experiments/peers/rejax_ppo.py --total-steps 131072
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import gymnax
import jax
import numpy as np
from gymnax.wrappers.compat import LegacyStepAPIWrapper
from rejax import PPO


class Legacy(LegacyStepAPIWrapper):
    """The five-value interface that rejax 0.1 expects; rejax copies its configuration, so it has to be copyable."""

    def __deepcopy__(self, memo: Any) -> Legacy:
        return self


def main() -> None:
    """Trains once to compile, once to measure, and prints one line of JSON; with --once only the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--total-steps", type=int, default=131_072)
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--num-steps", type=int, default=128)
    parser.add_argument("--once", action="store_true", help="do not run a second time to time it without compiling")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    env, params = gymnax.make("CartPole-v1")
    algorithm = PPO.create(
        env=Legacy(env),
        env_params=params,
        num_envs=args.num_envs,
        num_steps=args.num_steps,
        num_epochs=4,
        num_minibatches=4,
        learning_rate=1e-3,
        max_grad_norm=0.5,
        gamma=0.99,
        gae_lambda=0.95,
        clip_eps=0.2,
        ent_coef=0.0,
        total_timesteps=args.total_steps,
        eval_freq=args.total_steps,
        skip_initial_evaluation=True,
    )
    train = jax.jit(PPO.train)
    start = time.perf_counter()
    _, (_, returns) = jax.block_until_ready(train(algorithm, jax.random.key(args.seed)))
    first = seconds = time.perf_counter() - start
    if not args.once:
        start = time.perf_counter()
        jax.block_until_ready(train(algorithm, jax.random.key(args.seed)))
        seconds = time.perf_counter() - start
    evaluation = float(np.mean(np.asarray(returns)[-1]))
    row = {"steps_per_second": args.total_steps / seconds, "compile_seconds": first - seconds, "evaluation": evaluation}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
