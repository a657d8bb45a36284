"""Corrections: the laws of all, whatever their rule."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import asyncjax as aj
from asyncjax import corrections
from tests.laws import KEY, assert_close, assert_equal
from tests.probes import corridor

PARAMS = {"w": jnp.array([1.0, -2.0, 3.0]), "b": jnp.float32(0.5)}
GRADIENT = {"w": jnp.array([0.3, -0.7, 1e-9]), "b": jnp.float32(-2.5)}

# Every correction that leaves fresh messages alone.
IDENTITIES: dict[str, Callable[[], optax.GradientTransformationExtraArgs]] = {
    "staleness": corrections.scale_by_staleness,
    "polynomial": lambda: corrections.polynomial(0.3),
    "hinge": lambda: corrections.hinge(slope=1.0, grace=1.0),
    "delay-adaptive": lambda: corrections.delay_adaptive(0.5, smoothness=2.0),
    "pipemare": lambda: corrections.pipemare(4),
    "drop": lambda: corrections.drop_stale(2),
    "ringmaster": lambda: corrections.ringmaster(2),
    "delay compensation": lambda: corrections.delay_compensation(0.5),
    "adaptive": corrections.adaptive_delay_compensation,
    "gap-aware": corrections.gap_aware,
}
NORMAL = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)  # XLA flushes the others to 0
UPDATES = {name: jax.jit(make().update) for name, make in IDENTITIES.items()}
everywhere = pytest.mark.parametrize("name", IDENTITIES)


def quadratic(optimizer: optax.GradientTransformation, **options: Any) -> aj.Method:
    """A random target per message, so that no message is like another."""

    def loss(params: Any, target: jax.Array) -> jax.Array:
        return 0.5 * jnp.sum(jnp.square(params["w"] - target)) + 0.1 * jnp.square(params["b"])

    return aj.sgd(loss, PARAMS, optimizer=optimizer, sample=lambda key: jax.random.normal(key, (3,)), **options)


# ---------------------------------------------------------------------------------------------------------------------
# Laws of all


@everywhere
@hypothesis.given(values=st.lists(NORMAL, min_size=16, max_size=16))
def test_fresh_messages_pass_bit_for_bit(name: str, values: list[float]) -> None:
    """Whatever the gradients, the parameters and the correction's state after messages that were stale."""
    update, numbers = UPDATES[name], np.array(values, np.float32).reshape(4, 4)
    first, gradient, params, moved = ({"w": jnp.array(row[:3]), "b": jnp.float32(row[3])} for row in numbers)
    state = IDENTITIES[name]().init(params)
    _, state = update(first, state, params, staleness=jnp.int32(5), stale_params=params)
    out, _ = update(gradient, state, moved, staleness=jnp.int32(0), stale_params=moved)
    assert_equal(out, gradient)


ENGINES = {"emulate": aj.emulate, "replay": aj.replay}
# Those of a kind in one chain, as each alone is tested above: a program for each would take most of this file's time.
CHAINS: dict[str, Callable[[], optax.GradientTransformation | None]] = {
    "": lambda: None,
    "scaling": lambda: optax.chain(*(IDENTITIES[n]() for n in ("staleness", "hinge", "delay-adaptive", "pipemare"))),
    "comparing": lambda: optax.chain(*(IDENTITIES[n]() for n in ("delay compensation", "adaptive", "gap-aware"))),
    "dropping": lambda: optax.chain(IDENTITIES["drop"](), corrections.drop_stale(3, IDENTITIES["gap-aware"]())),
}


@functools.cache
def built(name: str) -> aj.Method:
    """A method built once, so that its compiled programs are shared."""
    return quadratic(optax.adam(0.05), correction=CHAINS[name]())


@pytest.mark.parametrize("name", [name for name in CHAINS if name])
@pytest.mark.parametrize("engine", ENGINES)
@hypothesis.given(data=st.data(), group_size=st.sampled_from([1, 2]))
@hypothesis.settings(max_examples=6)
def test_a_fresh_run_is_the_uncorrected_one_bit_for_bit(
    name: str, engine: str, data: st.DataObject, group_size: int
) -> None:
    """Compiled, in every engine, under any order of workers that are all fresh."""
    worker = np.array([[data.draw(st.integers(0, 2)) for _ in range(group_size)] for _ in range(8)], np.int32)
    read = np.broadcast_to(np.arange(8, dtype=np.int32)[:, None], worker.shape)
    schedule = aj.Schedule(worker, read)
    plain, corrected = (ENGINES[engine](built(n), schedule, KEY, num_workers=3) for n in ("", name))
    assert_equal(plain.shared.params, corrected.shared.params)
    assert_equal(plain.shared.opt_state, corrected.shared.opt_state)
    assert_equal(plain.metrics, corrected.metrics)


