"""A watch that adds measures to any run, inside the compiled program, and changes no bit of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import optax

from asyncjax.apart import apart
from asyncjax.corrections.look_ahead import Ahead
from asyncjax.method import Halves, Method, Metrics, PyTree, Stale


@dataclasses.dataclass(frozen=True)
class Update:
    """What a measure may look at; what several of them use is computed once."""

    method: Method
    before: Any  # the shared state
    after: Any
    messages: PyTree  # leading axis G, as in `stale`
    stale: Stale
    data: PyTree  # behind the messages, leading axis G

    @property
    def halves(self) -> Halves:
        """How the method evaluates its data."""
        assert self.method.halves is not None  # `watch` has asked
        return self.method.halves

    @cached_property
    def gap(self) -> PyTree:
        """Newest minus read parameters, leading axis G."""
        newest = floats(self.method.view(self.before))
        return jax.vmap(lambda read: optax.tree.sub(newest, floats(read)))(self.stale.view)

    @cached_property
    def step(self) -> PyTree:
        """How the update moved the parameters."""
        return optax.tree.sub(self._parameters(self.after), self._parameters(self.before))

    def _parameters(self, shared: Any) -> list[jax.Array]:
        """What updates move: the view, but of a look-ahead what it looks ahead from."""
        return floats(shared.learner if isinstance(shared, Ahead) else self.method.view(shared))

    @cached_property
    def fresh(self) -> PyTree:
        """The gradients of the same data at the newest view, leading axis G."""
        gradient: Any = self.halves.gradient
        newest, size = self.method.view(self.before), len(self.stale.staleness)
        return jax.vmap(lambda data: gradient(newest, data)[0], axis_size=size)(self.data)


def floats(view: PyTree) -> list[jax.Array]:
    """The parameters in a view, or in a message: what is real; of a tree with a field or key `params`, those."""
    params = view.get("params", view) if isinstance(view, Mapping) else getattr(view, "params", view)
    return [x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.floating)]


def norms(trees: PyTree) -> jax.Array:
    """Float[G], of trees with a leading axis G."""
    return jax.vmap(optax.tree.norm)(trees)


def ratio(x: Any, y: jax.Array) -> jax.Array:
    """The quotient, and 0 where y is 0."""
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 0)


def gradient_cosine(u: Update) -> jax.Array:
    """Cosine of the message and the gradient of the same data at the newest parameters."""
    along = jax.vmap(optax.tree.vdot)(u.messages, u.fresh)
    cosine = ratio(along, norms(u.messages) * norms(u.fresh))
    return jnp.where(u.stale.staleness == 0, 1, cosine)  # there the two are one gradient, compiled twice


def gradient_norm_ratio(u: Update) -> jax.Array:
    """Norm of the message over that of the gradient of the same data at the newest parameters."""
    return jnp.where(u.stale.staleness == 0, 1, ratio(norms(u.messages), norms(u.fresh)))


def policy_kl(u: Update) -> jax.Array:
    """KL(policy that was read || newest policy), mean over a sample of the observations of the message's data."""
    acts: Any = u.halves.distribution
    newest = u.method.view(u.before)
    return jax.vmap(lambda read, data: jnp.mean(acts(read, data).kl(acts(newest, data))))(u.stale.view, u.data)


def effective_learning_rate(u: Update) -> jax.Array:
    """The norm of the step over that of the mean message."""
    return ratio(optax.tree.norm(u.step), optax.tree.norm([x.mean(0) for x in floats(u.messages)]))


MEASURES: dict[str, Callable[[Update], jax.Array]] = {
    "staleness": lambda u: u.stale.staleness,
    "parameter_gap": lambda u: norms(u.gap),
    "step_norm": lambda u: optax.tree.norm(u.step),
    "message_norm": lambda u: norms(floats(u.messages)),
    "effective_learning_rate": effective_learning_rate,
    "gradient_cosine": gradient_cosine,
    "gradient_norm_ratio": gradient_norm_ratio,
    "policy_kl": policy_kl,
}
OF_GRADIENTS = {"message_norm", "effective_learning_rate"}
OF_COUNTERFACTUALS = {"gradient_cosine", "gradient_norm_ratio"}
OF_DATA = OF_COUNTERFACTUALS | {"policy_kl"}


