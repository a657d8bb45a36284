"""Edited and adversarial schedules: what they promise, on schedules of every kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

import asyncjax as aj
from asyncjax import faults, schedules
from tests.laws import KEY, assert_equal
from tests.laws import schedules as well_formed

DISCIPLINES: list[dict[str, Any]] = [
    {},
    {"group_size": 2},
    {"group_size": 3, "wait": "next_version"},
    {"bound": 1},
    {"group_size": 4},
]


@st.composite
def realizable(draw: st.DrawFn) -> aj.Schedule:
    """What workers produce, ties and groups included."""
    service = draw(
        st.sampled_from([aj.service.constant(), aj.service.constant([1.0, 2.0, 1.5]), aj.service.pareto(2.0)])
    )
    discipline = draw(st.sampled_from(DISCIPLINES))
    takes: dict[str, Any] = {name: draw(st.sampled_from([0.0, 0.3])) for name in ("commit", "restart")}
    return schedules.from_service_times(service, 25, 3, jax.random.key(draw(st.integers(0, 9))), **discipline, **takes)


EDITS: dict[str, Callable[[aj.Schedule], aj.Schedule]] = {
    "drop": lambda s: faults.drop(s, 1),
    "lost for a while": lambda s: faults.drop(s, [0, 2], 3.0, 6.0),
    "slow": lambda s: faults.slow(s, [1.0, 4.0, 0.5]),
    "pause": lambda s: faults.pause(s, 0, 2.0, 8.0),
    "never returns": lambda s: faults.pause(s, [0, 1], 2.0),
    "bursts": lambda s: faults.bursts(s, 2.5),
    "storms": lambda s: faults.storms(s, KEY, calm=3.0, storm=2.0, factor=5.0),
    "permute": lambda s: faults.permute(s, [2, 0, 1]),
    "stretch": lambda s: faults.stretch(s, 3.0),
    "maximal delay": lambda s: faults.maximal_delay(s, 4),
}


@pytest.mark.parametrize("name", EDITS)
@hypothesis.given(schedule=realizable(), timed=st.booleans())
def test_edits_of_realizable_schedules_are_realizable(name: str, schedule: aj.Schedule, timed: bool) -> None:
    edited = EDITS[name](schedule if timed else schedule._replace(time=None, begin=None, end=None))
    assert schedules.is_realizable(edited)
    assert edited.group_size == schedule.group_size
    assert edited.num_updates <= schedule.num_updates
    if edited.time is not None:
        assert np.all(np.diff(edited.time) >= 0)


NOTHING: dict[str, Callable[[aj.Schedule], aj.Schedule]] = {
    "drop": lambda s: faults.drop(s, 0, 3.0, 3.0),
    "slow": lambda s: faults.slow(s, 1.0),
    "pause": lambda s: faults.pause(s, 0, 1e6, 2e6),
    "permute": lambda s: faults.permute(s, range(s.num_workers)),
    "stretch": lambda s: faults.stretch(s, 1.0),
}


@pytest.mark.parametrize("name", NOTHING)
@hypothesis.given(schedule=realizable(), timed=st.booleans())
def test_edits_by_nothing_give_the_source_back(name: str, schedule: aj.Schedule, timed: bool) -> None:
    """Times, too, and what messages waited in the queue for the updates before theirs."""
    source = schedule if timed else schedule._replace(time=None, begin=None, end=None)
    assert_equal(NOTHING[name](source), source)


def test_edits_by_nothing_of_a_threaded_run() -> None:
    from tests.laws import method

    _, schedule = aj.run_threads(method("sgd"), KEY, num_workers=3, num_updates=20, group_size=2)
    for edit in NOTHING.values():
        assert_equal(edit(schedule)[:2], schedule[:2])


@hypothesis.given(seed=st.integers(0, 99), group_size=st.sampled_from([1, 3]), eta=st.integers(0, 2))
def test_where_workers_went_on_while_their_messages_waited_no_times_are_edited(
    seed: int, group_size: int, eta: int
) -> None:
    source = schedules.from_service_times(
        aj.service.pareto(2.0), 12, 3, jax.random.key(seed), group_size=group_size, eta=eta
    )
    assert_equal(NOTHING["drop"](source), source)
    schedules.check(EDITS["drop"](source))
    for name in ("slow", "pause", "bursts", "storms"):
        try:
            schedules.check(EDITS[name](source))  # where no message waited for long
            assert_equal(NOTHING["slow"](source)[:2], source[:2])
        except ValueError as error:
            assert "reads versions that no worker" in str(error) or "messages waited while" in str(error)  # noqa: PT017
    waiting = schedules.from_service_times(aj.service.exponential(), 3, 2, jax.random.key(1), group_size=3, eta=0)
    with pytest.raises(ValueError, match="messages waited while their workers went on, as eta makes them"):
        faults.slow(waiting, [1.0, 2.0])


def test_who_is_slower_waits_in_the_queue_as_long_as_it_did() -> None:
    """Two workers, commits of 1 s: one's jobs of 4 s take 8, what it waited for a commit does not."""
    source = schedules.from_service_times(aj.service.constant([4.0, 39.5]), 12, 2, KEY, commit=1.0)
    edited = faults.slow(source, [2.0, 1.0])
    assert edited.time is not None
    np.testing.assert_array_equal(edited.worker[:5].ravel(), [0, 0, 0, 0, 1])
    np.testing.assert_array_equal(edited.time[:5], [9.0, 18.0, 27.0, 36.0, 41.0])  # in the source the last waited 0.5 s


