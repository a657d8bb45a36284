"""IMPALA and PPO: identities with A3C and with V-trace written out, lag caps, minibatches, memory, and probes."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncjax import a3c, emulate, evaluate, impala, ppo, returns, schedules, surrogates
from asyncjax.actor_critic import make_agent
from asyncjax.environment import Box, Environment, Step
from asyncjax.method import Stale
from asyncjax.methods.rows import as_rows, evaluate_rows, minibatches
from asyncjax.networks import MLP, ActorCritic, RecurrentActorCritic
from asyncjax.rollout import next_values
from asyncjax.surrogates import SurrogateName
from tests import laws, probes

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = ActorCritic(2, MLP((8,)), MLP((8,)))
SGD = {"num_envs": 2, "unroll_length": 4, "network": SMALL, "optimizer": optax.sgd(1.0), "max_grad_norm": None}
WHOLE_BATCH = {"epochs": 1, "num_minibatches": 1, "normalize_advantages": False}
CUT = probes.corridor(2, max_steps=3)  # episodes of both kinds end inside the segments
close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)


def heads(params, observation) -> Any:
    return SMALL.apply(params, observation)


def stacked(trees):
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def updated(method, shared, messages, staleness):
    """One update from these messages, all said to be computed on the newest parameters."""
    view = stacked([method.view(shared)] * len(staleness))
    return jax.jit(method.apply)(shared, stacked(messages), Stale(view, jnp.array(staleness, jnp.int32)))


def start(method, num_workers, key=0):
    return jax.jit(method.init, static_argnums=1)(jax.random.key(key), num_workers)


def messages_of(method, num_messages, num_segments=1, key=0):
    """The shared state and one message of each of some workers, their last of so many segments."""
    shared, local = start(method, num_messages, key)
    work = jax.jit(jax.vmap(method.work, (None, 0)))
    for _ in range(num_segments):
        message, local, _ = work(method.view(shared), local)
    return shared, [jax.tree.map(lambda x, g=g: x[g], message) for g in range(num_messages)]


# ---------------------------------------------------------------------------------------------------------------------
# Identities


@pytest.mark.parametrize(("lambda_", "members"), [(1.0, [0]), (0.7, [0, 1])])
def test_fresh_impala_and_one_epoch_of_ppo_are_a3c(lambda_, members):
    costs = {"entropy_cost": 0.03, "value_cost": 0.4, "discount": 0.9}
    of_a3c = a3c(CUT, gae_lambda=lambda_, **costs, **SGD)
    shared, workers = start(of_a3c, 2)
    expected, _, metrics = jax.jit(jax.vmap(of_a3c.work, (None, 0)))(shared.params, workers)
    of_impala = impala(CUT, trace_lambda=lambda_, **costs, **SGD)
    of_ppo = ppo(CUT, gae_lambda=lambda_, surrogate="clipped", **costs, **WHOLE_BATCH, **SGD)
    for method, scale in ((of_impala, 1.0), (of_ppo, 4.0)):  # A3C sums over the segment, PPO takes the mean
        learner = start(method, 2)[0]._replace(params=shared.params)
        trajectories, _, _ = jax.jit(jax.vmap(method.work, (None, 0)))(shared.params, workers)
        group = [jax.tree.map(lambda x, g=g: x[g], trajectories) for g in range(2)]
        assert any(m.terminated.any() and m.truncated.any() for m in group)
        after, of_apply = updated(method, learner, [group[g] for g in members], [0] * len(members))
        step = jax.tree.map(lambda a, b, scale=scale: scale * (a - b), shared.params, after.params)
        jax.tree.map(close, step, jax.tree.map(lambda g: g[jnp.array(members)].mean(0), expected))
        close(of_apply["value_loss"], metrics["value_loss"][jnp.array(members)].mean())
        close(of_apply["entropy"], metrics["entropy"][jnp.array(members)].mean())
        close([of_apply[n] for n in ("ratio_mean", "ratio_max", "effective_sample_size")], 1.0)
        close(of_apply["kl"], 0.0)


def test_stale_impala_is_vtrace_written_out():
    options = {"discount": 0.9, "trace_lambda": 0.8, "clip_rho": 1.2, "clip_c": 0.9, "clip_pg_rho": 1.1}
    method = impala(CUT, **options, entropy_cost=0.03, value_cost=0.4, **SGD)
    shared, (message,) = messages_of(method, 1)
    newer = jax.tree.map(
        lambda x: x + 1.5 * jnp.sin(7.0 * jnp.arange(x.size, dtype=x.dtype).reshape(x.shape)), shared.params
    )

    def loss(params):
        total = 0.0
        for n in range(2):
            row = jax.tree.map(lambda x, n=n: x[:, n], message)
            logits, value = jax.vmap(functools.partial(heads, params))(row.observation)
            log_pi = jax.nn.log_softmax(logits)
            _, v_bootstrap = jax.vmap(functools.partial(heads, params))(row.bootstrap_observation)
            v_t = next_values(value, v_bootstrap, row.truncated)
            log_p = jnp.take_along_axis(log_pi, row.action[:, None], 1)[:, 0]
            v, v_t, rho = jax.lax.stop_gradient((value, v_t, jnp.exp(log_p - row.extra)))
            caps = {name: options[name] for name in ("clip_rho", "clip_c", "clip_pg_rho")}
            discount_t = returns.discounts(row.terminated, 0.9)
            vs = returns.vtrace(row.reward, discount_t, v, v_t, rho, lambda_=0.8, truncated_t=row.truncated, **caps)
            total -= jnp.sum(log_p * vs.advantages) - 0.4 * 0.5 * jnp.sum(jnp.square(vs.targets - value))
            total += 0.03 * jnp.sum(jnp.exp(log_pi) * log_pi)
        return total / 2

    after, metrics = updated(method, shared._replace(params=newer), [message], [3])
    assert metrics["ratio_max"] > 1.2
    assert metrics["effective_sample_size"] < 0.99
    step = jax.tree.map(lambda a, b: a - b, newer, after.params)
    jax.tree.map(close, step, jax.jit(jax.grad(loss))(newer))


@pytest.mark.parametrize(("surrogate", "vtrace"), [("clipped", False), ("clipped", True), ("decoupled", True)])
def test_stale_ppo_is_its_equations_written_out(surrogate, vtrace):
    """The first step: pi is prox there. Advantages are V-trace's or ignore the staleness, and are normalized."""
    options = {"surrogate": surrogate, "vtrace": vtrace, "clip": 0.5}
    options |= {"discount": 0.9, "gae_lambda": 0.8, "entropy_cost": 0.03, "value_cost": 0.4}
    method = ppo(CUT, **options, **{**WHOLE_BATCH, "normalize_advantages": True}, **{**SGD, "num_envs": 16})
    shared, (message,) = messages_of(method, 1)
    newer = jax.tree.map(
        lambda x: x + 2.0 * jnp.sin(7.0 * jnp.arange(x.size, dtype=x.dtype).reshape(x.shape)), shared.params
    )
    rows = as_rows(stacked([message]))

    def targets(row, v, v_bootstrap, rho):
        discount_t, v_t = returns.discounts(row.terminated, 0.9), next_values(v, v_bootstrap, row.truncated)
        return returns.vtrace(
            row.reward, discount_t, v, v_t, rho, lambda_=0.8, truncated_t=row.truncated, clip_pg_rho=None
        )

    def loss(params):
        see = jax.vmap(jax.vmap(functools.partial(heads, params)))
        (logits, value), (_, v_bootstrap) = see(rows.observation), see(rows.bootstrap_observation)
        log_pi = jax.nn.log_softmax(logits)
        log_p = jnp.take_along_axis(log_pi, rows.action[..., None], -1)[..., 0]
        ratio = jnp.exp(log_p - rows.extra)
        rho = ratio if vtrace else jnp.ones_like(ratio)
        vs = jax.lax.stop_gradient(jax.vmap(targets)(rows, value, v_bootstrap, rho))
        advantage = (vs.advantages - vs.advantages.mean()) / vs.advantages.std()
        if surrogate == "clipped":
            gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.5, 1.5) * advantage)
        else:
            gain = ratio * advantage
        total = -gain.mean() + 0.4 * 0.5 * jnp.square(vs.targets - value).mean()
        return total + 0.03 * jnp.sum(jnp.exp(log_pi) * log_pi, -1).mean(), ratio

    expected, ratio = jax.jit(jax.grad(loss, has_aux=True))(newer)
    outside = np.abs(ratio - 1) > 0.5
    assert 0 < outside.mean() < 1
    after, metrics = updated(method, shared._replace(params=newer), [message], [3])
    jax.tree.map(close, jax.tree.map(lambda a, b: a - b, newer, after.params), expected)
    close(metrics["clip_fraction"], outside.mean() if surrogate == "clipped" else 0.0)