def available(method: Method) -> list[str]:
    """The names that `watch` takes for this method."""
    halves = method.halves
    missing = OF_DATA if halves is None else set()
    if halves is not None and halves.gradient is None:
        missing = OF_COUNTERFACTUALS | OF_GRADIENTS
    if halves is not None and halves.distribution is None:
        missing = missing | {"policy_kl"}
    return [name for name in MEASURES if name not in missing]


def watch(method: Method, names: Sequence[str]) -> Method:
    """The same method, with more metrics of `apply`: what the run computes is not touched, to the bit.

    Measures of gradients and policies carry the data behind a message along with it; the counterfactual gradient costs
    one more gradient per message, everything else little. With an XLA_FLAGS of one's own, or under a `vmap` over
    schedules, the last bit may differ, as between any two programs.

    Args:
      method: any; `available(method)` are the names that it has.
      names: of these, which become metrics:

        - "staleness", Int[T, G]: in updates.
        - "parameter_gap", Float[T, G]: the norm of theta_t - theta_read.
        - "step_norm", Float[T]: the norm of the update.
        - "message_norm", Float[T, G]: the norm of the message, where that is a gradient.
        - "effective_learning_rate", Float[T]: the norm of the update over that of the mean message.
        - "gradient_cosine", Float[T, G]: of the stale gradient and that of the same data at the newest parameters.
        - "gradient_norm_ratio", Float[T, G]: the norm of the first over that of the second.
        - "policy_kl", Float[T, G]: KL(read policy || newest) in nats, mean over visited observations: those of whole
          segments of the first environments, 64 or somewhat more, as all of a large message would cost a third of an
          update.

    Returns:
      A Method; with no names the method itself.

    Raises:
      ValueError: a name that does not exist, or not for this method.

    Example:
      >>> import jax, optax, asyncjax as aj
      >>> method = aj.sgd(lambda w: 3.0 * w, 1.0, optimizer=optax.sgd(0.125))
      >>> watched = aj.telemetry.watch(method, ["parameter_gap"])
      >>> result = aj.emulate(watched, aj.schedules.fixed_delay(4, delay=2), jax.random.key(0))
      >>> result.metrics["parameter_gap"].ravel().tolist()  # staleness times step size times gradient
      [0.0, 0.375, 0.75, 0.75]
    """
    if isinstance(names, str):
        raise ValueError(f"names={names!r}: give a list of names, such as [{names!r}].")
    if unknown := [name for name in names if name not in MEASURES]:
        raise ValueError(f"names={unknown}: there is no such measure; choose from {', '.join(MEASURES)}.")
    if missing := [name for name in names if name not in available(method)]:
        raise ValueError(
            f"names={missing}: this method can not be asked for that; it has {', '.join(available(method))}."
            " Gradients want a method that sends them, policies an actor-critic; neither a private optimizer."
        )
    if not names:
        return method
    halves, carried = method.halves, isinstance(method.work, Carrying)  # carried: by an earlier watch
    carries = halves is not None and halves.gradient is not None and bool(OF_DATA & set(names))

    def apply(shared: Any, messages: PyTree, stale: Stale) -> tuple[Any, Metrics]:
        own, data = messages if carried or carries else (messages, messages)
        after, metrics = apart(method.apply, stale.staleness[0] >= 0, shared, messages if carried else own, stale)
        update = Update(method, shared, after, own, stale, data)
        with jax.numpy_dtype_promotion("standard"):  # norms are of parameters that may have several dtypes
            return after, {**metrics, **{name: MEASURES[name](update) for name in names}}

    work = Carrying(halves) if halves is not None and carries and not carried else method.work
    return method._replace(work=work, apply=apply)


@dataclasses.dataclass(frozen=True, eq=False)
class Carrying:
    """A `work` whose message takes the data behind it along."""

    halves: Halves

    def __call__(self, view: PyTree, local: PyTree) -> tuple[PyTree, PyTree, Metrics]:
        """The message and its data, as one."""
        gradient: Any = self.halves.gradient
        data, local, sampled = self.halves.sample(view, local)
        message, metrics = gradient(view, data)
        return (message, data), local, {**sampled, **metrics}
