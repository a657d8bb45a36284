"""Pictures: every one has content, units and readable axes, and needs no global state."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.quiver import Quiver

import asyncjax as aj
from asyncjax import mdp as mdps
from asyncjax import plotting, runs, schedules, service
from asyncjax.method import Chunk, State
from asyncjax.plotting import curves, panels
from asyncjax.recorder import Recorder
from asyncjax.solvers import solve

SCHEDULE = schedules.from_service_times(service.exponential(0.02), 200, 4, jax.random.key(0))


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """Three small recorded runs."""
    directory = tmp_path_factory.mktemp("seeds")
    return [write_run(directory / str(seed), seed) for seed in range(3)]


def write_run(path, seed):
    rng = np.random.default_rng(seed)
    with Recorder(path, {"num_workers": 4}, steps_per_update=10) as recorder:
        for start in range(0, 200, 10):
            episodes = rng.integers(0, 2, (10, 1)).astype(float)
            metrics = {"episodes": episodes, "return_sum": episodes * start, "length_sum": episodes * start}
            part = schedules.cut(SCHEDULE, start, start + 10)
            recorder(Chunk(State(start + 10, jnp.zeros(1), jnp.zeros((4, 1))), metrics, part))
    return path


def check(figure, *labels):
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())
    assert pixels[..., :3].std() > 5, "the picture is empty"
    bars = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    drawn = [axes for axes in figure.axes if axes not in bars]
    shown = [axes.get_xlabel() for axes in drawn] + [axes.get_ylabel() for axes in drawn + bars]
    assert all(shown), "an axis has no label"
    for label in labels:
        assert any(label in text for text in shown), f"{label} is not among {shown}"


def legend(figure):
    shown = figure.axes[0].get_legend()
    return [text.get_text() for text in shown.get_texts()] if shown else []


def test_learning_curve_of_one_run(seeds):
    check(plotting.learning_curve(seeds[0]), "environment steps", "episode return")
    check(plotting.learning_curve(runs.load(seeds[0]), metric="steps_per_second", x="seconds"), "wall-clock time (s)")


def test_learning_curve_of_several_seeds_and_groups(seeds):
    figure = plotting.learning_curve({"with delay": seeds, "without": seeds[:2]}, x="update")
    check(figure, "updates")
    assert legend(figure) == ["with delay", "without"]
    assert len(figure.axes[0].collections) == 2, "each group has its band"


def test_learning_curve_of_arrays():
    steps = np.arange(50)
    figure = plotting.learning_curve((steps, np.random.default_rng(0).normal(size=(5, 50))))
    check(figure, "environment steps")
    assert legend(figure) == ["interquartile mean of 5 seeds, 95 % band"]


def test_many_long_labels_leave_room_for_the_curves():
    labels = [f"learning_rate=0.00{i}, delay=16, optimizer=adam, num_envs=4, core=gru" for i in range(6)]
    figure = plotting.learning_curve({label: (np.arange(5), np.ones((3, 5))) for label in labels})
    figure.canvas.draw()
    whole, legend = figure.bbox, figure.legends[0].get_window_extent()
    assert whole.x0 <= legend.x0
    assert legend.x1 <= whole.x1
    assert whole.y0 <= legend.y0
    assert legend.y1 < figure.axes[0].bbox.y0
    assert figure.axes[0].bbox.height > 200  # of 460


def test_staleness_and_workers(seeds):
    check(plotting.staleness_histogram(seeds[0]), "staleness (updates)", "share of messages", "worker")
    check(plotting.worker_timeline(seeds[0]), "worker", "(ms)")
    for schedule in (SCHEDULE, schedules.round_robin(50, 3), schedules.barrier(50, 3), schedules.sequential(1)):
        check(plotting.staleness_histogram(schedule))
        check(plotting.worker_timeline(schedule))
    check(plotting.worker_timeline(SCHEDULE, start=0.0, stop=2.0), "(s)")


def test_all_pictures_of_a_run_are_files(seeds):
    check(plotting.dashboard(seeds[0]), "episode return", "env steps per second", "staleness (updates)", "worker")
    paths = plotting.save_all(seeds[0])
    assert set(paths) == {"dashboard", "return", "staleness", "workers"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths.values())


def test_speedup_curve_has_powers_of_two_and_an_ideal_line():
    workers = [1, 2, 4, 8]
    seeds = np.outer([0.9, 1.0, 1.1], workers)
    figure = plotting.speedup_curve({"ours": (workers, seeds)}, reference={"ours": (workers, [1.0, 1.9, 3.0, 5.0])})
    check(figure, "workers", "speed-up over one worker")
    assert legend(figure) == ["ideal", "ours", "ours, reference"]
    ideal, ours, *_, theirs = figure.axes[0].lines
    np.testing.assert_array_equal(ideal.get_xdata(), ideal.get_ydata())
    assert ours.get_color() == theirs.get_color()
    shown = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert {"1", "2", "4", "8"} <= set(shown)


@pytest.mark.parametrize("options", [{}, {"center": 0.0}, {"spread": np.ones((2, 3)), "number": ".1f"}])
def test_heat_map_writes_every_number_into_its_cell(options: Any):
    values = np.array([[1.0, -2.0, np.nan], [4.0, 5.0, 6.0]])
    names: Any = {"x_label": "staleness (updates)", "y_label": "learning rate", "label": "return"}
    figure = plotting.heat_map(values, x=[0, 8, 16], y=[1e-3, 1e-2], **names, **options)
    check(figure, "staleness (updates)", "learning rate", "return")
    text = np.array([t.get_text() for t in figure.axes[0].texts]).reshape(2, 3)
    assert text[0, 2] == "-"
    for shown, value in zip(text[np.isfinite(values)], values[np.isfinite(values)], strict=True):
        assert float(shown.split("\n")[0]) == value
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["0.001", "0.01"]
    with pytest.raises(ValueError, match="swap x and y"):
        plotting.heat_map(values.T, x=[0, 8, 16], y=[1e-3, 1e-2], **names)


def test_numbers_fit_into_the_cells_of_a_heat_map():
    names: Any = {"x_label": "staleness (updates)", "y_label": "learning rate", "label": "loss"}
    values = np.random.default_rng(0).uniform(0.001, 0.05, (8, 8))
    figure = plotting.heat_map(values, x=range(8), y=range(8), spread=values / 10, **names)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert max(text.get_window_extent().width for text in axes.texts) < axes.bbox.width / 8


@pytest.mark.parametrize("center", [None, 0.0])
def test_heat_map_without_a_number_is_grey(center: float | None):
    names: Any = {"x_label": "staleness (updates)", "y_label": "learning rate", "label": "return"}
    figure = plotting.heat_map(np.full((2, 3), np.nan), x=[0, 8, 16], y=[1e-3, 1e-2], center=center, **names)
    check(figure, "staleness (updates)", "learning rate", "return")
    assert {t.get_text() for t in figure.axes[0].texts} == {"-"}


def test_value_map_points_where_the_policy_goes():
    mdp = mdps.grid_world(["...G", "....", "...."], slip=0.0)
    solution = solve(mdp, 0.9)
    still = mdp.probability.sum(axis=(0, 1)) == 0
    figure = plotting.value_map(solution.values, (3, 4), solution.policy, still)
    image: Any = figure.axes[0].images[0].get_array()
    assert image.mask.sum() == 1, "the goal is grey"
    arrows: Any
    (arrows,) = (c for c in figure.axes[0].collections if isinstance(c, Quiver))
    ends = [arrows.XY, arrows.XY + np.stack([arrows.U, -arrows.V], 1)]  # rows count downwards
    before, after = (np.abs(np.array([3, 0]) - xy).sum(1) for xy in ends)
    assert len(before) == 11, "every cell but the goal has an arrow"
    np.testing.assert_array_equal(after, before - 1)  # towards the goal
    with pytest.raises(ValueError, match="one value per cell"):
        plotting.value_map(solution.values, (3, 3))


def test_a_notebook_shows_the_figure_that_a_cell_ends_with():
    picture: Any = plotting.worker_timeline(SCHEDULE)
    assert picture._repr_png_().startswith(b"\x89PNG")


def test_a_timeline_without_times_is_in_updates_and_one_without_jobs_is_refused():
    axes = plotting.worker_timeline(SCHEDULE._replace(begin=None), start=2.0, stop=9.0).axes[0]
    assert axes.get_xlabel() == "updates since 2; ticks: commits"
    with pytest.raises(ValueError, match=r"start=1e\+06, stop=2e\+06: there is nothing to see; jobs are from 0 to"):
        plotting.worker_timeline(SCHEDULE, start=1e6, stop=2e6)


def test_arrows_point_to_what_is_infinite():
    values = np.random.default_rng(0).normal(size=(4, 10))
    values[:2] = np.inf
    table = aj.Table(aj.grid(bound=[1, 2, 4, 8]), range(10), {"time": values})
    lines = plotting.setting_curve(table, "bound", "time").axes[0].lines
    assert [np.asarray(line.get_xdata()).tolist() for line in lines if line.get_marker() == "^"] == [[1, 2]]
    table = aj.Table(aj.grid(name=["a", "b", "c", "d"]), range(10), {"time": values})
    lines = plotting.setting_curve(table, "name", "time").axes[0].lines
    assert [np.asarray(line.get_xdata()).tolist() for line in lines if line.get_marker() == "^"] == [["a", "b"]]


def test_a_thousand_workers_are_drawn_as_one():
    schedule = schedules.from_service_times(service.exponential(), 5000, 1000, jax.random.key(0))
    axes = plotting.worker_timeline(schedule).axes[0]
    assert len(axes.collections) == 1
    assert len(axes.collections[0].get_paths()) > 1000


def test_what_a_sweep_found_against_a_setting():
    """Curves in the order of the setting, and the values of the table's own intervals."""
    settings = aj.grid(delay=[4, 0, 16], rate=[0.1, 0.2], name=["a"])
    table = aj.Table(
        settings, range(10), {"return": np.random.default_rng(0).normal(size=(6, 10)), "x": np.ones((6, 10, 2))}
    )
    axes = plotting.setting_curve(table, "delay").axes[0]
    assert axes.get_legend_handles_labels()[1] == ["rate=0.1", "rate=0.2"]
    slow: Any = axes.lines[0]
    middle = table.select(rate=0.1).interval("return")[0]
    np.testing.assert_array_equal(slow.get_xdata(), [0, 4, 16])
    np.testing.assert_allclose(slow.get_ydata(), middle[[1, 0, 2]])
    axes = plotting.setting_curve(table.against(delay=0), "name").axes[0]
    assert axes.get_ylabel() == "difference in episode return"
    assert len(axes.get_legend_handles_labels()[1]) == 4
    alike = aj.Table(aj.grid(rate=[1.00001e-3, 1.00002e-3], delay=[0, 4]), range(10), {"return": np.ones((4, 10))})
    assert len(plotting.setting_curve(alike, "delay").axes[0].lines) == 2
    bars = plotting.setting_curve(aj.Table(aj.grid(double=[True, False]), [0, 1], {"x": np.eye(2)}), "double", "x")
    assert [text.get_text() for text in bars.axes[0].get_xticklabels()] == ["True", "False"]
    container: Any = bars.axes[0].containers[0]
    assert len(container.lines[2]) == 1  # bars
    with pytest.raises(ValueError, match="x='lag': the table's settings have delay, rate, name"):
        plotting.setting_curve(table, "lag")
    with pytest.raises(ValueError, match="value='x' is an array of each run: choose of return"):
        plotting.setting_curve(table, "delay", "x")


