"""The tour, used as a person would: run it, press Generate, choose another collapse, walk the path,
turn it.
"""

import re
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
PATHS = """() => [...document.querySelectorAll('.js-plotly-plot')].map(plot => JSON.stringify(
    plot._fullData.filter(trace => trace.name === 'path' && trace.visible).map(trace => [trace.type, [...trace.x]])))"""


@pytest.fixture(scope="module")
def tour(start_lab):
    """The tour after Run All, back at the settings the panel opens with."""
    lab = start_lab(NOTEBOOKS)
    lab.open("00_tour.ipynb")
    lab.run_all()
    return lab


def written(lab) -> str:
    """The text the first setting shows, prompt and all."""
    return lab.page.locator(".jupyter-widgets div[style*='pre-wrap']").first.inner_text()


def drawn(lab) -> list[str]:
    """The paths that stand in the panel's plotly figures, as data."""
    return lab.page.evaluate(PATHS)


def test_tour_runs_and_shows_a_text_and_a_path(tour):
    assert written(tour).startswith("Once the king ")
    assert '"scatter"' in drawn(tour)[0]
    tour.screenshot("ran")
    tour.check()


def test_generate_writes_with_what_was_chosen(tour):
    tour.choose("Schedule", "always")
    tour.write("Seed", "5")
    before = written(tour), drawn(tour)
    tour.slide("Temperature", 1.0)
    tour.press("Generate")
    tour.wait_until(lambda: (written(tour), drawn(tour)) != before, "another text and another path")
    tour.wait_for(r"80 steps, 0 soft")
    tour.check()


def test_another_collapse_changes_text_and_picture(tour):
    before_text, before_path = written(tour), drawn(tour)
    tour.choose("Collapse", "nearest")
    tour.wait_until(
        lambda: written(tour) != before_text and drawn(tour) != before_path,
        "text and picture to change",
    )
    tour.screenshot("nearest")
    tour.check()


def test_walking_the_path_moves_candidates_and_ring(tour):
    candidates = tour.page.locator(".jupyter-widgets table").first
    before = candidates.inner_text()
    tour.slide("Step", 12)
    tour.wait_until(lambda: candidates.inner_text() != before, "other candidates")
    tour.check()


def test_two_settings_side_by_side_and_three_dimensions(tour):
    tour.press("Compare")
    tour.wait_until(lambda: len(drawn(tour)) == 2, "two pictures")
    tour.press("3-D")
    tour.wait_until(lambda: all('"scatter3d"' in path for path in drawn(tour)), "paths in 3-D")
    tour.screenshot("compare")
    tour.check()


def test_a_bad_prompt_is_answered_in_the_panel(tour):
    tour.write("Prompt", "Once § upon")
    tour.wait_for(re.escape("§"))
    tour.screenshot("bad-prompt")
    tour.check()
