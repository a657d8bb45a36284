"""Laws of learners on devices of their own: the same method, wherever and on however many devices it learns."""

from __future__ import annotations

import jax
import pytest

import asyncjax as aj
from asyncjax.data_parallel import Placement
from tests.laws import KEY, assert_equal, method
from tests.test_processes import run

DEVICES = "--xla_force_host_platform_device_count=8"

SCRIPT = """
from asyncjax.engines.host_program import HostProgram, cached_host_program
from tests.laws import assert_close

devices = jax.devices()
assert len(devices) == 8
actors, learners = devices[:4], devices[4:]
plain = aj.impala("Catch-bsuite", num_envs=4, unroll_length=3)


def threads(method, **options):
    return aj.run_threads(method, KEY, num_workers=4, num_updates=20, **options)


def where(tree):
    return {frozenset(leaf.devices()) for leaf in jax.tree.leaves(tree)}


def code(method, num_workers, group_size, view):
    program = cached_host_program(method, num_workers, group_size, (0,) * len(jax.tree.leaves(view)))
    return program.apply_on(program.home(devices[0])).as_text()
"""

DIVIDED = """
shared = aj.data_parallel(plain, learners)
for group_size in (1, 4):
    used = []
    compile_on = HostProgram.work_on
    HostProgram.work_on = lambda self, device, size=1: (used.append(device), compile_on(self, device, size))[1]
    result, schedule = threads(shared, devices=actors, group_size=group_size)
    HostProgram.work_on = compile_on
    assert used == actors
    assert where(result.shared) == {frozenset(learners)}
    assert_equal(aj.replay(shared, schedule, KEY, num_workers=4), result)
    alone = aj.replay(plain, schedule, KEY, num_workers=4)
    assert_close((alone.shared.params, alone.metrics), (result.shared.params, result.metrics), 1e-4)
    assert "all-reduce" in code(shared, 4, group_size, plain.view(alone.shared))
"""

MINIBATCHES = """
plain = aj.ppo("Catch-bsuite", num_envs=8, unroll_length=3, num_minibatches=2)
shared = aj.data_parallel(plain, learners)
options = {"num_workers": 2, "num_updates": 10, "devices": actors[:1]}
result, schedule = aj.run_threads(shared, KEY, **options)
assert_equal(aj.replay(shared, schedule, KEY, num_workers=2), result)
alone = aj.replay(plain, schedule, KEY, num_workers=2)
assert_close((alone.shared.params, alone.metrics), (result.shared.params, result.metrics), 1e-4)
whole, divided = (code(method, 2, 1, plain.view(alone.shared)) for method in (plain, shared))
# 4 segments of 3 steps are a minibatch, with 64 hidden units; of a device's it is one segment.
assert "f32[12,64]" in whole and "f32[12,64]" not in divided and "f32[3,64]" in divided

try:
    aj.run_threads(aj.data_parallel(plain, devices), KEY, **options)
except ValueError as error:
    assert "Minibatches of 4 segments can not be divided over 8 devices: choose fewer" in str(error)
else:
    raise AssertionError("4 segments over 8 devices")
"""

WATCHED = """
watched = aj.data_parallel(aj.telemetry.watch(plain, ["policy_kl"]), learners)
around = aj.telemetry.watch(aj.data_parallel(plain, learners), ["policy_kl"])
result, schedule = threads(around, devices=actors)
assert_equal(aj.replay(watched, schedule, KEY, num_workers=4), result)
gradients = aj.a3c("Catch-bsuite", num_envs=1, unroll_length=2)
around = aj.telemetry.watch(aj.data_parallel(gradients, learners), ["gradient_cosine"])
result, _ = threads(around, devices=actors, group_size=4)
assert result.metrics["gradient_cosine"].shape == (20, 4)
"""

APART = """
shared = aj.data_parallel(plain, devices[7:])
chunks = []
result, schedule = threads(shared, devices=actors, chunk_size=8, callback=chunks.append)
assert where(result.shared) == {frozenset(devices[7:])}
assert_equal(aj.replay(plain, schedule, KEY, num_workers=4), result)
assert_equal(aj.replay(shared, schedule, KEY, num_workers=4), result)
first = chunks[0].state
more, rest = aj.run_threads(shared, KEY, num_workers=4, num_updates=30, state=first, devices=actors)
whole = aj.schedules.concatenate([aj.schedules.cut(schedule, 0, first.update), rest])
assert_equal(aj.replay(shared, whole, KEY, num_workers=4)[:2], more[:2])
assert_equal(aj.replay(shared, whole, KEY, num_workers=4, state=first)[:2], more[:2])
"""


def test_a_divided_batch_gives_the_same_gradient_up_to_rounding_and_replays_bit_for_bit() -> None:
    """Groups of 1 and 4 on 4 devices: a part of a message and a whole message for each device."""
    run(SCRIPT + DIVIDED, xla_flags=DEVICES)


def test_minibatches_with_rows_from_all_devices_are_divided_too() -> None:
    run(SCRIPT + MINIBATCHES, xla_flags=DEVICES)


def test_a_watch_around_a_divided_learner_sees_what_one_within_sees() -> None:
    run(SCRIPT + WATCHED, xla_flags=DEVICES)


def test_the_learner_has_a_device_of_its_own_and_the_actors_have_others() -> None:
    run(SCRIPT + APART, xla_flags=DEVICES)


READ_AT_ONCE = """
import sys
import jax.numpy as jnp
import optax
sys.setswitchinterval(1e-6)
plain = aj.sgd(lambda w: 0.5 * (w**2).sum(), jnp.ones(4), optimizer=optax.sgd(0.01))
shared = aj.data_parallel(plain, actors)
options = {"num_workers": 8, "num_threads": 8, "num_updates": 40, "group_size": 4, "devices": actors}
for _ in range(20):
    result, schedule = aj.run_threads(shared, KEY, **options)
assert_equal(aj.replay(shared, schedule, KEY, num_workers=8)[:2], result[:2])
"""


def test_threads_may_read_a_view_on_several_devices_at_once() -> None:
    """A new view has not been looked at by anyone; interrupted after every few instructions two threads do at once."""
    run(SCRIPT + READ_AT_ONCE, xla_flags=DEVICES)


def test_on_one_device_the_placed_method_is_the_method_bit_for_bit() -> None:
    schedule = aj.schedules.round_robin(10, 3)
    placed = aj.data_parallel(method("impala"), jax.devices()[:1])
    assert_equal(aj.replay(placed, schedule, KEY), aj.replay(method("impala"), schedule, KEY))


def test_devices_that_make_no_sense_are_refused() -> None:
    device = jax.devices()[0]
    for devices in ([], [device, device]):
        with pytest.raises(ValueError, match=r"devices=\[.*\]: give one device or more, each once"):
            aj.data_parallel(method("impala"), devices)
    with pytest.raises(ValueError, match=r"axis=-1: count the axes"):
        aj.data_parallel(method("impala"), [device], axis=-1)


@pytest.mark.parametrize(("shape", "num_devices"), [((1, 3, 6, 2), 4), ((2, 5), 4), ((3, 2), 2), ((2, 4, 3), 8)])
def test_messages_that_the_devices_do_not_divide_are_refused(shape: tuple[int, ...], num_devices: int) -> None:
    placement = Placement(tuple(range(num_devices)))
    with pytest.raises(ValueError, match=r"can not be divided by \d along axis=1 .* multiple of"):
        placement.divide({"x": jax.ShapeDtypeStruct(shape, "float32")})
