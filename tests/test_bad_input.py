"""Bad input gets an error that names the argument, the value and the fix: what no other file has a table of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asyncjax as aj

KEY = jax.random.key(0)
ONES = jnp.ones(4)
ENV = "Catch-bsuite"
MDP = aj.mdp.forest(3)
ROUND = aj.schedules.round_robin(6, 2)


def descent(rate: float = 0.1) -> aj.Method:
    return aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(rate))


def bare() -> aj.Method:
    """Its loss tells no metrics."""
    loss: Any = lambda w, x: w * x  # noqa: E731
    sgd = optax.sgd(0.1)
    return aj.gradient_method(lambda key: jnp.float32(0), lambda key: key, lambda w, key: (w, key, {}), loss, sgd)


def sweep(method: Any = descent, settings: Any = ({},), **options: Any) -> aj.Table:
    return aj.sweep(method, ROUND, settings, key=KEY, **options)


CALLS: dict[str, list[tuple[Callable[[], Any], str]]] = {
    "returns": [
        (lambda: aj.returns.n_step_returns(ONES, ONES, ONES, 2, jnp.zeros((4, 1), bool)), r"truncated_t .*\(4, 1\)"),
        (lambda: aj.returns.lambda_returns(ONES, ONES, ONES, 0.5, jnp.array([True])), r"truncated_t .*\(1,\)"),
        (lambda: aj.returns.vtrace(*[ONES] * 5, truncated_t=jnp.zeros(5, bool)), r"truncated_t has the shape \(5,\)"),
        (lambda: aj.returns.retrace(*[ONES] * 5, truncated_t=jnp.zeros(1, bool)), r"truncated_t has the shape \(1,\)"),
        (lambda: aj.returns.gae(ONES, ONES, ONES, ONES, jnp.ones(5)), r"lambda_ has the shape \(5,\)"),
    ],
    "environment": [
        (lambda: aj.make_env("CartPole-v1", max_steps_in_episode=2.5), "max_steps_in_episode=2.5: give a whole number"),
        (lambda: aj.make_env("CartPole-v1", max_steps_in_episode=0), "max_steps_in_episode=0: give a number of at"),
        (lambda: aj.make_env("CartPole-v1", max_steps_in_episode=True), "max_steps_in_episode=True: give a whole"),
        (lambda: aj.make_env("CartPole-v1", max_steps_in_episode=None), "max_steps_in_episode=None: give a whole"),
        (lambda: aj.make_env("CartPole-v1", force_mag="a"), "force_mag='a': give a number"),
        (lambda: aj.make_env("CartPole-v1", force_mag=np.nan), "force_mag=nan: give a number"),
        (lambda: aj.make_env("MemoryChain-bsuite", memory_length=-3), "memory_length=-3: give a number of at least 1"),
        (lambda: aj.make_env("DeepSea-bsuite", size=0), "size=0: give a number of at least 1"),
        (lambda: aj.make_env("DeepSea-bsuite", deterministic=2), "deterministic=2: give True or False"),
    ],
    "options": [
        (lambda: aj.a3c(ENV, discount=None), "discount=None: give a number"),  # type: ignore[arg-type]
        (lambda: aj.a3c(ENV, unroll_length=None), "unroll_length=None: give a number"),  # type: ignore[arg-type]
        (lambda: aj.a3c(ENV, discount=[0.9, 0.8]), r"discount=\[0.9, 0.8\]: give a number"),  # type: ignore[arg-type]
        (lambda: aj.a3c(ENV, discount=jnp.ones(2)), "discount=.*: give a number"),
        (lambda: aj.n_step_q(ENV, target_period=2.5), "target_period=2.5: give a whole number"),  # type: ignore[arg-type]
        (lambda: aj.n_step_q(ENV, target_period=2**31), "target_period=2147483648: give a whole number of at least"),
    ],
    "methods": [
        (lambda: aj.emulate(bare(), ROUND, KEY), r"loss returned one \w+: return \(loss, metrics\)"),
    ],
    "corrections": [
        (lambda: aj.corrections.scale_by_staleness(None), "power=None: give a number"),  # type: ignore[arg-type]
        (lambda: aj.corrections.scale_by_staleness("a"), "power='a': give a number"),  # type: ignore[arg-type]
        (lambda: aj.corrections.scale_by(3.0), "factor=3.0: give a function"),  # type: ignore[arg-type]
        (lambda: aj.corrections.closed_loop_momentum(0.1, max_staleness=1.5), "max_staleness=1.5: give a whole"),  # type: ignore[arg-type]
    ],
    "decision processes": [
        (lambda: aj.mdp.grid_world((2.5, 3)), "height=2.5: give a whole number"),  # type: ignore[arg-type]
        (lambda: aj.mdp.grid_world(5), r"grid=5: give \(height, width\)"),  # type: ignore[arg-type]
        (lambda: aj.mdp.grid_world((3,)), r"grid=\(3,\): give \(height, width\)"),  # type: ignore[arg-type]
        (lambda: aj.mdp.exact_values(aj.mdp.mountain_car(5, 3), 0.9), "is no MDP: give arrays"),  # type: ignore[arg-type]
        (lambda: aj.mdp.policy_values(None, [0], 0.9), "mdp=None is no MDP"),  # type: ignore[arg-type]
        (lambda: aj.mdp.exact_values(MDP, "0.9"), "discount='0.9': give a number"),  # type: ignore[arg-type]
        (lambda: aj.mdp.forest(r1=np.nan), "state 2, action 0: its reward is nan"),
        (lambda: aj.value_iteration(MDP, None), "discount=None: give a number"),  # type: ignore[arg-type]
        (lambda: aj.value_iteration(MDP, 0.9, initial_values=[1, np.nan, 2]), "initial_values is not finite"),  # type: ignore[arg-type]
        (lambda: aj.tabular_sarsa(MDP, 0.9, on_policy=False), "on_policy=False: tabular_sarsa is tabular_q"),
        (lambda: aj.rtdp(MDP, 0.9, initial_values=[1.0, 2.0]), r"initial_values has shape \(2,\)"),  # type: ignore[arg-type]
    ],
    "solve": [
        (lambda: aj.solve(MDP, None), "discount=None: give a number"),  # type: ignore[arg-type]
        (lambda: aj.solve(MDP, 0.9, sweeps=0), "sweeps=0: give a positive number"),
        (lambda: aj.solve(MDP, 0.9, sweeps=2.5), "sweeps=2.5: give a whole number"),
        (lambda: aj.solve(MDP, 0.9, accuracy=np.nan), "accuracy=nan: give a number of at least 0"),
        (lambda: aj.solve(MDP, 0.9, method="anderson", memory=1.5), "memory=1.5: give a whole number"),
        (lambda: aj.solve(MDP, 0.9, foo=3), "foo=3 is no option of modified_policy_iteration: it has sweeps, accuracy"),
    ],
    "statistics and telemetry": [
        (lambda: aj.statistics.bootstrap_interval(np.ones(3), np.mean, num_resamples=1.5), "num_resamples=1.5: give"),  # type: ignore[arg-type]
        (lambda: aj.statistics.bootstrap_interval(np.ones(3), np.mean, level=None), "level=None: give a number"),  # type: ignore[arg-type]
        (lambda: aj.statistics.interquartile_mean(3.0), r"ys=3.0: give an axis of seeds"),  # type: ignore[arg-type]
        (lambda: aj.statistics.seeds_needed(np.ones(3), effect=None), "effect=None: give a number"),  # type: ignore[arg-type]
        (lambda: aj.telemetry.updates_to_target([1.0], 1.0, window=None), "window=None: give a number"),  # type: ignore[arg-type]
        (lambda: aj.faults.permute(ROUND, [[0], [1]]), "name each worker 0 to 1 once"),  # type: ignore[list-item]
        (lambda: aj.telemetry.workers(3), "schedule=3 is no Schedule"),  # type: ignore[arg-type]
        (lambda: aj.telemetry.throughput(3), "schedule=3 is no Schedule"),  # type: ignore[arg-type]
        (lambda: aj.plotting.learning_curve(None), "curves=None: give run directories"),  # type: ignore[arg-type]
    ],
    "sweep": [
        (lambda: sweep(lambda: 3), "method=3 is no Method"),
        (lambda: sweep(None), "method=None: give a function"),
        (lambda: sweep(summarize=[3]), "summarize=3: give a function"),
        (lambda: sweep(seeds=None), "seeds=None: give a number"),
        (lambda: sweep(seeds=-1), "seeds=-1: give a positive number"),
        (lambda: sweep(batch_size=jnp.int32(3)), "batch_size=.* is an array of JAX's"),
        (lambda: sweep(lambda rate: descent(0.1), aj.grid(rate=[True, 1])), "rate=True and rate=1 are equal in Python"),
        (lambda: sweep(settings=[{"num_workers": 0}]), "num_workers=0: give a positive number"),
        (lambda: sweep(settings=[{"num_workers": "3"}]), "num_workers='3': give a whole number"),
        (lambda: aj.summaries.final(None), "fraction=None: give a number"),  # type: ignore[arg-type]
        (lambda: aj.summaries.curve(1.5), "points=1.5: give a whole number"),  # type: ignore[arg-type]
    ],
    "schedules and engines": [
        (lambda: aj.schedules.round_robin(3, None), "num_workers=None: give a number"),  # type: ignore[arg-type]
        (lambda: aj.schedules.check(aj.Schedule(ROUND.worker, {})), r"schedule.read=\{\} has no arrays"),
        (lambda: aj.schedules.check(aj.Schedule(np.array([[2**32]]), np.array([[0]]))), "schedule.worker has 42949"),
        (lambda: aj.schedules.check(ROUND._replace(read=ROUND.read + np.int64(2**32))), "schedule.read has 42949"),
        (lambda: aj.emulate(descent(), ROUND._replace(read={"absent": ROUND.read}), KEY), "no prefix of the view's"),
        (lambda: jax.jit(lambda key: aj.replay(descent(), ROUND, key).shared)(KEY), "replay runs on the host"),
        (lambda: jax.vmap(lambda key: run_threads(key=key))(jax.random.split(KEY, 2)), "run_threads runs on the host"),
        (lambda: jax.disable_jit()(run_threads)(), r"run_threads calls programs .*: use emulate under"),
        (lambda: run_threads(timeout=[1]), r"timeout=\[1\]: give a positive number"),
    ],
}  # fmt: skip


def run_threads(key: jax.Array = KEY, **options: Any) -> Any:
    return aj.run_threads(descent(), key, num_workers=2, num_updates=6, **options)[0].shared


@pytest.mark.parametrize("where", CALLS)
def test_is_told_by_name(where: str) -> None:
    for call, sentence in CALLS[where]:
        with pytest.raises((TypeError, ValueError), match=sentence):
            call()


def test_a_segment_may_come_in_lists_with_flags_of_any_type() -> None:
    exact = aj.returns.n_step_returns(ONES, ONES, ONES, 2, jnp.array([True, False, False, True]))
    np.testing.assert_array_equal(aj.returns.n_step_returns(*[[1.0] * 4] * 3, 2, [1, 0, 0, 1]), exact)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("CartPole-v1", {"max_steps_in_episode": np.int64(7), "x_threshold": np.inf}),
        ("Catch-bsuite", {"rows": jnp.int32(8)}),
        ("SpaceInvaders-MinAtar", {"shot_cool_down": 0}),
        ("Pong-misc", {"ball_x_speed": -1}),
        ("DeepSea-bsuite", {"deterministic": jnp.bool_(True)}),
    ],
)
def test_what_an_environment_may_be_given_is_taken(name: str, params: dict[str, Any]) -> None:
    assert aj.make_env(name, **params).name == name


def test_a_whole_number_may_stand_for_a_float_of_an_environment() -> None:
    env = aj.make_env("BernoulliBandit-misc", max_steps_in_episode=7)
    assert env.max_steps == 7
    assert env.step(KEY, env.reset(KEY)[0], jnp.int32(0))[1].reward.shape == ()
