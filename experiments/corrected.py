"""A method under any one of many corrections, all in one program: each can be switched off by a traced number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import asyncjax as aj
from asyncjax import corrections, surrogates
from asyncjax.environment import Discrete
from asyncjax.networks import ActorCritic, MinAtarCNN
from asyncjax.q_networks import QNetwork
from figure import ACTION_VALUES, small_network

NONE, SMALLER, PREDICTION = "none", "a third of the step", "weight prediction"
RINGMASTER, ESS = "Ringmaster, 16", "V-trace, scale by sqrt(ESS)"
# Behind an optimizer that divides by the gradient's size, what scales every message alike does nothing: corrections
# scale a message relative to fresher ones, or change its direction.
OF_MESSAGES: dict[str, Callable[[int], optax.GradientTransformation]] = {  # of the number of messages of a run
    "scale 1/(1+tau)": lambda messages: corrections.scale_by_staleness(1.0),
    "scale 1/sqrt(1+tau)": lambda messages: corrections.scale_by_staleness(0.5),
    "delay-adaptive": lambda messages: corrections.delay_adaptive(1.0, 1 / 64),
    "PipeMare": lambda messages: corrections.pipemare(max(1, messages // 2)),
    "DC-ASGD": lambda messages: corrections.delay_compensation(0.04),
    "DC-ASGD adaptive": lambda messages: corrections.adaptive_delay_compensation(2.0),
    "gap-aware": lambda messages: corrections.gap_aware(),
}
OF_GRADIENTS = (NONE, SMALLER, *OF_MESSAGES, RINGMASTER, PREDICTION)
# Weights of the policy gradient on stale data, with V-trace's targets of the value.
SURROGATES: dict[str, surrogates.Surrogate] = {
    "V-trace": lambda *args: surrogates.truncated(*args, cap=1.0),
    "V-trace, masked": surrogates.masked,
    "V-trace, CISPO": surrogates.cispo,
    "V-trace, M2PO": surrogates.m2po,
    "V-trace, no cap": surrogates.importance,
}
OF_TRAJECTORIES = (NONE, SMALLER, *SURROGATES, ESS, "scale 1/(1+tau)", RINGMASTER, PREDICTION)


class Size(NamedTuple):
    """What a run on a task takes: enough to learn it without staleness, and no more."""

    num_updates: int
    num_envs: int
    unroll_length: int


def build(method: str, env: str, size: Size, hidden: int, on: dict[str, Any], step: Any, horizon: Any) -> aj.Method:
    """A method with the correction that is on.

    Args:
      method: its name.
      env: the task.
      size: of a run.
      hidden: units of each layer.
      on: name of a correction -> whether it is on, a Bool[] that may be traced; all others are compiled, too.
      step: of Adam.
      horizon: of weight prediction, updates; 0 is off.
    """
    steps = size.num_updates * size.num_envs * size.unroll_length
    usual = [switched(on[name], make(size.num_updates)) for name, make in OF_MESSAGES.items() if name in on]
    optimizer = optax.adam(step)
    if RINGMASTER in on:
        optimizer = switched(on[RINGMASTER], corrections.ringmaster(16, optimizer))
    options: dict[str, Any] = {"epsilon_frames": steps // 4} if method in ACTION_VALUES else {}
    if method == "impala":
        options["surrogate"] = one_of({name: surrogate for name, surrogate in SURROGATES.items() if name in on}, on)
        usual.append(switched(on.get(ESS, False), corrections.scale_by_effective_sample_size()))
    made = getattr(aj, method)(
        env,
        optimizer=optimizer,
        num_envs=size.num_envs,
        unroll_length=size.unroll_length,
        anneal_steps=steps,
        network=network(method, env, hidden),
        correction=optax.chain(*usual) if usual else None,
        **options,
    )
    if method == "impala":
        knows = [on[name] for name in (*SURROGATES, ESS) if name in on]
        made = as_if_fresh(made, ~jnp.any(jnp.stack(knows)) if knows else jnp.bool_(True))
    return corrections.predict_weights(made, horizon)


def network(method: str, env: str, hidden: int) -> nn.Module:
    """Two layers; for images a convolution with half the default's channels and a layer of that size."""
    task = aj.make_env(env)
    small = small_network(method, task, hidden)
    if small is not None:
        return small
    assert isinstance(task.action_space, Discrete)
    values = method in ACTION_VALUES
    torso = MinAtarCNN(8, hidden, layer_norm=values)
    return (QNetwork if values else ActorCritic)(task.action_space.num_values, torso)


def switched(on: Any, inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """A correction, told that every message is fresh and on-policy where it is not on."""
    correction = optax.with_extra_args_support(inner)

    def update(updates: Any, state: Any, params: Any = None, **known: Any) -> Any:
        neutral = {"staleness": 0, "effective_sample_size": 1.0}
        known |= {name: jnp.where(on, known[name], value) for name, value in neutral.items() if name in known}
        return correction.update(updates, state, params, **known)

    return optax.GradientTransformationExtraArgs(correction.init, update)  # pyright: ignore[reportArgumentType]


def one_of(candidates: dict[str, surrogates.Surrogate], on: dict[str, Any]) -> surrogates.Surrogate:
    """The policy loss that is on; IMPALA's own where none is."""

    def loss(*args: Any) -> jax.Array:
        usual = SURROGATES["V-trace"](*args)
        return jnp.select([on[name] for name in candidates], [f(*args) for f in candidates.values()], usual)

    return loss


def as_if_fresh(method: aj.Method, on: Any) -> aj.Method:
    """The learner takes its own policy for the behaviour's where it is on, and corrects nothing."""
    assert method.halves is not None
    assert method.halves.distribution is not None
    act = jax.vmap(method.halves.distribution, (None, 0))

    def apply(shared: Any, messages: Any, stale: aj.Stale) -> Any:
        pi = act(shared.params, messages)  # of [G, N, T]
        now = pi.log_prob(messages.action.swapaxes(1, 2)).swapaxes(1, 2)
        return method.apply(shared, messages._replace(extra=jnp.where(on, now, messages.extra)), stale)

    return method._replace(apply=apply)
