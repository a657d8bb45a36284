"""The solving script: what it writes, and that a run that was stopped continues where it was."""

import json
from pathlib import Path

import numpy as np
import pytest

import asyncjax as aj
import solve
from train import exit_code


def test_a_stopped_run_continues_to_the_same_answer(tmp_path):
    words = "--mdp grid --size 6 --method jacobi --tolerance 1e-8 --max-seconds 0 --directory"
    solve.main([*words.split(), str(tmp_path)])
    stopped = json.loads((tmp_path / "summary.json").read_text())
    assert not stopped["converged"]
    solve.main(["--resume", str(tmp_path)])
    summary, solution = json.loads((tmp_path / "summary.json").read_text()), np.load(tmp_path / "solution.npz")
    exact = aj.mdp.exact_values(aj.mdp.grid_world((6, 6)), 0.99)
    assert summary["converged"]
    assert np.abs(solution["values"] - exact).max() <= summary["bound"] <= 1e-8
    whole = aj.solve(aj.mdp.grid_world((6, 6)), 0.99, method="jacobi", tolerance=1e-8)
    assert stopped["sweeps"] + summary["sweeps"] == whole.sweeps  # nothing is done twice
    assert (tmp_path / "values.png").stat().st_size > 5000


def test_a_directory_without_a_run(tmp_path):
    with pytest.raises(ValueError, match="there is no arguments"):
        solve.main(["--resume", str(tmp_path)])


def test_another_problem_has_another_directory_or_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in ("", "--size 4", "--tolerance 1e-3", "--certifies policy", "--size 4 --tolerance 1e-3"):
        solve.main(["--mdp", "forest", *words.split()])
    found = {path.name: path / "solution.npz" for path in Path("runs").iterdir()}
    assert len(found) == 5
    assert "solve-forest-4-0.99-modified_policy_iteration-0.001" in found
    one = "runs/solve-forest-0.99-modified_policy_iteration"
    before = Path(one, "solution.npz").read_bytes()
    with pytest.raises(ValueError, match="size is 0 there and 4 here"):
        solve.main(["--mdp", "forest", "--size", "4", "--directory", one])
    solve.main(["--mdp", "forest", "--max-seconds", "9"])  # the same problem
    assert Path(one, "solution.npz").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--size -3", "size=-3: use at least 0"),
        ("--mdp frozen_lak", "--mdp frozen_lak: no such file, and no such problem. Did you mean frozen_lake_8x8"),
        ("--discount 1.5", "discount=1.5"),
        ("--method gauss_seidel --backend jax", "use backend='host'"),
        ("--mdp sutton_barto --size 70", "--size 70: sutton_barto has one size only"),
    ],
)
def test_what_can_not_be_solved_leaves_nothing_behind(tmp_path, monkeypatch, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    assert exit_code(lambda: solve.main(words.split()), lambda error: "") == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_continued_run_takes_its_problem_from_its_directory_alone(tmp_path, capsys):
    solve.main(["--mdp", "forest", "--directory", str(tmp_path)])
    with pytest.raises(SystemExit):
        solve.main(["--resume", str(tmp_path), "--size", "3"])
    assert "--size" in capsys.readouterr().err
