"""What each run of a sweep is made of, and which runs share a program."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Generator, Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from asyncjax.checks import check_counts, check_kind, given
from asyncjax.engines.waves import Plan
from asyncjax.method import Method, Metrics, Result
from asyncjax.schedules import Schedule, check
from asyncjax.sweeps.lanes import Lane, LaneProgram, Numbers, Shape, keys_of
from asyncjax.sweeps.table import Setting

Summary = Callable[..., Metrics]
OF_RUN = ("result", "method", "staleness", "time", "key")  # what summaries may name beside a setting's values
PLANS = 1 << 28  # bytes, about, of the plans that the runs of a program share
Run = tuple[int, int]  # (index of the setting, seed)


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
        self.timed = any("time" in inspect.signature(f).parameters for f in summarize)
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
            program, plan = self.program(batch.group, batch.members)
            yield batch, program([self.lane(run, batch.group, plan) for run in batch.runs], batch.size)

    def groups(self, runs: Sequence[Run]) -> dict[Group, list[Run]]:
        """The runs by the program that they share."""
        groups: dict[Group, list[Run]] = {}
        for run in runs:
            groups.setdefault(self._group(*run), []).append(run)
        return groups

    def _program(self, group: Group, members: tuple[Run, ...]) -> tuple[LaneProgram, Callable[[Hashable], Plan]]:
        """The program of a group, and what plans a schedule for it: once for the runs that share it."""
        unique = {id(s): s for s in (self.schedule(*run) for run in members)}
        shape = Shape.of(list(unique.values()), group.num_workers)
        messages = max(1, group.num_updates * group.group_size)
        plan = functools.lru_cache(maxsize=max(1, PLANS // (64 * messages)))(lambda of: shape.plan(self._schedules[of]))
        fixed = dict(group.fixed)

        def build(numbers: Numbers) -> Method:
            made = _call(self.method, {**fixed, **numbers})
            check_kind(Method, "give a Method, or a function that makes one, such as lambda: aj.a3c(env)", method=made)
            return made

        def summarize(method: Method, result: Result, lane: Lane) -> Metrics:
            of_run = {"method": method, "result": result, "staleness": lane.plan.staleness, "key": lane.summary_key}
            available = {**fixed, **lane.numbers, **of_run, **({"time": lane.time} if self.timed else {})}
            return _merged([_call(f, available) for f in self.summarize])

        try:
            return LaneProgram(shape, build, summarize, self.lane(members[0], group, plan), self.devices), plan
        except jax.errors.ConcretizationTypeError as error:
            error.add_note(f"Of the settings {group.numbers} are traced: name those that must be known in static=.")
            raise

    def lane(self, run: Run, group: Group, plan: Callable[[Hashable], Plan]) -> Lane:
        """The inputs of one run."""
        index, seed = run
        numbers = {name: self.settings[index][name] for name in group.numbers}
        keys, time = self.key_of(seed), self.schedule(index, seed).time
        of_updates = np.asarray([] if time is None else time, np.float32)
        return Lane(numbers, keys.run, keys.summary, plan(self._identity(index, seed)), of_updates)

    def schedule(self, index: int, seed: int) -> Schedule:
        """The schedule of a run; runs whose schedules have the same arguments share it."""
        identity = self._identity(index, seed)
        if identity not in self._schedules:
            available = {**self.settings[index], "key": self.key_of(seed).schedule}
            made = check(_call(self.make_schedule, {name: available[name] for name in self.of_schedule}))
            if self.timed and made.time is None:
                raise ValueError(
                    f"summarize names time, but the schedule of {self.settings[index]} has none: take one that has"
                    " times, such as from_service_times makes."
                )
            self._schedules[identity] = made._replace(time=made.time if self.timed else None, begin=None, end=None)
        return self._schedules[identity]

    def _identity(self, index: int, seed: int) -> Hashable:
        """What a schedule is made of."""
        values = tuple((name, self.settings[index][name]) for name in sorted(self.of_schedule - {"key"}))
        return values, seed if "key" in self.of_schedule else None

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
        check_counts(**given(num_workers=setting.get("num_workers")))
    for name in settings[0]:
        known: dict[Any, Any] = {}
        for x in (setting[name] for setting in settings):
            if isinstance(x, bool) != isinstance(known.setdefault(x, x), bool):
                raise ValueError(f"{name}={known[x]!r} and {name}={x!r} are equal in Python: give one of them only.")
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


def _wanted(role: str, function: Callable[..., Any], names: Iterable[str], further: Collection[str]) -> set[str]:
    """Which of these names a function takes; raises TypeError for no function, ValueError where it needs others."""
    if not callable(function):
        raise TypeError(f"{role}={function!r}: give a function, or for method and schedule what it would make.")
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return {*names, *further}
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in {*names, *further}]
    if missing and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        known = f", and {role} is given {', '.join(further)}" if further else ""
        raise ValueError(f"{role} names {missing}, but the settings have {sorted(names)}{known}: give each a value.")
    return {p.name for p in parameters} & {*names, *further}


def _call(function: Callable[..., Any], available: Setting) -> Any:
    """Calls a function with what it names."""
    return function(**{name: available[name] for name in _wanted("", function, available, ())})


def plain(setting: Setting) -> Setting:
    """The setting in Python's own types."""
    return {name: x.item() if isinstance(x, np.generic) else x for name, x in setting.items()}
