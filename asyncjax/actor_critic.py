"""A policy and a value function on one network: what the actor-critic methods share.

The network is the user's or `networks.actor_critic`; the action space decides the distribution; a network with
`initial_carry` has a memory. An agent is for one environment, as networks are: callers `vmap` it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from asyncjax import networks
from asyncjax.distributions import Categorical, Gaussian, gumbel, normal
from asyncjax.environment import Box, Discrete, Environment, Step
from asyncjax.method import Metrics, Policy, PyTree
from asyncjax.rollout import Rollout, Trajectory, in_one_batch, init_rollout, next_values, unroll
from asyncjax.threefry import drawn

WATCHED = 64  # observations of a message on which telemetry compares policies: some percent of a large update

Distribution = Categorical | Gaussian


class Agent(NamedTuple):
    """Acts and predicts values.

    Attributes:
      env: the environment as the agent sees it: its actions are what the distribution draws.
      init: key -> params.
      initial_carry: () -> Carry, the memory at the start of an episode; `()` when there is none.
      step: (params, Carry, observation) -> (Carry, distribution of the action, value Float[]).
      draw: (key, shape) -> noise [*shape, ...], what the distribution's `sample_with` takes.
      policy: the agent in the original environment, for evaluation.
    """

    env: Environment
    init: Callable[[jax.Array], PyTree]
    initial_carry: Callable[[], PyTree]
    step: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, Distribution, jax.Array]]
    draw: Callable[[jax.Array, tuple[int, ...]], jax.Array]
    policy: Policy


class Forward(NamedTuple):
    """An agent's view of segments; `jax.vmap` over the axis of environments gives one environment's.

    Attributes:
      pi: the distributions of the actions, with leading axes T and N.
      v_tm1: Float[T, N], values of the states acted in.
      v_t: Float[T, N], values of the true next states, without gradient.
    """

    pi: Distribution
    v_tm1: jax.Array
    v_t: jax.Array


def make_agent(
    env: Environment, network: nn.Module | None = None, core: networks.Core | None = None, squash: bool = False
) -> Agent:
    """An agent for an environment.

    Args:
      env: with discrete actions, which are drawn from softmax(logits), or with bounded or unbounded real ones, which
        are drawn from a Gaussian in units of the bounds and then clipped to them.
      network: a flax module, observation -> (head, value Float[]), for one unbatched observation. The head is
        logits Float[A], or (mean, log_std), each Float[D]. One with a method `initial_carry() -> Carry`
        has a memory: (Carry, observation) -> (Carry, (head, value)). None is `networks.actor_critic(env, core)`.
      core: the memory of the default network: "gru", "lstm", or None for none.
      squash: bound real actions by tanh instead of clipping them. The distribution, its log-probabilities and entropy,
        is of the action before either, so ratios of policies are the same.

    Returns:
      An Agent.

    Raises:
      ValueError: for another action space, a core beside a network of one's own, or `squash` without bounds; from
        `init`, for a network with another output.
    """
    if network is not None and core is not None:
        raise ValueError(f"core={core!r} is for the default network: put it into network= instead, or leave one out.")
    draw, distribution, to_env = action_head(env, squash)
    net = networks.actor_critic(env, core) if network is None else network
    networks.check_module(net)
    initial_carry: Callable[[], PyTree] = getattr(net, "initial_carry", tuple)

    def init(key: jax.Array) -> PyTree:
        init_key, reset_key = jax.random.split(key)
        observation, carry = drawn(env.reset, reset_key)[1], initial_carry()
        inputs = (carry, observation) if has_memory(carry) else (observation,)
        params = drawn(net.init, init_key, *inputs)
        output = (head_shape(env), ())
        expected = (jax.tree.map(jnp.shape, carry), output) if has_memory(carry) else output
        networks.check_output(net, expected, params, *inputs)
        return params

    def step(params: PyTree, carry: PyTree, observation: PyTree) -> tuple[PyTree, Distribution, jax.Array]:
        output: Any = net.apply(params, *((carry, observation) if has_memory(carry) else (observation,)))
        carry, (head, value) = output if has_memory(carry) else (carry, output)
        return carry, distribution(head), value

    def act(params: PyTree, carry: PyTree, observation: PyTree, key: jax.Array | None) -> tuple[PyTree, PyTree]:
        carry, pi, _ = step(params, carry, observation)
        return to_env(pi.mode() if key is None else pi.sample(key)), carry

    def env_step(key: jax.Array, state: PyTree, action: PyTree) -> tuple[PyTree, Step]:
        return env.step(key, state, to_env(action))

    inner = env if isinstance(env.action_space, Discrete) else env._replace(step=env_step)
    return Agent(inner, init, initial_carry, step, draw, Policy(initial_carry, act))


def action_head(env: Environment, squash: bool = False) -> tuple[Callable, Callable, Callable]:
    """(noise for sampling, network head -> distribution, drawn action -> the environment's) of an action space."""
    space = env.action_space
    if isinstance(space, Discrete):
        require_bounds(env, squash, False)
        return lambda key, shape: gumbel(key, (*shape, space.num_values)), Categorical, lambda action: action
    if not isinstance(space, Box) or len(space.shape) > 1:
        raise ValueError(
            f"env={env.name!r} has the action space {space}: an agent acts with one discrete action or one vector of"
            " real ones, a Discrete or a Box of asyncjax.environment. Wrap the environment so that its actions are one"
            " of the two."
        )
    bounded = np.isfinite(space.low) & np.isfinite(space.high)
    require_bounds(env, squash, bool(bounded.any()))
    low, high = np.where(bounded, space.low, -1.0), np.where(bounded, space.high, 1.0)
    low, high = low / 2, high / 2  # half of it, as the distance of the largest numbers is no number
    centre, half_width = np.float32(low + high), np.float32(high - low)
    dtype = jax.dtypes.canonicalize_dtype(space.dtype)
    ends = np.asarray(space.low, dtype), np.asarray(space.high, dtype)

    def to_env(action: jax.Array) -> jax.Array:
        inside = jnp.tanh(action) if squash else jnp.clip(action, -1.0, 1.0)
        shaped = jnp.where(bounded, inside.reshape(space.shape), action.reshape(space.shape))
        # Sums may miss the ends by a bit, and of one without bounds on both sides one may be finite.
        return jnp.clip(jnp.asarray(centre + half_width * shaped, dtype), *ends)

    size = int(np.prod(space.shape))
    return lambda key, shape: normal(key, (*shape, size)), lambda head: Gaussian(*head), to_env


def head_shape(env: Environment) -> Any:
    """The shapes of a network's head: of logits, or of mean and log_std."""
    if isinstance(env.action_space, Discrete):
        return (env.action_space.num_values,)
    return ((math.prod(env.action_space.shape),),) * 2


def require_bounds(env: Environment, squash: bool, bounded: bool) -> None:
    """Raises ValueError for actions to be squashed into bounds that they do not have."""
    if squash and not bounded:
        raise ValueError(
            f"squash=True bounds real actions, and those of env={env.name!r}, {env.action_space}, have no bounds: leave"
            " it out."
        )


def has_memory(carry: PyTree) -> bool:
    """Whether there is anything to remember."""
    return bool(jax.tree.leaves(carry))


def start(agent: Agent, key: jax.Array, num_envs: int) -> Rollout:
    """N environments at their first step. The key is consumed."""
    return init_rollout(agent.env, key, num_envs, agent.initial_carry())


def collect(
    agent: Agent, params: PyTree, rollout: Rollout, length: int, extra: Callable = lambda pi, action: ()
) -> tuple[Trajectory, Rollout, Metrics]:
    """`rollout.unroll` with the agent's policy, as a `sample` of `Halves`; nothing of it is differentiated.

    Args:
      agent: who acts.
      params: its parameters.
      rollout: where the environments stand.
      length: T.
      extra: (distribution, action) -> what else to record, such as log-probabilities.
    """
    params = jax.lax.stop_gradient(params)

    def act(carry: PyTree, observation: PyTree, noise: jax.Array) -> tuple[PyTree, jax.Array, Any]:
        carry, pi, _ = agent.step(params, carry, observation)
        action = pi.sample_with(noise)
        return carry, action, extra(pi, action)

    carry = agent.initial_carry()
    rollout, trajectory, episodes = unroll(agent.env, act, rollout, length, draw=agent.draw, initial_carry=carry)
    return trajectory, rollout, episodes


def forward(agent: Agent, params: PyTree, trajectory: Trajectory, axis: int = 1) -> Forward:
    """Distributions and values along the segments of N environments, from the memories that they began with.

    Args:
      agent: whose network.
      params: its parameters.
      trajectory: [T, N, ...].
      axis: of the environments; 0 where the trajectory, and what is returned, is [N, T, ...].
    """
    if has_memory(trajectory.carry):
        of_one = partial(_remember, agent, params)
        pi, v_tm1, v_bootstrap = jax.vmap(of_one, in_axes=axis, out_axes=axis)(trajectory)
    else:
        at = in_one_batch(lambda observation: agent.step(params, trajectory.carry, observation)[1:])
        pi, v_tm1 = at(trajectory.observation)
        _, v_bootstrap = at(trajectory.bootstrap_observation)
    baseline, v_bootstrap = jax.lax.stop_gradient((v_tm1, v_bootstrap))
    v_t = jax.vmap(next_values, in_axes=axis, out_axes=axis)(baseline, v_bootstrap, trajectory.truncated)
    return Forward(pi, v_tm1, v_t)


def distribution(agent: Agent, params: PyTree, trajectory: Trajectory) -> Distribution:
    """How the agent acts in a sample of a batch of segments, [T, N, ...] -> [n, T, ...], for telemetry.

    The segments of the first n environments, whole as memories want them: enough for WATCHED observations, or all.
    """
    n = -(-WATCHED // trajectory.reward.shape[0])
    sample = jax.tree.map(lambda x: x[:, :n], trajectory)
    return jax.tree.map(lambda x: x.swapaxes(0, 1), forward(agent, params, sample).pi)


def _remember(agent: Agent, params: PyTree, trajectory: Trajectory) -> tuple[Distribution, jax.Array, jax.Array]:
    """The distributions and values of one environment's segment, and the values of its bootstrap observations."""
    initial = agent.initial_carry()

    def advance(carry: PyTree, x: tuple[PyTree, jax.Array]) -> Any:
        observation, done = x
        after, pi, value = agent.step(params, carry, observation)
        return jax.tree.map(lambda new, old: jnp.where(done, new, old), initial, after), (after, pi, value)

    done = trajectory.terminated | trajectory.truncated
    before = jax.tree.map(lambda x: x[0], trajectory.carry)
    _, (after, pi, v_tm1) = jax.lax.scan(advance, before, (trajectory.observation, done))  # the memory before any reset
    at_end = jax.vmap(lambda carry, observation: agent.step(params, carry, observation)[2])
    return pi, v_tm1, at_end(_bootstrap_rows(after, trajectory), trajectory.bootstrap_observation)


def _bootstrap_rows(after: PyTree, trajectory: Trajectory) -> PyTree:
    """Of the memory after every step, [T, ...], what belongs to the bootstrap observations, [S, ...]."""
    length = trajectory.truncated.shape[0]
    if jax.tree.leaves(trajectory.bootstrap_observation)[0].shape[0] == length:
        return after
    rows = jnp.stack([jnp.argmax(trajectory.truncated).astype(jnp.int32), jnp.int32(length - 1)])
    return jax.tree.map(lambda x: x[rows], after)
