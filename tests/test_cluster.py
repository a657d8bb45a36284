"""Laws of the Ray engine: those of threads, over two nodes, while processes are killed."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asyncjax as aj
from asyncjax import arguments, runs
from tests.laws import KEY, assert_equal, method
from tests.test_failures import ENDLESS, EXPLODING, HOSTED, joined
from tests.test_train import ROOT, command, train

WORKERS = 4
PROCESSES = 2


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes on this machine, with a CPU each: a run's two processes are on different ones."""
    ray = pytest.importorskip("ray", reason='needs the extra "ray"')
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own
        made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        made.add_node(**node)
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")  # type: ignore[arg-type]
        yield ray
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def ray(cluster: Any) -> Iterator[Any]:
    """Ray, with no process left over by the test: their CPUs are free again."""
    yield cluster
    deadline = time.monotonic() + 20
    while cluster.available_resources().get("CPU") != PROCESSES and time.monotonic() < deadline:
        time.sleep(0.1)
    assert cluster.available_resources()["CPU"] == PROCESSES


def run(name_or_method: str | aj.Method, **options: Any) -> tuple[aj.Result, aj.Schedule]:
    chosen = method(name_or_method) if isinstance(name_or_method, str) else name_or_method
    return aj.run_ray(chosen, KEY, **{"num_workers": WORKERS, "num_processes": PROCESSES, **options})


# ---------------------------------------------------------------------------------------------------------------------
# What holds of threads

ROWS: list[tuple[str, dict[str, Any]]] = [
    ("sgd, corrected", {}),
    ("sgd", {"group_size": 3}),
    ("value iteration", {"group_size": WORKERS, "wait": "next_version"}),
    ("sgd, private optimizer", {"group_size": 2, "wait": "next_version"}),
    ("tabular q", {"bound": 2}),
    ("sgd", {"group_size": 2, "eta": 1}),
    ("sgd", {"service": aj.service.straggler(0.2, 10.0, aj.service.exponential(0.001))}),
]


@pytest.mark.ray
def test_a_learner_on_a_device_of_its_own_has_its_workers_on_ray(ray: Any) -> None:
    """Its method goes to other processes, so nothing in it may belong to this one."""
    placed = aj.data_parallel(method("sgd"), jax.devices()[:1])
    result, schedule = run(placed, num_updates=10)
    assert_equal(result.shared, aj.replay(placed, schedule, KEY, num_workers=WORKERS).shared)


@pytest.mark.ray
@pytest.mark.parametrize(("name", "options"), ROWS, ids=[f"{name}, {', '.join(options)}" for name, options in ROWS])
def test_replay_repeats_a_run_on_ray_bit_for_bit(ray: Any, name: str, options: dict[str, Any]) -> None:
    result, schedule = run(name, num_updates=40, **options)
    assert schedule.worker.shape == (40, options.get("group_size", 1))
    assert aj.schedules.is_realizable(schedule) or "eta" in options
    assert schedule.staleness().max() <= options.get("eta", np.inf)
    begin, end, time = (np.asarray(x) for x in (schedule.begin, schedule.end, schedule.time))
    assert np.all(begin < end)
    assert np.all(end <= time[:, None])
    assert np.all(np.diff(time) >= 0)
    assert_equal(aj.replay(method(name), schedule, KEY, num_workers=WORKERS), result)
    bound = options.get("bound")
    if bound is not None:
        handed_in = np.cumsum(schedule.worker == np.arange(WORKERS), axis=0)
        assert np.ptp(handed_in, axis=1).max() <= bound
    if options.get("wait") == "next_version":
        assert schedule.staleness().max() == 0


