"""Laws of a schedule on disk: what was appended is what is read, whenever the process was killed or continued."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from unittest import mock

import hypothesis.strategies as st
import jax
import pytest
from hypothesis import given, settings

from asyncjax import schedules, service
from asyncjax.schedules import directory
from asyncjax.schedules.directory import ScheduleParts
from tests.laws import assert_equal

WHOLE = schedules.from_service_times(service.exponential(1.0), 200, 4, jax.random.key(0), group_size=2)
TORN = WHOLE._replace(read={"w": WHOLE.read, "b": WHOLE.read // 2})

# A session: the part of the recorded updates it continues after, its chunks, after which of them it writes, its end.
CHUNKS = st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=4)
SESSIONS = st.lists(st.tuples(st.floats(0, 1), CHUNKS, st.sampled_from(["end", "kill", "kill at the end"])), max_size=4)


@settings(max_examples=30, deadline=None)
@given(sessions=SESSIONS, torn=st.booleans())
def test_what_was_written_is_read_after_any_sessions(sessions: list, torn: bool) -> None:
    source, recorded = TORN if torn else WHOLE, 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        for kept, chunks, end in sessions:
            recorded = update = int(kept * recorded)
            parts = ScheduleParts(path, recorded)
            for size, write in chunks:
                parts.append(schedules.cut(source, update, update + size))
                update += size
                if write:
                    parts.write()
                    recorded = update
            if end != "kill":
                recorded = update
                with mock.patch.object(shutil, "rmtree") if end == "kill at the end" else mock.MagicMock():
                    assert_equal(parts.finish(), expected(source, recorded))
            if end == "end":
                assert sorted(file.name for file in path.iterdir()) == ["schedule.npz"] * (recorded > 0)
            assert_equal(directory.load(path), expected(source, recorded))


def expected(source: schedules.Schedule, num_updates: int) -> schedules.Schedule | None:
    return schedules.cut(source, 0, num_updates) if num_updates else None


def test_a_checkpoint_writes_what_is_new_and_nothing_stays_in_memory(tmp_path: Path) -> None:
    parts = ScheduleParts(tmp_path)
    for start in range(0, 200, 50):
        parts.append(schedules.cut(WHOLE, start, start + 50))
        parts.write()
        assert parts.pending == []
        assert schedules.load(tmp_path / "schedule" / f"{start}.npz").num_updates == 50


def test_a_failed_write_is_made_up_for_by_the_next(tmp_path: Path) -> None:
    parts = ScheduleParts(tmp_path)
    parts.append(schedules.cut(WHOLE, 0, 10))
    with mock.patch.object(schedules, "save", side_effect=OSError(28, "full")), pytest.raises(OSError, match="full"):
        parts.write()
    assert directory.load(tmp_path) is None
    assert_equal(parts.finish(), schedules.cut(WHOLE, 0, 10))


@pytest.mark.parametrize("count", [1, 3])
def test_a_run_may_end_while_it_is_read(tmp_path: Path, count: int) -> None:
    """Its parts have become one file by the time they are opened."""
    parts = ScheduleParts(tmp_path)
    for i in range(count):
        parts.append(schedules.cut(WHOLE, 10 * i, 10 * i + 10))
        parts.write()
    load, ended = schedules.load, list[Path]()

    def ending(file: Path) -> schedules.Schedule:
        if not ended:
            ended.append(file)
            with mock.patch.object(schedules, "load", load):
                parts.finish()
        return load(file)

    with mock.patch.object(schedules, "load", ending):
        assert_equal(directory.load(tmp_path), schedules.cut(WHOLE, 0, 10 * count))
    assert ended
