"""Elastic averaging: workers learn on their own, tied to a common centre by a spring."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from asyncjax.checks import check_whole
from asyncjax.corrections.per_message import at_least, like, number
from asyncjax.method import Method, Metrics, PyTree, Stale
from asyncjax.methods.own_learner import OwnLearner, learn, own_learners


class Centre(NamedTuple):
    """Shared state: where the workers are pulled."""

    params: PyTree


class Explorer(NamedTuple):
    """A worker: a whole learner of its own.

    Attributes:
      shared: the learner's state.
      local: its data and random keys.
      pull: Float[], alpha.
    """

    shared: Any
    local: PyTree
    pull: jax.Array


def elastic_averaging(method: Method, *, rate: float | jax.Array = 0.9, period: int = 1) -> Method:
    """Every worker runs a synchronous learner of its own and exchanges an elastic force with the centre.

    A message is d = alpha (x_i - centre), alpha = rate / W: the worker moves by -d, then learns for `period` updates;
    the centre moves by d when the message arrives. Without gradients the sum of all x_i and the centre is conserved.

    Args:
      method: what each worker runs, with staleness 0; its view must be its parameters, as that of `sgd` and `a3c` is.
      rate: beta, at least 0; 0 lets the workers go alone. Far above 1 it is unstable.
      period: updates of a worker between two exchanges; at least 1.

    Returns:
      A Method with the metrics of `method`, each with an axis of `period` behind G. Groups add their forces.

    Raises:
      ValueError: a period below 1, or a rate below 0.
      TypeError: a method whose view is not its parameters, or a period that is no whole number.

    Example:
      >>> import jax, optax, asyncjax as aj
      >>> method = aj.elastic_averaging(aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(0.1)), period=4)
      >>> result = aj.emulate(method, aj.schedules.round_robin(200, num_workers=4), jax.random.key(0))
      >>> bool(abs(result.shared.params) < 0.01)
      True

    Source: Zhang, Choromanska and LeCun, Deep learning with elastic averaging SGD (2015), asynchronous EASGD; a
    momentum optimizer makes it EAMSGD. There a worker meets the centre as it is; here, as it was
    when its job began.
    """
    at_least(0.0, rate=rate)
    at_least(1, period=period)
    check_whole(period=period)

    def init(key: jax.Array, num_workers: int) -> tuple[Centre, Explorer]:
        params, learners = own_learners(method, key, num_workers)
        return Centre(params), Explorer(*learners, jnp.full(num_workers, number(rate) / num_workers))

    def work(centre: PyTree, worker: Explorer) -> tuple[PyTree, Explorer, Metrics]:
        learner = OwnLearner(worker.shared, worker.local)
        params = learner.shared.params
        force = jax.tree.map(lambda x, c: like(worker.pull, x) * (x - c), params, centre)
        learner, metrics = learn(method, learner.at(jax.tree.map(jnp.subtract, params, force)), period)
        return force, Explorer(*learner, worker.pull), metrics

    def apply(centre: Centre, forces: PyTree, stale: Stale) -> tuple[Centre, Metrics]:
        del stale
        return Centre(jax.tree.map(lambda c, d: c + d.sum(0), centre.params, forces)), {}

    return Method(init, lambda centre: centre.params, work, apply, method.policy)
