"""Packing: a pytree as one flat vector per dtype.

The cost of a jitted call, a gather or a scatter grows with the number of leaves. The engines therefore pass
a method's pieces around as a few flat vectors, and unpack them inside the compiled functions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from asyncjax.method import Metrics, PyTree


class Leaf(NamedTuple):
    """A leaf as it lies in its vector; `key_impl` names the kind of typed random keys."""

    shape: tuple[int, ...]
    dtype: str
    key_impl: str | None = None

    def struct(self) -> jax.ShapeDtypeStruct:
        """The shape and dtype of the leaf itself."""
        raw = jax.ShapeDtypeStruct(self.shape, self.dtype)
        return jax.eval_shape(lambda x: jax.random.wrap_key_data(x, impl=self.key_impl), raw) if self.key_impl else raw


class Packer(NamedTuple):
    """Packs trees of one structure into {dtype: vector} and back, bit for bit.

    A batch of trees packs into a batch of vectors under `vmap`, or by `pack(tree, batch_dims=1)`.
    """

    treedef: jax.tree_util.PyTreeDef
    leaves: tuple[Leaf, ...]

    @classmethod
    def of(cls, example: PyTree) -> Packer:
        """The packer for trees like this one: arrays, or `jax.ShapeDtypeStruct`s."""
        leaves, treedef = jax.tree.flatten(example)
        return cls(treedef, tuple(_leaf(x) for x in leaves))

    def pack(self, tree: PyTree, batch_dims: int = 0) -> dict[str, jax.Array]:
        """A tree as {dtype: vector}, in the order of its leaves; `batch_dims` leading axes are kept."""
        groups: dict[str, list[jax.Array]] = {}
        for leaf, like in zip(self.treedef.flatten_up_to(tree), self.leaves, strict=True):
            leaf = jax.random.key_data(leaf) if like.key_impl else jnp.asarray(leaf)
            groups.setdefault(str(leaf.dtype), []).append(leaf.reshape(*leaf.shape[:batch_dims], -1))
        return {dtype: parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1) for dtype, parts in groups.items()}

    def like(self, *batch: int) -> PyTree:
        """The shapes and dtypes of the trees, with these leading axes."""
        structs = [leaf.struct() for leaf in self.leaves]
        return self.treedef.unflatten([jax.ShapeDtypeStruct((*batch, *x.shape), x.dtype) for x in structs])

    def unpack(self, packed: dict[str, jax.Array]) -> PyTree:
        """The tree; leading axes of the vectors become leading axes of the leaves."""
        offsets = dict.fromkeys(packed, 0)
        leaves = []
        for like in self.leaves:
            vector, start, size = packed[like.dtype], offsets[like.dtype], math.prod(like.shape)
            offsets[like.dtype] += size
            leaf = jax.lax.slice_in_dim(vector, start, start + size, axis=-1).reshape(*vector.shape[:-1], *like.shape)
            leaves.append(jax.random.wrap_key_data(leaf, impl=like.key_impl) if like.key_impl else leaf)
        return self.treedef.unflatten(leaves)


def _leaf(x: jax.Array | jax.ShapeDtypeStruct) -> Leaf:
    if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return Leaf(tuple(x.shape), str(x.dtype))
    raw = jax.eval_shape(jax.random.key_data, x)
    impls: list[str] = []
    jax.eval_shape(lambda key: impls.append(str(jax.random.key_impl(key))), x)
    return Leaf(tuple(raw.shape), str(raw.dtype), impls[0])


def all_finite(tree: PyTree) -> jax.Array:
    """Bool[]: whether every floating-point number in the tree is finite."""
    # A sum is finite only if all terms are, and it overflows only where parameters are of no use anyway.
    sums = [jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(s) for s in sums]).all() if sums else jnp.bool_(True)


def merge_metrics(work: Metrics, apply: Metrics) -> Metrics:
    """One dictionary of both functions' metrics."""
    twice = sorted(set(work) & set(apply))
    if twice:
        raise ValueError(f"Both work and apply report the metrics {twice}; rename them in one of the two.")
    return {**work, **apply}
