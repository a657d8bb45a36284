"""Run directories: what is written comes back, whenever and however the run stopped."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asyncjax import runs, schedules, service, timeline
from asyncjax.checkpoints import Checkpoints
from asyncjax.emulate import emulate
from asyncjax.method import Chunk, State
from asyncjax.methods.sgd import sgd
from asyncjax.recorder import Recorder, summarize
from asyncjax.schedules import directory
from asyncjax.schedules.directory import ScheduleParts
from tests.laws import assert_equal, leaves_of_all_kinds

KEY = jax.random.key(0)
CONFIG = {"num_workers": 4, "total_steps": 60, "learning_rate": 0.1}


def make_method(size=3):
    def loss(w, batch):
        return 0.5 * jnp.sum(jnp.square(w - batch))

    return sgd(loss, jnp.ones(size), optimizer=optax.adam(0.1), sample=lambda key: jax.random.normal(key, (size,)))


def make_schedule(num_updates=60):
    return schedules.from_service_times(service.exponential(1.0), num_updates, 4, jax.random.key(1))


def record(path, num_updates=60, chunk_size=10, state=None, **options):
    with Recorder(path, CONFIG, state=state, steps_per_update=8, **options) as recorder:
        return emulate(
            make_method(), make_schedule(num_updates), KEY, state=state, callback=recorder, chunk_size=chunk_size
        )


def same(a, b):
    return all(
        np.array_equal(runs_data(x), runs_data(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def runs_data(x):
    return np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def test_a_run_comes_back(tmp_path):
    result = record(tmp_path / "run")
    run = runs.load(tmp_path / "run")
    assert run.config == CONFIG
    assert {"asyncjax", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy", "python", "platform", "device"} <= set(
        run.versions
    )
    assert run.metrics["update"].tolist() == [10, 20, 30, 40, 50, 60]
    assert run.metrics["env_steps"].tolist() == [80, 160, 240, 320, 400, 480]
    assert same(run.schedule, make_schedule())
    np.testing.assert_allclose(
        run.metrics["loss"], np.asarray(result.metrics["loss"]).reshape(6, 10).mean(1), rtol=1e-5
    )
    staleness = make_schedule().staleness().reshape(6, 10)
    np.testing.assert_allclose(run.metrics["staleness"], staleness.mean(1), rtol=1e-6)
    assert run.metrics["staleness_max"].tolist() == staleness.max(1).tolist()
    assert run.metrics["staleness_per_worker"].shape == (6, 4)
    state = run.restore(make_method())
    assert state is not None
    assert state.update == 60
    assert same((state.shared, state.local), (result.shared, result.local))
    assert json.loads((tmp_path / "run" / "timeline.json").read_text())["traceEvents"]


@pytest.mark.parametrize("stop", [10, 30, 50])
def test_a_run_continues_bit_for_bit_from_any_chunk(tmp_path, stop):
    whole = record(tmp_path / "whole")

    class StopError(Exception):
        pass

    def interrupt(row):
        if row["update"] == stop:
            raise StopError

    with pytest.raises(StopError):
        record(tmp_path / "run", on_row=interrupt)
    state = runs.load(tmp_path / "run").restore(make_method())
    assert state is not None
    assert state.update == stop
    assert state.views, "the workers are in flight"
    result = record(tmp_path / "run", resume=True, state=state)
    assert same((whole.shared, whole.local), (result.shared, result.local))
    run, reference = runs.load(tmp_path / "run"), runs.load(tmp_path / "whole")
    assert same(run.schedule, reference.schedule)
    np.testing.assert_array_equal(run.metrics["loss"], reference.metrics["loss"])
    assert np.all(np.diff(run.metrics["seconds"]) >= 0)


def test_a_torn_last_line_is_ignored_and_cut_off_on_resume(tmp_path):
    record(tmp_path / "run")
    file = tmp_path / "run" / "metrics.jsonl"
    with open(file, "a") as f:
        f.write('{"update": 70, "seco')
    assert runs.load(tmp_path / "run").metrics["update"].tolist() == [10, 20, 30, 40, 50, 60]
    Recorder(tmp_path / "run", CONFIG, resume=True, state=runs.load(tmp_path / "run").restore(make_method())).__exit__()
    assert file.read_text().endswith("}\n")
    assert runs.load(tmp_path / "run").metrics["update"].tolist() == [10, 20, 30, 40, 50, 60]


def test_leaves_of_all_kinds_come_back_and_continue(tmp_path):
    run, whole, chunks = leaves_of_all_kinds(), make_schedule(12), []
    emulate(run, whole, KEY, chunk_size=6, callback=chunks.append)
    with Recorder(tmp_path / "run", CONFIG) as recorder:
        recorder(chunks[0])
    checkpoints = Checkpoints(tmp_path / "halfway")
    checkpoints.save(chunks[0].state)
    state = checkpoints.restore(run, 4)
    checkpoints.close()
    assert state is not None
    assert_equal(state[1:3], chunks[0].state[1:3])
    assert_equal(emulate(run, whole, KEY, chunk_size=6, state=state)[:2], chunks[1].state[1:3])
    assert np.isnan(runs.load(tmp_path / "run").metrics["empty"]).all()  # no numbers, no mean


def test_what_was_recorded_after_the_checkpoint_is_dropped_on_resume(tmp_path):
    record(tmp_path / "run")
    for update in Checkpoints(tmp_path / "run" / "checkpoints").updates():
        (tmp_path / "run" / "checkpoints" / str(update)).rename(tmp_path / str(update))
    state = runs.load(tmp_path / "run").restore(make_method())
    assert state is None
    record(tmp_path / "run", num_updates=20, resume=True, state=state)
    run = runs.load(tmp_path / "run")
    assert run.metrics["update"].tolist() == [10, 20]
    assert run.schedule is not None
    assert run.schedule.num_updates == 20


def test_checkpoints_after_the_one_that_a_run_goes_on_from_are_dropped_with_the_rest(tmp_path):
    chunks = []
    emulate(make_method(), make_schedule(30), KEY, chunk_size=10, callback=chunks.append)
    with Recorder(tmp_path / "run", CONFIG, checkpoint_every=0.0) as recorder:
        for chunk in chunks:
            recorder(chunk)
    with Recorder(tmp_path / "run", CONFIG, checkpoint_every=0.0, resume=True, state=chunks[0].state) as recorder:
        recorder(chunks[1])
    run = runs.load(tmp_path / "run")
    assert run.metrics["update"].tolist() == [10, 20]
    assert Checkpoints(run.path / "checkpoints").updates()[-1] == 20
    state = run.restore(make_method())
    assert state is not None
    assert_equal(state[:3], chunks[1].state[:3])


def test_damaged_files_of_a_run_are_named(tmp_path):
    record(tmp_path / "run")
    for name, line in (("config.json", ""), ("versions.json", ""), ("metrics.jsonl", ", line 2")):
        file = tmp_path / "run" / name
        text = file.read_text()
        file.write_text("" if not line else text.replace("\n", "\n{", 1))
        with pytest.raises(ValueError, match=f"{name}{line} is damaged"):
            runs.load(tmp_path / "run")
        file.write_text(text)
    (tmp_path / "run" / "versions.json").unlink()
    with pytest.raises(ValueError, match=r"versions\.json is missing"):
        runs.load(tmp_path / "run")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax leaves its coroutines behind
@pytest.mark.parametrize("what", ["meta", "tree", "tree/d/*"])
def test_a_damaged_checkpoint_is_named_and_without_it_the_one_before_it_is_taken(tmp_path, what):
    checkpoints = Checkpoints(tmp_path)
    chunks: list[Chunk] = []
    emulate(make_method(), make_schedule(20), KEY, chunk_size=10, callback=chunks.append)
    for chunk in chunks:
        assert chunk.state is not None
        checkpoints.save(chunk.state)
    for found in (tmp_path / "20").glob(what):
        found.write_bytes(b"") if found.is_file() else shutil.rmtree(found)
    with pytest.raises(ValueError, match=r"checkpoint .*20 can not be read .*at update 10, the checkpoint before it"):
        checkpoints.restore(make_method(), 4)
    shutil.rmtree(tmp_path / "20")
    state = checkpoints.restore(make_method(), 4)
    assert state is not None
    assert chunks[0].state is not None
    assert_equal(state[:3], chunks[0].state[:3])


def test_a_missing_part_of_a_schedule_is_told(tmp_path):
    parts = ScheduleParts(tmp_path)
    for start in (0, 10, 20):
        parts.append(schedules.cut(make_schedule(30), start, start + 10))
        parts.write()
    (tmp_path / "schedule" / "notes.npz").touch()
    whole = directory.load(tmp_path)
    assert whole is not None
    assert whole.num_updates == 30
    (tmp_path / "schedule" / "10.npz").unlink()
    with pytest.raises(ValueError, match=r"20\.npz begins at update 20, but what is before it ends at 10"):
        directory.load(tmp_path)


def test_states_can_be_pickled():
    state = State(3, np.ones(2), np.zeros((4, 1)))
    assert_equal(pickle.loads(pickle.dumps(state))[:3], state[:3])


def test_torn_reads_come_back_and_continue(tmp_path):
    def chunk(start):
        part = schedules.cut(make_schedule(), start, start + 10)
        read = {"w": part.read, "b": np.maximum(part.read - 1, 0)}
        return Chunk(State(start + 10, jnp.zeros(2), jnp.zeros((4, 1))), {}, part._replace(read=read))

    with Recorder(tmp_path / "run", CONFIG) as recorder:
        recorder(chunk(0))
    with Recorder(tmp_path / "run", CONFIG, resume=True, state=chunk(0).state) as recorder:
        recorder(chunk(10))
    schedule = runs.load(tmp_path / "run").schedule
    assert schedule is not None
    np.testing.assert_array_equal(schedule.read["w"], make_schedule(20).read)


def test_episodes_are_averaged_over_episodes(tmp_path):
    part = schedules.round_robin(4, 2)
    metrics = {
        "episodes": np.array([[0.0], [1.0], [2.0], [0.0]]),
        "return_sum": np.array([[0.0], [10.0], [50.0], [0.0]]),
        "length_sum": np.array([[0.0], [1.0], [5.0], [0.0]]),
        "loss": np.ones((4, 1)),
    }
    row = summarize(Chunk(State(4, (), ()), metrics, part), 0)
    assert (row["episodes"], row["return"], row["length"], row["loss"]) == (3.0, 20.0, 2.0, 1.0)
    empty = {name: np.zeros((4, 1)) for name in metrics}
    with Recorder(tmp_path / "run", CONFIG) as recorder:
        recorder(Chunk(State(4, jnp.zeros(2), jnp.zeros((2, 1))), empty, part))
    assert '"return": null' in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert np.isnan(runs.load(tmp_path / "run").metrics["return"]).all()


def test_non_finite_numbers_leave_the_last_good_checkpoint(tmp_path):
    with Recorder(tmp_path / "run", CONFIG) as recorder:
        part = schedules.cut(make_schedule(), 0, 10)
        recorder(Chunk(State(10, jnp.zeros(2), jnp.zeros((4, 1))), {"loss": np.ones((10, 1))}, part))
        part = schedules.cut(make_schedule(), 10, 13)
        recorder(Chunk(None, {"loss": np.full((3, 1), np.nan)}, part))  # pyright: ignore[reportArgumentType]
    run = runs.load(tmp_path / "run")
    assert run.metrics["update"].tolist() == [10, 13]
    assert run.schedule is not None
    assert run.schedule.num_updates == 13
    assert Checkpoints(run.path / "checkpoints").updates() == [10]


def test_another_configuration_is_refused_by_name(tmp_path):
    record(tmp_path / "run")
    with pytest.raises(ValueError, match=r"learning_rate is 0\.1 there and 0\.2 here. Give learning_rate=0\.1"):
        Recorder(tmp_path / "run", {**CONFIG, "learning_rate": 0.2}, resume=True)
    for name in ("env", "method"):  # not what is tuned for it, or what its method has
        with pytest.raises(ValueError, match=f"{name} is None there and 'a' here"):
            Recorder(tmp_path / "run", {"anneal_steps": 1, **CONFIG, "learning_rate": 1, name: "a"}, resume=True)
    state = runs.load(tmp_path / "run").restore(make_method())
    Recorder(tmp_path / "run", {**CONFIG, "total_steps": 90}, resume=True, state=state).__exit__()
    with pytest.raises(ValueError, match=r"shared\.params is float32\[3\] there and float32\[5\] in this method"):
        runs.load(tmp_path / "run").restore(make_method(5))
    with pytest.raises(ValueError, match="of another configuration: local"):
        runs.load(tmp_path / "run").restore(make_method(), num_workers=9)


def test_directories_that_can_not_be_used_are_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"exists and is not empty: .*--run-dir"):
        Recorder(tmp_path / "full", CONFIG)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"can not be written \(Not a directory\): choose another one"):
        Recorder(tmp_path / "file" / "run", CONFIG)
    with pytest.raises(ValueError, match=r"holds no run: there is no config\.json"):
        runs.load(tmp_path / "full")
    with pytest.raises(TypeError, match=r"config=.*rate.*not JSON serializable.*Python's own numbers"):
        Recorder(tmp_path / "new", {"rate": np.float32(0.1)})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", [".probe", "versions.json.tmp", "versions.json", "config.json.tmp"])
def test_a_run_that_was_killed_as_it_began_may_begin_again(tmp_path, name):
    (tmp_path / name).write_text("torn")
    with Recorder(tmp_path, CONFIG):
        pass
    assert runs.load(tmp_path).config == CONFIG


def test_workers_that_no_config_counts_have_to_be_given(tmp_path):
    with Recorder(tmp_path, {}) as recorder:
        emulate(make_method(), make_schedule(), KEY, callback=recorder, chunk_size=60)
    with pytest.raises(ValueError, match=r"num_workers=None, and the config .* give the number of workers"):
        runs.load(tmp_path).restore(make_method())
    assert runs.load(tmp_path).restore(make_method(), 4) is not None


def a_chunk(start, stop=None):
    stop = start + 10 if stop is None else stop
    part = schedules.cut(make_schedule(), start, stop)
    return Chunk(State(stop, jnp.zeros(2), jnp.zeros((4, 1))), {"loss": np.ones((stop - start, 1))}, part)


@pytest.mark.parametrize("moment", ["row", "write"])
def test_an_interrupt_between_two_chunks_leaves_no_gap(tmp_path, monkeypatch, moment):
    """What comes after it is recorded too, or refused: never in the place of what is missing."""

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    with Recorder(tmp_path / "run", CONFIG) as recorder:
        recorder(a_chunk(0))
        with monkeypatch.context() as patched:
            patched.setattr("asyncjax.recorder.summarize" if moment == "row" else "json.dumps", interrupted)
            with pytest.raises(KeyboardInterrupt):
                recorder(a_chunk(10))
        recorder(a_chunk(20))
    run = runs.load(tmp_path / "run")
    assert run.metrics["update"].tolist() == [10, 30]
    assert_equal(run.schedule, schedules.cut(make_schedule(), 0, 30))
    assert Checkpoints(run.path / "checkpoints").updates() == [30]


def test_what_does_not_continue_the_directory_is_refused(tmp_path):
    """Another run's chunks, those of a branch, and a beginning where there is something to go on from."""
    with Recorder(tmp_path / "run", CONFIG) as recorder:
        recorder(a_chunk(0))
        for start in (0, 20):
            with pytest.raises(ValueError, match=rf"10 updates ends at update {start + 10}, but .* has 10:"):
                recorder(a_chunk(start))
    run = runs.load(tmp_path / "run")
    assert run.metrics["update"].tolist() == [10]
    assert_equal(run.schedule, schedules.cut(make_schedule(), 0, 10))
    with pytest.raises(ValueError, match=r"has a checkpoint of update 10, but state is None: give\s+state=runs.load"):
        Recorder(tmp_path / "run", CONFIG, resume=True)
    with pytest.raises(ValueError, match=r"state is that after update 10, but .* would begin at update 0: copy"):
        Recorder(tmp_path / "branch", CONFIG, state=a_chunk(0).state)
    assert not (tmp_path / "branch").exists()


