"""What sweep.py searches: values and ranges from the command line, and the settings chosen from them."""

from __future__ import annotations

import ast
import itertools
import math
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np

from asyncjax.extras import import_extra

Setting = dict[str, Any]


class Range(NamedTuple):
    """Numbers from low to high, both included; integers where both bounds are."""

    low: float
    high: float
    log: bool

    def sample(self, rng: np.random.Generator) -> float:
        """A number, uniform itself or in its logarithm."""
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
            return round(value) if isinstance(self.low, int) else value
        return (
            int(rng.integers(int(self.low), int(self.high) + 1))
            if isinstance(self.low, int)
            else rng.uniform(*self[:2])
        )


Space = dict[str, list[Any] | Range]


def parse_space(specifications: Iterable[str], kinds: dict[str, Any]) -> Space:
    """Name -> its values or range, from "name=value,value" and "name=low..high" with ":log" after it.

    Args:
      specifications: as typed.
      kinds: the types of the names that may vary.

    Raises:
      ValueError: an unknown name, or what can not be read as such.
    """
    space: Space = {}
    for specification in specifications:
        name, equals, text = specification.partition("=")
        name = name.strip().replace("-", "_")
        if name not in kinds:
            raise ValueError(
                f"{specification!r}: there is no option {name!r} to vary; there are {', '.join(kinds) or 'none'}."
            )
        if not equals or not text or name in space:
            raise ValueError(f"{specification!r}: write each name once, as name=value,value or name=low..high[:log].")
        read = _range if ".." in text else _values
        space[name] = read(specification, text, kinds[name])
    return space


def choices_of(grid: Space, random: Space, samples: int, seed: int = 0) -> list[Setting]:
    """Every point of the grid with every one of so many random samples, none twice.

    More samples leave the first as they are. Of a few values there may be fewer different ones than were asked for.
    """
    for name, values in grid.items():
        if isinstance(values, Range):
            raise ValueError(f"{name}={values.low}..{values.high} is a range: use --random for it, or list its values.")
    rng = np.random.default_rng(seed)
    sampled = _none_twice(
        [{name: _sample(x, rng) for name, x in random.items()} for _ in range(samples if random else 1)]
    )
    points = [dict(zip(grid, choice, strict=True)) for choice in itertools.product(*grid.values())]
    return [{**point, **sample} for point in points for sample in sampled]


def choices_by_optuna(
    space: Space, samples: int, batch: int, value: Callable[[list[Setting]], np.ndarray], seed: int = 0
) -> list[Setting]:
    """The settings that Optuna asks for, in batches, to maximize `value`: settings -> Float[len(settings)].

    The sampler's seed is fixed: with the same values it asks for the same settings again.
    """
    optuna = import_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    distributions = {name: _distribution(optuna.distributions, x) for name, x in space.items()}
    settings: list[Setting] = []
    while len(settings) < samples:
        trials = [study.ask(distributions) for _ in range(min(batch, samples - len(settings)))]
        asked = [dict(trial.params) for trial in trials]
        for trial, x in zip(trials, value(asked), strict=True):
            failed = not np.isfinite(x)
            study.tell(trial, None if failed else float(x), optuna.trial.TrialState.FAIL if failed else None)
        settings += asked
    return _none_twice(settings)


def import_optuna() -> Any:
    """Optuna, or the sentence that says how to get it."""
    return import_extra("optuna", "--optuna needs Optuna", "sweep")


def _none_twice(settings: list[Setting]) -> list[Setting]:
    return [dict(items) for items in dict.fromkeys(tuple(s.items()) for s in settings)]


def _distribution(distributions: Any, values: list[Any] | Range) -> Any:
    if isinstance(values, list):
        return distributions.CategoricalDistribution(values)
    kind = distributions.IntDistribution if isinstance(values.low, int) else distributions.FloatDistribution
    return kind(values.low, values.high, log=values.log)


def _sample(values: list[Any] | Range, rng: np.random.Generator) -> Any:
    return values.sample(rng) if isinstance(values, Range) else values[rng.integers(len(values))]


def _range(specification: str, text: str, kind: Any) -> Range:
    bounds, _, scale = text.partition(":")
    low, high = (_value(specification, x, kind) for x in bounds.split("..", 1))
    numbers = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (low, high))
    if not numbers or not low < high or scale not in ("", "log") or (scale and low <= 0):
        raise ValueError(f"{specification!r}: a range is low..high with low < high, and low > 0 where :log follows.")
    return Range(low, high, scale == "log")


def _values(specification: str, text: str, kind: Any) -> list[Any]:
    return list(dict.fromkeys(_value(specification, part, kind) for part in text.split(",")))  # none twice


def _value(specification: str, text: str, kind: Any) -> Any:
    """A value of an option from its text: a number, a truth value, None or a word."""
    kinds = set(_flat(kind))
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "none": None}.get(text.strip().lower(), text.strip())
    if float in kinds and type(value) is int:
        return float(value)
    words = [x for x in kinds if isinstance(x, str)]
    usual = type(value) in kinds or value in words or Any in kinds or (value is None and type(None) in kinds)
    if not usual:
        names = sorted(x if isinstance(x, str) else getattr(x, "__name__", str(x)) for x in kinds)
        text_of_kinds = ", ".join(names).replace("NoneType", "None")
        raise ValueError(f"{specification!r}: {text!r} is none of: {text_of_kinds}.")
    return value


def _flat(kind: Any) -> list[Any]:
    """The types, and the words of the literals, that a type is made of."""
    if typing.get_origin(kind) is typing.Annotated:
        return _flat(typing.get_args(kind)[0])
    if typing.get_origin(kind) is Literal:
        return list(typing.get_args(kind))
    parts = typing.get_args(kind)
    return [x for part in parts for x in _flat(part)] if parts else [kind]
