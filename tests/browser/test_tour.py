"""The tour, used as a person would: run it, look at the two rivers, press Generate, choose another
collapse, walk along the steps, force a candidate that lost, type what the model does not know.
"""

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
    """The texts on display, prompt and all, without their names and the marks of line ends."""
    texts = lab.page.locator(".softar-river .text")
    script = "e => [...e.querySelectorAll('span')].map(s => s.textContent).join('')"
    return [text.evaluate(script).replace("↵", "") for text in texts.all()]


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
    tour.slide("Which step?", 12)
    tour.page.mouse.move(0, 0)
    tour.wait_until(lambda: "step 12" in details(tour), "the slider's step")
    tour.page.locator(".softar-river .text").first.locator("[data-step='20']").click()
    tour.wait_until(lambda: "step 20" in details(tour), "the step of the letter that was clicked")
    scroll = tour.page.locator(".softar-river .scroll").first
    assert scroll.get_attribute("role") == "slider"
    assert "step 20" in scroll.get_attribute("aria-valuetext")
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
    tour.slide("How daring? (temperature)", 1.0)
    tour.write("Which draw? (seed)", "5")
    tour.press("Generate")
    tour.wait_until(
        lambda: written(tour)[0] != before[0][0] and rivers(tour)[0] != before[1][0],
        "another text and another river",
    )
    tour.wait_for(r"80 symbols, 0 read back soft · \d+ % of its words exist · ")
    tour.wait_for(r"schedule, temperature differ")
    tour.check()


def test_another_collapse_changes_text_and_river(tour):
    before = written(tour)[0], rivers(tour)[0]
    tour.choose("How is a symbol picked?", "nearest")
    tour.wait_until(
        lambda: written(tour)[0] != before[0] and rivers(tour)[0] != before[1],
        "text and river to change",
    )
    tour.screenshot("nearest")
    tour.check()


def test_one_setting_alone_and_the_plane(tour):
    tour.press("Remove")
    tour.wait_until(lambda: len(rivers(tour)) == 1, "one river")
    tour.press("Plane")
    tour.slide("Which step?", 9)
    dots = tour.page.locator(".softar-plane svg circle")
    tour.wait_until(lambda: dots.count() == 6, "the last six steps in the plane")
    assert "This plane holds" in tour.page.locator(".softar-plane p").inner_text()
    tour.screenshot("plane")
    tour.press("Plane")
    tour.check()


def test_a_bad_prompt_turns_the_text_pale_and_a_click_mends_it(tour):
    before = written(tour)
    tour.write("How does the text begin?", "One day the King")
    tour.wait_for(r"'K' at position 12 is not in the alphabet")
    tour.wait_until(lambda: tour.page.locator(".softar-river .stale").count() == 1, "a pale text")
    assert written(tour) == before
    tour.screenshot("bad-prompt")
    tour.press("k")
    tour.wait_until(lambda: not tour.page.locator(".softar-river .stale").count(), "a new text")
    assert written(tour)[0].startswith("One day the king")
    tour.check()


def test_letters_appear_while_they_are_written_and_stop_ends_them(tour):
    tour.write("How many symbols?", "2000")
    letters = tour.page.locator(".softar-river .text [data-step]")
    tour.wait_until(lambda: 80 < letters.count() < 2000, "a part of the text")
    tour.press("Stop")
    tour.wait_for(r"\d+ symbols, \d+ read back soft · \d+ % of its words")
    count = letters.count()
    assert 80 < count < 2000
    tour.wait_for(f"{count} symbols")
    tour.write("How many symbols?", "80")
    tour.wait_until(lambda: letters.count() == 80, "the short text")
    tour.check()


def test_the_next_day_without_its_kernel_the_panel_is_there(tour):
    """JupyterLab would say "model not found" instead."""
    before = written(tour)
    saved = "jupyterapp.shell.currentWidget.context.model.getMetadata('widgets')"
    tour.wait_until(lambda: tour.page.evaluate(saved), "the state in the notebook")
    tour.page.wait_for_timeout(1500)  # it is put there once no more changes come
    tour.page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    tour.open("00_tour.ipynb")
    tour.wait_until(lambda: written(tour), "the text")
    assert written(tour) == before
    column(tour, 0, 6).hover()
    tour.wait_until(lambda: "step 6" in details(tour), "what is under the pointer")
    tour.screenshot("next-day")
    tour.check()


def test_a_cell_run_again_leaves_one_panel(tour):
    models = "jupyterapp.shell.currentWidget.context && document.querySelectorAll('.softar-river').length"
    before = tour.page.evaluate(models)
    tour.run_all()
    assert tour.page.evaluate(models) == before
    assert len(rivers(tour)) == 2
    tour.check()
