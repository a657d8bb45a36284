"""Solvers: every bound holds, every method ends at the same values, rules that certify nothing are shown not to."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import asyncjax as aj
from asyncjax.mdp import MDP, FunctionMDP
from asyncjax.solvers.horizon import longest_time
from asyncjax.solvers.host_model import HostModel
from asyncjax.solvers.levels import levels, reordered
from asyncjax.solvers.solution import Certificate, Residual
from asyncjax.solvers.solve import METHODS

pytestmark = pytest.mark.usefixtures("quick_compilation")

PROBLEMS = {
    "forest": (aj.mdp.forest(12), 0.95),
    "garnet": (aj.mdp.garnet(0, 12, 3, 4), 0.95),
    "frozen_lake": (aj.mdp.frozen_lake(), 0.95),
    "inventory": (aj.mdp.inventory(), 0.95),
    "random_walk": (aj.mdp.random_walk(10), 1.0),
}
SYNCHRONOUS = [name for name in METHODS if name != "async"]


def single(mdp):
    """The same problem in float32."""
    return MDP(*(np.asarray(x, np.float32) if x.dtype == np.float64 else x for x in mdp))


def how(method: str) -> Any:
    """Arguments of `solve`: a method on the host, or the default one compiled."""
    return {"backend": "jax"} if method == "jax" else {"method": method}


def error(solution, mdp, discount):
    return np.abs(solution.values - aj.mdp.exact_values(mdp, discount)).max()


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("method", SYNCHRONOUS)
def test_every_method_reaches_the_exact_values(method, problem):
    mdp, discount = PROBLEMS[problem]
    solution = aj.solve(mdp, discount, method=method, tolerance=1e-10)
    assert solution.converged
    assert solution.bound <= 1e-10
    # The bound allows for rounding, and so do the linear solves that it is compared with.
    assert error(solution, mdp, discount) <= solution.bound + 1e-13
    loss = aj.mdp.exact_values(mdp, discount) - aj.mdp.policy_values(mdp, solution.policy, discount)
    assert loss.max() <= solution.policy_bound + 1e-13
    assert solution.backups >= solution.sweeps * mdp.num_states


@pytest.mark.parametrize("method", [name for name in METHODS if name != "gauss_seidel"])
def test_the_compiled_backend_in_float32(method):
    mdp, discount = PROBLEMS["garnet"]
    solution = aj.solve(single(mdp), discount, method=method, tolerance=1e-2, backend="jax")
    assert solution.values.dtype == np.float32
    assert solution.converged
    assert error(solution, mdp, discount) <= solution.bound


def test_the_compiled_backend_in_float64():
    mdp, discount = PROBLEMS["frozen_lake"]
    assert jnp.zeros(()).dtype == jnp.float32  # the type of the arrays decides
    solution = aj.solve(mdp, discount, tolerance=1e-10, backend="jax")
    assert solution.values.dtype == np.float64
    assert error(solution, mdp, discount) <= solution.bound <= 1e-10


def test_arrays_in_float32_are_solved_in_float32():
    mdp = single(PROBLEMS["garnet"][0])
    solution = aj.solve(mdp, 0.95, tolerance=1e-2)
    assert solution.values.dtype == np.float32
    assert error(solution, mdp, 0.95) <= solution.bound <= 1e-2


@pytest.mark.parametrize("method", [*SYNCHRONOUS, "jax"])
@pytest.mark.parametrize("convert", [single, lambda mdp: mdp], ids=["float32", "float64"])
@pytest.mark.parametrize("problem", ["garnet", "frozen_lake"])
def test_what_rounding_does_not_allow_is_not_claimed(method, convert, problem):
    mdp, discount = PROBLEMS[problem]
    solution = aj.solve(convert(mdp), discount, tolerance=1e-30, **how(method))
    assert not solution.converged
    assert error(solution, mdp, discount) <= solution.bound


@pytest.mark.parametrize("method", [*METHODS, "jax"])
@pytest.mark.parametrize("convert", [single, lambda mdp: mdp], ids=["float32", "float64"])
def test_values_that_rounding_keeps_from_the_exact_ones_end_a_run(method, convert):
    """In a chain that goes to and fro, values come to rest at a distance; whoever waited for less would never end."""
    mdp = aj.mdp.from_arrays([[[0.0, 1.0], [1.0, 0.0]]], [[10.0, 11.3]])
    solution = aj.solve(convert(mdp), 0.99, tolerance=1e-30, max_seconds=60, **how(method))
    assert not solution.converged
    assert solution.seconds < 60
    assert error(solution, mdp, 0.99) <= solution.bound


@given(seed=st.integers(0, 2**32 - 1), discount=st.sampled_from([0.9, 0.999, 0.9999]))
@pytest.mark.parametrize("method", SYNCHRONOUS)
def test_bounds_hold_in_float32_where_values_are_much_larger_than_rewards(method, discount, seed):
    """Rounding is relative to the values after a shift, which may be a horizon times larger than those before it."""
    for mdp in (single(aj.mdp.cycle(1, reward=0.1)), single(aj.mdp.garnet(seed, 4, 2, 3))):
        solution = aj.solve(mdp, discount, tolerance=1e-30, method=method, max_seconds=0.05)
        assert error(solution, mdp, discount) <= solution.bound


@given(seed=st.integers(0, 2**32 - 1), ends=st.booleans())
def test_bounds_hold_where_rows_only_nearly_sum_to_1(seed, ends):
    """Within what `check` lets pass; the values of the rows as they are then differ by far more than the bound."""
    mdp, off = single(aj.mdp.garnet(seed, 8, 2, 3)), 9e-5 * np.random.default_rng(seed).uniform(-1, 1, (2, 1, 8))
    mdp.probability[:] *= 1 + off
    if ends:
        mdp.probability[:, :, 3] = 0.0
    solution = aj.solve(mdp, 0.999, tolerance=1e-3)
    assert error(solution, mdp, 0.999) <= solution.bound


def test_rows_whose_sums_undo_the_discount_are_refused():
    mdp = aj.mdp.cycle(3)._replace(probability=np.full((1, 1, 3), 1 + 9e-10))
    with pytest.raises(ValueError, match=r"sums to 1\.0000000009; divide each by its sum"):
        aj.solve(mdp, 1 - 1e-10)


@pytest.mark.parametrize(("reward", "probability"), [(np.float32, np.float64), (np.float64, np.float32)])
@pytest.mark.parametrize("backend", ["host", "jax"])
def test_types_may_differ(reward, probability, backend):
    """The rewards' type is that of the values, and the bound is that of the rows as they are."""
    mdp = aj.mdp.garnet(0, 12, 3, 4)
    mdp = MDP(mdp.reward.astype(reward), mdp.successor.astype(np.uint64), mdp.probability.astype(probability))
    solution = aj.solve(mdp, 0.95, tolerance=1e-2 if reward == np.float32 else 1e-9, backend=backend)
    assert solution.values.dtype == reward
    assert solution.converged
    assert error(solution, mdp, 0.95) <= solution.bound