@pytest.mark.parametrize("size", [1, 3, 16])
@pytest.mark.parametrize("engine", ["emulate", "replay"])
def test_a_fresh_run_of_few_parameters_is_the_uncorrected_one_bit_for_bit(engine: str, size: int) -> None:
    """XLA compiles loops that move few bytes as one kernel, and would round otherwise with a correction in it."""
    start, correction = jnp.linspace(0.3, 1.7, size), corrections.scale_by_staleness()
    loss = lambda w: 0.5 * jnp.sum(jnp.square(1.37 * w - 0.3))  # noqa: E731
    plain, corrected = (
        ENGINES[engine](
            aj.sgd(loss, start, optimizer=optax.adam(0.03), correction=c), aj.schedules.sequential(50), KEY
        ).shared.params
        for c in (None, correction)
    )
    assert_equal(plain, corrected)


TRAJECTORY = {
    "impala": ("impala", {}),
    "ppo, clipped, masked": ("ppo", {"epochs": 1, "num_minibatches": 1, "max_grad_norm": 1e-3, "surrogate": "masked"}),
}


@pytest.mark.parametrize("case", TRAJECTORY)
def test_trajectory_methods_take_corrections_as_gradient_methods_do(case: str) -> None:
    """A fresh message: the uncorrected update, bit for bit; stale ones: what the rules say."""
    factory, options = TRAJECTORY[case]
    options = {"num_envs": 2, "unroll_length": 3, "optimizer": optax.sgd(0.1), **options}
    correction = optax.chain(corrections.scale_by_staleness(), corrections.drop_stale(4))
    plain, corrected = (getattr(aj, factory)(corridor(2, 5), **options, correction=c) for c in (None, correction))
    shared, local = jax.jit(plain.init, static_argnums=1)(KEY, 1)
    message, _, _ = jax.jit(plain.work)(shared.params, jax.tree.map(lambda x: x[0], local))
    state = {plain.apply: (), corrected.apply: correction.init(shared.params)}
    compiled = {apply: jax.jit(apply) for apply in state}

    def step(run: aj.Method, *staleness: int) -> Any:
        """Of one update from so many copies of the message."""
        begin = shared._replace(correction_state=state[run.apply])
        messages, views = (
            jax.tree.map(lambda x: jnp.stack([x] * len(staleness)), tree) for tree in (message, shared.params)
        )
        after, _ = compiled[run.apply](begin, messages, aj.Stale(views, jnp.array(staleness, jnp.int32)))
        return jax.tree.map(jnp.subtract, after.params, shared.params)

    whole = step(plain, 1)
    assert any(np.any(x) for x in jax.tree.leaves(whole))
    assert_equal(step(corrected, 0), whole)
    assert_close(step(corrected, 1), jax.tree.map(lambda x: x / 2, whole), 1e-6)
    assert all(not np.any(x) for x in jax.tree.leaves(step(corrected, 4)))
    assert_close(step(corrected, 1, 3), jax.tree.map(lambda x: (x / 2 + x / 4) / 2, whole), 1e-5)
    assert_close(step(corrected, 1, 9), jax.tree.map(lambda x: x / 4, whole), 1e-5)


@pytest.mark.parametrize(("factory", "engine"), [("impala", "emulate"), ("ppo", "replay")])
def test_fresh_groups_of_trajectories_are_learned_from_as_without_a_correction(factory: str, engine: str) -> None:
    """Whatever couples the messages of a group, clipping, normalized advantages, minibatches, stays as it is."""
    options = {"num_envs": 4, "unroll_length": 3, "optimizer": optax.adam(0.01), "max_grad_norm": 0.1}
    plain, halved = (
        getattr(aj, factory)(corridor(2, 5), **options, correction=c) for c in (None, corrections.scale_by_staleness())
    )
    fresh = aj.schedules.barrier(3, 3)
    one, other = (ENGINES[engine](run, fresh, KEY) for run in (plain, halved))
    assert_equal(one.shared.params, other.shared.params)
    assert_equal(one.metrics, other.metrics)


