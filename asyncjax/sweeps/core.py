"""Many settings x seeds with common random numbers, in one compiled program for each shape."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from asyncjax.checks import check_counts, check_kind, check_positive, check_run_key, check_whole
from asyncjax.method import Array, Method, Metrics, Result
from asyncjax.schedules import Schedule, check
from asyncjax.sweeps import summaries
from asyncjax.sweeps.batch_progress import BatchProgress
from asyncjax.sweeps.lanes import Lane, LaneProgram, Numbers, Shape, keys_of
from asyncjax.sweeps.remote import on_ray
from asyncjax.sweeps.store import Store
from asyncjax.sweeps.table import Setting, Table

Summary = Callable[..., Metrics]
OF_RUN = ("result", "method", "staleness", "key")  # what summaries may name beside a setting's values
Run = tuple[int, int]  # (index of the setting, seed)
Engine = Literal["emulate", "ray"]


def grid(**values: Iterable[Any]) -> list[Setting]:
    """Every combination of these values; the last name varies fastest.

    Example:
      >>> import asyncjax as aj
      >>> aj.grid(learning_rate=[1e-3, 2e-3], delay=[0])
      [{'learning_rate': 0.001, 'delay': 0}, {'learning_rate': 0.002, 'delay': 0}]
    """
    return [plain(dict(zip(values, choice, strict=True))) for choice in itertools.product(*values.values())]


def plain(setting: Setting) -> Setting:
    """The setting in Python's own types."""
    return {name: x.item() if isinstance(x, np.generic) else x for name, x in setting.items()}


def sweep(
    method: Method | Callable[..., Method],
    schedule: Schedule | Callable[..., Schedule],
    settings: Sequence[Setting] = ({},),
    *,
    key: jax.Array,
    seeds: int | Sequence[int] = 10,
    summarize: Summary | Sequence[Summary] | None = None,
    num_workers: int | None = None,
    static: Sequence[str] = (),
    batch_size: int | None = None,
    max_bytes: int | None = None,
    devices: Sequence[Any] | None = None,
    directory: str | Path | None = None,
    progress: bool = True,
    engine: Engine = "emulate",
    address: str | None = None,
    batch_cpus: float = 1.0,
) -> Table:
    """Runs every setting with every seed, and keeps a summary of each run.

    A setting is a dictionary: name -> value. Each function below gets the values that its parameters name. Floats
    reach `method` and `summarize` as traced numbers, so that settings which differ only in floats and in what
    their schedules contain share one compiled program. Of other values each choice is a program of its own.

    Seed i has the same random numbers in every setting: for parameters, environments, policies, service times and
    evaluation. So what two settings differ in is seen seed by seed, see `Table.against`.

    Args:
      method: a method, or a function of a setting's values that makes one.
      schedule: a schedule, or a function of a setting's values that makes one; if it also names `key`, every seed
        has a schedule of its own.
      settings: dictionaries with the same names, such as those of `grid`.
      key: with the seed, the source of all chance.
      seeds: S, for the seeds 0 to S - 1; or the seeds themselves.
      summarize: one function or several that make name -> array of what is to be kept of a run, where it ran. They
        may name `result`, `method`, `staleness` (Int[T, G]), `key` and a setting's values. By default
        `summaries.final()`.
      num_workers: W; by default the setting's value `num_workers`, or else what its schedules name.
      static: names of floats to compile in, for methods that need to know them.
      batch_size: runs at a time; by default as many as `max_bytes` allow. Runs do not depend on each other, but
        programs of different sizes may round differently. 1 is one run after the other.
      max_bytes: for the runs of a batch, on each device; by default half of what is free.
      devices: over which the runs of a batch are split; by default all local ones.
      directory: where the summaries of finished batches are kept. A sweep that was stopped continues from there, and
        one with more settings or seeds runs only what is new. That the functions are the same is not checked.
      progress: show it, from two seconds on.
      engine: "emulate" runs one batch after the other in this process; "ray" spreads them over a Ray cluster, each a
        task of its own: the same programs, so on machines of one kind the same bits. All functions are pickled.
      address: of a Ray cluster, see `run_ray`.
      batch_cpus: CPUs of its machine that a batch on Ray takes.

    Returns:
      A Table of what `summarize` made, with leading axes settings and seeds. Its value "finite" says whether a run's
      parameters were finite at the end.

    Raises:
      ValueError: settings with different names, a value that no function names, a name without a value.
      Whatever a batch raises first; what others finished before is kept in the directory.

    Example:
      >>> import jax, optax, asyncjax as aj
      >>> table = aj.sweep(
      ...     lambda rate: aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(rate)),
      ...     lambda delay: aj.schedules.fixed_delay(20, delay),
      ...     aj.grid(rate=[0.1, 0.2], delay=[0, 4]),
      ...     key=jax.random.key(0),
      ...     seeds=3,
      ... )
      >>> table["loss"].shape
      (4, 3)
    """
    check_run_key(key)
    check_counts(batch_size=batch_size, num_workers=num_workers)
    check_positive(max_bytes=max_bytes, batch_cpus=batch_cpus)
    if engine not in get_args(Engine):
        raise ValueError(f"engine={engine!r}: choose one of {', '.join(map(repr, get_args(Engine)))}.")
    if engine == "ray" and devices is not None:
        raise ValueError("devices= are of this process: leave them out with engine='ray'.")
    seeds = list(range(seeds)) if isinstance(seeds, (int, np.integer)) else list(seeds)
    check_whole(**{f"seeds[{i}]": seed for i, seed in enumerate(seeds)})
    seeds = [int(seed) for seed in seeds]
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
        raise ValueError(f"seeds={seeds}: give at least one seed of 0 to 2^32 - 1, and none twice.")
    if isinstance(static, str):
        raise TypeError(f"static={static!r}: give a list of names, such as [{static!r}].")
    summarize = [summaries.final()] if summarize is None else [summarize] if callable(summarize) else list(summarize)
    arguments = (method, schedule, summarize, settings, key, seeds, num_workers, static, devices)
    recipe = Recipe(*arguments)
    store = Store(directory, key)
    runs = [(i, seed) for i in range(len(recipe.settings)) for seed in seeds]
    todo = [(i, seed) for i, seed in runs if (recipe.settings[i], seed) not in store]
    batches = recipe.batches(todo, batch_size, max_bytes)
    done = on_ray(arguments, batches, address, batch_cpus) if engine == "ray" else recipe.run(batches)
    with BatchProgress(len(runs), len(runs) - len(todo), progress) as shown, contextlib.closing(done):
        for batch, values in done:
            store.add([(recipe.settings[i], seed) for i, seed in batch.runs], values)
            shown.advance(len(batch.runs))
    return store.table(recipe.settings, seeds)