def test_every_surrogate_is_the_same_update_when_fresh():
    steps = {}
    for name in SurrogateName.__args__:
        method = ppo(CUT, surrogate=name, **WHOLE_BATCH, **SGD)
        shared, messages = messages_of(method, 1)
        steps[name] = updated(method, shared, messages, [0])[0].params
    for params in steps.values():
        jax.tree.map(close, params, steps["uncorrected"])


@pytest.mark.parametrize(
    ("build", "name", "options"),
    [(impala, "truncated", {"clip_pg_rho": 0.5}), (ppo, "clipped", {"clip": 0.0}), (ppo, "decoupled", {"clip": 0.0})],
)
def test_a_surrogate_is_the_same_by_its_name_and_as_a_function(build, name, options):
    sized = {**options, **SGD, **(WHOLE_BATCH if build is ppo else {})}
    assert program(build(CUT, surrogate=name, **sized)) == program(
        build(CUT, surrogate=getattr(surrogates, name), **sized)
    )


def test_the_clip_of_ppo_is_that_of_its_surrogate():
    sized = {**SGD, **WHOLE_BATCH}
    by_hand = functools.partial(surrogates.clipped, clip=0.3, reciprocal=True)
    named = program(ppo(CUT, surrogate="clipped", clip=0.3, reciprocal_clip=True, **sized))
    assert named == program(ppo(CUT, surrogate=by_hand, clip=0.3, **sized))
    assert named != program(ppo(CUT, surrogate="clipped", clip=0.3, **sized))


