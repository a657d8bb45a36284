"""The messages of a batch divided over devices: each device computes its share of them and is sent the others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from asyncjax.engines.packing import Packer
from asyncjax.method import Array, Device, PyTree

AXIS, EVERYWHERE = "lanes", PartitionSpec()


class Division(NamedTuple):
    """How the A lanes of a batch are divided: in equal shares over D devices.

    All else, the updates too, every device repeats on arrays of its own, as what it computes then need not be sent.

    Attributes:
      devices: D; none stands for the one that JAX chooses, and then nothing is divided, moved or sent.
    """

    devices: tuple[Device, ...] = ()

    @property
    def size(self) -> int:
        """The number of shares."""
        return max(1, len(self.devices))

    def spread(self, program: Callable[..., Any]) -> Callable[..., Any]:
        """The program as every device runs it, on replicated arrays."""
        if not self.devices:
            return program
        on_all = partial(jax.shard_map, mesh=self._mesh, in_specs=EVERYWHERE, out_specs=EVERYWHERE, check_vma=False)

        def everywhere(*args: Any) -> Any:
            filled, whole = _without_empty(args)
            structure: list[Callable[[list[Array]], Any]] = []

            def inside(filled: list[Array]) -> list[Array]:
                results, whole_results = _without_empty(program(*whole(filled)))
                structure.append(whole_results)
                return results

            results = on_all(inside)(filled)
            return structure[-1](results)

        return everywhere

    def to_all(self, tree: PyTree) -> PyTree:
        """A copy for every device."""
        return jax.device_put(tree, NamedSharding(self._mesh, EVERYWHERE)) if self.devices else tree

    def of_first(self, tree: PyTree) -> PyTree:
        """The first device's copy of what all hold, not copied once more: it may meet what was not divided."""
        return jax.tree.map(lambda x: x.addressable_data(0), tree) if self.devices else tree

    def share(self, lanes: Array) -> Array:
        """Inside the program, of [A, ...] this device's [A / D, ...]."""
        if self.size == 1:
            return lanes
        length = lanes.shape[0] // self.size
        return jax.lax.dynamic_slice_in_dim(lanes, jax.lax.axis_index(AXIS) * length, length)

    def gather(self, shares: PyTree) -> PyTree:
        """Inside the program, of all devices' [A / D, ...] the whole [A, ...].

        Packed: the devices wait for each other once, not once for each leaf.
        """
        if self.size == 1:
            return shares
        packer = Packer.of(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shares))
        filled, whole = _without_empty(packer.pack(shares, 1), self.size)
        return packer.unpack(whole([jax.lax.all_gather(x, AXIS, tiled=True) for x in filled]))

    @property
    def _mesh(self) -> Mesh:
        return Mesh(np.asarray(self.devices), (AXIS,))


WHOLE = Division()


def _without_empty(tree: PyTree, times: int = 1) -> tuple[list[Array], Callable[[list[Array]], PyTree]]:
    """The leaves with entries, and what makes the tree of them, or of so many times their rows.

    XLA of jax 0.11 dies of empty arrays that are replicated or gathered.
    """
    leaves, treedef = jax.tree.flatten(tree)
    empty = {i: ((times * x.shape[0], *x.shape[1:]), x.dtype) for i, x in enumerate(leaves) if x.size == 0}

    def whole(filled: list[Array]) -> PyTree:
        rest = iter(filled)
        return treedef.unflatten([jnp.zeros(*empty[i]) if i in empty else next(rest) for i in range(len(leaves))])

    return [x for i, x in enumerate(leaves) if i not in empty], whole
