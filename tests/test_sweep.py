"""The sweep command: what it searches, what it writes, and how it goes on."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import asyncjax as aj
import curves
import learning
import spaces
import sweep
from asyncjax import commandline
from asyncjax.sweeps.batch_progress import BatchProgress
from train import exit_code

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.usefixtures("quick_compilation")

KINDS = {
    "learning_rate": float | None, "delay": int | None, "double": bool, "core": Literal["gru", "lstm"] | None,
    "num_envs": int,
}  # fmt: skip
TINY = ["--env", "Catch-bsuite", "--num-envs", "2", "--unroll-length", "3", "--total-steps", "150", "--seeds", "2"]
TINY += ["--eval-episodes", "4", "--points", "3"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished grid of four settings."""
    path = tmp_path_factory.mktemp("sweep") / "grid"
    argv = ["a3c", *TINY, "--grid", "learning_rate=1e-3,2e-3", "delay=0,4", "--directory", str(path)]
    sweep.main([*argv, "--against", "delay=0", "learning_rate=1e-3"])
    return path


def read(path: Path) -> list[dict[str, str]]:
    with (path / "table.csv").open() as file:
        return list(csv.DictReader(file))


def batches(path: Path) -> int:
    return len(list((path / "runs").glob("batch-*.npz")))


def test_it_leaves_a_table_and_pictures(directory: Path) -> None:
    rows = read(directory)
    assert len(rows) == 4 * 2
    assert [(r["learning_rate"], r["delay"]) for r in rows[::2]] == [
        ("0.001", "0"), ("0.001", "4"), ("0.002", "0"), ("0.002", "4"),
    ]  # fmt: skip
    assert {float(r["staleness"]) for r in rows if r["delay"] == "0"} == {0.0}
    assert len({r["evaluation"] for r in rows}) > 1
    assert batches(directory) == 1, "all settings are one program"
    for name in ("curves.png", "settings.png"):
        assert (directory / name).stat().st_size > 1000


def test_it_goes_on_from_its_directory(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read(directory)
    table = sweep.main(["--resume", str(directory)])
    assert batches(directory) == 1, "nothing had to run again"
    assert read(directory) == before
    assert len(table.settings) == 4
    out = capsys.readouterr().out
    assert "difference from delay=0, learning_rate=0.001" in out, "the differences are those of the first command"
    with pytest.raises(ValueError, match="total_steps is 150 there"):
        sweep.main(["--resume", str(directory), "--total-steps", "300"])
    with pytest.raises(ValueError, match="no sweep"):
        sweep.main(["--resume", str(directory / "nowhere")])


@pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="optuna is an extra")
@hypothesis.settings(max_examples=3)
@hypothesis.given(samples=st.integers(1, 30), batch=st.integers(1, 9))
def test_optuna_asks_the_same_again(samples: int, batch: int) -> None:
    """So a stopped search finds what it has run before; and it searches: the best is near the optimum at 0.01."""
    space = spaces.parse_space(["learning_rate=1e-4..1:log", "delay=0..8", "core=gru,none"], KINDS)
    asked: list[int] = []

    def value(settings: list[dict[str, Any]]) -> np.ndarray:
        asked.append(len(settings))
        distance = np.array([abs(math.log10(s["learning_rate"]) + 2) + s["delay"] for s in settings])
        return np.where(distance > 8, np.nan, -distance)

    first = spaces.choices_by_optuna(space, samples, batch, value)
    assert sum(asked) == samples
    assert max(asked) <= batch
    assert spaces.choices_by_optuna(space, samples, batch, value) == first
    assert all(1e-4 <= s["learning_rate"] <= 1 and s["core"] in ("gru", None) for s in first)


