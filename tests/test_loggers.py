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
from asyncjax import loggers, runs


def record(path: Path, log: Any, **options: Any) -> dict[str, np.ndarray]:
    """The metrics of a small run with a logger beside its recorder."""
    method = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(0.1))
    schedule = aj.schedules.round_robin(20, num_workers=2)
    with log, aj.Recorder(path, {"num_workers": 2}, on_row=log, **options) as recorder:
        aj.emulate(method, schedule, jax.random.key(0), callback=recorder, chunk_size=5)
    return runs.load(path).metrics


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

    metrics = record(tmp_path / "run", loggers.TensorBoard(tmp_path / "board", {"num_workers": 2}), **options)
    (file,) = (tmp_path / "board").iterdir()
    logged: dict[str, list[tuple[int, float]]] = {}
    for data in tensorboard_records(file.read_bytes()):
        event = event_pb2.Event.FromString(data)
        for value in event.summary.value:
            logged.setdefault(value.tag, []).append((event.step, value.simple_value))
    check(logged, metrics, x)


@pytest.mark.filterwarnings("default::DeprecationWarning")  # of the package's own imports
def test_wandb_reads_the_metrics_of_the_run(tmp_path: Path):
    pytest.importorskip("wandb")
    wandb_internal_pb2: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")

    metrics = record(tmp_path / "run", loggers.WeightsAndBiases(tmp_path / "w", {"num_workers": 2}, mode="offline"))
    (file,) = (tmp_path / "w").glob("wandb/offline-run-*/*.wandb")

    def history() -> list[dict[str, float]]:
        records = (wandb_internal_pb2.Record.FromString(data).history for data in wandb_records(file.read_bytes()))
        rows = [{i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in r.item} for r in records]
        return [row for row in rows if row]

    deadline = time.monotonic() + 120  # wandb's own process may write the last rows after `finish` has returned
    while len(history()) < len(metrics["update"]) and time.monotonic() < deadline:
        time.sleep(0.1)
    logged: dict[str, list[tuple[int, float]]] = {}
    for row in history():
        for name, value in row.items():
            logged.setdefault(name, []).append((int(row["_step"]), value))
    check(logged, metrics, "update")
    assert (tmp_path / "w" / "wandb_id.txt").read_text() in file.name


def test_values_that_are_missing_are_left_out():
    row = {"update": 5, "return": None, "staleness_per_worker": [1.0, None]}
    assert loggers.scalars(row) == {"update": 5, "staleness_per_worker/0": 1.0}


@pytest.mark.parametrize("name", loggers.LOGGERS)
def test_a_missing_package_is_named_with_its_extra(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for package in ("tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "asyncjax\[logging\]"'):
        loggers.LOGGERS[name](tmp_path)
