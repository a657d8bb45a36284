"""Command-line options from a method's factory: its signature gives names, types and defaults, its docstring the help.

A factory of `asyncjax.methods` that `asyncjax` exports and that takes `env` first is a command of the scripts.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal

import optax

from asyncjax.method import Method

OptimizerName = Literal["adam", "adamw", "rmsprop", "sgd"]
SIMPLE = (bool, int, float, str)


def factories() -> dict[str, Callable[..., Method]]:
    """Name -> factory of every exported method that learns in an environment."""
    import asyncjax

    exported = {name: getattr(asyncjax, name) for name in asyncjax.__all__}
    return {name: value for name, value in exported.items() if _is_factory(value)}


def _is_factory(value: Any) -> bool:
    made_here = inspect.isfunction(value) and value.__module__.startswith("asyncjax.methods")
    return made_here and next(iter(inspect.signature(value).parameters), "") == "env"


def options(factory: Callable[..., Method]) -> type:
    """A dataclass of a factory's options: the keyword arguments that a command line can express.

    Arguments with other types, such as networks, are left out. `optimizer` becomes two options, its
    name and its learning rate.
    """
    from tyro.conf import arg

    hints, helps = typing.get_type_hints(factory), argument_helps(factory)
    fields: list[tuple[str, Any, Any]] = []
    for parameter in inspect.signature(factory).parameters.values():
        name, kind = parameter.name, simple_type(hints.get(parameter.name, Any))
        if name == "optimizer":
            fields += _optimizer_options()
        elif kind is not None and parameter.default is not inspect.Parameter.empty:
            field = dataclasses.field(default=parameter.default)
            fields.append((name, Annotated[kind, arg(help=helps.get(name, ""))], field))
    return dataclasses.make_dataclass(factory.__name__, fields)


def build(factory: Callable[..., Method], env: Any, values: dict[str, Any]) -> Method:
    """Calls a factory with option values; others among `values` are ignored."""
    names = inspect.signature(factory).parameters
    arguments = {name: value for name, value in values.items() if name in names and name not in ("env", "optimizer")}
    if "optimizer" in names:
        arguments["optimizer"] = make_optimizer(values.get("optimizer"), values.get("learning_rate"))
    return factory(env, **arguments)


def steps_per_message(factory: Callable[..., Method]) -> int:
    """Environment steps behind one message of a method with its defaults."""
    parameters = inspect.signature(factory).parameters
    return parameters["num_envs"].default * parameters["unroll_length"].default


def make_optimizer(name: str | None, learning_rate: float | None) -> optax.GradientTransformation | None:
    """The optimizer of the options; None, the method's default, where neither is given."""
    if learning_rate is not None and not learning_rate > 0:
        raise ValueError(f"learning_rate={learning_rate}: a step size is positive, such as 1e-3.")
    if name is None and learning_rate is None:
        return None
    return getattr(optax, name or "adam")(1e-3 if learning_rate is None else learning_rate)


def argument_helps(function: Callable[..., Any]) -> dict[str, str]:
    """Argument -> its line in the docstring's Args section."""
    import docstring_parser

    text = inspect.getdoc(function) or ""
    parsed = docstring_parser.parse(text, style=docstring_parser.DocstringStyle.GOOGLE)
    return {p.arg_name: " ".join((p.description or "").split()) for p in parsed.params}


def simple_type(hint: Any) -> Any:
    """The part of a type that a command line can express, or None: `float | jax.Array | None` gives `float | None`."""
    if hint in SIMPLE or typing.get_origin(hint) is Literal:
        return hint
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return None
    parts = typing.get_args(hint)
    kept = [part for part in parts if part in SIMPLE or typing.get_origin(part) is Literal]
    if not kept:
        return None
    return typing.Union[(*kept, *([None] if type(None) in parts else []))]


def _optimizer_options() -> list[tuple[str, Any, Any]]:
    from tyro.conf import arg

    name = Annotated[OptimizerName | None, arg(help="Optimizer; None is the method's default.")]
    rate = Annotated[
        float | None,
        arg(help="Step size of the optimizer; without --optimizer that is Adam. None is the method's default."),
    ]
    return [
        ("optimizer", name, dataclasses.field(default=None)),
        ("learning_rate", rate, dataclasses.field(default=None)),
    ]