@hypothesis.given(low=st.floats(1e-6, 1.0), factor=st.floats(1.1, 1e4), log=st.booleans(), samples=st.integers(1, 20))
def test_samples_lie_in_range_and_more_leave_the_first(low: float, factor: float, log: bool, samples: int) -> None:
    text = f"learning_rate={low}..{low * factor}" + (":log" if log else "")
    space = spaces.parse_space([text, "delay=0..3", "double=true,false"], KINDS)
    settings = spaces.choices_of({"num_envs": [1, 2]}, space, samples)
    assert len(settings) == 2 * samples  # of a range no number comes twice
    for setting in settings:
        assert low * (1 - 1e-9) <= setting["learning_rate"] <= low * factor * (1 + 1e-9)
        assert setting["delay"] in range(4)
    assert settings[:samples] == spaces.choices_of({"num_envs": [1]}, space, samples)
    assert settings[0] == spaces.choices_of({"num_envs": [1]}, space, samples + 3)[0]


def test_no_sample_is_twice() -> None:
    space = spaces.parse_space(["learning_rate=1e-3,1e-2", "delay=0,4"], KINDS)
    settings = spaces.choices_of({}, space, 50)
    assert len(settings) == 4
    assert len({tuple(setting.items()) for setting in settings}) == 4
    assert spaces.parse_space(["learning_rate=1e-3,2e-3,0.001", "delay=0,0"], KINDS) == {
        "learning_rate": [1e-3, 2e-3], "delay": [0],
    }  # fmt: skip


def test_values_have_the_types_of_their_options() -> None:
    space = spaces.parse_space(["learning-rate=1,1e-3,none", "delay=4", "double=true,False", "core=gru,none"], KINDS)
    assert space == {"learning_rate": [1.0, 1e-3, None], "delay": [4], "double": [True, False], "core": ["gru", None]}
    assert isinstance(space["learning_rate"][0], float)
    assert spaces.choices_of({}, {}, 9) == [{}], "one setting: the options as they are"


