"""How long a function takes, roughly, by what it computes: for choosing how many messages to compute at once."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from asyncjax.traced import inner_jaxprs

# Seconds for an operation, a number written, a multiply-add, and a byte of a message that waits in a slot, into and out
# of which it is copied leaf by leaf. For CPU fitted to A3C's work with MLPs at 1 to 64 lanes on two cores; for
# accelerators rough, but there an operation's fixed cost rules, whatever the exact numbers.
SECONDS = {"cpu": (30e-9, 0.18e-9, 0.01e-9, 0.55e-9), "gpu": (1e-6, 1e-12, 1e-13, 2e-12)}


class Cost(NamedTuple):
    """What a function does, loops counted as often as they run.

    Attributes:
      num_ops: operations, each with a fixed cost however small its operands are.
      num_elements: numbers written by them.
      num_products: multiply-adds of matrix products and convolutions.
    """

    num_ops: float = 0.0
    num_elements: float = 0.0
    num_products: float = 0.0

    def __add__(self, other: Any) -> Cost:
        return Cost(*(x + y for x, y in zip(self, other, strict=True)))

    def seconds(self, backend: str) -> tuple[float, float]:
        """(what it costs however small the operands, what it costs by their size)."""
        per_op, per_element, per_product, _ = SECONDS.get(backend, SECONDS["gpu"])
        return self.num_ops * per_op, self.num_elements * per_element + self.num_products * per_product

    def times(self, factor: float) -> Cost:
        """The cost of doing it this often."""
        return Cost(*(factor * x for x in self))


def waiting(num_bytes: int, backend: str) -> float:
    """Seconds that it costs when a message of this size is computed early and waits for its update."""
    return num_bytes * SECONDS.get(backend, SECONDS["gpu"])[3]


def cost_of(jaxpr: Any) -> Cost:
    """The cost of what `jax.make_jaxpr` traced."""
    total = Cost()
    for equation in jaxpr.eqns:
        inner = [cost_of(sub) for sub in inner_jaxprs(equation)]
        if inner:
            # A branch is taken, a loop of unknown length runs at least once.
            total += max(inner).times(equation.params.get("length", 1))
            continue
        size = sum(math.prod(out.aval.shape) for out in equation.outvars if hasattr(out.aval, "shape"))
        total += Cost(1.0, size, _products(equation))
    return total


def _products(equation: Any) -> float:
    name = equation.primitive.name
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return math.prod(equation.outvars[0].aval.shape) * math.prod(left[d] for d in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / features
    return 0.0
