"""Service times: how long a worker's jobs take, in seconds of virtual time.

Every argument of a model is a number, or one number per worker, Float[W].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from asyncjax.checks import check_key, check_kind

Number = float | np.ndarray | jax.Array | list[float]


class Service(NamedTuple):
    """A service-time model.

    Attributes:
      name: how the model was made, for messages and plots.
      sample: (generator, worker, n) -> Float[n], the worker's next n service times in seconds.

    Example:
      >>> import jax, numpy as np, asyncjax as aj
      >>> model = aj.service.Service("w + 1 seconds", lambda generator, worker, n: np.full(n, worker + 1.0))
      >>> aj.schedules.from_service_times(model, 6, 3, jax.random.key(0)).time.tolist()
      [1.0, 2.0, 2.0, 3.0, 3.0, 4.0]
    """

    name: str
    sample: Callable[[np.random.Generator, int, int], np.ndarray]


def constant(seconds: Number = 1.0) -> Service:
    """Every job takes the same time, S = seconds; the schedule of equal workers is round robin.

    Args:
      seconds: of a job, positive; Float[] or, one per worker, Float[W].

    Returns:
      A Service.

    Raises:
      ValueError: numbers that are not positive and finite, or that are no Float[] or Float[W]; later, from sampling, a
        worker beyond the last entry.

    Example:
      >>> import jax, asyncjax as aj
      >>> model = aj.service.constant([1.0, 3.0])
      >>> aj.schedules.from_service_times(model, 5, 2, jax.random.key(0)).worker.ravel()  # done at 1, 2, 3, 3, 4 s
      array([0, 0, 1, 0, 0], dtype=int32)
    """
    (seconds_of,) = _per_worker("constant", seconds=seconds)
    return Service(f"constant({seconds})", lambda rng, w, n: np.full(n, seconds_of(w)))


def exponential(mean: Number = 1.0) -> Service:
    """Memoryless: P(S > s) = exp(-s / mean). The staleness of N equal workers is then geometric with mean N - 1.

    Args:
      mean: seconds, positive; Float[] or, one per worker, Float[W].

    Returns:
      A Service.

    Raises:
      ValueError: numbers that are not positive and finite, or that are no Float[] or Float[W]; later, from sampling, a
        worker beyond the last entry.

    Example:
      >>> import numpy as np, asyncjax as aj
      >>> times = aj.service.exponential(2.0).sample(np.random.default_rng(0), 0, 100_000)
      >>> round(float((times > 2.0).mean()), 2)  # exp(-1) = 0.368
      0.37
    """
    (mean_of,) = _per_worker("exponential", mean=mean)
    return Service(f"exponential({mean})", lambda rng, w, n: mean_of(w) * rng.standard_exponential(n))


def gamma(shape: Number, mean: Number = 1.0) -> Service:
    """Gamma with coefficient of variation 1 / sqrt(shape): density proportional to s^(shape - 1) exp(-shape s / mean).

    Args:
      shape: positive, without a unit; Float[] or, one per worker, Float[W].
      mean: seconds, positive; Float[] or Float[W].

    Returns:
      A Service.

    Raises:
      ValueError: numbers that are not positive and finite, or that are no Float[] or Float[W]; later, from sampling, a
        worker beyond the last entry.

    Example:
      >>> import numpy as np, asyncjax as aj
      >>> times = aj.service.gamma(100.0, mean=0.5).sample(np.random.default_rng(0), 0, 100_000)
      >>> round(float(times.mean()), 2), round(float(times.std() / times.mean()), 2)
      (0.5, 0.1)

    Source: Hakimi et al., Taming momentum in a distributed asynchronous environment (2019), with shape 100 for a
    cluster.
    """
    shape_of, mean_of = _per_worker("gamma", shape=shape, mean=mean)
    return Service(
        f"gamma({shape}, {mean})", lambda rng, w, n: mean_of(w) / shape_of(w) * rng.standard_gamma(shape_of(w), n)
    )


def lognormal(sigma: Number, mean: Number = 1.0) -> Service:
    """Log S is normal with standard deviation sigma; the mean of S (not its median) is `mean`.

    With Z standard normal S = mean exp(sigma Z - sigma^2 / 2), so the median is mean exp(-sigma^2 / 2).

    Args:
      sigma: positive, without a unit; Float[] or, one per worker, Float[W].
      mean: seconds, positive; Float[] or Float[W].

    Returns:
      A Service.

    Raises:
      ValueError: numbers that are not positive and finite, or that are no Float[] or Float[W]; later, from sampling, a
        worker beyond the last entry.

    Example:
      >>> import numpy as np, asyncjax as aj
      >>> times = aj.service.lognormal(1.0, mean=2.0).sample(np.random.default_rng(0), 0, 100_000)
      >>> round(float(times.mean()), 1), round(float(np.median(times)), 1)  # 2 and 2 exp(-1 / 2) = 1.21
      (2.0, 1.2)
    """
    sigma_of, mean_of = _per_worker("lognormal", sigma=sigma, mean=mean)

    def sample(rng: np.random.Generator, worker: int, n: int) -> np.ndarray:
        sigma = sigma_of(worker)
        return mean_of(worker) * np.exp(sigma * rng.standard_normal(n) - sigma**2 / 2)

    return Service(f"lognormal({sigma}, {mean})", sample)


def pareto(shape: Number, mean: Number = 1.0) -> Service:
    """Heavy tail: P(S > s) = (minimum / s)^shape with minimum = mean (shape - 1) / shape. The shape must exceed 1.

    Args:
      shape: above 1, without a unit; Float[] or, one per worker, Float[W].
      mean: seconds, positive; Float[] or Float[W].

    Returns:
      A Service.

    Raises:
      ValueError: a shape of 1 or less, which has no mean; a mean that is not positive and finite; numbers that are no
        Float[] or Float[W]; later, from sampling, a worker beyond the last entry.

    Example:
      >>> import numpy as np, asyncjax as aj
      >>> times = aj.service.pareto(3.0, mean=1.5).sample(np.random.default_rng(0), 0, 100_000)  # the minimum is 1
      >>> round(float(times.min()), 2), round(float((times > 2.0).mean()), 2)  # (1 / 2)^3 = 0.125
      (1.0, 0.12)
    """
    shape_of, mean_of = _per_worker("pareto", shape=shape, mean=mean)
    if np.any(np.asarray(shape) <= 1):
        raise ValueError(f"pareto(shape={shape}): a shape of 1 or less has no mean; use a shape above 1, such as 2.0.")

    def sample(rng: np.random.Generator, worker: int, n: int) -> np.ndarray:
        shape = shape_of(worker)
        return mean_of(worker) * (shape - 1) / shape * (1 + rng.pareto(shape, n))

    return Service(f"pareto({shape}, {mean})", sample)


def straggler(probability: Number, slowdown: Number, base: Service | float = 1.0) -> Service:
    """A job of `base` takes `slowdown` times as long with this probability: E S = (1 + p (slowdown - 1)) E base.

    Args:
      probability: p, in [0, 1]; Float[] or, one per worker, Float[W].
      slowdown: a factor of at least 0; Float[] or Float[W].
      base: a model, or seconds that every job takes.

    Returns:
      A Service.

    Raises:
      ValueError: a probability outside [0, 1], a negative or infinite slowdown, seconds that are not positive, or
        numbers that are no Float[] or Float[W]; later, from sampling, a worker beyond the last entry.

    Example:
      >>> import numpy as np, asyncjax as aj
      >>> times = aj.service.straggler(0.1, 5.0, base=2.0).sample(np.random.default_rng(0), 0, 100_000)
      >>> sorted(set(times.tolist())), round(float(times.mean()), 1)  # (1 + 0.1 * 4) * 2
      ([2.0, 10.0], 2.8)
    """
    slowdown_of, probability_of = _per_worker("straggler", slowdown=slowdown, probability=probability, zero=True)
    if np.any(np.asarray(probability) > 1):
        raise ValueError(f"straggler(probability={probability}): a probability lies between 0 and 1.")
    inner = base if isinstance(base, Service) else constant(base)

    def sample(rng: np.random.Generator, worker: int, n: int) -> np.ndarray:
        slow = rng.random(n) < probability_of(worker)
        return inner.sample(rng, worker, n) * np.where(slow, slowdown_of(worker), 1.0)

    return Service(f"straggler({probability}, {slowdown}, {inner.name})", sample)


def streams(service: Service, key: jax.Array, num_workers: int) -> list[Iterator[float]]:
    """One endless stream of service times per worker.

    A worker's n-th service time depends on the key, the worker and n alone, so runs under different
    disciplines share their random numbers.

    Args:
      service: the model.
      key: the source of the service times. Consumed.
      num_workers: W.

    Returns:
      W endless iterators over seconds.

    Raises:
      TypeError: what is no Service, or no key.
      ValueError: from an iterator, a time that is negative or not finite, or a worker that the model has no entry for.

    Example:
      >>> import itertools, jax, asyncjax as aj
      >>> fast, slow = aj.service.streams(aj.service.constant([1.0, 3.0]), jax.random.key(0), num_workers=2)
      >>> list(itertools.islice(fast, 2)), list(itertools.islice(slow, 2))
      ([1.0, 1.0], [3.0, 3.0])
    """
    check_kind(Service, "give a model, such as asyncjax.service.exponential(0.01)", service=service)
    seed = seed_of(key)
    return [_stream(service, np.random.default_rng([*seed, worker]), worker) for worker in range(num_workers)]


def _stream(service: Service, rng: np.random.Generator, worker: int) -> Iterator[float]:
    while True:
        times = service.sample(rng, worker, 1024)
        if np.ndim(times) != 1 or not np.size(times):
            found = f"an array of shape {np.shape(times)}" if np.ndim(times) else repr(times)
            raise ValueError(f"The service model {service.name} gave worker {worker} {found}: return Float[n], n > 0.")
        times = np.asarray(times, np.float64)
        if not np.all(times >= 0) or not np.all(np.isfinite(times)):
            raise ValueError(f"The service model {service.name} gave worker {worker} a negative or non-finite time.")
        yield from times.tolist()


def seed_of(key: jax.Array) -> list[int]:
    """A key of JAX's, of the new kind or the old, as what NumPy's generators take; raises TypeError for no key."""
    check_key(key)
    return [int(word) for word in np.asarray(jax.random.key_data(key)).ravel()]


def _per_worker(model: str, *, zero: bool = False, **arguments: Number) -> list[Callable[[int], float]]:
    """A function worker -> value for every argument, after checking that the values are usable."""
    functions = []
    for name, value in arguments.items():
        array = np.asarray(value)
        numbers = array.dtype.kind not in "OSUc" and array.ndim <= 1 and array.size > 0
        array = array.astype(np.float64) if numbers else np.array([np.nan])
        if not np.all(np.isfinite(array) & ((array >= 0) if zero else (array > 0))):
            kind = "numbers of at least 0" if zero else "positive numbers"
            raise ValueError(
                f"{model}({name}={value!r}): wants {kind}, one for all workers or one per worker, Float[W]."
            )
        functions.append(_lookup(model, name, array))
    return functions


def _lookup(model: str, name: str, array: np.ndarray) -> Callable[[int], float]:
    def value(worker: int) -> float:
        if array.ndim == 0:
            return float(array)
        if worker >= array.size:
            raise ValueError(
                f"{model}({name}=...) has {array.size} entries, but there is a worker {worker}:"
                " give one number per worker."
            )
        return float(array[worker])

    return value