@pytest.mark.parametrize(
    ("specification", "sentence"),
    [
        ("speed=1", "no option 'speed'.*learning_rate"),
        ("learning_rate", "name=value"),
        ("learning_rate=", "name=value"),
        ("delay=1.5", "'delay=1.5': '1.5' is none of: None, int"),
        ("core=rnn", "'rnn' is none of: .*gru, lstm"),
        ("learning_rate=1e-2..1e-4:log", "low < high"),
        ("learning_rate=0..1:log", "low > 0"),
        ("learning_rate=1e-4..1e-2:lin", ":log"),
        ("core=gru..lstm", "low < high"),
    ],
)
def test_bad_specifications_are_told_what_to_write(specification: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        spaces.parse_space([specification], KINDS)


def test_bad_commands_are_told_what_to_do(tmp_path: Path) -> None:
    where = ["--directory", str(tmp_path)]
    with pytest.raises(ValueError, match="use --random"):
        sweep.main(["a3c", *TINY, "--grid", "learning_rate=1e-4..1e-2", *where])
    with pytest.raises(ValueError, match="can not be combined"):
        sweep.main(["a3c", *TINY, "--optuna", "learning_rate=1e-4..1e-2", "--grid", "delay=0", *where])
    with pytest.raises(ValueError, match="single messages"):
        sweep.main(["a3c", *TINY, "--group-size", "2", "--delay", "0", *where])
    with pytest.raises(ValueError, match="batch=0: give a positive number"):  # Optuna would be asked for ever
        sweep.main(["a3c", *TINY, "--optuna", "learning_rate=1e-4..1e-2", "--batch", "0", *where])
    with pytest.raises(ValueError, match=r"learning_rate=-1\.0: a step size is positive"):
        sweep.main(["a3c", *TINY, "--grid", "learning_rate=1e-3,-1", *where])
    with pytest.raises(ValueError, match="num_envs=0: use at least 1"):
        sweep.main(["a3c", *TINY, "--grid", "num_envs=1,0", *where])
    with pytest.raises(ValueError, match="no option 'delay' to vary; there are learning_rate"):
        sweep.main(["a3c", *TINY, "--grid", "learning_rate=1e-3,1e-2", "--against", "delay=0", *where])
    with pytest.raises(ValueError, match=r"--against delay=7: delay varies over \[0, 4\]; choose one of them"):
        sweep.main(["a3c", *TINY, "--grid", "delay=0,4", "--against", "delay=7", *where])
    with pytest.raises(ValueError, match="--against delay=0: delay has no other value to compare with"):
        sweep.main(["a3c", *TINY, "--grid", "delay=0", "--against", "delay=0", *where])
    with pytest.raises(ValueError, match="gymnasium:CartPole-v1' lives on the host"):
        sweep.main(["a3c", *TINY, "--env", "gymnasium:CartPole-v1", *where])
    with pytest.raises(ValueError, match="seeds=0: give a positive number"):
        learning.main(["a3c", "--engine", "threads", "--seeds", "0"])
    assert not list(tmp_path.iterdir()), "what makes no sense leaves nothing behind"


def test_threads_that_are_stopped_go_on_with_the_seeds_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sized = [*TINY, "--engine", "threads", "--results", str(tmp_path), "--keep", str(tmp_path / "keep")]
    begun: list[int] = []

    def run_threads(*args: Any, **options: Any) -> Any:
        begun.append(1)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return threads(*args, **options)

    threads = aj.run_threads
    monkeypatch.setattr(aj, "run_threads", run_threads)
    with pytest.raises(KeyboardInterrupt):
        learning.main(["a3c", *sized])
    first = learning.main(["a3c", *sized, "--seeds", "1"])
    assert len(begun) == 2
    with pytest.raises(ValueError, match=r"num_workers is 8 there and 4 here.*--label"):
        learning.main(["a3c", *sized, "--num-workers", "4"])
    assert json.loads((tmp_path / "a3c-Catch-bsuite-threads.json").read_text())["evaluation"] == list(
        first["evaluation"]
    )
    assert curves.load(tmp_path)["Catch-bsuite"]["a3c"]["threads"].staleness == first["staleness"]
    both = learning.main(["a3c", *sized])
    assert len(begun) == 3
    assert both["evaluation"][0] == first["evaluation"][0]
    assert both["returns"].shape[0] == 2
    with pytest.raises(ValueError, match="seeds is 2 there and 1 here"):
        learning.main(["a3c", *sized, "--seeds", "1"])


def test_what_can_not_be_kept_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "run", lambda *_: pytest.fail("it ran"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"The folder .* can not be written .*--results"):
        learning.main(["a3c", "--results", str(tmp_path / "file" / "results")])


def test_the_pictures_of_other_shapes() -> None:
    """Samples of three names: a panel for each."""
    rng = np.random.default_rng(0)
    names = [{"rate": 10.0**-i, "core": "gru" if i % 2 else None, "delay": i} for i in range(5)]
    values = {"evaluation": rng.normal(size=(5, 4))}
    assert len(sweep.draw_settings(aj.Table(names, range(4), values), "evaluation").axes) == 3


def test_of_one_setting_there_is_no_picture_of_settings(tmp_path: Path) -> None:
    values = {"evaluation": np.zeros((2, 4)), "return_curve": np.zeros((2, 4, 3))}
    two = aj.Table([{"rate": 0.1, "delay": i} for i in range(2)], range(4), values)
    one = aj.Table(two.settings[:1], range(4), {name: x[:1] for name, x in values.items()})
    for table, names in ((two, ["table.csv", "settings.png", "curves.png"]), (one, ["table.csv", "curves.png"])):
        assert sweep.save(table, {"total_steps": 9}, tmp_path) == names
        assert {*names} == {path.name for path in tmp_path.iterdir()} - {"table.parquet"}


def test_quick_sizes_are_defaults_that_the_command_overrides() -> None:
    def parsed(*words: str) -> dict[str, Any]:
        return commandline.parse(sweep.quickened(["a3c", *words]), "sweep.py", "", sweep=sweep.Sweep)[1]

    usual, quick = parsed(), parsed("--quick")
    assert {name: quick[name] for name in sweep.QUICK} == sweep.QUICK
    assert {name for name in usual if usual[name] != quick[name]} == {"quick", *sweep.QUICK}
    assert parsed("--total-steps", "10000", "--quick", "--seeds=4") == {**quick, "total_steps": 10_000, "seeds": 4}
    assert parsed("--quick", "--no-quick") == usual


def test_the_time_left_has_the_programs_that_are_to_be_compiled() -> None:
    """12 runs in 4 programs of 10 s to compile and 2 s a run, after the first program."""
    shown = BatchProgress(12, shown=False)
    with shown:
        shown.clock.close()
        shown.clock = SimpleNamespace(seconds=10.0, close=lambda: None)  # type: ignore[assignment]
        shown.programs = (1, 4)
        shown.advance(3)
        assert shown.seconds_left(shown.started + 16.0) == pytest.approx(9 * 2 + 3 * 10)


def test_without_optuna_nothing_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match="--optuna needs Optuna"):
        sweep.main(["a3c", *TINY, "--optuna", "learning_rate=1e-4..1e-2", "--directory", str(tmp_path / "sweep")])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_a_heat_map_has_every_value_in_its_cell(order: list[int]) -> None:
    names = [{"rate": rate, "delay": delay} for rate in (0.1, 0.2) for delay in (0, 4)]
    values = {"evaluation": np.repeat(np.arange(4.0)[:, None], 3, 1)}
    table = aj.Table([names[i] for i in order], range(3), {"evaluation": values["evaluation"][order]})
    figure = sweep.draw_settings(table, "evaluation")
    x, y = (
        [label.get_text() for label in labels]
        for labels in (figure.axes[0].get_xticklabels(), figure.axes[0].get_yticklabels())
    )
    cells = {(y[round(t.get_position()[1])], x[round(t.get_position()[0])]): t.get_text() for t in figure.axes[0].texts}
    assert {pair: text.split()[0] for pair, text in cells.items()} == {
        ("0.1", "0"): "0", ("0.1", "4"): "1", ("0.2", "0"): "2", ("0.2", "4"): "3",
    }  # fmt: skip


