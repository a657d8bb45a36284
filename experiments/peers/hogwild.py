"""A3C in PyTorch with processes that write to shared parameters without locks (Hogwild), on gymnasium's CartPole-v1.

python experiments/peers/hogwild.py --processes 2 --total-steps 60000
"""

from __future__ import annotations

import argparse
import json
import time

import gymnasium
import torch
import torch.multiprocessing as mp
from torch import nn


class ActorCritic(nn.Module):
    """Two hidden layers of 64 for the policy and two for the value, as asyncjax's default for such observations."""

    def __init__(self) -> None:
        super().__init__()

        def tower(outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))

        self.policy, self.value = tower(2), tower(1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and values."""
        return self.policy(x), self.value(x).squeeze(-1)


class SharedRMSProp(torch.optim.Optimizer):
    """RMSProp whose second moments all processes share; epsilon inside the root, as in the paper."""

    def __init__(self, params, learning_rate: float, decay: float = 0.99, epsilon: float = 0.01) -> None:
        super().__init__(params, {"learning_rate": learning_rate, "decay": decay, "epsilon": epsilon})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["square"] = torch.zeros_like(p).share_memory_()

    @torch.no_grad()
    def apply_gradients(self, gradients) -> None:
        """One step in place: what other processes write meanwhile is neither locked out nor lost as a whole."""
        for group in self.param_groups:
            for p, gradient in zip(group["params"], gradients, strict=True):
                square = self.state[p]["square"]
                square.mul_(group["decay"]).addcmul_(gradient, gradient, value=1 - group["decay"])
                p.addcdiv_(gradient, (square + group["epsilon"]).sqrt(), value=-group["learning_rate"])


def segment_loss(model: ActorCritic, rows: list, bootstrap: float, discount: float, entropy_cost: float):
    """The loss of one segment, summed over its steps."""
    observations = torch.stack([row[0] for row in rows])
    actions, returns, value = torch.tensor([row[1] for row in rows]), [], bootstrap
    for _, _, reward in reversed(rows):
        value = reward + discount * value
        returns.append(value)
    logits, values = model(observations)
    log_probabilities = torch.log_softmax(logits, -1)
    advantage = torch.tensor(returns[::-1]) - values
    chosen = log_probabilities.gather(-1, actions[:, None])[:, 0]
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
    return (-chosen * advantage.detach() + 0.5 * advantage**2 - entropy_cost * entropy).sum()


def work(rank: int, seed: int, shared: ActorCritic, optimizer: SharedRMSProp, counter, total: int, barrier) -> None:
    """One process: copy the parameters, act for a segment, add its gradient to the shared parameters."""
    torch.set_num_threads(1)
    torch.manual_seed(1000 * seed + rank)
    env, model = gymnasium.make("CartPole-v1"), ActorCritic()
    observation, _ = env.reset(seed=1000 * seed + rank)
    barrier.wait()
    while counter.value < total:
        model.load_state_dict(shared.state_dict())
        rows, ended, terminated = [], False, False
        while len(rows) < 20 and not ended:
            x = torch.from_numpy(observation)
            with torch.no_grad():
                action = int(torch.distributions.Categorical(logits=model(x)[0]).sample())
            observation, reward, terminated, truncated, _ = env.step(action)
            rows.append((x, action, float(reward)))
            ended = terminated or truncated
        with torch.no_grad():
            bootstrap = 0.0 if terminated else float(model(torch.from_numpy(observation))[1])
        if ended:
            observation, _ = env.reset()
        gradients = torch.autograd.grad(segment_loss(model, rows, bootstrap, 0.99, 0.01), list(model.parameters()))
        norm = torch.sqrt(sum((g**2).sum() for g in gradients))
        optimizer.apply_gradients([g * min(1.0, 40.0 / float(norm)) for g in gradients])
        with counter.get_lock():
            counter.value += len(rows)


def evaluate(model: ActorCritic, episodes: int) -> float:
    """The mean return of the greedy policy."""
    env, total = gymnasium.make("CartPole-v1"), 0.0
    for episode in range(episodes):
        observation, _ = env.reset(seed=10**6 + episode)
        ended = False
        while not ended:
            with torch.no_grad():
                action = int(model(torch.from_numpy(observation))[0].argmax())
            observation, reward, terminated, truncated, _ = env.step(action)
            total, ended = total + float(reward), terminated or truncated
    return total / episodes


def main() -> None:
    """Trains, evaluates and prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--total-steps", type=int, default=60_000)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--eval-episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    shared = ActorCritic().share_memory()
    optimizer = SharedRMSProp(list(shared.parameters()), args.learning_rate)
    counter, barrier = mp.Value("l", 0), mp.Barrier(args.processes + 1)
    rest = (args.seed, shared, optimizer, counter, args.total_steps, barrier)
    workers = [mp.Process(target=work, args=(rank, *rest)) for rank in range(args.processes)]
    for worker in workers:
        worker.start()
    barrier.wait()
    start = time.perf_counter()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - start
    evaluation = evaluate(shared, args.eval_episodes) if args.eval_episodes else None
    print(json.dumps({"steps_per_second": counter.value / seconds, "compile_seconds": 0.0, "evaluation": evaluation}))


if __name__ == "__main__":
    main()