class Group(NamedTuple):
    """What the runs of one program have in common."""

    fixed: tuple[tuple[str, Any], ...]  # the values that are compiled in
    numbers: tuple[str, ...]  # the names of those that are not
    num_workers: int
    num_updates: int
    group_size: int
    read: Any  # the structure of the schedules' reads


class Batch(NamedTuple):
    """Runs that one call of a program does.

    Attributes:
      group: what they have in common.
      members: all runs of the program, whose schedules decide its shape.
      runs: those of this call.
      size: of the call; fewer runs are padded.
    """

    group: Group
    members: tuple[Run, ...]
    runs: tuple[Run, ...]
    size: int


class Recipe:
    """What each run of a sweep is made of; the arguments are those of `sweep`."""

    def __init__(
        self,
        method: Method | Callable[..., Method],
        schedule: Schedule | Callable[..., Schedule],
        summarize: Sequence[Summary],
        settings: Sequence[Setting],
        key: jax.Array,
        seeds: Sequence[int],
        num_workers: int | None,
        static: Sequence[str],
        devices: Sequence[Any] | None,
    ) -> None:
        self.method = (lambda: method) if isinstance(method, Method) else method
        self.make_schedule = (lambda: schedule) if isinstance(schedule, Schedule) else schedule
        self.summarize, self.settings, self.seeds = summarize, uniform(settings), seeds
        self.num_workers, self.static, self.devices = num_workers, set(static), devices
        self.program = functools.lru_cache(maxsize=4)(self._program)  # more would hold the memory of finished ones
        self.key_of = functools.cache(functools.partial(keys_of, key))
        self.workers_of = functools.cache(self._workers)
        self._schedules: dict[Any, Schedule] = {}
        names = self.settings[0].keys()
        self.of_method = _wanted("method", self.method, names, ())
        self.of_schedule = _wanted("schedule", self.make_schedule, names, ("key",))
        of_summary = [_wanted("summarize", f, names, OF_RUN) for f in summarize]
        self.inside = self.of_method.union(*of_summary) - set(OF_RUN)
        if unused := set(names) - self.inside - self.of_schedule - {"num_workers"}:
            raise ValueError(f"The settings have {sorted(unused)}, which neither method, schedule nor summarize names.")
        if unknown := self.static - set(names):
            raise ValueError(f"static={sorted(unknown)}: the settings have no such names, but {sorted(names)}.")

    def batches(self, runs: Sequence[Run], batch_size: int | None, max_bytes: int | None) -> Iterator[Batch]:
        """The runs in batches that there is room for, program by program."""
        for group, of_group in self.groups(runs).items():
            members = tuple(of_group)
            size = self.program(group, members)[0].batch_size(len(members), batch_size, max_bytes)
            for start in range(0, len(members), size):
                yield Batch(group, members, members[start : start + size], size)

    def run(self, batches: Iterable[Batch]) -> Generator[tuple[Batch, Metrics]]:
        """Each batch with its values, arrays with a leading axis of runs."""
        for batch in batches:
            program, shape = self.program(batch.group, batch.members)
            yield batch, program([self.lane(run, batch.group, shape) for run in batch.runs], batch.size)

    def groups(self, runs: Sequence[Run]) -> dict[Group, list[Run]]:
        """The runs by the program that they share."""
        groups: dict[Group, list[Run]] = {}
        for run in runs:
            groups.setdefault(self._group(*run), []).append(run)
        return groups

    def _program(self, group: Group, members: tuple[Run, ...]) -> tuple[LaneProgram, Shape]:
        """The program of a group, and what it takes a schedule for."""
        unique = {id(s): s for s in (self.schedule(*run) for run in members)}
        shape = Shape.of(list(unique.values()), group.num_workers)
        fixed = dict(group.fixed)

        def build(numbers: Numbers) -> Method:
            return _call(self.method, {**fixed, **numbers})

        def summarize(method: Method, result: Result, staleness: Array, numbers: Numbers, key: jax.Array) -> Metrics:
            of_run = {"method": method, "result": result, "staleness": staleness, "key": key}
            available = {**fixed, **numbers, **of_run}
            return _merged([_call(f, available) for f in self.summarize])

        try:
            return LaneProgram(shape, build, summarize, self.lane(members[0], group, shape), self.devices), shape
        except jax.errors.ConcretizationTypeError as error:
            error.add_note(f"Of the settings {group.numbers} are traced: name those that must be known in static=.")
            raise

    def lane(self, run: Run, group: Group, shape: Shape) -> Lane:
        """The inputs of one run."""
        index, seed = run
        numbers = {name: self.settings[index][name] for name in group.numbers}
        keys = self.key_of(seed)
        return Lane(numbers, keys.run, keys.summary, shape.plan(self.schedule(index, seed)))

    def schedule(self, index: int, seed: int) -> Schedule:
        """The schedule of a run; runs whose schedules have the same arguments share it."""
        values = {name: self.settings[index][name] for name in self.of_schedule if name != "key"}
        identity = (tuple(values.items()), seed if "key" in self.of_schedule else None)
        if identity not in self._schedules:
            made = _call(self.make_schedule, {**values, "key": self.key_of(seed).schedule})
            self._schedules[identity] = check(made)._replace(time=None, begin=None, end=None)
        return self._schedules[identity]

    def _group(self, index: int, seed: int) -> Group:
        setting, schedule = self.settings[index], self.schedule(index, seed)
        traced = {n for n in self.inside if isinstance(setting[n], float) and n not in self.static}
        fixed = tuple((name, setting[name]) for name in sorted(self.inside - traced))
        num_workers = self.num_workers or setting.get("num_workers") or self.workers_of(index)
        check(schedule, num_workers)
        read = jax.tree.structure(schedule.read)
        return Group(fixed, tuple(sorted(traced)), num_workers, schedule.num_updates, schedule.group_size, read)

    def _workers(self, index: int) -> int:
        """The workers that the schedules of a setting name, of whichever seed."""
        return max(1, *(self.schedule(index, seed).num_workers for seed in self.seeds))


