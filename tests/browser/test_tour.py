"""The tour, used as a person would: run it, look at the two rivers, press Generate, choose another
collapse, walk along the steps, force a candidate that lost.
"""

import re
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
# The chosen symbols of each river, as far as its columns are drawn.
RIVERS = """() => [...document.querySelector('.softar-river').querySelectorAll('.column')].reduce(
    (texts, column) => {
        const river = Number(column.dataset.river);
        texts[river] = (texts[river] ?? '') + column.querySelector('text').textContent;
        return texts;
    }, [])"""


@pytest.fixture(scope="module")
def tour(start_lab):
    """The tour after Run All."""
    lab = start_lab(NOTEBOOKS)
    lab.open("00_tour.ipynb")
    lab.run_all()
    return lab


def written(lab) -> list[str]:
    """The texts of the settings that are on display, prompt and all."""
    return lab.page.locator(".jupyter-widgets div[style*='pre-wrap']").all_inner_texts()


def rivers(lab) -> list[str]:
    """The texts above the columns that are drawn, spaces as ␣."""
    return lab.page.evaluate(RIVERS)


def details(lab) -> str:
    """What the river says of the step that is looked at."""
    return lab.page.locator(".softar-river .details").first.inner_text()


def column(lab, river: int, step: int):
    return lab.page.locator(f".softar-river [data-river='{river}'][data-step='{step}']").first


def click(lab, place) -> None:
    """Click into the text above a column, where no candidate is."""
    place.locator("text").first.evaluate(
        "e => e.parentNode.dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )


def test_tour_runs_and_shows_two_texts_and_their_rivers(tour):
    texts = written(tour)
    assert [text.startswith("One day the king") for text in texts[:2]] == [True, True]
    for text, river in zip(texts, rivers(tour), strict=False):
        shown = text.removeprefix("One day the king").replace(" ", "␣")
        assert len(river) > 30
        assert shown.startswith(river)
    tour.screenshot("ran")
    tour.check()


def test_hovering_and_walking_show_the_candidates_of_a_step(tour):
    click(tour, column(tour, 0, 3))
    tour.wait_until(lambda: "step 3" in details(tour), "the third step's candidates")
    tour.page.keyboard.press("ArrowRight")
    tour.wait_until(lambda: "step 4" in details(tour), "the next step's candidates")
    tour.page.keyboard.press("End")
    tour.wait_until(lambda: "step 79" in details(tour), "the last step's candidates")
    tour.page.keyboard.press("Home")
    tour.wait_until(lambda: "step 0" in details(tour), "the first step's candidates")
    column(tour, 1, 6).hover()
    tour.wait_until(lambda: "step 6" in details(tour), "what is under the pointer")
    tour.slide("Step", 12)
    tour.page.mouse.move(0, 0)
    tour.wait_until(lambda: "step 12" in details(tour), "the slider's step")
    tour.check()


def test_a_candidate_that_lost_is_forced_and_the_model_writes_on(tour):
    click(tour, column(tour, 0, 1))
    tour.wait_until(lambda: "step 1:" in details(tour), "the first step's candidates")
    before = written(tour)
    button = tour.page.locator(".softar-river .details button:enabled").first
    symbol = button.inner_text().split()[0].replace("␣", " ")
    button.click()
    tour.wait_until(lambda: written(tour)[0] != before[0], "another text")
    assert written(tour)[0].startswith(f"One day the king {symbol}")
    assert written(tour)[1] == before[1]
    tour.wait_until(lambda: "forced" in details(tour), "a mark of what was forced")
    tour.screenshot("forced")
    tour.check()


def test_generate_writes_with_what_was_chosen(tour):
    before = written(tour), rivers(tour)
    tour.slide("Temperature", 1.0)
    tour.write("Seed", "5")
    tour.press("Generate")
    tour.wait_until(
        lambda: written(tour)[0] != before[0][0] and rivers(tour)[0] != before[1][0],
        "another text and another river",
    )
    tour.wait_for(r"80 steps, 0 soft")
    tour.check()


def test_another_collapse_changes_text_and_river(tour):
    before = written(tour)[0], rivers(tour)[0]
    tour.choose("Collapse", "nearest")
    tour.wait_until(
        lambda: written(tour)[0] != before[0] and rivers(tour)[0] != before[1],
        "text and river to change",
    )
    tour.screenshot("nearest")
    tour.check()


def test_one_setting_alone_and_the_plane(tour):
    tour.press("Compare")
    tour.wait_until(lambda: len(rivers(tour)) == 1, "one river")
    tour.press("Plane")
    trail = "() => document.querySelector('.js-plotly-plot')?._fullData?.[1]?.x?.length"
    tour.wait_until(lambda: (tour.page.evaluate(trail) or 0) > 1, "the last steps in the plane")
    tour.screenshot("plane")
    tour.check()


def test_a_bad_prompt_is_answered_in_the_panel(tour):
    tour.write("Prompt", "Once § upon")
    tour.wait_for(re.escape("§"))
    tour.screenshot("bad-prompt")
    tour.check()
