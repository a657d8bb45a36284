"""Sweeps on CPUs: compiled sparse products over cache-sized blocks of states, on as many threads as help."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from asyncjax.mdp import MDP
from asyncjax.solvers.levels import Block, levels, reordered, sources
from asyncjax.solvers.model import Model
from asyncjax.solvers.solution import Residual

_BLOCK = 1 << 17  # action values: those of a block of states stay in the cache of a core
_PER_THREAD = 1 << 15  # states below which handing work to a thread costs more than it saves

_LOOK = 3  # sweeps between two looks at how much the values still change

Extremes = tuple[float, float, float]  # min change, max change, largest absolute value


class HostModel(Model):
    """An MDP whose sweeps run in SciPy's compiled loops.

    They take about as long as XLA's programs, but nothing is compiled and calls cost microseconds. All rows have K
    entries, so any run of states is a sparse matrix by slicing. The rows of the current policy are kept apart and
    renewed where the policy changes.

    Args:
      mdp: the problem.
      discount: at most 1.
    """

    def __init__(self, mdp: MDP, discount: float) -> None:
        # SciPy's public product allocates its result, which at a million states costs as much as the product.
        from scipy.sparse._sparsetools import csr_matvec

        super().__init__(mdp, discount)
        self.product: Callable[..., None] = csr_matvec
        self.order: np.ndarray | None = None
        self.num_threads = max(1, min(os.cpu_count() or 1, self.num_states // _PER_THREAD))
        self.threads = ThreadPoolExecutor(self.num_threads) if self.num_threads > 1 else None
        self._load(mdp, _cut(self.num_states, _BLOCK // self.num_actions, self.num_threads))

    def start(self, values: np.ndarray) -> np.ndarray:
        """A copy, in the order and type of this model."""
        values = np.array(values, self.dtype)
        return values if self.order is None else values[self.order]

    def finish(self, values: np.ndarray) -> np.ndarray:
        """In the order of the problem."""
        if self.order is None:
            return values
        result = np.empty_like(values)
        result[self.order] = values
        return result

    def put_in_order(self, values: np.ndarray, limit: int | None = None) -> np.ndarray | None:
        """Renumbers the states for sweeps level by level; the values so, or None if the levels are too many."""
        assert isinstance(self.mdp, MDP)
        plan = levels(self.mdp, sources(self.mdp), limit)
        if plan is None:
            return None
        values = self.finish(values)
        self.order, blocks = plan
        self._load(reordered(self.mdp, self.order), blocks)
        return self.start(values)

    def improve(self, values: np.ndarray) -> Residual:
        """TV of all states, and the greedy policy, which `evaluate` then follows."""
        new, scaled = np.empty_like(values), self.factor * values
        parts = self._share(lambda blocks: self._improve(blocks, values, scaled, new))
        self.count(1, self.num_actions)
        return _residual(new, parts)

    def improve_in_place(self, values: np.ndarray) -> Residual:
        """One Gauss-Seidel sweep: each block reads the newest values. Its changes certify nothing."""
        parts = [self._improve(self.blocks, values, self.factor * values, values)]
        self.count(1, self.num_actions, len(self.blocks))
        return _residual(values, parts)

    def evaluate(self, values: np.ndarray, sweeps: int, accuracy: float) -> tuple[np.ndarray, float, float]:
        """Sweeps of the policy's operator until changes span less than `accuracy`: values, min and max last change."""
        low = high = 0.0
        new = np.empty_like(values)
        for sweep in range(1, sweeps + 1):
            self._share(lambda blocks, old=values, new=new: self._evaluate(blocks, old, new))
            self.count(1, 1)
            values, new = new, values
            if sweep % _LOOK == 0 or sweep == sweeps:
                change = values - new
                low, high = float(change.min()), float(change.max())
                if high - low < accuracy:
                    break
        return values, low, high

    def evaluate_in_place(self, values: np.ndarray, sweeps: int) -> None:
        """Gauss-Seidel sweeps of the policy's operator."""
        for _ in range(sweeps):
            self._evaluate(self.blocks, values, values)
        self.count(sweeps, 1, len(self.blocks))

    def _load(self, mdp: MDP, blocks: list[Block]) -> None:
        """Takes over the rows of an MDP, without a copy where a pair's successors lie side by side."""
        self.reward = np.asarray(mdp.reward)
        self.dtype = self.reward.dtype
        self.epsilon = float(np.finfo(self.dtype).eps)
        self.successor = np.ascontiguousarray(np.asarray(mdp.successor).transpose(0, 2, 1), np.int32)
        self.probability = np.ascontiguousarray(np.asarray(mdp.probability).transpose(0, 2, 1), self.dtype)
        self.factor = self.dtype.type(self.discount)
        self.blocks = blocks
        self.shares: list[list[Block]] = [part.tolist() for part in np.array_split(blocks, self.num_threads)]
        width = mdp.num_successors
        longest = max(end - begin for begin, end in blocks)
        self.starts = np.arange(0, longest * width + 1, width, dtype=np.int32)
        self.policy = np.full(self.num_states, -1, np.int8 if self.num_actions < 128 else np.int32)
        self.policy_reward = np.zeros(self.num_states, self.dtype)
        self.policy_successor = np.zeros((self.num_states, width), np.int32)
        self.policy_probability = np.zeros((self.num_states, width), self.dtype)  # times the discount

    def _share(self, task: Callable[[list[Block]], Any]) -> list[Any]:
        if self.threads is None:
            return [task(self.shares[0])]
        jobs = [self.threads.submit(task, share) for share in self.shares[1:]]
        return [task(self.shares[0]), *(job.result() for job in jobs)]

    def _improve(self, blocks: Sequence[Block], values: np.ndarray, scaled: np.ndarray, new: np.ndarray) -> Extremes:
        """Backs up some blocks for all actions; `new` may be `values`."""
        low, high, scale = np.inf, -np.inf, 0.0
        buffer = np.empty((self.num_actions, len(self.starts) - 1), self.dtype)
        for begin, end in blocks:
            quality = buffer[:, : end - begin]
            quality[:] = self.reward[:, begin:end]
            for action, row in enumerate(quality):
                self._add(self.successor[action, begin:end], self.probability[action, begin:end], scaled, row)
            best = quality.max(axis=0)
            change = best - values[begin:end]
            # Unlike Python's, NumPy's minima and maxima of NaN are NaN.
            low, high = np.minimum(low, change.min()), np.maximum(high, change.max())
            scale = np.maximum(scale, np.maximum(best.max(), -best.min()))
            self._adopt(begin, quality, best)
            new[begin:end] = best
            if new is values:
                scaled[begin:end] = self.factor * best
        return float(low), float(high), float(scale)

    def _evaluate(self, blocks: Sequence[Block], values: np.ndarray, new: np.ndarray) -> None:
        buffer = np.empty(len(self.starts) - 1, self.dtype)
        for begin, end in blocks:
            target = buffer[: end - begin] if new is values else new[begin:end]
            target[:] = self.policy_reward[begin:end]
            self._add(self.policy_successor[begin:end], self.policy_probability[begin:end], values, target)
            if new is values:
                new[begin:end] = target

    def _add(self, successor: np.ndarray, probability: np.ndarray, values: np.ndarray, target: np.ndarray) -> None:
        """target(s) += sum_k probability(s, k) values(successor(s, k))."""
        rows = len(target)
        self.product(
            rows, self.num_states, self.starts[: rows + 1], successor.ravel(), probability.ravel(), values, target
        )

    def _adopt(self, begin: int, quality: np.ndarray, best: np.ndarray) -> None:
        """Takes over the greedy actions of a block: the first that are best. Much faster than argmax over axis 0."""
        worse = quality[0] < best
        greedy = worse.astype(self.policy.dtype)
        for row in quality[1:-1]:
            worse &= row < best
            greedy += worse.view(np.int8)
        here = np.flatnonzero(greedy != self.policy[begin : begin + len(best)])
        if here.size:
            action, state = greedy[here], here + begin
            row = action * np.int64(self.num_states) + state  # whole rows are taken much faster than [action, state]
            self.policy[state] = action
            self.policy_reward[state] = self.reward[action, state]
            self.policy_successor[state] = _rows(self.successor).take(row, axis=0)
            self.policy_probability[state] = self.factor * _rows(self.probability).take(row, axis=0)


def _rows(array: np.ndarray) -> np.ndarray:
    """[A, S, K] -> [A S, K], without a copy."""
    return array.reshape(-1, array.shape[-1])


def _cut(num_states: int, size: int, num_threads: int) -> list[Block]:
    """Runs of about equally many states, at most `size`; as many for each thread."""
    count = num_threads * max(1, -(-num_states // (max(1, size) * num_threads)))
    cuts = np.linspace(0, num_states, count + 1).astype(int)
    return list(pairwise(cuts.tolist()))


def _residual(values: np.ndarray, parts: list[Extremes]) -> Residual:
    low, high, scale = zip(*parts, strict=True)
    return Residual(values, float(np.min(low)), float(np.max(high)), float(np.max(scale)))
