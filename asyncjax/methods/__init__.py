"""The methods, one file each. Those whose first parameter is `env` are commands of experiments/train.py."""

from asyncjax.methods.a3c import a3c
from asyncjax.methods.gradient import gradient_method
from asyncjax.methods.policy_iteration import policy_iteration
from asyncjax.methods.rtdp import rtdp
from asyncjax.methods.sgd import sgd
from asyncjax.methods.tabular import tabular_q, tabular_sarsa
from asyncjax.methods.value_iteration import value_iteration

__all__ = [
    "a3c",
    "gradient_method",
    "policy_iteration",
    "rtdp",
    "sgd",
    "tabular_q",
    "tabular_sarsa",
    "value_iteration",
]