@pytest.mark.parametrize("group_size", [1, 3])
def test_slowing_a_record_is_the_record_of_slow_workers(group_size: int) -> None:
    """Service times are random numbers times a mean, so that both share the random numbers."""
    mean = [3.0, 1.0, 0.5, 1.0]

    def schedule(mean: Any) -> aj.Schedule:
        return schedules.from_service_times(aj.service.gamma(2.0, mean), 200, 4, KEY, group_size)

    edited, expected = faults.slow(schedule(1.0), mean), schedule(mean)
    length = min(edited.num_updates, expected.num_updates)
    assert edited.time is not None
    assert expected.time is not None
    assert length > 60
    assert_equal(schedules.cut(edited, 0, length)[:2], schedules.cut(expected, 0, length)[:2])
    np.testing.assert_allclose(edited.time[:length], expected.time[:length])


@hypothesis.given(schedule=well_formed(num_updates=12))
def test_dropping_keeps_the_others_in_order(schedule: aj.Schedule) -> None:
    hypothesis.assume(schedule.num_workers > 1)
    edited = faults.drop(schedule, 1)
    schedules.check(edited)
    others = schedule.worker.ravel()[schedule.worker.ravel() != 1]
    np.testing.assert_array_equal(edited.worker.ravel(), others[: edited.worker.size])
    assert others.size - edited.worker.size < schedule.group_size


def test_dropping_one_of_round_robin_is_a_smaller_round_robin() -> None:
    edited = faults.drop(schedules.round_robin(30, 3), 2)
    assert_equal(edited, schedules.round_robin(20, 2))


def test_a_worker_that_stops_and_returns_brings_an_old_message() -> None:
    schedule = schedules.from_service_times(aj.service.constant(1.0), 40, 4, KEY)
    edited = faults.pause(schedule, 3, 2.5, 7.5)
    stale = edited.staleness().ravel()
    late = int(np.argmax(stale))
    assert edited.worker[late, 0] == 3
    assert stale[late] == 5 * 3  # five rounds of the three others
    assert edited.end is not None
    assert edited.end[late, 0] == 8.0


def test_a_job_that_begins_within_a_pause_stands_still_for_the_rest_of_it() -> None:
    """Jobs of 1 s with 2 s between them: the second begins at 3 s, in a pause from 2 to 10 s, and ends at 11 s."""
    schedule = schedules.from_service_times(aj.service.constant(1.0), 3, 1, KEY, restart=2.0)
    edited = faults.pause(schedule, 0, 2.0, 10.0)
    assert edited.begin is not None
    np.testing.assert_array_equal(edited.begin.ravel()[:3], [0.0, 3.0, 13.0])
    np.testing.assert_array_equal(np.asarray(edited.time)[:3], [1.0, 11.0, 14.0])


def test_what_is_handed_in_at_the_start_is_lost_and_at_the_stop_no_more() -> None:
    schedule = schedules.from_service_times(aj.service.constant(1.0), 5, 1, KEY)
    np.testing.assert_array_equal(np.asarray(faults.drop(schedule, 0, 2.0, 4.0).time), [1.0, 4.0, 5.0])


