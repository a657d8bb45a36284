"""Animations of a policy: an episode of it as a GIF, drawn here with matplotlib.

There are drawings of gymnax's classic control (CartPole, MountainCar, Pendulum, Acrobot), of Catch, and of every
environment whose observation is an image [height, width, channels] such as MinAtar's, where a colour is a channel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from asyncjax import runs
from asyncjax.checks import check_counts
from asyncjax.environment import Environment, make_env
from asyncjax.files import PathLike
from asyncjax.method import Method, Policy, PyTree
from asyncjax.plotting.panels import COLOURS
from asyncjax.rollout import where

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

BLUE, ORANGE, GREEN, BLACK = COLOURS[0], COLOURS[1], COLOURS[2], COLOURS[6]
CHANNELS = (*COLOURS[:6], COLOURS[7], "#BBBBBB", "#882255", "#FFFFFF")  # of an image, drawn on black


def animate(
    method: Method,
    env: Environment | str,
    shared: PyTree,
    key: jax.Array,
    path: PathLike,
    *,
    num_steps: int = 200,
    greedy: bool = True,
    frames_per_second: int = 30,
) -> Path:
    """Draws a policy at work as an animated GIF; where an episode ends, the next one begins.

    Args:
      method: whose policy acts.
      env: the environment, or a gymnax id.
      shared: the method's shared state, `result.shared`.
      key: consumed.
      path: the file to write.
      num_steps: frames.
      greedy: take the policy's mode; False samples from it.
      frames_per_second: of the animation, at most 50.

    Returns:
      The path.

    Raises:
      ValueError: a method without a policy, an environment without a drawing, or a count below 1.

    Example:
      >>> import jax, asyncjax as aj
      >>> method = aj.a3c("CartPole-v1")
      >>> shared, _ = method.init(jax.random.key(0), 1)
      >>> aj.animation.animate(method, "CartPole-v1", shared, jax.random.key(1), "policy.gif")  # doctest: +SKIP
    """
    env = make_env(env)
    if method.policy is None:
        raise ValueError("method.policy is None, so there is nothing to act with: animate a method that has a policy.")
    check_counts(num_steps=num_steps, frames_per_second=frames_per_second)
    draw = drawing(env)
    scenes = play(method.policy, env.reset, env.step, num_steps, greedy, method.view(shared), key)
    first, *others = render(draw, jax.tree.map(np.asarray, scenes))
    first.save(path, save_all=True, append_images=others, duration=max(20, 1000 // frames_per_second), loop=0)
    return Path(path)


def animate_run(path: PathLike, **options: Any) -> Path:
    """Draws the policy of a run directory's newest checkpoint into its policy.gif; options as for `animate`.

    Raises:
      ValueError: no run, no checkpoint in it, or what `animate` raises.
    """
    from asyncjax import commandline

    run = runs.load(path)
    if missing := {"env", "env_params", "method"} - run.config.keys():
        raise ValueError(
            f"The run {run.path} was not made by train.py: its configuration has no {sorted(missing)}. Draw it with"
            " animate(method, env, result.shared, key, file)."
        )
    env = commandline.make_env_from(run.config["env"], run.config["env_params"])
    method = commandline.build(commandline.factories()[run.config["method"]], env, run.config)
    state = run.restore(method)
    if state is None:
        raise ValueError(f"The run {run.path} has no checkpoint yet: it was stopped before its first one.")
    return animate(method, env, state.shared, jax.random.key(0), run.path / "policy.gif", **options)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def play(
    policy: Policy, reset: Callable, step: Callable, num_steps: int, greedy: bool, view: PyTree, key: jax.Array
) -> tuple[PyTree, PyTree, jax.Array, jax.Array]:
    """State, observation, step of the episode and return so far, all [num_steps, ...]."""
    key, reset_key = jax.random.split(key)
    initial = policy.initial_carry()

    def advance(loop: tuple, key: jax.Array) -> tuple[tuple, tuple]:
        state, observation, carry, time, total = loop
        act_key, step_key = jax.random.split(key)
        action, carry = policy.act(view, carry, observation, None if greedy else act_key)
        after, outcome = step(step_key, state, action)
        ended = outcome.terminated | outcome.truncated
        fresh = where(ended, (initial, jnp.int32(0), jnp.float32(0)), (carry, time + 1, total + outcome.reward))
        return (after, outcome.observation, *fresh), (state, observation, time, total)

    start = (*reset(reset_key), initial, jnp.int32(0), jnp.float32(0))
    return jax.lax.scan(advance, start, jax.random.split(key, num_steps))[1]


# ---------------------------------------------------------------------------------------------------------------------
# Frames

Draw = Callable[["Axes", Any, np.ndarray], None]
"""(axes, state, observation) -> None, for one step."""


def drawing(env: Environment) -> Draw:
    """How to draw this environment; a ValueError names those that can be drawn."""
    if env.name in DRAWINGS:
        return DRAWINGS[env.name]
    if len(getattr(env.observation_space, "shape", ())) == 3:
        return draw_channels
    raise ValueError(
        f"env={env.name!r} has no drawing: there are {', '.join(DRAWINGS)}, and all environments whose observation is"
        " an image [height, width, channels], such as MinAtar's."
    )


def render(draw: Draw, scenes: tuple[PyTree, np.ndarray, np.ndarray, np.ndarray]) -> list[Image]:
    """A picture for each step."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(2.4, 2.4), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.03, 0.03, 0.94, 0.86))
    pictures = []
    for t in range(len(scenes[2])):
        state, observation, time, total = jax.tree.map(lambda x, t=t: x[t], scenes)
        axes.clear()
        axes.set_axis_off()
        draw(axes, state, observation)
        axes.set_title(f"step {time}, return {total:.4g}", fontsize=8)
        canvas.draw()
        pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).quantize(64))
    return pictures


