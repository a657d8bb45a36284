"""asyncjax: a JAX research framework in which asynchrony is a controlled variable."""

from asyncjax import (
    animation,
    corrections,
    environment,
    faults,
    fidelity,
    loggers,
    mdp,
    networks,
    plotting,
    returns,
    rollout,
    runs,
    schedules,
    service,
    statistics,
    surrogates,
    telemetry,
)
from asyncjax.cluster import run_ray
from asyncjax.data_parallel import data_parallel
from asyncjax.discipline import Discipline
from asyncjax.emulate import emulate
from asyncjax.environment import Environment, make_env
from asyncjax.evaluate import evaluate
from asyncjax.mdp import MDP
from asyncjax.method import Chunk, Method, Policy, Result, Stale, State
from asyncjax.methods import (
    a3c,
    elastic_averaging,
    gradient_method,
    impala,
    local_updates,
    n_step_q,
    one_step_q,
    one_step_sarsa,
    policy_gradient,
    policy_iteration,
    ppo,
    pqn,
    rtdp,
    sgd,
    tabular_q,
    tabular_sarsa,
    value_iteration,
)
from asyncjax.recorder import Recorder
from asyncjax.replay import replay
from asyncjax.schedules import Schedule
from asyncjax.solvers import solve
from asyncjax.sweeps import Table, grid, summaries, sweep
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
    "Table",
    "a3c",
    "animation",
    "corrections",
    "data_parallel",
    "elastic_averaging",
    "emulate",
    "environment",
    "evaluate",
    "faults",
    "fidelity",
    "gradient_method",
    "grid",
    "impala",
    "local_updates",
    "loggers",
    "make_env",
    "mdp",
    "n_step_q",
    "networks",
    "one_step_q",
    "one_step_sarsa",
    "plotting",
    "policy_gradient",
    "policy_iteration",
    "ppo",
    "pqn",
    "replay",
    "returns",
    "rollout",
    "rtdp",
    "run_ray",
    "run_threads",
    "runs",
    "schedules",
    "service",
    "sgd",
    "solve",
    "statistics",
    "summaries",
    "surrogates",
    "sweep",
    "tabular_q",
    "tabular_sarsa",
    "telemetry",
    "value_iteration",
]
