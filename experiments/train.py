"""Trains a method in an environment, asynchronously, and records the run.

    python experiments/train.py a3c --env CartPole-v1 --engine threads --num-workers 8 --total-steps 500000 --seed 0
    python experiments/train.py --resume RUN_DIR

A run that was stopped in any way continues with --resume RUN_DIR (and --total-steps, to make it longer).
Ctrl-C and SIGTERM stop it at the end of a chunk; the exit code is then 130 or 143.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import asyncjax
from asyncjax import animation, arguments, commandline, files, loggers, plotting, runs
from asyncjax.arguments import ONLY, Config, Plan
from asyncjax.discipline import Discipline
from asyncjax.environment import Environment
from asyncjax.method import Method, Result
from asyncjax.progress import Interruptible, Progress, Terminated, terminable
from asyncjax.recorder import Recorder


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    run_dir: list[Path] = []  # known from the moment it exists

    def command() -> None:
        config, path, resumed = arguments.parse(sys.argv[1:] if argv is None else argv, __doc__)
        with unless_empty(path, run_dir):
            train(config, path, resumed, run_dir)

    with terminable():
        return exit_code(command, lambda error: continue_with(run_dir, error))


@contextlib.contextmanager
def unless_empty(path: Path, run_dir: list[Path]) -> Iterator[None]:
    """Leaves no run directory behind where a command that fails has made it and recorded nothing."""
    new = not path.exists()
    try:
        yield
    except BaseException:
        # `run_dir` is empty where another command was quicker to make the directory, which then is not this one's.
        if new and run_dir and path.exists() and not runs.read_rows(path):
            shutil.rmtree(path)
        raise


def train(config: Config, path: Path, resumed: bool, run_dir: list[Path]) -> None:
    """One run, from its configuration to its summary."""
    arguments.check_options(config, resumed)
    divide_cpu(config["num_devices"])
    prepare_jax(config["compilation_cache"])
    # Of the run, the schedule and the evaluation; one program splits them and takes them apart.
    keys = jax.jit(lambda key: tuple(jax.random.split(key, 3)))(jax.random.key(config["seed"]))
    env = commandline.make_env_from(config["env"], config["env_params"])
    method = commandline.build(commandline.factories()[config["method"]], env, config)
    plan = arguments.make_plan(config, env, keys[1])
    config["log_every"] = config["log_every"] or max(1, min(plan.num_updates // 100, 1024))
    state = runs.load(path).restore(method) if resumed else None
    progress = Progress(plan.num_updates * plan.steps, state.update * plan.steps if state else 0)
    interruptible = Interruptible()
    if config.get("animate"):
        animation.drawing(env)  # what can not be drawn is an error now rather than after the run
    log = loggers.LOGGERS[config["logger"]](path, config) if config.get("logger") else None

    def on_row(row: runs.Row) -> None:
        progress(row)
        if log is not None:
            log(row)
        interruptible.check()

    recorder = Recorder(
        path,
        config,
        resume=resumed,
        state=state,
        steps_per_update=plan.steps,
        checkpoint_every=config["checkpoint_every"],
        may_differ=config,  # a continued run's are the directory's own, and defaults of options that it did not know
        on_row=on_row,
    )
    run_dir.append(path)
    begun = ", which has no checkpoint yet: it begins again" if resumed else ""
    if state is not None:
        begun = f", continued at {state.update * plan.steps:,} steps"
    workers = f"{config['num_workers']} workers, {config['engine']}"
    print(f"{config['method']} on {env.name}: {workers}, in {path}{begun}", flush=True)
    for note in notes(config, plan):
        print(note, flush=True)
    with interruptible, recorder, progress, log or contextlib.nullcontext(), interruptible.running():
        result = run(config, plan, method, keys[0], state=state, callback=recorder, chunk_size=config["log_every"])
    summarize(config, path, evaluation_returns(config, env, method, result, keys[2]))
    if config.get("animate"):
        print(animation.animate(method, env, result.shared, keys[2], path / "policy.gif"))


def notes(config: Config, plan: Plan) -> Iterator[str]:
    """What the user may not expect of the run that begins."""
    if tuned := commandline.describe_tuned(config["method"], config):
        yield f"Tuned for {config['env']}:{tuned}"
    if config.get("schedule") and (others := arguments.describe_recorded(config)):
        yield f"The schedule was recorded with {others}: with the same this run would repeat that one."
    planned = config["total_steps"]
    total = min(planned, plan.num_updates * plan.steps)  # a plan is rounded up, and a recorded schedule may be shorter
    if total < planned:
        yield f"The schedule ends at {total:,} steps, and the run with it: before total_steps={planned:,}."
    if (annealed := config.get("anneal_steps")) and annealed < total:
        still = f"the step size is 0 from there to the end, at {total:,} steps"
        yield f"anneal_steps={annealed:,.0f}: {still}; --anneal-steps {total} would spread its fall."


def run(config: Config, plan: Plan, method: Method, key: jax.Array, **common: Any) -> Result:
    """Calls the engine: one that takes a schedule, or one whose workers make it."""
    if plan.schedule is not None:
        engine = getattr(asyncjax, config["engine"])
        options = {"devices": plan.devices} if config["engine"] == "emulate" else {}
        return engine(method, plan.schedule, key, num_workers=config["num_workers"], **options, **common)
    options = {name: config[name] for name in ("num_workers", *Discipline._fields, *ONLY[config["engine"]])}
    engine = getattr(asyncjax, f"run_{config['engine']}")
    service = arguments.make_service(config)
    return engine(method, key, num_updates=plan.num_updates, service=service, **options, **common)[0]


def evaluation_returns(config: Config, env: Environment, method: Method, result: Result, key: jax.Array) -> np.ndarray:
    """Float[eval_episodes], returns of the final policy; empty where none are asked for."""
    if not config["eval_episodes"] or method.policy is None:
        return np.zeros(0)
    return np.asarray(asyncjax.evaluate(method, env, result.shared, key, num_episodes=config["eval_episodes"]))


def summarize(config: Config, path: Path, returns: np.ndarray) -> None:
    """Prints the summary, writes it to summary.json and draws the pictures."""
    from rich.console import Console
    from rich.table import Table

    recorded = runs.load(path)
    metrics, schedule = recorded.metrics, recorded.schedule
    assert schedule is not None
    staleness = np.asarray(schedule.staleness())
    seconds, compiling = metrics["seconds"][-1], metrics["compile_seconds"][-1]
    steps = int(metrics["env_steps"][-1])
    unit = "environment steps" if config.keys() & {"num_envs", "unroll_length"} else "messages"  # see steps_per_message
    summary = {
        "evaluation return": f"{returns.mean():.1f} +- {returns.std():.1f} ({len(returns)} episodes)"
        if len(returns)
        else "-",
        "training return": "-" if math.isnan(last := last_return(metrics)) else f"{last:.1f} (last tenth of the run)",
        unit: f"{steps:,} in {schedule.num_updates:,} updates",
        "time": f"{seconds:.1f} s, {compiling:.1f} s of it compiling",
        "speed": f"{speed(metrics):,.0f} {unit} per second (median)",
        "staleness": f"mean {staleness.mean():.2f}, max {staleness.max()}",
    }
    details = {
        "evaluation_returns": returns.tolist(),
        "seconds": seconds,
        "compile_seconds": compiling,
        "env_steps": steps,
    }
    files.replace(path / "summary.json", json.dumps(details, indent=2))
    table = Table(show_header=False, title=f"{config['method']} on {config['env']}", title_justify="left")
    for name, text in summary.items():
        table.add_row(name, text)
    Console().print(table)
    for picture in plotting.save_all(recorded).values():
        print(picture)
    print(f"{path / 'timeline.json'}  (open it in ui.perfetto.dev)")


def last_return(metrics: dict[str, np.ndarray]) -> float:
    """The mean return of the episodes that ended in the last tenth of the steps; NaN where none is known."""
    if "return" not in metrics:
        return math.nan
    episodes = metrics.get("episodes", np.ones_like(metrics["return"]))  # a method may report no more than a return
    weights = episodes * (metrics["env_steps"] >= 0.9 * metrics["env_steps"][-1])
    return float(np.nansum(metrics["return"] * weights) / max(weights.sum(), 1)) if weights.any() else float("nan")


def speed(metrics: dict[str, np.ndarray]) -> float:
    """The median of environment steps per second; without the first line of a run, if it has others."""
    per_second = metrics["steps_per_second"]
    return float(np.median(per_second[1:] if len(per_second) > 1 else per_second))


def divide_cpu(num_devices: int) -> None:
    """Makes so many devices of a CPU, but no more than its cores; before JAX computes anything."""
    num_devices = min(num_devices, max(os.cpu_count() or 1, 2))
    if num_devices > 1:
        with contextlib.suppress(RuntimeError):  # where JAX has begun: what needs them says if there are too few
            jax.config.update("jax_num_cpu_devices", num_devices)


def prepare_jax(compilation_cache: bool) -> None:
    """Options of JAX that have to be set before it computes anything."""
    # A call from a worker's thread computes there and then, instead of waking another thread first.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if not compilation_cache:
        return
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        if home.startswith("~"):  # a user without a home, as in some containers
            return
        cache = Path(home) / "asyncjax"
        jax.config.update("jax_compilation_cache_dir", str(cache))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # Small programs, too: a run begins with a dozen of them, and one is read in a tenth of the time it compiles in.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def exit_code(command: Callable[[], Any], advice: Callable[[BaseException], str]) -> int:
    """Runs a script's command; what stops it is told, with the advice, and becomes the exit code."""
    try:
        command()
    except KeyboardInterrupt as interrupt:
        terminated = isinstance(interrupt, Terminated)
        print(f"\n{'Terminated' if terminated else 'Interrupted'}." + advice(interrupt), file=sys.stderr)
        return 143 if terminated else 130
    except Exception as error:
        return explain(error, advice(error))
    return 0


def explain(error: Exception, advice: str) -> int:
    """Prints an error: a sentence where it is one written for the user, a traceback where it is not."""
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    ours = any(Path(file).resolve().parent in raised_in.parents for file in (asyncjax.__file__, __file__))
    mistake = ours and isinstance(error, (ValueError, TypeError, ImportError))
    if not mistake and not isinstance(error, (FloatingPointError, OSError, TimeoutError)):
        traceback.print_exception(error)
    # JAX's note, after a line of dashes, is on tracebacks.
    notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()) if not note.startswith("---"))
    print(f"\nError: {error}{notes}{advice}", file=sys.stderr)
    return 2 if mistake else 1


def continue_with(run_dir: list[Path], error: BaseException) -> str:
    """Where the run is and how it goes on, once there is something of it."""
    if not run_dir or not runs.read_rows(run_dir[0]):
        return ""
    if isinstance(error, FloatingPointError):  # it would come again
        return f"\nRecorded so far: {run_dir[0]}."
    return f"\nRecorded so far: {run_dir[0]}. Continue with: python experiments/train.py --resume {run_dir[0]}"


if __name__ == "__main__":
    gc.set_threshold(100_000)  # With Python's 700 a tenth of the time to the first update goes into 160 collections.
    sys.exit(main())
