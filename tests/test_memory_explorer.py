"""The panel of notebook 13, driven as a reader drives it."""

import time

import pytest

from softar_lab.memory.encodings import WordIndex
from softar_lab.widgets import MemoryExplorer

TEXTS = ["the king lived in the castle", "a <cup> of tea", "the queen sang"]


def test_explorer_shows_what_each_index_finds_and_why():
    explorer = MemoryExplorer({"words": WordIndex(TEXTS), "loud": WordIndex(TEXTS)}, "king of tea")
    assert [hit.number for hit in explorer.found["words"][:2]] == [1, 0]
    assert "of, tea" in explorer.columns.value
    assert "a &lt;cup&gt; of tea" in explorer.columns.value
    assert repr(explorer).startswith("MemoryExplorer('king of tea': words: ⟨a <cup> of tea⟩")
    explorer.query.value = "queen"
    found = explorer.update()
    assert found["words"][0].number == 2
    assert explorer.problem == ""


def test_explorer_says_what_is_wrong():
    explorer = MemoryExplorer({"words": WordIndex(TEXTS)}, "")
    assert explorer.problem == "type a passage: an empty one has no neighbours"
    explorer.query.value = "queen"
    for _ in range(1000):  # a ceiling that none reaches
        if explorer.found:
            break
        time.sleep(0.01)
    explorer.update()
    assert explorer.found["words"][0].number == 2
    with pytest.raises(ValueError, match="all of the same texts"):
        MemoryExplorer({"a": WordIndex(TEXTS), "b": WordIndex(TEXTS[:2])})
