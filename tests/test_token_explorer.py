"""TokenExplorer and its pictures: what is typed is cut, shown with ids and rows, and what is
refused is said.
"""

import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_widgets import carries_a_picture, said

from softar_lab import plots
from softar_lab.counting.exact import CountingModel
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.data.tokenizers.growing import GrowingTokenizer
from softar_lab.models.config import ModelConfig
from softar_lab.models.soft_ar import SoftAR
from softar_lab.widgets import TokenExplorer

TEXT = "the thane thinks that <b>&the</b> other thing is thin " * 9


@pytest.fixture(scope="module")
def models():
    tokenizers = {"letters": CharTokenizer.fit(TEXT), "units": GrowingTokenizer.fit(TEXT, 70)}
    shape = {"n_layers": 1, "n_heads": 2, "d_model": 16, "context": 8}
    found = {
        n: SoftAR(ModelConfig(vocab_size=t.vocab_size, **shape), t) for n, t in tokenizers.items()
    }
    return {**found, "counts": CountingModel.fit(["the thane"])}


def cells(explorer, name):
    """Shown tokens and ids of one model."""
    return re.findall(
        r"border-radius:3px\">(.*?)</div><div [^>]*>(\d+)</div>", explorer.shown[name].value
    )


def test_text_is_cut_with_ids_and_rows(models):
    explorer = TokenExplorer(models, "the thane", width=5)
    for name, model in models.items():
        pieces, ids = explorer.cut(name)
        assert model.tokenizer.decode(ids) == "the thane"
        shown = cells(explorer, name)
        assert [int(i) for _, i in shown] == ids
        assert [piece for piece, _ in shown] == [piece.replace(" ", "␣") for piece in pieces]
        bars = explorer.shown[name].value.count("height:7px")
        assert bars == (0 if name == "counts" else 5 * len(ids))
    assert said(explorer).startswith("9 characters; tokens: letters 9, units ")


def test_controls_redraw(models):
    explorer = TokenExplorer({"units": models["units"]}, "the")
    before = explorer.shown["units"].value
    explorer.text.value = "thin"
    assert explorer.shown["units"].value != before
    explorer.width.value = 0
    assert "height:7px" not in explorer.shown["units"].value
    explorer.text.value = ""
    assert cells(explorer, "units") == []
    assert explorer.still() is None


def test_a_refusal_is_reported_and_the_others_go_on(models):
    explorer = TokenExplorer(models, "thé")
    assert "letters: unknown character 'é' at position 2" in said(explorer)
    assert cells(explorer, "letters") == []
    assert [piece for piece, _ in cells(explorer, "units")][-4:] == ["‹C›", "‹3›", "‹A›", "‹9›"]
    assert "unknown character" in repr(explorer)
    assert isinstance(explorer.still(), Figure)


def test_markup_stays_text_and_long_texts_are_cut_short(models):
    explorer = TokenExplorer({"units": models["units"]}, "<b>&" * 400)
    assert "<b>&" not in explorer.shown["units"].value.replace("<b>units</b>", "")
    assert " more</span>" in explorer.shown["units"].value
    assert explorer.shown["units"].value.count("border-radius") == 200


def test_explorer_tells_its_cuts_and_carries_a_still_picture(models):
    explorer = TokenExplorer({"letters": models["letters"]}, "the")
    assert repr(explorer) == "TokenExplorer('the': letters ⟨3 tokens: t|h|e⟩)"
    assert carries_a_picture(explorer)


@pytest.mark.slow
def test_pictures_show_every_token_and_number():
    figure = plots.draw_tokens(
        {"one": (["th", "e", "\ufdda"], [7, 1, 2]), "two": (["t"] * 99, [1] * 99)}
    )
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown[:6] == ["th", "7", "e", "1", "‹A›", "2"]
    assert "…" in shown
    rows = {"a": np.eye(3), "b": -np.eye(3)}
    figure = plots.draw_rows(rows, ["x", " ", "\n"])
    assert [ax.get_title() for ax in figure.axes] == ["a", "b"]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["x", "␣", "↵"]
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), -np.eye(3))
    figure = plots.draw_neighbours(np.eye(2), ["a", " "], "alike")
    assert figure.axes[0].images[0].get_clim() == (-1, 1)


def test_visible_names_half_bytes_and_empty_buckets():
    assert plots.visible("\ufdd0\ufddf") == "‹0›‹F›"
    assert plots.visible("\ufde012") == "∅12"
    assert plots.visible("é") == "é"