def test_bursts_arrive_together() -> None:
    schedule = schedules.from_service_times(aj.service.exponential(1.0), 60, 5, KEY)
    edited = faults.bursts(schedule, 4.0)
    assert edited.time is not None
    np.testing.assert_array_equal(edited.time % 4.0, 0.0)
    assert len(np.unique(edited.time)) < edited.num_updates / 2


@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.2, 0.3])
def test_a_burst_delays_nothing_that_arrives_with_it(seconds: float) -> None:
    """Times are sums, so that those at multiples of the period are so but for rounding."""
    schedule = schedules.from_service_times(aj.service.constant(seconds), 50, 2, KEY)
    edited = faults.bursts(schedule, seconds)
    assert_equal((edited.worker, edited.read), (schedule.worker, schedule.read))
    np.testing.assert_allclose(np.asarray(edited.time), np.asarray(schedule.time), rtol=1e-9)


def test_a_storm_that_slows_nothing_drops_nothing() -> None:
    schedule = schedules.from_service_times(aj.service.exponential(), 100, 3, KEY)
    assert_equal(faults.storms(schedule, KEY, calm=3.0, storm=2.0, factor=1.0), schedule)


def test_storms_slow_all_workers_at_once() -> None:
    schedule = schedules.from_service_times(aj.service.constant([1.0, 1.1, 1.2]), 600, 3, KEY)
    edited = faults.storms(schedule, KEY, calm=20.0, storm=20.0, factor=10.0)
    assert edited.end is not None
    assert edited.begin is not None
    took = (edited.end - edited.begin).ravel()
    assert took.max() > 5
    slow = took > 5
    others = [slow[np.flatnonzero(slow) + i].mean() for i in (1, 2) if slow[-3:].sum() == 0]
    assert all(share > 0.6 for share in others)
    assert slow.mean() < 0.3


@hypothesis.given(schedule=well_formed(), bound=st.integers(0, 5))
def test_maximal_delay_is_bounded_realizable_and_maximal(schedule: aj.Schedule, bound: int) -> None:
    edited = faults.maximal_delay(schedule, bound)
    assert edited.staleness().max() <= bound
    assert schedules.is_realizable(edited)
    for t, g in np.ndindex(*edited.worker.shape):  # one version earlier breaks one of the two
        if edited.staleness()[t, g] < bound and edited.read[t, g] > 0:
            read = edited.read.copy()
            read[t, g] -= 1
            assert not schedules.is_realizable(edited._replace(read=read))


@pytest.mark.parametrize("bound", [0, 1, 4])
def test_adversaries(bound: int) -> None:
    for schedule in (faults.sawtooth(30, bound), faults.laggard(30, 3, bound)):
        assert schedules.is_realizable(schedule)
        assert schedule.staleness().max() == bound
    np.testing.assert_array_equal(faults.sawtooth(30, bound).staleness().ravel(), np.arange(30) % (bound + 1))
    stale = faults.laggard(30, 3, bound).staleness().ravel()
    np.testing.assert_array_equal(stale, np.where(np.arange(30) % (bound + 1) == bound, bound, 0))


def test_a_recorded_trace_file_can_be_edited(tmp_path: Path) -> None:
    schedules.save(schedules.from_service_times(aj.service.exponential(), 30, 3, KEY), tmp_path / "trace.npz")
    edited = faults.pause(schedules.load(tmp_path / "trace.npz"), 1, 2.0, 5.0)
    assert schedules.is_realizable(edited)


@hypothesis.given(realizable(), st.booleans(), st.integers(1, 4), st.floats(0.0, 1.0))
def test_torn_reads_are_as_old_as_the_job_or_newer_and_possible(
    schedule: aj.Schedule, timed: bool, num_leaves: int, share: float
) -> None:
    schedule = schedule if timed else schedule._replace(time=None, begin=None, end=None)
    torn = faults.tear(schedule, num_leaves, share)
    assert len(torn.read) == num_leaves
    np.testing.assert_array_equal(torn.read[0], schedule.read)
    np.testing.assert_array_equal(torn.staleness(), schedule.staleness())  # of the oldest leaf
    for older, newer in zip(torn.read, torn.read[1:], strict=False):
        assert (newer >= older).all()
    schedules.check(torn)
    assert schedules.is_realizable(torn)
    for leaf in faults.tear(schedule, num_leaves, share=0.0).read:
        np.testing.assert_array_equal(leaf, schedule.read)


