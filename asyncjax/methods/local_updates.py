"""Local updates: workers learn on their own for a while, and send how far they came."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from asyncjax.checks import check_whole
from asyncjax.corrections.per_message import at_least
from asyncjax.method import Method, Metrics, PyTree
from asyncjax.methods.learner import Learner, receiver, transformation
from asyncjax.methods.own_learner import OwnLearner, learn, own_learners


def local_updates(
    method: Method,
    *,
    period: int = 1,
    optimizer: optax.GradientTransformation | None = None,
    correction: optax.GradientTransformation | None = None,
) -> Method:
    """A worker makes `period` updates of its own, from the parameters x that it read to y, and sends x - y.

    That is a gradient to whoever receives it: x <- x + optimizer(mean of the messages). With the default, SGD with a
    step of 1, the parameters move by the mean of what the workers moved. So `period` says how often one communicates:

      schedule        G    known as
      barrier         W    local SGD, federated averaging (FedAvg); with Nesterov momentum as `optimizer`, DiLoCo
      any             1    FedAsync, with `correction=polynomial()` or `hinge()`
      any             K    FedBuff

    Args:
      method: what each worker runs, with staleness 0; its view must be its parameters, as that of `sgd` and `a3c` is.
        The rest of a learner's state, such as its optimizer's, stays with the worker between its messages.
      period: updates of a worker between reading and sending; at least 1.
      optimizer: any optax transformation, of the messages.
      correction: a transformation of every message as it arrives; see `asyncjax.corrections`.

    Returns:
      A Method with the metrics of `method`, each with an axis of `period` behind G.

    Raises:
      ValueError: a period below 1.
      TypeError: a method whose view is not its parameters, a period that is no whole number, or an optimizer or a
        correction that is no optax transformation.

    Example:
      >>> import jax, optax, asyncjax as aj
      >>> method = aj.local_updates(aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(0.5)), period=2)
      >>> result = aj.emulate(method, aj.schedules.barrier(3, num_workers=4), jax.random.key(0))
      >>> float(result.shared.params)  # (1 - 0.5) ** (2 * 3)
      0.015625

    Source: McMahan et al., Communication-efficient learning of deep networks from decentralized data (2017); the
    optimizer, Reddi et al., Adaptive federated optimization (2021); asynchronously, Xie, Koyejo and Gupta (2019,
    FedAsync) and Nguyen et al. (2022, FedBuff). FedAsync there mixes y into the newest x instead of adding y - x.
    """
    at_least(1, period=period)
    check_whole(period=period)
    tx = transformation(optimizer=optax.sgd(1.0) if optimizer is None else optimizer)
    begin, apply = receiver(tx, correction=correction)

    def init(key: jax.Array, num_workers: int) -> tuple[Learner, OwnLearner]:
        params, learners = own_learners(method, key, num_workers)
        return begin(params), learners

    def work(params: PyTree, learner: OwnLearner) -> tuple[PyTree, OwnLearner, Metrics]:
        learner, metrics = learn(method, learner.at(params), period)
        return jax.tree.map(jnp.subtract, params, learner.shared.params), learner, metrics

    return Method(init, lambda shared: shared.params, work, apply, method.policy)
