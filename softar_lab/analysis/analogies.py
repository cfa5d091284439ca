"""Analogies (K6): a is to b as c is to d, so b - a + c should lie next to d. Counted in every way, none silently."""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..models.soft_ar import SoftAR
from ..sources.corpora import tales_words
from ..sources.tales_world import PAIRS
from .compression import nearest_rows


def analogy_questions(pairs: Int[Tensor, "P 2"]) -> Int[Tensor, "Q 4"]:
    """Every a : b = c : d of two pairs, both ways round: pairs (P, 2) -> ids of a, b, c and d (2P(P-1), 4).

    Raises ValueError for fewer than 2 pairs.
    """
    if len(pairs) < 2:
        raise ValueError(f"an analogy needs at least 2 pairs, not {len(pairs)}")
    one, other = (~torch.eye(len(pairs), dtype=torch.bool)).nonzero().T
    return torch.cat([torch.cat([way[one], way[other]], 1) for way in (pairs, pairs.flip(1))])


def answer_analogies(
    vectors: Float[Tensor, "V m"], questions: Int[Tensor, "Q 4"], names: Sequence[str]
) -> pd.DataFrame:
    """A row a question: a, b, c, d and who lies nearest, by cosine of vectors less their mean. Idea K6.

    `all`: nearest to b - a + c of all words; `without`: of all but a, b and c, as is often done and seldom said;
    `control`: nearest to c alone of the same words, no arithmetic at all (Linzen, arXiv 1606.07736). Each is a name.
    """
    centred = vectors - vectors.mean(0)
    a, b, c, d = questions.T
    target, asked = centred[b] - centred[a] + centred[c], questions[:, :3]
    columns = {"a": a, "b": b, "c": c, "d": d, "all": nearest_rows(target, centred)[:, 0]}
    columns["without"] = nearest_rows(target, centred, exclude=asked)[:, 0]
    columns["control"] = nearest_rows(centred[c], centred, exclude=asked)[:, 0]
    return pd.DataFrame({name: [names[i] for i in ids.tolist()] for name, ids in columns.items()})


def analogy_shares(answers: pd.DataFrame) -> dict[str, float]:
    """Shares right: `all`, `without` and `control`; and `asked`: how often a word of the question lies nearest."""
    shares = {way: float((answers[way] == answers["d"]).mean()) for way in ("all", "without", "control")}
    own = answers[["a", "b", "c"]].eq(answers["all"], axis=0).any(axis=1)
    return {**shares, "asked": float(own.mean())}


def offsets_agree(vectors: Float[Tensor, "V m"], pairs: Int[Tensor, "P 2"]) -> float:
    """Mean cosine between the differences second - first of all two pairs: 1 where one direction tells them apart."""
    offsets = F.normalize(vectors[pairs[:, 1]] - vectors[pairs[:, 0]], dim=-1)
    cosines = offsets @ offsets.T
    return float((cosines.sum() - cosines.trace()) / (len(pairs) * (len(pairs) - 1)))


@torch.inference_mode()
def mean_states(model: SoftAR, rows: Int[Tensor, "B T"], words: Int[Tensor, "B T"], count: int) -> Float[Tensor, "W d"]:
    """For each of `count` words the mean of the body's outputs behind its tokens: a word's vector in use (W, d).

    `words` (B, T) says which word the token there is part of, -1: of none. For models that read letters as for those
    that read words. A word that never occurs gets NaN.
    """
    sums, seen = torch.zeros(count, model.config.d_model), torch.zeros(count)
    for ids, which in zip(rows.split(32), words.split(32)):
        states, there = model.hidden_states(ids)[:, 1:], which >= 0
        sums.index_add_(0, which[there], states[there])
        seen.index_add_(0, which[there], torch.ones(int(there.sum())))
    return sums / seen[:, None]


def tales_pairs() -> Int[Tensor, "P 2"]:
    """The gendered pairs of `tales`, king and queen and twelve more, as ids of "tales-words" (13, 2)."""
    ids = tales_words().ids
    return torch.tensor([[ids[male], ids[female]] for male, female in PAIRS])


def word_vectors(model: SoftAR, stories: Sequence[str]) -> dict[str, Float[Tensor, "V _"]]:
    """Three vectors a word of a model of "tales-words", and one that knows nothing, by name.

    "table": the rows it reads; "head": the rows it scores the next word with; "state": its mean output behind the word
    over `stories` of `tales`; "random": rows that were never trained.
    """
    words = tales_words()
    ids = [model.tokenizer.encode(words.encode(story)) for story in stories]
    which = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1)
    states = mean_states(model, which.clamp_min(0), which, len(words.words))
    head = model.objective.head.weight.detach()
    random = torch.randn(model.embedding.shape, generator=torch.Generator().manual_seed(0))
    return {"table": model.embedding, "head": head, "state": states, "random": random}


def tales_analogies(model: SoftAR, stories: Sequence[str]) -> pd.DataFrame:
    """The gendered analogies of `tales` asked of each of `word_vectors`: columns way, what, value.

    `what`: the shares of `analogy_shares`; "agree" (`offsets_agree`); both again of shuffled pairs, which share no
    meaning: "shuffled without", "shuffled agree".
    """
    pairs, names, rows = tales_pairs(), tales_words().words, []
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    shuffled = torch.stack([pairs[:, 0], pairs[order, 1]], 1)
    for way, vectors in word_vectors(model, stories).items():
        found = analogy_shares(answer_analogies(vectors, analogy_questions(pairs), names))
        found["agree"] = offsets_agree(vectors, pairs)
        control = analogy_shares(answer_analogies(vectors, analogy_questions(shuffled), names))
        found |= {"shuffled without": control["without"], "shuffled agree": offsets_agree(vectors, shuffled)}
        rows += [{"way": way, "what": what, "value": value} for what, value in found.items()]
    return pd.DataFrame(rows)
