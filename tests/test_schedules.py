"""Laws of schedules: the exact answers of queueing theory, the waiting rules, what is realizable, and files."""

from __future__ import annotations

import io
import itertools
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import asyncjax as aj
from asyncjax.discipline import Coordinator, Discipline, Wait
from asyncjax.schedules import check, concatenate, cut, from_service_times, is_realizable, load, save
from tests.laws import KEY, assert_equal, schedules

WORKERS = 5
SERVICES: dict[str, aj.service.Service] = {
    "constant": aj.service.constant(0.1),
    "constant, unequal": aj.service.constant([1.0, 1.0, 2.0, 3.0, 7.0]),
    "exponential": aj.service.exponential(3.0),
    "exponential, unequal": aj.service.exponential([1.0, 2.0, 3.0, 5.0, 40.0]),
    "gamma": aj.service.gamma(16.0, 0.5),
    "lognormal": aj.service.lognormal(1.0),
    "pareto": aj.service.pareto(1.5),
    "straggler": aj.service.straggler(0.1, 10.0),
    "straggler of gamma": aj.service.straggler([0.0, 0.0, 0.1, 0.5, 1.0], 8.0, aj.service.gamma(4.0)),
}
every_service = pytest.mark.parametrize("service", SERVICES.values(), ids=list(SERVICES))


COMMITS: dict[str, aj.service.Service | float] = {
    "none": 0.0,
    "short": 0.02,
    "long": 2.5,
    "random": aj.service.exponential(0.3),
}


@st.composite
def disciplines(draw: st.DrawFn, num_workers: int = WORKERS) -> dict[str, Any]:
    """The keyword arguments of any discipline that W workers can follow."""
    wait: Wait = draw(st.sampled_from(["never", "next_version"]))
    if wait == "next_version":
        return {"wait": wait, "group_size": draw(st.integers(1, num_workers))}
    return {"group_size": draw(st.integers(1, num_workers + 2)), "bound": draw(st.none() | st.integers(1, 4))}


# ---------------------------------------------------------------------------------------------------------------------
# Exact answers


@pytest.mark.parametrize("num_workers", [1, 2, 5, 8])
def test_equal_constant_workers_are_round_robin_with_staleness_min_k_n_minus_1(num_workers: int) -> None:
    made = from_service_times(aj.service.constant(0.1), 40, num_workers, KEY)
    named = aj.schedules.round_robin(40, num_workers)
    assert_equal((made.worker, made.read), (named.worker, named.read))
    np.testing.assert_array_equal(made.staleness().ravel(), np.minimum(np.arange(40), num_workers - 1))


def test_the_staleness_of_equal_exponential_workers_is_geometric() -> None:
    """P(tau = l) = (1/N)(1 - 1/N)^l, so mean N - 1 and variance N(N - 1)."""
    n = 8
    staleness = from_service_times(aj.service.exponential(2.0), 100_000, n, KEY).staleness().ravel()[500:]
    share = np.bincount(staleness, minlength=60)[:60] / staleness.size
    np.testing.assert_allclose(share, 1 / n * (1 - 1 / n) ** np.arange(60), atol=4e-3)
    np.testing.assert_allclose(staleness.mean(), n - 1, rtol=0.02)
    np.testing.assert_allclose(staleness.var(), n * (n - 1), rtol=0.05)


def test_at_the_start_the_geometric_law_is_cut_off_at_k() -> None:
    """P(tau_k = l) = (1/N)(1 - 1/N)^l for l < k; what is left of the mass lies at l = k."""
    n, k, runs = 4, 3, 800
    keys = [jax.random.key(i) for i in range(runs)]
    last = [int(from_service_times(aj.service.exponential(), k + 1, n, key).staleness()[k, 0]) for key in keys]
    expected = [1 / n * (1 - 1 / n) ** staleness for staleness in range(k)]
    np.testing.assert_allclose(np.bincount(last, minlength=k + 1) / runs, [*expected, 1 - sum(expected)], atol=0.06)


def test_workers_of_rate_mu_have_their_shares_staleness_and_throughput() -> None:
    """Share mu_i / sum mu, E tau_i = (sum mu - mu_i) / mu_i, throughput sum mu."""
    mu = np.array([1.0, 2.0, 5.0])
    schedule = from_service_times(aj.service.exponential(1 / mu), 100_000, 3, KEY)
    worker, staleness = schedule.worker.ravel(), schedule.staleness().ravel()
    np.testing.assert_allclose(np.bincount(worker) / worker.size, mu / mu.sum(), atol=0.01)
    mean = [staleness[worker == w].mean() for w in range(3)]
    np.testing.assert_allclose(mean, (mu.sum() - mu) / mu, rtol=0.04)
    assert schedule.time is not None
    np.testing.assert_allclose(schedule.num_updates / schedule.time[-1], mu.sum(), rtol=0.02)


@pytest.mark.parametrize(("n", "harmonic"), [(2, 1.5), (4, 2.0833), (8, 2.7179), (16, 3.3807)])
def test_waiting_for_the_slowest_of_n_exponential_workers_costs_a_factor_of_h_n(n: int, harmonic: float) -> None:
    service, rounds = aj.service.exponential(1.0), 4000
    waiting = from_service_times(service, rounds, n, KEY, group_size=n, wait="next_version")
    free = from_service_times(service, rounds * n, n, KEY)
    assert waiting.time is not None
    assert free.time is not None
    np.testing.assert_allclose(waiting.time[-1] / free.time[-1], harmonic, rtol=0.03)