def uniform(settings: Sequence[Setting]) -> list[Setting]:
    """The settings, in Python's types; a name whose values are floats in some of them has floats in all.

    Raises:
      ValueError: there are none, they have different names, or values that no other can equal.
    """
    if not settings:
        raise ValueError("settings is empty: give at least one setting, such as {}.")
    for setting in settings:
        check_kind(dict, "settings is a sequence of dictionaries, such as aj.grid(delay=[0, 4])", setting=setting)
    settings = [plain(setting) for setting in settings]
    for setting in settings:
        if setting.keys() != settings[0].keys():
            raise ValueError(
                f"The settings {settings[0]} and {setting} have different names: give every one all names."
            )
        if unusable := [name for name, x in setting.items() if not isinstance(x, Hashable)]:
            raise ValueError(
                f"The setting {setting} has a value for {unusable[0]!r} that can not be compared:"
                " give numbers, strings, or tuples of them."
            )
    floats = {name for setting in settings for name, x in setting.items() if isinstance(x, float)}
    return [{name: float(x) if name in floats and type(x) is int else x for name, x in s.items()} for s in settings]


def _merged(parts: Sequence[Any]) -> Metrics:
    """What several functions summarize, as one dictionary."""
    if wrong := [part for part in parts if not isinstance(part, dict)]:
        raise ValueError(f"summarize gave {type(wrong[0]).__name__}: make a dictionary, name -> array.")
    names = ["finite", *(name for part in parts for name in part)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"summarize gives {sorted(twice)} twice, or 'finite', which is always there: rename them.")
    return {name: x for part in parts for name, x in part.items()}


def _wanted(role: str, function: Callable[..., Any], names: Iterable[str], further: Iterable[str]) -> set[str]:
    """Which of these names a function takes; raises ValueError where it needs others."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return {*names, *further}
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in {*names, *further}]
    if missing and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise ValueError(f"{role} names {missing}, but the settings have {sorted(names)}: give each a value.")
    return {p.name for p in parameters} & {*names, *further}


def _call(function: Callable[..., Any], available: Setting) -> Any:
    """Calls a function with what it names."""
    return function(**{name: available[name] for name in _wanted("", function, available, ())})