def program(method):
    """What an update of one message computes, in words."""
    shared, local = jax.eval_shape(lambda key: method.init(key, 1), jax.random.key(0))
    message, _, _ = jax.eval_shape(jax.vmap(method.work, (None, 0)), shared.params, local)
    stale = Stale(stacked_shapes(shared.params), jax.ShapeDtypeStruct((1,), jnp.int32))
    return str(jax.make_jaxpr(method.apply)(shared, message, stale))


def stacked_shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), tree)


def test_reward_clipping_is_that_of_the_environment():
    def step(key, state, action):
        state, outcome = CUT.step(key, state, action)
        return state, outcome._replace(reward=jnp.clip(outcome.reward, -0.3, 0.3))

    after = []
    for env, limit in ((CUT, 0.3), (CUT._replace(step=step), None)):
        method = impala(env, reward_clip=limit, **SGD)
        shared, messages = messages_of(method, 1)
        after.append(updated(method, shared, messages, [0])[0].params)
    laws.assert_close(*after)


def test_clipped_values_stay_where_they_were():
    def value_after(epochs, value_clip):
        method = ppo(CUT, **{**WHOLE_BATCH, "epochs": epochs}, value_clip=value_clip, value_cost=0.01, **SGD)
        shared, messages = messages_of(method, 1)
        return updated(method, shared, messages, [0])[0].params["params"]["value_torso"]

    once, twice = value_after(1, 0.0), value_after(2, 0.0)
    laws.assert_close(once, twice)  # the first step moved the values towards their targets, and that is enough
    free = value_after(2, None)
    assert max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (twice, free)), strict=True)) > 1e-4


# ---------------------------------------------------------------------------------------------------------------------
# Lag cap, minibatches, annealing

CAPPED = {"num_envs": 2, "unroll_length": 4, "network": SMALL, "max_staleness": 2}


@functools.cache
def capped(name):
    """A method that rejects messages older than 2 updates, a compiled apply, its state and three messages."""
    method = {
        "impala": lambda: impala(CUT, **CAPPED),
        "ppo": lambda: ppo(CUT, epochs=2, num_minibatches=3, **CAPPED),
    }[name]()
    return jax.jit(method.apply), *messages_of(method, 3)


