"""Look-aheads: workers read where the parameters will be when their message arrives, not where they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from asyncjax.corrections.per_message import Number, at_least, below_one, like, number
from asyncjax.method import Method, Metrics, PyTree, Stale


class Ahead(NamedTuple):
    """Shared state of a method with a look-ahead.

    Attributes:
      learner: the method's own shared state.
      motion: like its parameters, the motion that is extrapolated.
    """

    learner: Any
    motion: PyTree


class Sent(NamedTuple):
    """A message of `dana_zero`: the update of the parameters, and how it differs from the worker's last one."""

    params: PyTree
    change: PyTree


class Remembering(NamedTuple):
    """A worker's state, and the last message it sent."""

    worker: PyTree
    sent: PyTree


def predict_weights(method: Method, horizon: Number) -> Method:
    """Workers read w + horizon (w - w_previous): linear weight prediction for any method and optimizer.

    With a constant gradient and a constant staleness of `horizon` the prediction is exact. The view is the predicted
    parameters, for evaluation, too; the parameters themselves are `result.shared.learner.params`.

    Args:
      method: one whose shared state has `params`, as that of every gradient method.
      horizon: updates to look ahead, usually the mean staleness, W - 1 for W workers; at least 0, 0 is off.

    Raises:
      TypeError: a method whose shared state has no parameters.

    Example:
      >>> import jax, optax, asyncjax as aj
      >>> plain = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(0.05, momentum=0.5))
      >>> method = aj.corrections.predict_weights(plain, horizon=3)
      >>> result = aj.emulate(method, aj.schedules.round_robin(200, num_workers=4), jax.random.key(0))
      >>> bool(abs(result.shared.learner.params) < 0.01)
      True

    Source: Kosson et al., Pipelined backpropagation at scale (2021), their weight form. The velocity form (SpecTrain:
    Chen et al. 2018) is the same for momentum SGD.
    """
    at_least(0.0, horizon=horizon)

    def apply(shared: Ahead, messages: PyTree, stale: Stale) -> tuple[Ahead, Metrics]:
        learner, metrics = method.apply(shared.learner, messages, stale)
        return Ahead(learner, jax.tree.map(jnp.subtract, learner.params, shared.learner.params)), metrics

    def init(key: jax.Array, num_workers: int) -> tuple[Ahead, PyTree]:
        learner, local = method.init(key, num_workers)
        return Ahead(learner, _still(learner)), local

    return method._replace(init=init, view=_view_ahead(method, horizon), apply=apply)


def dana_zero(method: Method, decay: Number = 0.9) -> Method:
    """Workers read w + decay * (the sum of all workers' latest updates): Nesterov's look-ahead for asynchrony.

    Every worker has its own momentum v_j; where the others are when they have all reported once more, were it not for
    new gradients, is w - eta decay sum_j v_j. With one worker it is Nesterov's method, and the parameters that are read
    are those of `dana_slim`. Evaluation uses what is read; the parameters are `result.shared.learner.params`.

    Args:
      method: a gradient method with `private_optimizer=True` and momentum SGD, `optax.sgd(eta, decay)`.
      decay: the momentum's, in [0, 1).

    Raises:
      TypeError: a method whose messages are not updates of its parameters.

    Example:
      >>> import jax, optax, asyncjax as aj
      >>> momentum = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(0.02, 0.9), private_optimizer=True)
      >>> method = aj.corrections.dana_zero(momentum, decay=0.9)
      >>> result = aj.emulate(method, aj.schedules.round_robin(300, num_workers=4), jax.random.key(0))
      >>> bool(abs(result.shared.learner.params) < 0.01)
      True

    Source: Hakimi et al., Taming momentum in a distributed asynchronous environment (2019). There the server keeps the
    workers' momenta; here the workers do, and a message tells how theirs has changed.
    """
    below_one(decay=decay)

    def init(key: jax.Array, num_workers: int) -> tuple[Ahead, Remembering]:
        learner, local = method.init(key, num_workers)
        still = _still(learner)
        sent = jax.tree.map(lambda x: jnp.zeros((num_workers, *x.shape), x.dtype), still)
        return Ahead(learner, still), Remembering(local, sent)

    def work(view: PyTree, local: Remembering) -> tuple[Sent, Remembering, Metrics]:
        update, worker, metrics = method.work(view, local.worker)
        if jax.tree.structure(update) != jax.tree.structure(local.sent) or not _is_private(local.worker):
            raise TypeError(
                "dana_zero wants messages that are updates of the parameters: build the method with"
                " private_optimizer=True and optimizer=optax.sgd(learning_rate, decay)."
            )
        change = jax.tree.map(jnp.subtract, update, local.sent)
        return Sent(update, change), Remembering(worker, update), metrics

    def apply(shared: Ahead, messages: Sent, stale: Stale) -> tuple[Ahead, Metrics]:
        learner, metrics = method.apply(shared.learner, messages.params, stale)
        motion = jax.tree.map(lambda v, change: v + change.mean(0), shared.motion, messages.change)
        return Ahead(learner, motion), metrics

    return method._replace(init=init, view=_view_ahead(method, decay), work=work, apply=apply, halves=None)


def dana_slim(learning_rate: Number = 0.1, decay: Number = 0.9) -> optax.GradientTransformation:
    """The optimizer of DANA-Slim, for `private_optimizer=True`: v <- decay v + g, send -eta (g + decay v).

    It is Nesterov momentum kept by every worker. What the server has is what `dana_zero` lets its workers read, so the
    two are one method, and this one needs no look-ahead.

    Args:
      learning_rate: eta, at least 0.
      decay: of the momentum, in [0, 1).

    Example:
      >>> import jax, asyncjax as aj
      >>> method = aj.sgd(lambda w: w**2, 1.0, optimizer=aj.corrections.dana_slim(0.01), private_optimizer=True)
      >>> result = aj.emulate(method, aj.schedules.round_robin(300, num_workers=4), jax.random.key(0))
      >>> bool(abs(result.shared.params) < 0.01)
      True

    Source: Hakimi et al., Taming momentum in a distributed asynchronous environment (2019), algorithm DANA-Slim.
    """
    at_least(0.0, learning_rate=learning_rate)
    below_one(decay=decay)
    return optax.sgd(learning_rate, momentum=decay, nesterov=True)  # pyright: ignore[reportArgumentType]


def _view_ahead(method: Method, distance: Number) -> Callable[[Ahead], PyTree]:
    def view(shared: Ahead) -> PyTree:
        far = number(distance)
        ahead = jax.tree.map(lambda w, step: w + like(far, w) * step, shared.learner.params, shared.motion)
        return method.view(shared.learner._replace(params=ahead))

    return view


def _still(learner: Any) -> PyTree:
    if not hasattr(learner, "params"):
        raise TypeError(
            f"The method's shared state is {type(learner).__name__} and has no field params: a look-ahead moves"
            " parameters, so use a gradient method such as aj.sgd or aj.a3c."
        )
    return jax.tree.map(jnp.zeros_like, learner.params)


def _is_private(worker: Any) -> bool:
    return hasattr(worker, "opt_state")
