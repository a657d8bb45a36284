"""Packing: a pytree as one flat vector per dtype, and one for each large leaf.

The cost of a jitted call, a gather or a scatter grows with the number of leaves. The engines therefore pass
a method's pieces around as a few flat vectors, and unpack them inside the compiled functions. A large leaf, such as
the images of a trajectory, keeps a vector of its own: putting it beside others would cost a copy, and taking it out
another.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asyncjax.checks import check_kept, check_outputs, is_key
from asyncjax.engines.common import initial_like
from asyncjax.method import Method, Metrics, PyTree, Stale

Packed = dict[str, jax.Array]  # {dtype: vector}, and {dtype:position: vector} for large leaves
LARGE = 1 << 18  # bytes


class Leaf(NamedTuple):
    """A leaf as it lies in its vector; `key_impl` names the kind of typed random keys."""

    shape: tuple[int, ...]
    dtype: str
    key_impl: str | None = None

    def num_bytes(self) -> int:
        """Of its part of the vector."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def struct(self) -> jax.ShapeDtypeStruct:
        """The shape and dtype of the leaf itself."""
        raw = jax.ShapeDtypeStruct(self.shape, self.dtype)
        return jax.eval_shape(lambda x: jax.random.wrap_key_data(x, impl=self.key_impl), raw) if self.key_impl else raw


class Packer(NamedTuple):
    """Packs trees of one structure into {key: vector} and back, bit for bit.

    A batch of trees packs into a batch of vectors under `vmap`, or by `pack(tree, batch_dims=1)`.
    """

    treedef: Any
    leaves: tuple[Leaf, ...]

    @property
    def keys(self) -> list[str]:
        """For each leaf the name of its vector."""
        return [f"{x.dtype}:{i}" if x.num_bytes() >= LARGE else x.dtype for i, x in enumerate(self.leaves)]

    @classmethod
    def of(cls, example: PyTree) -> Packer:
        """The packer for trees like this one: arrays, or `jax.ShapeDtypeStruct`s."""
        leaves, treedef = jax.tree.flatten(example)
        return cls(treedef, tuple(_leaf(x) for x in leaves))

    def pack(self, tree: PyTree, batch_dims: int = 0) -> Packed:
        """A tree as {key: vector}, in the order of its leaves; `batch_dims` leading axes are kept."""
        groups: dict[str, list[jax.Array]] = {}
        for leaf, like, key in zip(self.treedef.flatten_up_to(tree), self.leaves, self.keys, strict=True):
            leaf = jax.random.key_data(leaf) if like.key_impl else jnp.asarray(leaf)
            groups.setdefault(key, []).append(leaf.reshape(*leaf.shape[:batch_dims], -1))
        return {key: parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1) for key, parts in groups.items()}

    def like(self, *batch: int) -> PyTree:
        """The shapes and dtypes of the trees, with these leading axes."""
        structs = [leaf.struct() for leaf in self.leaves]
        return self.treedef.unflatten([jax.ShapeDtypeStruct((*batch, *x.shape), x.dtype) for x in structs])

    def unpack(self, packed: Packed) -> PyTree:
        """The tree; leading axes of the vectors become leading axes of the leaves."""
        offsets = dict.fromkeys(packed, 0)
        leaves = []
        for like, key in zip(self.leaves, self.keys, strict=True):
            vector, start, size = packed[key], offsets[key], math.prod(like.shape)
            offsets[key] += size
            leaf = vector[..., start : start + size].reshape(*vector.shape[:-1], *like.shape)  # numpy stays numpy
            leaves.append(jax.random.wrap_key_data(leaf, impl=like.key_impl) if like.key_impl else leaf)
        return self.treedef.unflatten(leaves)


