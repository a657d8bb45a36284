"""Laws of the planner: whatever the schedule and the width, a plan is the schedule, computed in batches."""

from __future__ import annotations

from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import asyncjax as aj
from asyncjax.emulate import _planner
from asyncjax.engines.common import initial_state
from asyncjax.engines.cost import waiting
from asyncjax.engines.division import Division
from asyncjax.engines.packing import PackedMethod
from asyncjax.engines.program import Program
from asyncjax.engines.waves import (
    OUT_OF_RANGE,
    Plan,
    Planner,
    distinct_workers,
    last_use,
    max_live,
    stack_reads,
)
from asyncjax.engines.width import choose
from tests.laws import KEY, assert_equal, method

UPDATES = 12


class Case(NamedTuple):
    """A schedule as the planner takes it, and how to plan it."""

    worker: np.ndarray  # Int[T, G]
    read: np.ndarray  # Int[T, G, L]
    num_workers: int
    width: int
    early: bool

    def planner(self, start: int = 0) -> Planner:
        return Planner(self.worker, self.read, self.num_workers, self.width, self.early, start)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any well-formed schedule, torn or not, from many or few workers, and any way to plan it."""
    group, parts, num_workers = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 5))
    one = st.lists(st.integers(0, num_workers - 1), min_size=group, max_size=group)
    if num_workers >= group and draw(st.booleans()):  # as late plans want it, and chance hardly ever has it
        one = st.permutations(range(num_workers)).map(lambda order: order[:group])
    worker = [draw(one) for _ in range(UPDATES)]
    delay = draw(st.integers(0, UPDATES))
    oldest = [max(0, t - delay) for t in range(UPDATES)]
    read = [[[draw(st.integers(oldest[t], t)) for _ in range(parts)] for _ in range(group)] for t in range(UPDATES)]
    width = draw(st.integers(1, 6))
    workers = np.array(worker, np.int32)
    late_possible = width >= group and distinct_workers(workers)
    return Case(workers, np.array(read, np.int32), num_workers, width, not late_possible or draw(st.booleans()))


def live(case: Case, update: int) -> set[int]:
    """The versions that exist when this update is due, and that it or a later one uses: by the definition."""
    return {int(v) for v in case.read[update:].ravel() if v <= update}


class Machine:
    """Executes plans on symbols: a view is its version, a message its place in the schedule."""

    def __init__(self, case: Case, planner: Planner) -> None:
        self.case, self.layout, self.planner = case, planner.layout, planner
        self.views = {slot: version for version, slot in planner.slot_of.items()}
        self.group = case.worker.shape[1]
        self.flat_worker, self.flat_read = case.worker.ravel(), case.read.reshape(-1, case.read.shape[-1])
        self.computed: list[int] = []
        self.batches: list[list[int]] = []

    def run(self, start: int, stop: int, max_updates: int) -> Plan:
        """The chunk's plan, executed: every read finds what it should."""
        plan = self.planner.chunk(start, stop, max_updates)
        waiting: dict[int, int] = {}  # message slot -> job
        assert plan.first_update[0] == 0
        for k in range(plan.num_batches):
            if not self.layout.num_messages:
                waiting = {}
            self.batch(plan, k, start, waiting)
            updates = range(plan.first_update[k], plan.first_update[k + 1])
            assert not self.layout.lockstep or updates == range(k, k + 1)
            for u in updates:
                self.update(plan, u, start, waiting)
        assert plan.first_update[plan.num_batches] == stop - start
        assert not waiting
        assert (plan.job[plan.num_batches :] == OUT_OF_RANGE).all()
        return plan

    def batch(self, plan: Plan, k: int, start: int, waiting: dict[int, int]) -> None:
        lanes = np.flatnonzero(plan.job[k] != OUT_OF_RANGE)
        assert lanes.tolist() == list(range(len(lanes)))  # padding comes last
        assert 0 < len(lanes) <= self.layout.width == plan.job.shape[1]
        padding = slice(len(lanes), None)
        assert (plan.message_slot[k, padding] == OUT_OF_RANGE).all()
        assert (plan.worker[k, padding] == plan.worker[k, 0]).all()  # it repeats a job, and is thrown away
        assert (plan.view_slot[k, padding] == plan.view_slot[k, 0]).all()
        jobs = (plan.job[k, lanes] + start * self.group).tolist()
        assert jobs == sorted(jobs)  # what is needed soonest comes first
        np.testing.assert_array_equal(plan.worker[k, lanes], self.flat_worker[jobs])
        assert len(set(plan.worker[k, lanes].tolist())) == len(lanes)  # each worker's state is written once
        for lane, job in enumerate(jobs):
            before = [j for j in range(job) if self.flat_worker[j] == self.flat_worker[job]]
            assert set(before) <= set(self.computed)  # the worker's earlier messages, and its private state
            assert [self.views[slot] for slot in plan.view_slot[k, lane].tolist()] == self.flat_read[job].tolist()
            slot = int(plan.message_slot[k, lane])
            assert slot not in waiting
            assert slot < (self.layout.num_messages or self.layout.width)
            waiting[slot] = job
        self.computed += jobs
        self.batches.append(jobs)

    def update(self, plan: Plan, u: int, start: int, waiting: dict[int, int]) -> None:
        t = start + u
        assert set(self.views.values()) >= live(self.case, t)
        for g in range(self.group):
            assert waiting.pop(int(plan.message_of[u, g])) == t * self.group + g
            assert [self.views[slot] for slot in plan.stale_slot[u, g].tolist()] == self.case.read[t, g].tolist()
        np.testing.assert_array_equal(plan.staleness[u], t - self.case.read[t].min(-1))
        slot = int(plan.write_slot[u])
        wanted = t + 1 in self.case.read[t + 1 :]
        assert wanted == (slot < self.layout.num_views)
        if wanted:
            assert self.views.get(slot, -1) not in live(self.case, t + 1)  # it overwrites what nothing will read
            self.views[slot] = t + 1


