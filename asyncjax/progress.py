"""Live progress of a run, and stopping it by Ctrl-C or SIGTERM at a moment when nothing is lost."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any

from asyncjax.runs import Row


def live(console: Any) -> bool:
    """Whether a rich console can draw a bar over itself; a file can not, though FORCE_COLOR makes it colorful."""
    return console.is_interactive and console.file.isatty()


def time_left() -> Any:
    """A column of rich's progress bar: when it will end, until it has."""
    from rich import progress
    from rich.text import Text

    class TimeLeft(progress.TimeRemainingColumn):
        def render(self, task: Any) -> Any:
            return Text("") if task.finished else Text("eta ").append_text(super().render(task))

    return TimeLeft(compact=True)


class Progress:
    """Shows the rows that a `Recorder` writes. A context manager.

    Args:
      total: env steps (or updates) at the end.
      done: those done already.
      seconds_between_lines: where there is no terminal, a line at most so often.
    """

    def __init__(self, total: int, done: int = 0, seconds_between_lines: float = 5.0) -> None:
        from rich import progress
        from rich.console import Console

        self.console = Console()
        self.live = live(self.console)
        self.total, self.between = total, seconds_between_lines
        self.last_return: float | None = None
        self.begun: tuple[float, int] | None = None
        self.started = self.printed = time.perf_counter()
        # On a narrow terminal there is room for the numbers alone; rich would cut all of them.
        self.wide = self.console.width >= 110
        self.bar = progress.Progress(
            *([progress.TextColumn("{task.description}"), progress.BarColumn(bar_width=None)] if self.wide else []),
            progress.TaskProgressColumn(),
            progress.TextColumn("{task.fields[text]}"),
            progress.TimeElapsedColumn(),
            time_left(),
            console=self.console,
            disable=not self.live,
        )
        self.task = self.bar.add_task("compiling", total=total, completed=done, text="" if self.wide else "compiling")

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.stop()

    def __call__(self, row: Row) -> None:
        """Shows one row."""
        done, unit = row.get("env_steps", row["update"]), _unit(row)
        if row.get("return") is not None:
            self.last_return = row["return"]
        elif "return" in row:
            row = {**row, "return": self.last_return}  # no episode ended: what the last ones gave
        self.bar.update(self.task, completed=done, description="training", text=describe(row, self.wide))
        now = time.perf_counter()
        if self.begun is None:
            print(f"first updates after {now - self.started:.1f} s, compiling included", flush=True)
            self.begun = (now, done)  # the speed from here on tells when the run will end
            self.printed = now
        last = done >= self.total
        if not self.live and (last or now - self.printed >= self.between):
            self.printed = now
            print(
                f"{100 * done / self.total:3.0f} %  {done:,} {unit}  {describe(row)}{self._eta(now, done)}", flush=True
            )

    def _eta(self, now: float, done: int) -> str:
        began, first = self.begun or (now, done)
        known = first < done < self.total
        return f"  eta {(self.total - done) * (now - began) / (done - first):.0f} s" if known else ""


def describe(row: Row, whole: bool = True) -> str:
    """A row in a few words, or without staleness in fewer."""
    speed = row.get("steps_per_second", row["updates_per_second"])
    value = row.get("return")
    parts = [] if "return" not in row else [f"return {'-' if value is None else format(value, '.1f')}"]
    parts.append(f"{speed:,.0f} {_unit(row)}/s")
    if whole:
        parts.append(f"staleness {row['staleness']:.1f} (max {row['staleness_max']:.0f})")
    return "  ".join(parts)


def _unit(row: Row) -> str:
    return "steps" if "env_steps" in row else "updates"


class Terminated(KeyboardInterrupt):
    """SIGTERM came, which SLURM, Kubernetes and `timeout` send before they kill: Ctrl-C with another exit code."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """In this context SIGTERM raises `Terminated`, as Ctrl-C raises KeyboardInterrupt; repeated, it does nothing."""

    def terminate(*_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # `timeout` sends a second one to the group
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Interruptible:
    """A context in which Ctrl-C and SIGTERM wait until `check` is called; a second Ctrl-C does not wait.

    So a run stops between two chunks, when everything up to there is recorded. Once it is stopping, or `running` was
    left, what is still written is not interrupted: who asked meanwhile has the KeyboardInterrupt when all is written.
    """

    def __init__(self) -> None:
        self.asked: type[KeyboardInterrupt] | None = None
        self.writing = False

    def __enter__(self) -> Interruptible:
        self.before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: Any = None, error: BaseException | None = None, traceback: Any = None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.asked is not None and error is None:
            raise self.asked

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """A context within this one: what runs. After it only the rest is written."""
        try:
            yield
        finally:
            self.writing = True

    def check(self) -> None:
        """Raises KeyboardInterrupt or `Terminated` if it was asked for."""
        signal.signal(signal.SIGTERM, self._ask)  # Ray, which begins after this, has taken it
        if self.asked is not None and not self.writing:
            self._stop(self.asked)

    def _stop(self, asked: type[KeyboardInterrupt]) -> None:
        self.writing = True
        raise asked

    def _ask(self, number: int, _: Any) -> None:
        if self.writing:
            print("\nWriting the rest; then this stops.", flush=True)
        elif self.asked is None:
            at_once = "Ctrl-C again stops at once" if number == signal.SIGINT else "Ctrl-C stops at once"
            print(f"\nStopping at the end of this chunk; {at_once}.", flush=True)
        elif number == signal.SIGINT:
            self._stop(KeyboardInterrupt)
        self.asked = self.asked or (Terminated if number == signal.SIGTERM else KeyboardInterrupt)
