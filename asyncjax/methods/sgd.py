"""SGD on any loss: the simplest method, for theory and supervised work."""

from __future__ import annotations

import reprlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from asyncjax.method import Method, Metrics, PyTree
from asyncjax.methods.gradient import gradient_method


def sgd(
    loss: Callable[..., jax.Array],
    params: PyTree | Callable[[jax.Array], PyTree],
    *,
    optimizer: optax.GradientTransformation,
    sample: Callable[[jax.Array], PyTree] | None = None,
    private_optimizer: bool = False,
    correction: optax.GradientTransformation | None = None,
) -> Method:
    """Asynchronous stochastic gradient descent: w <- w - eta grad f(w_stale; batch).

    Args:
      loss: (params, batch) -> Float[], or params -> Float[] without `sample`.
      params: the initial parameters, or a function key -> params.
      optimizer: any optax transformation.
      sample: key -> batch; every worker draws from a stream of its own.
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
    """

    def init_params(key: jax.Array) -> PyTree:
        value = params(key) if callable(params) else params
        if not all(jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in jax.tree.leaves(value)):
            raise TypeError(
                f"params={reprlib.repr(params)} are not all floats: gradients need such as 1.0 instead of 1."
            )
        # A weakly typed scalar would change its type after the first update.
        return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jax.numpy.result_type(x)), value)

    # The data are the key of a batch: drawing it again is exact, and a key is small.
    def next_key(params: PyTree, key: jax.Array) -> tuple[PyTree, jax.Array, Metrics]:
        del params
        if sample is None:
            return (), key, {}
        key, batch_key = jax.random.split(key)
        return batch_key, key, {}

    def batch_loss(params: PyTree, batch_key: PyTree) -> tuple[jax.Array, Metrics]:
        return (loss(params) if sample is None else loss(params, sample(batch_key))), {}

    return gradient_method(
        init_params,
        lambda key: key,
        next_key,
        batch_loss,
        optimizer,
        private_optimizer=private_optimizer,
        correction=correction,
    )
