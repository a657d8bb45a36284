"""Schedules: asynchrony as data, where it comes from, and how it is kept."""

from asyncjax.schedules.generators import barrier, fixed_delay, from_service_times, round_robin, sequential
from asyncjax.schedules.realizable import is_realizable, successive
from asyncjax.schedules.schedule import Schedule, check, check_axes, concatenate, cut, extend
from asyncjax.schedules.storage import leaf_names, load, save

__all__ = [
    "Schedule",
    "barrier",
    "check",
    "check_axes",
    "concatenate",
    "cut",
    "extend",
    "fixed_delay",
    "from_service_times",
    "is_realizable",
    "leaf_names",
    "load",
    "round_robin",
    "save",
    "sequential",
    "successive",
]
