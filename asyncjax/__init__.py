"""asyncjax: a JAX research framework in which asynchrony is a controlled variable."""

from asyncjax import corrections, mdp, plotting, returns, runs, schedules, service
from asyncjax.discipline import Discipline
from asyncjax.emulate import emulate
from asyncjax.environment import Environment, make_env
from asyncjax.evaluate import evaluate
from asyncjax.mdp import MDP
from asyncjax.method import Chunk, Method, Policy, Result, Stale, State
from asyncjax.methods import (
    a3c,
    gradient_method,
    policy_iteration,
    rtdp,
    sgd,
    tabular_q,
    tabular_sarsa,
    value_iteration,
)
from asyncjax.recorder import Recorder
from asyncjax.replay import replay
from asyncjax.schedules import Schedule
from asyncjax.threads import run_threads

__version__ = "0.1.0"

__all__ = [
    "MDP",
    "Chunk",
    "Discipline",
    "Environment",
    "Method",
    "Policy",
    "Recorder",
    "Result",
    "Schedule",
    "Stale",
    "State",
    "a3c",
    "corrections",
    "emulate",
    "evaluate",
    "gradient_method",
    "make_env",
    "mdp",
    "plotting",
    "policy_iteration",
    "replay",
    "returns",
    "rtdp",
    "run_threads",
    "runs",
    "schedules",
    "service",
    "sgd",
    "tabular_q",
    "tabular_sarsa",
    "value_iteration",
]