def test_a_leaf_is_what_was_committed_when_it_was_read() -> None:
    # Updates at 1, 2, 3, ... seconds; worker 1's second job lasts from 4 to 8 s, of which half is over at 6 s.
    schedule = schedules.from_service_times(aj.service.constant([1.0, 4.0]), 10, 2, KEY)
    torn = faults.tear(schedule, 2, share=1.0)
    slow = np.asarray(schedule.worker) == 1
    assert schedule.begin is not None
    assert schedule.time is not None
    half = np.asarray(schedule.begin)[slow] + 2.0
    np.testing.assert_array_equal(torn.read[1][slow], [(np.asarray(schedule.time) <= now).sum() for now in half])
    assert (torn.read[1][slow] > torn.read[0][slow]).all()


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda s: faults.drop(s, 7), "worker=7: the schedule has the workers 0 to 2"),
        (lambda s: faults.drop(s, 0.5), "worker=0.5: give a whole number"),  # type: ignore[arg-type]
        (lambda s: faults.storms(s, 7, 1.0, 1.0, 2.0), r"key=7 is no random key"),  # type: ignore[arg-type]
        (lambda s: faults.slow(s, [1.0, 2.0]), "one for each of the 3 workers"),
        (lambda s: faults.slow(s, 0.0), "factor=0.0: give a positive number"),
        (lambda s: faults.slow(s, "2"), "factor='2': give a number, or one for each of the 3 workers"),  # type: ignore[arg-type]
        (lambda s: faults.pause(s, 0, "1"), "start='1': give a number, in seconds"),  # type: ignore[arg-type]
        (lambda s: faults.drop(s, 0, stop=np.nan), "stop=nan: give a number, in seconds"),
        (lambda s: faults.permute(s, None), "permutation=None: name each worker 0 to 2 once"),  # type: ignore[arg-type]
        (lambda s: faults.pause(s, 0, 3.0, 2.0), "a pause ends after it starts"),
        (lambda s: faults.bursts(s, -1.0), "period=-1.0"),
        (lambda s: faults.storms(s, KEY, 1.0, 1.0, 0.5), "factor=0.5: in a storm work takes longer"),
        (lambda s: faults.storms(s, KEY, 1.0, 1.0, np.inf), "factor=inf: give a positive, finite number"),
        (lambda s: faults.storms(s, KEY, 1.0, 1.0, 1e300), r"factor=1e\+300: .* storms in this schedule are too many"),
        (lambda s: faults.permute(s, [0, 0, 1]), "name each worker 0 to 2 once"),
        (lambda s: faults.maximal_delay(s, -1), "bound=-1: staleness is at least 0"),
        (lambda s: faults.sawtooth(9, 1.5), "bound=1.5: give a whole number"),  # type: ignore[arg-type]
        (lambda s: faults.sawtooth(9, None), "bound=None: give a number"),  # type: ignore[arg-type]
        (lambda s: faults.sawtooth(9, 2**31), "bound=2147483648: use at most 2147483647"),
        (lambda s: faults.drop(s, None), "worker=None: give a number"),  # type: ignore[arg-type]
        (lambda s: faults.laggard(5, None, 2), "num_workers=None: give a number"),  # type: ignore[arg-type]
        (lambda s: faults.laggard(5, 2.5, 2), "num_workers=2.5: give a whole number"),  # type: ignore[arg-type]
        (lambda s: faults.laggard(5, 2**31, 2), "num_workers=2147483648: use at most 2147483647"),
        (lambda s: faults.laggard(5, 1, 2), "besides the laggard there is at least one worker"),
        (lambda s: faults.slow(schedules.fixed_delay(9, 3), 2.0), "no worker with one job at a time"),
        (lambda s: faults.slow(s._replace(read={"w": s.read, "b": s.read}), 2.0), "torn reads"),
        (lambda s: faults.tear(faults.tear(s, 2), 2), "schedule has torn reads: give one whose reads are whole"),
        (lambda s: faults.tear(s, 0), "num_leaves=0: give a positive"),
        (lambda s: faults.tear(s, 2, share=1.5), "share=1.5: give a part of a job, from 0 to 1"),
    ],
)
def test_bad_input(edit: Callable[[aj.Schedule], Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        edit(schedules.from_service_times(aj.service.exponential(), 12, 3, KEY))