def one_worker_first() -> Case:
    """Four messages of one worker, then those of the others, of which only as many can be ahead as there are slots."""
    worker = np.array([0] * 4 + [1, 2, 3, 4] * 2, np.int32)[:, None]
    return Case(worker, np.zeros((UPDATES, 1, 1), np.int32), num_workers=5, width=4, early=True)


@hypothesis.given(case=cases(), chunk_size=st.integers(1, UPDATES))
@hypothesis.example(case=one_worker_first(), chunk_size=UPDATES)
@hypothesis.settings(max_examples=200)
def test_a_plan_computes_every_message_once_and_every_update_finds_all_it_needs(case: Case, chunk_size: int) -> None:
    machine = Machine(case, case.planner())
    for start in range(0, UPDATES, chunk_size):
        machine.run(start, min(start + chunk_size, UPDATES), chunk_size)
    assert sorted(machine.computed) == list(range(case.worker.size))


@hypothesis.given(case=cases())
@hypothesis.settings(max_examples=100)
def test_there_is_room_for_the_views_alive_at_once_and_little_more(case: Case) -> None:
    alive = max(len(live(case, t)) for t in range(UPDATES))
    assert max_live(last_use(case.read)) == max(1, alive)
    num_views = case.planner().layout.num_views
    assert alive <= num_views < 2 * max(1, alive)


@hypothesis.given(case=cases(), start=st.integers(0, UPDATES - 1))
@hypothesis.settings(max_examples=100)
def test_a_planner_that_starts_later_plans_the_rest_alike(case: Case, start: int) -> None:
    whole, rest = case.planner(), case.planner(start)
    if start:
        whole.chunk(0, start, start)
    assert rest.slot_of == whole.slot_of
    assert set(whole.slot_of) == live(case, start)
    assert_equal(rest.chunk(start, UPDATES, UPDATES), whole.chunk(start, UPDATES, UPDATES))