def test_curves_that_do_not_overlap_have_no_mean(tmp_path):
    def run(first):
        row = {"update": np.arange(first, first + 9.0), "loss": np.ones(9), "by_worker": np.ones((9, 2))}
        return runs.Run(tmp_path, {}, {}, row, None)

    with pytest.raises(ValueError, match="One run begins at update=100, another ends at 8: curves have"):
        plotting.learning_curve([run(0), run(100)], "loss", "update")
    with pytest.raises(ValueError, match="'by_worker' is one number for each worker"):
        plotting.learning_curve(run(0), "by_worker", "update")


def test_a_metric_that_is_not_there_is_named(seeds):
    with pytest.raises(ValueError, match=r"has no metric 'reward'; it has update, env_steps"):
        plotting.learning_curve(seeds[0], metric="reward")


def test_what_can_not_be_drawn_is_told():
    nothing = schedules.round_robin(0, 2)
    for draw in (plotting.staleness_histogram, plotting.worker_timeline):
        with pytest.raises(ValueError, match="no updates"):
            draw(nothing)
    with pytest.raises(ValueError, match=r"x has the shape \(4,\) and y \(2, 5\)"):
        plotting.learning_curve((np.arange(4), np.ones((2, 5))))
    with pytest.raises(ValueError, match=r"curves={}: give at least one"):
        plotting.speedup_curve({})
    for nothing in ([], {}, {"a": []}):
        with pytest.raises(ValueError, match=r"curves=.*: give at least one"):
            plotting.learning_curve(nothing)
    for workers, speedup in (([1, 2, 4], [1.0, 2.0]), ([1, 2, 4], [[1.0, 2.0]]), ([], [])):
        with pytest.raises(ValueError, match=r"the curve 'a' has workers of shape .*: give"):
            plotting.speedup_curve({"a": (workers, speedup)})


