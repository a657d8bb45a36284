"""The host's side of `host_environment`: vector environments, found by the tickets that the device holds.

A vector environment goes forward only. A ticket for a step that is past, or of another process, gets new episodes, and
a warning says so; only the newest step may be asked for again, with the same actions, and has the same answer.
"""

from __future__ import annotations

import secrets
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from asyncjax.environment import Step
from asyncjax.method import PyTree

IDLE_RESETS = 8  # a vector environment is closed when it was not stepped while so many others were begun
STEP = np.array([0, 0, 0, 1], np.uint32)  # what a step adds to a ticket
MAX_SEED = np.uint32(2**31 - 1)  # EnvPool's seeds are below this


class VectorEnv(NamedTuple):
    """N environments on the host; all arrays are numpy's, with a leading axis N.

    Attributes:
      observation: the first ones.
      step: actions -> Step, which resets an environment itself when its episode ends.
      close: releases what they hold.
    """

    observation: PyTree
    step: Callable[[np.ndarray], Step]
    close: Callable[[], Any]


class Ticket(NamedTuple):
    """What the device knows of N environments, a row of Uint32[N, 4]."""

    vector: Any
    place: Any
    seed: Any
    steps: Any

    def array(self) -> np.ndarray:
        """Uint32[N, 4]."""
        return np.stack(np.broadcast_arrays(*self), axis=-1).astype(np.uint32)


class Member:
    """A vector environment at one moment of its life.

    Attributes:
      ticket: Uint32[N, 4], for the next step.
      age: Int[N], the steps of the running episodes.
      last: the actions of the newest step and what came of them.
      used: the resets of the fleet before its newest step.
    """

    def __init__(self, vector: VectorEnv, number: int, seeds: np.ndarray, used: int) -> None:
        self.vector, self.used = vector, used
        self.ticket = Ticket(np.uint32(number), np.arange(len(seeds)), seeds, np.uint32(0)).array()
        self.age = np.zeros(len(seeds), np.int64)
        self.last: tuple[np.ndarray, Step] | None = None
        self.lock = threading.Lock()