@pytest.mark.parametrize("name", ["impala", "ppo"])
@given(staleness=st.lists(st.integers(0, 5), min_size=3, max_size=3))
def test_what_is_too_old_does_not_matter(name, staleness):
    apply, shared, messages = capped(name)
    view = stacked([shared.params] * 3)
    stale = Stale(view, jnp.array(staleness, jnp.int32))
    poisoned = [
        m if tau <= 2 else m._replace(reward=m.reward + 1e3, observation=m.observation * -50, extra=m.extra - 1)
        for m, tau in zip(messages, staleness, strict=True)
    ]
    after, metrics = apply(shared, stacked(messages), stale)
    same, same_metrics = apply(shared, stacked(poisoned), stale)
    laws.assert_equal((after, metrics), (same, same_metrics))
    rejected = sum(tau > 2 for tau in staleness)
    assert metrics["rejected"] == rejected
    assert after.messages == 3 - rejected
    assert all(np.isfinite(x) for x in metrics.values())
    if rejected == 3:
        laws.assert_equal(after, shared)
    else:
        assert (jax.random.key_data(after.key) != jax.random.key_data(shared.key)).any()


def test_minibatches_without_an_accepted_row_do_not_count_in_the_metrics():
    """Parameters that do not move: the means over one row each are those over all rows at once."""
    still = {**CAPPED, "optimizer": optax.sgd(0.0), "epochs": 1, "normalize_advantages": False}
    method, whole = (ppo(CUT, num_minibatches=parts, **still) for parts in (4, 1))
    shared, messages = messages_of(method, 2)
    _, metrics = updated(method, shared, messages, [0, 5])
    _, expected = updated(whole, shared, messages[:1], [0])
    assert metrics["rejected"] == 1
    for name in ("policy_loss", "value_loss", "entropy", "kl"):
        close(metrics[name], expected[name])


@functools.cache
def small_ppo():
    return ppo(CUT, epochs=1, num_minibatches=1, **CAPPED)


@given(laws.schedules(max_group=1))
def test_a_run_learns_from_no_message_above_the_cap(schedule):
    result = laws.definition(small_ppo(), schedule, laws.KEY, num_workers=3)
    rejected = (schedule.staleness() > 2).sum(axis=1)
    np.testing.assert_array_equal(result.metrics["rejected"], rejected)
    assert result.shared.messages == 8 - rejected.sum()