@pytest.mark.parametrize("method", [*SYNCHRONOUS, "jax"])
def test_values_beyond_the_largest_number_are_an_error(method):
    mdp = aj.mdp.garnet(0, 6, 3, 3)
    with pytest.raises(FloatingPointError, match="the rewards are too large for their type"):
        aj.solve(mdp._replace(reward=1e307 * mdp.reward), 0.99, **how(method))


@given(
    seed=st.integers(0, 2**32 - 1),
    discount=st.sampled_from([0.5, 0.9, 0.99]),
    ends=st.booleans(),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_bounds_hold_for_any_snapshot(seed, discount, ends, scale):
    mdp = aj.mdp.garnet(seed, 8, 2, 3)
    if ends:
        mdp.probability[:, :, 3] = 0.0
    values = scale * np.random.default_rng(seed).standard_normal(8)
    residual = HostModel(mdp, discount).improve(values)
    horizon = 1 / (1 - discount)
    certificate = Certificate(1.0 if ends else horizon, horizon, 7 * 2.0**-52)
    bound, policy_bound = certificate.bounds(residual)
    shifted = residual.values + certificate.shift(residual.low, residual.high)
    exact = aj.mdp.exact_values(mdp, discount)
    assert np.abs(shifted - exact).max() <= bound
    policy = (mdp.reward + discount * (mdp.probability * values[mdp.successor]).sum(axis=1)).argmax(axis=0)
    assert (exact - aj.mdp.policy_values(mdp, policy, discount)).max() <= policy_bound


def test_a_bound_counts_what_rounded_probabilities_may_add_to_the_horizon():
    """Rows of float32 that sum to 1 + 4e-7 are taken for 1; beyond a million steps that is a factor."""
    probability = np.full((1, 4, 1), 0.25, np.float32)
    for _ in range(3):
        probability = np.nextafter(probability, np.float32(2))
    mdp, discount = MDP(np.ones((1, 1), np.float32), np.zeros((1, 4, 1), np.int32), probability), 0.9999995
    solution = aj.solve(mdp, discount, tolerance=1.0, max_seconds=10.0)
    exact = 1 / (1 - discount * probability.astype(np.float64).sum())
    assert abs(float(solution.values[0]) - exact) <= solution.bound
    assert not solution.converged


# Anderson's differences are rounded at the size of the start: it stops, and says that it has not converged.
@pytest.mark.parametrize("method", [name for name in SYNCHRONOUS if name != "anderson"])
def test_rounding_is_that_of_the_answer_not_of_the_start(method):
    mdp = MDP(np.ones((1, 1), np.float32), np.zeros((1, 1, 1), np.int32), np.ones((1, 1, 1), np.float32))
    solution = aj.solve(mdp, 0.99, initial=[1e8], tolerance=1.0, method=method)
    assert solution.converged
    assert abs(float(solution.values[0]) - 100) <= solution.bound <= 1.0


def test_differences_of_in_place_sweeps_bound_nothing():
    violated = 0
    for seed in range(100):
        mdp, values = aj.mdp.garnet(seed, 8, 2, 3), np.zeros(8)
        model = HostModel(mdp, 0.9)
        model.blocks = [(state, state + 1) for state in range(8)]
        for _ in range(3):
            change = model.improve_in_place(values)
        certificate = Certificate(10.0, 10.0, 0.0)
        shifted = values + certificate.shift(change.low, change.high)
        bound, _ = certificate.bounds(Residual(values, change.low, change.high, 0.0))
        violated += np.abs(shifted - aj.mdp.exact_values(mdp, 0.9)).max() > bound
    assert violated > 30


def test_small_local_changes_bound_nothing():
    """A worker alone on its states sees no change any more while the others never moved: local quiet is no stop."""
    mdp = aj.mdp.garnet(0, 10, 2, 4)
    model, values = HostModel(mdp, 0.999), np.zeros(10)
    model.blocks = [(0, 5)]
    for _ in range(20_000):
        change = model.improve_in_place(values)
    assert max(change.high, -change.low) < 1e-9
    assert np.abs(values - aj.mdp.exact_values(mdp, 0.999)).max() > 1


def test_span_certifies_the_policy_but_not_unshifted_values():
    mdp, values = aj.mdp.forest(3), np.zeros(3)
    model = HostModel(mdp, 0.96)
    residual = model.improve(values)
    while residual.high - residual.low >= 1e-3:
        residual = model.improve(residual.values)
    exact = aj.mdp.exact_values(mdp, 0.96)
    np.testing.assert_allclose(aj.mdp.policy_values(mdp, model.policy, 0.96), exact, rtol=1e-12)
    assert np.abs(residual.values - exact).max() > 1
    shift = Certificate(25.0, 25.0, 0.0).shift(residual.low, residual.high)
    assert np.abs(residual.values + shift - exact).max() <= 24 * 1e-3


@given(seed=st.integers(0, 2**32 - 1))
def test_modified_policy_iteration_with_one_sweep_is_value_iteration(seed):
    mdp = aj.mdp.garnet(seed, 12, 3, 4)
    mdp.probability[:, :, 0] = 0.0  # an end, so that nothing is shifted
    one = aj.solve(mdp, 0.9, sweeps=1)
    jacobi = aj.solve(mdp, 0.9, method="jacobi")
    np.testing.assert_array_equal(one.values, jacobi.values)
    assert one.sweeps == jacobi.sweeps


@pytest.mark.parametrize("backend", ["host", "jax"])
@pytest.mark.parametrize("problem", ["cycle", "perishable_inventory"])
def test_policies_that_go_round_in_cycles_do_not_take_a_horizon_of_sweeps(problem, backend):
    mdp = aj.mdp.cycle(2) if problem == "cycle" else aj.mdp.tabulate(aj.mdp.perishable_inventory(lead_time=1))
    if problem == "cycle":
        mdp.reward[0] = [0.0, 1.0]
    solution = aj.solve(mdp, 0.999, tolerance=1e-3, backend=backend)
    assert solution.converged
    assert solution.sweeps < 1000  # without mixing more than 10,000
    assert error(solution, mdp, 0.999) <= solution.bound + 1e-7


@given(seed=st.integers(0, 2**32 - 1), num_states=st.integers(1, 30), num_actions=st.integers(1, 3))
def test_deterministic_problems_are_solved_whatever_their_cycles(seed, num_states, num_actions):
    mdp = aj.mdp.garnet(seed, num_states, num_actions, 1)
    solution = aj.solve(mdp, 0.99, tolerance=1e-6)
    assert solution.converged
    assert solution.sweeps < 20_000
    assert error(solution, mdp, 0.99) <= solution.bound + 1e-10


def test_value_iteration_is_jacobi() -> None:
    mdp = aj.mdp.garnet(0, 8, 2, 3)
    one, other = (aj.solve(mdp, 0.9, method=method) for method in ("value_iteration", "jacobi"))
    np.testing.assert_array_equal(one.values, other.values)
    assert one.sweeps == other.sweeps


def test_jacobi_on_constant_rewards_is_the_geometric_sum():
    mdp, values, model = aj.mdp.cycle(4), np.zeros(4), HostModel(aj.mdp.cycle(4), 0.9)
    for k in range(1, 30):
        values = model.improve(values).values
        np.testing.assert_allclose(values, (1 - 0.9**k) / 0.1, rtol=1e-13)
    # and one shift is exact
    assert aj.solve(mdp, 0.9).sweeps == 1


@pytest.mark.parametrize(("first", "sweeps"), [(range(6), 6), (range(5, -1, -1), 1)])
def test_gauss_seidel_on_a_corridor(first, sweeps):
    mdp, values = aj.mdp.corridor(6), np.zeros(6)
    model = HostModel(mdp, 0.9)
    model.blocks = [(state, state + 1) for state in first]
    for sweep in range(1, sweeps + 1):
        before = values.copy()
        model.improve_in_place(values)
        assert not np.array_equal(before, values), sweep
    np.testing.assert_allclose(values, aj.mdp.exact_values(mdp, 0.9), rtol=1e-14)


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 5))
def test_anderson_with_full_memory_solves_linear_maps_in_n_plus_1_evaluations(seed, size):
    mdp = aj.mdp.garnet(seed, size, 1, min(size, 3))
    solution = aj.solve(mdp, 0.9, method="anderson", memory=None, tolerance=1e-7)
    assert solution.sweeps <= size + 2  # and one more residual, which certifies them
    assert error(solution, mdp, 0.9) <= 1e-7