def test_the_parts_of_a_group_add_up_to_its_gradient() -> None:
    """Messages that differ, all of staleness 1: half the update, also of losses that are no means over steps."""
    options = {"num_envs": 2, "unroll_length": 3, "optimizer": optax.sgd(0.1), "max_grad_norm": 0.1}
    options |= {"epochs": 1, "num_minibatches": 1}
    for surrogate in ("clipped", "m2po"):
        plain, halved = (
            aj.ppo(corridor(2, 5), **options, surrogate=surrogate, correction=c)
            for c in (None, corrections.scale_by_staleness())
        )
        shared, local = jax.jit(plain.init, static_argnums=1)(KEY, 3)
        messages, _, _ = jax.jit(jax.vmap(plain.work, in_axes=(None, 0)))(shared.params, local)
        views = jax.tree.map(lambda x: jnp.stack([x] * 3), shared.params)
        stale = aj.Stale(views, jnp.ones(3, jnp.int32))
        whole, half = (
            jax.tree.map(jnp.subtract, jax.jit(run.apply)(shared, messages, stale)[0].params, shared.params)
            for run in (plain, halved)
        )
        assert_close(half, jax.tree.map(lambda x: x / 2, whole), 1e-5)


@everywhere
def test_stale_messages_do_not(name: str) -> None:
    """The identity at staleness 0 is not the identity everywhere."""
    update, state, changed = UPDATES[name], IDENTITIES[name]().init(PARAMS), False
    for t in range(4):
        now, then = (jax.tree.map(lambda w, s=s: w + s, PARAMS) for s in (t, t - 3.0))
        out, state = update(GRADIENT, state, now, staleness=jnp.int32(3), stale_params=then)
        changed = changed or not np.array_equal(out["w"], GRADIENT["w"])
    assert changed


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("staleness", [1, 10**6])
@everywhere
def test_every_dtype_stays_what_it_is_and_finite_at_any_age(name: str, staleness: int, dtype: str) -> None:
    """Of the message and of the state, which a compiled loop carries; no message grows but by compensation."""
    with jax.enable_x64(dtype == "float64"):
        params, gradient, read = (
            jax.tree.map(lambda x, s=s: jnp.asarray(s * np.asarray(x, np.float64), dtype), tree)
            for tree, s in ((PARAMS, 1.0), (GRADIENT, 1.0), (PARAMS, 0.5))
        )
        correction = IDENTITIES[name]()
        state = correction.init(params)
        for age in (0, staleness, 2):
            moved = jax.tree.map(lambda w, a=age: w * (1 + min(a, 2)), params)
            extra = {"staleness": jnp.int32(age), "stale_params": read}
            out, after = correction.update(gradient, state, moved, **extra)
            assert jax.tree.map(jnp.result_type, out) == jax.tree.map(jnp.result_type, gradient)
            assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, state)
            assert all(np.isfinite(np.asarray(x, np.float64)).all() for x in jax.tree.leaves((out, after)))
            if name not in ("delay compensation", "adaptive"):
                shrunk = jax.tree.map(lambda x, g: np.all(np.abs(x) <= np.abs(g)), out, gradient)
                assert all(jax.tree.leaves(shrunk))
            state = after


@everywhere
def test_chained_in_front_of_the_optimizer_it_is_the_same_arithmetic(name: str) -> None:
    """Bit for bit where every operation is compiled alone, so that none is fused with another."""
    passed = quadratic(optax.adam(0.05), correction=IDENTITIES[name]())
    chained = quadratic(optax.chain(IDENTITIES[name](), optax.adam(0.05)))
    x, y = (run.init(KEY, 1)[0] for run in (passed, chained))
    for t, staleness in enumerate([0, 3, 1]):
        gradient, read = (jax.tree.map(lambda w, s=s + t: jnp.cos(s + w)[None], PARAMS) for s in (0.0, 1.0))
        stale = aj.Stale(read, jnp.array([staleness], jnp.int32))
        x, y = (run.apply(shared, gradient, stale)[0] for run, shared in ((passed, x), (chained, y)))
    assert_equal(x.params, y.params)
    assert_equal((x.correction_state, x.opt_state), y.opt_state)


@pytest.mark.parametrize("name", [name for name in IDENTITIES if name != "ringmaster"])  # which refuses groups
def test_a_group_is_the_mean_of_messages_corrected_one_after_the_other(name: str) -> None:
    correction, rng = IDENTITIES[name](), np.random.default_rng(0)
    run = quadratic(optax.sgd(0.1), correction=correction)
    shared, _ = run.init(KEY, 2)
    shared = shared._replace(params=jax.tree.map(lambda x: x + 0.25, shared.params))  # all have moved since init
    gradients, reads = (
        jax.tree.map(lambda x: rng.normal(size=(3, *x.shape)).astype(x.dtype), PARAMS) for _ in range(2)
    )
    staleness = jnp.array([3, 0, 5], jnp.int32)
    result, _ = jax.jit(run.apply)(shared, gradients, aj.Stale(reads, staleness))
    state, mean = correction.init(PARAMS), jax.tree.map(jnp.zeros_like, PARAMS)
    for g in range(3):
        gradient, read = (jax.tree.map(lambda x, g=g: jnp.asarray(x[g]), tree) for tree in (gradients, reads))
        out, state = correction.update(gradient, state, shared.params, staleness=staleness[g], stale_params=read)
        mean = jax.tree.map(lambda m, x: m + x / 3, mean, out)
    assert_close(result.params, jax.tree.map(lambda w, m: w - 0.1 * m, shared.params, mean))
    assert_close(result.correction_state, state)


