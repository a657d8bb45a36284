"""The model of the scaling figure: from records with known service and commit times it finds their closed forms."""

from __future__ import annotations

import contextlib

import jax
import numpy as np
import pytest

import asyncjax as aj
import scaling

TRAVELS, COMMIT, MESSAGE = 0.004, 0.0005, 0.0015
ARGS = scaling.Args(kilobytes=(10, 1000), workers=(2, 8, 64), messages=16, work_ms=20.0)


def record(kilobytes: int, num_workers: int, group_size: int, seconds: float) -> tuple[aj.Schedule, float]:
    """What Ray would give where a message travels for TRAVELS seconds and the buffer takes COMMIT + MESSAGE G."""
    del seconds
    commit = COMMIT + MESSAGE * group_size
    service = aj.service.constant(TRAVELS * (1 if kilobytes < 100 else 2))
    wait = "next_version" if group_size > 1 else "never"
    schedule = aj.schedules.from_service_times(
        service, 40, num_workers, jax.random.key(0), group_size, wait=wait, commit=commit
    )
    return schedule, commit


def test_calibration_finds_the_times_of_the_record() -> None:
    times = scaling.calibrate(record(10, 1, 1, 1.0), record(10, 4, 4, 1.0))
    np.testing.assert_allclose(times.service, TRAVELS)
    np.testing.assert_allclose(times.commit, [COMMIT, MESSAGE])


def test_the_figure_has_the_throughput_of_a_serial_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    """W / (s + c), at most 1 / c; with a barrier W / (s + c_W). What is predicted of a team is what it does."""
    monkeypatch.setattr(scaling, "record", record)
    monkeypatch.setattr(scaling, "connected", lambda *_: contextlib.nullcontext())
    arrays = {name: np.asarray(x) for name, x in scaling.run(ARGS).items()}
    np.testing.assert_allclose(arrays["predicted"], arrays["measured"], rtol=0.05)  # the windows end within a round
    workers = np.array(ARGS.workers)
    for k, travels in enumerate((TRAVELS, 2 * TRAVELS)):
        service = 1e-3 * ARGS.work_ms + travels
        alone = np.minimum(workers / (service + COMMIT + MESSAGE), 1 / (COMMIT + MESSAGE))
        barrier = workers / (service + COMMIT + MESSAGE * workers)
        np.testing.assert_allclose(arrays["messages_per_second"][k, 0, 0], alone, rtol=0.05)
        np.testing.assert_allclose(arrays["messages_per_second"][k, 0, 1], barrier, rtol=1e-6)
    assert (arrays["messages_per_second"][:, 1] < arrays["messages_per_second"][:, 0] + 1e-6).all()  # straggling
    np.testing.assert_allclose(arrays["staleness"][:, 0, 0], [workers - 1] * 2)
    assert not arrays["staleness"][:, :, 1].any()
    assert (arrays["in_queue"] <= arrays["staleness"]).all()
    assert arrays["in_queue"][0, 0, 0, -1] > 40  # of 64 workers, 12 keep this buffer busy
    picture = scaling.plot(arrays)
    picture.canvas.draw()
    assert np.asarray(picture.canvas.buffer_rgba()).std() > 10
    report = scaling.report(arrays)
    assert len({line.count("|") for line in report.splitlines()}) == 1
    assert "| 4.00 | 0.50 + 1.50 G |" in report
