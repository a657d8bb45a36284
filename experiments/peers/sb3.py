"""A2C of Stable-Baselines3 on gymnasium's CartPole-v1.

python experiments/peers/sb3.py --num-envs 64 --total-steps 200000
"""

from __future__ import annotations

import argparse
import json
import time

from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy


def main() -> None:
    """Trains with the package's defaults, evaluates and prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--total-steps", type=int, default=200_000)
    parser.add_argument("--eval-episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = A2C("MlpPolicy", make_vec_env("CartPole-v1", args.num_envs, seed=args.seed), seed=args.seed, device="cpu")
    start = time.perf_counter()
    model.learn(args.total_steps)
    seconds = time.perf_counter() - start
    evaluation = None
    if args.eval_episodes:
        test_env = make_vec_env("CartPole-v1", 10, seed=10**6)
        evaluation = float(evaluate_policy(model, test_env, args.eval_episodes)[0])  # type: ignore[arg-type]
    speed = model.num_timesteps / seconds
    print(json.dumps({"steps_per_second": speed, "compile_seconds": 0.0, "evaluation": evaluation}))


if __name__ == "__main__":
    main()
