"""Fidelity: a service-time model fitted to a recorded run, and tests of whether emulating with it gives the same."""

from asyncjax.fidelity.compare import Comparison, compare, distance
from asyncjax.fidelity.families import Family, Fit, choose, fits
from asyncjax.fidelity.recorded import commit_times, fit, fit_commit, fit_restart, restart_times, service_times

__all__ = [
    "Comparison",
    "Family",
    "Fit",
    "choose",
    "commit_times",
    "compare",
    "distance",
    "fit",
    "fit_commit",
    "fit_restart",
    "fits",
    "restart_times",
    "service_times",
]
