"""Notebooks: each runs from top to bottom under the strictest settings, and is saved as it ran."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("quick_compilation")

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def run(source: str, namespace: dict[str, Any]) -> Any:
    """Runs a cell; returns the value of its last line, as a notebook shows it."""
    body = ast.parse(source).body
    last = body[-1]
    if not isinstance(last, ast.Expr):
        return exec(compile(source, "cell", "exec"), namespace)
    exec(compile(ast.Module(body[:-1], []), "cell", "exec"), namespace)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)


@each
def test_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells(path):
        source = "".join(cell["source"])
        if path.stem == "6_a_sweep_with_pictures":  # 64 runs
            source = source.replace("600", "60")
        value = run(source, namespace)
        pictures = [output for output in cell["outputs"] if "image/png" in output.get("data", {})]
        assert len(pictures) == hasattr(value, "_repr_png_"), "each picture is shown once"
        if pictures:
            value._repr_png_()


@each
def test_is_saved_with_its_outputs(path: Path):
    saved = cells(path)
    assert [cell["execution_count"] for cell in saved] == list(range(1, len(saved) + 1))
    outputs = [output for cell in saved for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert {output["name"] for output in outputs if output["output_type"] == "stream"} <= {"stdout"}, "no warnings"
    assert not re.search(r"/(home|root|tmp|usr|work|Users)/", path.read_text()), "no path of one machine"


def test_the_index_lists_all_and_they_are_small():
    listed = re.findall(r"\]\(([^)]*\.ipynb)\)", (FOLDER / "README.md").read_text())
    assert listed == [path.name for path in NOTEBOOKS]
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 1_500_000