@every_service
@hypothesis.given(
    first=st.integers(1, 300), num_workers=st.integers(1, WORKERS), commit=st.sampled_from(list(COMMITS.values()))
)
@hypothesis.settings(max_examples=12)
def test_staleness_is_conserved(
    service: aj.service.Service, first: int, num_workers: int, commit: aj.service.Service | float
) -> None:
    """The first K staleness values and the ages of the N jobs in flight or queue at version K sum to (N - 1) K."""
    schedule = from_service_times(service, first, num_workers, KEY, commit=commit)
    read = np.zeros(num_workers, int)  # the job in flight read right after the worker's last message, or at the start
    for update, worker in enumerate(schedule.worker.ravel()):
        read[worker] = update + 1
    assert schedule.staleness().sum() + (first - read).sum() == (num_workers - 1) * first


@every_service
def test_a_job_in_flight_has_read_right_after_the_workers_last_message(service: aj.service.Service) -> None:
    schedule = from_service_times(service, 300, WORKERS, KEY)
    newest = dict.fromkeys(range(WORKERS), 0)
    for update, (worker, read) in enumerate(zip(schedule.worker.ravel(), schedule.read.ravel(), strict=True)):
        assert read == newest[worker]
        newest[worker] = update + 1


# ---------------------------------------------------------------------------------------------------------------------
# Commits that take time


@pytest.mark.parametrize("num_workers", [1, 3, 8])
@pytest.mark.parametrize("commit", [0.0, 0.125, 0.5, 3.0])
def test_equal_workers_fill_a_constant_server(num_workers: int, commit: float) -> None:
    """Throughput min(W / (s + c), 1 / c), in turn, staleness W - 1."""
    schedule = from_service_times(aj.service.constant(1.5), 20 * num_workers, num_workers, KEY, commit=commit)
    assert schedule.time is not None
    period = schedule.time[-1] - schedule.time[-1 - num_workers]
    np.testing.assert_allclose(period, max(1.5 + commit, num_workers * commit), rtol=1e-9)
    named = aj.schedules.round_robin(20 * num_workers, num_workers)
    assert_equal((schedule.worker, schedule.read), (named.worker, named.read))


@pytest.mark.parametrize("name", ["exponential", "gamma", "constant"])
@pytest.mark.parametrize(("num_workers", "mean_commit"), [(1, 1.0), (4, 0.2), (8, 0.5)])
def test_exponential_commits_have_the_throughput_and_the_queue_of_machine_repair(
    name: str, num_workers: int, mean_commit: float
) -> None:
    """X = (1 - p0) / c with 1 / p0 = sum_k N! / (N - k)! (c / s)^k; by Little's law N / X - s seconds from end to
    commit; whatever the distribution of the service times, of which only the mean s counts."""
    mean = 2.0
    service = {"exponential": aj.service.exponential, "gamma": lambda m: aj.service.gamma(4.0, m)}.get(name)
    model = aj.service.constant(mean) if service is None else service(mean)
    s = from_service_times(model, 40_000, num_workers, KEY, commit=aj.service.exponential(mean_commit))
    terms = [np.prod(np.arange(num_workers, num_workers - k, -1)) for k in range(num_workers + 1)]
    idle = 1 / sum(float(n) * (mean_commit / mean) ** k for k, n in enumerate(terms))
    expected = (1 - idle) / mean_commit
    assert s.time is not None
    assert s.end is not None
    np.testing.assert_allclose(aj.telemetry.throughput(s), expected, rtol=0.03)
    np.testing.assert_allclose((s.time - s.end.ravel()).mean(), num_workers / expected - mean, rtol=0.05)


def test_jobs_commits_and_restarts_have_random_numbers_of_their_own() -> None:
    """One worker's cycle: what its jobs, its updates and its restarts took does not correlate."""
    unit = aj.service.exponential()
    s = from_service_times(unit, 4000, 1, KEY, commit=unit, restart=unit)
    begin, end, time = (np.ravel(x) for x in (s.begin, s.end, s.time))  # type: ignore[arg-type]
    took = [(end - begin)[:-1], (time - end)[:-1], begin[1:] - time[:-1]]
    np.testing.assert_allclose(np.corrcoef(took), np.eye(3), atol=0.07)


def test_a_worker_that_restarts_at_the_moment_of_a_commit_comes_after_it() -> None:
    """Jobs of 1 and 2 s: at 2 s the first worker is back when the second's update is made, which it reads."""
    s = from_service_times(aj.service.constant([1.0, 2.0]), 3, 2, KEY, restart=1.0)
    assert (s.worker.ravel().tolist(), s.read.ravel().tolist()) == ([0, 1, 0], [0, 0, 2])


@every_service
def test_a_barrier_pays_for_the_slowest_and_for_the_commit(service: aj.service.Service) -> None:
    options: dict[str, Any] = {"group_size": WORKERS, "wait": "next_version"}
    free, paid = (from_service_times(service, 30, WORKERS, KEY, **options, commit=commit) for commit in (0.0, 0.75))
    assert free.time is not None
    assert paid.time is not None
    np.testing.assert_allclose(paid.time, free.time + 0.75 * np.arange(1, 31), rtol=1e-9)