@given(st.sampled_from([(6, 2, 3), (6, 1, 1), (4, 3, 2), (4, 2, 4)]), st.integers(0, 100))
def test_minibatches_cover_every_row_once_an_epoch(sizes, seed):
    num_rows, epochs, parts = sizes
    order = np.asarray(minibatches(jax.random.key(seed), num_rows, epochs, parts))
    assert order.shape == (epochs * parts, num_rows // parts)
    np.testing.assert_array_equal(np.sort(order.reshape(epochs, num_rows)), np.tile(np.arange(num_rows), (epochs, 1)))


def test_minibatches_are_shuffled_anew():
    shared, order = jax.random.key(0), []
    for key in jax.random.split(shared, 2):
        order.append(np.asarray(minibatches(key, 32, 2, 4)).reshape(2, 32))
    assert len({tuple(epoch) for pair in order for epoch in pair}) == 4


def test_the_step_size_falls_to_zero_with_the_steps_of_all_workers():
    method = impala(CUT, anneal_steps=32.0, **SGD)  # a message has 8 steps
    shared, messages = messages_of(method, 2)
    full = updated(impala(CUT, **SGD), shared, messages[:1], [0])[0].params
    for seen, part in ((0, 1.0), (1, 0.75), (3, 0.25), (4, 0.0), (9, 0.0)):
        after, _ = updated(method, shared._replace(messages=jnp.int32(seen)), messages[:1], [0])
        assert after.messages == seen + 1
        expected = jax.tree.map(lambda a, b, part=part: a + part * (b - a), shared.params, full)
        jax.tree.map(close, after.params, expected)
    assert updated(method, shared, messages, [0, 0])[0].messages == 2


# ---------------------------------------------------------------------------------------------------------------------
# Memory, real actions, probes


@pytest.mark.parametrize("core", ["gru", "lstm"])
def test_the_learner_remembers_what_the_worker_did(core):
    network = RecurrentActorCritic(2, MLP((8,)), core, features=8)
    method = impala(CUT, **{**SGD, "network": network, "unroll_length": 7})
    shared, messages = messages_of(method, 2, num_segments=2)
    rows = as_rows(stacked(messages))
    assert (rows.terminated | rows.truncated)[:, :-1].any()
    assert any(jnp.abs(x).max() > 0 for x in jax.tree.leaves(rows.carry))
    evaluate = functools.partial(evaluate_rows, make_agent(CUT, network), discount=0.9, lambda_=1.0, caps=None)
    np.testing.assert_allclose(jax.jit(evaluate)(shared.params, rows).log_ratio, 0.0, atol=2e-6)
    forgetful = rows._replace(carry=jax.tree.map(jnp.zeros_like, rows.carry))
    assert jnp.abs(jax.jit(evaluate)(shared.params, forgetful).log_ratio).max() > 1e-5


def memory_probe():
    """Two steps: x = -1 or 1 is seen at the first only, and the second pays 1 for the action that it named, else -1."""

    def reset(key):
        x = probes.coin(key)
        return (x, jnp.int32(0)), x

    def step(key, state, action):
        x, time = state
        fresh, first = reset(key)
        end = time == 1
        final = jnp.zeros(1, jnp.float32)
        state = jax.tree.map(lambda a, b: jnp.where(end, a, b), fresh, (x, time + 1))
        reward = jnp.where(end, probes.sign(action) * x[0], 0.0)
        return state, Step(jnp.where(end, first, final), final, reward, end, jnp.bool_(False))

    return Environment("Memory", probes.OBSERVATIONS, probes.best_action().action_space, reset, step, None)


def target_probe():
    """One step, a real action: the reward is minus the squared distance to x / 2."""

    def move(x, time, action):
        return x, -jnp.square(action[0] - 0.5 * x[0]), True, False

    env = probes.episodic("Target", probes.coin, move)
    space = Box(-np.ones(1, np.float32), np.ones(1, np.float32), (1,), np.dtype(np.float32))
    return env._replace(action_space=space)


def train(factory, env, num_updates=200, **options):
    """Four workers, staleness 3."""
    method = factory(env, **{"num_envs": 8, "unroll_length": 4, "discount": 0.5, **options})
    return method, emulate(method, schedules.round_robin(num_updates, 4), jax.random.key(0))


def last_return(result):
    return result.metrics["return_sum"][-20:].sum() / result.metrics["episodes"][-20:].sum()


@pytest.mark.parametrize(
    ("factory", "env", "xs", "expected"),
    [
        (impala, probes.observed_value(), [-1.0, 1.0], [-1.0, 1.0]),
        (impala, probes.truncated_value(), [0.0], [2.0]),
        (ppo, probes.discounted_value(), [0.0, 1.0], [0.5, 1.0]),
    ],
    ids=["impala, observed", "impala, truncated", "ppo, discounted"],
)
def test_value_probes(factory, env, xs, expected):
    _, result = train(factory, env, network=SMALL, optimizer=optax.adam(1e-2))
    values = [float(heads(result.shared.params, jnp.array([x], jnp.float32))[1]) for x in xs]
    np.testing.assert_allclose(values, expected, atol=0.05)


@pytest.mark.parametrize(
    ("factory", "options"), [(impala, {}), (ppo, {}), (ppo, {"vtrace": True, "surrogate": "clipped"})]
)
def test_policy_probe(factory, options):
    env = probes.observed_action()
    method, result = train(factory, env, network=SMALL, **options)
    returns = evaluate(method, env, result.shared, jax.random.key(1), num_episodes=20, greedy=False, max_steps=1)
    assert returns.mean() > 0.8
    assert last_return(result) > 0.8


@pytest.mark.parametrize("factory", [impala, ppo])
def test_memory_probe(factory):
    network = RecurrentActorCritic(2, MLP((8,)), "gru", features=8)
    method, result = train(factory, memory_probe(), 300, network=network, optimizer=optax.adam(1e-2))
    assert last_return(result) > 0.8
    returns = evaluate(method, memory_probe(), result.shared, jax.random.key(1), num_episodes=20, max_steps=2)
    assert returns.mean() > 0.8


@pytest.mark.parametrize(("factory", "squash", "step_size"), [(impala, False, 1e-2), (ppo, True, 3e-3)])
def test_real_actions(factory, squash, step_size):
    network = ActorCritic(1, MLP((8,)), MLP((8,)), continuous=True)
    options = {"network": network, "squash": squash, "optimizer": optax.adam(step_size), "unroll_length": 8}
    method, result = train(factory, target_probe(), 400, **options)
    returns = evaluate(method, target_probe(), result.shared, jax.random.key(1), num_episodes=20, max_steps=1)
    assert returns.mean() > -0.05  # acting 0 earns -0.25


# ---------------------------------------------------------------------------------------------------------------------
# What they accept


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("factory", [impala, ppo])
def test_numbers_can_be_swept(factory, x64):
    def update(weights):
        options = {"discount": weights[0], "entropy_cost": weights[1], "value_cost": weights[2]}
        options |= {"anneal_steps": 1e6 * weights[3], "max_grad_norm": weights[4], "max_staleness": 3 * weights[4]}
        options |= {"optimizer": optax.adam(weights[0], b1=weights[3], b2=weights[0])}  # its state stays float32
        own = {
            impala: ("trace_lambda", "clip_rho", "clip_c", "clip_pg_rho", "reward_clip"),
            ppo: ("gae_lambda", "clip", "value_clip"),
        }
        options |= {"num_minibatches": 2} if factory is ppo else {}
        method = factory(CUT, **{**SGD, **options, **dict.fromkeys(own[factory], weights[2])})
        shared, local = method.init(jax.random.key(0), 1)
        message, _, _ = method.work(method.view(shared), jax.tree.map(lambda x: x[0], local))
        stale = Stale(stacked([shared.params]), jnp.zeros(1, jnp.int32))
        after, metrics = method.apply(shared, stacked([message]), stale)
        assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, shared)
        return metrics

    with jax.enable_x64(x64):
        metrics = jax.eval_shape(jax.vmap(update), jnp.array([[0.9, 0.0, 0.5, 1.0, 1.0], [0.5, 0.1, 1.0, 0.3, 1.0]]))
    names = {"policy_loss", "value_loss", "entropy", "grad_norm", "rejected", "ratio_mean", "ratio_max"}
    names |= {"effective_sample_size", "kl"} | ({"clip_fraction"} if factory is ppo else set())
    assert set(metrics) == names
    assert all(m.shape == (2,) and m.dtype == jnp.float32 for m in metrics.values())


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ppo(CUT, num_minibatches=0), ["num_minibatches=0", "at least 1"]),
        (lambda: impala(CUT, unroll_length=0), ["unroll_length=0", "at least 1"]),
        (lambda: impala(CUT, surrogate="decoupled"), ["decoupled", "ppo"]),
        (lambda: impala(CUT, surrogate=surrogates.decoupled), ["decoupled", "ppo"]),  # type: ignore[arg-type]
        (lambda: impala(CUT, surrogate="average"), ["surrogate='average'", "'truncated'", "'cispo'"]),  # type: ignore[arg-type]
        (lambda: ppo(CUT, surrogate="none"), ["surrogate='none'", "'decoupled'"]),  # type: ignore[arg-type]
        (lambda: impala(CUT, max_staleness=-1), ["max_staleness=-1", "at least 0"]),
        (lambda: impala(CUT, reward_clip=0.0), ["reward_clip=0.0", "above 0"]),
        (lambda: ppo(CUT, clip=-0.2), ["clip=-0.2", "at least 0"]),
        (lambda: ppo(CUT, gae_lambda=95), ["gae_lambda=95", "between 0 and 1"]),
        (
            lambda: updated_once(ppo(CUT, **{**SGD, "num_minibatches": 3})),
            ["num_minibatches=3", "2 segments", "divisor"],
        ),
    ],
)
def test_errors_name_the_fix(build, words):
    with pytest.raises(ValueError, match=words[0]) as caught:
        build()
    assert all(word in str(caught.value) for word in words), caught.value


def updated_once(method):
    shared, messages = messages_of(method, 1)
    return updated(method, shared, messages, [0])


@pytest.mark.parametrize(("num_envs", "parts"), [(1, 1), (2, 2), (3, 3), (6, 3), (8, 4)])
def test_by_default_ppo_divides_a_group_into_four_parts_or_as_many_as_it_can(num_envs: int, parts: int) -> None:
    def program(num_minibatches: int | None) -> str:
        method = ppo("Catch-bsuite", num_envs=num_envs, unroll_length=2, epochs=1, num_minibatches=num_minibatches)
        shared, local = jax.eval_shape(lambda key: method.init(key, 1), laws.KEY)
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), local)
        message = jax.eval_shape(method.work, shared.params, one)[0]
        messages, views = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), (message, shared.params))
        stale = Stale(views, jax.ShapeDtypeStruct((1,), jnp.int32))
        return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(method.apply)(shared, messages, stale)))

    assert program(None) == program(parts)
    if num_envs > 1:
        assert program(None) != program(1)
