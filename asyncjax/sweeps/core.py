"""Many settings x seeds with common random numbers, in one compiled program for each shape."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax

from asyncjax.checks import (
    check_choice,
    check_counts,
    check_devices,
    check_positive,
    check_run_key,
    check_static,
    check_whole,
    given,
)
from asyncjax.method import Method
from asyncjax.schedules import Schedule
from asyncjax.sweeps import summaries
from asyncjax.sweeps.batch_progress import BatchProgress
from asyncjax.sweeps.recipe import Recipe, Summary, plain
from asyncjax.sweeps.remote import on_ray
from asyncjax.sweeps.store import Store
from asyncjax.sweeps.table import Setting, Table

Engine = Literal["emulate", "ray"]


def grid(**values: Iterable[Any]) -> list[Setting]:
    """Every combination of these values; the last name varies fastest.

    Example:
      >>> import asyncjax as aj
      >>> aj.grid(learning_rate=[1e-3, 2e-3], delay=[0])
      [{'learning_rate': 0.001, 'delay': 0}, {'learning_rate': 0.002, 'delay': 0}]
    """
    return [plain(dict(zip(values, choice, strict=True))) for choice in itertools.product(*values.values())]


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
        may name `result`, `method`, `staleness` (Int[T, G]), `time` (Float32[T], the schedule's), `key` and a setting's
        values. By default `summaries.final()`.
      num_workers: W; by default the setting's value `num_workers`, or else what its schedules name.
      static: names of floats to compile in, for methods that need to know them.
      batch_size: runs at a time; by default as many as `max_bytes` allow. Runs do not depend on each other, but
        programs of different sizes may round differently. 1 is one run after the other.
      max_bytes: for the runs of a batch, on each device; by default half of what is free.
      devices: over which the runs of a batch are split; by default all local ones. A CPU is one, of which
        `jax.config.update("jax_num_cpu_devices", 2)` before anything else makes two: quicker on two cores.
      directory: where the summaries of finished batches are kept. A sweep that was stopped continues from there, and
        one with more settings or seeds runs only what is new. That the functions are the same is not checked. Values
        that are functions are known by their names there, and those without one are refused.
      progress: show it, from two seconds on.
      engine: "emulate" runs one batch after the other in this process; "ray" spreads them over a Ray cluster, each a
        task of its own: the same programs, so on machines of one kind the same bits. All functions are pickled.
      address: of a Ray cluster, see `run_ray`.
      batch_cpus: CPUs of its machine that a batch on Ray takes.

    Returns:
      A Table of what `summarize` made, with leading axes settings and seeds. Its value "finite" says whether a run's
      parameters were finite at the end.

    Raises:
      ValueError: settings with different names, a value that no function names, a name without a value; batch_cpus that
        no machine of the cluster has.
      Whatever a batch raises first; what others finished before is kept in the directory.

    Example:
      >>> import jax, optax, asyncjax as aj
      >>> table = aj.sweep(
      ...     lambda rate: aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(rate)),
      ...     lambda delay: aj.schedules.fixed_delay(20, delay),
      ...     aj.grid(rate=[0.1, 0.2], delay=[0, 4]),
      ...     key=jax.random.key(0),
      ...     seeds=3,
      ...     progress=False,
      ... )
      >>> table["loss"].shape
      (4, 3)
    """
    check_run_key(key)
    check_static(batch_size=batch_size, num_workers=num_workers)
    check_counts(**given(batch_size=batch_size, num_workers=num_workers))
    check_positive(batch_cpus=batch_cpus, **given(max_bytes=max_bytes))
    check_choice(get_args(Engine), engine=engine)
    if engine == "ray" and devices is not None:
        raise ValueError("devices= are of this process: leave them out with engine='ray'.")
    if devices is not None:
        check_devices(devices, distinct=True)
    if not isinstance(seeds, Iterable):
        check_counts(seeds=seeds)
        seeds = range(seeds)
    seeds = list(seeds)
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
        # On Ray they are compiled elsewhere, side by side.
        programs = list(recipe.groups(todo)) if engine == "emulate" else []
        for batch, values in done:
            store.add([(recipe.settings[i], seed) for i, seed in batch.runs], values)
            if programs:
                shown.programs = (programs.index(batch.group) + 1, len(programs))
            shown.advance(len(batch.runs))
    return store.table(recipe.settings, seeds)