class Fleet:
    """The vector environments of one Environment; its `reset` and `step` are what compiled programs call."""

    def __init__(self, name: str, make: Callable, observation_like: PyTree, max_steps: int | None) -> None:
        self.name, self.make, self.observation_like, self.max_steps = name, make, observation_like, max_steps
        self.members: dict[int, Member] = {}
        self.resets = 0
        self.lock = threading.Lock()
        weakref.finalize(self, _close, self.members.values())

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process it is empty: environments begin there anew from their seeds."""
        return Fleet, (self.name, self.make, self.observation_like, self.max_steps)

    def reset(self, seed: Any) -> tuple[np.ndarray, PyTree]:
        """Uint32[..., N] -> (tickets [..., N, 4], observations [..., N, ...]); a vector environment for each row."""
        seed = np.asarray(seed)
        with self.lock:
            self.resets += 1
            idle = [number for number, m in self.members.items() if m.used < self.resets - IDLE_RESETS]
            closing = [self.members.pop(number) for number in idle]
        _close(closing)
        members = [self._begin(row % MAX_SEED) for row in seed.reshape(-1, *seed.shape[-1:] or (1,))]
        return _join([(m.ticket, self._cast(m.vector.observation)) for m in members], seed.shape)

    def step(self, ticket: Any, action: Any) -> tuple[np.ndarray, Step]:
        """(Tickets [..., N, 4], actions [..., N, ...]) -> (the next tickets, what happened)."""
        ticket, action = np.asarray(ticket), np.asarray(action)
        lead = ticket.shape[:-1]
        rows = ticket.reshape(-1, *lead[-1:] or (1,), 4)
        actions = action.reshape(*rows.shape[:2], *action.shape[len(lead) :])
        return _join([self._advance(row, a) for row, a in zip(rows, actions, strict=True)], lead)

    def _advance(self, row: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, Step]:
        """A step of one vector environment, whose ticket is Uint32[N, 4]."""
        ticket, number = Ticket(*row.T), int(row[0, 0])
        member = self.members.get(number)
        if member is None and _is_whole(row) and not ticket.steps[0]:
            member = self._begin(ticket.seed, number)  # made in another process: the seeds say all about it
        if member is not None:
            with member.lock:
                if np.array_equal(row, member.ticket):
                    try:
                        return self._step(member, action)
                    except BaseException:
                        self.members.pop(number, None)  # nobody knows where it stands
                        raise
                if np.array_equal(row + STEP, member.ticket) and member.last and np.array_equal(member.last[0], action):
                    return member.ticket, member.last[1]  # the same question has the same answer
        if not _is_whole(row) or (member and len(member.ticket) != len(row)):
            raise ValueError(
                f"{self.name!r} was asked to step a part or a mixture of its vector environments: step all environments"
                " of a batch together, in the order in which `reset` was mapped over them."
            )
        return self._begin_anew(ticket)

    def _step(self, member: Member, action: np.ndarray) -> tuple[np.ndarray, Step]:
        action = action.copy()  # XLA's own memory, which is gone after the call
        outcome = member.vector.step(action)
        terminated = np.asarray(outcome.terminated, bool)
        truncated = np.asarray(outcome.truncated, bool) & ~terminated
        member.age += 1
        if self.max_steps is not None and np.any(early := truncated & (member.age < self.max_steps)):
            raise ValueError(
                f"{self.name!r} truncated an episode after {member.age[early][0]} steps, but its time limit is"
                f" {self.max_steps}: pass max_steps=None, for an environment with other reasons to truncate."
            )
        member.age[terminated | truncated] = 0
        observation, final = self._cast(outcome.observation), self._cast(outcome.final_observation)
        told: Any = np.asarray(outcome.reward, np.float32), terminated, truncated
        member.last = action, Step(observation, final, *told)
        member.ticket = member.ticket + STEP
        member.used = self.resets
        return member.ticket, member.last[1]

    def _begin_anew(self, ticket: Ticket) -> tuple[np.ndarray, Step]:
        """New episodes in place of those that a ticket stands for but that are gone."""
        warnings.warn(
            f"{self.name!r}: {len(ticket.seed)} environments that had made {ticket.steps[0]} steps are gone, and begin"
            " new episodes, as after a resumed run, a dropped message, or a step asked for twice. `replay` can not"
            " repeat this in the same process.",
            RuntimeWarning,
            stacklevel=2,
        )
        seeds = [np.random.SeedSequence([s, n]).generate_state(1)[0] for s, n in zip(*ticket[2:], strict=True)]
        member = self._begin(np.array(seeds, np.uint32) % MAX_SEED)
        first = self._cast(member.vector.observation)
        told: Any = [np.full(len(seeds), x) for x in (np.float32(0), False, True)]
        return member.ticket, Step(first, first, *told)

    def _begin(self, seeds: np.ndarray, number: int | None = None) -> Member:
        """A new vector environment; its number is drawn, so that one of another process is not taken for it."""
        vector = self.make([int(seed) for seed in seeds])
        with self.lock:
            while number is None or number in self.members:
                number = secrets.randbits(32)
            self.members[number] = member = Member(vector, number, seeds, self.resets)
        return member

    def _cast(self, observation: PyTree) -> PyTree:
        return jax.tree.map(lambda like, x: np.asarray(x, like.dtype), self.observation_like, observation)


def _is_whole(row: np.ndarray) -> bool:
    """Whether tickets can be those of one vector environment, at one moment and in its order."""
    same = row[:, [0, 3]] == row[0, [0, 3]]
    return bool(same.all()) and np.array_equal(row[:, 1], np.arange(len(row)))


def _join(rows: list[PyTree], lead: tuple[int, ...]) -> PyTree:
    """Trees with a leading axis N, as one with the leading axes [..., N]."""
    joined = rows[0] if len(rows) == 1 else jax.tree.map(lambda *x: np.concatenate(x), *rows)
    return jax.tree.map(lambda x: x.reshape((*lead, *x.shape[1:])), joined)


def _close(members: Iterable[Member]) -> None:
    for member in members:
        member.vector.close()
