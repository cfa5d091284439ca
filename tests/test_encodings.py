"""Three encodings of the same texts, and vectors of texts at any layer."""

import math

import numpy as np
import pytest
import torch

from softar_lab import CharTokenizer, ModelConfig, SoftAR
from softar_lab.memory import encodings
from softar_lab.memory.encodings import DenseIndex, TokenIndex, WordIndex
from softar_lab.memory.reading import read

TEXTS = ["the cat sat on the mat", "a dog ran", "the dog sat", "stones"]


@pytest.fixture(scope="module")
def model():
    tokenizer = CharTokenizer.fit("".join(TEXTS) + "é.")
    shape = {"context": 8, "n_layers": 2, "n_heads": 2, "d_model": 16}
    return SoftAR(ModelConfig(vocab_size=tokenizer.vocab_size, **shape), tokenizer, seed=0)


def test_read_gives_the_hidden_states_of_short_texts(model):
    ids = model.tokenizer.encode("a dog")
    with torch.inference_mode():
        expected = model.hidden_states(ids[None])[0, 1:]
    vectors, pieces = read(model, "a dog")
    assert torch.equal(vectors, expected)
    assert [piece["text"] for piece in pieces] == list("a dog")
    assert torch.equal(read(model, "a dog", layer=0)[0], model.embedding[ids].detach())
    inner = read(model, "a dog", layer=2)[0]
    with torch.inference_mode():
        torch.testing.assert_close(model.body.norm(inner), expected, rtol=0, atol=1e-6)


def test_read_cuts_long_texts_and_counts_words(model):
    text = "the cat sat on the mat"
    vectors, pieces = read(model, text, every="word")
    assert [piece["text"].strip() for piece in pieces] == text.split()
    assert all(text[one["begin"] : one["end"]] == one["text"] for one in pieces)
    whole, _ = read(model, text)
    assert len(whole) == len(text)
    assert torch.equal(vectors[-1], whole[-1])
    assert torch.equal(whole[:8], read(model, text[:8])[0])
    third, pieces = read(model, text, every=3)
    assert [piece["end"] for piece in pieces] == [3, 6, 9, 12, 15, 18, 21, 22]
    assert torch.equal(read(model, text, every="text")[0][0], whole.mean(0))
    assert third.shape == (8, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": 3}, "layer must be -1, 0 or a block from 1 to 2, not 3"),
        ({"every": "line"}, "every must be a number or one of token, word, text"),
        ({"every": 0}, "every must be a whole number"),
    ],
)
def test_read_names_what_is_wrong(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        read(model, "a dog", **arguments)
    with pytest.raises(ValueError, match="a text without tokens"):
        read(model, "")


def test_words_score_as_the_formula_of_lucene_says():
    """BM25 by hand: idf ln(1 + (N - n + ½) / (n + ½)) · tf / (tf + k1 (1 - b + b |d| / mean))."""
    index = WordIndex(TEXTS)
    lengths = [len(text.split()) for text in TEXTS]

    def by_hand(query: str, text: str) -> float:
        total = 0.0
        for term in query.split():
            n = sum(term in other.split() for other in TEXTS)
            tf = text.split().count(term)
            idf = math.log(1 + (len(TEXTS) - n + 0.5) / (n + 0.5))
            norm = 1.5 * (0.25 + 0.75 * len(text.split()) / np.mean(lengths))
            total += idf * tf / (tf + norm)
        return total

    for query in ("the dog", "the the", "mat", "unknown", "unknown dog"):
        expected = [by_hand(query.replace("unknown", "").strip(), text) for text in TEXTS]
        # the library adds up float32 numbers
        np.testing.assert_allclose(index.scores(query), expected, rtol=8 * 2.0**-23, atol=1e-9)
    shares = index.matches("the dog dog", 2)
    assert sum(share for *_, share in shares) == pytest.approx(index.scores("the dog dog")[2])
    assert [hit.number for hit in index.search("nothing", 4)] == [0, 1, 2, 3]  # ties: the first


def test_texts_without_terms_are_refused():
    with pytest.raises(ValueError, match="none of the texts has a term"):
        WordIndex(["", "--"])


def test_max_sim_is_the_mean_of_the_greatest_cosines():
    letters = {letter: torch.randn(4, generator=torch.Generator().manual_seed(ord(letter)))
               for letter in "abcdef"}  # fmt: skip

    def encode(text):
        vectors = [letters[letter] for letter in text]
        return torch.stack(vectors) if vectors else torch.empty(0, 4), list(text)

    index = TokenIndex(["abc", "", "ffa"], encode)
    cosine = torch.nn.functional.cosine_similarity
    for number, text in enumerate(index.texts):
        best = [max((cosine(letters[q], letters[t], 0) for t in text), default=0) for q in "ad"]
        assert index.scores("ad")[number] == pytest.approx(float(sum(best)) / 2, abs=1e-6)
    (one, there, share), _ = index.matches("ad", 2)
    assert (one, there) == ("a", "a")
    assert share == pytest.approx(0.5, abs=1e-6)
    assert index.matches("ad", 1) == ()


def test_dense_index_finds_a_text_by_itself(model):
    index = DenseIndex.of_model(TEXTS, model)
    assert [index.search(text, 1)[0].number for text in TEXTS] == [0, 1, 2, 3]
    tokens = TokenIndex.of_model(TEXTS, model)
    assert [tokens.search(text, 1)[0].number for text in TEXTS] == [0, 1, 2, 3]
    weights = encodings.ActivationIndex([text[:8] for text in TEXTS], model)
    assert weights.scores("the cat ").shape == (4,)


def test_ranks_count_ties_against_a_ranking():
    class Equal(encodings.TextIndex):
        texts = TEXTS

        def scores(self, query):
            return np.array([1.0, 1.0, 0.5, 2.0]) if query else np.zeros(4)

    found = encodings.ranks(Equal(), ["x", "x", "x", ""], [0, 3, 2, 0])
    assert found.tolist() == [3, 1, 4, 4]
    figures = encodings.retrieval_figures(found)
    assert figures["recall@1"].tolist() == [0, 1, 0, 0]
    assert figures["MRR"].tolist() == [1 / 3, 1, 1 / 4, 1 / 4]
    assert figures["nDCG@10"][1] == 1


def test_the_nearest_label_is_the_most_frequent_one():
    hits = [encodings.Hit(number, 0.0) for number in (5, 0, 1, 2, 3, 4)]
    labels = ["a", "b", "b", "a", "c", "d"]
    assert encodings.nearest_label(hits, labels, skip=5) == "a"
    assert encodings.nearest_label(hits, labels, skip=0, k=3) == "b"
