"""Asynchronous value iteration as a solver: the engines run it, full residuals of single snapshots end it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import jax
import numpy as np

from asyncjax import schedules
from asyncjax.checks import check_counts, given
from asyncjax.emulate import emulate
from asyncjax.method import Chunk
from asyncjax.methods.value_iteration import value_iteration
from asyncjax.schedules import Schedule
from asyncjax.solvers.model import Model
from asyncjax.solvers.solution import Residual, Run


class _FinishedError(Exception):
    """Leaves the engine: the certificate is there."""


def asynchronous(
    model: Model,
    values: Any,
    run: Run,
    *,
    num_blocks: int | None = None,
    schedule: Schedule | Callable[[int], Schedule] | None = None,
    sweeps: int = 32,
    max_updates: int = 1 << 17,
) -> Residual:
    """Runs `value_iteration` under a schedule; after every `sweeps` backups of each state a full residual decides.

    Args:
      model: the problem.
      values: where to begin.
      run: when to stop.
      num_blocks: blocks of states; None: one for each worker of the schedule, 8 without one.
      schedule: one, or number of updates -> schedule. Workers in turn without it, each reading right after its own
        update. At its end the run stops with the bound it has.
      sweeps: see above.
      max_updates: the length of a schedule that is made here.
    """
    check_counts(sweeps=sweeps, max_updates=max_updates, **given(num_blocks=num_blocks))
    in_turn = partial(schedules.round_robin, num_workers=min(num_blocks or 8, model.num_states))
    if not (schedule is None or isinstance(schedule, Schedule) or callable(schedule)):
        raise TypeError(
            f"schedule={schedule!r}: give a Schedule, or a function of the number of updates that makes one."
        )
    plan = schedule if isinstance(schedule, Schedule) else (schedule or in_turn)(max_updates)
    if not plan.num_updates:
        raise ValueError("schedule has no updates: nothing would be certified; give one update or more.")
    num_blocks = min(num_blocks or plan.num_workers, model.num_states)
    method = value_iteration(model.mdp, model.discount, num_blocks=num_blocks, initial_values=model.finish(values))
    residual = None

    def certify(chunk: Chunk) -> None:
        nonlocal residual
        assert chunk.state is not None
        messages = chunk.schedule.worker.size  # each of them a block
        model.sweeps += messages // num_blocks
        model.backups += messages * model.num_states * model.num_actions // num_blocks
        model.updates += len(chunk.schedule.worker)
        residual = model.improve(model.start(np.asarray(chunk.state.shared.values)))
        if run.done(residual):
            raise _FinishedError

    with suppress(_FinishedError):
        emulate(method, plan, jax.random.key(0), callback=certify, chunk_size=sweeps * num_blocks)
    assert residual is not None
    return residual
