"""How much memory a function takes, roughly, by what it computes; and how much there is."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.extend

from asyncjax.traced import inner_jaxprs


def peak_bytes(jaxpr: Any) -> int:
    """The most that lives at once, inputs included, if every operation wrote its result before its operands go.

    Fusion makes it less, copies in and out of loops make it more.
    """
    last_use = {id(v): i for i, equation in enumerate(jaxpr.eqns) for v in equation.invars}
    live = peak = sum(_bytes(v) for v in [*jaxpr.invars, *jaxpr.constvars])
    kept = {id(v) for v in [*jaxpr.invars, *jaxpr.constvars, *jaxpr.outvars]}
    for i, equation in enumerate(jaxpr.eqns):
        inside = (peak_bytes(sub) - sum(_bytes(v) for v in sub.invars) for sub in inner_jaxprs(equation))
        inner = max(inside, default=0)
        made = sum(_bytes(v) for v in equation.outvars)
        peak = max(peak, live + max(made, inner))
        unused = sum(_bytes(v) for v in equation.outvars if id(v) not in last_use and id(v) not in kept)
        over = {id(v): _bytes(v) for v in equation.invars if last_use[id(v)] == i and id(v) not in kept}
        live += made - unused - sum(over.values())
    return peak


def available_bytes(device: Any) -> int:
    """What is free on a device now; of a CPU the free memory of the machine."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"  # macOS lacks the first
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _bytes(variable: Any) -> int:
    aval = variable.aval
    if isinstance(variable, jax.extend.core.Literal) or not hasattr(aval, "shape"):
        return 0
    return aval.size * getattr(aval.dtype, "itemsize", 4)
