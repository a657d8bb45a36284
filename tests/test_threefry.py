"""Keys without a loop draw the very bits that JAX's own draw."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import asyncjax as aj
from asyncjax.environment import Box, Discrete, Environment, Step
from asyncjax.threefry import drawn, rolled, unrolled
from tests.laws import raw

DRAWS = {
    "split": lambda key: jax.random.split(key, (3, 4)),
    "split_in_two": jax.random.split,
    "fold_in": lambda key: jax.random.fold_in(key, 123456),
    "fold_in_array": lambda key: jax.random.fold_in(key, jnp.uint32(5)),
    "uniform": lambda key: jax.random.uniform(key, (5, 3), jnp.float32),
    "nothing": lambda key: jax.random.uniform(key, (0, 3), jnp.float32),
    "normal": lambda key: jax.random.normal(key, (), jnp.float32),
    "randint": lambda key: jax.random.randint(key, (7,), 0, 10, jnp.int32),
    "permutation": lambda key: jax.random.permutation(key, 11),
    "bernoulli": lambda key: jax.random.bernoulli(key, jnp.float32(0.3), (9,)),
    "bytes": lambda key: jax.random.bits(key, (5,), "uint8"),
    "halves": lambda key: jax.random.bits(key, (5,), "uint16"),
    "doubles": lambda key: jax.random.bits(key, (5,), "uint64"),
}


@pytest.mark.parametrize("seed", [0, 7, 2**31 + 5])
@pytest.mark.parametrize("name", DRAWS)
def test_the_bits_are_those_of_jax(name, seed):
    draw = DRAWS[name]
    with jax.enable_x64(name == "doubles" or seed > 7):
        key = jax.random.key(seed)
        assert unrolled(key).dtype != key.dtype
        keys = jax.random.split(key, 4)
        for way in (lambda f: f, jax.jit):
            np.testing.assert_array_equal(raw(way(draw)(unrolled(key))), raw(draw(key)))
            np.testing.assert_array_equal(raw(way(jax.vmap(draw))(unrolled(keys))), raw(jax.vmap(draw)(keys)))


def test_there_and_back():
    key = jax.random.key(3)
    again = rolled(unrolled(key))
    assert again.dtype == key.dtype
    np.testing.assert_array_equal(raw(again), raw(key))
    for other in (jax.random.key(3, impl="rbg"), jax.random.PRNGKey(3)):
        assert unrolled(other) is other
        assert rolled(other) is other


def test_a_key_of_the_old_kind_runs_a_method_alike():
    method, schedule = aj.a3c("CartPole-v1", num_envs=2, unroll_length=3), aj.schedules.round_robin(4, 2)
    old, new = (aj.emulate(method, schedule, key) for key in (jax.random.PRNGKey(5), jax.random.key(5)))
    jax.tree.map(np.testing.assert_allclose, old.shared, new.shared)


def walk(keep, mixed=False):
    """A random walk, whose state holds its key or, without `keep`, as many numbers; `mixed`: and a step's key joins."""

    def pack(key, x):
        return (key if keep else jax.random.key_data(key), x), x[None]

    def step(key, state, action):
        held, x = state
        held = held if keep else jax.random.wrap_key_data(held)
        drawn, key = jax.random.split(jnp.where(x > 0, key if mixed else held, held))
        x = x + jax.random.normal(drawn, (), jnp.float32)
        state, observation = pack(key, x)
        return state, Step(observation, observation, x, jnp.bool_(False), jnp.bool_(False))

    box = Box(np.full(1, -np.inf, np.float32), np.full(1, np.inf, np.float32), (1,), np.dtype(np.float32))
    return Environment("walk", box, Discrete(2), lambda key: pack(key, jnp.float32(0)), step, None)


def test_a_key_may_meet_another_one_of_its_kind():
    def either(key):
        return jax.random.uniform(jnp.where(jax.random.bernoulli(key), key, jax.random.key(7)), (3,), jnp.float32)

    for seed in range(4):
        key = jax.random.key(seed)
        np.testing.assert_array_equal(drawn(either, key), either(key))
    with pytest.raises(ValueError, match="my own"):
        drawn(lambda key: exec('raise ValueError("my own")'), jax.random.key(0))


@pytest.mark.parametrize("mixed", [False, True])
def test_an_environment_may_keep_a_key(mixed):
    """It keeps the kind of key that it was given, and what it draws is the same."""
    runs = [
        aj.emulate(
            aj.a3c(walk(keep, mixed), optimizer=optax.sgd(0.1), num_envs=2, unroll_length=3),
            aj.schedules.round_robin(6, 2),
            jax.random.key(0),
        )
        for keep in (True, False)
    ]
    jax.tree.map(np.testing.assert_array_equal, runs[0].shared, runs[1].shared)
