"""asyncjax: asynchrony as a controlled variable."""

from asyncjax import schedules, service
from asyncjax.emulate import emulate
from asyncjax.method import Chunk, Method, Policy, Result, Stale, State
from asyncjax.methods.sgd import sgd
from asyncjax.schedules import Schedule

__version__ = "0.1.0"
