"""The arguments of the scripts: a configuration from the command line or a run directory, and what it stands for."""

from __future__ import annotations

import dataclasses
import math
import time
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from asyncjax import commandline, runs, schedules, service
from asyncjax.adapters.host_environment import check_compiled
from asyncjax.discipline import Discipline
from asyncjax.environment import Environment
from asyncjax.method import Device
from asyncjax.schedules import Schedule, directory
from asyncjax.tuned import tuned

SERVICES: dict[str, Callable[[float], service.Service]] = {
    "constant": service.constant,
    "exponential": service.exponential,
    "gamma": lambda mean: service.gamma(16.0, mean),
    "lognormal": lambda mean: service.lognormal(0.5, mean),
    "pareto": lambda mean: service.pareto(2.0, mean),
    "straggler": lambda mean: service.straggler(0.05, 10.0, mean),
}


@dataclasses.dataclass(frozen=True)
class Training:
    """What to train, where and how long."""

    env: str = "CartPole-v1"
    """Environment: any gymnax id, or gymnasium:ID, envpool:ID (both on the host, for threads), or brax:ID."""
    env_params: tuple[str, ...] = ()
    """Parameters of the environment that differ from its defaults, as name=value."""
    engine: Literal["threads", "ray", "emulate", "replay"] = "threads"
    """Where the schedule comes from.

    threads: from workers on host threads, as fast as the machine allows.
    ray: from worker processes, on this machine or on the cluster of --address.
    emulate: from service times or a file; one compiled program, deterministic.
    replay: the same, update by update, bit for bit what threads and Ray compute."""
    num_workers: int = 8
    """Asynchronous workers."""
    total_steps: int = 500_000
    """Environment steps of all workers together, rounded up to whole updates."""
    seed: int = 0
    """Seed of everything that is random."""
    eval_episodes: int = 100
    """Fresh episodes on which the final policy is evaluated greedily; 0 for none."""


@dataclasses.dataclass(frozen=True)
class Asynchrony:
    """Who waits for whom, and how long work takes."""

    group_size: int = 1
    """Messages per update. With --wait next_version and as many as workers, training is synchronous."""
    wait: Literal["never", "next_version"] = "never"
    """Whether a worker begins its next job at once, or waits until a newer version exists."""
    bound: int | None = None
    """No worker gets more than so many messages ahead of the slowest one (stale-synchronous parallel)."""
    eta: int | None = None
    """No message is staler than so many updates: jobs wait for admission, messages for those that began before."""
    num_threads: int | None = None
    """threads: host threads that the workers share; None is one per core, or one each where workers sleep or wait."""
    num_devices: int = 1
    """emulate: divide the work over so many devices, on a CPU over cores.

    It pays where a message takes about a millisecond to compute; smaller ones get slower."""
    publication: Literal["atomic", "leaf"] = "atomic"
    """threads: publish new parameters as a whole, or leaf by leaf, so that reads may be torn."""
    service: Literal["constant", "exponential", "gamma", "lognormal", "pareto", "straggler"] | None = None
    """Service-time model.

    gamma has shape 16, lognormal sigma 0.5, pareto shape 2; of a straggler's jobs one in 20 takes ten times as long.
    emulate, replay: None is constant, which has the workers take turns.
    threads, ray: a job takes at least so long: workers sleep for what is left of it; None is no sleep."""
    service_mean: float = 0.01
    """Mean service time in seconds; of straggler without the delays, with them it is 1.45 times as long."""
    schedule: Path | None = None
    """emulate, replay: run this recorded schedule instead, a file or a run directory; --total-steps at most."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where the workers are, with --engine ray."""

    address: str | None = None
    """Of a Ray cluster, such as auto on one of its machines; None starts Ray on this machine."""
    num_processes: int | None = None
    """Processes that the workers share; None is one for each. With fewer, messages travel while others work."""
    max_restarts: int = 16
    """Worker processes that may die and be replaced."""


@dataclasses.dataclass(frozen=True)
class Output:
    """What is written, and when."""

    run_dir: Path | None = None
    """Run directory; by default runs/<env>-<method>-<engine>-<seed>-<time>."""
    checkpoint_every: float = 60.0
    """Seconds between checkpoints."""
    log_every: int | None = None
    """Updates per line of metrics.jsonl; by default a hundredth of the run, 1024 at most."""
    logger: Literal["tensorboard", "wandb"] | None = None
    """Write the metrics for TensorBoard or Weights & Biases as well (extra: logging), into the run directory."""
    animate: bool = False
    """Draw the final policy at work as policy.gif: classic control, Catch and MinAtar."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache directory, so that the next start is quicker."""