def test_a_checkpoint_takes_no_array_for_another(tmp_path):
    """Orbax joins the keys of dictionaries by dots."""
    shared = {"a.b": jnp.zeros(2), "a": {"b": jnp.ones(2)}}
    with pytest.raises(ValueError, match=r"share a name among .*use keys without dots"):
        Checkpoints(tmp_path).save(State(1, shared, jnp.zeros((2, 1))))


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float16", "float32", "int8", "bool"])
def test_metrics_of_small_types_are_averaged_in_large_ones(dtype):
    metrics = {"x": np.ones((1024, 4), jnp.dtype(dtype))}
    assert summarize(Chunk(State(1024, (), ()), metrics, schedules.round_robin(1024, 2)), 0)["x"] == 1.0


def test_a_complex_metric_is_refused():
    metrics = {"x": np.ones(10, np.complex64)}
    with pytest.raises(ValueError, match="the metric 'x', which is complex: report real and imaginary part"):
        summarize(Chunk(State(10, (), ()), metrics, schedules.round_robin(10, 2)), 0)


@pytest.mark.parametrize("name", ["update", "env_steps", "seconds", "updates_per_second", "staleness_max"])
def test_metrics_do_not_take_the_place_of_what_every_row_has(tmp_path, name):
    recorder = Recorder(tmp_path / "run", CONFIG, steps_per_update=8)
    with pytest.raises(ValueError, match=f"a metric named '{name}', .*: give it another name"), recorder:
        recorder(Chunk(State(10, jnp.zeros(2), jnp.zeros((4, 1))), {name: np.ones(10)}, make_schedule(10)))