@pytest.mark.ray
def test_a_version_too_large_for_a_request_is_put_once_for_all_its_readers(
    ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    puts: list[int] = []
    put = ray.put
    monkeypatch.setattr(ray, "put", lambda x: (puts.append(1), put(x))[1])
    large = aj.sgd(lambda w: 0.5 * jnp.sum(w**2), jnp.ones(50_000), optimizer=optax.sgd(0.1))
    result, schedule = run(large, num_updates=6, group_size=WORKERS, wait="next_version")
    versions = len(np.unique(schedule.read))
    assert versions == 6
    assert versions <= len(puts) <= versions + 1 + 4  # what is read after the last update, and the method itself
    assert_equal(aj.replay(large, schedule, KEY, num_workers=WORKERS), result)


@pytest.mark.ray
def test_the_whole_record_of_a_continued_run_replays(ray: Any) -> None:
    chunks: list[aj.Chunk] = []
    run("sgd, private optimizer", num_updates=12, chunk_size=5, callback=chunks.append)
    first, state = chunks[0].schedule, chunks[0].state
    assert state is not None
    assert first.num_updates == state.update
    result, rest = run("sgd, private optimizer", num_updates=20, state=state)
    whole = aj.schedules.concatenate([first, rest])
    assert_equal(aj.replay(method("sgd, private optimizer"), whole, KEY, num_workers=WORKERS)[:2], result[:2])


@pytest.mark.ray
def test_environments_on_the_host_live_in_the_processes_and_replay_bit_for_bit(ray: Any) -> None:
    pytest.importorskip("gymnasium")
    hosted, chunks = aj.a3c("gymnasium:CartPole-v1", num_envs=2, unroll_length=5), list[aj.Chunk]()
    result, schedule = run(hosted, num_updates=20, callback=chunks.append)
    again = aj.replay(hosted, schedule, KEY, num_workers=WORKERS)
    assert_equal((again.shared, again.metrics), (result.shared, result.metrics))
    assert_equal(again.local.observation, result.local.observation)
    with pytest.warns(RuntimeWarning, match=r"2 environments .* begin new episodes"):  # which the processes find out
        run(hosted, num_updates=30, state=chunks[-1].state)


@pytest.mark.ray
def test_the_processes_compute_in_doubles_where_only_this_thread_does(ray: Any) -> None:
    with jax.enable_x64(True):
        doubles = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(0.1))
        result, schedule = run(doubles, num_updates=10, group_size=2, wait="next_version")
        assert result.shared.params.dtype == jnp.float64
        assert_equal(aj.replay(doubles, schedule, KEY, num_workers=WORKERS), result)


@pytest.mark.ray
def test_the_training_command_runs_and_continues_on_ray(ray: Any, tmp_path: Path) -> None:
    options = command("--engine", "ray", "--num-processes", "1", run_dir=tmp_path / "run")
    assert train.main(options) == 0
    assert train.main(["--resume", str(tmp_path / "run"), "--total-steps", "600"]) == 0
    recorded = runs.load(tmp_path / "run")
    assert recorded.metrics["env_steps"][-1] == 600
    assert recorded.schedule is not None
    assert recorded.schedule.num_updates == 75
    assert (tmp_path / "run" / "timeline.json").stat().st_size > 1000


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong

Trouble = Callable[[int, int], None]  # (worker, its job counted from 1), on the host within the job


def troubled(trouble: Trouble) -> aj.Method:
    """`HOSTED`, whose jobs have this trouble instead of a hook's."""

    def hook(worker: Any, jobs: Any) -> Any:
        trouble(int(worker), int(jobs) + 1)
        return np.float32(1 + int(worker) + 0.125 * int(jobs))

    def work(view: Any, local: Any) -> Any:
        worker, jobs = local
        value = jax.pure_callback(hook, jax.ShapeDtypeStruct((), jnp.float32), worker, jobs)
        return value, (worker, jobs + 1), {"value": value, "seen": view["sum"]}

    return HOSTED._replace(work=work)


def killing(where: Path, every: int) -> aj.Method:
    """A method whose processes are killed in every so-manieth job of worker 1, each once: a file says that it was."""

    def trouble(worker: int, job: int) -> None:
        mark = where / f"{job}"
        if worker == 1 and job % every == 0 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    return troubled(trouble)


