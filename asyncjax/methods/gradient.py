"""Methods whose message is a gradient: where the pipeline sample -> gradient -> optimizer is cut."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from asyncjax.checks import check_outputs
from asyncjax.method import Halves, Method, Metrics, Policy, PyTree
from asyncjax.methods.learner import Learner, receiver, transformation
from asyncjax.methods.options import check_options


class Private(NamedTuple):
    """A worker's state when it keeps an optimizer of its own."""

    worker: PyTree
    opt_state: PyTree


def gradient_method(
    init_params: Callable[[jax.Array], PyTree],
    init_worker: Callable[..., PyTree],
    sample: Callable[[PyTree, PyTree], tuple[PyTree, PyTree, Metrics]],
    loss: Callable[[PyTree, PyTree], tuple[jax.Array, Metrics]],
    optimizer: optax.GradientTransformation,
    *,
    private_optimizer: bool = False,
    max_grad_norm: float | jax.Array | None = None,
    anneal_messages: float | jax.Array | None = None,
    correction: optax.GradientTransformation | None = None,
    policy: Policy | None = None,
    distribution: Callable[[PyTree, PyTree], Any] | None = None,
) -> Method:
    """A method from a loss: workers sample data and send grad loss(stale params, data), the optimizer applies them.

    With a shared optimizer the message is the gradient and `apply` runs the optimizer; with a
    private one the worker runs its own optimizer and the message is the parameter update, which
    `apply` adds. A correction acts on every message of a group in order, and their mean goes on. It
    gets `staleness`, Int[], and `stale_params` as extra arguments, and in groups of more than one
    `group_size`; so does the optimizer, with a leading axis G instead of `group_size`.

    Args:
      init_params: key -> params.
      init_worker: key -> one worker's state; it must hold the worker's random keys. With a second parameter named
        `worker` it is told which worker's, Int[].
      sample: (params, worker) -> (data, worker, metrics); nothing of it is differentiated.
      loss: (params, data) -> (loss, metrics).
      optimizer: any optax transformation.
      private_optimizer: cut the pipeline behind the optimizer instead of before it. There the staleness is not known
        yet: corrections in such an optimizer are refused, those in `correction` act on its updates.
      max_grad_norm: a worker's gradient is scaled down to this global norm before it goes further.
      anneal_messages: number of messages, of all workers together, over which every step shrinks linearly to 0.
      correction: an optax transformation from `asyncjax.corrections`, applied to every message as it arrives. With
        groups of one it is the same arithmetic as chaining it in front of a shared optimizer. A private
        optimizer's messages are updates, which it then scales or drops.
      policy: how the method acts, for evaluation.
      distribution: (params, data) -> how the policy acts in the observations of the data, for telemetry.

    Returns:
      A Method with metrics `loss` and `grad_norm` (before clipping), Float[T, G], and those of the loss.

    Raises:
      ValueError: a norm or a number of messages that is not above 0.
      TypeError: an optimizer or a correction that is no optax transformation.

    Example:
      >>> import jax, jax.numpy as jnp, optax, asyncjax as aj
      >>> method = aj.gradient_method(
      ...     init_params=lambda key: jnp.float32(0.0),
      ...     init_worker=lambda key: key,
      ...     sample=lambda params, worker: (jnp.float32(2.0), worker, {}),  # the data: where w should be
      ...     loss=lambda params, data: (0.5 * (params - data) ** 2, {}),
      ...     optimizer=optax.sgd(0.5),
      ... )
      >>> result = aj.emulate(method, aj.schedules.fixed_delay(3, delay=1), jax.random.key(0))
      >>> result.metrics["loss"].ravel().tolist(), float(result.shared.params)  # read were 0, 0, 1; w is 1, 2, 2.5
      ([2.0, 2.0, 0.5], 2.5)
    """
    check_options(max_grad_norm=max_grad_norm, anneal_messages=anneal_messages)
    tx = transformation(optimizer=optimizer)
    begin, apply = receiver(None if private_optimizer else tx, correction=correction, anneal_messages=anneal_messages)

    def one_worker(workers_key: jax.Array, worker: jax.Array) -> PyTree:
        key = jax.random.fold_in(workers_key, worker)
        return init_worker(key, worker=worker) if takes_worker(init_worker) else init_worker(key)

    def init(key: jax.Array, num_workers: int) -> tuple[Learner, Any]:
        params_key, workers_key = jax.random.split(key)
        params = init_params(params_key)
        workers = jax.vmap(one_worker, in_axes=(None, 0))(workers_key, jnp.arange(num_workers, dtype=jnp.int32))
        if not private_optimizer:
            return begin(params), workers
        opt_states = jax.vmap(lambda _: tx.init(params))(jnp.arange(num_workers))
        return begin(params), Private(workers, opt_states)

    def checked(params: PyTree, data: PyTree) -> tuple[Any, ...]:
        return check_outputs("loss", loss(params, data), "loss", "metrics")

    def gradient(params: PyTree, data: PyTree) -> tuple[PyTree, Metrics]:
        (value, metrics), grads = jax.value_and_grad(checked, has_aux=True)(params, data)
        grads, norm = clipped(grads, max_grad_norm)
        return grads, {"loss": value, "grad_norm": norm, **metrics}

    def send_gradient(params: PyTree, worker: PyTree) -> tuple[PyTree, PyTree, Metrics]:
        data, worker, sampled = sample(params, worker)
        grads, metrics = gradient(params, data)
        return grads, worker, {**sampled, **metrics}

    def send_update(params: PyTree, local: Private) -> tuple[PyTree, Private, Metrics]:
        grads, worker, metrics = send_gradient(params, local.worker)
        # Without `staleness`, which a worker can not know: a correction in here would never see a stale message.
        updates, opt_state = tx.update(grads, local.opt_state, params)
        # A step size that is a float64 tracer would make them float64.
        updates = jax.tree.map(lambda x, g: jnp.asarray(x, g.dtype), updates, grads)
        return updates, Private(worker, opt_state), metrics

    return Method(
        init=init,
        view=lambda shared: shared.params,
        work=send_update if private_optimizer else send_gradient,
        apply=apply,
        policy=policy,
        halves=None if private_optimizer else Halves(sample, gradient, distribution),
    )


def takes_worker(function: Callable[..., Any] | None) -> bool:
    """Whether a function has a parameter that is named so."""
    return function is not None and "worker" in inspect.signature(function).parameters


def clipped(
    grads: PyTree, max_grad_norm: float | jax.Array | None, norm: jax.Array | None = None
) -> tuple[PyTree, jax.Array]:
    """The gradient scaled down to this global norm, if there is one, and the norm that it had, or is said to have."""
    if norm is None:
        with jax.numpy_dtype_promotion("standard"):  # the parameters may be of several dtypes
            norm = optax.tree.norm(grads)
    if max_grad_norm is None:
        return grads, norm
    limit = jnp.asarray(max_grad_norm, norm.dtype)
    within = norm < limit
    divisor, factor = jnp.where(within, jnp.ones_like(norm), norm), jnp.where(within, jnp.ones_like(limit), limit)
    return jax.tree.map(lambda g: g / divisor.astype(g.dtype) * factor.astype(g.dtype), grads), norm
