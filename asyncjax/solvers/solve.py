"""The answer to a Markov decision process, with a bound on its error."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from asyncjax.checks import check_choice, check_devices, check_number
from asyncjax.mdp import MDP, AnyMDP, FunctionMDP
from asyncjax.mdp.check import check_discount, check_is_mdp, row_sums
from asyncjax.solvers import synchronous
from asyncjax.solvers.asynchronous import asynchronous
from asyncjax.solvers.device_model import DeviceModel
from asyncjax.solvers.horizon import longest_time
from asyncjax.solvers.host_model import HostModel
from asyncjax.solvers.model import Model
from asyncjax.solvers.solution import Certificate, Certifies, Progress, Residual, Run, Solution, check_finite

MethodName = Literal[
    "jacobi", "value_iteration", "gauss_seidel", "modified_policy_iteration", "policy_iteration", "anderson", "async"
]
Backend = Literal["host", "jax"]

METHODS: dict[str, Callable[..., Residual]] = {
    "jacobi": synchronous.jacobi,
    "value_iteration": synchronous.jacobi,
    "gauss_seidel": synchronous.gauss_seidel,
    "modified_policy_iteration": synchronous.modified_policy_iteration,
    "policy_iteration": synchronous.policy_iteration,
    "anderson": synchronous.anderson,
    "async": asynchronous,
}


def solve(
    mdp: AnyMDP,
    discount: float,
    *,
    method: MethodName = "modified_policy_iteration",
    tolerance: float = 1e-6,
    certifies: Certifies = "values",
    backend: Backend | None = None,
    devices: Sequence[Any] | None = None,
    initial: Any = None,
    max_seconds: float = np.inf,
    callback: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Solution:
    """Optimal values and policy of an MDP, with a certified bound on their error.

    V* = T V*, (T V)(s) = max_a [r(s, a) + discount sum_s' P(s' | s, a) V(s')]; whatever the method, the bound
    comes from one full residual of one snapshot, |V - V*| <= |TV - V| / (1 - discount), sharpened where that is valid.

    Args:
      mdp: arrays, or a `FunctionMDP`, whose successors are computed when they are needed.
      discount: below 1, or 1 where every policy comes to an end.
      method: jacobi (or value_iteration, the same), gauss_seidel (in place, ordered by distance from the rewards),
        modified_policy_iteration (the fast one), policy_iteration, anderson, or async (blocks from stale values).
      tolerance: the error to be certified, in the unit of the values.
      certifies: "values" asks it of the values, "policy" of what the policy loses.
      backend: "host": compiled sparse products on the CPU. "jax": compiled by XLA. Without it "host", unless the
        problem is a function or there is an accelerator or `devices`. Both compute in the type of the arrays, whatever
        JAX's default is; functions are computed in JAX's default type.
      devices: jax: divide the states among these.
      initial: Float[S], where to begin, such as `Progress.values` of a run that was stopped.
      max_seconds: stop after this time, with whatever bound holds then.
      callback: called after every full residual.
      **options: of the method: sweeps, accuracy (modified_policy_iteration), memory (anderson); for async num_blocks,
        sweeps between full residuals, and a schedule, or a function of max_updates that makes one.

    Returns:
      A Solution: `values` Float[S], `policy` Int[S], `bound` and `policy_bound` on what they are wrong by, `converged`
      (False where rounding or `max_seconds` stopped it above the tolerance), and what it cost.

    Raises:
      ValueError: a malformed MDP (the sentence names state and action), or a discount that it does not admit.
      FloatingPointError: values beyond the range of the arrays' type.

    Example:
      >>> import asyncjax as aj
      >>> solution = aj.solve(aj.mdp.forest(3), 0.9, tolerance=1e-8)
      >>> solution.values.round(3), solution.policy, solution.bound <= 1e-8
      (array([26.244, 29.484, 33.484]), array([0, 0, 0], dtype=int32), True)
    """
    check_choice(METHODS, method=method)
    check_choice(get_args(Certifies), certifies=certifies)
    check_choice((None, *get_args(Backend)), backend=backend)
    if devices is not None:
        check_devices(devices, distinct=True)
    sums = _check_arguments(mdp, discount, tolerance, initial, max_seconds)
    discount, tolerance, max_seconds = float(discount), float(tolerance), float(max_seconds)  # of JAX's they may be
    # A value beyond the range of its type is reported as one, not as NumPy's warning.
    with jax.enable_x64(_is_double(mdp)), np.errstate(over="ignore", invalid="ignore"):
        begin = time.perf_counter()
        model, compile_seconds = _model(mdp, discount, method, backend, devices)

        def seconds() -> float:
            return time.perf_counter() - begin - compile_seconds

        def expired() -> bool:
            return seconds() > max_seconds

        def tell(residual: Residual, bound: float) -> None:
            if callback is not None:
                values = np.array(model.finish(residual.values))  # a copy: solvers go on in the same memory
                callback(Progress(values, bound, model.sweeps, seconds()))

        run = Run(_certificate(model, *sums, expired), tolerance, certifies, expired, tell)
        values = model.start(np.zeros(mdp.num_states) if initial is None else np.asarray(initial))
        residual = METHODS[method](model, values, run, **_known(method, options))
        values = model.finish(residual.values)
        values = (values + run.certificate.shift(residual.low, residual.high)).astype(values.dtype)
        check_finite(values)
        return Solution(
            values=values,
            policy=model.finish(model.policy).astype(np.int32, copy=False),
            bound=run.bound,
            policy_bound=run.policy_bound,
            certifies=certifies,
            converged=run.converged,
            method=method,
            backups=model.backups,
            sweeps=model.sweeps,
            updates=model.updates,
            seconds=seconds(),
            compile_seconds=compile_seconds,
        )


def _known(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options, if they are the method's."""
    known = list(inspect.signature(METHODS[method]).parameters)[3:]
    for name, value in options.items():
        if name not in known:
            raise TypeError(f"{name}={value!r} is no option of {method}: it has {', '.join(known) or 'none'}.")
    return options


def _is_double(mdp: AnyMDP) -> bool:
    """Whether to compute in float64: for arrays their type decides, whatever JAX's default is."""
    return mdp.reward.dtype == np.float64 if isinstance(mdp, MDP) else jnp.zeros(()).dtype == np.float64


def _check_arguments(
    mdp: AnyMDP, discount: float, tolerance: float, initial: Any, max_seconds: float
) -> tuple[float, float]:
    """The least and the greatest sum of a row of probabilities."""
    check_is_mdp(mdp)
    check_number(discount=discount, tolerance=tolerance, max_seconds=max_seconds)
    if not max_seconds >= 0:
        raise ValueError(f"max_seconds={max_seconds}: give seconds of at least 0.")
    if not tolerance > 0:
        raise ValueError(f"tolerance={tolerance}: an error bound is positive, such as 1e-6.")
    if initial is not None and np.shape(initial) != (mdp.num_states,):
        raise ValueError(f"initial has shape {np.shape(initial)}; use ({mdp.num_states},), one value a state.")
    if initial is not None and not np.isfinite(initial).all():
        raise ValueError(f"initial is not finite in state {np.argmin(np.isfinite(initial))}; begin from finite values.")
    if isinstance(mdp, FunctionMDP) and not 0 <= discount < 1:
        raise ValueError(f"discount={discount}: for a function use one from 0 to below 1; `aj.mdp.tabulate` allows 1.")
    least, greatest = row_sums(mdp)
    if isinstance(mdp, MDP):
        check_discount(mdp, discount)
    if discount < 1 <= discount * greatest:
        raise ValueError(f"discount={discount}: a row of probabilities sums to {greatest}; divide each by its sum.")
    return least, greatest


def _model(
    mdp: AnyMDP, discount: float, method: str, backend: Backend | None, devices: Sequence[Any] | None
) -> tuple[Model, float]:
    """The model, and the seconds that compiling it took."""
    if backend is None:
        accelerated = devices is not None or jax.default_backend() != "cpu"
        backend = "jax" if isinstance(mdp, FunctionMDP) or (accelerated and method != "gauss_seidel") else "host"
    if backend == "host" and isinstance(mdp, MDP):
        return HostModel(mdp, discount), 0.0
    if backend == "host":
        raise ValueError("backend='host' needs the arrays of an MDP: use `aj.mdp.tabulate`, or backend='jax'.")
    if method == "gauss_seidel":
        raise ValueError("method='gauss_seidel' sweeps in place, on the host only: use backend='host', or jacobi.")
    begin = time.perf_counter()
    model = DeviceModel(mdp, discount, devices)
    model.compile()
    return model, time.perf_counter() - begin


def _certificate(model: Model, least: float, greatest: float, expired: Callable[[], bool]) -> Certificate:
    """What bounds a problem admits whose rows have these sums at least and at most."""
    if model.discount < 1:
        shortest, horizon = (1 / (1 - model.discount * total) for total in (least, greatest))
    else:
        assert isinstance(model.mdp, MDP)
        shortest, horizon = 1.0, longest_time(model.mdp, expired)
    return Certificate(shortest, horizon, (model.mdp.num_successors + 3) * model.epsilon)
