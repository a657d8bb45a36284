"""Who may begin, and what a message does when it arrives: the waiting rules, as data.

The virtual clock and the thread engine drive the same `Coordinator`, so a rule means the same in both.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from asyncjax.checks import check_whole

Wait = Literal["never", "next_version"]


class Discipline(NamedTuple):
    """Group size and waiting rule.

    Attributes:
      group_size: G, the messages that one update consumes.
      wait: "never": a worker begins its next job as soon as it has handed in its message;
        "next_version": it waits for a version newer than the one it read last. Messages that come
        too late for their version are then dropped, and the worker's state is rolled back to
        before the dropped job: a schedule tells all that happened. With G = W this is the barrier.
      bound: s of stale-synchronous parallel (Ho et al. 2013): no worker is ever more than s
        messages ahead of the slowest one. None: no bound.
    """

    group_size: int = 1
    wait: Wait = "never"
    bound: int | None = None

    def check(self, num_workers: int) -> Discipline:
        """Raises ValueError where no run could follow this discipline."""
        check_whole(num_workers=num_workers, group_size=self.group_size, bound=self.bound)
        if num_workers < 1:
            raise ValueError(f"num_workers={num_workers}: at least one worker is needed.")
        if self.group_size < 1:
            raise ValueError(f"group_size={self.group_size}: an update consumes at least one message.")
        if self.wait not in get_args(Wait):
            raise ValueError(f"wait={self.wait!r}: choose one of {', '.join(map(repr, get_args(Wait)))}.")
        if self.wait == "next_version" and self.group_size > num_workers:
            raise ValueError(
                f"group_size={self.group_size} with wait='next_version' needs as many workers, but num_workers is"
                f" {num_workers}: every worker hands in one message per version. Use a smaller group or wait='never'."
            )
        if self.bound is not None and self.bound < 1:
            raise ValueError(
                f"bound={self.bound}: the first worker to finish is 1 ahead, so the bound is at least 1;"
                " bound=1 runs in rounds, and barrier (group_size=num_workers, wait='next_version') in lockstep."
            )
        if self.bound is not None and self.wait == "next_version":
            raise ValueError("bound and wait='next_version' exclude each other: the barrier already bounds the gap.")
        return self


class Coordinator:
    """The bookkeeping of one run under a discipline. Not thread-safe: the thread engine holds its lock."""

    def __init__(self, discipline: Discipline, num_workers: int, version: int = 0) -> None:
        self.discipline = discipline.check(num_workers)
        self.version = version
        self.read = [-1] * num_workers  # the version each worker read last
        self.clock = [0] * num_workers  # messages each worker has handed in
        self.slowest = 0

    def may_begin(self, worker: int) -> bool:
        """Whether the worker may read now. Once true it stays true until the worker begins."""
        if self.discipline.wait == "next_version":
            return self.version > self.read[worker]
        return self.discipline.bound is None or self.clock[worker] + 1 - self.slowest <= self.discipline.bound

    def is_late(self, worker: int, version: int) -> bool:
        """Whether the message of this worker has to be dropped: all messages of this version are there already."""
        return self.discipline.wait == "next_version" and self.read[worker] < version

    def handed_in(self, worker: int) -> None:
        """Counts a message that was accepted."""
        self.clock[worker] += 1
        if self.discipline.bound is not None and self.clock[worker] - 1 == self.slowest:
            self.slowest = min(self.clock)
