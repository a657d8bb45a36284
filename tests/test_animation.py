"""Animations: a GIF with a frame a step, drawn from what the environment really does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure
from PIL import Image

import asyncjax as aj
from asyncjax import animation
from asyncjax.method import Policy

KEY = jax.random.key(0)


def lazy(env: aj.Environment) -> aj.Method:
    """A method that always takes action 0."""
    action = np.zeros(env.action_space.shape, env.action_space.dtype)
    policy = Policy(lambda: (), lambda view, carry, observation, key: (jnp.asarray(action), carry))
    return aj.sgd(lambda w: w**2, 1.0, optimizer=optax.sgd(0.1))._replace(policy=policy)


def scenes(name: str, num_steps: int) -> Any:
    env = aj.make_env(name)
    policy = lazy(env).policy
    assert policy is not None
    return jax.tree.map(np.asarray, animation.play(policy, env.reset, env.step, num_steps, True, (), KEY))


@pytest.mark.parametrize("name", [*animation.DRAWINGS, "Breakout-MinAtar"])
def test_every_drawing_gives_a_frame_a_step_and_moves(name: str, tmp_path: Path):
    env = aj.make_env(name)
    method = lazy(env)
    shared, _ = method.init(KEY, 1)
    path = animation.animate(method, env, shared, KEY, tmp_path / "policy.gif", num_steps=30)
    frames = []
    with Image.open(path) as gif:
        for t in range(gif.n_frames):  # type: ignore[attr-defined]
            gif.seek(t)
            frames.append(np.asarray(gif.convert("RGB"), np.int32)[35:])  # without the title, which always changes
    assert len(frames) == 30
    assert np.std(frames[0]) > 5, "the picture is empty"
    assert any((frames[0] != frame).any() for frame in frames), "nothing moves"


def test_time_and_return_begin_anew_with_every_episode():
    _, _, time, total = scenes("CartPole-v1", 60)
    np.testing.assert_array_equal(total, time)  # CartPole pays 1 for each step
    assert time[0] == 0
    assert np.all((time[1:] == time[:-1] + 1) | (time[1:] == 0))
    assert (time[1:] == 0).sum() >= 2, "a policy that always pushes left falls within some ten steps"


@pytest.mark.parametrize("name", ["Catch-bsuite", "Breakout-MinAtar"])
def test_a_cell_is_coloured_where_the_observation_is_on(name: str):
    state, observation, _, _ = scenes(name, 12)
    for t in range(12):
        axes = Figure().add_subplot()
        animation.drawing(aj.make_env(name))(axes, jax.tree.map(lambda x, t=t: x[t], state), observation[t])
        coloured = np.asarray(axes.images[0].get_array()).any(-1)
        np.testing.assert_array_equal(coloured, observation[t].reshape(*coloured.shape, -1).any(-1))


def test_the_end_of_the_acrobot_is_as_high_as_its_rule_says():
    state = type("State", (), {"joint_angle1": 2.0, "joint_angle2": 0.7})
    axes = Figure().add_subplot()
    animation.draw_acrobot(axes, state, np.zeros(0))
    end = np.asarray(axes.lines[-1].get_ydata())[-1]
    np.testing.assert_allclose(end, -np.cos(2.0) - np.cos(2.7))  # gymnax: solved above 1


def test_what_can_not_be_drawn_is_told(tmp_path: Path):
    env = aj.make_env("FourRooms-misc")
    method = lazy(env)
    with pytest.raises(ValueError, match="has no drawing: there are CartPole-v1"):
        animation.animate(method, env, method.init(KEY, 1)[0], KEY, tmp_path / "policy.gif")
    with pytest.raises(ValueError, match=r"method\.policy is None"):
        animation.animate(method._replace(policy=None), "CartPole-v1", 1.0, KEY, tmp_path / "policy.gif")


def test_the_policy_of_a_run_directory(tmp_path: Path):
    config = {"method": "a3c", "env": "Catch-bsuite", "env_params": [], "num_workers": 1, "num_envs": 2}
    method = aj.a3c("Catch-bsuite", num_envs=2)
    recorder = aj.Recorder(tmp_path / "run", config)
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        animation.animate_run(tmp_path / "run")
    aj.Recorder(tmp_path / "mine", {"num_workers": 1})
    with pytest.raises(ValueError, match=r"was not made by train.py: .* no \['env', 'env_params', 'method'\]"):
        animation.animate_run(tmp_path / "mine")
    with recorder:
        aj.emulate(method, aj.schedules.sequential(3), KEY, callback=recorder, chunk_size=3)
    assert animation.animate_run(tmp_path / "run", num_steps=2) == tmp_path / "run" / "policy.gif"
