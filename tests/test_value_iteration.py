"""Asynchronous value iteration, policy iteration and RTDP against their exact answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import asyncjax as aj
from tests.laws import KEY, assert_equal, schedules

pytestmark = pytest.mark.usefixtures("quick_compilation")

GARNET = aj.mdp.garnet(0, num_states=6, num_actions=3, num_successors=3)
GAIN = GARNET._replace(reward=np.abs(GARNET.reward))  # no reward is negative
BROKEN = aj.mdp.two_state()._replace(probability=2 * aj.mdp.two_state().probability)
VALUES = aj.mdp.exact_values(GARNET, 0.9)
# Deterministic, 3 states, 2 actions; found by searching for orders under which policy iteration cycles.
CYCLING = aj.MDP(
    np.array([[2.0, 2.0, -2.0], [-3.0, -2.0, -2.0]]),
    np.array([[[1, 2, 2]], [[0, 1, 0]]], np.int32),
    np.ones((2, 1, 3)),
)
CYCLING_ORDER = (1, 1, 2, 0, 2, 0)


def in_order(workers: Any) -> aj.Schedule:
    """These workers one after the other, each reading the newest version."""
    worker = np.asarray(workers, np.int32)[:, None]
    return aj.Schedule(worker, np.arange(len(worker), dtype=np.int32)[:, None])


def errors(mdp: aj.MDP, discount: float, schedule: aj.Schedule, **options: Any) -> np.ndarray:
    """The error after every update, Float[T]."""
    reference = aj.mdp.exact_values(mdp, discount)
    run = aj.value_iteration(mdp, discount, reference=reference, **options)
    return np.asarray(aj.emulate(run, schedule, KEY).metrics["error"])


def test_one_jacobi_update_is_the_bellman_operator() -> None:
    values = jnp.asarray(VALUES + np.arange(6.0), jnp.float32)
    run = aj.value_iteration(GARNET, 0.9, initial_values=values)
    result = aj.emulate(run, aj.schedules.barrier(1, 4), KEY)  # blocks of 1 and of 2 states
    np.testing.assert_allclose(result.shared.values, aj.mdp.bellman(GARNET, values, 0.9), rtol=1e-6)
    assert result.metrics["backups"].tolist() == [[2, 2, 2, 2]]  # a smaller block repeats its last state


def test_jacobi_on_constant_rewards_is_the_geometric_series() -> None:
    k = np.arange(1, 21)
    found = errors(aj.mdp.cycle(4), 0.5, aj.schedules.barrier(20, 2))
    np.testing.assert_array_equal(found, 2 * 0.5**k)


@pytest.mark.parametrize(
    ("schedule", "options", "updates"),
    [
        (aj.schedules.barrier(100, 8), {}, 8),
        (in_order(np.tile(np.arange(8), 10)), {}, 7 * 8 + 1),  # the first state is right at the start of the 8th sweep
        (in_order(np.tile(np.arange(8)[::-1], 10)), {}, 8),
        (in_order(np.zeros(80)), {"block_size": 1}, 7 * 8 + 1),  # one worker that goes through its states
        (in_order(np.zeros(80)), {"block_size": 1, "order": "largest"}, 8),
    ],
    ids=["Jacobi: n sweeps", "wrong order: n sweeps", "right order: 1 sweep", "cyclic", "largest first: n backups"],
)
def test_a_corridor_takes_as_many_updates_as_the_order_says(schedule: Any, options: Any, updates: int) -> None:
    found = errors(aj.mdp.corridor(8), 0.5, schedule, **options)
    assert int(np.argmax(found == 0)) + 1 == updates
    assert (found[updates - 1 :] == 0).all()


@st.composite
def bounded_schedules(draw: st.DrawFn, delay: int, num_workers: int = 3, rounds: int = 10) -> aj.Schedule:
    """Every worker once in every round, at most 2 W - 1 updates apart; each component read at most `delay` old."""
    order = [w for _ in range(rounds) for w in draw(st.permutations(range(num_workers)))]
    ages = st.lists(st.integers(0, delay), min_size=len(order), max_size=len(order))
    newest = np.arange(len(order), dtype=np.int32)
    read = tuple(np.maximum(newest - np.array(draw(ages), np.int32), 0)[:, None] for _ in range(3))
    return in_order(order)._replace(read=read)


@hypothesis.given(data=st.data(), delay=st.integers(0, 6), shift=st.integers(0, 2))
def test_bounded_delays_contract_as_fast_as_the_theorem_says(data: st.DataObject, delay: int, shift: int) -> None:
    """Error <= discount^floor((k + D) / (B + D)) e_0, with delays of each component."""
    start = VALUES + (0.0, 5.0, -5.0)[shift] * np.cos(np.arange(6.0))
    schedule = data.draw(bounded_schedules(delay))
    run = RUNS_WITH_DELAYS[shift] = RUNS_WITH_DELAYS.get(shift) or aj.value_iteration(
        GARNET, 0.9, num_leaves=3, initial_values=start if shift else None, reference=VALUES
    )
    found = np.asarray(aj.emulate(run, schedule, KEY, num_workers=3, width=1).metrics["error"])
    first = np.abs((start if shift else 0.0) - VALUES).max()
    k = np.arange(1, len(found) + 1)
    assert (found <= first * 0.9 ** ((k + delay) // (5 + delay)) + 1e-5).all()


RUNS_WITH_DELAYS: dict[int, aj.Method] = {}


@pytest.mark.parametrize("delay", [0, 1, 4])
def test_the_bound_is_an_equality_for_constant_rewards_and_delays(delay: int) -> None:
    barrier = aj.schedules.barrier(24, 2)
    schedule = barrier._replace(read=np.maximum(barrier.read - delay, 0))
    k = np.arange(1, 25)
    np.testing.assert_array_equal(errors(aj.mdp.cycle(4), 0.5, schedule), 2 * 0.5 ** -(-k // (delay + 1)))


@hypothesis.given(schedule=schedules())
def test_values_from_zero_stay_below_the_optimum_under_every_schedule(schedule: aj.Schedule) -> None:
    values = aj.replay(GAINING, schedule, KEY, num_workers=3).shared.values
    assert (values <= aj.mdp.exact_values(GAIN, 0.9) + 1e-4).all()
    assert (values >= 0).all()


GAINING = aj.value_iteration(GAIN, 0.9)


def test_random_coordinates_contract_by_a_constant_in_expectation() -> None:
    """A constant error e_0 becomes (1 - (1 - discount) / n)^k e_0 in the mean, whatever the transitions are."""
    chain, discount, num_updates = aj.mdp.garnet(1, 5, 1, 3), 0.5, 8
    values = aj.mdp.exact_values(chain, discount)
    run = aj.value_iteration(chain, discount, block_size=1, order="random", initial_values=values + 1)
    schedule = aj.schedules.sequential(num_updates)
    final = jax.jit(jax.vmap(lambda key: aj.emulate(run, schedule, key).shared.values))
    error = np.asarray(final(jax.random.split(KEY, 4000))) - values
    expected = (1 - (1 - discount) / 5) ** num_updates
    assert np.all(np.abs(error.mean(0) - expected) < 5 * error.std(0) / np.sqrt(4000))


PROBLEMS = {
    "forest": (aj.mdp.forest(3), 0.9),
    "two states": (aj.mdp.two_state(), 0.9),
    "frozen lake": (aj.mdp.frozen_lake("4x4"), 0.99),
    "inventory": (aj.mdp.inventory(), 0.9),
    "random walk": (aj.mdp.random_walk(5), 1.0),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_asynchronous_value_iteration_reaches_the_exact_values_in_float64(problem: str) -> None:
    assert_exact(aj.value_iteration, problem)


@pytest.mark.parametrize(
    ("build", "options"),
    [(aj.value_iteration, {"num_blocks": 1, "block_size": 2, "order": "largest"}), (aj.policy_iteration, {})],
    ids=["largest first", "policy iteration"],
)
def test_so_do_its_relatives(build: Any, options: Any) -> None:
    assert_exact(build, "frozen lake", **options)


def assert_exact(build: Any, problem: str, **options: Any) -> None:
    mdp, discount = PROBLEMS[problem]
    schedule = aj.schedules.from_service_times(aj.service.exponential(), 6000, 2, KEY)
    with jax.enable_x64(True):
        values = aj.emulate(build(mdp, discount, **options), schedule, KEY, width=1).shared.values
        assert values.dtype == jnp.float64
        np.testing.assert_allclose(values, aj.mdp.exact_values(mdp, discount), rtol=0, atol=1e-10)


def test_small_last_local_residuals_are_no_reason_to_stop() -> None:
    """Two workers, fresh reads: each saw a residual of 0 last, the error is 5e3, and the full residual knows."""
    discount = 0.9999
    mdp = aj.mdp.from_arrays([[[0.0, 1.0], [1.0, 0.0]]], [[0.0, 1.0]])
    exact = aj.mdp.exact_values(mdp, discount)
    result = aj.emulate(aj.value_iteration(mdp, discount), in_order([0, 1, 1]), KEY)
    last = {int(w): float(r) for w, r in zip((0, 1, 1), result.metrics["residual"][:, 0], strict=True)}
    assert last == {0: 0.0, 1: 0.0}
    error = np.abs(result.shared.values - exact).max()
    assert error > 4900
    residual = np.abs(aj.mdp.bellman(mdp, result.shared.values, discount) - result.shared.values).max()
    assert error <= residual / (1 - discount) * (1 + 1e-3)


# -- policy iteration --------------------------------------------------------------------------------------------------


@hypothesis.given(schedule=schedules())
@hypothesis.settings(max_examples=10)
def test_policy_iteration_without_evaluations_is_value_iteration(schedule: aj.Schedule) -> None:
    policies = aj.replay(IMPROVING, schedule, KEY, num_workers=3).shared
    assert_equal(policies.values, aj.replay(ITERATING, schedule, KEY, num_workers=3).shared.values)
    assert_equal(policies.values, policies.improved)


IMPROVING, ITERATING = aj.policy_iteration(GARNET, 0.9, num_evaluations=0), aj.value_iteration(GARNET, 0.9)


@pytest.mark.parametrize("num_evaluations", [2, 300], ids=["modified", "exact"])
def test_a_barrier_makes_it_modified_policy_iteration(num_evaluations: int) -> None:
    """V <- T_pi^(m + 1) V with pi greedy; for large m the values are those of the policies of policy iteration."""
    rounds = 3
    run = aj.policy_iteration(GARNET, 0.9, num_evaluations=num_evaluations, repaired=False)
    result = aj.emulate(run, aj.schedules.barrier(rounds * (num_evaluations + 1), 2), KEY)
    values, policy, states = np.zeros(6), np.zeros(6, int), np.arange(6)
    for _ in range(rounds):
        quality = np.array(GARNET.reward) + 0.9 * (GARNET.probability * values[GARNET.successor]).sum(1)
        policy = quality.argmax(0)
        if num_evaluations > 100:
            values = aj.mdp.policy_values(GARNET, policy, 0.9)
            continue
        for _ in range(num_evaluations + 1):
            expected = (GARNET.probability[policy, :, states] * values[GARNET.successor[policy, :, states]]).sum(1)
            values = GARNET.reward[policy, states] + 0.9 * expected
    np.testing.assert_array_equal(result.shared.policy, policy)
    np.testing.assert_allclose(result.shared.values, values, rtol=1e-4)


@pytest.mark.parametrize("repaired", [False, True])
def test_asynchronous_policy_iteration_cycles_unless_repaired(repaired: bool) -> None:
    """Every state is improved and evaluated in turn, all reads are fresh, and yet the values come back for ever."""
    exact = aj.mdp.exact_values(CYCLING, 0.9)
    run = aj.policy_iteration(CYCLING, 0.9, num_evaluations=1, repaired=repaired, reference=exact)
    error = aj.emulate(run, in_order(CYCLING_ORDER * 200), KEY).metrics["error"]
    if repaired:
        assert error[-1] < 1e-4
        return
    assert error[600:].min() > 5.0
    period = 2 * len(CYCLING_ORDER)
    np.testing.assert_allclose(error[-period:], error[-2 * period : -period], rtol=1e-5)


@pytest.mark.parametrize("repaired", [False, True])
def test_the_order_of_the_actions_does_not_matter_to_policy_iteration(repaired: bool) -> None:
    """Also where the first is not available, and an evaluation has not yet read what its worker improved."""
    mdp, schedule = aj.mdp.inventory(), aj.schedules.fixed_delay(400, 5, 2)
    backwards = aj.MDP(*(array[::-1] for array in mdp))
    one, two = (
        aj.emulate(aj.policy_iteration(problem, 0.5, num_evaluations=2, repaired=repaired), schedule, KEY).shared
        for problem in (mdp, backwards)
    )
    np.testing.assert_allclose(one.values, aj.mdp.exact_values(mdp, 0.5), rtol=1e-5)
    np.testing.assert_allclose(two.values, one.values, rtol=1e-5)
    np.testing.assert_array_equal(two.policy, mdp.num_actions - 1 - one.policy)


@hypothesis.given(data=st.data(), start=st.sampled_from([-50.0, 0.0, 50.0]))
@hypothesis.settings(max_examples=10)
def test_repaired_policy_iteration_converges_from_anywhere(data: st.DataObject, start: float) -> None:
    one_round = data.draw(st.permutations([0, 0, 1, 1, 2, 2]))
    if start not in REPAIRED:
        REPAIRED[start] = aj.policy_iteration(CYCLING, 0.9, num_evaluations=1, initial_values=np.full(3, start))
    values = aj.emulate(REPAIRED[start], in_order(one_round * 120), KEY, num_workers=3, width=1).shared.values
    np.testing.assert_allclose(values, aj.mdp.exact_values(CYCLING, 0.9), atol=2e-3)


REPAIRED: dict[float, aj.Method] = {}

# -- RTDP --------------------------------------------------------------------------------------------------------------


@hypothesis.given(schedule=schedules())
@hypothesis.settings(max_examples=10)
def test_rtdp_stays_above_the_optimum_under_every_schedule(schedule: aj.Schedule) -> None:
    values = aj.replay(WALKING, schedule, KEY, num_workers=3).shared.values
    assert (values >= VALUES - 1e-4).all()


WALKING = aj.rtdp(GARNET, 0.9, unroll_length=4)


@pytest.mark.parametrize("build", [aj.value_iteration, aj.policy_iteration, aj.rtdp], ids=lambda build: build.__name__)
def test_rewards_and_discounts_may_be_swept(build: Any) -> None:
    """A problem whose numbers are not known yet is not checked, and solved all the same."""
    options = {"start": np.arange(6)} if build is aj.rtdp else {}
    schedule = aj.schedules.round_robin(240, 3)

    def solve(reward: jax.Array, discount: jax.Array) -> jax.Array:
        return aj.emulate(build(GARNET._replace(reward=reward), discount, **options), schedule, KEY).shared.values

    factors, discounts = np.array([1.0, -1.0], np.float32), np.array([0.3, 0.5], np.float32)
    rewards = factors[:, None, None] * GARNET.reward.astype(np.float32)
    for values, reward, discount in zip(jax.jit(jax.vmap(solve))(rewards, discounts), rewards, discounts, strict=True):
        exact = aj.mdp.exact_values(GARNET._replace(reward=reward), float(discount))
        np.testing.assert_allclose(values, exact, atol=1e-4)


@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0])
def test_rtdp_begins_with_values_that_are_nowhere_too_small(shift: float) -> None:
    """Where all rewards are negative an episode's end may be worth more than any that goes on for ever."""
    mdp = aj.mdp.garnet(1, 6, 2, 3)
    mdp = mdp._replace(reward=mdp.reward - mdp.reward.mean() + shift)
    mdp.probability[:, :, 3] = 0.0
    first = aj.rtdp(mdp, 0.9).init(KEY, 2)[0].values
    assert np.all(np.asarray(first) >= aj.mdp.exact_values(mdp, 0.9) - 1e-5)


