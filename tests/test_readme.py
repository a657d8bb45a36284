"""What the README shows runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_code_runs(block):
    # A sweep takes a while.
    small = block.replace("seeds=10", "seeds=1").replace("fixed_delay(1000,", "fixed_delay(10,")
    exec(compile(small, "README.md", "exec"), {"__name__": "readme"})


def test_there_is_code():
    assert len(BLOCKS) == 3
    assert sum(bool(line.strip()) for line in BLOCKS[0].splitlines()) <= 20


def test_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_two_commands_stand_alone_on_a_line():
    """`.ci/run` takes the test command from here."""
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    assert commands[1].endswith("/pytest")
