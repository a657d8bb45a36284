"""A sweep's batches as tasks on a Ray cluster."""

from __future__ import annotations

import functools
import os
from collections.abc import Generator, Iterable
from typing import Any

import numpy as np

from asyncjax.cluster import connected
from asyncjax.engines.processes import adopt, options_here, put
from asyncjax.method import Metrics
from asyncjax.sweeps.recipe import Batch, Recipe


def on_ray(
    arguments: tuple[Any, ...], batches: Iterable[Batch], address: str | None, batch_cpus: float
) -> Generator[tuple[Batch, Metrics]]:
    """Each batch with its values, in the order in which they are done.

    A machine that is lost takes its batches along; Ray runs them again elsewhere.

    Args:
      arguments: of the sweep's `Recipe`; pickled once.
      batches: its batches.
      address: of a Ray cluster, see `run_ray`.
      batch_cpus: CPUs that a batch takes.

    Raises:
      ValueError: no machine of the cluster has so many CPUs.
      TypeError: an argument that can not be pickled.
      Whatever a batch raises, with the traceback from there; the other batches are then cancelled.
    """
    todo = list(batches)
    if not todo:
        return
    with connected(address, os.cpu_count() or 1) as ray:
        most = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
        if batch_cpus > most:
            raise ValueError(
                f"batch_cpus={batch_cpus:g}: a batch runs on one machine, and the largest of the cluster has {most:g}"
                " CPUs. Ask for that many at most, or add a larger machine first."
            )
        task = ray.remote(_values).options(num_cpus=batch_cpus)
        names = ("method", "schedule", "summarize", "settings")
        recipe = [put(ray, arguments, **dict(zip(names, arguments, strict=False)))]
        options = options_here()
        waiting = {task.remote(options, recipe, batch): batch for batch in todo}
        try:
            while waiting:
                (done,), _ = ray.wait(list(waiting), num_returns=1)
                values = {name: np.array(x) for name, x in ray.get(done).items()}  # out of memory that ends with Ray
                yield waiting.pop(done), values
        finally:
            for one in waiting:
                ray.cancel(one, force=True)


def _values(options: tuple[Any, ...], recipe: list[Any], batch: Batch) -> Metrics:
    """A task: the values of a batch. The recipe is in a list because Ray would open it on the way otherwise."""
    adopt(*options)
    ((_, values),) = _recipe(recipe[0]).run([batch])
    return values


@functools.lru_cache(maxsize=1)
def _recipe(reference: Any) -> Recipe:
    """The recipe, with the programs that it has compiled for this process's earlier batches."""
    import ray

    return Recipe(*ray.get(reference))
