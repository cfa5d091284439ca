"""Where each token sits, held against the model itself; the panel used from Python as a person uses
it.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_widgets import carries_a_picture, said, wait

from conftest import enliven
from softar_lab import plots
from softar_lab.data.languages.tales import TALES_LANGUAGE
from softar_lab.metrics.window_answers import still_answers, token_slots, window_begin
from softar_lab.models.config import ModelConfig
from softar_lab.models.soft_ar import SoftAR
from softar_lab.models.window_memory.layout import Window
from softar_lab.widgets import WindowExplorer

pytestmark = pytest.mark.usefixtures("nothing_raised_or_logged")

STORY = (
    "One day the uncle slept on the farm. He had his clock. Then the brother came from the barn with his ball. "
    "The uncle gave the clock to the brother. Who has the clock? The brother.\n"
)
WAYS = {"with its memory", "memory masked"}


def windowed(
    window: str = "window(1, 2, 0, None, 'sum', 8)", context: int = 24, seed: int = 0
) -> SoftAR:
    tokenizer = TALES_LANGUAGE.tokenizer
    shape = {"context": context, "n_layers": 2, "n_heads": 2, "d_model": 16, "embedding_dim": 12}
    config = ModelConfig(vocab_size=tokenizer.vocab_size, window=window, **shape)
    return enliven(SoftAR(config, tokenizer, seed), seed, 0.15)


@pytest.fixture(scope="module")
def model():
    return windowed()


@pytest.fixture
def explorer(model):
    return WindowExplorer(model, STORY)


# -- where the tokens sit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [0, 1, 20, 21, 22, 31, 32, 33, 60, 100])
def test_window_begins_where_the_models_window_begins(model, read):
    ids = model.tokenizer.encode(STORY)[None, :read]
    state = model.read(model.start(), token_ids=ids)
    assert state.begin == window_begin(model.config.layout, model.config.context, read)
    slots = token_slots(model.config.layout, model.config.context, read)
    assert len(slots) == read
    assert sum(part in ("hard", "soft") for part in slots) == state.length


@pytest.mark.parametrize("read", [30, 45, 70])
def test_a_token_moves_the_memory_slot_that_is_reported_and_no_other(model, read):
    ids = model.tokenizer.encode(STORY)[None, :read]
    slots = token_slots(model.config.layout, model.config.context, read)
    names = ["aggregate", "segment 1", "segment 2"]

    def memory(ids):
        return model.read_memory(model.read(model.start(), token_ids=ids).memory_state)[0]

    before = memory(ids)
    for t, part in enumerate(slots):
        other = ids.clone()
        other[0, t] = (ids[0, t] + 1) % model.vocab_size
        moved = (memory(other) - before).abs().amax(-1) > 1e-6
        assert [name for name, yes in zip(names, moved.tolist()) if yes] == (
            [part] if part in names else []
        )


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 1),
    st.integers(0, 3),
    st.integers(1, 9),
    st.integers(0, 12),
    st.integers(0, 12),
    st.data(),
)
def test_slots_stand_in_order_and_none_holds_more_than_it_can(
    aggregate, segments, stretch, hard, soft, data
):
    if hard + soft == 0:
        return
    window = Window(aggregate, segments, hard=hard, soft=soft, stretch=stretch)
    read = data.draw(st.integers(0, 90))
    slots = token_slots(window, window.memory + hard + soft, read)
    order = ["lost", "aggregate", *(f"segment {i + 1}" for i in range(segments)), "hard", "soft"]
    places = [order.index(part) for part in slots]
    assert places == sorted(places)
    assert ("lost" in slots) <= (aggregate == 0)
    for i in range(segments):
        assert slots.count(f"segment {i + 1}") <= stretch
    assert slots.count("hard") + slots.count("soft") <= hard + soft
    if hard:
        assert slots.count("soft") <= soft


def test_answer_is_that_of_the_predictor_step_by_step(model):
    found = still_answers(model, STORY)
    ids, answer = model.tokenizer.encode(STORY), len("The brother.")
    state, log_prob = model.read(model.start(), token_ids=ids[None, : -answer - 1]), 0.0
    for token in ids[-answer - 1 : -1]:
        log_prob += model.predict(state).log_probs[0, token]
        state = model.advance(state, token_ids=token[None])
    assert found.prob == pytest.approx(float(log_prob.exp()), rel=1e-4)
    assert 1 <= len(found.text) <= 40
    truth = still_answers(TALES_LANGUAGE, STORY)  # who knows the language answers rightly
    assert truth.prob == pytest.approx(1)
    assert truth.text == "The brother."
    with pytest.raises(ValueError, match="has no answer"):
        still_answers(model, STORY[: STORY.index("?") + 2])


# -- the panel --------------------------------------------------------------------------------------------------------


def test_strip_and_answers_are_what_the_sliders_say(explorer, model):
    own = model.config
    window = Window(1, 2, hard=own.tokens - 8, soft=8, stretch=8)
    assert explorer.window == window
    assert explorer.parts == token_slots(window, own.context, len(STORY))
    assert explorer.strip.value == plots.window_html(STORY, explorer.parts)
    assert set(explorer.answers) == WAYS
    expected = still_answers(model.with_window(window), STORY)
    assert explorer.answers["with its memory"] == expected
    assert f"{expected.prob:.1%}" in explorer.said.value


def test_every_slider_moves_the_strip(explorer):
    for name, value in {
        "hard": 3,
        "soft": 2,
        "stretch": 5,
        "segments": 1,
        "aggregate": 0,
        "read": 40,
    }.items():
        getattr(explorer, name).value = value
        window = explorer.window
        slots = token_slots(window, window.memory + window.hard + window.soft, explorer.read.value)
        assert explorer.parts == slots, name
        assert getattr(window, name, value) == value
    explorer.update()
    assert explorer.parts.count("segment 1") == 5
    assert "lost" in explorer.parts
    assert "characters lost" in said(explorer) or "no answer" in said(explorer)


def test_answers_follow_in_the_background_and_end_with_the_last_setting(explorer, model):
    for value in range(12, 2, -1):
        explorer.hard.value = value
    expected = still_answers(model.with_window(explorer.window), STORY)
    wait(lambda: explorer.answers.get("with its memory") == expected)


def test_memory_of_another_shape_is_drawn_but_not_answered_from(explorer):
    explorer.segments.value = 3
    assert explorer.update() == {}
    assert "trained as that" in said(explorer)
    assert "segment 3" in explorer.parts
    explorer.segments.value = 2
    assert set(explorer.update()) == WAYS
    explorer.hard.value = 24
    assert explorer.update() == {}
    assert "context has 24 slots" in said(explorer)


def test_other_models_and_stories_can_be_chosen():
    models = {"a": windowed(), "b": windowed(seed=1)}
    explorer = WindowExplorer(models, STORY)
    first = explorer.update()
    explorer.model.value = "b"
    assert explorer.update() != first
    explorer.story.value = STORY.replace("clock", "crown")
    explorer.update()
    assert len(explorer.parts) == len(STORY)
    assert explorer.strip.value == plots.window_html(explorer.story.value, explorer.parts)


def test_impossible_settings_are_reported(explorer, tiny):
    explorer.hard.value = explorer.soft.value = 0
    explorer.update()
    assert said(explorer).startswith("⚠ a window holds at least one token")
    explorer.hard.value = 10
    explorer.story.value = "Nothing is asked. "
    explorer.update()
    assert said(explorer).startswith("⚠ no question in")
    assert explorer.answers == {}
    with pytest.raises(ValueError, match="has no window"):
        WindowExplorer(tiny(), STORY)


def test_it_tells_its_state_and_carries_a_picture(explorer):
    assert carries_a_picture(explorer)
    assert "aggregate=1, segments=2, stretch=8, hard=13, soft=8" in repr(explorer)
    assert "in segment 2" in repr(explorer)


def test_html_of_a_window_is_escaped_and_names_what_was_not_read():
    shown = plots.window_html("<b>&\n", ["aggregate", "segment 2", "hard"])
    assert "&lt;" in shown
    assert "↵" in shown
    assert shown.count("<span") == 5
    assert shown.count("unread") == 2
    assert (
        len(
            {
                plots.windows.slot_colour(p)
                for p in ("aggregate", "segment 1", "segment 2", "hard", "soft")
            }
        )
        == 5
    )


def test_sliders_reach_the_window_that_a_model_was_trained_with():
    big = windowed("window(1, 6, 0, None, 'sum', 80)", context=64)
    explorer = WindowExplorer(big, STORY)
    found = explorer.window
    assert (found.aggregate, found.segments, found.stretch) == (1, 6, 80)
    assert set(explorer.answers) == WAYS


def test_a_model_of_few_tokens_begins_with_a_window_that_fits():
    explorer = WindowExplorer(windowed("window(1, 1, 0, None, 'sum', 8)", context=7), STORY)
    assert explorer.hard.value + explorer.soft.value == 5
    assert set(explorer.answers) == WAYS


def test_the_memory_answers_though_the_model_comes_with_a_control(model):
    """A control of the model's own would be shown as "with its memory"."""
    assert (
        WindowExplorer(model.with_window("masked"), STORY).answers
        == WindowExplorer(model, STORY).answers
    )


def test_the_slider_of_what_was_read_follows_the_story(explorer):
    explorer.story.value = STORY + STORY
    assert (explorer.read.max, explorer.read.value) == (2 * len(STORY), 2 * len(STORY))
    explorer.read.value = 20
    explorer.story.value = STORY
    assert (explorer.read.max, explorer.read.value) == (len(STORY), 20)
    explorer.story.value = STORY[:10]
    assert (explorer.read.max, explorer.read.value) == (10, 10)
