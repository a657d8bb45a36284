"""Options that teach a method an environment where its defaults do not, found by the runs of experiments/README.md."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any


def falling(learning_rate: float, steps: float) -> dict[str, Any]:
    """Adam, whose step size falls to 0 over so many environment steps."""
    return {"optimizer": "adam", "learning_rate": learning_rate, "anneal_steps": steps}


IMAGES = {
    "group_size": 8,
    "num_envs": 8,
    "unroll_length": 128,
    "epochs": 4,
    "num_minibatches": 8,
    **falling(2.5e-3, 1e6),
}
# In these games returns go on rising for five million steps.
LONG_GAMES = {**IMAGES, "epochs": 2, "anneal_steps": 5e6}
# (method, pattern of environment names, the first that fits) -> the options that differ from the method's defaults.
TUNED: dict[tuple[str, str], dict[str, Any]] = {
    ("a3c", "CartPole-v1"): {"anneal_steps": 5e5},  # with a constant step size returns dip more often
    ("a3c", "MemoryChain-bsuite"): {"core": "gru", "unroll_length": 20},
    ("impala", "MemoryChain-bsuite"): {"core": "gru"},
    ("ppo", "MemoryChain-bsuite"): {"core": "gru"},
    ("policy_gradient", "Catch-bsuite"): {"unroll_length": 9, "num_envs": 16},
    # With the default of 2,000 steps the greedy policies of some seeds are bad wherever the run ends.
    ("one_step_q", "CartPole-v1"): {"target_period": 500},
    ("one_step_sarsa", "CartPole-v1"): {"target_period": 500},
    ("n_step_q", "Acrobot-v1"): {"double": True, "dueling": True, **falling(2e-3, 2e6)},
    ("a3c", "Pendulum-v1"): {"discount": 0.9},
    ("ppo", "Pendulum-v1"): {"discount": 0.9, "num_minibatches": 8, **falling(2e-3, 1e6)},
    ("ppo", "Asterix-MinAtar"): LONG_GAMES,
    ("ppo", "SpaceInvaders-MinAtar"): LONG_GAMES,
    ("ppo", "*-MinAtar"): IMAGES,
    ("a3c", "Asterix-MinAtar"): falling(3e-3, 5e6),
    ("a3c", "SpaceInvaders-MinAtar"): falling(3e-3, 5e6),
    ("a3c", "*-MinAtar"): falling(3e-3, 1e6),
    ("impala", "*-MinAtar"): falling(4e-3, 1e6),
}


def tuned(method: str, env: str) -> dict[str, Any]:
    """The options of a method that are recommended for an environment; empty where its defaults are.

    The scripts begin with them: what the user gives explicitly comes before.

    Args:
      method: its name, such as "ppo".
      env: the environment's name.

    Example:
      >>> from asyncjax.tuned import tuned
      >>> tuned("a3c", "Pendulum-v1"), tuned("a3c", "Acrobot-v1")
      ({'discount': 0.9}, {})
    """
    matching = (options for (name, pattern), options in TUNED.items() if name == method and fnmatchcase(env, pattern))
    return next(matching, {})
