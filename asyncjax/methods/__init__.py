"""The methods, one file each. Those whose first parameter is `env` are commands of experiments/train.py."""

from asyncjax.methods.a3c import a3c
from asyncjax.methods.elastic_averaging import elastic_averaging
from asyncjax.methods.gradient import gradient_method
from asyncjax.methods.impala import impala
from asyncjax.methods.local_updates import local_updates
from asyncjax.methods.n_step_q import n_step_q
from asyncjax.methods.one_step_q import one_step_q
from asyncjax.methods.one_step_sarsa import one_step_sarsa
from asyncjax.methods.policy_gradient import policy_gradient
from asyncjax.methods.policy_iteration import policy_iteration
from asyncjax.methods.ppo import ppo
from asyncjax.methods.pqn import pqn
from asyncjax.methods.rtdp import rtdp
from asyncjax.methods.sgd import sgd
from asyncjax.methods.tabular import tabular_q, tabular_sarsa
from asyncjax.methods.value_iteration import value_iteration

__all__ = [
    "a3c",
    "elastic_averaging",
    "gradient_method",
    "impala",
    "local_updates",
    "n_step_q",
    "one_step_q",
    "one_step_sarsa",
    "policy_gradient",
    "policy_iteration",
    "ppo",
    "pqn",
    "rtdp",
    "sgd",
    "tabular_q",
    "tabular_sarsa",
    "value_iteration",
]