def test_the_states_of_largest_residual_are_different_ones_though_a_small_block_repeats_its_last() -> None:
    """Of five states two workers own two and three; the last of the two is the more urgent one."""
    mdp = aj.mdp.from_arrays(np.eye(5)[None], [[1.0, 2.0, 3.0, 0.0, 0.0]])
    run = aj.value_iteration(mdp, 0.5, block_size=2, order="largest")
    shared, owners = run.init(KEY, 2)
    for worker, expected in ((0, [0, 1]), (1, [2, 3])):
        block, _, _ = run.work(run.view(shared), jax.tree.map(lambda x, w=worker: x[w], owners))
        assert sorted(np.asarray(block.states).tolist()) == expected


def test_rtdp_is_right_where_an_optimal_policy_goes_and_nowhere_else() -> None:
    """From the middle of a grid to a goal at the right end of its row: states on the left are never needed."""
    mdp, discount = aj.mdp.grid_world(["......G"], slip=0.0, step_reward=-1.0), 0.9
    exact = aj.mdp.exact_values(mdp, discount)
    run = aj.rtdp(mdp, discount, start=3, initial_values=np.zeros(7))
    values = aj.emulate(run, aj.schedules.round_robin(60, 3), KEY).shared.values
    np.testing.assert_allclose(values[3:], exact[3:], atol=1e-5)
    assert np.abs(values[:3] - exact[:3]).max() > 1


