"""The methods, one file each. Those whose first parameter is `env` are commands of experiments/train.py."""

from asyncjax.methods.a3c import a3c
from asyncjax.methods.gradient import gradient_method
from asyncjax.methods.sgd import sgd

__all__ = ["a3c", "gradient_method", "sgd"]
