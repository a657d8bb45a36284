"""The table of methods, and what the laws are stated in. A new method joins all laws with one row of METHODS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st

import asyncjax as aj
from asyncjax.checks import is_key

KEY = jax.random.key(7)


def noisy_quadratic(**options: Any) -> aj.Method:
    """SGD on a quadratic with a pytree of parameters and a random target per message."""

    def loss(params: Any, target: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum(jnp.square(params["w"] - target)) + 0.1 * jnp.square(params["b"])

    params = {"w": jnp.array([1.0, -2.0, 3.0]), "b": jnp.float32(0.5)}
    return aj.sgd(loss, params, optimizer=optax.adam(0.05), sample=lambda key: jax.random.normal(key, (3,)), **options)


def leaves_of_all_kinds() -> aj.Method:
    """Random keys, truth values, bytes and nothing at all, in every place."""

    def init(key: jax.Array, num_workers: int) -> Any:
        keys = jax.random.split(key, num_workers)
        shared = {
            "key": key,
            "odd": jnp.array([True, False]),
            "byte": jnp.uint8(3),
            "none": None,
            "empty": jnp.zeros((0,)),
        }
        return shared, {
            "key": keys,
            "odd": jnp.zeros(num_workers, bool),
            "empty": jnp.zeros((num_workers, 0, 2)),
            "e": (),
        }

    def work(view: Any, local: Any) -> Any:
        message = {"key": jax.random.fold_in(local["key"], view["byte"]), "odd": view["odd"], "none": None}
        new = {**local, "key": jax.random.fold_in(local["key"], 1), "odd": ~local["odd"]}
        return message, new, {"odd": local["odd"], "empty": view["empty"]}

    def apply(shared: Any, messages: Any, stale: aj.Stale) -> Any:
        byte = jax.random.bits(messages["key"][0], (), jnp.uint8) + shared["byte"]
        return {**shared, "byte": byte, "odd": ~messages["odd"][0]}, {"byte": byte, "staleness": stale.staleness}

    return aj.Method(init, lambda shared: shared, work, apply)


METHODS: dict[str, Callable[[], aj.Method]] = {
    "sgd": noisy_quadratic,
    "sgd, private optimizer": lambda: noisy_quadratic(private_optimizer=True),
    "sgd, corrected": lambda: noisy_quadratic(
        correction=optax.chain(
            aj.corrections.adaptive_delay_compensation(0.2), aj.corrections.gap_aware(), aj.corrections.pipemare(9)
        )
    ),
    "local updates": lambda: aj.local_updates(
        noisy_quadratic(),
        period=3,
        optimizer=optax.sgd(0.7, 0.9, nesterov=True),
        correction=aj.corrections.polynomial(),
    ),
    "a3c": lambda: aj.a3c("Catch-bsuite", num_envs=2, unroll_length=3),
    "n_step_q": lambda: aj.n_step_q("Catch-bsuite", num_envs=2, unroll_length=3, target_period=20, epsilon_frames=50),
    "one_step_sarsa": lambda: aj.one_step_sarsa("Catch-bsuite", num_envs=2, unroll_length=3, target_period=20),
    "impala": lambda: aj.impala("Catch-bsuite", num_envs=2, unroll_length=3),
    "ppo": lambda: aj.ppo("Catch-bsuite", num_envs=2, unroll_length=3, epochs=2, num_minibatches=2),
    "value iteration": lambda: aj.value_iteration(aj.mdp.garnet(0, 12, 3, 4), 0.9, num_leaves=3),
    "tabular q": lambda: aj.tabular_q(aj.mdp.garnet(0, 6, 2, 3), 0.9, unroll_length=2),
}
# The rows for the laws that compile many programs: what these find in an engine does not depend on the method.
THOROUGH = ["sgd", "sgd, private optimizer", "sgd, corrected", "value iteration", "tabular q"]
_built: dict[str, aj.Method] = {}


def method(name: str) -> aj.Method:
    """The method of this row, built once, so that its compiled programs are shared by the tests."""
    if name not in _built:
        _built[name] = METHODS[name]()
    return _built[name]


def definition(method: aj.Method, schedule: aj.Schedule, key: jax.Array, num_workers: int) -> aj.Result:
    """The definition of a run, event by event, with a history of all versions: what every engine has to agree with."""
    shared, local = jax.jit(method.init, static_argnums=1)(key, num_workers)
    work, apply, view = jax.jit(method.work), jax.jit(method.apply), jax.jit(method.view)
    history = [view(shared)]
    of_work, of_apply = [], []
    for t in range(schedule.num_updates):
        messages, views = [], []
        for g in range(schedule.group_size):
            worker = int(schedule.worker[t, g])
            seen = read_view(history, schedule.read, t, g)
            message, mine, metrics = work(seen, jax.tree.map(lambda x, w=worker: x[w], local))
            local = jax.tree.map(lambda x, new, w=worker: x.at[w].set(new), local, mine)
            messages.append(message)
            views.append(seen)
            of_work.append(metrics)
        stale = aj.Stale(stack(views), jnp.asarray(schedule.staleness()[t], jnp.int32))
        shared, metrics = apply(shared, stack(messages), stale)
        history.append(view(shared))
        of_apply.append(metrics)
    shape = (schedule.num_updates, schedule.group_size)
    metrics = {name: x.reshape(*shape, *x.shape[1:]) for name, x in stack(of_work).items()}
    return aj.Result(shared, local, {**metrics, **stack(of_apply)})


def read_view(history: list[Any], read: Any, t: int, g: int) -> Any:
    """The view that message g of update t read; `read` is one array, or a tree prefix of the view."""
    parts, structure = jax.tree.flatten(read)
    subtrees = [structure.flatten_up_to(history[int(part[t, g])])[i] for i, part in enumerate(parts)]
    return structure.unflatten(subtrees)


def stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


def raw(tree: Any) -> Any:
    """Random keys as the numbers behind them, everything as numpy arrays."""

    def leaf(x: Any) -> np.ndarray:
        return np.asarray(jax.random.key_data(x) if is_key(x) else x)

    return jax.tree.map(leaf, tree)


def assert_equal(x: Any, y: Any) -> None:
    """Bit for bit."""
    assert jax.tree.structure(x) == jax.tree.structure(y)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(raw(x)), jax.tree.leaves(raw(y)), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


def assert_close(x: Any, y: Any, tolerance: float = 2e-5) -> None:
    """Up to rounding."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(raw(x)), jax.tree.leaves(raw(y)), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path))


@st.composite
def schedules(draw: st.DrawFn, num_updates: int = 8, num_workers: int = 3, max_group: int = 2) -> aj.Schedule:
    """Any well-formed schedule, realizable or not. The sizes are few, so that compiled programs are shared."""
    group_size = draw(st.integers(1, max_group))
    worker = [[draw(st.integers(0, num_workers - 1)) for _ in range(group_size)] for _ in range(num_updates)]
    read = [[draw(st.integers(0, t)) for _ in range(group_size)] for t in range(num_updates)]
    return aj.Schedule(np.array(worker, np.int32), np.array(read, np.int32))
