"""The event loop that makes a schedule from service times."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Callable, Sequence

from asyncjax.discipline import Coordinator, Groups


class VirtualClock:
    """An event loop over the workers' finishing times, and a serial server of commits."""

    def __init__(
        self,
        coordinator: Coordinator,
        service: Sequence[Callable[[], float]],
        commit: Callable[[], float],
        restart: Sequence[Callable[[], float]],
    ) -> None:
        self.coordinator = coordinator
        self.service = service
        self.commit = commit
        self.restart = restart
        self.events: list[tuple[float, int, int, bool]] = []  # (time, order, worker, whether it ends a job or begins)
        self.began = [0.0] * len(service)
        self.num_events = 0

    def add(self, time: float, worker: int, ends: bool) -> None:
        """What happens next to a worker."""
        heapq.heappush(self.events, (time, self.num_events, worker, ends))
        self.num_events += 1

    def begin(self, worker: int, now: float, version: int) -> None:
        """The worker reads this version, the newest, and starts a job."""
        self.coordinator.read[worker] = version
        self.began[worker] = now
        self.add(now + self.service[worker](), worker, ends=True)

    def resume(self, worker: int, now: float) -> None:
        """The worker may begin: at once, or when it has got round to it."""
        delay = self.restart[worker]()
        if delay == 0:
            self.begin(worker, now, self.coordinator.version)
        else:
            self.add(now + delay, worker, ends=False)

    def run(self, num_updates: int) -> tuple[list[int], list[int], list[float], list[float], list[float]]:
        """Flat lists over the T G messages: worker, read, begin, end; and the T commit times."""
        rule, num_workers = self.coordinator, len(self.service)
        sort = rule.discipline.wait == "next_version"
        workers, reads, begins, ends, times = [], [], [], [], []
        groups = Groups[tuple[int, int, float, float]](0, rule.discipline.group_size)
        waiting: list[int] = []
        now = 0.0
        for worker in range(num_workers):
            if rule.admit(worker):
                self.begin(worker, now, 0)
            else:
                waiting.append(worker)
        while rule.version < num_updates:
            end, _, worker, ends_job = heapq.heappop(self.events)
            if not ends_job:
                self.begin(worker, end, bisect.bisect_right(times, end))  # not what a commit under way will make
                continue
            now = max(now, end)  # what was ready before its end comes next anyway
            complete = []
            if not rule.is_late(worker, rule.version):
                message = worker, rule.read[worker], self.began[worker], end
                complete = groups.add(rule.handed_in(worker), message)[: num_updates - rule.version]
            for group in complete:
                now += self.commit()
                # Under a barrier a group is a set: in the workers' order it is the same however they arrived.
                for w, r, b, e in sorted(group) if sort else group:
                    workers.append(w)
                    reads.append(r)
                    begins.append(b)
                    ends.append(e)
                times.append(now)
                rule.version += 1
            if not waiting and rule.admit(worker):  # the common case, kept quick
                self.resume(worker, now)
                continue
            waiting.append(worker)
            for admitted in [w for w in waiting if rule.admit(w)]:
                waiting.remove(admitted)
                self.resume(admitted, now)
        return workers, reads, begins, ends, times