@hypothesis.given(
    discipline=disciplines(), service=st.sampled_from(list(SERVICES.values())), commit=st.sampled_from([0.0, 0.02, 2.5])
)
def test_commits_are_serial_and_begin_when_their_messages_are_there(
    discipline: dict[str, Any], service: aj.service.Service, commit: float
) -> None:
    """time[t] = max(time[t - 1], latest end[t]) + commit, first come, first served; nobody reads during a commit."""
    s = from_service_times(service, 40, WORKERS, KEY, **discipline, commit=commit)
    assert s.time is not None
    assert s.begin is not None
    assert s.end is not None
    before = np.concatenate([[0.0], s.time[:-1]])
    np.testing.assert_array_equal(s.time, np.maximum(before, s.end.max(axis=1)) + commit)
    if discipline.get("wait") != "next_version":
        assert (np.diff(s.end.ravel()) >= 0).all()
    if commit:
        start = s.time - commit
        assert not ((s.begin[..., None] > start + 1e-9) & (s.begin[..., None] < s.time - 1e-9)).any()


def test_the_queue_is_part_of_staleness_once_commits_take_time() -> None:
    """W equal workers before a server that is never idle: of W - 1 updates of staleness all but those in flight."""
    schedule = from_service_times(aj.service.constant(1.0), 60, 8, KEY, commit=1.0)
    in_queue = aj.telemetry.in_queue(schedule)[8:]
    np.testing.assert_array_equal(schedule.staleness()[8:], 7)
    assert in_queue.min() >= 6
    assert aj.telemetry.in_queue(from_service_times(aj.service.constant(1.0), 60, 8, KEY)).max() == 0


# ---------------------------------------------------------------------------------------------------------------------
# Disciplines


@pytest.mark.parametrize("bound", [1, 2, 3, 5])
@pytest.mark.parametrize("group_size", [1, 3])
def test_under_a_bound_of_s_nobody_gets_more_than_s_messages_ahead(bound: int, group_size: int) -> None:
    service = SERVICES["exponential, unequal"]
    schedule = from_service_times(service, 200, WORKERS, KEY, group_size=group_size, bound=bound)
    handed_in = np.cumsum(schedule.worker.ravel()[:, None] == np.arange(WORKERS), axis=0)
    assert (handed_in.max(1) - handed_in.min(1)).max() == bound  # never exceeded, and used
    free = from_service_times(service, 200, WORKERS, KEY, group_size=group_size)
    handed_in = np.cumsum(free.worker.ravel()[:, None] == np.arange(WORKERS), axis=0)
    assert (handed_in.max(1) - handed_in.min(1)).max() > bound


