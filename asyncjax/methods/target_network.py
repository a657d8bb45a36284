"""A target network for gradient methods: a copy of the parameters that is renewed by the frames of all workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from asyncjax.method import Halves, Method, Metrics, Policy, PyTree, Stale
from asyncjax.methods.learner import Learner
from asyncjax.methods.options import Count


class TargetLearner(NamedTuple):
    """Shared state: the fields of `Learner`, the target network and the environment frames of all workers so far.

    Attributes:
      params: the parameters.
      opt_state: see `Learner`, like the next two.
      correction_state: as there.
      messages: as there.
      target: like `params`; `()` without a target network.
      frames: Int32[].
    """

    params: PyTree
    opt_state: PyTree
    correction_state: PyTree
    messages: PyTree
    target: PyTree
    frames: jax.Array


class TargetView(NamedTuple):
    """What a worker reads; see `TargetLearner`."""

    params: PyTree
    target: PyTree
    frames: jax.Array


def with_target_network(
    learner: Callable[[PyTree, PyTree], Method],
    target_period: Count | None,
    frames_per_message: int,
    policy: Policy,
) -> Method:
    """The method whose workers also see a target network and how many frames there were.

    target <- params after every update that takes the frames over a multiple of `target_period`.

    Args:
      learner: (target, frames) -> the gradient method of a worker that sees them; `init` and `apply` must not use them.
      target_period: environment frames of all workers between two target networks; None has none.
      frames_per_message: environment frames behind one message.
      policy: how the method acts, on a `TargetView`.

    Returns:
      A Method with a `TargetLearner` as its shared state and a `TargetView` as its view.
    """

    def init(key: jax.Array, num_workers: int) -> tuple[TargetLearner, PyTree]:
        shared, workers = learner((), ()).init(key, num_workers)
        target = () if target_period is None else shared.params
        return TargetLearner(**shared._asdict(), target=target, frames=jnp.int32(0)), workers

    def view(shared: TargetLearner) -> TargetView:
        return TargetView(shared.params, shared.target, shared.frames)

    def work(view: TargetView, local: PyTree) -> tuple[PyTree, PyTree, Metrics]:
        return learner(view.target, view.frames).work(view.params, local)

    def halves(view: TargetView) -> Any:
        return learner(view.target, view.frames).halves

    def apply(shared: TargetLearner, messages: PyTree, stale: Stale) -> tuple[TargetLearner, Metrics]:
        *inner, target, before = shared
        inner, metrics = learner((), ()).apply(Learner(*inner), messages, stale._replace(view=stale.view.params))
        frames = before + jnp.int32(len(stale.staleness) * frames_per_message)
        if target_period is not None:
            period = jnp.asarray(target_period, jnp.int32)
            due = frames // period > before // period
            target = jax.tree.map(lambda new, old: jnp.where(due, new, old), inner.params, target)
        return TargetLearner(**inner._asdict(), target=target, frames=frames), metrics

    inner = learner((), ()).halves
    if inner is None:
        return Method(init, view, work, apply, policy)
    in_halves = Halves(
        lambda view, local: halves(view).sample(view.params, local),
        lambda view, data: halves(view).gradient(view.params, data),
        None if inner.distribution is None else lambda view, data: halves(view).distribution(view.params, data),
    )
    return Method(init, view, work, apply, policy, in_halves)
