"""Settings of the whole suite: the strictest JAX, and compiled programs kept between runs."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import pytest

# XLA's idle threads spin: test processes that share all cores take several times as long as on a core each.
_worker = os.environ.get("PYTEST_XDIST_WORKER")
if _worker and hasattr(os, "sched_setaffinity"):
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_cores[int(_worker.removeprefix("gw")) % len(_cores)]})

# Tracing makes many objects that live, among which Python's 700 would look for garbage all the time.
gc.set_threshold(100_000, 20, 20)

# Tests interrupt runs, which a shell that starts them in the background has them ignore.
signal.signal(signal.SIGINT, signal.default_int_handler)

# In the user's cache directory: compiling takes most of the suite's time, and a fresh clone need not do it again.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asyncjax-tests"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))  # also for the tests' subprocesses
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("asyncjax", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("asyncjax")

# Begun first, so that at the end no process is left alone with one of them.
LONGEST = ("test_processes", "test_cluster", "test_engines", "test_notebooks", "test_corrections", "test_trajectory")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    gc.freeze()  # the packages that all tests have imported, which are no garbage


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """For files with no law on how alike two programs round: XLA optimizes little, and compiles in half the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True, scope="module")
def _free_compiled_programs() -> Iterator[None]:
    """After each file: the programs of the whole suite would need more memory maps than Linux allows one process."""
    yield
    from asyncjax.engines.common import compile_init
    from asyncjax.engines.host_program import cached_host_program
    from asyncjax.engines.program import cached_program
    from tests import laws

    laws._built.clear()
    for cache in (cached_program, cached_host_program, compile_init):
        cache.programs.clear()
    jax.clear_caches()
    gc.collect()