def draw_cart_pole(axes: Axes, state: Any, observation: np.ndarray) -> None:
    """The cart on its track; the pole's angle is measured from upright."""
    del observation
    x, angle = float(state.x), float(state.theta)
    axes.plot([-2.4, 2.4], [0, 0], color=BLACK, linewidth=1)
    axes.plot(x, 0, "s", color=BLACK, markersize=14)
    axes.plot([x, x + np.sin(angle)], [0, np.cos(angle)], color=ORANGE, linewidth=4, solid_capstyle="round")
    axes.set(xlim=(-2.6, 2.6), ylim=(-1.2, 2.2))


def draw_mountain_car(axes: Axes, state: Any, observation: np.ndarray) -> None:
    """The car between its hills, and the flag at its goal."""
    del observation
    x = np.linspace(-1.2, 0.6, 100)
    axes.plot(x, np.sin(3 * x), color=BLACK, linewidth=1)
    axes.plot([0.5, 0.5], [np.sin(1.5), np.sin(1.5) + 0.35], color=GREEN, linewidth=2)
    axes.plot(float(state.position), np.sin(3 * float(state.position)) + 0.09, "o", color=ORANGE, markersize=10)
    axes.set(xlim=(-1.25, 0.65), ylim=(-1.2, 1.5))


def draw_pendulum(axes: Axes, state: Any, observation: np.ndarray) -> None:
    """The rod, its angle measured from upright, and the torque as the size of the hub."""
    del observation
    angle, torque = float(state.theta), float(state.last_u)
    axes.plot([0, -np.sin(angle)], [0, np.cos(angle)], color=ORANGE, linewidth=7, solid_capstyle="round")
    axes.plot(0, 0, "o", color=BLUE if torque < 0 else GREEN, markersize=4 + 5 * abs(torque))
    axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))


def draw_acrobot(axes: Axes, state: Any, observation: np.ndarray) -> None:
    """Two links that hang from the middle, and the height that their end has to reach."""
    del observation
    angles = np.cumsum([float(state.joint_angle1), float(state.joint_angle2)])  # the second is relative to the first
    x, y = (np.concatenate([[0.0], np.cumsum(part)]) for part in (np.sin(angles), -np.cos(angles)))
    axes.axhline(1.0, color=GREEN, linewidth=1, linestyle="--")
    axes.plot(x, y, "-o", color=ORANGE, linewidth=5, markersize=6, markerfacecolor=BLACK, markeredgewidth=0)
    axes.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2))


def draw_catch(axes: Axes, state: Any, observation: np.ndarray) -> None:
    """The board with ball and paddle."""
    board = np.zeros((*observation.shape, 2))
    board[int(state.ball_y), int(state.ball_x), 1] = 1
    board[int(state.paddle_y), int(state.paddle_x), 0] = 1
    draw_channels(axes, state, board)


def draw_channels(axes: Axes, state: Any, observation: np.ndarray) -> None:
    """An image of channels: each cell in the colour of its first channel that is on."""
    from matplotlib.colors import to_rgb

    del state
    on: np.ndarray = np.greater(observation, 0)
    palette = np.array([to_rgb(CHANNELS[c % len(CHANNELS)]) for c in range(on.shape[2])])
    axes.imshow(np.where(on.any(2, keepdims=True), palette[on.argmax(2)], 0.0), interpolation="nearest")


DRAWINGS: dict[str, Draw] = {
    "CartPole-v1": draw_cart_pole,
    "MountainCar-v0": draw_mountain_car,
    "MountainCarContinuous-v0": draw_mountain_car,
    "Pendulum-v1": draw_pendulum,
    "Acrobot-v1": draw_acrobot,
    "Catch-bsuite": draw_catch,
}
