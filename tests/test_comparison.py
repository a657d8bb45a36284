"""Sweeps: what a run in a batch is, what settings share, and the algebra of their differences."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.extra.numpy
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import asyncjax as aj
from asyncjax import statistics
from asyncjax.sweeps import batch_progress, lanes, memory, store, summaries
from tests.laws import assert_close
from tests.probes import remembered_action

KEY = jax.random.key(3)
T, W = 30, 3
EXPONENTIAL = aj.service.exponential()


def quadratic(rate: float, power: float = 0.0) -> aj.Method:
    """SGD on a noisy quadratic; its losses tell apart seeds, rates, powers and schedules."""
    return aj.sgd(
        lambda w, target: 0.5 * jnp.sum(jnp.square(w - target)),
        jnp.ones(3),
        optimizer=optax.adam(rate),
        sample=lambda key: jax.random.normal(key, (3,)),
        correction=aj.corrections.scale_by_staleness(power),
    )


def random_schedule(group_size: int, key: jax.Array) -> aj.Schedule:
    return aj.schedules.from_service_times(EXPONENTIAL, T, W, key, group_size)


def everything(result: aj.Result) -> dict[str, Any]:
    return {"loss": result.metrics["loss"], "params": result.shared.params}


SETTINGS = aj.grid(rate=[0.01, 0.02, 0.05], delay=[0, 4])


def delayed(delay: int) -> aj.Schedule:
    return aj.schedules.fixed_delay(T, delay)


def small(settings: list[dict[str, Any]] = SETTINGS, **options: Any) -> aj.Table:
    options = {"key": KEY, "seeds": 3, "summarize": everything, "progress": False, **options}
    return aj.sweep(lambda rate: quadratic(rate), delayed, settings, **options)


@pytest.fixture(scope="module")
def table() -> aj.Table:
    return small()


# ---------------------------------------------------------------------------------------------------------------------
# What a run in a batch is


@pytest.mark.parametrize("group_size", [1, 2])
def test_a_run_of_a_sweep_is_the_emulated_run_of_its_keys(group_size: int) -> None:
    """Also where a group may hold two messages of a worker, so that lanes do not go in lockstep."""
    table = aj.sweep(
        quadratic, random_schedule, aj.grid(rate=[0.02, 0.05], group_size=[group_size]), key=KEY, seeds=2,
        summarize=everything, num_workers=W, progress=False,
    )  # fmt: skip
    for seed in (0, 1):
        keys = lanes.keys_of(KEY, seed)
        result = aj.emulate(quadratic(0.05), random_schedule(group_size, keys.schedule), keys.run, num_workers=W)
        for name, value in everything(result).items():
            np.testing.assert_allclose(table[name][1, seed], value, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_have_the_precision_of_what_they_meet(dtype: str) -> None:
    """Where float64 is on, as Python's numbers would."""

    def make(curvature: float) -> aj.Method:
        return aj.sgd(lambda w: 0.5 * curvature * w**2, np.ones((), dtype), optimizer=optax.sgd(0.3 * curvature))

    with jax.enable_x64(True):
        table = aj.sweep(
            make,
            aj.schedules.fixed_delay(20, 2),
            aj.grid(curvature=[0.3, 0.7]),
            key=KEY,
            seeds=1,
            summarize=lambda result: {"w": result.shared.params},
        )
        assert table["w"].dtype == dtype
        for row, curvature in zip(table["w"], (0.3, 0.7), strict=True):
            expected = aj.emulate(make(curvature), aj.schedules.fixed_delay(20, 2), KEY).shared.params
            np.testing.assert_allclose(row[0], expected, rtol=1e-13 if dtype == "float64" else 1e-6)


