"""Workers that are whole learners: each makes updates of a method on its own, without staleness."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from asyncjax.method import Method, Metrics, PyTree, Stale


class OwnLearner(NamedTuple):
    """A worker's learner.

    Attributes:
      shared: the learner's state, which has its parameters as `params`.
      local: its data and random keys.
    """

    shared: Any
    local: PyTree

    def at(self, params: PyTree) -> OwnLearner:
        """The same learner, but with these parameters."""
        return self._replace(shared=self.shared._replace(params=params))


def own_learners(method: Method, key: jax.Array, num_workers: int) -> tuple[PyTree, OwnLearner]:
    """The parameters with which all workers begin, and their learners, stacked.

    Raises:
      TypeError: a method whose view is not its parameters.
    """
    shared, local = method.init(key, num_workers)
    params = getattr(shared, "params", None)
    if params is None or jax.tree.structure(method.view(shared)) != jax.tree.structure(params):
        raise TypeError(
            "Workers exchange parameters here, but this method's view is something else: use a method whose view is its"
            " params, such as sgd or a3c."
        )
    copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_workers, *jnp.shape(x))), shared)
    return params, OwnLearner(copies, local)


def learn(method: Method, learner: OwnLearner, num_updates: int) -> tuple[OwnLearner, Metrics]:
    """So many updates of one learner, each with its own fresh message; the metrics have a leading axis for them."""

    def update(learner: OwnLearner, _: None) -> tuple[OwnLearner, Metrics]:
        view = method.view(learner.shared)
        message, local, metrics = method.work(view, learner.local)
        messages, views = jax.tree.map(lambda x: x[None], (message, view))
        shared, more = method.apply(learner.shared, messages, Stale(views, jnp.zeros(1, jnp.int32)))
        return OwnLearner(shared, local), {**metrics, **more}

    return jax.lax.scan(update, learner, length=num_updates)
