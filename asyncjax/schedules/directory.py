"""The schedule in a run directory: it grows by parts, and becomes one file when the run ends.

    schedule.npz      the whole schedule; of a run that was continued, the schedule up to there
    schedule/0.npz    what came after it, in parts named by their first update; gone when the run has ended

So a checkpoint writes what is new, however long the run is, and no schedule is kept in memory for it. Every file is
replaced as a whole, and what a part repeats is left out on reading: a process can be killed at any moment.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from asyncjax import schedules
from asyncjax.schedules import Schedule


def load(path: Path) -> Schedule | None:
    """The schedule in a run directory, however the run stopped; None where there is none yet.

    Raises:
      ValueError: a part is missing between others, which no kill of a run leaves.
    """
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):  # the run ended between listing and reading: list again
            return _load(path)
    return _load(path)


def _load(path: Path) -> Schedule | None:
    parts, length = list[Schedule](), 0
    for first, file in _files(path):
        part = schedules.load(file)
        if first > length:
            raise ValueError(
                f"{file} begins at update {first}, but what is before it ends at {length}: bring the missing part back"
                " from a copy, or move this one away to go on from there."
            )
        if first <= length < first + part.num_updates:
            parts.append(schedules.cut(part, length - first, part.num_updates))
            length = first + part.num_updates
    return schedules.concatenate(parts) if parts else None


class ScheduleParts:
    """The schedule of a run that goes on.

    Args:
      path: the run directory.
      num_updates: go on after so many updates; what is recorded there of later ones is removed.
    """

    def __init__(self, path: Path, num_updates: int = 0) -> None:
        self.path, self.num_updates, self.end = path, num_updates, num_updates  # `end`: with what is not written yet
        self.pending: list[Schedule] = []
        for first, file in reversed(_files(path)):  # the last ones go first, so that what is left has no gap
            if first >= num_updates:
                file.unlink()
            elif first + (part := schedules.load(file)).num_updates > num_updates:
                schedules.save(schedules.cut(part, 0, num_updates - first), file)

    def append(self, part: Schedule) -> None:
        """Takes the next updates, for `write`."""
        count = part.num_updates
        self.pending += [part]  # without a call between the two, where Python would let a Ctrl-C in
        self.end += count

    def write(self) -> None:
        """Writes what was appended since the last time."""
        if self.pending:
            part = schedules.concatenate(self.pending)
            (self.path / "schedule").mkdir(exist_ok=True)
            schedules.save(part, self.path / "schedule" / f"{self.num_updates}.npz")
            self.pending = []
            self.num_updates = self.end

    def finish(self) -> Schedule | None:
        """Writes the rest and makes one file of all; returns the whole schedule, or None where there is none."""
        self.write()
        whole, files, file = load(self.path), _files(self.path), self.path / "schedule.npz"
        if whole is not None:
            os.replace(files[0][1], file) if len(files) == 1 else schedules.save(whole, file)
            shutil.rmtree(self.path / "schedule", ignore_errors=True)  # what is left of it repeats that file
        return whole


def _files(path: Path) -> list[tuple[int, Path]]:
    """(first update, file): the one file, then the parts in their order."""
    parts = sorted((int(file.stem), file) for file in (path / "schedule").glob("*.npz") if file.stem.isdigit())
    whole = [(0, file) for file in [path / "schedule.npz"] if file.exists()]  # looked for last: parts become it
    return whole + parts
