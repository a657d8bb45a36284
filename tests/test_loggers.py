"""Loggers: what the real packages write, offline, are the numbers of the run directory."""

from __future__ import annotations

import importlib
import json
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest

import asyncjax as aj
import train
from asyncjax import loggers, runs
from asyncjax.checkpoints import Checkpoints

METHOD = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(0.1))


def record(path: Path, log: Any, **options: Any) -> dict[str, np.ndarray]:
    """The metrics of a small run with a logger beside its recorder."""
    schedule, state = aj.schedules.round_robin(20, num_workers=2), options.get("state")
    with log, aj.Recorder(path, {"num_workers": 2}, on_row=log, checkpoint_every=0, **options) as recorder:
        aj.emulate(METHOD, schedule, jax.random.key(0), state=state, callback=recorder, chunk_size=5)
    return runs.load(path).metrics


def killed(path: Path) -> dict[str, Any]:
    """How a run goes on of whose last checkpoint the disk knows nothing."""
    Checkpoints(path / "checkpoints").keep_until(15)
    return {"resume": True, "state": runs.load(path).restore(METHOD)}


def check(logged: dict[str, list[tuple[int, float]]], metrics: dict[str, np.ndarray], x: str) -> None:
    for name in ("loss", "staleness", "seconds"):
        assert [step for step, _ in logged[name]] == metrics[x].tolist()
        np.testing.assert_allclose([value for _, value in logged[name]], metrics[name], rtol=1e-6)
    per_worker = [value for _, value in logged["staleness_per_worker/1"]]
    np.testing.assert_allclose(per_worker, metrics["staleness_per_worker"][:, 1], rtol=1e-6)


def tensorboard_records(data: bytes) -> Iterator[bytes]:
    """The records of an event file: length, checksum, data, checksum."""
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield data[12 : 12 + length]
        data = data[16 + length :]


def wandb_records(data: bytes, block: int = 32768) -> Iterator[bytes]:
    """The records of LevelDB's log format after a header of 7 bytes; one may be spread over several blocks."""
    offset, parts = 7, b""
    while offset + 7 <= len(data):
        if block - offset % block < 7:
            offset += block - offset % block
        _, length, kind = struct.unpack("<IHB", data[offset : offset + 7])
        parts += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


@pytest.mark.parametrize(("options", "x"), [({}, "update"), ({"steps_per_update": 8}, "env_steps")])
def test_tensorboard_reads_the_metrics_of_the_run(tmp_path: Path, options: dict[str, Any], x: str):
    pytest.importorskip("tensorboardX")
    event_pb2: Any = importlib.import_module("tensorboardX.proto.event_pb2")

    def read(paths: list[Path]) -> dict[str, list[tuple[int, float]]]:
        """As TensorBoard does: where a run starts anew, what comes later in earlier files is void."""
        logged: dict[str, list[tuple[int, float]]] = {}
        for path in paths:
            for data in tensorboard_records(path.read_bytes()):
                event = event_pb2.Event.FromString(data)
                if event.session_log.status == event_pb2.SessionLog.START:
                    logged = {name: [point for point in of if point[0] < event.step] for name, of in logged.items()}
                for value in event.summary.value:
                    logged.setdefault(value.tag, []).append((event.step, value.simple_value))
        return logged

    metrics = record(tmp_path / "run", loggers.TensorBoard(tmp_path / "board", {"num_workers": 2}), **options)
    (first,) = (tmp_path / "board").iterdir()
    check(read([first]), metrics, x)
    first = first.rename(tmp_path / "first")  # the second has the same name where it begins in the same second
    options |= killed(tmp_path / "run")
    metrics = record(tmp_path / "run", loggers.TensorBoard(tmp_path / "board"), **options)
    assert len(metrics["update"]) == 4
    (second,) = (tmp_path / "board").iterdir()
    check(read([first, second]), metrics, x)


@pytest.mark.filterwarnings("default::DeprecationWarning")  # of the package's own imports
def test_wandb_reads_the_metrics_of_the_run(tmp_path: Path):
    pytest.importorskip("wandb")
    wandb_internal_pb2: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")

    def history(path: Path, length: int) -> list[dict[str, float]]:
        (file,) = path.glob("wandb/offline-run-*/*.wandb")
        assert (path / "wandb_id.txt").read_text() in file.name
        deadline, rows = time.monotonic() + 120, list[dict[str, float]]()
        while len(rows) < length and time.monotonic() < deadline:  # its own process may write after `finish`
            time.sleep(0.1)
            records = (wandb_internal_pb2.Record.FromString(data).history for data in wandb_records(file.read_bytes()))
            rows = [{i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in r.item} for r in records]
            rows = [row for row in rows if row]
        return rows

    metrics = record(tmp_path / "run", loggers.WeightsAndBiases(tmp_path / "w", {"num_workers": 2}, mode="offline"))
    logged: dict[str, list[tuple[int, float]]] = {}
    for row in history(tmp_path / "w", len(metrics["update"])):
        for name, value in row.items():
            logged.setdefault(name, []).append((int(row["_step"]), value))
    check(logged, metrics, "update")

    with loggers.WeightsAndBiases(tmp_path / "again", mode="offline") as log:
        for update in (10, 20, 15, 20, 25):  # rows that a killed run had lost come again
            log({"update": update})
    rows = [(row["_step"], row["update"]) for row in history(tmp_path / "again", 5)]
    assert rows == [(10, 10), (20, 20), (21, 15), (22, 20), (25, 25)]


def test_values_that_are_missing_are_left_out():
    row = {"update": 5, "return": None, "staleness_per_worker": [1.0, None]}
    assert loggers.scalars(row) == {"update": 5, "staleness_per_worker/0": 1.0}


def test_without_a_key_wandb_is_refused_before_there_is_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    wandb = pytest.importorskip("wandb")

    def login() -> None:
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(wandb, "login", login)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert train.main(["a3c", "--logger", "wandb", "--run-dir", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("Error: Weights & Biases: No API key configured. Use `wandb login` to log in. With WANDB_MO")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", loggers.LOGGERS)
def test_a_missing_package_is_named_with_its_extra(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for package in ("tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "asyncjax\[logging\]"'):
        loggers.LOGGERS[name](tmp_path)
