"""MDPs from dense arrays, sparse matrices, functions and files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asyncjax.files import PathLike
from asyncjax.mdp.check import check
from asyncjax.mdp.core import MDP, FunctionMDP


def check_real(**arrays: Any) -> None:
    """Raises TypeError for an array of complex numbers, which would lose their imaginary parts."""
    for name, array in arrays.items():
        if np.iscomplexobj(array):
            raise TypeError(f"{name} has type {np.asarray(array).dtype}; use float32 or float64.")


def from_rows(reward: np.ndarray, successor: np.ndarray, probability: np.ndarray) -> MDP:
    """An MDP from arrays [A, S], [A, S, K], [A, S, K]: a view in which the K successors of a pair stay side by side.

    So the rows of a sparse matrix, as the host solver needs them, are there without a copy.
    """
    check_real(reward=reward, probability=probability)
    for action, state in np.argwhere(np.isnan(reward))[:1]:
        raise ValueError(f"state {state}, action {action}: its reward is nan; give a number.")
    successor = np.ascontiguousarray(successor, np.int32)
    floats = np.float32 if probability.dtype == np.float32 else np.float64
    probability = np.ascontiguousarray(probability, floats)
    return MDP(np.asarray(reward, floats), successor.transpose(0, 2, 1), probability.transpose(0, 2, 1))


def from_arrays(transition: Any, reward: Any) -> MDP:
    """An MDP from dense transition matrices, in float32 if they are.

    Args:
      transition: Float[A, S, S], transition[a, s, t] = P(t | s, a); rows sum to 1, or are all 0 where an episode ends.
      reward: Float[A, S], or Float[A, S, S] where it depends on the successor, or Float[S] where only on the state.
        Of a successor with probability 0 it may be any number, infinity and NaN too.

    Returns:
      An MDP, with as many successors K as the fullest row has numbers that are not 0.

    Raises:
      TypeError: complex numbers.
      ValueError: matrices that are not [A, S, S], rewards of another shape, no action or no state; or numbers that
        make no MDP, such as rows that do not sum to 1, see `mdp.check`.

    Example:
      >>> import numpy as np, asyncjax as aj
      >>> mdp = aj.mdp.from_arrays([np.eye(2), 1 - np.eye(2)], [[0.0, 1.0], [0.0, 0.0]])
      >>> aj.mdp.exact_values(mdp, 0.5)
      array([1., 2.])
    """
    import scipy.sparse as sparse

    check_real(transition=transition, reward=reward)
    dense, reward = np.asarray(transition), np.asarray(reward, np.float64)
    if dense.ndim != 3 or dense.shape[1] != dense.shape[2]:
        raise ValueError(f"transition has shape {dense.shape}; use [A, S, S], one square matrix per action.")
    if reward.shape == dense.shape:
        with np.errstate(invalid="ignore"):
            reward = np.where(dense == 0, 0.0, dense * reward).sum(axis=2)
    return from_scipy([sparse.csr_array(matrix) for matrix in dense], reward)


def from_scipy(transition: Sequence[Any], reward: Any) -> MDP:
    """An MDP from one scipy.sparse matrix of shape [S, S] per action, in float32 if all are.

    Args:
      transition: A matrices; row s of matrix a holds the successors of (s, a).
      reward: Float[A, S], or Float[S] where it only depends on the state.

    Returns:
      An MDP, with as many successors K as the fullest row has entries.

    Raises:
      TypeError: complex numbers.
      ValueError: no matrix, matrices that are not all [S, S], rewards of another shape; or numbers that make no MDP,
        such as rows that do not sum to 1, see `mdp.check`.

    Example:
      >>> import scipy.sparse as sparse, asyncjax as aj
      >>> aj.mdp.from_scipy([sparse.eye_array(3, format="csr")], [0.0, 1.0, 2.0]).num_successors
      1
    """
    import scipy.sparse as sparse

    check_real(reward=reward)
    matrices: list[Any] = [sparse.csr_array(matrix) for matrix in transition]
    reward = np.asarray(reward, np.float64)
    if not matrices or not reward.size:
        raise ValueError(f"{len(matrices)} matrices, rewards {reward.shape}: use at least one action and one state.")
    num_actions, num_states = len(matrices), matrices[0].shape[0]
    for action, matrix in enumerate(matrices):
        if matrix.shape != (num_states, num_states):
            raise ValueError(
                f"the matrix of action {action} has shape {matrix.shape}; use {(num_states,) * 2} for all."
            )
    if reward.shape not in ((num_actions, num_states), (num_states,)):
        raise ValueError(f"reward has shape {reward.shape}; use [A, S] = {(num_actions, num_states)}, or [S].")
    counts = [np.diff(matrix.indptr) for matrix in matrices]
    width = max(1, *(int(count.max()) for count in counts))
    successor = np.zeros((num_actions, num_states, width), np.int32)
    probability = np.zeros(successor.shape, np.result_type(*(matrix.dtype for matrix in matrices)))
    for action, (matrix, count) in enumerate(zip(matrices, counts, strict=True)):
        rows = np.repeat(np.arange(num_states), count)
        column = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], count)
        successor[action, rows, column] = matrix.indices
        probability[action, rows, column] = matrix.data
    return check(from_rows(np.broadcast_to(reward, (num_actions, num_states)), successor, probability))


def tabulate(mdp: FunctionMDP) -> MDP:
    """Writes a function down as arrays, in float64 whatever JAX's default is.

    Example:
      >>> import jax.numpy as jnp, asyncjax as aj
      >>> coin = aj.mdp.FunctionMDP(2, 1, lambda s, a: (1.0 * s, jnp.array([0, 1]), jnp.full(2, 0.5)))
      >>> aj.mdp.tabulate(coin).probability.shape
      (1, 2, 2)
    """
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        over_states = jax.vmap(mdp.transition, in_axes=(0, None))
        over_pairs = jax.jit(jax.vmap(over_states, in_axes=(None, 0)))
        states, actions = jnp.arange(mdp.num_states, dtype=jnp.int32), jnp.arange(mdp.num_actions, dtype=jnp.int32)
        reward, successor, probability = (np.asarray(x) for x in over_pairs(states, actions))
    return check(from_rows(reward, successor, probability))


def save(mdp: MDP, path: PathLike) -> None:
    """Writes the three arrays to an `.npz` file, under their names."""
    reward, successor, probability = (np.asarray(array) for array in mdp)
    np.savez(path, reward=reward, successor=successor, probability=probability)


def load(path: PathLike) -> MDP:
    """Reads an MDP from an `.npz` file: the three arrays, or reward and transition [A, S, S]."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    if arrays.keys() >= {"transition", "reward"}:
        return from_arrays(arrays["transition"], arrays["reward"])
    for name in MDP._fields:
        if name not in arrays:
            raise ValueError(f"{path} holds {sorted(arrays)}, but no {name!r}; write it with `aj.mdp.save`.")
    return check(MDP(*(arrays[name] for name in MDP._fields)))
