"""Live progress of a sweep: how many runs are done, when it will end, and how long compiling took."""

from __future__ import annotations

import threading
import time
from typing import Any

from asyncjax.compile_clock import CompileClock
from asyncjax.progress import live, time_left


class BatchProgress:
    """Shows how a sweep goes on, if it takes long enough for anybody to wonder. A context manager.

    Args:
      total: runs.
      done: those done already.
      shown: False shows nothing.
      patience: seconds before anything is shown.
      between: where there is no terminal, a line at most every so many seconds.

    Attributes:
      programs: how many programs have begun, each of which is compiled then, and of how many.
    """

    def __init__(
        self, total: int, done: int = 0, shown: bool = True, patience: float = 2.0, between: float = 5.0
    ) -> None:
        from rich import progress
        from rich.console import Console

        self.console = Console()
        self.live = live(self.console)
        self.programs: tuple[int, int] = (1, 1)
        self.total, self.done, self.before, self.between = total, done, done, between
        self.bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=None),
            progress.MofNCompleteColumn(),
            progress.TextColumn("runs"),
            progress.TimeElapsedColumn(),
            time_left(),
            console=self.console,
            disable=not self.live,
        )
        self.task = self.bar.add_task("compiling", total=total, completed=done)
        self.timer = threading.Timer(patience, self._show) if shown else None
        self.visible = False

    def __enter__(self) -> BatchProgress:
        self.started = self.printed = time.perf_counter()
        self.clock = CompileClock()
        if self.timer is not None:
            self.timer.daemon = True
            self.timer.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.bar.stop()
        self.clock.close()
        if self.visible:
            seconds = time.perf_counter() - self.started
            runs = self.done - self.before
            self.console.print(f"{runs} runs in {seconds:.1f} s, of which {self.clock.seconds:.1f} s compiling")

    def advance(self, runs: int) -> None:
        """So many more runs are done."""
        self.done += runs
        self.bar.update(self.task, completed=self.done, description="running")
        now = time.perf_counter()
        if self.visible and not self.live and now - self.printed >= self.between:
            self.printed = now
            eta = f", eta {self.seconds_left(now):.0f} s" if self.done < self.total else ""
            print(f"{self.done} of {self.total} runs after {now - self.started:.0f} s{eta}", flush=True)

    def seconds_left(self, now: float) -> float:
        """For the runs that are left, at the pace of those that are done, and for compiling their programs."""
        (begun, programs), compiling = self.programs, self.clock.seconds
        running = now - self.started - compiling
        left = (self.total - self.done) * running / (self.done - self.before)
        return left + (programs - begun) * compiling / begun

    def _show(self) -> None:
        self.visible = True
        if self.live:
            self.bar.start()
        else:
            print(f"{self.total - self.done} runs: compiling ...", flush=True)