def test_summaries_are_those_of_the_run() -> None:
    """Of a learner in an environment: each is computed again here from what the run reported."""
    env = remembered_action(9)._replace(max_steps=9)

    def raw(result: aj.Result) -> dict[str, Any]:
        names = ("entropy", "return_sum", "episodes")
        leaves = {f"leaf {i}": x for i, x in enumerate(jax.tree.leaves(result.shared))}
        return {**leaves, **{f"raw {name}": result.metrics[name] for name in names}}

    def a3c(learning_rate: float) -> aj.Method:
        return aj.a3c(env, optimizer=optax.adam(learning_rate), num_envs=2, unroll_length=3)

    table = aj.sweep(
        a3c, aj.schedules.round_robin(20, 2), [{"learning_rate": 1e-3}], key=KEY, seeds=1, progress=False,
        summarize=[raw, summaries.final(0.5), summaries.curve(5), summaries.evaluation(env, 10)],
    )  # fmt: skip
    run = {name: x[0, 0] for name, x in table.values.items()}
    np.testing.assert_allclose(run["entropy"], run["raw entropy"][10:].mean(), rtol=1e-5)
    expected = run["raw return_sum"][10:].sum() / run["raw episodes"][10:].sum()
    np.testing.assert_allclose(run["return"], expected, rtol=1e-5)
    np.testing.assert_allclose(run["length"], 9.0, rtol=1e-6)
    assert np.isnan(run["return_curve"][0]), "an episode takes 9 steps, and a segment 3"
    assert np.isfinite(run["return_curve"][2:]).all()
    method = a3c(1e-3)
    like = jax.eval_shape(lambda: method.init(KEY, 2))[0]
    leaves = [run[f"leaf {i}"] for i in range(len(jax.tree.leaves(like)))]
    shared = jax.tree.unflatten(jax.tree.structure(like), leaves)
    returns = aj.evaluate(method, env, shared, lanes.keys_of(KEY, 0).summary, 10)
    np.testing.assert_allclose(run["evaluation"], returns.mean(), rtol=1e-5)


def test_a_method_that_reports_nothing_has_nothing_but_whether_it_is_finite() -> None:
    silent = aj.Method(
        lambda key, num_workers: (jax.random.normal(key), None),
        lambda shared: shared,
        lambda view, local: (view, local, {}),
        lambda shared, messages, stale: (shared + messages.sum(), {}),
    )
    schedule, options = aj.schedules.round_robin(3, 2), {"key": jax.random.key(0), "seeds": 2, "progress": False}
    values = aj.sweep(silent, schedule, **options).values
    assert {name: x.tolist() for name, x in values.items()} == {"finite": [[True, True]]}
    with pytest.raises(ValueError, match="metric='return': this method reports nothing"):
        aj.sweep(silent, schedule, summarize=aj.summaries.curve(2), **options)


def test_seeds_share_their_random_numbers_and_nothing_else(table: aj.Table) -> None:
    twice = small([SETTINGS[0], SETTINGS[3], SETTINGS[0]])
    assert_close(twice.values["loss"][0], twice.values["loss"][2], 1e-6)
    assert_close(twice.values["loss"][0], table["loss"][0], 1e-6)
    first_losses = table["loss"][:, :, 0, 0]  # no update has happened yet, so that only the seed matters
    np.testing.assert_allclose(first_losses, np.broadcast_to(first_losses[:1], first_losses.shape), rtol=1e-6)
    assert len(np.unique(first_losses[0])) == 3


def test_a_seed_has_a_key_for_its_run_one_for_its_schedule_and_one_for_its_summary() -> None:
    keys = [jax.random.key_data(key) for seed in range(3) for key in lanes.keys_of(KEY, seed)]
    assert len({tuple(np.ravel(key)) for key in keys}) == 9


def test_a_setting_has_as_many_workers_as_any_of_its_seeds_names() -> None:
    """Of two updates by three workers, each drawn: no seed names all, and the first may name the fewest."""

    def drawn(key: jax.Array) -> aj.Schedule:
        worker = np.asarray(jax.random.randint(key, (2, 1), 0, 3, jnp.int32))
        return aj.Schedule(worker, np.zeros((2, 1), np.int32))

    named = [drawn(lanes.keys_of(KEY, seed).schedule).num_workers for seed in range(9)]
    seeds = [named.index(min(named)), named.index(max(named))]
    assert named[seeds[0]] < named[seeds[1]]
    table = aj.sweep(quadratic(0.1), drawn, key=KEY, seeds=seeds, progress=False, summarize=everything)
    assert table["loss"].shape == (1, 2, 2, 1)


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_neither_order_nor_batches_matter(table: aj.Table, batch_size: int) -> None:
    reversed_ = small(SETTINGS[::-1], seeds=[2, 1, 0], batch_size=batch_size)
    for name in ("loss", "params"):
        np.testing.assert_allclose(reversed_[name][::-1, ::-1], table[name], rtol=1e-5, atol=1e-6)
    assert reversed_["finite"].all()


