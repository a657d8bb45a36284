"""SGD on any loss: the simplest method, for theory and supervised work."""

from __future__ import annotations

import reprlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from asyncjax.checks import check_function
from asyncjax.method import Method, Metrics, PyTree
from asyncjax.methods.gradient import gradient_method, takes_worker


def sgd(
    loss: Callable[..., jax.Array],
    params: PyTree | Callable[[jax.Array], PyTree],
    *,
    optimizer: optax.GradientTransformation,
    sample: Callable[..., PyTree] | None = None,
    private_optimizer: bool = False,
    correction: optax.GradientTransformation | None = None,
) -> Method:
    """Asynchronous stochastic gradient descent: w <- w - eta grad f(w_stale; batch).

    Args:
      loss: (params, batch) -> Float[], or params -> Float[] without `sample`.
      params: the initial parameters, or a function key -> params.
      optimizer: any optax transformation.
      sample: key -> batch; every worker draws from a stream of its own. With a second parameter named `worker` it is
        told whose batch it draws, Int[], where workers have data of their own.
      private_optimizer: each worker keeps its own optimizer and sends updates.
      correction: a transformation of every message as it arrives; see `asyncjax.corrections`.

    Returns:
      A Method with metrics `loss` and `grad_norm`, Float[T, G].

    Raises:
      TypeError: an optimizer that is none, or from `init`, parameters that are not floats.

    Example:
      >>> import jax, optax, asyncjax as aj
      >>> method = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(0.1))
      >>> result = aj.emulate(method, aj.schedules.fixed_delay(50, delay=2), jax.random.key(0))
      >>> bool(abs(result.shared.params) < 0.01)
      True
      >>> own = lambda key, worker: worker.astype(float)  # worker w has the point w; the mean of 0, 1, 2 is 1
      >>> method = aj.sgd(lambda w, x: 0.5 * (w - x) ** 2, 0.0, optimizer=optax.sgd(0.5), sample=own)
      >>> round(float(aj.emulate(method, aj.schedules.barrier(50, 3), jax.random.key(0)).shared.params), 3)
      1.0
    """
    check_function(loss=loss, sample=sample)
    own_data = takes_worker(sample)

    def init_params(key: jax.Array) -> PyTree:
        value = params(key) if callable(params) else params
        if not all(jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in jax.tree.leaves(value)):
            raise TypeError(
                f"params={reprlib.repr(params)} are not all floats: gradients need such as 1.0 instead of 1."
            )
        # A weakly typed scalar would change its type after the first update.
        return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jax.numpy.result_type(x)), value)

    # The data are the key of a batch: drawing it again is exact, and a key is small.
    def next_key(params: PyTree, local: PyTree) -> tuple[PyTree, PyTree, Metrics]:
        del params
        if sample is None:
            return (), local, {}
        key, batch_key = jax.random.split(local[0] if own_data else local)
        return ((batch_key, local[1]), (key, local[1]), {}) if own_data else (batch_key, key, {})

    def batch_loss(params: PyTree, data: PyTree) -> tuple[jax.Array, Metrics]:
        if sample is None:
            return loss(params), {}
        return loss(params, sample(data[0], worker=data[1]) if own_data else sample(data)), {}

    def init_worker(key: jax.Array, worker: jax.Array) -> PyTree:
        return (key, worker) if own_data else key

    return gradient_method(
        init_params,
        init_worker,
        next_key,
        batch_loss,
        optimizer,
        private_optimizer=private_optimizer,
        correction=correction,
    )
