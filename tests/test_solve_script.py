"""The solving script: what it writes, and that a run that was stopped continues where it was."""

import json

import numpy as np
import pytest

import asyncjax as aj
import solve


def test_a_stopped_run_continues_to_the_same_answer(tmp_path):
    arguments = {"mdp": "grid", "size": 6, "method": "jacobi", "tolerance": 1e-8, "directory": tmp_path}
    solve.main(solve.Arguments(**arguments, max_seconds=0.0))
    stopped = json.loads((tmp_path / "summary.json").read_text())
    assert not stopped["converged"]
    solve.main(solve.Arguments(resume=tmp_path))
    summary, solution = json.loads((tmp_path / "summary.json").read_text()), np.load(tmp_path / "solution.npz")
    exact = aj.mdp.exact_values(aj.mdp.grid_world((6, 6)), 0.99)
    assert summary["converged"]
    assert np.abs(solution["values"] - exact).max() <= summary["bound"] <= 1e-8
    whole = aj.solve(aj.mdp.grid_world((6, 6)), 0.99, method="jacobi", tolerance=1e-8)
    assert stopped["sweeps"] + summary["sweeps"] == whole.sweeps  # nothing is done twice
    assert (tmp_path / "values.png").stat().st_size > 5000


def test_a_directory_without_a_run(tmp_path):
    with pytest.raises(SystemExit, match="holds no arguments"):
        solve.main(solve.Arguments(resume=tmp_path))