class PackedMethod:
    """A method's functions, and the packers of what passes between them.

    Args:
      method: the method.
      num_workers: W.
      parts: for every leaf of the view, the part that it belongs to: all 0 where the view is read at
        once, numbers counting up where it is read leaf by leaf.
      initial: (Shared, Local) inside a transformation; outside, what `init` gives.
    """

    def __init__(
        self, method: Method, num_workers: int, parts: tuple[int, ...], initial: tuple[PyTree, PyTree] | None = None
    ) -> None:
        self.method = method
        # Jitted, the functions are traced once and every later use takes the same jaxpr.
        self.work, self.apply, self.view = jax.jit(method.work), jax.jit(method.apply), jax.jit(method.view)
        self.num_workers, self.parts, self.num_parts = num_workers, parts, max(parts, default=0) + 1
        shared, local = initial_like(method, num_workers) if initial is None else initial
        one_worker = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), local)
        self.view_like = jax.eval_shape(self.view, shared)
        worked = jax.eval_shape(self.work, self.view_like, one_worker)
        message, kept, self.work_metrics = check_outputs("work", worked, "message", "local", "metrics")
        check_kept("work", "private state", one_worker, kept)
        self.shared, self.local, self.message = Packer.of(shared), Packer.of(one_worker), Packer.of(message)
        self.view_parts = [Packer.of(leaves) for leaves in self._split(self.view_like)]

    def apply_metrics(self, group_size: int) -> Metrics:
        """The shapes and dtypes of what `apply` reports."""
        likes = self.apply_like(group_size)
        kept, metrics = check_outputs("apply", jax.eval_shape(self.apply, *likes), "shared", "metrics")
        check_kept("apply", "shared state", likes[0], kept)
        merge_metrics(self.work_metrics, metrics)  # raises where the two share a name
        return metrics

    def no_metrics(self, group_size: int) -> Metrics:
        """The metrics of no updates."""
        of_work, of_apply = zeros(self.work_metrics, 0, group_size), zeros(self.apply_metrics(group_size), 0)
        return jax.tree.map(np.asarray, merge_metrics(of_work, of_apply))

    def apply_like(self, group_size: int) -> tuple[PyTree, PyTree, Stale]:
        """The shapes and dtypes of what `apply` takes, for groups of G messages."""
        view = jax.tree.map(lambda x: jax.ShapeDtypeStruct((group_size, *x.shape), x.dtype), self.view_like)
        stale = Stale(view, jax.ShapeDtypeStruct((group_size,), jnp.int32))
        return self.shared.like(), self.message.like(group_size), stale

    def _split(self, view: PyTree) -> list[list[Any]]:
        leaves = list(zip(jax.tree.leaves(view), self.parts, strict=True))
        return [[leaf for leaf, p in leaves if p == part] for part in range(self.num_parts)]

    def pack_view(self, view: PyTree) -> list[Packed]:
        """A view as one packed tree for each part."""
        return [packer.pack(leaves) for packer, leaves in zip(self.view_parts, self._split(view), strict=True)]

    def unpack_view(self, packed: list[Packed]) -> PyTree:
        """The inverse of `pack_view`; leading axes are kept."""
        streams = [iter(packer.unpack(part)) for packer, part in zip(self.view_parts, packed, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(self.view_like), [next(streams[p]) for p in self.parts])


def _leaf(x: jax.Array | jax.ShapeDtypeStruct) -> Leaf:
    if not is_key(x):
        return Leaf(tuple(x.shape), str(x.dtype))
    raw = jax.eval_shape(jax.random.key_data, x)
    impls: list[str] = []
    jax.eval_shape(lambda key: impls.append(str(jax.random.key_impl(key))), x)
    return Leaf(tuple(raw.shape), str(raw.dtype), impls[0])


def zeros(like: PyTree, *batch: int) -> PyTree:
    """Zeros of these shapes and dtypes, with these leading axes."""
    return jax.tree.map(lambda x: jnp.zeros((*batch, *x.shape), x.dtype), like)


def all_finite(tree: PyTree) -> jax.Array:
    """Bool[]: whether every floating-point number in the tree is finite."""
    # 0 x is 0 where x is finite, and else NaN: one sum tells of all, and does not overflow.
    sums = [jnp.sum(x * jnp.zeros((), x.dtype)) for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack([s == 0 for s in sums]).all() if sums else jnp.bool_(True)


def merge_metrics(work: Metrics, apply: Metrics) -> Metrics:
    """One dictionary of both functions' metrics."""
    twice = sorted(set(work) & set(apply))
    if twice:
        raise ValueError(f"Both work and apply report the metrics {twice}; rename them in one of the two.")
    return {**work, **apply}
