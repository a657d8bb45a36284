"""The random bits of JAX's default keys, without the loop that XLA for CPUs makes of them.

On CPUs JAX lowers Threefry's twenty rounds to a loop, to compile faster. In the middle of a rollout that is hundreds of
operations a step, each of a few numbers: unrolled, which is one fused operation, an update of 16 environments and 10
steps takes 0.85 of the time. The bits are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo as hlo
from jax.extend.random import define_prng_impl
from jax.interpreters import batching, mlir

from asyncjax.checks import default_generator, is_key
from asyncjax.method import PyTree

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA

Pair = tuple[jax.Array, jax.Array]


def is_default() -> bool:
    """Whether Threefry is JAX's default generator: under `vmap` it draws what it draws alone, which others do not."""
    return default_generator() == "threefry2x32"


def unrolled(keys: PyTree) -> PyTree:
    """The same keys, whose bits are computed without a loop; as they are on accelerators, or of another kind."""
    looped = jax.default_backend() == "cpu" and getattr(jax.config, "jax_threefry_partitionable", True)
    return _of_kind(keys, "threefry2x32", IMPL) if looped else keys


def rolled(keys: PyTree) -> PyTree:
    """The inverse: among these leaves, the keys that came of `unrolled` as JAX's own."""
    return _of_kind(keys, IMPL, "threefry2x32")


def _of_kind(keys: PyTree, old: Any, new: Any) -> PyTree:
    def change(x: Any) -> Any:
        if not is_key(x) or jax.random.key_impl(x) != old:
            return x
        return jax.random.wrap_key_data(jax.random.key_data(x), impl=new)

    return jax.tree.map(change, keys)


def drawn(function: Callable[..., Any], keys: PyTree, *args: Any) -> Any:
    """function(keys, *args), which draws its random numbers without loops and returns keys of the given kind.

    Unless it can not: where one of `keys` meets another one of the given kind, as in `where`.
    """
    quick = unrolled(keys)
    if all(x is y for x, y in zip(jax.tree.leaves(quick), jax.tree.leaves(keys), strict=True)):
        return function(keys, *args)
    try:
        return rolled(function(quick, *args))
    except (TypeError, ValueError):  # of two kinds of keys; another error comes again
        return function(keys, *args)


def _rounds(context: Any, k0: Any, k1: Any, x0: Any, x1: Any) -> list[Any]:
    """Threefry-2x32 with twenty rounds: of keys and counters, UInt32 of one shape, as operations of StableHLO.

    Traced as operations of JAX instead, it takes ten times as long, and every program has some of these.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011).
    """
    del context

    def constant(value: int) -> Any:
        return hlo.constant(ir.DenseElementsAttr.get_splat(x0.type, ir.IntegerAttr.get(x0.type.element_type, value)))

    def rotated(x: Any, left: int) -> Any:
        return hlo.or_(hlo.shift_left(x, constant(left)), hlo.shift_right_logical(x, constant(32 - left)))

    schedule = k0, k1, hlo.xor(hlo.xor(k0, k1), constant(PARITY))
    y0, y1 = hlo.add(x0, schedule[0]), hlo.add(x1, schedule[1])
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            y0 = hlo.add(y0, y1)
            y1 = hlo.xor(y0, rotated(y1, rotation))
        y0 = hlo.add(y0, schedule[(group + 1) % 3])
        y1 = hlo.add(hlo.add(y1, schedule[(group + 2) % 3]), constant(group + 1))
    return [y0, y1]


# A primitive, so that `vmap` handles one operation instead of a hundred: JAX maps it anew in every program.
rounds_p = Primitive("threefry_rounds")
rounds_p.multiple_results = True
rounds_p.def_impl(jax.jit(rounds_p.bind))
rounds_p.def_abstract_eval(lambda *args: args[2:])
mlir.register_lowering(rounds_p, _rounds)


def _map_rounds(args: Sequence[jax.Array], axes: Sequence[int | None]) -> tuple[Sequence[jax.Array], list[int]]:
    """The rounds under `vmap`, over these axes."""
    size = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)
    mapped = [batching.bdim_at_front(x, axis, size) for x, axis in zip(args, axes, strict=True)]
    return rounds_p.bind(*mapped), [0, 0]


batching.primitive_batchers[rounds_p] = _map_rounds


def threefry(key: jax.Array, x0: jax.Array, x1: jax.Array) -> Pair:
    """The random bits of a key, UInt32[2], and counters of one shape."""
    k0, k1 = (lax.broadcast(key[i], x0.shape) for i in range(2))
    return rounds_p.bind(k0, k1, x0, x1)


def _counted(key: jax.Array, shape: tuple[int, ...]) -> Pair:
    """The bits of the numbers 0, 1, ... in this shape."""
    size = math.prod(shape)
    if size >= 1 << 32:
        raise ValueError(f"shape={shape}: one call draws fewer than 2^32 random numbers; make several.")
    low = jax.lax.iota(jnp.uint32, size).reshape(shape)
    return threefry(key, jnp.zeros_like(low), low)


def _seed(seed: jax.Array) -> jax.Array:
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.stack(_counted(key, shape), axis=-1)


def _fold_in(key: jax.Array, data: int | jax.Array) -> jax.Array:
    low = jnp.asarray(data, jnp.uint32)
    return jnp.stack(threefry(key, jnp.zeros_like(low), low))


def _random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    high, low = _counted(key, shape)
    if bit_width == 64:
        return (high.astype(jnp.uint64) << jnp.uint64(32)) | low.astype(jnp.uint64)
    return (high ^ low).astype(f"uint{bit_width}")


IMPL = define_prng_impl(
    key_shape=(2,), seed=_seed, split=_split, random_bits=_random_bits, fold_in=_fold_in, name="unrolled", tag="unr"
)
