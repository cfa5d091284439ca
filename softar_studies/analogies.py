"""Word analogies (K6): a is to b as c is to d, so b - a + c should lie next to d.

Answers are counted in every usual variant, and each variant is reported.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from softar_lab.data.corpora import tales_words
from softar_lab.data.languages.tales_world import PAIRS
from softar_lab.metrics.superposition import nearest_rows
from softar_lab.models.soft_ar import SoftAR


def analogy_questions(pairs: Int[Tensor, "P 2"]) -> Int[Tensor, "Q 4"]:
    """Every analogy a : b = c : d of two different pairs (P, 2), in both directions.

    Returns:
        Ids of a, b, c and d, (2P(P-1), 4).

    Raises:
        ValueError: where fewer than 2 pairs are given.
    """
    if len(pairs) < 2:
        raise ValueError(f"an analogy needs at least 2 pairs, not {len(pairs)}")
    one, other = (~torch.eye(len(pairs), dtype=torch.bool)).nonzero().T
    return torch.cat(
        [torch.cat([ordered[one], ordered[other]], 1) for ordered in (pairs, pairs.flip(1))]
    )


def answer_analogies(
    vectors: Float[Tensor, "V m"], questions: Int[Tensor, "Q 4"], names: Sequence[str]
) -> pd.DataFrame:
    """Answer each analogy by the nearest word; one row per question.

    The nearest word has the largest cosine after the mean of all vectors is subtracted.

    Args:
        vectors: one vector per word (V, m).
        questions: ids of a, b, c and d (Q, 4).
        names: the words, by id.

    Returns:
        Columns a, b, c, d and three answers, all as names. `all`: nearest to b - a + c among all
        words. `without`: the same without a, b and c, as is often done and seldom reported.
        `control`: nearest to c alone among the same words, without any arithmetic.

    Source:
        K6; the control is Linzen's (arXiv 1606.07736).
    """
    centred = vectors - vectors.mean(0)
    a, b, c, d = questions.T
    target, asked = centred[b] - centred[a] + centred[c], questions[:, :3]
    columns = {"a": a, "b": b, "c": c, "d": d, "all": nearest_rows(target, centred)[:, 0]}
    columns["without"] = nearest_rows(target, centred, exclude=asked)[:, 0]
    columns["control"] = nearest_rows(centred[c], centred, exclude=asked)[:, 0]
    return pd.DataFrame({name: [names[i] for i in ids.tolist()] for name, ids in columns.items()})


def analogy_shares(answers: pd.DataFrame) -> dict[str, float]:
    """Shares of right answers `all`, `without` and `control`, and the share `asked`.

    `asked` is how often the nearest of all words is a word of the question itself.
    """
    shares = {
        variant: float((answers[variant] == answers["d"]).mean())
        for variant in ("all", "without", "control")
    }
    own = answers[["a", "b", "c"]].eq(answers["all"], axis=0).any(axis=1)
    return {**shares, "asked": float(own.mean())}


def offsets_agree(vectors: Float[Tensor, "V m"], pairs: Int[Tensor, "P 2"]) -> float:
    """Mean cosine between the differences second - first of any two pairs.

    It is 1 where one direction separates the two members of every pair.
    """
    offsets = F.normalize(vectors[pairs[:, 1]] - vectors[pairs[:, 0]], dim=-1)
    cosines = offsets @ offsets.T
    return float((cosines.sum() - cosines.trace()) / (len(pairs) * (len(pairs) - 1)))


@torch.inference_mode()
def mean_states(
    model: SoftAR, rows: Int[Tensor, "B T"], words: Int[Tensor, "B T"], count: int
) -> Float[Tensor, "W d"]:
    """Mean hidden state after the tokens of each word: the word's vector in use.

    It suits models that read letters and models that read words.

    Args:
        model: the model that reads.
        rows: token ids (B, T).
        words: the word that each token is part of (B, T); -1 where it is part of none.
        count: the number of words W.

    Returns:
        One vector per word (W, d); NaN for a word that never occurs.
    """
    sums, seen = torch.zeros(count, model.config.d_model), torch.zeros(count)
    for ids, which in zip(rows.split(32), words.split(32)):
        states, inside = model.hidden_states(ids)[:, 1:], which >= 0
        sums.index_add_(0, which[inside], states[inside])
        seen.index_add_(0, which[inside], torch.ones(int(inside.sum())))
    return sums / seen[:, None]


def tales_pairs() -> Int[Tensor, "P 2"]:
    """The gendered pairs of `tales` as "tales-words" ids (13, 2): king and queen, twelve more."""
    ids = tales_words().ids
    return torch.tensor([[ids[male], ids[female]] for male, female in PAIRS])


def word_vectors(model: SoftAR, stories: Sequence[str]) -> dict[str, Float[Tensor, "V _"]]:
    """Three vectors per word of a "tales-words" model, and an untrained one, by name.

    "table": the rows that the model reads. "head": the rows that score the next word. "state": the
    mean hidden state after the word over `stories` of `tales`. "random": rows never trained.
    """
    words = tales_words()
    ids = [model.tokenizer.encode(words.encode(story)) for story in stories]
    which = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1)
    states = mean_states(model, which.clamp_min(0), which, len(words.words))
    head = model.objective.head.weight.detach()
    random = torch.randn(model.embedding.shape, generator=torch.Generator().manual_seed(0))
    return {"table": model.embedding, "head": head, "state": states, "random": random}


def tales_analogies(model: SoftAR, stories: Sequence[str]) -> pd.DataFrame:
    """Test the gendered analogies of `tales` on each of `word_vectors`.

    Returns:
        Columns `way` (the name of the vectors), `what` and `value`. `what` is a share of
        `analogy_shares` or "agree" (`offsets_agree`). "shuffled without" and "shuffled agree" are
        the same figures for shuffled pairs, which share no meaning.
    """
    pairs, names, rows = tales_pairs(), tales_words().words, []
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    shuffled = torch.stack([pairs[:, 0], pairs[order, 1]], 1)
    for kind, vectors in word_vectors(model, stories).items():
        found = analogy_shares(answer_analogies(vectors, analogy_questions(pairs), names))
        found["agree"] = offsets_agree(vectors, pairs)
        control = analogy_shares(answer_analogies(vectors, analogy_questions(shuffled), names))
        found |= {
            "shuffled without": control["without"],
            "shuffled agree": offsets_agree(vectors, shuffled),
        }
        rows += [{"way": kind, "what": what, "value": value} for what, value in found.items()]
    return pd.DataFrame(rows)