@every_service
@pytest.mark.parametrize(("eta", "group_size"), [(0, 1), (0, 3), (1, 2), (2, 1), (9, 1)])
def test_under_eta_jobs_begin_when_admitted_and_are_consumed_in_that_order(
    service: aj.service.Service, eta: int, group_size: int
) -> None:
    """Job n begins when its worker is free and version n // G - eta exists; update t waits for all jobs before it."""
    made = from_service_times(service, 120, WORKERS, KEY, group_size=group_size, eta=eta)
    assert made.staleness().max() <= eta
    begin, end, time = (np.asarray(x) for x in (made.begin, made.end, made.time))
    np.testing.assert_array_equal(time, np.maximum.accumulate(end.max(1)))
    begin, end, free = begin.ravel(), end.ravel(), np.zeros(WORKERS)
    for n, worker in enumerate(made.worker.ravel()):
        exists = time[n // group_size - eta - 1] if n // group_size > eta else 0.0
        assert begin[n] == max(free[worker], exists)
        free[worker] = end[n]
    np.testing.assert_array_equal(begin, np.sort(begin))


@pytest.mark.parametrize(("eta", "group_size"), [(0, 1), (0, 3), (1, 2)])
def test_a_run_that_continues_admits_as_many_as_one_that_begins(eta: int, group_size: int) -> None:
    for version in (0, 10):
        rule = Coordinator(Discipline(group_size, eta=eta), num_workers=9, version=version)
        assert sum(map(rule.admit, range(9))) == (eta + 1) * group_size


def test_eta_bounds_what_is_stale_without_it() -> None:
    service = SERVICES["exponential, unequal"]
    free = from_service_times(service, 200, WORKERS, KEY)
    for eta in (0, 1, 2):
        assert from_service_times(service, 200, WORKERS, KEY, eta=eta).staleness().max() == eta < free.staleness().max()
    equal = aj.service.constant(1.0)  # equal workers are in order by themselves
    assert_equal(from_service_times(equal, 50, 4, KEY, eta=4), from_service_times(equal, 50, 4, KEY))


@every_service
def test_waiting_for_the_next_version_in_groups_of_all_workers_is_the_barrier(service: aj.service.Service) -> None:
    made = from_service_times(service, 50, WORKERS, KEY, group_size=WORKERS, wait="next_version")
    named = aj.schedules.barrier(50, WORKERS)
    assert_equal((made.worker, made.read), (named.worker, named.read))
    assert not made.staleness().any()


@every_service
@pytest.mark.parametrize("group_size", range(1, WORKERS))
def test_backup_workers_make_every_message_fresh_and_drop_the_late_ones(
    service: aj.service.Service, group_size: int
) -> None:
    schedule = from_service_times(service, 50, WORKERS, KEY, group_size=group_size, wait="next_version")
    assert not schedule.staleness().any()
    assert (np.diff(schedule.worker, axis=1) > 0).all()  # a group is a set of distinct workers, in their order


def test_a_group_is_committed_when_its_last_message_arrives() -> None:
    schedule = from_service_times(SERVICES["exponential"], 100, WORKERS, KEY, group_size=3)
    assert schedule.time is not None
    assert schedule.end is not None
    assert schedule.worker.shape == schedule.read.shape == (100, 3)
    assert (np.diff(np.ravel(schedule.end)) >= 0).all()  # in order of arrival
    np.testing.assert_array_equal(schedule.end[:, -1], schedule.time)


@hypothesis.given(
    discipline=disciplines(),
    service=st.sampled_from(list(SERVICES.values())),
    num_workers=st.integers(1, WORKERS),
    commit=st.sampled_from(list(COMMITS.values())),
)
@hypothesis.settings(max_examples=100)
def test_the_clock_is_consistent(
    discipline: dict[str, Any], service: aj.service.Service, num_workers: int, commit: aj.service.Service | float
) -> None:
    """Begin <= end <= commit, a read is the number of commits before it, and the schedule is realizable."""
    if discipline.get("wait") == "next_version":
        num_workers = max(num_workers, discipline["group_size"])
    s = from_service_times(service, 60, num_workers, KEY, **discipline, commit=commit)
    assert s.time is not None
    assert s.begin is not None
    assert s.end is not None
    assert is_realizable(check(s, num_workers))
    assert (s.begin <= s.end).all()
    assert (s.end <= np.asarray(s.time)[:, None]).all()
    assert (np.diff(s.time) >= 0).all()
    # Commits at the very moment of the read may have come before or after it.
    assert (np.searchsorted(s.time, s.begin, side="left") <= s.read).all()
    assert (s.read <= np.searchsorted(s.time, s.begin, side="right")).all()


@hypothesis.given(data=st.data())
def test_a_workers_service_times_depend_neither_on_the_discipline_nor_on_the_other_workers(data: st.DataObject) -> None:
    """Common random numbers: worker w's n-th job takes as long in any run with this key."""
    discipline = data.draw(disciplines().filter(lambda d: "wait" not in d))  # late jobs are dropped, and not seen
    num_workers = data.draw(st.integers(2, 2 * WORKERS))
    commit = data.draw(st.sampled_from(list(COMMITS.values())))

    def times(schedule: aj.Schedule) -> np.ndarray:
        assert schedule.begin is not None
        assert schedule.end is not None
        mine = schedule.worker == 1
        return np.asarray(schedule.end)[mine] - np.asarray(schedule.begin)[mine]

    some = times(from_service_times(SERVICES["lognormal"], 60, num_workers, KEY, **discipline, commit=commit))
    barrier = times(from_service_times(SERVICES["lognormal"], 60, 2, KEY, group_size=2, wait="next_version"))
    common = min(some.size, barrier.size)
    assert common > 0
    np.testing.assert_allclose(some[:common], barrier[:common], rtol=1e-6)


def test_another_key_gives_another_schedule_and_the_same_key_the_same() -> None:
    first, again, other = (from_service_times(SERVICES["gamma"], 50, 3, jax.random.key(seed)) for seed in (0, 0, 1))
    assert_equal(first, again)
    assert (first.worker != other.worker).any()
    assert_equal(from_service_times(SERVICES["gamma"], 50, 3, jax.random.PRNGKey(0)), first)


def test_the_service_models_have_their_means() -> None:
    rng = np.random.default_rng(0)
    for model, mean in [
        (aj.service.constant(3.0), 3.0),
        (aj.service.exponential(3.0), 3.0),
        (aj.service.gamma(16.0, 3.0), 3.0),
        (aj.service.lognormal(0.5, 3.0), 3.0),
        (aj.service.pareto(4.0, 3.0), 3.0),
        (aj.service.straggler(0.25, 5.0, 3.0), 3.0 * (0.75 + 0.25 * 5.0)),
    ]:
        np.testing.assert_allclose(model.sample(rng, 0, 200_000).mean(), mean, rtol=0.02, err_msg=model.name)


def test_a_long_schedule_is_no_burden() -> None:
    schedule = from_service_times(SERVICES["pareto"], 200_000, WORKERS, KEY)
    assert is_realizable(schedule)
    assert schedule.worker.shape == (200_000, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Named schedules, and what is realizable


@pytest.mark.parametrize("num_updates", [0, 1, 7])
def test_all_generators_make_well_formed_schedules(num_updates: int) -> None:
    made = {
        "round_robin": (aj.schedules.round_robin(num_updates, 3), 1, lambda t: min(t, 2)),
        "sequential": (aj.schedules.sequential(num_updates, 3), 1, lambda t: 0),
        "fixed_delay": (aj.schedules.fixed_delay(num_updates, 4, num_workers=3), 1, lambda t: min(t, 4)),
        "barrier": (aj.schedules.barrier(num_updates, 3), 3, lambda t: 0),
        "from_service_times": (from_service_times(SERVICES["constant"], num_updates, 3, KEY), 1, lambda t: min(t, 2)),
    }
    for name, (schedule, group_size, staleness) in made.items():
        assert schedule.worker.shape == schedule.read.shape == (num_updates, group_size), name
        assert schedule.worker.dtype == schedule.read.dtype == schedule.staleness().dtype == np.int32, name
        assert (schedule.num_updates, schedule.group_size) == (num_updates, group_size)
        assert schedule.num_workers == min(num_updates * group_size, 3)
        assert_equal(check(schedule, 3), schedule)
        expected = np.array([[staleness(t)] * group_size for t in range(num_updates)], np.int32)
        np.testing.assert_array_equal(schedule.staleness(), expected.reshape(num_updates, group_size), err_msg=name)
        if group_size == 1:
            np.testing.assert_array_equal(schedule.worker.ravel(), np.arange(num_updates) % 3, err_msg=name)


def test_one_worker_is_never_stale() -> None:
    assert_equal(aj.schedules.round_robin(9, 1), aj.schedules.sequential(9))
    assert_equal(aj.schedules.fixed_delay(9, 0), aj.schedules.sequential(9))
    assert_equal(aj.schedules.barrier(9, 1), aj.schedules.sequential(9))
    assert not from_service_times(SERVICES["pareto"], 9, 1, KEY).staleness().any()


@hypothesis.given(delay=st.integers(0, 6), num_workers=st.integers(1, 8))
def test_a_fixed_delay_is_realizable_exactly_with_more_workers_than_the_delay(delay: int, num_workers: int) -> None:
    schedule = aj.schedules.fixed_delay(20, delay, num_workers=num_workers)
    assert is_realizable(schedule) == (num_workers > delay)


@pytest.mark.parametrize(
    ("worker", "read", "realizable"),
    [
        ([[0], [0]], [[0], [1]], True),
        ([[0], [0]], [[0], [0]], False),  # version 1 existed when worker 0 came back
        ([[0], [1], [0]], [[0], [0], [1]], True),
        ([[0], [1], [0]], [[0], [0], [0]], False),
        ([[0, 0]], [[0, 0]], True),  # handed in twice before the group was full
        ([[0, 1], [0, 1]], [[0, 0], [0, 1]], True),  # the first of a group may read again at once
        ([[0, 1], [1, 0]], [[0, 0], [0, 0]], False),  # but its last message makes the next version
        ([[0, 0], [0, 1]], [[0, 0], [0, 0]], False),
        ([[0, 1, 0]], [[0, 0, 0]], True),
    ],
)
def test_a_worker_reads_only_after_it_has_handed_in(worker: Any, read: Any, realizable: bool) -> None:
    schedule = aj.Schedule(np.array(worker, np.int32), np.array(read, np.int32))
    assert is_realizable(schedule) == realizable
    assert is_realizable(jax.tree.map(jnp.asarray, schedule)) == realizable


def test_torn_reads_count_by_their_oldest_leaf() -> None:
    worker, new, old = (np.array(x, np.int32)[:, None] for x in ([0, 0, 0], [0, 1, 2], [0, 0, 2]))
    torn = aj.Schedule(worker, {"w": new, "b": (new, old)})
    assert torn.staleness().tolist() == [[0], [1], [0]]
    assert not is_realizable(torn)
    assert is_realizable(torn._replace(read={"w": new, "b": (new, new)}))


@hypothesis.given(schedule=schedules())
def test_staleness_is_the_age_of_the_read(schedule: aj.Schedule) -> None:
    for t, row in enumerate(np.asarray(schedule.staleness())):
        np.testing.assert_array_equal(row, t - schedule.read[t])
    np.testing.assert_array_equal(jax.tree.map(jnp.asarray, schedule).staleness(), schedule.staleness())


# ---------------------------------------------------------------------------------------------------------------------
# Parts and files


class Heads(NamedTuple):
    """A view with named parts."""

    policy: Any
    value: Any


@st.composite
def nested(draw: st.DrawFn) -> Any:
    """A tree of dictionaries, tuples and named tuples with reads for leaves."""
    leaf = st.integers(0, 9).map(lambda i: np.array([[0], [i % 2], [i % 3]], np.int32))
    name = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=4)

    def inner(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        tuples = st.lists(children, min_size=1, max_size=12).map(tuple)
        named = st.tuples(children, children).map(lambda pair: Heads(*pair))
        numbered = st.dictionaries(st.integers(-12, 12), children, min_size=1, max_size=3)
        dictionaries = st.dictionaries(name, children, min_size=1, max_size=3) | numbered
        return tuples | named | dictionaries | dictionaries.map(OrderedDict)  # pyright: ignore[reportArgumentType]

    return draw(st.recursive(leaf, inner, max_leaves=14))


def plain(tree: Any) -> Any:
    """Named tuples as tuples, and ordered dictionaries, where their keys are in order, as dictionaries."""
    if isinstance(tree, OrderedDict) and list(tree) != sorted(tree):
        return OrderedDict((name, plain(tree[name])) for name in tree)
    if isinstance(tree, dict):
        return {name: plain(tree[name]) for name in tree}
    return tuple(map(plain, tree)) if isinstance(tree, tuple) else tree


@hypothesis.given(read=nested())
@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_torn_reads_survive_a_file_as_dictionaries_and_tuples(read: Any, tmp_path: Path) -> None:
    torn = aj.Schedule(np.zeros((3, 1), np.int32), read)
    save(torn, tmp_path / "schedule.npz")
    assert_equal(load(tmp_path / "schedule.npz"), torn._replace(read=plain(read)))


@pytest.mark.parametrize("name", ["schedule.npz", "no extension"])
def test_a_schedule_survives_a_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    timed = from_service_times(SERVICES["exponential"], 30, 3, KEY, group_size=2)
    for schedule in (timed, aj.schedules.barrier(4, 2), aj.schedules.sequential(0)):  # the later ones overwrite
        save(jax.tree.map(jnp.asarray, schedule._replace(time=None, begin=None, end=None)), path)
        assert load(path).time is None
        save(schedule, str(path))
        assert_equal(load(str(path)), schedule)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def archive(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def one_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


OTHER_FILES = {
    "something else": archive(weights=np.zeros(3)),
    "no reads": archive(worker=np.zeros((3, 1), np.int32)),
    "one array": one_array(),
    "text": b"{}",
    "nothing": b"",
    "cut off": archive(worker=np.zeros((3, 1), np.int32), read=np.zeros((3, 1), np.int32))[:200],
}


@pytest.mark.parametrize("seed", range(5))
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, seed: int) -> None:
    """Whatever zip, zlib or NumPy's headers make of a wrong byte; a few of them do not matter."""
    path, random = tmp_path / "file.npz", np.random.default_rng(seed)
    save(from_service_times(SERVICES["exponential"], 40, 3, KEY), path)
    compressed = path.read_bytes()
    plain = archive(worker=np.zeros((3, 1), np.int32), read=np.zeros((3, 1), np.int32))
    refused = 0
    for whole in [compressed, plain] * 100:
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] ^= random.integers(1, 256)
        path.write_bytes(damaged)
        try:
            load(path)
        except ValueError as error:
            assert re.search(r"file\.npz.*no schedule.*asyncjax\.schedules\.save", str(error))  # noqa: PT017
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file.npz"
    path.write_bytes(OTHER_FILES[kind])
    with pytest.raises(ValueError, match=r"file\.npz.*no schedule.*asyncjax\.schedules\.save"):
        load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.npz"):
        load(tmp_path / "absent.npz")


@hypothesis.given(schedule=schedules(), ends=st.lists(st.integers(0, 8), max_size=4).map(sorted), timed=st.booleans())
def test_the_parts_of_a_schedule_make_it_up_again(schedule: aj.Schedule, ends: list[int], timed: bool) -> None:
    if timed:
        times = np.arange(8.0)
        schedule = schedule._replace(time=times, begin=0 * schedule.read + times[:, None], end=schedule.read + 1.0)
    schedule = schedule._replace(read={"w": schedule.read, "b": schedule.read // 2})
    bounds = [0, *ends, 8]
    parts = [cut(schedule, start, stop) for start, stop in itertools.pairwise(bounds)]
    assert [part.num_updates for part in parts] == np.diff(bounds).tolist()
    assert_equal(concatenate(parts), schedule)


# ---------------------------------------------------------------------------------------------------------------------
# Errors name the argument, its value and the fix


def timed_by(service: Callable[[], aj.service.Service], **options: Any) -> Callable[[], Any]:
    return lambda: from_service_times(service(), **{"num_updates": 5, "num_workers": 3, "key": KEY, **options})


def checked(worker: Any, read: Any, num_workers: int | None = None) -> Callable[[], Any]:
    return lambda: check(aj.Schedule(np.array(worker), np.array(read)), num_workers)


def disciplined(num_workers: int = 3, **options: Any) -> Callable[[], Any]:
    return lambda: aj.Discipline(**options).check(num_workers)


one, service = aj.service.constant, aj.service
ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "half an update": (lambda: aj.schedules.round_robin(2.5, 2), r"num_updates=2\.5: give a whole number"),  # type: ignore[arg-type]
    "half a worker": (lambda: aj.schedules.sequential(3, 2.5), r"num_workers=2\.5: give a whole number"),  # type: ignore[arg-type]
    "half a delay": (lambda: aj.schedules.fixed_delay(3, 0.5), r"delay=0\.5: give a whole number"),  # type: ignore[arg-type]
    "seconds for a model": (timed_by(lambda: 0.5), r"service=0\.5 is no Service: give a model"),  # type: ignore[arg-type]
    "seed for a key": (timed_by(one, key=7), r"key=7 is no random key: give jax\.random\.key\(7\)"),
    "delay of nothing": (lambda: aj.schedules.fixed_delay(3, None), r"delay=None: give a number"),  # type: ignore[arg-type]
    "endless delay": (lambda: aj.schedules.fixed_delay(3, 2**31), r"delay=2147483648: use at most 2147483647"),
    "too many workers": (lambda: aj.schedules.round_robin(3, 2**31), r"num_workers=2147483648: use at most 2147483647"),
    "negative updates": (lambda: aj.schedules.round_robin(-1, 2), r"num_updates=-1: .* at least 0"),
    "no worker, round robin": (lambda: aj.schedules.round_robin(3, 0), r"num_workers=0: at least one"),
    "no worker, sequential": (lambda: aj.schedules.sequential(3, 0), r"num_workers=0: at least one"),
    "no worker, barrier": (lambda: aj.schedules.barrier(3, -2), r"num_workers=-2: at least one"),
    "no worker, fixed delay": (lambda: aj.schedules.fixed_delay(3, 1, num_workers=0), r"num_workers=0: at least one"),
    "negative delay": (lambda: aj.schedules.fixed_delay(3, -1), r"delay=-1: .* a delay of at least 0"),
    "negative updates, timed": (timed_by(one, num_updates=-3), r"num_updates=-3: .* at least 0"),
    "no worker, timed": (timed_by(one, num_workers=0), r"num_workers=0: at least one"),
    "group of none": (timed_by(one, group_size=0), r"group_size=0: .* at least one message"),
    "unknown wait": (timed_by(one, wait="always"), r"wait='always': choose one of 'never', 'next_version'"),
    "group too large": (
        timed_by(one, group_size=4, wait="next_version"),
        r"group_size=4 with wait='next_version'.* num_workers is 3.*smaller group or wait='never'",
    ),
    "bound of none": (timed_by(one, bound=0), r"bound=0: .* at least 1"),
    "negative commit": (timed_by(one, commit=-0.5), r"commit=-0\.5: give seconds of at least 0, or a model"),
    "endless commit": (timed_by(one, commit=np.inf), r"commit=inf: give seconds of at least 0, or a model"),
    "bound and barrier": (timed_by(one, bound=2, wait="next_version"), r"bound and wait='next_version' exclude"),
    "discipline, no worker": (disciplined(0), r"num_workers=0: at least one"),
    "discipline, group": (disciplined(group_size=-1), r"group_size=-1: .* at least one message"),
    "discipline, wait": (disciplined(wait=None), r"wait=None: choose one of"),
    "discipline, eta": (disciplined(eta=-1), r"eta=-1: staleness is at least 0"),
    "eta and bound": (timed_by(one, eta=2, bound=2), r"eta and bound exclude each other"),
    "eta and barrier": (timed_by(one, eta=2, wait="next_version"), r"eta and wait='next_version' exclude"),
    "discipline, bound": (disciplined(bound=-1), r"bound=-1: .* at least 1"),
    "float worker": (checked([[0.0]], [[0]]), r"schedule\.worker is float64\[1, 1\].*Int\[T, G\]; give whole numbers"),
    "flat worker": (checked([0, 0], [0, 0]), r"schedule\.worker is int64\[2\].*add an axis: worker\[:, None\]"),
    "flat read": (checked([[0], [0]], [0, 0]), r"schedule\.read is int64\[2\].*add an axis: read\[:, None\]"),
    "flat staleness": (
        lambda: aj.Schedule(np.zeros(2, np.int32), np.zeros(2, np.int32)).staleness(),
        r"schedule\.worker is int32\[2\].*add an axis",
    ),
    "lists": (
        lambda: aj.Schedule([[0], [1]], [[0], [0]]).staleness(),  # type: ignore[arg-type]
        r"schedule\.read=\[\[0\], \[0\]\] is made of single numbers: give an array",
    ),
    "lists in a file": (
        lambda: aj.schedules.save(aj.Schedule(np.zeros((2, 1), int), [[0], [0]]), "nowhere/schedule.npz"),
        r"schedule\.read=\[\[0\], \[0\]\] is made of single numbers: give an array",
    ),
    "other shape": (checked([[0], [0]], [[0, 0]]), r"schedule\.read has shape \(1, 2\), schedule\.worker \(2, 1\)"),
    "missing times": (
        lambda: check(aj.schedules.round_robin(4, 2)._replace(time=np.zeros(3))),
        r"schedule\.time has shape \(3,\), schedule\.worker \(4, 1\): give \(4,\), or None",
    ),
    "flat times": (
        lambda: check(aj.schedules.round_robin(4, 2)._replace(end=np.zeros(4))),
        r"schedule\.end has shape \(4,\), schedule\.worker \(4, 1\): give \(4, 1\), or None",
    ),
    "times that fall": (
        lambda: check(aj.schedules.round_robin(3, 2)._replace(time=np.array([1.0, 1.0, 0.5]))),
        r"schedule\.time\[2\] = 0\.5, after 1\.0: give finite seconds that never fall, or None",
    ),
    "no time": (
        lambda: check(aj.schedules.round_robin(3, 2)._replace(time=np.array([np.nan, 1.0, 2.0]))),
        r"schedule\.time\[0\] = nan: give finite seconds",
    ),
    "endless time": (
        lambda: check(aj.schedules.round_robin(3, 2)._replace(time=jnp.array([1.0, 2.0, jnp.inf]))),
        r"schedule\.time\[2\] = inf, after 2\.0: give finite seconds",
    ),
    "groups of two sizes": (
        lambda: concatenate([aj.schedules.barrier(3, 2), aj.schedules.barrier(4, 3)]),
        r"schedules\[1\]\.worker has shape \(4, 3\), but schedules\[0\]\.worker \(3, 2\): .* groups of one size",
    ),
    "future": (checked([[0], [0]], [[0], [2]]), r"schedule\.read\[1, 0\] = 2: update 1 can read the versions 0 to 1"),
    "before time": (checked([[0, 0]], [[0, -1]]), r"schedule\.read\[0, 1\] = -1: .* the versions 0 to 0"),
    "negative worker": (checked([[0, -1]], [[0, 0]]), r"schedule\.worker\[0, 1\] = -1: .* numbered from 0"),
    "missing worker": (
        checked([[0], [5]], [[0], [0]], 3),
        r"schedule\.worker\[1, 0\] = 5: .* from 0 to 2\. Pass num_workers=6 or more",
    ),
    "unrealizable question": (lambda: is_realizable(aj.Schedule(np.array([0]), np.array([0]))), r"schedule\.worker is"),
    "constant": (lambda: one(0.0), r"constant\(seconds=0\.0\): wants positive numbers"),
    "constant, words": (lambda: one("2"), r"constant\(seconds='2'\): wants positive numbers"),  # type: ignore[arg-type]
    "constant, words for one": (lambda: one(["2"]), r"constant\(seconds=\['2'\]\): wants"),  # type: ignore[list-item]
    "constant, none": (lambda: one([]), r"constant\(seconds=\[\]\): wants positive numbers"),
    "exponential": (lambda: service.exponential(-1.0), r"exponential\(mean=-1\.0\): wants positive"),
    "exponential, one of many": (lambda: service.exponential([1.0, np.nan]), r"exponential\(mean=\[1\.0, nan\]\)"),
    "gamma": (lambda: service.gamma(0.0), r"gamma\(shape=0\.0\): wants positive"),
    "gamma, mean": (lambda: service.gamma(1.0, np.inf), r"gamma\(mean=inf\): wants positive"),
    "lognormal": (lambda: service.lognormal(-0.5), r"lognormal\(sigma=-0\.5\): wants positive"),
    "pareto": (lambda: service.pareto(1.0), r"pareto\(shape=1\.0\): .* no mean; use a shape above 1"),
    "pareto, mean": (lambda: service.pareto(2.0, 0.0), r"pareto\(mean=0\.0\): wants positive"),
    "probability": (lambda: service.straggler(1.5, 2.0), r"probability=1\.5\): .* between 0 and 1"),
    "negative probability": (lambda: service.straggler(-0.1, 2.0), r"probability=-0\.1\): wants numbers of at least 0"),
    "slowdown": (lambda: service.straggler(0.1, -2.0), r"slowdown=-2\.0\): wants numbers of at least 0"),
    "matrix": (
        lambda: one(np.ones((2, 2))),
        r"(?s)constant\(seconds=.*one for all workers or one per worker, Float\[W\]",
    ),
    "too few times": (
        timed_by(lambda: one([1.0, 2.0])),
        r"constant\(seconds=\.\.\.\) has 2 entries, but there is a worker 2: give one number per worker",
    ),
    "own model": (
        timed_by(lambda: service.Service("mine", lambda rng, w, n: np.full(n, -1.0))),
        r"service model mine gave worker 0 a negative or non-finite time",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_names_the_argument_its_value_and_the_fix(case: str) -> None:
    call, message = ERRORS[case]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


@pytest.mark.parametrize(
    ("times", "found"),
    [([], r"an array of shape \(0,\)"), (1.0, "1.0"), (np.ones((3, 1)), r"an array of shape \(3, 1\)")],
)
def test_a_service_model_that_gives_no_list_of_times_is_told(times: Any, found: str) -> None:
    model = aj.service.Service("mine", lambda generator, worker, n: times)
    with pytest.raises(ValueError, match=f"service model mine gave worker 0 {found}: return Float"):
        from_service_times(model, 3, 2, jax.random.key(0))


@hypothesis.given(recorded=schedules(max_group=1), other=schedules(max_group=1), at=st.integers(0, 9))
def test_what_follows_another_schedule_has_its_own_staleness(
    recorded: aj.Schedule, other: aj.Schedule, at: int
) -> None:
    first = cut(recorded, 0, at)
    both = aj.schedules.extend(first, other)
    check(both)
    np.testing.assert_array_equal(both.worker, np.concatenate([first.worker, other.worker]))
    np.testing.assert_array_equal(both.staleness(), np.concatenate([first.staleness(), other.staleness()]))


def test_the_clock_goes_on_where_a_schedule_is_extended() -> None:
    one, two = (from_service_times(aj.service.exponential(), 10, 2, jax.random.key(seed)) for seed in (0, 1))
    assert one.time is not None
    both = aj.schedules.extend(one, two)
    for name in ("time", "begin", "end"):
        parts = [np.asarray(getattr(schedule, name)) for schedule in (one, two)]
        np.testing.assert_allclose(getattr(both, name), np.concatenate([parts[0], parts[1] + one.time[-1]]))
    assert is_realizable(both)
    assert aj.schedules.extend(one, two._replace(time=None)).time is None
    assert_equal(aj.schedules.extend(cut(one, 0, 0), two), two)
