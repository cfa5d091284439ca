"""The panel of learned prompts: it scores and answers what its controls say."""

import pytest
from test_widgets import CEILING, carries_a_picture, wait

from softar_lab.external.pretrained.prompt_reading import variants
from softar_lab.external.pretrained.prompted import prompted
from softar_lab.external.pretrained.prompts import score, tune_prompt
from softar_lab.generation import generate
from softar_lab.widgets import PromptExplorer

pytestmark = pytest.mark.usefixtures("nothing_raised_or_logged")

PAIRS = [("a", "bcd"), ("k", "gh")]


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(context=24)


@pytest.fixture(scope="module")
def learned(model):
    return tune_prompt(model, PAIRS, tokens=2, steps=10)


@pytest.fixture
def explorer(model, learned):
    return PromptExplorer(model, learned, PAIRS, steps=5)


def test_it_scores_and_answers_as_the_functions_do(explorer, model, learned):
    vectors = variants(model, learned)["nearest(l2)"]
    assert explorer.show() == score(model, PAIRS, vectors)
    answer = generate(prompted(model, vectors), "a", 5, temperature=0).text
    assert answer.replace("\n", "<br>") in explorer.answers.value
    assert "the right answer</i></td><td></td><td><code>bcd</code>" in explorer.answers.value
    assert [label for label, _ in explorer.pair.options] == ["'a' → 'bcd'", "'k' → 'gh'"]
    assert carries_a_picture(explorer)
    assert "nearest(l2): ⟨" in repr(explorer)


def test_controls_change_what_is_shown(explorer, model, learned):
    explorer.change.value = "reversed"
    wait(lambda: "reversed" in explorer.answers.value, CEILING)
    explorer.pair.value = 1
    vectors = variants(model, learned)["reversed"]
    answer = generate(prompted(model, vectors), "k", 5, temperature=0).text.replace("\n", "<br>")
    wait(lambda: f"<code>{answer}</code>" in explorer.answers.value, CEILING)
    assert explorer.problem == ""


def test_an_unknown_change_is_named(model, learned):
    with pytest.raises(ValueError, match="change must be one of trained"):
        PromptExplorer(model, learned, PAIRS, change="shouted")


@pytest.mark.parametrize(
    ("pairs", "steps", "message"),
    [
        ([], 5, "pairs is empty"),
        ([("a", "")], 5, "the answer to 'a' is empty"),
        ([("a", "Z")], 5, "unknown character 'Z'"),
        (PAIRS, 0, "steps must be a whole number"),
    ],
)
def test_what_cannot_be_scored_is_named_at_once(model, learned, pairs, steps, message):
    with pytest.raises(ValueError, match=message):
        PromptExplorer(model, learned, pairs, steps=steps)
