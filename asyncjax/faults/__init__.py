"""Faults and adversaries: schedules edited or made to hurt. From a file: `schedules.load`, edit, run."""

from asyncjax.faults.adversaries import laggard, maximal_delay, sawtooth
from asyncjax.faults.edits import bursts, drop, pause, permute, slow, storms, stretch, tear

__all__ = [
    "bursts",
    "drop",
    "laggard",
    "maximal_delay",
    "pause",
    "permute",
    "sawtooth",
    "slow",
    "storms",
    "stretch",
    "tear",
]