def test_a_seed_stays_what_it_is_whatever_the_other_seeds(table: aj.Table) -> None:
    np.testing.assert_allclose(small(seeds=[1])["loss"][:, 0], table["loss"][:, 1], rtol=1e-5, atol=1e-6)


def test_lanes_are_split_over_all_devices(table: aj.Table, tmp_path: Path) -> None:
    """18 runs on 8 devices, 3 on each with padding."""
    script = "import sys, jax, numpy as np; from tests.test_comparison import small; np.save(sys.argv[1],"
    script += " small()['loss']); print(len(jax.devices()))"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", script, str(tmp_path / "loss.npy")]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, env={**os.environ, **flags}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "8"
    np.testing.assert_allclose(np.load(tmp_path / "loss.npy"), table["loss"], rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# What settings share


@pytest.mark.parametrize(
    ("settings", "programs"),
    [
        (aj.grid(rate=[0.01, 0.02], power=[0.0, 1.0], delay=[0, 1, 9], length=[T]), 1),
        (aj.grid(rate=[0.01, 0.02], power=[0.0], delay=[1], length=[T, T + 1]), 2),
        (aj.grid(rate=[0.01], power=[0.0, 1], delay=[1], length=[T]), 1),  # an integer among floats is a float
    ],
)
def test_settings_of_equal_shape_are_one_program(
    settings: list[dict[str, Any]], programs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, compiled = [], []
    compile_ = lanes.LaneProgram._compile
    monkeypatch.setattr(lanes.LaneProgram, "_compile", lambda self, x: compiled.append(1) or compile_(self, x))

    def method(rate: float, power: float) -> aj.Method:
        built.append((rate, power))
        return quadratic(rate, power)

    def schedule(delay: int, length: int) -> aj.Schedule:
        return aj.schedules.fixed_delay(length, delay)

    table = aj.sweep(method, schedule, settings, key=KEY, seeds=2, batch_size=3, progress=False)
    assert len(built) == len(compiled) == programs
    assert table["loss"].shape == (len(settings), 2)


def test_floats_that_a_method_must_know_are_compiled_in() -> None:
    def method(rate: float) -> aj.Method:
        return quadratic(0.02 if rate > 0.01 else 0.01)

    with pytest.raises(jax.errors.ConcretizationTypeError) as caught:
        small_method(method)
    assert any("static=" in note and "'rate'" in note for note in caught.value.__notes__)
    np.testing.assert_allclose(small_method(method, static=["rate"]), small_method(quadratic), rtol=1e-6)


def small_method(method: Any, **options: Any) -> np.ndarray:
    settings = aj.grid(rate=[0.01, 0.02], delay=[1])
    return aj.sweep(method, delayed, settings, key=KEY, seeds=2, progress=False, **options)["loss"]


@hypothesis.given(st.integers(1, 300), st.integers(0, 40), st.integers(1, 8))
def test_batches_hold_what_there_is_memory_for(num_runs: int, fit: int, num_devices: int) -> None:
    program = object.__new__(lanes.LaneProgram)
    program.devices, program.bytes_per_lane = [jax.devices()[0]] * num_devices, 1000
    size = program.batch_size(num_runs, max_bytes=1000 * fit + 999)
    per_device = size / num_devices
    assert per_device == int(per_device) >= 1
    assert per_device <= max(1, min(fit, lanes.CPU_LANES))
    batches = math.ceil(num_runs / size)
    assert batches * size - num_runs < batches * num_devices, "less than a lane of padding per batch and device"


@hypothesis.given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 8))
def test_batches_are_no_larger_than_wanted(num_runs: int, wanted: int, num_devices: int) -> None:
    program = object.__new__(lanes.LaneProgram)
    program.devices = [jax.devices()[0]] * num_devices
    size = program.batch_size(num_runs, wanted)
    assert size % num_devices == 0
    assert num_devices <= size <= max(wanted, num_devices)