@pytest.mark.parametrize("name", ["update", "seconds", "updates_per_second", "staleness"])
def test_a_dashboard_names_the_metric_that_it_lacks(name):
    names = {"update", "seconds", "updates_per_second", "staleness"} - {name}
    run = runs.Run(Path("run"), {}, {}, {other: np.ones(2) for other in names}, SCHEDULE)
    with pytest.raises(ValueError, match=f"has no metric '{name}'"):
        plotting.dashboard(run)


def test_running_mean_skips_what_is_missing():
    y = np.array([np.nan, 2.0, 4.0, np.nan, 6.0])
    np.testing.assert_array_equal(curves.running_mean(y, 2), [np.nan, 2.0, 3.0, 4.0, 6.0])
    np.testing.assert_array_equal(curves.running_mean(y, 1), y)


def test_importing_draws_in_no_plotting_library():
    code = "import sys, asyncjax.plotting; sys.exit('matplotlib' in sys.modules or 'orbax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_last_bar_of_a_histogram_is_labelled_with_where_it_begins():
    staleness = np.concatenate([np.repeat(np.arange(130), 100), np.arange(200, 330)])
    read = (np.arange(len(staleness)) - staleness)[:, None].astype(np.int32)
    _, axes = panels.new_figure()
    panels.draw_staleness(axes, schedules.Schedule(np.zeros_like(read), read))
    last = axes.patches[-1]
    middle = last.get_x() + last.get_width() / 2
    begins = round(middle - (last.get_width() / 0.9 - 1) / 2)
    assert last.get_width() > 1.5  # bars of several
    assert axes.get_xlabel() == f"staleness (updates); last bar: {begins} or more"
    assert last.get_height() == pytest.approx(np.mean(staleness >= begins))


