"""Laws that need a process of their own: other XLA flags, other devices, and continuing where another one stopped."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

import asyncjax as aj
from asyncjax.checkpoints import Checkpoints
from asyncjax.emulate import FLAG
from tests.laws import KEY, method, raw

ROOT = Path(__file__).parent.parent
# The settings of conftest.py, as environment variables.
SETTINGS = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
}
SCRIPT = """
import sys
import jax, numpy as np, asyncjax as aj
from tests.laws import KEY, assert_equal, method
from tests.test_processes import digest, emulated
"""


def run(script: str, *arguments: object, xla_flags: str = "") -> str:
    """What the script prints in a new process, with warnings as errors."""
    environment = {**os.environ, **SETTINGS, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {xla_flags}".strip()}
    command = [sys.executable, "-W", "error", "-c", SCRIPT + script, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def digest(tree: Any) -> str:
    """A hash of all bits of all leaves."""
    content = [(leaf.dtype.str, leaf.shape, leaf.tobytes()) for leaf in jax.tree.leaves(raw(tree))]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def emulated(name: str, **options: Any) -> aj.Result:
    """The run of this method that other processes repeat or continue."""
    schedule = aj.schedules.from_service_times(aj.service.exponential(1.0), 60, 4, KEY)
    return aj.emulate(method(name), schedule, KEY, chunk_size=20, **options)


def test_two_processes_emulate_alike_bit_for_bit() -> None:
    here = [digest(emulated(name)) for name in ("sgd", "a3c")]
    assert run("print(*[digest(emulated(name)) for name in ('sgd', 'a3c')])").split() == here


EXACT = """
for name in ("sgd", "a3c"):
    schedule = aj.schedules.from_service_times(aj.service.exponential(1.0), 200, 4, KEY)
    run = method(name)
    assert_equal(aj.emulate(run, schedule, KEY, num_workers=4), aj.replay(run, schedule, KEY, num_workers=4))
"""


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="XLA has no such flag any more")
def test_a_flag_of_xla_makes_all_emulated_runs_exact() -> None:
    run(EXACT, xla_flags=FLAG)


def test_threads_use_all_devices_in_turn_and_replay_bit_for_bit() -> None:
    script = """
from asyncjax.engines.host_program import HostProgram
from asyncjax.threads import default_threads

used = []
compile_on = HostProgram.work_on
HostProgram.work_on = lambda self, device, size=1: (used.append(device), compile_on(self, device, size))[1]
devices = jax.devices()
assert len(devices) == 4
barrier = {"group_size": 6, "wait": "next_version"}
two = {"devices": devices[2:], "bound": 2}
for options in ({}, {"num_threads": 6}, {"publication": "leaf"}, {"group_size": 2}, barrier, two):
    used.clear()
    result, schedule = aj.run_threads(method("sgd"), KEY, num_workers=6, num_updates=40, **options)
    chosen = options.get("devices", devices)
    num_threads = options.get("num_threads", min(6, default_threads(len(chosen))))
    assert used == [chosen[t % len(chosen)] for t in range(num_threads)], used
    assert {leaf.device for leaf in jax.tree.leaves(result[:2])} == {chosen[0]}
    assert len(np.unique(schedule.worker)) > 1
    assert_equal(aj.replay(method("sgd"), schedule, KEY, num_workers=6), result)
"""
    run(script, xla_flags="--xla_force_host_platform_device_count=4")


def test_a_run_continues_bit_for_bit_in_a_new_process(tmp_path: Path) -> None:
    """At update 20 of 60, some workers have read older versions: these views are part of the state."""
    script = """
from asyncjax.checkpoints import Checkpoints

for name in ("sgd", "a3c"):
    checkpoints = Checkpoints(f"{sys.argv[1]}/{name}")
    state = checkpoints.restore(method(name), 4)
    assert state.update == 20 and state.views
    print(digest(emulated(name, state=state)[:2]))
    checkpoints.close()
"""
    whole = []
    for name in ("sgd", "a3c"):
        chunks: list[aj.Chunk] = []
        whole.append(digest(emulated(name, callback=chunks.append)[:2]))
        checkpoints, state = Checkpoints(tmp_path / name), chunks[0].state
        assert state is not None
        checkpoints.save(state)
        checkpoints.close()
    assert run(script, tmp_path).split() == whole
