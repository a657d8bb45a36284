"""Tabular problems: known values, conversions that lose nothing, and errors that say where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import asyncjax as aj
from asyncjax.mdp import MDP

pytestmark = pytest.mark.usefixtures("quick_compilation")

PROBLEMS = {
    "two_state": aj.mdp.two_state(),
    "forest": aj.mdp.forest(5),
    "garnet": aj.mdp.garnet(0, 12, 3, 4),
    "sutton_barto": aj.mdp.sutton_barto(),
    "frozen_lake": aj.mdp.frozen_lake(),
    "grid": aj.mdp.grid_world(["..#", ".HG"], step_reward=-0.1),
    "corridor": aj.mdp.corridor(6),
    "cycle": aj.mdp.cycle(4),
    "random_walk": aj.mdp.random_walk(5, num_actions=2),
    "machine": aj.mdp.machine_replacement(),
    "inventory": aj.mdp.inventory(),
    "mountain_car": aj.mdp.tabulate(aj.mdp.mountain_car(9, 8)),
    "hashed": aj.mdp.tabulate(aj.mdp.hashed_garnet(3, 11, 2, 4)),
    "wide": aj.mdp.garnet(0, 150, 2, 140),  # more successors than are summed term by term
    "perishable": aj.mdp.tabulate(aj.mdp.perishable_inventory(max_order=3, max_demand=12)),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_exact_values_are_the_fixed_point(name):
    mdp = aj.mdp.check(PROBLEMS[name], 0.9)
    values = aj.mdp.exact_values(mdp, 0.9)
    quality = mdp.reward + 0.9 * (mdp.probability * values[mdp.successor]).sum(axis=1)
    np.testing.assert_allclose(values, quality.max(axis=0), rtol=0, atol=1e-10)
    with jax.enable_x64(True):
        np.testing.assert_allclose(aj.mdp.bellman(mdp, values, 0.9), values, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("mdp", "discount", "states", "expected"),
    [
        (aj.mdp.forest(3, r1=4.0, r2=2.0, p=0.1), 0.9, [0, 1, 2], [26.244, 29.484, 33.484]),
        (aj.mdp.two_state(), 0.9, [0, 1], [42.4418604651, 36.0465116279]),
        (aj.mdp.frozen_lake("4x4"), 0.99, [0], [0.54202593]),
        (aj.mdp.sutton_barto(), 0.9, [1], [24.419428]),
        (aj.mdp.random_walk(5), 1.0, [1, 2, 3, 4, 5], np.arange(1, 6) / 6),
        (aj.mdp.corridor(4), 0.5, [0, 1, 2, 3], [0.125, 0.25, 0.5, 1.0]),
        (aj.mdp.cycle(3, reward=2.0), 0.75, [0, 1, 2], [8.0, 8.0, 8.0]),
    ],
)
def test_values_of_the_literature(mdp, discount, states, expected):
    np.testing.assert_allclose(aj.mdp.exact_values(mdp, discount)[states], expected, rtol=0, atol=1e-6)


def test_exact_values_know_no_unit():
    mdp, unit = aj.mdp.garnet(0, 20, 4, 5), 2.0**-600
    expected = unit * aj.mdp.exact_values(mdp, 0.9)
    np.testing.assert_array_equal(aj.mdp.exact_values(mdp._replace(reward=unit * mdp.reward), 0.9), expected)


def test_exact_values_of_one_state_do_not_depend_on_the_size_of_anothers():
    """A forbidding penalty, or values that are large because the discount is near 1, hide no gain."""
    stay, turn = np.eye(3), np.roll(np.eye(3), 1, 1)
    penalized = aj.mdp.from_arrays([stay, turn, stay], [[1.0, 1.0, 10.0], [0.0] * 3, [-1e15] * 3])
    np.testing.assert_allclose(aj.mdp.exact_values(penalized, 0.9), [81.0, 90.0, 100.0])
    discount, gain = 1 - 1e-8, 5e-5
    to_first, swap = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    to_and_fro = aj.mdp.from_arrays([to_first, swap], [[1.0, 1.5 + gain], [0.5, 1.5 + gain]])
    cycle = (0.5 + discount * (1.5 + gain)) / (1 - discount**2)
    np.testing.assert_allclose(aj.mdp.exact_values(to_and_fro, discount)[0], cycle, rtol=1e-9)


@pytest.mark.parametrize(
    ("policy", "discount", "sentence"),
    [
        ([0, 0], 0.9, r"policy is int64\[2\]: give one action"),
        ([0, -1, 0], 0.9, "policy takes action -1 in state 1"),
        ([0.0, 1.0, 0.0], 0.9, r"policy is float64\[3\]"),
        ([0, 0, 0], 1.0, "never comes to an end"),
    ],
)
def test_a_policy_without_values_is_refused(policy, discount, sentence):
    with pytest.raises(ValueError, match=sentence):
        aj.mdp.policy_values(aj.mdp.forest(3), policy, discount)
    with pytest.raises(ValueError, match="policy takes action 3 in state 1, which is not available there"):
        aj.mdp.policy_values(aj.mdp.inventory(), np.full(4, 3), 0.9)


def test_inventory_has_putermans_rewards():
    expected = [[0, 5, 6, 5], [-1, 0, -1, -np.inf], [-2, -3, -np.inf, -np.inf], [-5, -np.inf, -np.inf, -np.inf]]
    np.testing.assert_allclose(aj.mdp.inventory().reward, expected)


def test_frozen_lake_slips_like_gymnasium():
    gymnasium = pytest.importorskip("gymnasium")
    for name in ("4x4", "8x8"):
        table = gymnasium.make("FrozenLake-v1", map_name=name).unwrapped.P
        mdp = aj.mdp.frozen_lake(name)
        for state, action in np.ndindex(mdp.num_states, 4):
            ours = np.zeros(mdp.num_states)
            np.add.at(ours, mdp.successor[action, :, state], mdp.probability[action, :, state])
            if table[state][action][0][3] and len(table[state][action]) == 1:
                assert not ours.any()  # terminal: Gymnasium loops for ever, here the episode has ended
                continue
            theirs, reward = np.zeros(mdp.num_states), 0.0
            for probability, successor, payment, _ in table[state][action]:
                theirs[successor] += probability
                reward += probability * payment
            np.testing.assert_allclose(ours, theirs)
            np.testing.assert_allclose(mdp.reward[action, state], reward)


@pytest.mark.parametrize("num_positions", [9, 19, 37, 55, 73, 91])
def test_the_goal_of_mountain_car_begins_at_one_half(num_positions: int) -> None:
    mdp = aj.mdp.tabulate(aj.mdp.mountain_car(num_positions, 3))
    ends = np.asarray(mdp.probability).sum((0, 1)).reshape(num_positions, 3) == 0
    goal = [18 * row >= 17 * (num_positions - 1) for row in range(num_positions)]  # 1.8 row / (n - 1) >= 1.7
    np.testing.assert_array_equal(ends, np.repeat(np.array(goal)[:, None], 3, 1))


def test_mountain_car_moves_like_gymnasium_on_average():
    env = pytest.importorskip("gymnasium").make("MountainCar-v0").unwrapped
    mdp, (height, width) = aj.mdp.tabulate(aj.mdp.mountain_car(19, 15)), (19, 15)
    positions, velocities = np.linspace(-1.2, 0.6, height), np.linspace(-0.07, 0.07, width)
    for row, column, action in np.ndindex(height, width, 3):
        if positions[row] >= 0.5:
            continue
        env.reset()
        env.state = np.array([positions[row], velocities[column]])
        arrived = env.step(action)[0]
        successor, weight = (x[action, :, row * width + column] for x in (mdp.successor, mdp.probability))
        mean = weight @ positions[successor // width], weight @ velocities[successor % width]
        np.testing.assert_allclose(mean, arrived, atol=1e-6)


@given(seed=st.integers(0, 2**32 - 1))
def test_conversions_lose_nothing(seed):
    mdp = aj.mdp.garnet(seed, 7, 2, 3)
    dense = np.zeros((2, 7, 7))
    for action, state in np.ndindex(2, 7):
        dense[action, state, mdp.successor[action, :, state]] = mdp.probability[action, :, state]
    again = aj.mdp.from_arrays(dense, mdp.reward)
    np.testing.assert_array_equal(aj.mdp.exact_values(again, 0.9), aj.mdp.exact_values(mdp, 0.9))


def test_conversions_keep_float32(tmp_path):
    """Rows that sum to 1 in float32 do not in float64."""
    dense = np.random.default_rng(0).dirichlet(np.ones(5), (2, 5)).astype(np.float32)
    assert np.abs(dense.astype(np.float64).sum(axis=2) - 1).max() > 1e-9
    reward = np.arange(10.0).reshape(2, 5)
    np.savez(tmp_path / "mdp.npz", transition=dense, reward=reward)
    matrices = [sparse.csr_array(matrix) for matrix in dense]
    for mdp in (
        aj.mdp.from_arrays(dense, reward),
        aj.mdp.from_scipy(matrices, reward),
        aj.mdp.load(tmp_path / "mdp.npz"),
    ):
        assert mdp.reward.dtype == mdp.probability.dtype == np.float32
        np.testing.assert_array_equal(mdp.probability.transpose(0, 2, 1), dense)


def test_sparse_matrices_may_hold_zeros_and_repeat_entries():
    entries = [0.25, 0.25, 0.5, 0.0, 1.0, 1.0]
    repeated = sparse.csr_array((np.array(entries), np.array([1, 1, 2, 0, 1, 2]), np.array([0, 4, 5, 6])), (3, 3))
    plain = aj.mdp.from_arrays([repeated.toarray()], [1.0, 0.0, 2.0])
    for matrix in (repeated, repeated.tocoo(), repeated.tocsc()):
        mdp = aj.mdp.from_scipy([matrix], [1.0, 0.0, 2.0])
        np.testing.assert_array_equal(aj.mdp.exact_values(mdp, 0.5), aj.mdp.exact_values(plain, 0.5))
    assert repeated.nnz == 6  # the caller's matrix is as it was


@pytest.mark.parametrize(("num_states", "num_successors"), [(6, 6), (80, 3), (200, 100), (1000, 150)])
def test_garnet_has_distinct_successors(num_states, num_successors):
    """Also where a draw with replacement hardly ever has."""
    rows = np.sort(aj.mdp.garnet(0, num_states, 1, num_successors).successor[0], axis=0)
    assert (np.diff(rows, axis=0) > 0).all()


@pytest.mark.parametrize("issue", ["lifo", "fifo"])
@pytest.mark.parametrize(("life", "lead"), [(3, 1), (2, 2)])
def test_perishable_inventory_is_that_of_de_moor_et_al(issue, life, lead):
    """Against a plain simulation of one day, unit by unit."""
    limit, most, shape = 2, 5, (3,) * (lead - 1 + life)
    mdp = aj.mdp.tabulate(aj.mdp.perishable_inventory(life, lead, limit, most, issue=issue))
    below = scipy.stats.gamma(4.0, scale=1.0).cdf(np.arange(most) + 0.5)  # mean 4, coefficient of variation .5
    chance = np.diff(np.concatenate([[0.0], below, [1.0]]))
    assert mdp.num_states == np.prod(shape)
    for order, state in np.ndindex(limit + 1, mdp.num_states):
        digits = list(np.unravel_index(state, shape))
        expected, reward = np.zeros(mdp.num_states), 0.0
        for demand in range(most + 1):
            coming, stock = [order, *digits[: lead - 1]], digits[lead - 1 :]
            ages = range(life) if issue == "lifo" else range(life)[::-1]
            sold = 0
            for age in ages:
                while stock[age] and sold < demand:
                    stock[age] -= 1
                    sold += 1
            reward -= chance[demand] * (3 * order + 5 * (demand - sold) + 7 * stock[-1] + sum(stock[:-1]))
            expected[np.ravel_multi_index([*coming, *stock[:-1]], shape)] += chance[demand]
        ours = np.bincount(mdp.successor[order, :, state], mdp.probability[order, :, state], mdp.num_states)
        np.testing.assert_allclose(ours, expected, atol=1e-12)
        np.testing.assert_allclose(mdp.reward[order, state], reward, rtol=1e-12)


def test_files_keep_every_bit(tmp_path):
    mdp = aj.mdp.inventory()
    aj.mdp.save(mdp, tmp_path / "mdp.npz")
    for before, after in zip(mdp, aj.mdp.load(tmp_path / "mdp.npz"), strict=True):
        np.testing.assert_array_equal(before, after)
    np.savez(tmp_path / "other.npz", reward=mdp.reward)
    with pytest.raises(ValueError, match="no 'successor'"):
        aj.mdp.load(tmp_path / "other.npz")


def test_bellman_of_some_states_under_jit_and_vmap():
    mdp, states = aj.mdp.garnet(1, 12, 3, 4), jnp.array([3, 0, 11])
    batch = jax.random.normal(jax.random.key(0), (2, 12))
    some = jax.jit(jax.vmap(lambda v: aj.mdp.bellman(mdp, v, 0.9, states)))(batch)
    whole = jnp.stack([aj.mdp.bellman(mdp, v, 0.9) for v in batch])
    np.testing.assert_allclose(some, whole[:, states], rtol=1e-6)
    policy = aj.mdp.action_values(mdp, batch[0], 0.9).argmax(axis=0)
    np.testing.assert_allclose(aj.mdp.policy_backup(mdp, policy, batch[0], 0.9), whole[0], rtol=1e-6)


def broken(**change):
    """The two-state problem with one entry changed: name=(index, value)."""
    arrays = {name: np.array(array) for name, array in aj.mdp.two_state()._asdict().items()}
    for name, (index, value) in change.items():
        arrays[name][index] = value
    return MDP(**arrays)


@pytest.mark.parametrize(
    ("mdp", "sentence"),
    [
        (broken(probability=((1, 0, 1), 0.9)), "state 1, action 1: its probabilities sum to 1.8"),
        (broken(probability=((0, 1, 0), -0.5)), "state 0, action 0: successor 1 has probability -0.5"),
        (broken(probability=((0, 1, 0), np.nan)), "state 0, action 0: successor 1 has probability nan"),
        (broken(successor=((0, 1, 1), 2)), "state 1, action 0: successor 1 is state 2, outside the 2 states"),
        (broken(reward=((1, 0), np.nan)), "state 0, action 1: its reward is nan"),
        (broken(reward=((1, 0), np.inf)), "state 0, action 1: its reward is inf"),
        (broken(reward=((slice(None), 1), -np.inf)), "state 1 has no action"),
        (aj.mdp.two_state()._replace(reward=np.zeros((2, 3))), "use \\[A, S\\], \\[A, K, S\\]"),
    ],
)
def test_malformed_problems_are_refused_by_state_and_action(mdp, sentence):
    with pytest.raises(ValueError, match=sentence):
        aj.mdp.check(mdp)
    with pytest.raises(ValueError, match=sentence):
        aj.solve(mdp, 0.9)
    with pytest.raises(ValueError, match=sentence):
        aj.mdp.exact_values(mdp, 0.9)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: aj.mdp.forest(3, p=1.5), "p=1.5: a probability is from 0 to 1"),
        (lambda: aj.mdp.machine_replacement(5, wear=-0.1), "wear=-0.1: a probability"),
        (lambda: aj.mdp.grid_world((3, 3), slip=2.0), "slip=2.0: a probability"),
        (lambda: aj.mdp.frozen_lake(slip=np.nan), "slip=nan: a probability"),
        (lambda: aj.mdp.grid_world((0, 3)), "height=0: give a positive number"),
        (lambda: aj.mdp.grid_world([]), "the grid's rows have lengths"),
        (lambda: aj.mdp.corridor(0), "num_states=0: give a positive number"),
        (lambda: aj.mdp.cycle(0), "num_states=0: give a positive number"),
        (lambda: aj.mdp.random_walk(3, 0), "num_actions=0: give a positive number"),
        (lambda: aj.mdp.garnet(0, 3, 0, 2), "num_actions=0: give a positive number"),
        (lambda: aj.mdp.inventory(demand=(0.5, 0.6)), "probabilities are at least 0 and sum to 1"),
        (lambda: aj.mdp.inventory(-1), "capacity=-1: use at least 0"),
        (lambda: aj.mdp.mountain_car(1), "num_positions=1: use at least 2"),
        (lambda: aj.mdp.mountain_car(1 << 20, 1 << 12), "num_velocities=4096: these make 4294967296 states"),
        (lambda: aj.mdp.perishable_inventory(10), "useful_life=10, .* these make 25937424601 states"),
        (lambda: aj.mdp.garnet(-1, 3, 2, 2), "seed=-1: use at least 0"),
        (lambda: aj.mdp.hashed_garnet(-1, 3, 2, 2), "seed=-1: use one of 0 to 4294967295"),
        (lambda: aj.mdp.hashed_garnet(1 << 32, 3, 2, 2), "seed=4294967296: use one of 0 to 4294967295"),
        (lambda: aj.mdp.hashed_garnet(0, 1 << 31, 2, 2), "num_states=2147483648: use at most 2147483647"),
        (lambda: aj.mdp.hashed_garnet(0, 0, 1, 1), "num_states=0: give a positive number"),
        (
            lambda: aj.mdp.perishable_inventory(issue="filo"),  # pyright: ignore[reportArgumentType]
            "issue='filo': choose one of 'lifo', 'fifo'",
        ),
        (lambda: aj.mdp.perishable_inventory(demand_variation=0.0), "demand_variation=0.0: give a positive number"),
    ],
)
def test_builders_refuse_what_makes_no_problem(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()


def test_problems_have_states_and_actions():
    for transition, reward in (((0, 3, 3), (0, 3)), ((2, 0, 0), (2, 0))):
        with pytest.raises(ValueError, match="use at least one action and one state"):
            aj.mdp.from_arrays(np.zeros(transition), np.zeros(reward))
    nothing = aj.mdp.FunctionMDP(3, 0, lambda s, a: (0.0 * s, s[None], jnp.ones(1)))
    with pytest.raises(ValueError, match="num_states=3, num_actions=0: use at least 1 of each"):
        aj.mdp.check_function(nothing)


def test_shapes_that_do_not_fit_say_which_would():
    square = np.tile(np.eye(3), (2, 1, 1))
    with pytest.raises(ValueError, match=r"reward has shape \(3, 2\); use \[A, S\] = \(2, 3\), or \[S\]"):
        aj.mdp.from_arrays(square, np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"the matrix of action 1 has shape \(2, 2\); use \(3, 3\) for all"):
        aj.mdp.from_scipy([sparse.eye_array(3), sparse.eye_array(2)], np.zeros((2, 3)))


def test_rewards_of_what_does_not_happen_do_not_count():
    reward = np.array([[[1.0, -np.inf], [np.nan, 3.0]]])
    np.testing.assert_array_equal(aj.mdp.from_arrays([np.eye(2)], reward).reward, [[1.0, 3.0]])
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match=f"state 1, action 0: its reward is {wrong}"):
            aj.mdp.from_arrays([np.full((2, 2), 0.5)], [[[1.0, 1.0], [-np.inf if wrong != np.inf else 1.0, np.inf]]])


def test_types_are_checked():
    for wrong in ({"transition": [1j * np.eye(2)]}, {"reward": [1j, 0.0]}):
        with pytest.raises(TypeError, match=f"{next(iter(wrong))} has type complex128; use float32 or float64"):
            aj.mdp.from_arrays(**{"transition": [np.eye(2)], "reward": [1.0, 0.0], **wrong})
    with pytest.raises(TypeError, match="probability has type complex128"):
        aj.mdp.from_scipy([1j * sparse.eye_array(2)], [1.0, 0.0])
    with pytest.raises(TypeError, match="reward has type complex128"):
        aj.mdp.from_scipy([sparse.eye_array(2)], [1j, 0.0])
    with pytest.raises(TypeError, match="successor has type float64; use integers"):
        aj.mdp.check(aj.mdp.two_state()._replace(successor=np.zeros((2, 2, 2))))
    with pytest.raises(TypeError, match="reward has type float16; use float32 or float64"):
        aj.mdp.check(aj.mdp.two_state()._replace(reward=np.zeros((2, 2), np.float16)))


@pytest.mark.parametrize(
    ("mdp", "discount", "sentence"),
    [
        (aj.mdp.forest(3), 1.0, "from state 0 some policy never comes to an end"),
        (aj.mdp.grid_world(["..G"]), 1.0, "from state 0 some policy never comes to an end"),
        (aj.mdp.forest(3), 1.1, "discount=1.1"),
        (aj.mdp.forest(3), -0.1, "discount=-0.1"),
    ],
)
def test_a_discount_without_values_is_refused(mdp, discount, sentence):
    for function in (aj.mdp.check, aj.mdp.exact_values):
        with pytest.raises(ValueError, match=sentence):
            function(mdp, discount)


def test_problems_that_always_end_need_no_discount():
    aj.mdp.check(aj.mdp.random_walk(5), 1.0)
    aj.mdp.check(aj.mdp.corridor(5), 1.0)


@pytest.mark.parametrize("chunk", [2, 100])
@pytest.mark.parametrize(
    ("part", "value", "sentence"),
    [
        ("reward", np.nan, "state 5, action 1: its reward is nan"),
        ("probability", [0.5, 0.6], "state 5, action 1: its probabilities sum to 1.1"),
        ("probability", [1.5, -0.5], "state 5, action 1: successor 1 has probability -0.5"),
        ("successor", [2, 7], "state 5, action 1: successor 1 is state 7, outside the 7 states"),
        (None, None, None),
    ],
)
def test_functions_are_checked_state_by_state(chunk, part, value, sentence):
    def transition(state, action):
        good = {"reward": 1.0, "successor": [0, 6], "probability": [0.25, 0.75]}
        bad = good | {part: value}
        here = (state == 5) & (action == 1)
        types = {"reward": float, "successor": jnp.int32, "probability": float}
        one = [jnp.where(here, jnp.asarray(bad[x], types[x]), jnp.asarray(good[x], types[x])) for x in types]
        return one[0], one[1], one[2]

    mdp = aj.mdp.FunctionMDP(7, 2, transition)
    if part is None:
        assert aj.mdp.check_function(mdp, chunk) is mdp
    else:
        with pytest.raises(ValueError, match=sentence):
            aj.mdp.check_function(mdp, chunk)


def test_functions_need_an_action_in_every_state():
    mdp = aj.mdp.FunctionMDP(4, 2, lambda s, a: (jnp.where(s == 2, -jnp.inf, 0.0), s[None], jnp.ones(1)))
    with pytest.raises(ValueError, match="state 2 has no action"):
        aj.mdp.check_function(mdp)