@given(seed=st.integers(0, 2**32 - 1), first=st.integers(0, 29))
def test_levels_are_distances(seed, first):
    mdp = aj.mdp.garnet(seed, 30, 1, 2)
    plan = levels(mdp, np.array([first]))
    assert plan is not None
    order, blocks = plan
    assert levels(mdp, np.array([first]), limit=len(blocks) - 2) is None
    assert sorted(order) == list(range(30))
    distance = np.where(np.arange(30) == first, 0, 99)
    for _ in range(30):
        distance = np.minimum(distance, 1 + distance[mdp.successor[0]].min(axis=0))
    for level, (begin, end) in enumerate(blocks):
        states = distance[order[begin:end]]
        assert (states == level).all() or (states >= 99).all()
    again = reordered(mdp, order)
    np.testing.assert_allclose(aj.mdp.exact_values(again, 0.9), aj.mdp.exact_values(mdp, 0.9)[order], rtol=1e-10)


def test_large_problems_in_which_information_creeps_are_put_in_order():
    mdp = aj.mdp.grid_world((160, 160))
    solution = aj.solve(mdp, 0.99, tolerance=1e-8)
    jacobi = aj.solve(mdp, 0.99, tolerance=1e-8, method="policy_iteration")
    assert solution.updates > 2 * solution.sweeps  # in-place sweeps publish level by level
    assert np.abs(solution.values - jacobi.values).max() <= 2e-8


