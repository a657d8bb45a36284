"""What makes an MDP well formed, and sentences that say where one is not."""

from __future__ import annotations

import numpy as np

from asyncjax.mdp.core import MDP


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
    reward, successor, probability = (np.asarray(x) for x in mdp)
    _check_shapes(reward, successor, probability)
    _refuse(np.isnan(reward) | (reward == np.inf), "its reward is {}; use a finite one, or -inf to forbid it", reward)
    for state in np.flatnonzero(np.isneginf(reward).all(axis=0))[:1]:
        raise ValueError(f"state {state} has no action: every reward is -inf; give it one, or make it absorbing.")
    sums = np.zeros(reward.shape)
    for k in range(successor.shape[1]):  # one successor at a time: temporaries stay the size of the rewards
        p, s = probability[:, k], successor[:, k]
        _refuse(~(p >= 0), "successor {} has probability {}; probabilities are at least 0", k, p)
        _refuse(
            (s < 0) | (s >= reward.shape[1]), "successor {} is state {}, outside the {} states", k, s, len(reward.T)
        )
        sums += p
    error = 1e-9 if probability.dtype == np.float64 else 1e-4
    wrong = (np.abs(sums - 1) > error) & (sums != 0) & ~np.isneginf(reward)
    _refuse(wrong, "its probabilities sum to {}; make them sum to 1, or all be 0 where the episode ends", sums)
    if discount is not None:
        check_discount(mdp, discount)
    return mdp


def check_discount(mdp: MDP, discount: float) -> None:
    """Raises where values need not exist: only a problem that always ends can have a discount of 1."""
    if not 0 <= discount <= 1:
        raise ValueError(f"discount={discount}: values only exist for a discount from 0 to 1.")
    if discount < 1:
        return
    for state in np.flatnonzero(may_last_for_ever(mdp))[:1]:
        raise ValueError(
            f"discount={discount}: from state {state} some policy never comes to an end, so its values need not exist; "
            "use a discount below 1, or let every row of probabilities lead to an end."
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
    for name, array, kind in (
        ("reward", reward, np.floating),
        ("successor", successor, np.integer),
        ("probability", probability, np.floating),
    ):
        if not np.issubdtype(array.dtype, kind):
            raise TypeError(f"{name} has type {array.dtype}; use {'integers' if kind is np.integer else 'floats'}.")
    fits = reward.ndim == 2 and successor.ndim == 3 and successor.shape == probability.shape
    if not fits or 0 in successor.shape or reward.shape != (successor.shape[0], successor.shape[2]):
        raise ValueError(
            f"shapes {reward.shape}, {successor.shape}, {probability.shape} of reward, successor and probability: "
            "use [A, S], [A, K, S] and [A, K, S], none of them 0."
        )


def _refuse(wrong: np.ndarray, sentence: str, *details: object) -> None:
    """Raises the sentence for the first state (and its first action) that is wrong: Bool[A, S]."""
    for state in np.flatnonzero(wrong.any(axis=0))[:1]:
        action = int(np.argmax(wrong[:, state]))
        facts = (x[action, state] if isinstance(x, np.ndarray) else x for x in details)
        raise ValueError(f"state {state}, action {action}: {sentence.format(*facts)}.")