@hypothesis.given(case=cases(), chunk_size=st.integers(1, UPDATES + 1))
def test_chunks_begin_with_batches_of_their_own(case: Case, chunk_size: int) -> None:
    planner, counted = case.planner(), case.planner().count_batches(UPDATES, chunk_size)
    plans = [planner.chunk(t, min(t + chunk_size, UPDATES), chunk_size) for t in range(0, UPDATES, chunk_size)]
    assert counted == sum(int(plan.num_batches) for plan in plans)


@hypothesis.given(case=cases())
def test_a_plan_has_the_promised_shapes_and_number_of_batches(case: Case) -> None:
    count = case.planner().count_batches(UPDATES)
    planner = case.planner()
    plan = planner.whole()
    assert int(plan.num_batches) == count
    shapes = Planner.shapes(planner.layout, UPDATES, *case.read.shape[1:])
    assert [(x.shape, x.dtype) for x in plan] == [(x.shape, x.dtype) for x in shapes]


@hypothesis.given(case=cases())
def test_without_early_messages_batches_are_whole_groups_in_order(case: Case) -> None:
    late = case._replace(early=False, width=max(case.width, case.worker.shape[1]))
    hypothesis.assume(distinct_workers(late.worker))
    machine = Machine(late, late.planner())
    machine.run(0, UPDATES, UPDATES)
    assert [j for batch in machine.batches for j in batch] == list(range(late.worker.size))
    assert all(len(batch) % late.worker.shape[1] == 0 for batch in machine.batches)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("num_workers", [1, 3, 8])
def test_equal_workers_go_in_full_waves(num_workers: int, early: bool) -> None:
    schedule = aj.schedules.round_robin(40 * num_workers, num_workers)
    planner = Planner(np.asarray(schedule.worker), stack_reads(schedule.read), num_workers, num_workers, early)
    assert planner.count_batches(schedule.num_updates) == 40


def test_waves_of_exponential_workers_are_as_long_as_the_birthday_problem_says() -> None:
    """The mean length of a run of distinct workers drawn at random is about sqrt(pi W / 2), in order and unpadded."""
    num_workers = 64
    schedule = aj.schedules.from_service_times(aj.service.exponential(), 10_000, num_workers, KEY)
    planner = Planner(np.asarray(schedule.worker), stack_reads(schedule.read), num_workers, num_workers, early=False)
    mean = schedule.num_updates / planner.count_batches(schedule.num_updates)
    np.testing.assert_allclose(mean, np.sqrt(np.pi * num_workers / 2), rtol=0.08)


@hypothesis.given(case=cases())
def test_the_chosen_width_is_one_that_can_be_planned(case: Case) -> None:
    width, early = choose(case.worker, case.read, case.num_workers, None, lane=0.15)
    chosen = case._replace(width=width, early=early)
    machine = Machine(chosen, chosen.planner())
    machine.run(0, UPDATES, UPDATES)
    assert sorted(machine.computed) == list(range(case.worker.size))
    assert choose(case.worker, case.read, case.num_workers, case.width, lane=0.15)[0] == case.width


@hypothesis.given(case=cases(), shares=st.integers(1, 4), lane=st.sampled_from([0.0, 0.1, 10.0]))
def test_a_batch_can_be_divided_into_equal_shares(case: Case, shares: int, lane: float) -> None:
    width, early = choose(case.worker, case.read, case.num_workers, None, lane=lane, shares=shares)
    assert width % shares == 0
    chosen = case._replace(width=width, early=early)
    Machine(chosen, chosen.planner()).run(0, UPDATES, UPDATES)


def test_a_width_leaves_no_lanes_empty_at_the_end_of_short_chunks() -> None:
    """Eight workers in turn fill batches of eight; in chunks of nine every second one would hold one message."""
    schedule = aj.schedules.round_robin(720, 8)
    worker, read = np.asarray(schedule.worker), stack_reads(schedule.read)
    assert choose(worker, read, 8, None, lane=0.5)[0] == 8
    assert choose(worker, read, 8, None, lane=0.5, chunk_size=9)[0] < 8


