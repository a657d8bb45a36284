"""The training command, end to end at a tiny size: what it writes, prints and returns."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import asyncjax as aj
import train
from asyncjax import arguments, commandline, runs, schedules, tuned
from asyncjax.progress import Interruptible, Progress, Terminated, terminable

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.usefixtures("quick_compilation")

GYMNASIUM = "--env gymnasium:CartPole-v1"
TINY = ["a3c", "--num-workers", "2", "--num-envs", "2", "--unroll-length", "4", "--total-steps", "400"]
TINY += ["--eval-episodes", "0", "--log-every", "5"]  # 50 updates in 10 chunks


def command(*extra, run_dir):
    return [*TINY, "--run-dir", str(run_dir), *extra]


def final_state(path):
    run = runs.load(path)
    method = commandline.build(commandline.factories()[run.config["method"]], run.config["env"], run.config)
    state = run.restore(method)
    assert state is not None
    return state


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    path = tmp_path_factory.mktemp("train") / "emulated"
    assert (
        train.main(command("--engine", "emulate", "--service", "exponential", "--eval-episodes", "2", run_dir=path))
        == 0
    )
    return path


@pytest.fixture(scope="module")
def threaded(tmp_path_factory):
    path = tmp_path_factory.mktemp("train") / "threaded"
    assert train.main(command("--engine", "threads", "--eval-episodes", "2", run_dir=path)) == 0
    return path


def assert_speeds_are_without_compiling(metrics):
    running = np.diff(metrics["seconds"] - metrics["compile_seconds"], prepend=0)
    steps = np.diff(metrics["env_steps"], prepend=0)
    assert metrics["compile_seconds"][0] > 0
    np.testing.assert_allclose(running, steps / metrics["steps_per_second"], atol=1e-4)


@pytest.mark.parametrize("engine", ["emulated", "threaded"])
def test_a_run_is_on_disk(engine, request):
    path = request.getfixturevalue(engine)
    run = runs.load(path)
    assert run.config["num_envs"] == 2
    assert run.config["env"] == "CartPole-v1"
    assert run.metrics["env_steps"][-1] == 400
    assert {"return", "length", "steps_per_second", "staleness", "loss", "entropy"} <= set(run.metrics)
    assert_speeds_are_without_compiling(run.metrics)
    assert run.schedule is not None
    assert run.schedule.worker.shape == (50, 1)
    assert len(json.loads((path / "summary.json").read_text())["evaluation_returns"]) == 2
    for name in ("dashboard", "return", "staleness", "workers"):
        assert (path / f"{name}.png").stat().st_size > 5000
    assert json.loads((path / "timeline.json").read_text())["metadata"]["clock"].startswith("the schedule's")


def test_replay_of_the_recorded_schedule_gives_the_same_bits(threaded, tmp_path):
    assert same(*(arguments.load_schedule(path) for path in (threaded, threaded / "schedule.npz")))
    assert train.main(command("--engine", "replay", "--schedule", str(threaded), run_dir=tmp_path / "again")) == 0
    assert same(final_state(threaded).shared, final_state(tmp_path / "again").shared)


def test_a_replay_with_other_options_says_which(threaded, tmp_path, capsys):
    words = command("--engine", "replay", "--schedule", str(threaded / "schedule.npz"), run_dir=tmp_path / "other")
    assert train.main([*words, "--seed", "5", "--unroll-length", "3"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("The schedule was recorded")]
    assert sorted(re.findall(r"(\w+)=(\S+?)[,:]", line)) == [("seed", "0"), ("unroll_length", "4")]


def test_a_directory_without_a_schedule_is_told(tmp_path):
    with pytest.raises(ValueError, match="there is no schedule in that directory; give a run directory"):
        arguments.load_schedule(tmp_path)


def test_a_run_terminated_resumed_and_made_longer(emulated, tmp_path, monkeypatch, capsys):
    def interrupt(self, row):
        if row["update"] == 20:
            signal.raise_signal(signal.SIGTERM)

    path = tmp_path / "run"
    options = ("--engine", "emulate", "--service", "exponential", "--eval-episodes", "2")
    with monkeypatch.context() as patch:
        patch.setattr("asyncjax.progress.Progress.__call__", interrupt)
        assert train.main(command(*options, run_dir=path)) == 143
    assert f"Terminated.\nRecorded so far: {path}. Continue with: python experiments/train.py --resume {path}" in (
        capsys.readouterr().err
    )
    assert final_state(path).update == 20
    assert train.main(["--resume", str(path)]) == 0
    assert same(final_state(path).shared, final_state(emulated).shared)
    run, reference = runs.load(path), runs.load(emulated)
    np.testing.assert_array_equal(run.metrics["loss"], reference.metrics["loss"])
    assert_speeds_are_without_compiling(run.metrics)
    assert same(run.schedule, reference.schedule)

    assert train.main(["--resume", str(path), "--total-steps", "480"]) == 0
    longer = runs.load(path)
    assert longer.metrics["env_steps"][-1] == 480
    assert longer.config["restarts"] == [400]
    assert longer.schedule is not None
    assert longer.schedule.time is not None
    assert longer.schedule.worker.shape == (60, 1)
    assert np.all(np.diff(longer.schedule.time) > 0)
    assert same(schedules.cut(longer.schedule, 0, 50), reference.schedule)
    assert train.main(["--resume", str(path), "--total-steps", "400"]) == 2
    assert "longer, not shorter" in capsys.readouterr().err


def test_sigterm_waits_for_the_end_of_the_chunk_however_often_it_comes():
    def run():
        with Interruptible() as interruptible, interruptible.running():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # `timeout` sends two
            interruptible.check()

    with pytest.raises(Terminated):
        run()


def test_a_second_ctrl_c_does_not_wait_and_a_third_does_not_interrupt_what_is_written(capsys):
    said = []

    def run():
        with Interruptible() as interruptible, contextlib.ExitStack() as recorder:
            recorder.callback(write, interruptible)
            with interruptible.running():
                signal.raise_signal(signal.SIGINT)
                said.append(capsys.readouterr().out)
                signal.raise_signal(signal.SIGINT)

    def write(interruptible):
        signal.raise_signal(signal.SIGINT)
        interruptible.check()
        said.append(capsys.readouterr().out)

    with pytest.raises(KeyboardInterrupt):
        run()
    at_once = "\nStopping at the end of this chunk; Ctrl-C again stops at once.\n"
    assert said == [at_once, "\nWriting the rest; then this stops.\n"]


@pytest.mark.parametrize("error", [None, OSError("no space")])
def test_ctrl_c_after_the_last_chunk_stops_when_the_rest_is_written_unless_that_fails(error):
    def run():
        with Interruptible() as interruptible:
            with interruptible.running():
                interruptible.check()
            signal.raise_signal(signal.SIGINT)
            if error is not None:
                raise error

    with pytest.raises(KeyboardInterrupt if error is None else OSError):
        run()


def test_sigterm_before_the_run_begins_ends_the_command_too():
    with terminable():
        assert train.exit_code(lambda: signal.raise_signal(signal.SIGTERM), lambda error: "") == 143
        signal.raise_signal(signal.SIGTERM)  # again, while it ends


@pytest.mark.slow
def test_ctrl_c_on_threads_leaves_a_checkpoint_to_resume(tmp_path):
    path = tmp_path / "run"
    script = [sys.executable, "-u", str(ROOT / "experiments" / "train.py")]
    sized = command("--engine", "threads", "--total-steps", "10000000", run_dir=path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    process = subprocess.Popen([*script, *sized], **pipes)
    while process.poll() is None and len(runs.read_rows(path)) < 5:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert f"--resume {path}" in output
    run, state = runs.load(path), final_state(path)
    assert run.schedule is not None
    assert run.schedule.num_updates == state.update == run.metrics["update"][-1]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--env CartPool-v1", "CartPole-v1"),
        ("--env-params 3", "env_params='3': write name=value"),
        ("--env-params gravity=heavy", "env_params='gravity=heavy': 'heavy' is no number"),
        ("--eval-episodes -5", "eval_episodes=-5: use at least 0"),
        ("--log-every 0", "log_every=0: use at least 1"),
        ("--checkpoint-every -3", "checkpoint_every=-3.0: use at least 0.0"),
        ("--num-threads 0", "num_threads=0: use at least 1"),
        ("--service-mean -1", "service_mean=-1.0: give positive seconds"),
        ("--seed 4294967296", "seed=4294967296: use one of 0 to 4294967295"),
        ("--num-devices 0", "num_devices=0: use at least 1"),
        (
            "--num-devices 3 --num-workers 4 --engine emulate",
            "num_devices=3: only 1 cpu device(s) here; ask for no more",
        ),
        ("--num-devices 2", "num_devices=2 is of another engine: use --engine emulate"),
        ("--num-devices 999 --engine emulate", "num_devices=999: 2 workers keep no more"),
        ("--num-threads 2 --engine emulate", "num_threads=2 is of another engine: use --engine threads"),
        ("--address auto", "address='auto' is of another engine: use --engine ray"),
        ("--env-params gravitas=3", "gravitas=3 is not a parameter of CartPole-v1"),
        ("--env-params gravity=9 gravity=3", "env_params='gravity=3': gravity is 9 already; give it once"),
        (f"{GYMNASIUM} --env-params gravitas=3", "gravitas=3 is not a parameter of gymnasium:CartPole-v1"),
        (f"{GYMNASIUM} --env-params max_episode_steps=0", "can not be made with {'max_episode_steps': 0}. gymnasium s"),
        ("--num-workers 0", "num_workers=0"),
        ("--num-envs -1", "num_envs=-1"),
        ("--total-steps 0", "total_steps=0: train for at least 1 step."),
        ("--learning-rate -1", "learning_rate=-1.0: a step size is positive"),
        ("--learning-rate inf", "learning_rate=inf: a step size is positive and finite"),
        ("--group-size 3 --wait next_version", "group_size=3"),
        ("--schedule missing.npz --engine replay", "schedule=missing.npz: there is no such file"),
        ("--publication leaf --engine emulate", "use --engine threads"),
        ("--service-mean 0.5", "service_mean=0.5 would have no effect: workers sleep only with --service; give"),
        ("--schedule missing.npz", "use --engine emulate or replay"),
        ("--resume nowhere", "nowhere holds no run"),
        ("a3c --resume nowhere", "a3c: --resume takes the method and its options from the run directory"),
        ("--resume nowhere --total-steps 9 --seed=3", "--seed: --resume takes the method and its options"),
        (f"{GYMNASIUM} --engine emulate", "lives on the host"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(extra, message, tmp_path, capsys):
    assert train.main(extra.split() if "--resume" in extra else command(*extra.split(), run_dir=tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_a_directory_in_use_is_refused(emulated, capsys):
    assert train.main(command(run_dir=emulated)) == 2
    assert f"continue its run with --resume {emulated}" in capsys.readouterr().err


def test_a_failing_run_keeps_what_it_has_and_tells_why(tmp_path, capsys):
    path = tmp_path / "run"
    options = ["--engine", "emulate", "--learning-rate", "1e30", "--optimizer", "sgd"]
    assert train.main(command(*options, run_dir=path)) == 1
    error = capsys.readouterr().err
    assert "non-finite" in error
    assert "Traceback" not in error
    assert f"Recorded so far: {path}" in error
    assert "--resume" not in error  # it would fail again
    assert runs.load(path).schedule is not None


def test_a_schedule_and_a_step_size_that_end_before_the_planned_steps_are_told():
    config, *_ = arguments.parse(["a3c", "--engine=emulate", "--schedule=no.npz", "--total-steps=999999"], None)
    notes = [list(train.notes(config, arguments.Plan(updates, 300, None)))[1:] for updates in (100, 1700, 3334)]
    ends = "The schedule ends at {} steps, and the run with it: before total_steps=999,999."
    zero = "anneal_steps=500,000: the step size is 0 from there to the end, at {:,} steps; --anneal-steps {} would"
    assert [len(lines) for lines in notes] == [1, 2, 1]
    assert [lines[0] for lines in notes[:2]] == [ends.format("30,000"), ends.format("510,000")]
    assert notes[1][1].startswith(zero.format(510000, 510000))
    assert notes[2][0].startswith(zero.format(999999, 999999))


def test_options_that_a_recorded_schedule_leaves_without_effect_are_refused_in_a_new_run():
    def config(*words):
        return arguments.parse(["ppo", "--env", "Breakout-MinAtar", "--schedule", "no.npz", *words], None)[0]

    emulate = ("--engine", "emulate")
    arguments.check_options(config(*emulate))  # the group size that is tuned for it was not asked for
    for option, value in {"group_size": 2, "wait": "next_version", "bound": 2, "eta": 1, "service": "pareto"}.items():
        asked = config(*emulate, f"--{option.replace('_', '-')}", str(value))
        with pytest.raises(ValueError, match=f"{option}={value!r} would have no effect: .*schedule"):
            arguments.check_options(asked)
        arguments.check_options(asked, resumed=True)  # as an earlier version recorded it
    with pytest.raises(ValueError, match=r"service_mean=0\.5 would have no effect: .*schedule"):
        arguments.check_options(config(*emulate, "--service-mean", "0.5"))


def test_a_method_that_counts_no_steps_and_no_episodes_is_trained(tmp_path, monkeypatch, capsys):
    def guess(env, step_size=0.5):  # without a type: an option goes by its default's
        learner = aj.a3c(env)
        return learner._replace(
            work=lambda view, local: (jax.numpy.float32(step_size), local, {}),
            apply=lambda shared, messages, stale: (shared, {"moved": messages.sum()}),
        )

    monkeypatch.setattr(commandline, "factories", lambda: {"guess": guess})
    words = ["guess", "--num-workers", "2", "--total-steps", "40", "--engine", "emulate", "--step-size", "0.25"]
    assert train.main([*words, "--eval-episodes", "2", "--run-dir", str(tmp_path / "run")]) == 0
    assert re.search(r"training return +│ - ", capsys.readouterr().out)
    run = runs.load(tmp_path / "run")
    assert run.metrics["env_steps"].tolist() == run.metrics["update"].tolist()  # a message counts as one step
    assert set(run.metrics["moved"]) == {0.25}


def test_a_directory_that_another_command_made_meanwhile_stays(tmp_path, monkeypatch, capsys):
    def meanwhile(*_):
        (tmp_path / "run").mkdir()
        raise ValueError("this one fails")

    monkeypatch.setattr(train, "train", meanwhile)
    assert train.main(command("--engine", "emulate", run_dir=tmp_path / "run")) != 0
    assert (tmp_path / "run").is_dir()


def test_a_run_that_recorded_nothing_is_not_to_be_continued_and_leaves_no_directory(tmp_path, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise ValueError("no bananas left")

    monkeypatch.setattr(train, "run", fail)
    assert train.main(command("--engine", "emulate", run_dir=tmp_path / "run")) != 0
    error = capsys.readouterr().err
    assert "no bananas left" in error
    assert "--resume" not in error
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    assert train.main(command("--engine", "emulate", run_dir=tmp_path / "run")) != 0
    assert (tmp_path / "run").exists()  # it is the user's


def test_a_run_recorded_before_there_was_an_option_continues_with_its_default(emulated, tmp_path, capsys):
    path = shutil.copytree(emulated, tmp_path / "run")
    config = json.loads((path / "config.json").read_text())
    for name in ("eta", "max_restarts", "seed", "discount"):
        del config[name]
    config["env_params"] = ["gravity=1", "gravity=9.8"]  # of which the last one counted
    (path / "config.json").write_text(json.dumps(config))
    shutil.rmtree(path / "checkpoints")
    assert train.main(["--resume", str(path), "--total-steps", "480"]) == 0
    assert f"in {path}, which has no checkpoint yet: it begins again" in capsys.readouterr().out.replace("\n", "")
    options = vars(arguments.Training()) | vars(arguments.Asynchrony()) | vars(arguments.Cluster())
    continued = runs.load(path).config
    assert {name: continued[name] for name in ("eta", "max_restarts", "seed")}.items() <= options.items()
    assert continued["env_params"] == ["gravity=9.8"]
    assert runs.load(path).metrics["env_steps"][-1] == 480


def test_an_unexpected_error_shows_its_traceback(tmp_path, monkeypatch, capsys):
    def fail(self, row):
        raise RuntimeError("the display broke")

    monkeypatch.setattr("asyncjax.progress.Progress.__call__", fail)
    assert train.main(command("--engine", "emulate", run_dir=tmp_path / "run")) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "the display broke" in error
    assert runs.load(tmp_path / "run").metrics["update"].tolist() == [5]


def test_a_users_own_cache_keeps_small_programs_too_unless_the_user_says_otherwise(monkeypatch):
    name = "jax_persistent_cache_min_compile_time_secs"
    monkeypatch.setenv(name.upper(), "1.0")
    jax.config.update(name, 1.0)
    train.prepare_jax(compilation_cache=True)
    assert jax.config.values[name] == 1
    monkeypatch.delenv(name.upper())
    train.prepare_jax(compilation_cache=False)
    assert jax.config.values[name] == 1
    train.prepare_jax(compilation_cache=True)
    assert jax.config.values[name] == 0


@pytest.mark.parametrize(("terminal", "environment"), [(True, {"TERM": "dumb"}), (False, {"FORCE_COLOR": "1"})])
def test_what_can_draw_no_bar_is_given_lines(terminal, environment, monkeypatch, capsys):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    with Progress(100, seconds_between_lines=0) as progress:
        for update in (10, 50, 100):
            progress({"update": update, "updates_per_second": 5.0, "staleness": 1.0, "staleness_max": 2.0})
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("first updates after")
    assert [line.split(" %")[0].strip() for line in lines] == ["10", "50", "100"]
    assert ["  eta " in line for line in lines] == [False, True, False]


def test_help_explains_every_option(capsys):
    for name, factory in commandline.factories().items():
        names = [field.name for field in dataclasses.fields(commandline.options(factory))]
        assert ("learning_rate" in names) == ("optimizer" in inspect.signature(factory).parameters)
        helps = commandline.argument_helps(factory)
        for option in names:
            assert helps.get(option) or option == "learning_rate", f"{name}: {option} has no line in Args"
        with pytest.raises(SystemExit) as ended:
            train.main([name, "--help"])
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        for option in [*names, "total_steps", "bound", "checkpoint_every"]:
            assert f"--{option.replace('_', '-')}" in shown


def test_by_default_the_workers_of_emulate_take_turns():
    options = vars(arguments.Training(engine="emulate", total_steps=50)) | vars(arguments.Asynchrony())
    config = arguments.configuration("a3c", options | {"num_envs": 1, "unroll_length": 1})
    schedule = arguments.make_plan(config, aj.make_env("CartPole-v1"), jax.random.key(0)).schedule
    assert schedule is not None
    np.testing.assert_array_equal(schedule.worker.ravel(), np.arange(50) % 8)
    np.testing.assert_array_equal(schedule.staleness().ravel(), np.minimum(np.arange(50), 7))


def test_options_tuned_for_an_environment_are_defaults_that_the_user_overrides():
    def parse(*argv):
        return commandline.parse(list(argv), "train.py", None, training=arguments.Training, more=arguments.Asynchrony)[
            1
        ]

    for argv in (["a3c"], ["a3c", "--env", "CartPole-v1"], ["a3c", "--env=Catch-bsuite", "--env=CartPole-v1"]):
        assert (parse(*argv)["env"], parse(*argv)["anneal_steps"]) == ("CartPole-v1", 5e5)  # the default, too
    plain, breakout = parse("ppo"), parse("ppo", "--env", "Breakout-MinAtar")
    assert (plain["epochs"], plain["group_size"]) == (2, 1)
    assert (breakout["epochs"], breakout["group_size"], breakout["learning_rate"]) == (4, 8, 2.5e-3)
    assert commandline.describe_tuned("ppo", plain) == ""
    mine = parse("ppo", "--env=Breakout-MinAtar", "--epochs", "3")
    assert (mine["epochs"], mine["group_size"]) == (3, 8)
    assert "epochs" not in commandline.describe_tuned("ppo", mine)


@pytest.mark.parametrize(("method", "pattern"), list(tuned.TUNED))
def test_every_tuned_option_exists(method, pattern):
    names = {field.name for field in dataclasses.fields(commandline.options(commandline.factories()[method]))}
    names |= {field.name for field in dataclasses.fields(arguments.Asynchrony)}
    assert set(tuned.TUNED[method, pattern]) <= names