def test_jobs_of_a_run_as_short_as_one_job_are_drawn():
    together = schedules.from_service_times(service.constant(0.01), 3, 3, jax.random.key(0))
    figure, axes = panels.new_figure()
    panels.draw_timeline(axes, together)
    assert axes.get_xlim() == pytest.approx((0, 10))  # milliseconds
    assert len(axes.collections[0].get_paths()) == 3
    check(figure)


def test_one_point_is_seen_and_none_is_said():
    figure = plotting.learning_curve((np.array([5.0]), np.array([2.0])))
    assert figure.axes[0].lines[-1].get_marker() == "o"
    empty = plotting.learning_curve((np.array([5.0, 6.0]), np.full(2, np.nan)))
    assert [text.get_text() for text in empty.axes[0].texts] == ["no episode ended"]


def test_runs_without_a_finished_episode_can_be_drawn(tmp_path):
    with Recorder(tmp_path / "run", {"num_workers": 4}, steps_per_update=10) as recorder:
        none = {name: np.zeros((10, 1)) for name in ("episodes", "return_sum", "length_sum")}
        recorder(Chunk(State(10, jnp.zeros(1), jnp.zeros((4, 1))), none, schedules.cut(SCHEDULE, 0, 10)))
    assert all(path.exists() for path in plotting.save_all(tmp_path / "run").values())
    check(plotting.learning_curve([tmp_path / "run"] * 2))