def test_messages_are_computed_early_unless_waiting_costs_more_than_it_saves() -> None:
    schedule = aj.schedules.from_service_times(aj.service.exponential(), 1000, 16, KEY)
    worker, read = np.asarray(schedule.worker), stack_reads(schedule.read)
    assert choose(worker, read, 16, None, lane=0.5)[1]
    assert not choose(worker, read, 16, None, lane=0.5, wait=1.0)[1]
    assert choose(np.array([[0, 0]] * 4), np.zeros((4, 2, 1), np.int32), 1, None, lane=0.5, wait=1.0)[1]  # it has to


def test_devices_share_what_a_lane_costs_and_meet_once_a_batch() -> None:
    packed = PackedMethod(method("a3c"), 4, (0,) * 12)
    alone, divided = Program(packed), Program(packed, division=Division((jax.devices()[0],) * 2))
    assert alone.lane_cost > 0
    assert divided.lane_cost < alone.lane_cost / 2  # beside a batch that costs more by itself
    many, few = (waiting(num_bytes, "cpu") for num_bytes in (30_000, 10_000))
    assert many == pytest.approx(3 * few)
    assert alone.wait_cost > 0


def test_a_run_in_short_chunks_has_batches_that_fit_into_them() -> None:
    schedule, program = aj.schedules.round_robin(720, 8), Program(PackedMethod(method("a3c"), 8, (0,) * 12))
    program.lane_cost = 0.5
    assert _planner(schedule, program, None).layout.width == 8
    assert _planner(schedule, program, None, chunk_size=9).layout.width < 8


def test_reads_are_stacked_in_the_order_of_the_views_leaves() -> None:
    a, b, c = (np.full((4, 2), i, np.int32) for i in range(3))
    np.testing.assert_array_equal(stack_reads({"w": (b, c), "b": a})[0, 0], [0, 1, 2])
    assert jax.tree.leaves({"w": (b, c), "b": a})[0] is a


@pytest.mark.parametrize("group_size", [1, 3])
@pytest.mark.parametrize(
    "service", [aj.service.constant(1.0), aj.service.exponential(1.0)], ids=["equal", "exponential"]
)
@pytest.mark.parametrize("num_workers", [16, 60])
def test_workers_cost_two_copies_of_large_parameters_each(
    num_workers: int, service: aj.service.Service, group_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what XLA says that the compiled loop needs, even where lanes cost nothing, as on accelerators."""
    monkeypatch.setattr("asyncjax.engines.program.SMALL", 0)
    size, num_updates = 20_000, 4 * num_workers
    loss = lambda w, x: 0.5 * jnp.sum(jnp.square(w - x))  # noqa: E731
    method = aj.sgd(loss, jnp.ones(size), optimizer=optax.adam(0.1), sample=jax.random.normal)
    schedule = aj.schedules.from_service_times(service, num_updates, num_workers, KEY, group_size=group_size)
    program = Program(PackedMethod(method, num_workers, (0,)), exact=False)
    worker, read = np.asarray(schedule.worker), stack_reads(schedule.read)
    width, early = choose(worker, read, num_workers, None, lane=0.0, fits=program.fits)
    planner = Planner(worker, read, num_workers, width, early)
    carry = program.load(planner.layout, initial_state(method, KEY, num_workers), planner.slot_of)
    plan = planner.chunk(0, num_updates, num_updates)
    memory = program.compiled(planner.layout, True).lower(carry, plan).compile().memory_analysis()
    total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    copies = (total + memory.output_size_in_bytes - memory.alias_size_in_bytes) / (4 * size)
    assert copies < 2 * (num_workers + 2) + 3 * (group_size - 1), planner.layout
    assert width > num_workers // 8, "and batches stay large"
