"""The engine's callback that writes a run directory while a run goes on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from asyncjax import files, timeline
from asyncjax.checkpoints import Checkpoints
from asyncjax.compile_clock import CompileClock
from asyncjax.engines.common import deliver_after
from asyncjax.files import PathLike
from asyncjax.method import Chunk, State
from asyncjax.runs import Row, check_config, create, read_rows, versions
from asyncjax.schedules.directory import ScheduleParts


class Recorder:
    """An engine's callback that writes a run directory. Use it as a context manager around the engine's call.

    Leaving it writes what is left: a checkpoint, the schedule and the timeline, whether the run ended,
    failed or was interrupted; after non-finite numbers the checkpoint is the last good state.

    Args:
      path: the run directory: new or empty, or that of a run to continue.
      config: the arguments, JSON types. To continue, they must equal the recorded ones except for `may_differ`.
      resume: continue the run in this directory; otherwise the directory must be new or empty.
      state: where it continues from, `runs.load(path).restore(method)`; what was recorded after it is dropped.
        None, where there was no checkpoint yet, begins again.
      steps_per_update: environment steps per update; None where there is no environment.
      checkpoint_every: seconds between checkpoints.
      may_differ: names in `config` that a continued run may change.
      on_row: called with every row of metrics, for a progress display.

    Raises:
      ValueError: the directory is in use or not writable, or the configuration is another one.
      TypeError: a configuration that JSON can not hold.

    Example:
      >>> import jax, optax, asyncjax as aj
      >>> method = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(0.1))
      >>> schedule, key = aj.schedules.round_robin(1000, num_workers=8), jax.random.key(0)
      >>> with aj.Recorder("runs/one", {"num_workers": 8}) as recorder:  # doctest: +SKIP
      ...     result = aj.emulate(method, schedule, key, callback=recorder, chunk_size=100)
    """

    def __init__(
        self,
        path: PathLike,
        config: Mapping[str, Any],
        *,
        resume: bool = False,
        state: State | None = None,
        steps_per_update: int | None = None,
        checkpoint_every: float = 60.0,
        may_differ: Iterable[str] = ("total_steps", "restarts"),
        on_row: Callable[[Row], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self.steps_per_update = steps_per_update
        self.checkpoint_every = checkpoint_every
        self.on_row = on_row
        self.state = state
        try:
            text = json.dumps(dict(config), indent=2)
        except TypeError as error:
            raise TypeError(f"config={config}: {error}. Give Python's own numbers, strings, lists and None.") from error
        if resume:
            check_config(self.path, config, may_differ)
            self._check_continued()
        elif state is not None and state.update:
            raise ValueError(
                f"state is that after update {state.update}, but {self.path} would begin at update 0: copy the run"
                " directory that the state comes from, and continue the copy with resume=True."
            )
        else:
            create(self.path)
        files.replace(self.path / "versions.json", json.dumps(versions(), indent=2))
        files.replace(self.path / "config.json", text)
        update = state.update if state else 0
        self.goes_on = resume  # until its first chunk
        rows = [row for row in read_rows(self.path) if row["update"] <= update]
        self.schedule = ScheduleParts(self.path, update)
        files.replace(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        self.checkpoints = Checkpoints(self.path / "checkpoints")
        self.compiling = CompileClock()
        self.seconds = rows[-1]["seconds"] if rows else 0.0
        self.compile_seconds = rows[-1]["compile_seconds"] if rows else 0.0
        self.last_running, self.last_seconds = self.seconds - self.compile_seconds, self.seconds
        self.started = self.last_saved = time.perf_counter()

    @property
    def update(self) -> int:
        """The updates recorded so far."""
        return self.schedule.end

    def __call__(self, chunk: Chunk) -> None:
        """Records a chunk; saves a checkpoint when one is due."""
        first, last = self.update, self.update + chunk.schedule.num_updates
        if chunk.state is not None and chunk.state.update != last:
            raise ValueError(
                f"A chunk of {chunk.schedule.num_updates} updates ends at update {chunk.state.update}, but {self.path}"
                f" has {first}: record every chunk of one run, and tell with state= what it continues from."
            )
        if self.goes_on:
            self.checkpoints.keep_until(first)  # later ones are of what this run goes on instead of
            self.goes_on = False
        self.schedule.append(chunk.schedule)  # before anything that may fail or be interrupted: parts leave no gap
        if chunk.state is not None:
            self.state = chunk.state
        row = self._row(chunk, first)
        with open(self.path / "metrics.jsonl", "a") as file:  # anew: no file stays open
            file.write(json.dumps(row, allow_nan=False) + "\n")
        if time.perf_counter() - self.last_saved >= self.checkpoint_every:
            self.save()
        if self.on_row is not None:
            self.on_row(row)

    def save(self) -> None:
        """Writes the schedule since the last time, then a checkpoint: a schedule may reach further than it."""
        self.schedule.write()
        if self.state is not None:
            self.checkpoints.save(self.state)
        self.last_saved = time.perf_counter()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: Any = None, error: BaseException | None = None, traceback: Any = None) -> None:
        if error is None:
            self._finish()
        else:
            deliver_after(error, self._finish, f"Writing the rest to {self.path}")

    def _finish(self) -> None:
        try:
            self.save()
            whole = self.schedule.finish()
            if whole is not None:
                files.replace(self.path / "timeline.json", json.dumps(timeline.chrome_trace(whole)))
        finally:
            self.compiling.close()
            self.checkpoints.close()

    def _check_continued(self) -> None:
        """Raises ValueError where a run would begin again in a directory that has a checkpoint to go on from."""
        if self.state is None and (saved := Checkpoints(self.path / "checkpoints").updates()):
            raise ValueError(
                f"{self.path} has a checkpoint of update {saved[-1]}, but state is None: give"
                " state=runs.load(path).restore(method), or begin again in another directory."
            )

    def _row(self, chunk: Chunk, first: int) -> Row:
        num_updates = chunk.schedule.num_updates
        seconds = self.seconds + time.perf_counter() - self.started
        compiled = self.compile_seconds + self.compiling.seconds
        row: Row = {"update": first + num_updates}
        if self.steps_per_update is not None:
            row["env_steps"] = row["update"] * self.steps_per_update
        row |= {"seconds": seconds, "compile_seconds": compiled}
        running = seconds - compiled  # speeds are of running: a run that goes on compiles anew
        took = running - self.last_running
        if took <= 0:  # what another thread compiled, since before this row began, ended in it
            took = max(seconds - self.last_seconds, 1e-9)
        self.last_running, self.last_seconds = running, seconds
        row["updates_per_second"] = num_updates / took
        if self.steps_per_update is not None:
            row["steps_per_second"] = num_updates * self.steps_per_update / took
        measured = summarize(chunk, first)
        _check_free(row, measured)
        return {name: _tidy(value) for name, value in (row | measured).items()}


def summarize(chunk: Chunk, first: int) -> Row:
    """The metrics of a chunk that begins at update `first`: episode means, staleness, the mean of everything else."""
    row: Row = {}
    sums = {name: _wide(name, value) for name, value in chunk.metrics.items()}
    if "episodes" in sums:
        episodes = float(sums.pop("episodes").sum())
        row["episodes"] = episodes
        for name in ("return", "length"):
            total = float(np.sum(sums.pop(f"{name}_sum", np.float64(np.nan))))
            row[name] = total / episodes if episodes else None
    # Versions are absolute, while `staleness()` counts the chunk's updates from 0.
    staleness = np.asarray(chunk.schedule.staleness()).ravel() + first
    worker = np.asarray(chunk.schedule.worker).ravel()
    count = np.bincount(worker)
    total = np.bincount(worker, weights=staleness)
    row["staleness"], row["staleness_max"] = float(staleness.mean()), float(staleness.max())
    row["staleness_per_worker"] = [float(t / c) if c else None for t, c in zip(total, count, strict=True)]
    _check_free(row.keys() - {"staleness"}, sums)  # which telemetry may measure itself
    return row | {name: float(value.mean()) if value.size else None for name, value in sums.items()}


def _wide(name: str, value: Any) -> np.ndarray:
    """A metric in float64: sums in half precision stop growing."""
    x = np.asarray(value)
    if np.iscomplexobj(x):
        raise ValueError(f"The method reports the metric {name!r}, which is complex: report real and imaginary part.")
    return x.astype(np.float64)


def _check_free(names: Iterable[str], measured: Iterable[str]) -> None:
    if taken := sorted(set(names) & set(measured)):
        raise ValueError(f"The method reports a metric named {taken[0]!r}, which every row has: give it another name.")


def _tidy(value: Any) -> Any:
    """Seven digits, as float32 has; JSON has no NaN."""
    if isinstance(value, list):
        return [_tidy(entry) for entry in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None