def test_a_full_disk_stops_the_run_with_its_cause(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    recorder = Recorder(tmp_path / "run", CONFIG)
    monkeypatch.setattr("asyncjax.recorder.open", full, raising=False)
    with pytest.raises(OSError, match="No space left"), recorder:
        emulate(make_method(), make_schedule(), KEY, callback=recorder, chunk_size=10)
    assert runs.load(tmp_path / "run").metrics == {}


def test_what_ended_a_run_is_raised_even_where_the_rest_can_not_be_written_either(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    recorder = Recorder(tmp_path / "run", CONFIG)
    monkeypatch.setattr(recorder, "save", full)
    with pytest.raises(LookupError, match="no bananas left") as caught, recorder:
        raise LookupError("no bananas left")
    assert any("No space left" in note and str(tmp_path / "run") in note for note in caught.value.__notes__)
    with pytest.raises(OSError, match="No space left"), Recorder(tmp_path / "other", CONFIG) as recorder:
        monkeypatch.setattr(recorder, "save", full)


WRITER = """
import sys
sys.path.insert(0, {root!r})
from tests.test_runs import *
run = {path!r}
state = runs.load(run).restore(make_method()) if runs.Path(run, "config.json").exists() else None
print("started", flush=True)
record(run, num_updates=100_000, resume=state is not None, state=state, checkpoint_every=0.0)
"""


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_a_run_that_continues(tmp_path):
    path, rng = tmp_path / "run", np.random.default_rng(0)
    code = textwrap.dedent(WRITER).format(root=str(runs.Path(__file__).parents[1]), path=str(path))
    reached = -1
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        lines = len(runs.read_rows(path)) if path.exists() else 0
        while process.poll() is None and (not path.exists() or len(runs.read_rows(path)) <= lines + 3):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        run = runs.load(path)
        state = run.restore(make_method())
        assert state is not None
        assert state.update > reached
        reached = state.update
        assert run.schedule is not None
        assert run.schedule.num_updates >= state.update
        assert run.metrics["update"][-1] >= state.update
    states = []

    def stop_there(chunk):
        states.append(chunk.state)
        if chunk.state.update >= reached:
            raise StopIteration

    with pytest.raises(StopIteration):
        emulate(make_method(), make_schedule(100_000), KEY, chunk_size=10, callback=stop_there)
    assert state is not None
    assert states[-1].update == reached
    assert same(states[-1].shared, state.shared)


def test_the_chrome_trace_has_a_row_per_worker_and_no_overlaps():
    schedule = make_schedule(200)
    trace = timeline.chrome_trace(schedule)
    events = trace["traceEvents"]
    json.dumps(trace, allow_nan=False)
    names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M"}
    assert names == {0: "commits", 1: "worker 0", 2: "worker 1", 3: "worker 2", 4: "worker 3"}
    work = [e for e in events if e["name"] == "work"]
    assert len(work) == 200
    assert [e["args"]["staleness"] for e in work] == schedule.staleness().ravel().tolist()
    assert [e["args"]["version_read"] for e in work] == schedule.read.ravel().tolist()
    for tid in range(5):
        slices = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["ph"] == "X" and e["tid"] == tid)
        assert all(b[0] >= a[1] - 0.01 for a, b in itertools.pairwise(slices))
    starts, finishes = ({e["id"] for e in events if e["ph"] == phase} for phase in "sf")
    assert starts == finishes == set(range(200))


def test_the_chrome_trace_is_bounded_and_says_so():
    trace = timeline.chrome_trace(make_schedule(500), max_jobs=100)
    assert sum(e["name"] == "work" for e in trace["traceEvents"]) == 100
    assert trace["metadata"]["note"] == "updates 400 to 499 of 500 (the last ones only: the file is bounded)"
    virtual = timeline.chrome_trace(schedules.round_robin(10, 3))
    assert virtual["metadata"]["clock"].startswith("virtual")


def test_runs_become_one_table(tmp_path):
    for name in ("a", "b"):
        record(tmp_path / name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "config.json").write_text('{"argv": ["a3c"]}')
    with pytest.raises(ValueError, match=r"is a sweep, not a run: .*sweep\.py --resume"):
        runs.load(tmp_path / "sweep")
    table = runs.to_pandas(tmp_path / "*")
    assert len(table) == 12
    assert table["run"].unique().tolist() == [str(tmp_path / name) for name in ("a", "b")]
    assert set(CONFIG) <= set(table.columns)
    assert (table["learning_rate"] == 0.1).all()
    run = runs.load(tmp_path / "b")
    of_b = table[table["run"] == str(run.path)]
    for name in ("update", "env_steps", "loss", "staleness"):
        np.testing.assert_array_equal(of_b[name], run.metrics[name])
    workers = of_b[[f"staleness_per_worker_{w}" for w in range(4)]]
    np.testing.assert_array_equal(workers, run.metrics["staleness_per_worker"])
    assert table.equals(runs.to_pandas([tmp_path / "a", run]))
    Recorder(tmp_path / "killed", CONFIG).__exit__()  # before its first row
    types = runs.to_pandas([tmp_path / "killed", run]).dtypes
    assert types.equals(runs.to_pandas(run).dtypes)
    for nothing in (tmp_path / "notes", tmp_path / "none*"):
        with pytest.raises(ValueError, match="no run"):
            runs.to_pandas(nothing)


def test_an_option_with_the_name_of_a_metric_keeps_its_column(tmp_path):
    with Recorder(tmp_path / "run", {"loss": "huber"}) as recorder:
        emulate(make_method(), make_schedule(20), KEY, callback=recorder, chunk_size=10)
    table = runs.to_pandas(tmp_path / "run")
    assert (table["config_loss"] == "huber").all()
    assert table["loss"].dtype == np.float64
