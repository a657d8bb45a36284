"""The endurance scripts: six seeded faults on threads, a soak of a second, and what they measure has known answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fault_injection
import soak

# The other faults take seconds: a process that is killed is one of its own, a thread that hangs is waited for.
SEEDS = [seed for seed in range(8) if fault_injection.make_case("threads", seed).fault not in ("kill", "hang")]


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: fault_injection.make_case("threads", seed).fault)
def test_a_faulted_run_ends_names_its_cause_and_leaves_what_can_be_continued(seed: int, tmp_path: Path) -> None:
    assert fault_injection.judge(fault_injection.make_case("threads", seed), tmp_path) == []


def test_a_checkpoint_that_is_not_the_schedules_is_noticed(tmp_path: Path) -> None:
    """The judge is able to find something: here the run of another seed."""
    case = fault_injection.make_case("threads", 4)
    fault_injection.run(case, tmp_path)
    assert fault_injection.unloadable(case, tmp_path / "run") == []
    (wrong,) = fault_injection.unloadable(case._replace(seed=5), tmp_path / "run")
    assert "is not the replay's" in wrong
    (tmp_path / "run" / "config.json").unlink()
    (wrong,) = fault_injection.unloadable(case, tmp_path / "run")
    assert "does not load" in wrong


def test_slope_and_rates() -> None:
    seconds = np.arange(100.0)
    assert soak.slope(seconds, 2 + 3 * seconds) == pytest.approx(180)
    assert soak.slope(seconds, np.where(seconds < 10, 50, 7)) == pytest.approx(0)  # the beginning does not count
    assert soak.first_and_last(np.array([0.5, 1.0, 1.5, 3.0, 4.0]), 2.0) == (1.5, 1.0)


def test_a_short_soak_leaves_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    found = soak.soak(soak.Args(minutes=0.02, num_workers=8, service=0.02, row_every=0.1), tmp_path / "run")
    assert found["updates"] == round(60 * 0.02 * 8 / 0.02)
    assert found["loads"]
    before, most, after = found["Python threads: before, most, after"]
    assert before + 8 == most
    assert after <= before + 1  # a thread of the checkpoints may be about to end
    assert found["descriptors: before, most, after"][0] == found["descriptors: before, most, after"][2]