def test_cpu_devices_share_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "available_bytes", lambda device: 20_000)
    program = object.__new__(lanes.LaneProgram)
    program.bytes_per_lane = 1000
    for num_devices in (1, 2, 5):
        program.devices = [jax.devices("cpu")[0]] * num_devices
        assert program.batch_size(1000) == 10


def test_one_setting_may_have_groups_in_which_a_worker_comes_twice() -> None:
    counting = aj.Method(
        init=lambda key, num_workers: (jnp.float32(0), jnp.arange(num_workers, dtype=jnp.float32)),
        view=lambda total: total,
        work=lambda total, local: (local, local + 10, {}),
        apply=lambda total, messages, stale: (total + messages.sum(), {}),
    )

    def schedule(twice: bool) -> aj.Schedule:
        worker = np.array([[0, 0], [1, 1], [0, 1]] if twice else 3 * [[0, 1]], np.int32)
        return aj.Schedule(worker, np.zeros((3, 2), np.int32))

    options: dict[str, Any] = {"summarize": lambda result: {"total": result.shared}, "progress": False}
    table = aj.sweep(counting, schedule, aj.grid(twice=[False, True]), key=KEY, seeds=1, num_workers=2, **options)
    assert table["total"].ravel().tolist() == [3 + 2 * 30, 0 + 10 + 1 + 11 + 20 + 21]


def test_summaries_may_ask_for_the_schedules_times() -> None:
    def timed(mean: float, key: jax.Array) -> aj.Schedule:
        return aj.schedules.from_service_times(aj.service.exponential(mean), T, W, key)

    settings, options = aj.grid(mean=[1.0, 2.0]), {"key": KEY, "seeds": 3, "progress": False}
    table = aj.sweep(quadratic(0.1), timed, settings, summarize=lambda time: {"end": time[-1]}, **options)
    for (i, setting), seed in itertools.product(enumerate(settings), range(3)):
        expected = timed(setting["mean"], lanes.keys_of(KEY, seed).schedule).time
        np.testing.assert_allclose(table["end"][i, seed], np.asarray(expected)[-1], rtol=1e-6)
    with pytest.raises(ValueError, match=r"summarize names time, but the schedule of .* has none"):
        aj.sweep(quadratic(0.1), delayed, aj.grid(delay=[1]), summarize=lambda time: {"end": time[-1]}, **options)
    with pytest.raises(ValueError, match=r"summarize names \['schedule'\], .* is given result, method, stale"):
        aj.sweep(quadratic(0.1), timed, settings, summarize=lambda schedule: {}, **options)


def test_a_schedule_that_runs_share_is_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    planned, plan = [], lanes.Shape.plan
    monkeypatch.setattr(lanes.Shape, "plan", lambda self, schedule: planned.append(1) or plan(self, schedule))
    aj.sweep(quadratic, delayed, aj.grid(rate=[0.1, 0.2, 0.3], delay=[0, 4]), key=KEY, seeds=4, progress=False)
    assert len(planned) == 2


def test_settings_without_a_number_are_sorted_last() -> None:
    values = np.array([[1.0, 2.0], [np.nan, np.nan], [5.0, 6.0]])
    table = aj.Table(aj.grid(delay=[0, 1, 2]), range(2), {"return": values}).sorted("return")
    assert [setting["delay"] for setting in table.settings] == [2, 0, 1]


