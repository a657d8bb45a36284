"""How many messages to compute in one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from asyncjax.engines.waves import Layout, Planner, distinct_workers


def choose(
    worker: np.ndarray,
    read: np.ndarray,
    num_workers: int,
    width: int | None,
    *,
    lane: float,
    wait: float = 0.0,
    fits: Callable[[Layout], bool] = lambda layout: True,
    shares: int = 1,
    chunk_size: int | None = None,
) -> tuple[int, bool]:
    """The width of the batches, and whether to compute messages early.

    A batch of A lanes, empty ones included, is taken to cost 1 + lane A, and the number of batches is counted
    on the schedule's first updates. The narrowest width within 3% of the least cost wins: what is not
    modelled, such as the size of caches, speaks for narrow ones. Of those that do not fit only the narrowest counts.

    Args:
      worker: Int[T, G].
      read: Int[T, G, L].
      num_workers: W.
      width: the only one to consider, if there is one.
      lane: the cost of one more lane.
      wait: the cost of a message that is computed early and waits for its update.
      fits: whether there is memory for a layout.
      shares: what a batch is divided into; widths are multiples of it.
      chunk_size: updates after which a batch has to begin; None stands for all of them.
    """
    num_updates, group, _ = read.shape
    trial = min(num_updates, max(2, 1024 // group))
    worker, read = worker[:trial], read[:trial]
    costs: dict[tuple[int, bool], float] = {}
    for candidate in [width] if width else sorted(set(_widths(num_workers, group, shares, fits))):
        for early in (False, True):
            if early or (candidate >= group and distinct_workers(worker)):
                planner = Planner(worker, read, num_workers, candidate, early)
                if costs and width is None and not fits(planner.layout):
                    continue
                batches = planner.count_batches(trial, chunk_size)
                costs[candidate, early] = batches * (1 + lane * candidate) + early * wait * trial * group
    least = min(costs.values())
    return next(choice for choice, cost in costs.items() if cost <= 1.03 * least)


def _widths(num_workers: int, group: int, shares: int, fits: Callable[[Layout], bool]) -> Iterator[int]:
    some = [group, num_workers, *(2**i for i in range(12))]
    if not fits(Planner.sizes(num_workers, group, num_workers, False, num_workers)):
        some.append(-(-num_workers // 3))  # about the widest that does
    if shares > 1:  # there a batch costs more by itself, as its devices wait for each other, so finer steps pay
        some += [3 * shares * 2**i for i in range(10)]
    widest = max(group, min(num_workers, 4096))
    return (-(-width // shares) * shares for width in some if group <= width <= widest)