def assert_replays(run: aj.Method, chunks: list[aj.Chunk]) -> None:
    """What was delivered is a run, to its last update."""
    metrics, schedule = joined(chunks)
    again, state = aj.replay(run, schedule, KEY, num_workers=WORKERS), chunks[-1].state
    assert state is not None
    assert_equal((again.metrics, *again[:2]), (metrics, state.shared, state.local))


@pytest.mark.ray
def test_the_others_go_on_while_a_killed_process_is_replaced(ray: Any, tmp_path: Path) -> None:
    deadly, chunks = killing(tmp_path, every=4), list[aj.Chunk]()

    def callback(chunk: aj.Chunk) -> None:
        chunks.append(chunk)
        if (joined(chunks)[1].worker == 1).sum() > 8:  # killed twice, and back again
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        run(deadly, num_updates=ENDLESS, chunk_size=200, callback=callback)
    worker = joined(chunks)[1].worker.ravel()
    pauses = np.diff(np.flatnonzero(worker == 1))
    assert {mark.name for mark in tmp_path.iterdir()} >= {"4", "8"}
    assert np.sort(pauses)[-2] > 20  # updates of others, while there is no process for worker 1
    assert_replays(deadly, chunks)


@pytest.mark.ray
def test_a_barrier_waits_for_a_killed_process(ray: Any, tmp_path: Path) -> None:
    deadly = killing(tmp_path, every=4)
    result, schedule = run(deadly, num_updates=6, group_size=WORKERS, wait="next_version")
    assert [mark.name for mark in tmp_path.iterdir()] == ["4"]
    assert_equal(schedule.read, aj.schedules.barrier(6, WORKERS).read)
    assert_equal(aj.replay(deadly, schedule, KEY, num_workers=WORKERS), result)


@pytest.mark.ray
def test_under_eta_a_lost_job_is_done_again_in_its_place(ray: Any, tmp_path: Path) -> None:
    deadly = killing(tmp_path, every=4)
    result, schedule = run(deadly, num_updates=12, group_size=2, eta=1)
    assert [mark.name for mark in tmp_path.iterdir()] == ["4"]
    assert schedule.staleness().max() <= 1
    assert_equal(aj.replay(deadly, schedule, KEY, num_workers=WORKERS), result)


@pytest.mark.ray
def test_too_many_deaths_end_the_run_and_what_was_done_is_delivered(ray: Any, tmp_path: Path) -> None:
    deadly, chunks = killing(tmp_path, every=3), list[aj.Chunk]()
    with pytest.raises(RuntimeError, match=r"Worker process 1 died, and 1 died before: max_restarts=1\.") as caught:
        run(deadly, num_updates=ENDLESS, max_restarts=1, callback=chunks.append)
    assert any(note.startswith("Raised in worker") for note in caught.value.__notes__)
    assert_replays(deadly, chunks)


@pytest.mark.ray
def test_what_a_worker_raises_is_raised_here_with_its_traceback(ray: Any) -> None:
    def trouble(worker: int, job: int) -> None:
        if (worker, job) == (1, 4):
            raise RuntimeError(f"no bananas left for {worker}")

    failing, chunks = troubled(trouble), list[aj.Chunk]()
    with pytest.raises(Exception, match="no bananas left for 1") as caught:
        run(failing, num_updates=ENDLESS, callback=chunks.append)
    assert "in trouble" in str(caught.value)
    assert any(note.startswith("Raised in worker 1, at update ") for note in caught.value.__notes__)
    assert_replays(failing, chunks)


@pytest.mark.ray
def test_what_an_update_raises_ends_the_run_and_what_was_done_is_delivered(ray: Any) -> None:
    def tire(total: Any) -> np.ndarray:
        if total > 10:
            raise RuntimeError("the optimizer is tired")
        return np.asarray(total)

    def apply(shared: Any, messages: Any, stale: aj.Stale) -> Any:
        total = jax.pure_callback(tire, jax.ShapeDtypeStruct((), jnp.float32), shared["sum"])
        return add({**shared, "sum": total}, messages, stale)

    add = HOSTED.apply
    failing, chunks = troubled(lambda worker, job: None)._replace(apply=apply), list[aj.Chunk]()
    with pytest.raises(Exception, match="the optimizer is tired") as caught:
        run(failing, num_updates=ENDLESS, callback=chunks.append)
    assert any(note.startswith("Raised in worker") for note in caught.value.__notes__)
    assert_replays(failing, chunks)


