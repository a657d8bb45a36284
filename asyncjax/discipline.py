"""Who may begin, and what a message does when it arrives: the waiting rules, as data.

The virtual clock and the thread engine drive the same `Coordinator`, so a rule means the same in both.
"""

from __future__ import annotations

from typing import Generic, Literal, NamedTuple, TypeVar, get_args

from asyncjax.checks import check_choice, check_least, check_static, given, whole

Wait = Literal["never", "next_version"]
T = TypeVar("T")


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
      eta: no message is ever staler than this (AReaL, Fu et al. 2025): a job may begin only while fewer than
        (eta + version + 1) G have begun, and messages are consumed in the order in which their jobs began, whichever is
        ready first. Meanwhile a worker whose message is ready goes on. None: whatever comes first is consumed first.
    """

    group_size: int = 1
    wait: Wait = "never"
    bound: int | None = None
    eta: int | None = None

    def check(self, num_workers: int) -> Discipline:
        """Raises ValueError where no run could follow this discipline."""
        check_static(num_workers=num_workers, group_size=self.group_size)
        check_least(1, "at least one worker is needed", num_workers=num_workers)
        check_least(1, "an update consumes at least one message", group_size=self.group_size)
        check_least(
            1,
            "the first worker to finish is 1 ahead, so the bound is at least 1; bound=1 runs in rounds, and barrier"
            " (group_size=num_workers, wait='next_version') in lockstep",
            **given(bound=self.bound),
        )
        check_least(0, "staleness is at least 0; with eta=0 every message is fresh", **given(eta=self.eta))
        check_choice(get_args(Wait), wait=self.wait)
        if self.wait == "next_version" and self.group_size > num_workers:
            raise ValueError(
                f"group_size={self.group_size} with wait='next_version' needs as many workers, but num_workers is"
                f" {num_workers}: every worker hands in one message per version. Use a smaller group or wait='never'."
            )
        if self.bound is not None and self.wait == "next_version":
            raise ValueError("bound and wait='next_version' exclude each other: the barrier already bounds the gap.")
        if self.eta is not None and (self.bound is not None or self.wait == "next_version"):
            other = "wait='next_version'" if self.bound is None else "bound"
            raise ValueError(f"eta and {other} exclude each other: choose one rule for who has to wait.")
        group_size, bound, eta = whole(self.group_size, self.bound, self.eta)
        return self._replace(group_size=group_size, bound=bound, eta=eta)

    @property
    def may_wait(self) -> bool:
        """Whether there is anything that a worker may have to wait for before it begins."""
        return self.wait != "never" or self.bound is not None or self.eta is not None


class Coordinator:
    """The bookkeeping of one run under a discipline. Not thread-safe: the thread engine holds its lock."""

    def __init__(self, discipline: Discipline, num_workers: int, version: int = 0) -> None:
        self.discipline = discipline.check(num_workers)
        self.version = version
        self.read = [-1] * num_workers  # the version each worker read last
        self.clock = [0] * num_workers  # messages each worker has handed in
        self.slowest = 0
        self.count = version * self.discipline.group_size  # places that were given to messages
        self.place: list[int | None] = [None] * num_workers  # under eta, of the job that the worker is at

    def may_begin(self, worker: int) -> bool:
        """Whether the worker may read now. But for `eta`, where others may be quicker, it stays true until it does."""
        group_size, wait, bound, eta = self.discipline
        if wait == "next_version":
            return self.version > self.read[worker]
        if eta is not None:  # a job that was lost is done again in its old place
            return self.place[worker] is not None or self.count < (eta + self.version + 1) * group_size
        return bound is None or self.clock[worker] + 1 - self.slowest <= bound

    def admit(self, worker: int) -> bool:
        """Lets the worker begin if it may: under `eta` its message has its place from now on."""
        if not self.may_begin(worker):
            return False
        if self.discipline.eta is not None and self.place[worker] is None:
            self.place[worker] = self._next_place()
        return True

    def is_late(self, worker: int, version: int) -> bool:
        """Whether the message of this worker has to be dropped: all messages of this version are there already."""
        return self.discipline.wait == "next_version" and self.read[worker] < version

    def handed_in(self, worker: int) -> int:
        """Counts a message that was accepted; returns its place in the order in which all are consumed."""
        self.clock[worker] += 1
        if self.discipline.bound is not None and self.clock[worker] - 1 == self.slowest:
            self.slowest = min(self.clock)
        place, self.place[worker] = self.place[worker], None
        return self._next_place() if place is None else place

    def _next_place(self) -> int:
        self.count += 1
        return self.count - 1


class Groups(Generic[T]):
    """Messages by their places, in groups: a group comes out when all its messages are there, and all before them.

    Args:
      first: the first place.
      size: G.
    """

    def __init__(self, first: int, size: int) -> None:
        self.next, self.size = first, size
        self.early: dict[int, T] = {}
        self.group: list[T] = []

    def add(self, place: int, message: T) -> list[list[T]]:
        """Takes a message; returns the groups that it completes."""
        self.early[place] = message
        complete = []
        while self.next in self.early:
            self.group.append(self.early.pop(self.next))
            self.next += 1
            if len(self.group) == self.size:
                complete.append(self.group)
                self.group = []
        return complete
