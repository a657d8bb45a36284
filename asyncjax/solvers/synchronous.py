"""Synchronous solvers: loops over a model's sweeps, every one of which ends with a full residual."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from asyncjax.checks import check_counts, check_least, check_number, given
from asyncjax.solvers.host_model import HostModel
from asyncjax.solvers.mixing import Mixing
from asyncjax.solvers.model import Model
from asyncjax.solvers.solution import Residual, Run

_LARGE = 20_000  # states from which it can pay to put them in order
_LEVEL = 50  # and of each level: fewer are too little work for a step of a Python loop
_MEMORY = 5  # steps that are combined where they stall
_LONG = 100  # sweeps in place after which a full residual is due, however much they still change


def jacobi(model: Model, values: Any, run: Run) -> Residual:
    """Value iteration, V <- TV, for all states at once."""
    while True:
        residual = model.improve(values)
        if run.done(residual):
            return residual
        values = residual.values


def modified_policy_iteration(
    model: Model, values: Any, run: Run, *, sweeps: int = 50, accuracy: float = 0.1, patience: int | None = None
) -> Residual:
    """V <- T_pi^m (TV), pi greedy: one sweep for all actions, then cheap ones for the policy's only.

    Where MacQueen's bounds allow it, values are shifted to the middle of them after both steps. m is
    chosen as it goes: the policy is followed until its sweeps span less than `accuracy` of what the last
    improvement did. Large problems in which information only creeps from state to state are
    handed over to `gauss_seidel`.

    Args:
      model: the problem.
      values: where to begin.
      run: when to stop.
      sweeps: the largest m; 1 is value iteration, and with accuracy=0 many are policy iteration.
      accuracy: see above.
      patience: hand over when so many more improvements seem to be needed; None: 30 on the host, where
        there are many states and episodes end, and never elsewhere: sweeps in place can not be shifted.

    Source: Puterman and Shin (1978); MacQueen (1966); the combination is ours.
    """
    check_counts(sweeps=sweeps, **given(patience=patience))
    check_number(accuracy=accuracy)
    if not accuracy >= 0:
        raise ValueError(f"accuracy={accuracy}: give a number of at least 0.")
    first, improvements, last, slow = None, 0, np.inf, 0
    mixing = Mixing(model, _MEMORY, run.certificate.closed)
    if patience is None and isinstance(model, HostModel) and model.num_states > _LARGE and not run.certificate.closed:
        patience = 30
    while True:
        residual = model.improve(values)
        if run.done(residual):
            return residual
        improvements += 1
        first = first or run.bound
        if patience is not None and isinstance(model, HostModel) and improvements >= 8:
            rate = np.log(first / run.bound) / improvements
            if np.log(run.bound / run.tolerance) > patience * rate:
                values = model.put_in_order(residual.values, limit=model.num_states // _LEVEL)
                if values is not None:
                    return _in_order(model, values, run, sweeps=20)
                patience = None
        shift, span = run.certificate.shift, residual.high - residual.low
        before, values = values, residual.values + shift(residual.low, residual.high)
        if sweeps == 1:
            continue
        values, low, high = model.evaluate(values, sweeps - 1, accuracy * span)
        values = values + shift(low, high)
        slow, last = slow + 1 if span > last / 2 else 0, span
        if run.certificate.closed and slow > 1:
            values = mixing.mix(before, values, span)
        else:
            mixing.forget()


def policy_iteration(model: Model, values: Any, run: Run) -> Residual:
    """Each policy is evaluated to the accuracy that is asked for, then improved.

    The evaluation iterates, because a factorization of scattered transitions would fill up.
    """
    fine = 0.1 * run.wanted
    while True:
        residual = model.improve(values)
        if run.done(residual):
            return residual
        values, low, high = residual.values, -np.inf, np.inf
        while high - low >= fine and not run.expired():
            before = high - low
            values, low, high = model.evaluate(values, 1000, fine)
            values = values + run.certificate.shift(low, high)
            if not high - low < before:  # as exact as rounding allows
                break


def gauss_seidel(model: HostModel, values: np.ndarray, run: Run, *, sweeps: int = 0) -> Residual:
    """In-place sweeps over the states in the order in which information travels (`levels`), level by level.

    Sweeps for all actions alternate with `sweeps` cheaper ones for the greedy policy's only. What a sweep
    changes is no bound on anything, so when it is small, and every now and then, a full residual decides.
    """
    check_least(0, sweeps=sweeps)
    ordered = model.put_in_order(values)
    assert ordered is not None
    return _in_order(model, ordered, run, sweeps)


def _in_order(model: HostModel, values: np.ndarray, run: Run, sweeps: int) -> Residual:
    wanted = run.wanted
    for count in itertools.count(1):
        change = model.improve_in_place(values)
        small = max(-change.low, change.high) <= wanted
        if small or count % _LONG == 0 or run.expired():
            residual = model.improve(values)
            if run.done(residual):
                return residual
            values, wanted = residual.values, wanted / 2 if small else wanted
        model.evaluate_in_place(values, sweeps)
    raise AssertionError("unreachable: the loop has no end")


def anderson(model: Model, values: Any, run: Run, *, memory: int | None = 5) -> Residual:
    """Anderson acceleration: the next values combine the last ones so that their residuals cancel best.

    V <- sum_i c_i T V_i with c minimizing |sum_i c_i (T V_i - V_i)|_2, sum_i c_i = 1 (`Mixing`).

    Args:
      model: the problem.
      values: where to begin.
      run: when to stop.
      memory: differences to keep; None for all: on a linear map of n states that is exact after n + 1 sweeps.

    Source: Walker and Ni (2011); the safeguard is ours.
    """
    check_least(0, "keep at least 0 differences, or None for all", **given(memory=memory))
    mixing = Mixing(model, memory, run.certificate.closed)
    while True:
        residual = model.improve(values)
        if run.done(residual):
            return residual
        size = residual.high - residual.low if run.certificate.closed else max(-residual.low, residual.high)
        values = mixing.mix(values, residual.values, size)