@dataclasses.dataclass(frozen=True)
class Resume:
    """Continues a run from its last checkpoint, with the configuration recorded there."""

    resume: Path
    """The run directory."""
    total_steps: int | None = None
    """Environment steps of the whole run, to make it longer than first planned."""
    num_devices: int | None = None
    """emulate: another number of devices than before; the rest is then what it would have been up to rounding."""


Config = dict[str, Any]  # every option by name, and "method": what config.json holds


def parse(argv: list[str], description: str | None) -> tuple[Config, Path, bool]:
    """The configuration, the run directory, and whether it is continued."""
    import tyro

    if any(word.split("=")[0] == "--resume" for word in argv):
        _check_resume(argv)
        resume = tyro.cli(Resume, args=argv, prog="train.py")
        recorded = runs.load(resume.resume).config
        of_method = commandline.options(commandline.factories()[recorded["method"]])
        config = defaults(of_method, Training, Asynchrony, Cluster, Output) | recorded
        del config["run_dir"]
        # Of several values of one parameter the last one counted when there was no error for it.
        config["env_params"] = list({param.partition("=")[0]: param for param in config["env_params"]}.values())
        if resume.total_steps is not None and resume.total_steps < config["total_steps"]:
            raise ValueError(
                f"total_steps={resume.total_steps}: the run was planned for {config['total_steps']} steps."
                " A run can be made longer, not shorter."
            )
        if resume.total_steps is not None and resume.total_steps > config["total_steps"]:
            config["restarts"] = [*config["restarts"], config["total_steps"]]
            config["total_steps"] = resume.total_steps
        if resume.num_devices is not None:
            config["num_devices"] = resume.num_devices
        return config, resume.resume, True
    method, values = commandline.parse(
        argv, "train.py", description, training=Training, asynchrony=Asynchrony, cluster=Cluster, output=Output
    )
    config = configuration(method, values)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = Path("runs") / f"{config['env']}-{config['method']}-{config['engine']}-{config['seed']}-{stamp}"
    return config, Path(config.pop("run_dir") or path), False


def _check_resume(argv: list[str]) -> None:
    """Raises ValueError for what a run that is continued takes from its directory."""
    options = {word.split("=")[0].replace("_", "-") for word in argv if word.startswith("--")}
    others = [argv[0]] * (argv[0] in commandline.factories()) + sorted(
        options - {"--resume", "--total-steps", "--num-devices", "--help"}
    )
    if others:
        raise ValueError(
            f"{others[0]}: --resume takes the method and its options from the run directory; only --total-steps and"
            " --num-devices go with it."
        )


