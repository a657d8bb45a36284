"""What makes an MDP well formed, and sentences that say where one is not."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from asyncjax.checks import check_number
from asyncjax.mdp.core import MDP, AnyMDP, FunctionMDP


def check(mdp: MDP, discount: float | None = None) -> MDP:
    """Returns the MDP, or raises a sentence that names the first state and action at fault.

    Args:
      mdp: the problem.
      discount: also check that values exist: 0 <= discount < 1, or 1 where every policy comes to an end.

    Raises:
      TypeError: arrays of the wrong type.
      ValueError: shapes that do not fit, probabilities that are negative or do not sum to 1 (or are all 0),
        successors outside the state space, rewards that are NaN or infinite, states without an action.
    """
    row_sums(mdp)
    if discount is not None:
        check_discount(mdp, discount)
    return mdp


def check_function(mdp: FunctionMDP, chunk: int = 1 << 16) -> FunctionMDP:
    """The same for a function: it is called once for every state and action, so many states at a time."""
    row_sums(mdp, chunk)
    return mdp


def check_is_mdp(mdp: AnyMDP) -> None:
    """Raises TypeError for what is neither arrays nor a function."""
    if not isinstance(mdp, AnyMDP):
        raise TypeError(f"mdp is a {type(mdp).__name__}: make an MDP, such as aj.mdp.from_arrays(transition, reward).")


def row_sums(mdp: AnyMDP, chunk: int = 1 << 16) -> tuple[float, float]:
    """Checks a problem; the least and the greatest sum of a row that it allows: 0 where an episode ends, else about 1.

    Sums that differ from 1 by no more than rounding are 1.
    """
    if isinstance(mdp, FunctionMDP):
        least, greatest = _function_row_sums(mdp, chunk)
    else:
        reward, successor, probability = (np.asarray(x) for x in mdp)
        _check_shapes(reward, successor, probability)
        sums = _check_rows(reward, successor, probability, mdp.num_states)
        forbidden = np.isneginf(reward)
        for state in np.flatnonzero(forbidden.all(axis=0))[:1]:
            raise _no_action(state)
        sums[forbidden] = 1.0
        least, greatest = sums.min(), sums.max()
    rounding = mdp.num_successors * np.finfo(least.dtype).eps
    least, greatest = (1.0 if abs(x - 1) <= rounding else float(x) for x in (least, greatest))
    return least, greatest


def _function_row_sums(mdp: FunctionMDP, chunk: int) -> tuple[np.floating, np.floating]:
    if mdp.num_states < 1 or mdp.num_actions < 1:
        raise ValueError(f"num_states={mdp.num_states}, num_actions={mdp.num_actions}: use at least 1 of each.")
    chunk = min(chunk, mdp.num_states)
    starts = jnp.arange(0, mdp.num_states, chunk, dtype=jnp.int32)
    found, states, least, greatest = jax.device_get(_survey(mdp, chunk, starts))
    for state in states[found][:1]:
        actions = range(mdp.num_actions)
        rows = [[np.asarray(x) for x in mdp.transition(jnp.int32(state), jnp.int32(action))] for action in actions]
        reward, successor, probability = (np.stack(column)[..., None] for column in zip(*rows, strict=True))
        _check_rows(reward, successor, probability, mdp.num_states, first_state=int(state))
        raise _no_action(state)
    return least.min(), greatest.max()


@partial(jax.jit, static_argnums=(0, 1))  # compiled once for a function, not once for a solve
def _survey(mdp: FunctionMDP, chunk: int, starts: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """For each chunk: whether one of its states is wrong, the first of them, least and greatest sum of a row."""

    def look(state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        reward, successor, probability = mdp.transition(state, action)
        total, forbidden = probability.astype(float).sum(), jnp.isneginf(reward)
        row = jnp.isnan(reward) | jnp.isposinf(reward) | ~(probability >= 0).all()
        row |= ((successor < 0) | (successor >= mdp.num_states)).any()
        row |= (jnp.abs(total - 1) > _rounding(probability.dtype)) & (total != 0) & ~forbidden
        return row, forbidden, jnp.where(forbidden, 1, total)

    def first_wrong(start: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        states = jnp.minimum(start + jnp.arange(chunk, dtype=jnp.int32), mdp.num_states - 1)
        actions = jnp.arange(mdp.num_actions, dtype=jnp.int32)
        rows, forbidden, sums = jax.vmap(lambda s: jax.vmap(lambda a: look(s, a))(actions))(states)
        faults = rows.any(axis=1) | forbidden.all(axis=1)
        return faults.any(), states[jnp.argmax(faults)], sums.min(), sums.max()

    return jax.lax.map(first_wrong, starts)


def check_discount(mdp: MDP, discount: float) -> None:
    """Raises where values need not exist: only a problem that always ends can have a discount of 1."""
    check_number(discount=discount)
    if not 0 <= discount <= 1:
        raise ValueError(f"discount={discount}: values only exist for a discount from 0 to 1.")
    if discount < 1:
        return
    for state in np.flatnonzero(may_last_for_ever(mdp))[:1]:
        raise ValueError(
            f"discount={discount}: from state {state} some policy never comes to an end, so its values need not exist; "
            "use a discount below 1, or let every row of probabilities lead to an end, which is a row of zeros "
            "(a state that leads to itself is none)."
        )


def may_last_for_ever(mdp: MDP) -> np.ndarray:
    """Bool[S]: the states from which some policy surely never ends, the largest set that some actions never leave."""
    available = ~np.isneginf(np.asarray(mdp.reward))
    successor, possible = np.asarray(mdp.successor), np.asarray(mdp.probability) > 0
    goes_on = available & possible.any(axis=1)
    alive = np.ones(mdp.num_states, bool)
    while True:
        stays = goes_on & (alive[successor] | ~possible).all(axis=1)
        now = alive & stays.any(axis=0)
        if (now == alive).all():
            return alive
        alive = now


def _check_shapes(reward: np.ndarray, successor: np.ndarray, probability: np.ndarray) -> None:
    for name, array in (("reward", reward), ("probability", probability)):
        if array.dtype not in (np.float32, np.float64):
            raise TypeError(f"{name} has type {array.dtype}; use float32 or float64.")
    if not np.issubdtype(successor.dtype, np.integer):
        raise TypeError(f"successor has type {successor.dtype}; use integers.")
    fits = reward.ndim == 2 and successor.ndim == 3 and successor.shape == probability.shape
    if not fits or 0 in successor.shape or reward.shape != (successor.shape[0], successor.shape[2]):
        raise ValueError(
            f"shapes {reward.shape}, {successor.shape}, {probability.shape} of reward, successor and probability: "
            "use [A, S], [A, K, S] and [A, K, S], none of them 0."
        )


def _check_rows(
    reward: np.ndarray, successor: np.ndarray, probability: np.ndarray, num_states: int, first_state: int = 0
) -> np.ndarray:
    """Refuses rows of numbers that are none, those of the states from `first_state` on; sums of the others, [A, S]."""
    sums = np.ones(probability.shape[1], np.result_type(reward, probability)) @ probability
    wrong_sums = (np.abs(sums - 1) > _rounding(probability.dtype)) & (sums != 0) & ~np.isneginf(reward)
    fine = reward.max() < np.inf and probability.min() >= 0  # NaN is neither
    if fine and successor.min() >= 0 and successor.max() < num_states and not wrong_sums.any():
        return sums

    def refuse(wrong: np.ndarray, sentence: str, *details: object) -> None:
        """Raises the sentence for the first state (and its first action) that is wrong: Bool[A, S]."""
        for state in np.flatnonzero(wrong.any(axis=0))[:1]:
            action = int(np.argmax(wrong[:, state]))
            facts = (x[action, state] if isinstance(x, np.ndarray) else x for x in details)
            raise ValueError(f"state {first_state + state}, action {action}: {sentence.format(*facts)}.")

    refuse(np.isnan(reward) | (reward == np.inf), "its reward is {}; use a finite one, or -inf to forbid it", reward)
    for k in range(successor.shape[1]):  # one successor at a time: temporaries stay the size of the rewards
        p, s = probability[:, k], successor[:, k]
        refuse(~(p >= 0), "successor {} has probability {}; probabilities are at least 0", k, p)
        refuse((s < 0) | (s >= num_states), "successor {} is state {}, outside the {} states", k, s, num_states)
    refuse(wrong_sums, "its probabilities sum to {}; make them sum to 1, or all be 0 where the episode ends", sums)
    raise AssertionError("unreachable: something was found to be wrong")


def check_chances(**arguments: float) -> None:
    """Raises ValueError for an argument that is no probability."""
    for name, value in arguments.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: a probability is from 0 to 1.")


def _rounding(dtype: np.dtype) -> float:
    """How far from 1 probabilities of this type may sum."""
    return 1e-9 if dtype == np.float64 else 1e-4


def _no_action(state: int) -> ValueError:
    return ValueError(f"state {state} has no action: every reward is -inf; give it one, or make it absorbing.")
