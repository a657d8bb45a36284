"""The numeric options of methods: which numbers they may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from asyncjax.checks import check_number, check_static
from asyncjax.traced import concrete

Number = float | jax.Array
Count = int | jax.Array


class Range(NamedTuple):
    """The numbers that an option may be, in words and as a condition."""

    words: str
    holds: Callable[[np.ndarray], np.ndarray]


FRACTION = Range("a number between 0 and 1", lambda x: (x >= 0) & (x <= 1))
NOT_NEGATIVE = Range("a number of at least 0", lambda x: x >= 0)
POSITIVE = Range("a number above 0", lambda x: x > 0)
COUNT = Range("at least 1", lambda x: x >= 1)
PERIOD = Range("a whole number of at least 1, below 2^31", lambda x: (x >= 1) & (x < 2**31) & (np.floor(x) == x))
WHOLE = Range("a whole number of at least 1", lambda x: (x.dtype.kind in "iu") & (x >= 1))

RANGES: dict[str, Range] = {
    **dict.fromkeys(("num_envs", "unroll_length", "epochs", "num_minibatches"), WHOLE),
    "target_period": PERIOD,
    "epsilon_frames": COUNT,
    **dict.fromkeys(("discount", "gae_lambda", "trace_lambda", "epsilon", "final_epsilon"), FRACTION),
    **dict.fromkeys(("entropy_cost", "value_cost", "max_staleness", "reward_noise", "step_size"), NOT_NEGATIVE),
    **dict.fromkeys(("clip", "value_clip", "clip_rho", "clip_c", "clip_pg_rho"), NOT_NEGATIVE),
    **dict.fromkeys(("max_grad_norm", "anneal_steps", "anneal_messages", "reward_clip"), POSITIVE),
}
# None means something for these: never, or without it.
OPTIONAL = {"target_period", "final_epsilon", "value_clip", "reward_clip", "clip_pg_rho", "step_size"}
OPTIONAL |= {"num_minibatches", "max_staleness", "max_grad_norm", "anneal_steps", "anneal_messages"}


def check_options(**options: Any) -> None:
    """Raises ValueError for an option, by name, outside its range; what a transformation hides passes.

    What is no number raises TypeError, and None where it means nothing. Whole numbers are sizes of arrays: an array of
    JAX's raises TypeError.
    """
    for name, value in options.items():
        if value is None and name in OPTIONAL:
            continue
        check_number(**{name: value})
        if RANGES[name] is WHOLE:
            check_static(**{name: value})
        known = concrete(value)
        if known is not None and not (known.dtype.kind in "biuf" and np.all(RANGES[name].holds(known))):
            raise ValueError(f"{name}={value!r}: give {RANGES[name].words}.")
