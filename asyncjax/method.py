"""The abstraction: an asynchronous method is four pure functions, and a run folds them over a schedule.

One update, for a group of G messages, is the whole semantics of the library::

    view            = history[read[t]]                      # version t is the view after t updates
    messages, local = vmap(method.work)(view, local[worker[t]])
    shared, metrics = method.apply(shared, messages, Stale(view, t - read[t]))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

if TYPE_CHECKING:
    from asyncjax.data_parallel import Placement
    from asyncjax.schedules import Schedule

PyTree = Any
Array = Any  # of jax or numpy, or the shape of one where only shapes are computed
Device = Any  # jax.Device, which type checkers take for a variable
Metrics = dict[str, Array]


class Stale(NamedTuple):
    """What the messages of an update were computed on.

    Attributes:
      view: the views that were read, stacked on a leading axis G.
      staleness: Int[G], the updates applied between the read and this apply; fresh is 0.
    """

    view: PyTree
    staleness: Array


class Policy(NamedTuple):
    """How a method acts: one uniform way to run what was learned.

    Attributes:
      initial_carry: () -> Carry, the memory at the start of an episode; `()` when there is none.
      act: (View, Carry, observation, key | None) -> (action, Carry), for one environment;
        a key samples from the policy, None takes its mode.
    """

    initial_carry: Callable[[], PyTree]
    act: Callable[[PyTree, PyTree, PyTree, jax.Array | None], tuple[PyTree, PyTree]]


class Halves(NamedTuple):
    """`work` in two halves, for measuring what the same data would have said on another view.

    Attributes:
      sample: (View, Local) -> (Data, Local, Metrics).
      gradient: (View, Data) -> (Message, Metrics); None where the message is the data.
      distribution: (View, Data) -> how the view acts in the observations of the data; None without a policy.
    """

    sample: Callable[[PyTree, PyTree], tuple[PyTree, PyTree, Metrics]]
    gradient: Callable[[PyTree, PyTree], tuple[PyTree, Metrics]] | None = None
    distribution: Callable[[PyTree, PyTree], Any] | None = None


class Method(NamedTuple):
    """An asynchronous method: `work` runs in parallel on stale views, `apply` serially on the newest state.

    Attributes:
      init: (key, num_workers) -> (Shared, Local); Local has one slice per worker on axis 0 and
        carries every worker's random keys. The key is consumed.
      view: Shared -> View, what a worker may read: parameters, a target network, values.
      work: (View, Local) -> (Message, Local, Metrics), for one worker.
      apply: (Shared, Messages, Stale) -> (Shared, Metrics), the only writer; Messages has a leading axis G.
      policy: how the method acts, for evaluation; None where there is no policy.
      halves: `work` as sample, then gradient, for telemetry; None where it has no such halves.
      placement: the devices of `apply`, from `data_parallel`; None lets the engine choose one.
    """

    init: Callable[[jax.Array, int], tuple[PyTree, PyTree]]
    view: Callable[[PyTree], PyTree]
    work: Callable[[PyTree, PyTree], tuple[PyTree, PyTree, Metrics]]
    apply: Callable[[PyTree, PyTree, Stale], tuple[PyTree, Metrics]]
    policy: Policy | None = None
    halves: Halves | None = None
    placement: Placement | None = None


class State(NamedTuple):
    """Where a run stands between two updates: what continuing it needs.

    Attributes:
      update: the updates done so far, also the newest version.
      shared: the shared state at this version.
      local: the workers' private states as of their last consumed message, stacked on axis 0.
      views: version -> view, the older versions that messages still to come have already read.
      time: seconds, virtual or measured, at which this update was committed.
    """

    update: int
    shared: PyTree
    local: PyTree
    views: Mapping[int, PyTree] = {}  # nobody writes to it
    time: float = 0.0


class Result(NamedTuple):
    """What a run returns.

    Attributes:
      shared: the shared state after the last update.
      local: the workers' private states, stacked on axis 0.
      metrics: name -> array with axis 0 = T updates; what `work` reports has axis 1 = G messages.
    """

    shared: PyTree
    local: PyTree
    metrics: Metrics


class Chunk(NamedTuple):
    """What an engine hands to its callback after some updates.

    Attributes:
      state: where the run stands now; pass it back as `state=` to continue from here. None when the
        run has just become non-finite, so that there is nothing to continue.
      metrics: name -> array over the updates of this chunk, as in `Result.metrics`.
      schedule: the same updates' slice of the schedule, with absolute versions.
    """

    state: State | None
    metrics: Metrics
    schedule: Schedule