def test_a_grid_with_a_hole_and_a_double_is_no_heat_map() -> None:
    names = [{"rate": rate, "delay": delay} for rate, delay in ((0.1, 0), (0.1, 4), (0.2, 0), (0.1, 0))]
    table = aj.Table(names, range(3), {"evaluation": np.zeros((4, 3))})
    assert len(sweep.draw_settings(table, "evaluation").axes) == 2  # a panel for each name


def test_what_a_program_could_not_check_is_checked_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gae_lambda=2.*between 0 and 1"):
        sweep.main(["a3c", *TINY, "--grid", "gae_lambda=0.95,2", "--directory", str(tmp_path / "sweep")])
    with pytest.raises(ValueError, match=r"entropy_cost=-0\..*at least 0"):
        sweep.main(["a3c", *TINY, "--random", "entropy_cost=-1..0", "--directory", str(tmp_path / "sweep")])
    assert not list(tmp_path.iterdir())


def test_curves_fit_the_shortest_run() -> None:
    env = aj.make_env("Catch-bsuite")
    args = {"total_steps": 4000, "num_envs": 16, "unroll_length": 5, "group_size": 1}
    assert sweep.shortest(env, args, {}) == 50
    assert sweep.shortest(env, args, {"unroll_length": [5, 100], "learning_rate": [0.1]}) == 3
    assert sweep.shortest(env, args, {"unroll_length": spaces.Range(5, 10, False), "group_size": [1, 2]}) == 13


@pytest.mark.parametrize("words", [["--resume", "nowhere"], ["--resume=nowhere"]])
def test_a_mistake_on_the_command_line_is_a_sentence_and_an_exit_code(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(lambda: sweep.main(words), lambda error: "") == 2
    error = capsys.readouterr().err
    assert "--resume nowhere: there is no sweep" in error
    assert "Traceback" not in error
