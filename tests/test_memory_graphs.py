"""The trace graph, the knowledge base and the kNN mixture."""

from pathlib import Path

import numpy as np
import pytest
import torch

from softar_lab import CharTokenizer, ModelConfig, SoftAR
from softar_lab.data.corpora import tales_words
from softar_lab.data.languages.tales_world import CHARACTERS
from softar_lab.memory.knowledge_base import KnowledgeBase, Passages
from softar_lab.memory.neighbour_predictor import NeighbourPredictor
from softar_lab.memory.trace_graph import TraceGraph, TracePredictor
from softar_studies.facts import ask, encoder_of_rows, facts, same_facts, tell

CHECKPOINT = Path(__file__).parents[1] / "data" / "checkpoints" / "tales-words"


@pytest.fixture(scope="module")
def model():
    tokenizer = CharTokenizer.fit("abcd")
    shape = {"context": 32, "n_layers": 1, "n_heads": 2, "d_model": 16}
    return SoftAR(ModelConfig(vocab_size=4, **shape, table="orthonormal"), tokenizer, seed=0)


# -- the trace graph -------------------------------------------------------------------------------


def test_edges_of_rows_are_counts_of_the_first_order(model):
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(4, (60,), generator=generator) for _ in range(3)]
    graph = TraceGraph(model.embedding.detach(), 4)
    predictor = TracePredictor(graph, model, "row", smoothing=0.5)
    counts, begins = np.zeros((4, 4)), np.zeros(4)
    for ids in texts:
        assert torch.equal(graph.add(*predictor.path(ids)), ids)
        np.add.at(counts, (ids[:-1].numpy(), ids[1:].numpy()), 1)
        np.add.at(begins, ids.numpy(), 1)
    assert torch.equal(graph.edges, torch.from_numpy(counts))
    ids = texts[0][None, :20]
    expected = (counts + 0.5) / (counts.sum(1, keepdims=True) + 2)
    found = predictor.next_log_probs(ids)
    first = torch.from_numpy((begins + 0.5) / (begins.sum() + 2)).log().float()
    torch.testing.assert_close(found[0, 0], first, rtol=0, atol=4e-7)
    rows = torch.from_numpy(expected[ids[0, :-1]]).log().float()
    torch.testing.assert_close(found[0, 1:], rows, rtol=0, atol=4e-7)
    state = predictor.start(1)
    for t in range(5):
        assert torch.equal(predictor.predict(state).log_probs[0], found[0, t])
        state = predictor.advance(state, token_ids=ids[:, t])


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_colours_and_edges_are_weighted_means_and_counts(decay):
    generator = torch.Generator().manual_seed(1)
    graph = TraceGraph(torch.randn(5, 3, generator=generator), 2, decay)
    paths = [torch.randn(n, 3, generator=generator) for n in (7, 1, 12)]
    age, weights, edges = 0, [], torch.zeros(5, 5, dtype=torch.float64)
    for path in reversed(paths):  # the latest step is 0 steps ago
        for t in reversed(range(len(path))):
            cell = int(graph.cells(path[t : t + 1]))
            weights.append((cell, (1 - decay) ** age, path[t].double()))
            if t:
                edges[int(graph.cells(path[t - 1 : t])), cell] += (1 - decay) ** age
            age += 1
    for path in paths:
        graph.add(path, torch.full((len(path),), -1))
    torch.testing.assert_close(graph.edges, edges, rtol=1e-12, atol=0)
    for cell in range(5):
        mine = [(w, v) for c, w, v in weights if c == cell]
        if not mine:
            assert graph.colours[cell].isnan().all()
            continue
        mean = sum(w * v for w, v in mine) / sum(w for w, _ in mine)
        torch.testing.assert_close(graph.colours[cell], mean, rtol=1e-12, atol=1e-12)


def test_hidden_states_make_a_graph_that_predicts_step_by_step(model):
    ids = torch.randint(4, (1, 20), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        hidden = model.hidden_states(ids)[0].clone()
    graph = TraceGraph.fit(hidden, 4, 4)
    predictor = TracePredictor(graph, model, "hidden")
    graph.add(*predictor.path(ids[0]))
    found, state = predictor.next_log_probs(ids), predictor.start()
    for t in range(20):
        assert torch.equal(predictor.predict(state).log_probs[0], found[0, t])
        state = predictor.advance(state, token_ids=ids[:, t])
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(1, 20))
    places = graph.layout()
    assert set(places) == set(graph.visits.nonzero().flatten().tolist())


