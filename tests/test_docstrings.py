"""The examples of the docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib.util
import pkgutil
from pathlib import Path

import jax
import pytest

import asyncjax

pytestmark = pytest.mark.usefixtures("quick_compilation")


def has_examples(module: str) -> bool:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return ">>> " in Path(spec.origin).read_text(encoding="utf-8")


NAMES = [module.name for module in pkgutil.walk_packages(asyncjax.__path__, "asyncjax.")]


@pytest.mark.parametrize("name", [name for name in NAMES if has_examples(name)])
def test_examples_print_what_they_say(name: str) -> None:
    module = pytest.importorskip(name)  # an adapter may need a package that is not here
    finder, runner = doctest.DocTestFinder(exclude_empty=True), doctest.DocTestRunner()
    report: list[str] = []
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as users have them
        for example in finder.find(module):
            runner.run(example, out=report.append)
    assert runner.failures == 0, "".join(report)
    if not runner.tries:
        pytest.skip("each example needs a cluster or an earlier run")
