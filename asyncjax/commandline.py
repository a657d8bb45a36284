"""Command-line options from a method's factory: its signature gives names, types and defaults, its docstring the help.

A factory of `asyncjax.methods` that `asyncjax` exports and that takes `env` first is a command of the scripts.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import math
import types
import typing
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import optax

from asyncjax.environment import Environment, make_env
from asyncjax.method import Method
from asyncjax.traced import is_traced
from asyncjax.tuned import tuned

OPTIMIZERS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "adam": optax.adam,
    "adamw": optax.adamw,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "muon": optax.contrib.muon,
    "rmsprop": lambda rate: optax.rmsprop(rate, decay=0.99, eps=1e-2),
    "sgd": optax.sgd,
}
OptimizerName = Literal["adam", "adamw", "momentum", "muon", "rmsprop", "sgd"]
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
        name, kind = parameter.name, simple_type(hints.get(parameter.name, type(parameter.default)))
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


def steps_per_message(env: Environment, values: dict[str, Any]) -> int:
    """Environment steps behind one message of a method with these option values; 1 where it has none to say so."""
    sizes = {name: values.get(name, 1) for name in ("num_envs", "unroll_length")}
    if sizes["unroll_length"] is None:
        sizes["unroll_length"] = env.max_steps
    for name, count in sizes.items():
        if count is None or count < 1:
            raise ValueError(f"{name}={count}: use at least 1.")
    return math.prod(sizes.values())


def command(name: str, factory: Callable[..., Method], defaults: dict[str, Any], **parts: type) -> type:
    """The dataclass of one subcommand: the method's own options, and these dataclasses of further ones.

    `defaults` replaces the defaults of those options that it names.
    """

    def begin(kind: type) -> Callable[[], Any]:
        names = {field.name for field in dataclasses.fields(kind)}
        return functools.partial(kind, **{key: value for key, value in defaults.items() if key in names})

    kinds = {"method": options(factory), **parts}
    fields = [(key, kind, dataclasses.field(default_factory=begin(kind))) for key, kind in kinds.items()]
    made = dataclasses.make_dataclass(name, fields)
    made.__doc__ = (factory.__doc__ or "").split("\n")[0]
    return made


def parse(argv: list[str], prog: str, description: str | None, **parts: type) -> tuple[str, dict[str, Any]]:
    """The method's name, and the values of its options and of these dataclasses by name: METHOD --option value ...

    Options that are not given have the values tuned for the environment (`asyncjax.tuned`), or the method's defaults.
    """
    import tyro

    env, config = environment_name(argv, parts.values()), (tyro.conf.OmitArgPrefixes,)
    known = factories()
    wanted = [name for name in known if name in argv[:1]] or list(known)
    commands = {name: command(name, known[name], tuned(name, env), **parts) for name in wanted}
    if len(wanted) == 1:  # the others, left out, would take longer than itself
        chosen: Any = tyro.cli(commands[wanted[0]], args=argv[1:], prog=f"{prog} {wanted[0]}", config=config)
    else:
        chosen = tyro.extras.subcommand_cli_from_dict(
            commands, args=argv, prog=prog, description=description, config=config
        )
    return type(chosen).__name__, {name: x for part in vars(chosen).values() for name, x in vars(part).items()}


def environment_name(argv: list[str], parts: Iterable[type]) -> str:
    """What --env says, before the rest is parsed, the last one where there are several; else its default."""
    name = str(next(field.default for part in parts for field in dataclasses.fields(part) if field.name == "env"))
    for word, following in itertools.pairwise([*argv, ""]):
        option, equals, value = word.partition("=")
        if option == "--env":
            name = value if equals else following
    return name


def describe_tuned(method: str, values: dict[str, Any]) -> str:
    """Which options of a run have values that are tuned for its environment; empty where none are."""
    used = {name: value for name, value in tuned(method, values["env"]).items() if values[name] == value}
    return "".join(f" {name}={value}" for name, value in used.items())


def make_env_from(env: str, params: tuple[str, ...] | list[str]) -> Environment:
    """The environment of the options, with parameters given as "name=value"."""
    return make_env(env, **values_of(params))


def values_of(params: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """Parameters given as "name=value", by name."""
    values: dict[str, Any] = {}
    for param in params:
        name, equals, value = param.partition("=")
        if not equals:
            raise ValueError(f"env_params={param!r}: write name=value, such as max_steps_in_episode=200.")
        if name in values:
            raise ValueError(f"env_params={param!r}: {name} is {values[name]!r} already; give it once.")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise ValueError(
                f"env_params={param!r}: {value!r} is no number, None, True, False or 'word' in quotes."
            ) from error
    return values


def make_optimizer(name: str | None, learning_rate: Any) -> optax.GradientTransformation | None:
    """The optimizer of the options; None, the method's default, where neither is given."""
    if learning_rate is not None and not is_traced(learning_rate) and not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate={learning_rate}: a step size is positive and finite, such as 1e-3.")
    if name is None and learning_rate is None:
        return None
    return OPTIMIZERS[name or "adam"](1e-3 if learning_rate is None else learning_rate)


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

    name = Annotated[
        OptimizerName | None,
        arg(help="Optimizer; rmsprop decays by 0.99 with 0.01 inside the root. None is the method's default."),
    ]
    rate = Annotated[
        float | None,
        arg(help="Step size of the optimizer; without --optimizer that is Adam. None is the method's default."),
    ]
    return [
        ("optimizer", name, dataclasses.field(default=None)),
        ("learning_rate", rate, dataclasses.field(default=None)),
    ]