def test_graph_names_what_is_wrong(model):
    graph = TraceGraph(torch.eye(3), 2)
    with pytest.raises(ValueError, match="token ids must lie in -1 … 1"):
        graph.add(torch.zeros(1, 3), torch.tensor([2]))
    with pytest.raises(ValueError, match="decay must be from 0 to below 1"):
        TraceGraph(torch.eye(3), 2, decay=1.0)
    with pytest.raises(ValueError, match="source must be 'row' or 'hidden'"):
        TracePredictor(graph, model, "cell")
    with pytest.raises(ValueError, match="the graph knows 2 symbols, not 4"):
        TracePredictor(graph, model)


# -- the knowledge base ----------------------------------------------------------------------------


def test_new_facts_are_added_known_ones_are_not_and_answers_have_their_source():
    """26 characters with two things and two places each, which is 104 facts, each in three wordings.

    The threshold comes from other facts, at 2 % of false alarms. Among 208 known passages a rate of
    2 % gives more than 5 % (11) with a chance of 1e-3 (binomial).
    """
    model = SoftAR.load(CHECKPOINT)
    texts = [wording for seed in (90, 91) for fact in facts(seed) for wording in fact.wordings]
    base = KnowledgeBase(encoder_of_rows(model, tales_words(), texts), CHARACTERS)
    base.fit_threshold(same_facts(99), 0.02)
    told = tell(base, 0)
    assert told[told["new"]]["added"].mean() >= 0.95
    assert told[~told["new"]]["added"].mean() <= 0.05
    assert ask(base, 0)["right"].all()


def test_novelty_is_the_distance_within_a_topic():
    rows = {"king": torch.tensor([1.0, 0, 0]), "ring": torch.tensor([0, 1.0, 0])}
    rows["queen"] = torch.tensor([0, 0, 1.0])
    encode = Passages(["king ring", "queen", "x"], rows.__getitem__)
    base = KnowledgeBase(encode, ["king", "queen"], threshold=0.1)
    first = base.read("king ring")
    assert (first.topic, first.novelty, first.added, first.nearest) == ("king", np.inf, True, "")
    again = base.read("Ring king!")
    assert not again.added
    assert again.nearest == "king ring"
    assert base.read("queen ring").added  # another topic
    other = base.read("king king")
    # the angle is 45 degrees: |a - b|² = 2 - √2
    assert other.novelty == pytest.approx(2 - 2**0.5, abs=1e-6)
    assert other.added
    assert len(base) == 3
    assert base.answer("queen?", ["ring"]).source == "queen ring"
    assert base.answer("dragon?", ["ring"]).text == ""


# -- the kNN mixture -------------------------------------------------------------------------------


def test_mixture_is_that_of_its_formula(model):
    predictor = NeighbourPredictor(model, neighbours=3, share=0.3, temperature=2.0)
    text = "abcabdabcabcddabcabcab"
    predictor.remember([text])
    ids = model.tokenizer.encode("abcda")
    with torch.inference_mode():
        hidden = model.hidden_states(ids[None, :-1])[0].double()
        stored = model.hidden_states(model.tokenizer.encode(text)[None, :-1])[0].double()
        own = model.next_log_probs(ids[None])[0].double().exp()
    followed = model.tokenizer.encode(text)
    found = predictor.next_log_probs(ids[None])[0]
    for t in range(len(ids)):
        squares = (stored - hidden[t]).square().sum(-1)
        order = sorted(range(len(stored)), key=lambda i: (float(squares[i]), i))[:3]
        weights = torch.softmax(-squares[order] / 2.0, 0)
        memory = torch.zeros(4, dtype=torch.float64).index_add_(0, followed[order], weights)
        expected = (0.3 * memory + 0.7 * own[t]).log().float()
        torch.testing.assert_close(found[t], expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(len(ids)))


def test_an_empty_memory_changes_nothing(model):
    ids = torch.tensor([[0, 1, 2, 3]])
    assert torch.equal(NeighbourPredictor(model).next_log_probs(ids), model.next_log_probs(ids))