def test_a_function_is_solved_like_its_table(monkeypatch):
    monkeypatch.setattr("asyncjax.solvers.device_model._CHUNK", 50)  # so that the states do not fit one
    car = aj.mdp.mountain_car(13, 10)
    table = aj.mdp.tabulate(car)
    solution = aj.solve(car, 0.9, tolerance=1e-3)
    assert solution.converged
    assert error(solution, table, 0.9) <= solution.bound


def test_a_function_is_compiled_once():
    traces = []

    def transition(state, action):
        traces.append(1)
        return jnp.ones(()), ((state + 1) % 7)[None], jnp.ones(1)

    cycle = FunctionMDP(7, 2, transition)
    first, count = aj.solve(cycle, 0.5), len(traces)
    second = aj.solve(cycle, 0.9)
    assert len(traces) == count
    for solution, value in ((first, 2.0), (second, 10.0)):
        np.testing.assert_allclose(solution.values, value, rtol=1e-6)
        assert solution.sweeps == 1  # it is known that no episode ends, so that one shift is exact


def test_progress_stopping_and_continuing():
    mdp, seen = PROBLEMS["frozen_lake"][0], []
    stopped = aj.solve(mdp, 0.99, method="jacobi", max_seconds=0.0, callback=seen.append)
    assert not stopped.converged
    assert [p.sweeps for p in seen] == [1]
    whole, rest = aj.solve(mdp, 0.99, method="jacobi"), aj.solve(mdp, 0.99, method="jacobi", initial=stopped.values)
    np.testing.assert_array_equal(whole.values, rest.values)
    assert rest.sweeps == whole.sweeps - 1


