"""Imports from gymnax that take what is used: one environment's module, and no library for drawing.

Imported as a whole, gymnax imports all its environments, and with them pyplot, seaborn, pandas and scipy, which nobody
needs who trains in one of them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

# What gymnax's modules import at their top, and use for drawing only.
FOR_DRAWING = ("matplotlib", "matplotlib.colors", "matplotlib.pyplot", "seaborn")

CLASSES = {
    "Acrobot-v1": "classic_control.acrobot.Acrobot",
    "Asterix-MinAtar": "minatar.asterix.MinAsterix",
    "BernoulliBandit-misc": "misc.bernoulli_bandit.BernoulliBandit",
    "Breakout-MinAtar": "minatar.breakout.MinBreakout",
    "CartPole-v1": "classic_control.cartpole.CartPole",
    "Catch-bsuite": "bsuite.catch.Catch",
    "DeepSea-bsuite": "bsuite.deep_sea.DeepSea",
    "DiscountingChain-bsuite": "bsuite.discounting_chain.DiscountingChain",
    "FourRooms-misc": "misc.rooms.FourRooms",
    "Freeway-MinAtar": "minatar.freeway.MinFreeway",
    "FrozenLake-misc": "misc.frozen_lake.FrozenLake",
    "GaussianBandit-misc": "misc.gaussian_bandit.GaussianBandit",
    "MemoryChain-bsuite": "bsuite.memory_chain.MemoryChain",
    "MetaMaze-misc": "misc.meta_maze.MetaMaze",
    "MountainCar-v0": "classic_control.mountain_car.MountainCar",
    "MountainCarContinuous-v0": "classic_control.continuous_mountain_car.ContinuousMountainCar",
    "Pendulum-v1": "classic_control.pendulum.Pendulum",
    "PointRobot-misc": "misc.point_robot.PointRobot",
    "Pong-misc": "misc.pong.Pong",
    "Reacher-misc": "misc.reacher.Reacher",
    "Seaquest-MinAtar": "minatar.seaquest.MinSeaquest",
    "SimpleBandit-bsuite": "bsuite.bandit.SimpleBandit",
    "SpaceInvaders-MinAtar": "minatar.space_invaders.MinSpaceInvaders",
    "Swimmer-misc": "misc.swimmer.Swimmer",
    "UmbrellaChain-bsuite": "bsuite.umbrella_chain.UmbrellaChain",
}


def import_class(path: str) -> Callable[..., Any]:
    """The class at this path in `gymnax.environments`, from its own module alone."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(f"gymnax.environments.{module}"), name)


def import_module(name: str) -> types.ModuleType:
    """A module of gymnax, whose packages are not run before somebody asks for what they define."""
    parents = name.split(".")[:-1]
    for i in range(len(parents)):
        _begin(".".join(parents[: i + 1]))
    with _stand_ins():
        return importlib.import_module(name)


class Package(types.ModuleType):
    """A package that is run when something is asked for that is no module in it."""

    def __getattr__(self, name: str) -> Any:
        """A module in the package, or what the package defines."""
        if importlib.util.find_spec(f"{self.__name__}.{name}"):
            return importlib.import_module(f"{self.__name__}.{name}")
        self.__class__ = types.ModuleType  # pyright: ignore[reportAttributeAccessIssue] - the parent's layout is the same
        loader: Any = self.__loader__
        with _stand_ins():
            loader.exec_module(self)
        return getattr(self, name)


def _begin(name: str) -> None:
    """Makes a package that was not imported yet known, without running it."""
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ImportError(f"There is no package {name}.")
    package = importlib.util.module_from_spec(spec)
    package.__class__ = Package
    sys.modules[name] = package
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, package)


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Within, libraries for drawing are not imported: they are when somebody draws."""
    modules = {name: Later(name) for name in FOR_DRAWING if name not in sys.modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


class Later(types.ModuleType):
    """Stands in for a module until somebody uses it."""

    def __getattr__(self, name: str) -> Any:
        """The real module's attribute."""
        if sys.modules.get(self.__name__) is self:
            raise AttributeError(name)  # gymnax is still being imported: nobody draws now.
        return getattr(importlib.import_module(self.__name__), name)
