"""The person in front of a run: live progress, and Ctrl-C at a moment when it does no harm."""

from __future__ import annotations

import signal
import time
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


class Interruptible:
    """A context in which Ctrl-C waits until `check` is called; a second Ctrl-C does not wait.

    So a run stops between two chunks, when everything up to there is recorded.
    """

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interruptible:
        self.before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, self.before)

    def check(self) -> None:
        """Raises KeyboardInterrupt if it was asked for."""
        if self.asked:
            self.asked = False
            raise KeyboardInterrupt

    def _ask(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nStopping at the end of this chunk; Ctrl-C again stops at once.", flush=True)
