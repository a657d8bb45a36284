"""Compiled programs of methods, kept so that a second run of one compiles nothing."""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar, TypeVarTuple

import jax

Ts = TypeVarTuple("Ts")
T = TypeVar("T")
MAX_PROGRAMS = 128
# What of JAX's configuration decides what is compiled, and may be another one at the next run of a method.
SETTINGS = ("jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable", "jax_default_matmul_precision")
# Linux kills a process that has too many memory maps. The programs of one method take up to 2,000.
MORE_MAPS = 5_000


class program_cache(Generic[*Ts, T]):
    """A cache of what a function compiles for its arguments: those used last stay, as far as there is room for them."""

    def __init__(self, compiled: Callable[[*Ts], T]) -> None:
        self.compiled, self.__doc__ = compiled, compiled.__doc__
        self.programs: OrderedDict[tuple[tuple[*Ts], tuple[Any, ...]], T] = OrderedDict()
        self.lock = threading.RLock()
        self.maps_left = 0  # when programs were let go last

    def __call__(self, *args: *Ts) -> T:
        """What was compiled for these arguments, now or before."""
        key = args, tuple(getattr(jax.config, name, None) for name in SETTINGS)
        with self.lock:
            if key in self.programs:
                self.programs.move_to_end(key)
            else:
                # Where others have most of the maps, that makes little room: it is tried again after as many more.
                room = min(max(most_maps(), self.maps_left + MORE_MAPS), most_maps(0.9))
                if len(self.programs) >= MAX_PROGRAMS or num_maps() > room:
                    self.forget((len(self.programs) + 1) // 2)
                    self.maps_left = num_maps()
                self.programs[key] = self.compiled(*args)
            return self.programs[key]

    def forget(self, count: int | None = None) -> None:
        """Lets the programs go that were not used for longest; of these, all or so many.

        They are in cycles with their jitted functions, and Python, which sees few and small objects, may not look for
        those for long.
        """
        with self.lock:
            for _ in range(len(self.programs) if count is None else count):
                self.programs.popitem(last=False)
        gc.collect()


def most_maps(part: float = 0.65) -> int:
    """This part of the memory maps that the system allows a process."""
    try:
        return int(part * int(Path("/proc/sys/vm/max_map_count").read_text()))
    except OSError:
        return int(part * 65_530)


def num_maps() -> int:
    """The memory maps of this process, where the system tells."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return 0