def test_progress_may_be_kept():
    seen = []
    aj.solve(
        *PROBLEMS["garnet"], method="policy_iteration", callback=lambda p: seen.append((p.values, p.values.copy()))
    )
    assert len(seen) > 1
    for kept, then in seen:
        np.testing.assert_array_equal(kept, then)


def test_sweeps_in_place_are_interrupted_too():
    seen = []
    corridor = aj.mdp.corridor(3)
    ring = MDP(*(np.concatenate(pair, axis=-1) for pair in zip(aj.mdp.cycle(3), corridor, strict=True)))
    stopped = aj.solve(ring, 1 - 1e-9, method="gauss_seidel", max_seconds=0.0, callback=seen.append)
    assert not stopped.converged
    assert [p.sweeps for p in seen] == [2]
    limited = aj.solve(ring, 1 - 1e-9, method="gauss_seidel", max_seconds=0.2, callback=seen.append)
    assert not limited.converged
    assert len(seen) > 3  # every now and then a full residual tells how far it is


def test_asynchronous_runs_count_what_they_do():
    mdp = PROBLEMS["garnet"][0]
    how: Any = {"method": "async", "tolerance": 1e-30, "sweeps": 2, "num_blocks": 4, "max_updates": 16}
    turns = aj.solve(mdp, 0.95, **how)
    together = aj.solve(mdp, 0.95, schedule=lambda n: aj.schedules.barrier(n, 4), **how)
    same = aj.solve(mdp, 0.95, schedule=aj.schedules.barrier(16, 4), **how)
    np.testing.assert_array_equal(same.values, together.values)
    with pytest.raises(TypeError, match="schedule='barrier': give a Schedule, or a function"):
        aj.solve(mdp, 0.95, schedule="barrier", **how)
    with pytest.raises(ValueError, match="schedule has no updates"):
        aj.solve(mdp, 0.95, schedule=aj.schedules.barrier(0, 4), **how)
    residuals = 2  # after 8 updates and after 16
    assert turns.sweeps == 16 // 4 + residuals
    assert together.sweeps == 16 + residuals
    for solution in (turns, together):
        assert solution.backups == solution.sweeps * 12 * 3
        assert solution.updates == 16 + residuals


def test_asynchronous_runs_have_a_block_for_each_worker():
    """A schedule of fewer workers than there are blocks would leave states as they began."""
    mdp, discount = PROBLEMS["garnet"]
    how: Any = {"method": "async", "schedule": lambda n: aj.schedules.round_robin(n, 3)}
    assert error(aj.solve(mdp, discount, **how), mdp, discount) <= 1e-6
    with pytest.raises(ValueError, match="num_blocks=4: 3 workers leave some alone"):
        aj.solve(mdp, discount, num_blocks=4, **how)
    with pytest.raises(ValueError, match="max_updates=0: give a positive number"):
        aj.solve(mdp, discount, method="async", max_updates=0)