def configuration(method: str, values: dict[str, Any]) -> Config:
    """The options by name, as JSON types."""
    config: Config = {"method": method, "restarts": []}  # restarts: the total steps of earlier, shorter plans
    return config | {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def defaults(*kinds: type) -> Config:
    """The defaults of these options by name: also what a run meant that was recorded before there was the option."""
    return {field.name: field.default for kind in kinds for field in dataclasses.fields(kind)}


REAL = ("threads", "ray")  # engines whose workers make the schedule
# The options that one engine has and others do not.
ONLY = {
    "threads": ("num_threads", "publication"),
    "ray": ("address", "num_processes", "max_restarts"),
    "emulate": ("num_devices",),
}
LEAST = {
    "eval_episodes": 0,
    "log_every": 1,
    "checkpoint_every": 0.0,
    "num_threads": 1,
    "num_devices": 1,
    "num_processes": 1,
    "max_restarts": 0,
}


def check_options(config: Config, resumed: bool = False) -> None:
    """Raises ValueError for what would be found out late, or would have no effect; before anything is written.

    A resumed run's may have options without effect: it was recorded when they were accepted.
    """
    for name, least in LEAST.items():
        value = config[name]
        if value is not None and not value >= least:
            raise ValueError(f"{name}={value}: use at least {least}.")
    if not 0 <= config["seed"] < 2**32:
        raise ValueError(f"seed={config['seed']}: use one of 0 to {2**32 - 1}; others would repeat these.")
    if not 0 < config["service_mean"] < math.inf:
        raise ValueError(f"service_mean={config['service_mean']}: give positive seconds.")
    usual = defaults(Asynchrony, Cluster)
    for engine, names in ONLY.items():
        for name in names:
            if engine != config["engine"] and config[name] != usual[name]:
                raise ValueError(
                    f"{name}={config[name]!r} is of another engine: use --engine {engine}, or leave it out."
                )
    if not resumed:
        check_effects(config)


def check_effects(config: Config) -> None:
    """Raises ValueError for options of the asynchrony that others leave without effect."""
    usual, recommended = defaults(Asynchrony), tuned(config["method"], config["env"])

    def refuse(names: tuple[str, ...], why: str) -> None:
        for name in names:
            if config[name] not in (usual[name], recommended.get(name, usual[name])):  # so it was asked for
                raise ValueError(f"{name}={config[name]!r} would have no effect: {why}.")

    if config["num_devices"] > max(config["num_workers"], 1):
        raise ValueError(
            f"num_devices={config['num_devices']}: {config['num_workers']} workers keep no more than as many devices"
            " busy; ask for no more."
        )
    if config["engine"] in REAL:
        if config["service"] is None:
            refuse(("service_mean",), "workers sleep only with --service; give that too, or neither")
    elif config["schedule"] is not None:
        names = (*Discipline._fields, "service", "service_mean")
        refuse(names, "who comes when is in the recorded schedule; give it or --schedule, not both")


class Plan(NamedTuple):
    """How long a run is, and its schedule where that is not the engine's to make.

    Attributes:
      num_updates: T.
      steps: environment steps per update.
      schedule: what `emulate` and `replay` run; None where real workers make it.
      devices: those that share the work of `emulate`; None where it is the one that JAX chooses.
    """

    num_updates: int
    steps: int
    schedule: Schedule | None
    devices: list[Device] | None = None


def make_plan(config: Config, env: Environment, key: jax.Array) -> Plan:
    """The plan of a run; raises ValueError where the options do not go together."""
    real, recorded = config["engine"] in REAL, config["schedule"]
    per_message = commandline.steps_per_message(env, config)
    if config["engine"] == "emulate":
        check_compiled(env)
    devices = devices_of(config["num_devices"])
    if real and recorded is not None:
        raise ValueError(f"schedule={recorded}: real workers make their own schedule; use --engine emulate or replay.")
    if recorded is not None:
        schedule = schedules.check(load_schedule(Path(recorded)), config["num_workers"])
        steps = per_message * schedule.group_size
        updates = min(schedule.num_updates, num_updates(config["total_steps"], steps))
        return Plan(updates, steps, schedules.cut(schedule, 0, updates), devices)
    discipline = Discipline(*(config[name] for name in Discipline._fields)).check(config["num_workers"])
    steps = per_message * discipline.group_size
    updates = num_updates(config["total_steps"], steps)
    if real:
        return Plan(updates, steps, None)
    return Plan(updates, steps, virtual_schedule(config, discipline, steps, key), devices)


def load_schedule(path: Path) -> Schedule:
    """The schedule in a file, or in a run directory, however that run stopped."""
    schedule = directory.load(path) if path.is_dir() else schedules.load(path) if path.is_file() else None
    if schedule is None:
        missing = "no schedule in that directory" if path.is_dir() else "no such file"
        raise ValueError(f"schedule={path}: there is {missing}; give a run directory, or its schedule.npz.")
    return schedule


def describe_recorded(config: Config) -> str:
    """What the run, whose schedule this one repeats, had otherwise of what makes its numbers; empty where nothing."""
    path = Path(config["schedule"])
    directory = path if path.is_dir() else path.parent
    if not (directory / "config.json").is_file():
        return ""
    of_method = typing.get_type_hints(commandline.options(commandline.factories()[config["method"]]))
    names = {"method", "env", "env_params", "seed", "num_workers", *of_method}
    others = runs.differences(directory, config)
    return ", ".join(f"{name}={value}" for name, value in others.items() if name in names)


def virtual_schedule(config: Config, discipline: Discipline, steps: int, key: jax.Array) -> Schedule:
    """The schedule that the discipline makes of the service times.

    Where a planned run was made longer, all workers begin anew: which versions they would have read by
    then was not part of the plan.
    """
    model = make_service(config) or service.constant(config["service_mean"])
    options = {"num_workers": config["num_workers"], **discipline._asdict()}
    whole = schedules.from_service_times(model, 0, key=key, **options)
    for i, total_steps in enumerate([*config["restarts"], config["total_steps"]]):
        length = num_updates(total_steps, steps) - whole.num_updates
        part = schedules.from_service_times(model, length, key=jax.random.fold_in(key, i), **options)
        whole = schedules.extend(whole, part)
    return whole


def make_service(config: Config) -> service.Service | None:
    """The service-time model, None where there is none."""
    return None if config["service"] is None else SERVICES[config["service"]](config["service_mean"])


def devices_of(num_devices: int) -> list[Device] | None:
    """So many devices that share work; None where it is one, which JAX chooses."""
    found = jax.local_devices()
    if num_devices > len(found):
        raise ValueError(
            f"num_devices={num_devices}: only {len(found)} {found[0].platform} device(s) here; ask for no more."
        )
    return found[:num_devices] if num_devices > 1 else None


def num_updates(total_steps: int, steps: int) -> int:
    """Updates of so many steps until the total is reached."""
    if total_steps < 1:
        raise ValueError(f"total_steps={total_steps}: train for at least 1 step.")
    return -(-total_steps // steps)