# -- the study ---------------------------------------------------------------------------------------------------------


def test_the_study_keeps_to_the_bounds_and_draws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "experiments"))
    import value_iteration as study

    args = study.Args(num_states=16, discount=0.5, tolerance=1e-2, num_workers=2, delays=(0, 4), team_sizes=(1, 2))
    arrays = study.run(args)
    for delay in args.delays:
        error = arrays[f"delay error {delay}"]
        allowed = study.bound(arrays, np.arange(1, len(error) + 1), delay)
        assert (error <= allowed * (1 + 1e-9)).all()
        assert error[-1] <= args.tolerance
    np.testing.assert_array_equal(arrays["speed-up"][:, :, 0], 1)
    for name in study.SERVICES:
        assert np.isfinite(study.compared(arrays, name)).all()
    assert len(study.plot(arrays).axes) == 4
    # And from the command: --quick leaves the data of the whole study alone.
    monkeypatch.setattr(study, "run", lambda args: arrays)
    monkeypatch.setattr(study, "plot", lambda arrays: SimpleNamespace(savefig=lambda path: None))
    monkeypatch.setattr(study, "report", lambda arrays: "")
    study.main(dataclasses.replace(args, quick=True, results=tmp_path / "new"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["value_iteration-garnet-quick.npz"]
    monkeypatch.setattr(study, "run", lambda args: pytest.fail("it ran"))
    with pytest.raises(ValueError, match=r"can not be written .*--results"):
        study.main(dataclasses.replace(args, results=tmp_path / "new" / "value_iteration-garnet-quick.npz" / "no"))


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: aj.value_iteration(GARNET, 1.5), "discount=1.5"),
        (lambda: aj.value_iteration(GARNET, jnp.float32(1.5)), "discount=1.5"),
        (lambda: aj.value_iteration(BROKEN, 0.9), "state 0, action 0: its probabilities sum to 2.0"),
        (lambda: aj.policy_iteration(BROKEN, 0.9), "state 0, action 0: its probabilities sum to 2.0"),
        (lambda: aj.rtdp(BROKEN, 0.9), "state 0, action 0: its probabilities sum to 2.0"),
        (lambda: aj.tabular_q(BROKEN, 0.9), "state 0, action 0: its probabilities sum to 2.0"),
        (lambda: aj.value_iteration(GARNET, 1.0), "some policy never comes to an end"),
        (lambda: aj.value_iteration(GARNET, 0.9, num_leaves=0), "num_leaves=0: give a positive number"),
        (lambda: aj.value_iteration(GARNET, 0.9, order="best"), "order='best': choose"),  # type: ignore[arg-type]
        (lambda: aj.policy_iteration(GARNET, 0.9, num_evaluations=-1), "num_evaluations=-1: use at least 0"),
        (lambda: aj.rtdp(aj.mdp.random_walk(3), 1.0), "pass initial_values="),
        (lambda: aj.rtdp(GARNET, 0.9, start=6), "start=6: episodes begin"),
        (lambda: aj.rtdp(GARNET, 0.9, max_steps=0), "max_steps=0"),
    ],
)
def test_bad_arguments_say_what_to_do(build: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()


@pytest.mark.parametrize(
    ("options", "sentence"), [({}, "num_workers=9: there are only 6"), ({"num_blocks": 7}, "num_blocks=7")]
)
def test_more_blocks_than_states_are_an_error(options: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        aj.emulate(aj.value_iteration(GARNET, 0.9, **options), aj.schedules.barrier(1, 9), KEY)
    with pytest.raises(ValueError, match=r"initial_values has shape \(2,\)"):
        aj.emulate(aj.value_iteration(GARNET, 0.9, initial_values=np.zeros(2)), aj.schedules.barrier(1, 2), KEY)
