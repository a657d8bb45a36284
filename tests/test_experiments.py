"""The figure scripts: what they measure has known answers, and each runs from its arguments to its picture."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import accelerator
import asyncjax as aj
import benchmark
import breakdown
import communication
import corrected
import corrections
import cost
import curves
import disciplines
import fidelity
import figure
import optimizers
import quadratic
import scaling
import speedup
import staleness
import telemetry
import value_iteration

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = {"seeds": 2, "hidden": 4}
FIGURES: dict[str, tuple[ModuleType, dict[str, Any]]] = {
    "corrections": (
        corrections,
        {
            "envs": ("Catch-bsuite",),
            "services": ("equal",),
            "corrections": ("none", "scale 1/(1+tau)"),
            "delays": (0, 2),
            "num_updates": 24,
            "episodes": 2,
        },
    ),
    "communication": (
        communication,
        {
            "disciplines": ("buffered",),
            "periods": (1, 2),
            "steps": (0.5, 1.0),
            "num_envs": 1,
            "local_updates": 48,
            "points": 3,
        },
    ),
    "disciplines": (
        disciplines,
        {
            "disciplines": ("synchronous", "asynchronous"),
            "num_workers": 2,
            "num_envs": 1,
            "messages": 48,
            "learning_rates": (1e-2,),
            "points": 3,
        },
    ),
    "optimizers": (
        optimizers,
        {"optimizers": ("Adam",), "num_rates": 3, "num_envs": 1, "num_updates": 20, "num_workers": 17},
    ),
    "speedup": (
        speedup,
        {"methods": ("a3c",), "envs": ("Catch-bsuite",), "workers": (1, 2), "steps": 400},
    ),
    "staleness": (
        staleness,
        {"methods": ("a3c",), "delays": (0, 3), "learning_rates": (1e-2, 1e-3), "num_envs": 1, "num_updates": 20},
    ),
}
SHAPES = {
    "corrections": {"final": (1, 2, 1, 2, 2), "along": (1, 2, 1, 2, 2)},
    "communication": {"returns": (1, 2, 2, 2, 3), "times": (1, 2, 2, 3), "periods": (2,)},
    "disciplines": {"returns": (2, 3, 1, 2, 3), "times": (2, 3, 2, 3), "updates": (2, 3)},
    "optimizers": {"returns": (1, 2, 3, 2), "rates": (3,)},
    "speedup": {"updates": (1, 1, 2, 2), "time": (1, 1, 2, 2)},
    "staleness": {"returns": (1, 2, 2, 2)},
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_from_arguments_to_picture(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script, small = FIGURES[name]
    monkeypatch.setitem(speedup.TASKS, "Catch-bsuite", speedup.Task(-1.0, window=2))  # what any policy reaches
    arrays = {k: np.asarray(v) for k, v in script.run(script.Args(**{**TINY, **small})).items()}
    for key, shape in SHAPES[name].items():
        assert arrays[key].shape == shape
        assert np.isfinite(arrays[key]).all(), key
    picture = script.plot(arrays)
    picture.canvas.draw()
    assert np.asarray(picture.canvas.buffer_rgba()).std() > 10
    report = script.report(arrays)
    assert len({line.count("|") for line in report.splitlines()}) == 1  # a table, as wide in every row


@pytest.mark.parametrize("name", [*corrected.OF_MESSAGES, corrected.RINGMASTER])
def test_a_correction_that_is_switched_off_passes_stale_messages_bit_for_bit(name: str) -> None:
    """And switched on it is itself: what lets all corrections share one program."""
    make = corrected.OF_MESSAGES.get(name, lambda messages: aj.corrections.ringmaster(1))
    w, g, read = jnp.array([1.0, -2.0]), jnp.array([0.3, 0.7]), jnp.array([0.5, 1.0])
    outs = []
    for given in (corrected.switched(False, make(100)), corrected.switched(True, make(100)), make(100)):
        correction = optax.with_extra_args_support(given)
        state = correction.init(w)
        for tau in (0, 40):
            out, state = correction.update(g, state, w * (1 + tau), staleness=jnp.int32(tau), stale_params=read)
        outs.append(out)
    off, on, itself = outs
    np.testing.assert_array_equal(off, g)
    np.testing.assert_array_equal(on, itself)
    assert not np.array_equal(on, g)


def test_the_command_keeps_what_redraw_draws_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runs = []

    def run(args: figure.Common) -> figure.Arrays:
        runs.append(args)
        return {"value": np.arange(3.0)}

    def plot(arrays: figure.Arrays) -> Any:
        return aj.plotting.learning_curve((arrays["value"], arrays["value"]))

    def report(arrays: figure.Arrays) -> str:
        return str(arrays["value"].tolist())

    args = figure.Common(results=tmp_path / "new", seeds=3)
    for redraw in (False, True):
        (tmp_path / "new" / "name.png").unlink(missing_ok=True)
        figure.command("name", figure.dataclasses.replace(args, redraw=redraw), {}, run, plot, report)
        assert (tmp_path / "new" / "name.png").stat().st_size > 1000
        assert "[0.0, 1.0, 2.0]" in capsys.readouterr().out
    assert len(runs) == 1
    more = figure.dataclasses.replace(args, seeds=4)
    figure.command("name", more, {}, run, plot, report)
    with pytest.raises(ValueError, match="seeds is 4 there and 3 here"):
        figure.command("name", args, {}, run, plot, report)
    with pytest.raises(ValueError, match="hidden is 32 there and 8 here"):
        figure.command("name", figure.dataclasses.replace(more, hidden=8), {}, run, plot, report)
    assert [args.seeds for args in runs] == [3, 4]
    np.savez(tmp_path / "new" / "name.npz", seconds=1.0)
    with pytest.raises(ValueError, match=r"has no 'value': an earlier version wrote it; run without --redraw"):
        figure.command("name", figure.dataclasses.replace(args, redraw=True), {}, run, plot, report)
    figure.command("name", figure.Common(results=tmp_path, quick=True), {"seeds": 1}, run, plot, report)
    assert runs[-1].seeds == 1
    assert (tmp_path / "name-quick.npz").exists()


MISTAKES: list[tuple[ModuleType, dict[str, Any], str]] = [
    (disciplines, {"disciplines": ("asynchronous", "foo")}, "disciplines='foo': choose one of 'synchronous'"),
    (disciplines, {"disciplines": ("synchronous",)}, "add 'asynchronous'"),
    (disciplines, {"num_workers": 0}, "num_workers=0: give a positive"),
    (disciplines, {"learning_rates": ()}, r"learning_rates=\(\): give at least one"),
    (staleness, {"delays": (0, -1)}, "delays=-1: give a positive"),
    (speedup, {"workers": (0,)}, "workers=0"),
    (speedup, {"envs": ("Foo",)}, "envs='Foo': choose one of 'CartPole-v1'"),
    (corrections, {"corrections": ("none", "foo")}, "corrections='foo': choose one of 'none'"),
    (corrections, {"corrections": ("PipeMare",)}, "begin with 'none'"),
    (corrections, {"method": "foo"}, "method='foo'"),
    (corrections, {"services": ("foo",)}, "services='foo'"),
    (corrections, {"envs": ("Catch-bsuite", "Foo")}, "Foo"),
    (communication, {"periods": (1, 1024)}, "with a period of 1024 a run has 0 updates, fewer than points=16"),
    (optimizers, {"optimizers": ("foo",)}, "optimizers='foo'"),
    (cost, {"axes": ("foo",)}, "axes='foo'"),
    (fidelity, {"records": 0}, "records=0"),
    (quadratic, {"seeds": 0}, "seeds=0"),
    (benchmark, {"sizes": ("16x64",)}, "sizes='16x64': give workers x environments x steps"),
    (breakdown, {"sizes": ("0x1x1",)}, "sizes='0x1x1'"),
    (breakdown, {"threads": (0,)}, "threads=0"),
    (telemetry, {"num_updates": 0}, "num_updates=0"),
    (value_iteration, {"results": Path("/dev/null/x")}, "folder /dev/null/x can not be written .*--results"),
    (quadratic, {"results": Path("/dev/null/x")}, "folder /dev/null/x can not be written .*--results"),
    (benchmark, {"out": Path("/dev/null/x/found.json")}, "folder /dev/null/x can not be written .*--out"),
    (cost, {"redraw": True, "results": Path("results/nothing")}, "there is no results/nothing/cost.npz"),
]


@pytest.mark.parametrize(("script", "given", "sentence"), MISTAKES)
def test_what_no_run_could_follow_is_refused_before_any_begins(
    script: ModuleType, given: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run", "measure"):
        monkeypatch.setattr(script, name, lambda *_: pytest.fail("it ran"), raising=False)
    with pytest.raises(ValueError, match=sentence):
        script.main(script.Args(**given))
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize(
    "script",
    [communication, corrections, cost, disciplines, fidelity, optimizers, scaling, speedup, staleness, value_iteration],
)
def test_what_a_figure_does_by_default_is_no_mistake(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure, "command", lambda name, args, *_: args)
    assert script.main(script.Args()) == script.Args()


def test_a_mistake_is_a_sentence_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["telemetry.py", "--num-updates", "0"])
    with pytest.raises(SystemExit) as stopped:
        figure.start(telemetry.main, telemetry.Args, "")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "\nError: num_updates=0: give a positive number.\n"


def test_every_figure_and_benchmark_begins_where_mistakes_are_told() -> None:
    scripts = {path.stem: path.read_text() for path in Path(figure.__file__).parent.glob("*.py")}
    bare = {name for name, text in scripts.items() if '__name__ == "__main__"' in text and "main(tyro.cli" in text}
    assert bare == {"fault_injection", "kill_workers", "soak"}  # which are tests


def test_the_first_window_of_episodes_that_reaches_the_score() -> None:
    episodes = np.array([1.0, 0.0, 2.0, 1.0, 1.0])  # of returns 1; -; 3, 5; 4; 9
    returns = np.array([1.0, 0.0, 8.0, 4.0, 9.0])
    result = aj.Result((), (), {"greedy_episodes": episodes, "greedy_return": returns})
    expected = {(4.0, 2): 3.0, (5.0, 2): 5.0, (0.0, 2): 3.0, (6.5, 2): 5.0, (7.0, 2): np.inf, (9.0, 1): 5.0}
    found = {(t, w): float(speedup.first_reach(result, speedup.Task(t, w))) for t, w in expected}
    assert found == expected


def test_cost_in_proportion_to_the_size_has_slope_one_and_draws() -> None:
    size = np.array([10, 1000, 100_000])
    seconds = np.broadcast_to(np.stack([1e-9 * size, np.full(3, 1e-6)], axis=1), (2, 3, 2))
    arrays = {"parameters": size, "parameters, seconds": seconds}
    report = cost.report(arrays)
    assert report.count("+1.00") == report.count("+0.00") == 2
    assert sum(axes.axison for axes in cost.plot(arrays).axes) == 1


def test_speed_up_is_the_product_of_its_factors_and_of_failures_unknown() -> None:
    updates = np.array([[100.0] * 5, [50.0] * 5, [200.0, 200.0, np.inf, np.inf, np.inf]])
    times = updates / np.array([[1.0], [2.0], [4.0]])
    result = speedup.speed_ups(updates, times, limit=300.0)
    np.testing.assert_allclose(result.total[:, 1], 4.0)
    np.testing.assert_allclose(result.time_per_update[:, 1], 2.0)
    np.testing.assert_allclose(result.updates[:, 1], 2.0)
    assert np.isnan(result.total[:, 2]).all()
    assert not result.at_least
    slow_first = speedup.speed_ups(updates[::-1], times[::-1] * 4, limit=300.0)
    np.testing.assert_allclose(slow_first.updates[0, 1:], [300.0 / 50.0, 300.0 / 100.0])
    assert slow_first.at_least


def test_judging_a_run_changes_nothing_in_it() -> None:
    env = aj.make_env("Catch-bsuite")
    plain = aj.a3c(env, num_envs=1, unroll_length=5, network=figure.small_network("a3c", env, 4))
    schedule = aj.schedules.round_robin(20, 2)
    alone = aj.emulate(plain, schedule, jax.random.key(0))
    watched = aj.emulate(speedup.judged(plain, env, 5), schedule, jax.random.key(0))
    for x, y in zip(jax.tree.leaves(alone.shared), jax.tree.leaves(watched.shared.learner), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    assert watched.metrics["greedy_episodes"].sum() == 20 * 5 // 9  # an episode of Catch has nine steps


@pytest.mark.parametrize("discipline", disciplines.DISCIPLINES)
def test_every_discipline_consumes_all_messages(discipline: str) -> None:
    args = disciplines.Args(messages=96, num_workers=4, group_size=3)
    schedule = disciplines.make_schedule(args, discipline, "straggling", jax.random.key(0), 3)
    assert schedule.worker.size == 96
    assert aj.schedules.is_realizable(schedule)


def test_what_was_learned_is_compared_engine_by_engine(tmp_path, capsys):
    curve = {"steps": [10.0, 20.0], "returns": [[1.0, 2.0]] * 4, "staleness": 3.0, "seconds": 1.0}
    for name, evaluation in (("a3c-A-v1-emulate", [5.0, 5.0, 5.0, 5.0]), ("a3c-A-v1-threads", [3.0, 4.0, 4.0, 9.0])):
        (tmp_path / f"{name}.json").write_text(json.dumps({**curve, "evaluation": evaluation}))
    (tmp_path / "ppo-B-emulate.json").write_text(json.dumps({**curve, "evaluation": [1.0, 2.0, 3.0, 4.0]}))
    learned = curves.main(curves.Args(tmp_path))
    assert {env: {m: sorted(e) for m, e in methods.items()} for env, methods in learned.items()} == {
        "A-v1": {"a3c": ["emulate", "threads"]},
        "B": {"ppo": ["emulate"]},
    }
    printed = capsys.readouterr().out
    assert "| A-v1 | a3c | 5 [5, 5], 3.0 | 4 [3, 9], 3.0 | 1 [-4, 2] |" in printed
    assert "| B | ppo | 2.5 [1, 4], 3.0 | - | - |" in printed
    assert (tmp_path / "learning.png").stat().st_size > 10_000
    for name in ("a3c-A-v1-emulate", "a3c-A-v1-threads"):
        (tmp_path / f"{name}.json").write_text(
            json.dumps({**curve, "evaluation": [1.0], "returns": [[1.0, 9.0]] if "threads" in name else [[4.0, 2.0]]})
        )
    left, right = curves.plot(curves.load(tmp_path, ("A-v1",))).axes[:2]
    assert left.get_ylim() == right.get_ylim()
    assert left.get_ylim()[0] < 1 < 9 < left.get_ylim()[1]
    with pytest.raises(ValueError, match="no results of C-v0"):
        curves.main(curves.Args(tmp_path, envs=("C-v0",)))
    with pytest.raises(ValueError, match=r"no results that learning\.py wrote"):
        curves.main(curves.Args(tmp_path / "nowhere"))


def test_a_benchmark_measures_all_ways_and_draws_them(tmp_path: Path) -> None:
    small: dict[str, Any] = {"sizes": ("2x1x1",), "steps": 8, "repeats": 2, "threads": False}
    rows = benchmark.main(benchmark.Args(**small, out=tmp_path / "found.json"))
    assert json.loads((tmp_path / "found.json").read_text()) == rows
    names = [row["name"] for row in rows]
    assert names[0] == "synchronous, fused"
    assert names[1::2] == [name.replace("event by event", "emulate") for name in names[2::2]]
    assert all(0 < row["slowest"] <= row["steps_per_second"] <= row["fastest"] for row in rows)
    (axes,) = benchmark.plot(rows).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    assert (tmp_path / "found.png").stat().st_size > 10_000


def test_accelerators_are_measured_from_memory_to_speed(tmp_path: Path) -> None:
    small = {"workers": 2, "envs": (1,), "unroll": 2, "updates": 32, "repeats": 1, "runs": 0, "parameters": 10}
    accelerator.main(accelerator.Args(**small, out=tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["memory"]["goal"] == 8
    speed = found["1 environments"]
    assert speed["ratio"] == pytest.approx(speed["waves"] / speed["event by event"])
    assert speed["event by event"] > 0
