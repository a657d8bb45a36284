"""Solvers of Markov decision processes, each of which certifies its answer."""

from asyncjax.solvers.solution import Progress, Solution
from asyncjax.solvers.solve import solve

__all__ = ["Progress", "Solution", "solve"]
