"""Asynchronous value iteration as a solver: the engines run it, full residuals of single snapshots end it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from asyncjax import schedules
from asyncjax.emulate import emulate
from asyncjax.method import Chunk, State
from asyncjax.methods.value_iteration import value_iteration
from asyncjax.schedules import Schedule
from asyncjax.solvers.model import Model
from asyncjax.solvers.solution import Residual, Run


def asynchronous(
    model: Model,
    values: Any,
    run: Run,
    *,
    num_blocks: int = 8,
    schedule: Callable[[int], Schedule] | None = None,
    sweeps: int = 32,
) -> Residual:
    """Runs `value_iteration` under a schedule; after every `sweeps` backups of each state a full residual decides.

    Args:
      model: the problem.
      values: where to begin.
      run: when to stop.
      num_blocks: blocks of states, one for each worker.
      schedule: number of updates -> schedule; longer ones begin with the shorter ones. Workers in turn
        without it, each reading right after its own update.
      sweeps: see above.
    """
    num_blocks = min(num_blocks, model.num_states)
    method = value_iteration(model.mdp, model.discount, num_blocks=num_blocks, initial_values=model.finish(values))
    schedule = schedule or partial(schedules.round_robin, num_workers=num_blocks)
    key, state = jax.random.key(0), None

    def keep(chunk: Chunk) -> None:
        nonlocal state
        state = chunk.state

    while True:
        done = 0 if state is None else state.update
        length = sweeps * num_blocks
        emulate(method, schedule(done + length), key, state=state, callback=keep, chunk_size=length)
        assert isinstance(state, State)
        model.count(sweeps, model.num_actions, num_blocks)
        residual = model.improve(model.start(np.asarray(state.shared.values)))
        if run.done(residual):
            return residual
