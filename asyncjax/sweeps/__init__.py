"""Many settings x seeds in one compiled program: what runs them, what is kept of each run, and the table of it."""

from asyncjax.sweeps import summaries
from asyncjax.sweeps.core import grid, sweep
from asyncjax.sweeps.table import Table

__all__ = ["Table", "grid", "summaries", "sweep"]
