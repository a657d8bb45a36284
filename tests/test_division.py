"""Laws of `emulate` on several devices: the same run, wherever its messages are computed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import asyncjax as aj
from tests.laws import KEY, assert_close, method
from tests.test_processes import ROOT, run

DEVICES = "--xla_force_host_platform_device_count=4"

SCRIPT = """
import jax.numpy as jnp
from tests.laws import assert_close, leaves_of_all_kinds, noisy_quadratic

devices = jax.devices()
assert len(devices) == 4
gamma = aj.schedules.from_service_times(aj.service.gamma(4.0), 30, 5, KEY)
groups = aj.schedules.from_service_times(aj.service.exponential(), 20, 5, KEY, group_size=3)
lag = np.maximum(np.arange(10)[:, None] - np.arange(2), 0)
twice = aj.schedules.Schedule(np.array([[0, 0], [1, 0]] * 5), lag)
torn = gamma._replace(read={"b": gamma.read, "w": np.maximum(gamma.read - 1, 0)})


def where(tree):
    return {frozenset(leaf.devices()) for leaf in jax.tree.leaves(tree)}
"""

ROUNDING = """
cases = [(leaves_of_all_kinds(), gamma), (method("sgd, corrected"), twice), (method("value iteration"), groups)]
for run, schedule in cases:
    alone = aj.emulate(run, schedule, KEY, num_workers=5)
    for shared_by in (devices[:1], devices[:2], devices[1:], devices):
        result = aj.emulate(run, schedule, KEY, num_workers=5, devices=shared_by)
        assert_close(result, alone)
        assert where(result[:2]) == {frozenset(shared_by[:1])}
wide = aj.emulate(method("a3c"), gamma, KEY, devices=devices[:2], width=6)
assert_close(wide, aj.emulate(method("a3c"), gamma, KEY), 1e-4)
"""

EXACT = """
for run, schedule in [(method("a3c"), gamma), (method("value iteration"), groups), (noisy_quadratic(), torn)]:
    repeated = aj.replay(run, schedule, KEY, num_workers=5)
    assert_equal(aj.emulate(run, schedule, KEY, num_workers=5, exact=True, devices=devices[:2]), repeated)
"""

CONTINUED = """
for run, schedule in [(leaves_of_all_kinds(), gamma), (method("sgd"), groups), (noisy_quadratic(), torn)]:
    chunks = []
    options = {"num_workers": 5, "devices": devices[:2], "chunk_size": 7}
    result = aj.emulate(run, schedule, KEY, callback=chunks.append, **options)
    for chunk in chunks:
        assert where(chunk.state[1:4]) <= {frozenset(devices[:1])}
        rest = aj.emulate(run, schedule, KEY, state=chunk.state, **options)
        assert_equal(rest[:2], result[:2])
    assert_close(aj.replay(run, schedule, KEY, state=chunks[1].state, num_workers=5)[:2], result[:2])
"""

FAILURES = """
import pytest
import optax

explosive = aj.sgd(lambda w: jnp.exp(w**2), 3.0, optimizer=optax.sgd(1.0))
with pytest.raises(FloatingPointError) as alone:
    aj.emulate(explosive, gamma, KEY)
with pytest.raises(FloatingPointError) as divided:
    aj.emulate(explosive, gamma, KEY, devices=devices)
assert str(alone.value) == str(divided.value)
with pytest.raises(ValueError, match="width=3: 2 devices can not share that; give a multiple of 2, or leave it out"):
    aj.emulate(method("sgd"), gamma, KEY, devices=devices[:2], width=3)
"""

TRAINED = (
    "a3c --engine emulate --num-devices 2 --service gamma --num-workers 3 --num-envs 2 --unroll-length 4 --log-every 4"
    " --eval-episodes 0 --total-steps 160 --run-dir"
)


def test_however_many_devices_share_the_work_the_run_is_the_same_up_to_rounding() -> None:
    """Leaves of all types, groups, one worker twice in a group, and more lanes than workers."""
    run(SCRIPT + ROUNDING, xla_flags=DEVICES)


def test_an_exact_run_on_two_devices_is_bit_for_bit_what_replay_gives() -> None:
    run(SCRIPT + EXACT, xla_flags=DEVICES)


def test_a_run_on_two_devices_continues_bit_for_bit_from_any_chunk() -> None:
    run(SCRIPT + CONTINUED, xla_flags=DEVICES)


def test_a_run_on_several_devices_fails_where_and_as_the_run_on_one_does() -> None:
    run(SCRIPT + FAILURES, xla_flags=DEVICES)


def test_the_command_line_makes_two_devices_of_a_cpu_and_continues_with_two(tmp_path: Path) -> None:
    train(*TRAINED.split(), tmp_path)
    first = aj.runs.load(tmp_path)
    train("--resume", tmp_path, "--total-steps", 240)
    more = aj.runs.load(tmp_path)
    assert more.config["num_devices"] == first.config["num_devices"] == 2
    assert more.metrics["update"].tolist() == [4 * (i + 1) for i in range(7)] + [30]
    np.testing.assert_array_equal(more.metrics["loss"][:5], first.metrics["loss"])
    train("--resume", tmp_path, "--total-steps", 320, "--num-devices", 1)
    assert aj.runs.load(tmp_path).metrics["update"][-1] == 40


def train(*arguments: object) -> None:
    """`experiments/train.py` in a process of its own."""
    command = [sys.executable, "experiments/train.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_device_can_be_named() -> None:
    schedule = aj.schedules.round_robin(20, 3)
    named = aj.emulate(method("sgd"), schedule, KEY, devices=jax.devices()[:1])
    assert_close(named, aj.emulate(method("sgd"), schedule, KEY))


def test_devices_are_for_runs_outside_of_transformations() -> None:
    schedule = aj.schedules.round_robin(20, 3)
    with pytest.raises(ValueError, match=r"devices= need the host: .* leave them out here"):
        jax.jit(lambda key: aj.emulate(method("sgd"), schedule, key, devices=jax.devices()).shared)(KEY)