@given(seed=st.integers(0, 2**32 - 1), ends=st.sampled_from([0.02, 0.3, 0.9]))
def test_the_longest_time_is_never_too_short_and_little_too_long(seed, ends):
    """Episodes end with a chance of `ends` or of twice that, as the action has it: 1 / ends steps at most."""
    mdp = aj.mdp.garnet(seed, 6, 2, 3)
    mdp.probability[:] *= 1 - np.array([ends, min(1.0, 2 * ends)])[:, None, None]
    found = longest_time(mdp, lambda: False)
    assert (1 - 1e-12) / ends <= found <= 1.02 / ends


def test_a_limit_of_time_holds_where_episodes_hardly_ever_end():
    mdp = aj.mdp.from_arrays([[[1 - 1e-13, 1e-13], [0.0, 0.0]]], [[1.0, 1.0]])
    solution = aj.solve(mdp, 1.0, max_seconds=0.1)
    assert not solution.converged
    assert solution.bound > 1e12


def test_what_is_no_problem_is_named():
    arrays: Any = tuple(aj.mdp.forest())
    with pytest.raises(TypeError, match="mdp is a tuple: make an MDP"):
        aj.solve(arrays, 0.9)


def test_a_policy_can_be_all_that_is_asked_for():
    mdp, discount = PROBLEMS["garnet"]
    solution = aj.solve(mdp, discount, tolerance=1e-3, certifies="policy")
    loss = aj.mdp.exact_values(mdp, discount) - aj.mdp.policy_values(mdp, solution.policy, discount)
    assert loss.max() <= solution.policy_bound <= 1e-3
    assert solution.certifies == "policy"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"method": "magic"}, "method='magic': choose one of 'jacobi'"),
        ({"tolerance": 0.0}, "tolerance=0.0"),
        ({"initial": np.zeros(3)}, "initial has shape \\(3,\\)"),
        ({"initial": np.append(np.zeros(11), np.nan)}, "initial is not finite in state 11"),
        ({"method": "anderson", "memory": -1}, "memory=-1: keep at least 0 differences"),
        ({"backend": "cuda"}, "backend='cuda': choose one of None, 'host', 'jax'"),
        ({"certifies": "all"}, "certifies='all': choose one of 'values', 'policy'"),
        ({"method": "gauss_seidel", "backend": "jax"}, "on the host only"),
    ],
)
def test_wrong_arguments(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        aj.solve(PROBLEMS["garnet"][0], 0.9, **arguments)


@pytest.mark.parametrize("method", METHODS)
def test_numbers_may_be_jaxs(method):
    mdp = aj.mdp.forest()
    solution = aj.solve(mdp, jnp.float32(0.9), method=method, tolerance=jnp.float32(1e-3))
    np.testing.assert_allclose(solution.values, aj.mdp.exact_values(mdp, 0.9), atol=2e-3)


def test_functions_need_a_discount_and_no_host():
    function = FunctionMDP(2, 1, lambda s, a: (jnp.ones(()), s[None], jnp.ones(1)))
    with pytest.raises(ValueError, match="for a function use one from 0 to below 1"):
        aj.solve(function, 1.0)
    with pytest.raises(ValueError, match=r"use `aj\.mdp\.tabulate`"):
        aj.solve(function, 0.9, backend="host")


SHARDED = """
import jax, numpy as np, asyncjax as aj
mdp = aj.mdp.garnet(0, 13, 3, 4)  # 13 states on 4 devices: the last share is filled up
devices = jax.devices()
assert len(devices) == 4
solution = aj.solve(mdp, 0.95, tolerance=1e-2, devices=devices)
assert solution.converged and np.abs(solution.values - aj.mdp.exact_values(mdp, 0.95)).max() <= solution.bound
from asyncjax.solvers.device_model import DeviceModel
model = DeviceModel(mdp, 0.95, devices)
assert {shard.data.shape for shard in model.arrays.probability.addressable_shards} == {(3, 4, 4)}
function = aj.mdp.mountain_car(7, 7)
solution = aj.solve(function, 0.9, tolerance=1e-2, devices=devices)
assert np.abs(solution.values - aj.mdp.exact_values(aj.mdp.tabulate(function), 0.9)).max() <= solution.bound
"""


def test_states_divided_among_devices():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-W", "error", "-c", SHARDED], check=True, env=environment, cwd=root, timeout=300)
