"""The panel of notebook 13, driven as a reader drives it."""

import time

import pytest
import torch

from softar_lab.memory.encodings import WordIndex
from softar_lab.memory.trace_graph import TraceGraph
from softar_lab.widgets import MemoryExplorer
from softar_lab.widgets.memory import Trace

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


def test_explorer_lights_the_path_of_the_passage():
    graph = TraceGraph(torch.eye(3), 3)
    graph.add(torch.eye(3)[[0, 1, 0]], torch.tensor([0, 1, 0]))  # node 2 is never visited

    def vectors(text: str) -> torch.Tensor:
        return torch.eye(3)[[len(word) % 3 for word in text.split()]]

    trace = Trace(graph, vectors, {0: "three", 1: "four"})
    explorer = MemoryExplorer({"words": WordIndex(TEXTS)}, "the king", trace=trace)
    assert explorer.path == [0, 1]
    before = bytes(explorer.graph.value)
    assert before.startswith(b"\x89PNG")
    explorer.query.value = "the queen"
    explorer.update()
    assert explorer.path == [0, 2]
    assert bytes(explorer.graph.value) != before
    axes = explorer.still().axes[0]
    assert {text.get_text(): text.get_weight() for text in axes.texts} == {
        "three": "bold",
        "four": "normal",
    }


def test_hues_are_the_colours_seen_along_their_main_directions():
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [4.0, 1.0], [9.0, 9.0]])
    graph = TraceGraph(centres, 1)
    graph.add(centres[:3], torch.zeros(3, dtype=torch.int64))
    hues = graph.hues()
    assert hues[3].tolist() == [0.5, 0.5, 0.5]
    assert hues[:3, :2].amin(0).tolist() == [0, 0]
    assert hues[:3, :2].amax(0).tolist() == [1, 1]
    apart = graph.colours[:3] - graph.colours[:3].mean(0)
    main = torch.linalg.eigh(apart.T @ apart).eigenvectors[:, 1]  # of the greatest spread
    along = apart @ main
    along = (along - along.min()) / (along.max() - along.min())
    found = hues[:3, 0] if hues[0, 0].round() == along[0].round() else 1 - hues[:3, 0]
    torch.testing.assert_close(found, along, rtol=0, atol=1e-12)