OPTIMIZERS: dict[str, Callable[[optax.GradientTransformation], optax.GradientTransformation]] = {
    "in front of Adam": lambda c: optax.chain(c, optax.adam(0.05)),
    "behind clipping, before RMSProp": lambda c: optax.chain(optax.clip(0.5), c, optax.rmsprop(0.05)),
    "behind momentum": lambda c: optax.chain(optax.trace(0.9), c, optax.scale(-0.01)),
    "two": lambda c: optax.chain(c, corrections.scale_by_staleness(0.5), optax.lion(0.01)),
}


@pytest.mark.parametrize("where", OPTIMIZERS)
def test_a_threaded_run_with_corrections_replays_bit_for_bit(where: str) -> None:
    run = quadratic(OPTIMIZERS[where](corrections.adaptive_delay_compensation(0.2)))
    result, schedule = aj.run_threads(run, KEY, num_workers=3, num_updates=25)
    again = aj.replay(run, schedule, KEY, num_workers=3)
    assert_equal(result, again)
    assert_close(aj.emulate(run, schedule, KEY, num_workers=3), again)


def test_numbers_may_be_traced_and_mapped() -> None:
    schedule, powers = aj.schedules.fixed_delay(20, 3), jnp.array([0.0, 0.5, 2.0])

    def final(power: Any) -> jax.Array:
        correction = optax.chain(
            corrections.scale_by(corrections.hinge(power, power)),
            corrections.scale_by_staleness(power),
            corrections.adaptive_delay_compensation(power, power / 4, power),
            corrections.drop_stale(power + 3),
        )
        run = aj.sgd(lambda w: 0.5 * w**2, 1.0, optimizer=optax.sgd(0.1), correction=correction)
        return aj.emulate(run, schedule, KEY).shared.params

    np.testing.assert_allclose(jax.jit(jax.vmap(final))(powers), [final(float(p)) for p in powers], rtol=1e-5)


@everywhere
def test_a_chained_correction_refuses_groups(name: str) -> None:
    run = quadratic(optax.chain(IDENTITIES[name](), optax.adam(0.05)))
    sentence = r"groups of one. For groups choose a wait" if name == "ringmaster" else r"a group of 4: pass it as corr"
    with pytest.raises(ValueError, match=sentence):
        aj.emulate(run, aj.schedules.barrier(2, 4), KEY)


def test_ringmaster_counts_messages_and_refuses_groups_as_a_correction_too() -> None:
    correction = corrections.ringmaster(2)
    for run in (
        quadratic(optax.sgd(0.05), correction=correction),
        aj.impala(corridor(2, 5), num_envs=2, unroll_length=3, correction=correction),
    ):
        with pytest.raises(ValueError, match=r"in a group of 2: use it in a method of asyncjax with groups of one"):
            aj.emulate(run, aj.schedules.barrier(2, 2), KEY)


def test_a_private_optimizer_s_updates_are_scaled() -> None:
    """FedAsync: the server shrinks stale updates."""
    options = {"sample": None, "private_optimizer": True, "correction": corrections.scale_by_staleness()}
    run = aj.sgd(lambda w: 3.0 * w, 0.0, optimizer=optax.sgd(0.125), **options)
    result = aj.replay(run, aj.schedules.fixed_delay(3, 1), KEY)
    assert float(result.shared.params) == -0.375 * (1 + 0.5 + 0.5)


@pytest.mark.parametrize("optimizer", [corrections.scale_by_staleness(), corrections.ringmaster(3, optax.sgd(0.1))])
def test_a_correction_where_the_staleness_is_not_known_yet_is_refused(optimizer) -> None:
    """A worker's own optimizer runs before anyone can tell how stale the message will be."""
    run = aj.sgd(lambda w: 3.0 * w, 0.0, optimizer=optax.chain(optimizer, optax.sgd(0.1)), private_optimizer=True)
    with pytest.raises(ValueError, match=r"staleness=.*private"):
        aj.emulate(run, aj.schedules.round_robin(2, 2), KEY)