@pytest.mark.ray
def test_what_can_not_be_sent_is_told_with_its_reason(ray: Any) -> None:
    with pytest.raises(
        TypeError, match=r"method\.work can not be sent .* \(cannot pickle '_thread\.lock' object\): let"
    ):
        run(HOSTED, num_updates=5)  # its hook has a lock


@pytest.mark.ray
def test_a_stuck_worker_is_named(ray: Any) -> None:
    def trouble(worker: int, job: int) -> None:
        if (worker, job) == (0, 3):
            time.sleep(600)

    stuck, chunks = troubled(trouble), list[aj.Chunk]()
    with pytest.raises(TimeoutError, match=r"worker [02] has been busy .* timeout=8\.0 s\. .* raise timeout="):
        run(stuck, num_updates=ENDLESS, timeout=8.0, bound=3, callback=chunks.append)
    assert_replays(stuck, chunks)


@pytest.mark.ray
def test_processes_that_find_no_place_are_told(ray: Any) -> None:
    with pytest.raises(TimeoutError, match=r"Worker process \d has not started; .* The cluster has 2 CPUs, .* of them"):
        run("sgd", num_updates=5, num_processes=3, start_timeout=3.0)


@pytest.mark.ray
def test_the_update_and_the_worker_that_made_the_parameters_infinite_are_named(ray: Any) -> None:
    chunks: list[aj.Chunk] = []
    with pytest.raises(FloatingPointError, match=r"Update \d+, from worker \d, made the view non-finite"):
        run(EXPLODING, num_updates=ENDLESS, callback=chunks.append)
    metrics, schedule = joined(chunks)
    assert chunks[-1].state is None
    again = aj.replay(EXPLODING, schedule, KEY, num_workers=WORKERS, check_finite=False)
    assert_equal(again.metrics, metrics)


@pytest.mark.ray
def test_ctrl_c_ends_the_processes_and_delivers_the_rest(ray: Any) -> None:
    chunks: list[aj.Chunk] = []

    def callback(chunk: aj.Chunk) -> None:
        chunks.append(chunk)
        if len(chunks) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run("sgd", num_updates=ENDLESS, chunk_size=20, callback=callback)
    assert_replays(method("sgd"), chunks)


# ---------------------------------------------------------------------------------------------------------------------
# Without Ray


def test_a_missing_ray_is_told_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'run_ray needs Ray: pip install "asyncjax\[ray\]"'):
        run("sgd", num_updates=5)


@pytest.mark.parametrize("first", ["srun", "kubectl ray job submit"])
def test_the_clusters_commands_are_ones_that_the_shell_and_the_script_understand(first: str) -> None:
    text = (ROOT / "experiments" / "cluster.md").read_text()
    (shell,) = re.findall(rf"^    ({first} (?:.*\\\n)+.*)", text, re.MULTILINE)
    subprocess.run(["bash", "-n", "-c", shell], check=True, capture_output=True)
    inner = shlex.split(shell)[-1] if first == "srun" else shell
    subprocess.run(["bash", "-n", "-c", inner], check=True, capture_output=True)
    words = shlex.split(inner)
    config, *_ = arguments.parse(words[words.index("experiments/train.py") + 1 :], None)
    assert (config["method"], config["engine"], config["address"]) == ("a3c", "ray", "auto")
    assert config["num_workers"] > config["num_processes"] > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_processes": 0}, "num_processes=0: give a positive number"),
        ({"max_restarts": -1}, "max_restarts=-1: use at least 0"),
        ({"group_size": 5, "wait": "next_version"}, "group_size=5"),
        ({"num_updates": 0}, "num_updates=0: give a positive number"),
    ],
)
def test_arguments_that_no_run_could_follow_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run("sgd", **{"num_updates": 5, **options})