def test_memory_is_what_lives_at_once() -> None:
    def function(x: jax.Array) -> jax.Array:
        for _ in range(10):
            x = jnp.sin(x)  # the operand is not needed any more, but for the input, which the caller holds
        return x

    x = jnp.zeros((100,), jnp.float32)
    assert memory.peak_bytes(jax.make_jaxpr(function)(x).jaxpr) == 3 * x.nbytes

    def loop(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 1000, lambda _, y: jnp.tile(y, 5)[:100], x)

    peak = memory.peak_bytes(jax.make_jaxpr(loop)(x).jaxpr)
    assert 7 * x.nbytes <= peak <= 9 * x.nbytes, "what a turn of a loop takes counts once"
    assert memory.available_bytes(jax.devices("cpu")[0]) > 2**20


# ---------------------------------------------------------------------------------------------------------------------
# Going on


def test_a_stopped_sweep_continues(table: aj.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = batch_progress.BatchProgress.advance

    def stop(self: Any, runs: int) -> None:
        advance(self, runs)
        if self.done >= 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(batch_progress.BatchProgress, "advance", stop)
    with pytest.raises(KeyboardInterrupt):
        small(batch_size=4, directory=tmp_path)
    monkeypatch.setattr(batch_progress.BatchProgress, "advance", advance)
    (tmp_path / "batch-00001.npz.tmp").write_bytes(b"killed while writing")
    assert len(list(tmp_path.glob("batch-*.npz"))) == 2
    continued = small(batch_size=4, directory=tmp_path)
    assert len(list(tmp_path.glob("batch-*.npz"))) == 5, "18 runs in batches of 4"
    np.testing.assert_allclose(continued["loss"], table["loss"], rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(lanes.LaneProgram, "__call__", lambda *_: pytest.fail("everything is there already"))
    np.testing.assert_array_equal(small(SETTINGS[1:3], seeds=[2, 0], directory=tmp_path)["loss"][:, 1],
                                  continued["loss"][1:3, 0])  # fmt: skip


def test_functions_as_values_are_known_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their addresses would be others in the next process, or those of others."""

    def tuned(optimizer: Any, directory: Path | None = tmp_path) -> aj.Table:
        def method(optimizer: Any) -> aj.Method:
            return aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optimizer(0.1))

        schedule, settings = aj.schedules.round_robin(5, 2), aj.grid(optimizer=[optimizer, optax.adam])
        return aj.sweep(method, schedule, settings, key=jax.random.key(0), seeds=1, directory=directory, progress=False)

    table = tuned(optax.sgd)
    assert "   adam" in str(table)
    table.save(tmp_path / "table.csv")
    assert "\nsgd,0," in (tmp_path / "table.csv").read_text().replace("\r", "")
    assert store.lasting(optax.sgd) == "optax._src.alias.sgd"
    for other in (optax.inject_hyperparams(optax.sgd), "abc".upper, Steep(1.0).__call__):  # with the names of others
        with pytest.raises(ValueError, match="has no name by which a directory"):
            store.lasting(other)
    no_name = lambda rate: optax.sgd(rate)  # noqa: E731
    np.testing.assert_array_equal(tuned(no_name, directory=None)["loss"], table["loss"])
    monkeypatch.setattr(lanes.LaneProgram, "__call__", lambda *_: pytest.fail("everything is there already"))
    np.testing.assert_array_equal(tuned(optax.sgd)["loss"], table["loss"])
    with pytest.raises(ValueError, match="has no name by which a directory could know it again"):
        tuned(no_name)


@dataclasses.dataclass(frozen=True)
class Steep:
    """A loss, which prints like others."""

    steepness: float = dataclasses.field(repr=False)

    def __call__(self, w: jax.Array) -> jax.Array:
        return 0.5 * self.steepness * w**2


def test_values_that_print_alike_are_not_taken_for_each_other(tmp_path: Path) -> None:
    def swept(directory: Path | None) -> aj.Table:
        return aj.sweep(
            lambda loss: aj.sgd(loss, 1.0, optimizer=optax.sgd(0.1)),
            aj.schedules.round_robin(5, 2),
            aj.grid(loss=[Steep(1.0), Steep(3.0)]),
            key=jax.random.key(0),
            seeds=1,
            directory=directory,
            progress=False,
        )

    gentle, steep = swept(None)["loss"]
    assert gentle > 2 * steep
    with pytest.raises(ValueError, match=r"Steep\(\) has no name by which a directory"):
        swept(tmp_path)
    assert store.lasting((1, 0.5, "a", (None,))) == repr((1, 0.5, "a", (None,)))


def test_sweeps_that_share_a_directory_keep_each_other_s_batches(tmp_path: Path) -> None:
    key, half = jax.random.key(0), np.ones(1, jnp.bfloat16)
    one, other = store.Store(tmp_path, key), store.Store(tmp_path, key)
    one.add([({"delay": 1}, 0)], {"loss": half})
    other.add([({"delay": 2}, 0)], {"loss": half})
    assert sorted(path.name[:11] for path in tmp_path.glob("*.npz")) == ["batch-00000"] * 2
    table = store.Store(tmp_path, key).table([{"delay": 1}, {"delay": 2}], [0])
    np.testing.assert_array_equal(table["loss"], np.ones((2, 1), np.float32), strict=True)


def test_a_damaged_batch_is_named_and_without_it_only_its_runs_are_computed(tmp_path: Path) -> None:
    small(batch_size=4, directory=tmp_path)
    files = sorted(tmp_path.glob("batch-*.npz"))
    before = {file: file.read_bytes() for file in files}
    for damage in (b"", b"no archive", before[files[1]][:100]):
        files[1].write_bytes(damage)
        with pytest.raises(ValueError, match=rf"{files[1].name} is damaged: delete it, and its runs are computed"):
            small(batch_size=4, directory=tmp_path)
    files[1].unlink()
    small(batch_size=4, directory=tmp_path)
    assert {file: file.read_bytes() for file in files if file != files[1]} == {
        file: data for file, data in before.items() if file != files[1]
    }
    assert len(list(tmp_path.glob("batch-*.npz"))) == len(files)
    (tmp_path / "key.json").write_text("")
    with pytest.raises(ValueError, match=r"key\.json is damaged"):
        small(batch_size=4, directory=tmp_path)
    (tmp_path / "key.json").unlink()
    with pytest.raises(ValueError, match=r"key\.json is missing"):
        small(batch_size=4, directory=tmp_path)


@pytest.mark.parametrize("seeds", [[-1], [2**32], [0, 0], []])
def test_seeds_are_told_apart_and_in_range(seeds: list[int]) -> None:
    with pytest.raises(ValueError, match=r"seeds=\[.*\]: give at least one seed of 0 to 2\^32 - 1, and none twice"):
        small(seeds=seeds)


def test_seeds_are_whole_numbers_and_static_is_a_list_of_names() -> None:
    assert small(SETTINGS[:1], seeds=np.int64(2))["loss"].shape[1] == 2
    with pytest.raises(TypeError, match=r"seeds\[0\]=1\.7: give a whole number"):
        small(SETTINGS[:1], seeds=[1.7, 0])
    with pytest.raises(TypeError, match=r"static='rate': give a list of names"):
        small(SETTINGS[:1], static="rate")


# ---------------------------------------------------------------------------------------------------------------------
# Differences


def made_up(seed: int = 0) -> aj.Table:
    values = np.random.default_rng(seed).normal(size=(6, 5))
    return aj.Table(SETTINGS, range(5), {"return": values, "curve": values[..., None] * [1, 2], "finite": values < 9})


def test_differences_are_those_of_statistics() -> None:
    table = made_up()
    effect = table.against(delay=0)
    assert effect.settings == aj.grid(rate=[0.01, 0.02, 0.05], delay=[4])
    expected = statistics.paired_difference(table["return"][3], table["return"][2])
    np.testing.assert_array_equal(effect["return"][1], expected.per_seed)
    np.testing.assert_array_equal([x[1] for x in effect.interval("return")], expected[1:])
    needed = statistics.seeds_needed(expected.per_seed, 0.5)
    assert effect.seeds_needed("return", 0.5)[1] == needed
    np.testing.assert_array_equal(effect["curve"], effect["return"][..., None] * [1, 2])


@pytest.mark.parametrize(("seeds", "marks"), [(1, 0), (2, 1)])
def test_one_seed_has_no_difference_resolved(seeds: int, marks: int) -> None:
    values = np.array([[1.0], [2.0]]) + np.zeros((2, seeds))
    table = aj.Table(SETTINGS[:2], range(seeds), {"return": values}).against(delay=0)
    assert table.text("return").splitlines()[1].count("*") == marks


def test_what_depends_on_what() -> None:
    """Differences of differences are the interaction, in either order."""
    table = made_up()
    interaction = table.against(delay=0).against(rate=0.01)
    assert interaction.settings == aj.grid(rate=[0.02, 0.05], delay=[4])
    by_hand = (table["return"][3] - table["return"][2]) - (table["return"][1] - table["return"][0])
    np.testing.assert_allclose(interaction["return"][0], by_hand)
    np.testing.assert_allclose(table.against(rate=0.01).against(delay=0)["return"], interaction["return"])
    assert interaction.baseline == {"delay": 0, "rate": 0.01}


@hypothesis.given(hypothesis.extra.numpy.arrays(np.float64, (3, 5), elements=st.floats(-100, 100)))
def test_an_effect_that_adds_up_does_not_depend(effects: np.ndarray) -> None:
    """With seed noise common to all settings and additive effects, every difference is exact and the interaction 0."""
    of_delay = np.array([0.0, 3.0])
    values = (effects[:, None] + of_delay[:, None]).reshape(6, 5)
    table = aj.Table(SETTINGS, range(5), {"return": values})
    np.testing.assert_allclose(table.against(delay=0)["return"], 3.0, atol=1e-10)
    np.testing.assert_allclose(table.against(delay=0).against(rate=0.01)["return"], 0.0, atol=1e-10)


def test_tables_can_be_read(tmp_path: Path) -> None:
    table = made_up()
    table.save(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["rate", "delay", "seed", "return", "finite"]
    assert [float(row["return"]) for row in rows] == table["return"].ravel().tolist()
    text = str(table.select(rate=0.02)).splitlines()
    assert text[0].split() == ["delay", "return"], "what does not vary is not shown"
    assert len(text) == 4
    assert f"{table.interval('return')[0][2]:.4g}" in text[1]
    assert "difference from delay=0" in str(table.against(delay=0))
    assert table.summary()[2]["return_low"] == table.interval("return")[1][2]


# ---------------------------------------------------------------------------------------------------------------------
# Summaries


@hypothesis.given(st.sampled_from([1, 5, 12]), st.integers(0, 2**32 - 1))
def test_curves_are_means_over_stretches(points: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    metrics = {"loss": rng.normal(size=(12, 2)), "episodes": rng.integers(0, 2, (12, 2))}
    metrics["return_sum"] = metrics["episodes"] * rng.normal(size=(12, 2))
    result = aj.Result(None, None, {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()})
    parts = {name: np.array_split(x, points) for name, x in metrics.items()}
    loss = summaries.curve(points, "loss")(result)["loss_curve"]
    np.testing.assert_allclose(loss, [x.mean() for x in parts["loss"]], rtol=1e-4, atol=1e-5)
    last, expected = np.nan, []
    for total, episodes in zip(parts["return_sum"], parts["episodes"], strict=True):
        last = total.sum() / episodes.sum() if episodes.sum() else last
        expected.append(last)
    np.testing.assert_allclose(summaries.curve(points)(result)["return_curve"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(summaries.stretch_ends(12, points)[-1], 12)


def test_the_final_part_is_the_nearest_number_of_updates_and_at_least_one() -> None:
    """0.29 of 100 is 28.999999999999996 in floating point, and 29 updates."""
    result = aj.Result(None, None, {"loss": jnp.arange(100.0)[:, None]})
    for fraction, count in ((0.29, 29), (0.001, 1), (1.0, 100)):
        np.testing.assert_allclose(summaries.final(fraction)(result)["loss"], np.arange(100)[-count:].mean())


def test_the_staleness_of_a_run_is_the_mean_over_its_messages() -> None:
    found = summaries.mean_staleness(jnp.array([[0, 1], [2, 4]]))
    assert float(found["staleness"]) == 1.75


def test_an_evaluation_takes_the_mode_or_samples() -> None:
    """Of a policy that has not learned the two have different returns."""
    env = remembered_action(2)._replace(max_steps=2)
    method = aj.a3c(env, num_envs=1, unroll_length=2)
    shared = method.init(KEY, 1)[0]
    result = aj.Result(shared, None, {})
    for greedy in (True, False):
        found = summaries.evaluation(env, 7, greedy)(result, method, KEY)["evaluation"]
        np.testing.assert_allclose(found, aj.evaluate(method, env, shared, KEY, 7, greedy).mean(), rtol=1e-6)
    assert found != aj.evaluate(method, env, shared, KEY, 7).mean()


# ---------------------------------------------------------------------------------------------------------------------
# What is shown, and what is refused


def test_progress_is_shown_to_those_who_wait(capsys: pytest.CaptureFixture[str]) -> None:
    with batch_progress.BatchProgress(4, patience=0.0, between=0.0) as shown:
        shown.timer.join()  # type: ignore[union-attr]
        shown.advance(1)
        shown.advance(3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("4 runs")
    assert lines[1].startswith("1 of 4 runs")
    assert ", eta " in lines[1]
    assert re.fullmatch(r"4 of 4 runs after \d+ s", lines[2])
    assert "of which" in lines[3]
    with batch_progress.BatchProgress(4, patience=600.0) as shown:
        shown.advance(4)
    assert capsys.readouterr().out == "", "a quick sweep says nothing"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: small([{"rate": 0.1}]), "schedule names .*delay"),
        (lambda: small([{"rate": 0.1, "delay": 0, "momentum": 0.9}]), "momentum.*neither method"),
        (lambda: small([SETTINGS[0], {"rate": 0.1}]), "different names"),
        (lambda: small([{"rate": [0.1], "delay": 0}]), "rate.*can not be compared"),
        (lambda: small(seeds=0), "seeds"),
        (lambda: small(seeds=[1, 1]), "seeds"),
        (lambda: small(batch_size=0), "batch_size=0"),
        (lambda: small([]), "settings"),
        (lambda: small(static=["speed"]), "static.*speed"),
        (lambda: small(summarize=lambda result: result.metrics["loss"]), "summarize.*dictionary"),
        (lambda: small(summarize=lambda result: {"finite": 1.0}), "finite"),
        (lambda: made_up().select(delay=5), "delay=5.*delay: 0, 4"),
        (lambda: made_up().against(delay=5), "no partner.*delay: 0, 4"),
        (lambda: made_up().seeds_needed("return", 1.0), "against"),
        (lambda: summaries.final(0.0), "fraction"),
        (lambda: summaries.curve(0), "points"),
        (lambda: small(summarize=summaries.curve(T + 1, "loss")), "points"),
        (lambda: small(summarize=summaries.curve(3, "speed")), "speed.*loss"),
    ],
)  # fmt: skip
def test_bad_input_is_told_what_to_do(call: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


def test_directories_belong_to_one_key(tmp_path: Path) -> None:
    small(SETTINGS[:1], seeds=1, directory=tmp_path)
    with pytest.raises(ValueError, match="another key"):
        small(SETTINGS[:1], seeds=1, directory=tmp_path, key=jax.random.key(4))
    with pytest.raises(ValueError, match=r"summarize.*directory"):
        small(SETTINGS[:1], seeds=2, directory=tmp_path, summarize=summaries.final())
    with pytest.raises(KeyError, match=r"speed.*loss"):
        small(SETTINGS[:1], seeds=1, directory=tmp_path)["speed"]


def test_a_sweep_that_goes_on_rewrites_nothing(tmp_path: Path) -> None:
    """A full disk, which truncates what is rewritten in place, can not cost what an earlier run has left."""

    def written() -> dict[Path, tuple[int, int]]:
        return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in tmp_path.rglob("*")}

    small(SETTINGS[:1], seeds=1, directory=tmp_path)
    before = written()
    small(SETTINGS[:1], seeds=1, directory=tmp_path)
    assert written() == before
