"""Walking through a tabular MDP: transitions, epsilon-greedy actions, and where episodes begin."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from asyncjax.checks import check_least, given
from asyncjax.mdp.core import MDP, AnyMDP
from asyncjax.method import Array


class Step(NamedTuple):
    """What a step led to.

    Attributes:
      successor: Int32[], the state that was drawn; of no meaning where the episode terminated.
      terminated: Bool[], whether the MDP ended the episode with this step.
      here: Int32[], where the walk goes on: the successor, or the first state of a new episode.
      age: Int32[], the steps of the running episode so far.
    """

    successor: jax.Array
    terminated: jax.Array
    here: jax.Array
    age: jax.Array


class Walk(NamedTuple):
    """An MDP to walk through; the functions are for one walker.

    Attributes:
      mdp: the problem.
      starts: Int[n], the states in which episodes begin, with equal chances.
      max_steps: steps after which an episode is broken off; None never does.
    """

    mdp: AnyMDP
    starts: jax.Array
    max_steps: int | None

    def pair(self, state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Reward Float[], successors Int[K] and probabilities Float[K] of a state and an action."""
        if isinstance(self.mdp, MDP):
            reward, successor, probability = (jnp.asarray(x) for x in self.mdp)
            return reward[action, state], successor[action, :, state], probability[action, :, state]
        return self.mdp.transition(state, action)

    def quality(self, q: jax.Array, state: jax.Array) -> jax.Array:
        """Q(s, .) with -inf for the actions that are not available, Float[A]."""
        actions = jnp.arange(self.mdp.num_actions, dtype=jnp.int32)
        reward = jax.vmap(lambda action: self.pair(state, action)[0])(actions)
        return jnp.where(jnp.isneginf(reward), -jnp.inf, q[:, state])

    def act(self, q: jax.Array, state: jax.Array, epsilon: float | jax.Array, key: jax.Array) -> jax.Array:
        """An epsilon-greedy action among those available, Int32[]."""
        explore_key, action_key = jax.random.split(key)
        quality = self.quality(q, state)
        uniform = jax.random.categorical(action_key, jnp.where(jnp.isneginf(quality), -jnp.inf, 0.0))
        explore = jax.random.uniform(explore_key) < epsilon
        return jnp.where(explore, uniform, jnp.argmax(quality)).astype(jnp.int32)

    def begin(self, key: jax.Array) -> jax.Array:
        """The first state of an episode, Int32[]."""
        return jax.random.choice(key, self.starts)

    def step(self, state: jax.Array, action: jax.Array, age: jax.Array, key: jax.Array) -> Step:
        """Takes an action in a state that the walk has come to after `age` steps."""
        successor_key, start_key = jax.random.split(key)
        _, successors, probability = self.pair(state, action)
        successor = successors[jax.random.categorical(successor_key, jnp.log(probability))].astype(jnp.int32)
        terminated = jnp.sum(probability) == 0
        done = terminated if self.max_steps is None else terminated | (age + 1 >= self.max_steps)
        return Step(
            successor, terminated, jnp.where(done, self.begin(start_key), successor), jnp.where(done, 0, age + 1)
        )


def make_walk(mdp: AnyMDP, start: Array | int | None, max_steps: int | None) -> Walk:
    """The walk whose episodes begin in `start`, states Int[n] or one of them; by default anywhere."""
    check_least(1, "an episode has at least 1 step; None never breaks one off", **given(max_steps=max_steps))
    starts = np.arange(mdp.num_states) if start is None else np.atleast_1d(np.asarray(start))
    if starts.dtype.kind not in "iu" or not starts.size or starts.min() < 0 or starts.max() >= mdp.num_states:
        raise ValueError(f"start={start}: episodes begin in one or more of the states 0 to {mdp.num_states - 1}.")
    return Walk(mdp, jnp.asarray(starts, jnp.int32), max_steps)
