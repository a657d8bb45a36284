"""Sweeps over a Ray cluster: bit for bit those of this process, also after a batch has failed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asyncjax as aj
import sweep
from asyncjax.cluster import connected
from asyncjax.sweeps import summaries
from tests.laws import KEY, assert_equal

pytestmark = pytest.mark.usefixtures("quick_compilation")  # in Ray's processes, too
EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray on this machine, whose processes find the scripts."""
    pytest.importorskip("ray", reason='needs the extra "ray"')
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("PYTHONPATH", str(EXPERIMENTS), prepend=os.pathsep)
        warnings.simplefilter("ignore")  # Ray's own
        with connected(None, 2) as module:
            yield module


def method(rate: float, troubled: bool) -> aj.Method:
    """SGD, with or without trouble when it runs."""

    def trouble(x: Any) -> np.ndarray:
        raise RuntimeError(f"no bananas left at {float(x):.0f}")

    def loss(w: jax.Array) -> jax.Array:
        if troubled:
            here = jax.lax.stop_gradient(jnp.sum(w))
            w += jax.pure_callback(trouble, jax.ShapeDtypeStruct((), jnp.float32), here, vmap_method="sequential")
        return jnp.sum(jnp.square(jnp.sin(w)))

    return aj.sgd(loss, jnp.array([1.0, 2.0]), optimizer=optax.sgd(rate))


def schedule(delay: int, key: jax.Array) -> aj.Schedule:
    """Random, with a group size of 1."""
    return aj.schedules.from_service_times(aj.service.exponential(), 20, delay + 1, key)


def process(result: aj.Result) -> dict[str, Any]:
    """Where the run was."""
    del result
    return {"process": jnp.int32(os.getpid())}


def swept(settings: list[dict[str, Any]], **options: Any) -> aj.Table:
    """Each two settings with two seeds are a batch."""
    summarize = [summaries.final(), summaries.curve(4, "loss"), summaries.mean_staleness, process]
    size: dict[str, Any] = {"seeds": 2, "batch_size": 4, "num_workers": 4, "progress": False}
    return aj.sweep(method, schedule, settings, key=KEY, summarize=summarize, **size, **options)


SETTINGS = aj.grid(rate=[0.1, 0.2], delay=[0, 3], troubled=[False])


@pytest.mark.ray
def test_batches_on_ray_have_the_values_of_those_here_bit_for_bit(ray: Any, tmp_path: Path) -> None:
    here, there = swept(SETTINGS), swept(SETTINGS, engine="ray", directory=tmp_path)
    assert len(list(tmp_path.glob("batch-*.npz"))) == 2
    assert os.getpid() not in there["process"]
    assert here["loss_curve"].std() > 0
    for name in set(here.values) - {"process"}:
        assert_equal(there[name], here[name])
    again = swept(SETTINGS, directory=tmp_path)  # all is there
    assert_equal(again.values, there.values)


@pytest.mark.ray
def test_a_failing_batch_ends_the_sweep_with_its_cause_and_leaves_what_was_done(ray: Any, tmp_path: Path) -> None:
    good = swept(SETTINGS[:2], engine="ray", directory=tmp_path)
    bad = [*SETTINGS[:2], *aj.grid(rate=[0.1], delay=[0], troubled=[True])]
    with pytest.raises(Exception, match="no bananas left at 3"):
        swept(bad, engine="ray", directory=tmp_path)
    assert_equal(swept(SETTINGS[:2], directory=tmp_path).values, good.values)
    assert swept(SETTINGS, engine="ray", directory=tmp_path)["finite"].all()  # Ray is as good as before


@pytest.mark.ray
def test_batches_that_no_machine_has_room_for_are_refused(ray: Any) -> None:
    with pytest.raises(ValueError, match=r"batch_cpus=3: a batch runs on one machine, and the largest .* has 2 CPUs\."):
        swept(SETTINGS, engine="ray", batch_cpus=3)


@pytest.mark.ray
@pytest.mark.slow
def test_the_command_makes_the_same_table_on_ray(ray: Any, tmp_path: Path) -> None:
    options = ["--env", "Catch-bsuite", "--num-envs", "1", "--unroll-length", "3", "--total-steps", "60"]
    options += ["--seeds", "2", "--eval-episodes", "2", "--points", "2", "--grid", "learning_rate=1e-3,1e-1"]
    for engine in ("emulate", "ray"):
        sweep.main(["a3c", *options, "--engine", engine, "--directory", str(tmp_path / engine)])
    tables = [(tmp_path / engine / "table.csv").read_text() for engine in ("emulate", "ray")]
    assert tables[0] == tables[1]
    assert "learning_rate" in tables[0]
    sweep.main(["--resume", str(tmp_path / "ray"), "--engine", "emulate"])
    assert len(list((tmp_path / "ray" / "runs").glob("batch-*.npz"))) == 1, "nothing had to run again"


def test_engines_and_devices_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"engine='threads': choose one of 'emulate', 'ray'"):
        swept(SETTINGS, engine="threads")
    with pytest.raises(ValueError, match=r"devices= .*leave them out with engine='ray'"):
        swept(SETTINGS, engine="ray", devices=jax.local_devices())
    with pytest.raises(ValueError, match=r"batch_cpus=0"):
        swept(SETTINGS, engine="ray", batch_cpus=0.0)
