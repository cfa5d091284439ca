"""What does a learned prompt say? Its nearest words, and how much of its gain they carry (K3, K32)."""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ...core.predictor import Predictor
from ...models.nearest import nearest
from ...models.simplex import barycentric
from .prompts import LearnedPrompt, Pair, check_prompt, score

FRACTIONS = (0.25, 0.5, 0.75)  # of the way from the trained vectors to their nearest rows


def words_of(model: Predictor, prompt: LearnedPrompt) -> pd.DataFrame:
    """One row per soft token of a prompt: what the lab's instruments read in it.

    Returns:
        start: the token it was begun from; nearest, by_cosine: the closest row's token;
        at_start: whether nearest is the one it was begun from; cosine: to that closest row;
        distance, off_hull, length: in the mean length of a row; weight, entropy: the largest
        barycentric weight, and the entropy of the weights in nats.

    Raises:
        ValueError: where the prompt does not fit the model.
    """
    check_prompt(model, prompt.vectors, prompt.start_ids)
    table, vectors = model.embedding.cpu(), prompt.vectors
    unit = table.norm(dim=-1).mean()
    by_l2, by_cosine = (nearest(vectors, table, metric) for metric in ("l2", "cosine"))
    weights = barycentric(vectors, table)
    names = model.tokenizer.tokens
    start = prompt.start_ids
    rows = {
        "start": [names[i] for i in ([] if start is None else start)] or [""] * len(vectors),
        "nearest": [names[i] for i in by_l2],
        "by_cosine": [names[i] for i in by_cosine],
        "at_start": [False] * len(vectors) if start is None else (by_l2 == start).tolist(),
        "cosine": torch.cosine_similarity(vectors, table[by_l2]).tolist(),
        "distance": ((vectors - table[by_l2]).norm(dim=-1) / unit).tolist(),
        "off_hull": ((weights @ table - vectors).norm(dim=-1) / unit).tolist(),
        "length": (vectors.norm(dim=-1) / unit).tolist(),
        "weight": weights.amax(-1).tolist(),
        "entropy": torch.special.entr(weights).sum(-1).tolist(),
    }
    return pd.DataFrame(rows)


def variants(model: Predictor, prompt: LearnedPrompt) -> dict[str, Float[Tensor, "_ m"]]:
    """A prompt collapsed and changed in every way whose gain is asked for, by name.

    Raises:
        ValueError: where the prompt does not fit the model.
    """
    check_prompt(model, prompt.vectors, prompt.start_ids)
    table, vectors = model.embedding.cpu(), prompt.vectors
    lengths = vectors.norm(dim=-1, keepdim=True)

    def as_long(other: Tensor) -> Tensor:
        return other * lengths / other.norm(dim=-1, keepdim=True)

    rows = {metric: table[nearest(vectors, table, metric)] for metric in ("l2", "cosine", "dot")}
    weights = barycentric(vectors, table)
    mixture = weights @ table
    found = {"trained": vectors}
    if prompt.start_ids is not None:
        found["start"] = table[prompt.start_ids]
    found |= {f"nearest({metric})": one for metric, one in rows.items()}
    found |= {
        "nearest(l2), length kept": as_long(rows["l2"]),
        "barycentric": table[weights.argmax(-1)],
        "mixture": mixture,
        "mixture, length kept": as_long(mixture),
        "as long as a row": vectors / lengths * table.norm(dim=-1).mean(),
    }
    for share in FRACTIONS:
        found[f"{share:g} of the way to nearest"] = torch.lerp(vectors, rows["l2"], share)
    found["reversed"] = vectors.flip(0)
    found["mean in every place"] = vectors.mean(0).expand_as(vectors)
    found["first half"] = vectors[: max(1, len(vectors) // 2)]
    return found


def survival(
    model: Predictor,
    prompt: LearnedPrompt,
    pairs: Sequence[Pair],
    names: Sequence[str] | None = None,
) -> pd.DataFrame:
    """How much of a prompt's gain each of its variants has.

    Args:
        model: reads the variants.
        prompt: must know where it was begun.
        pairs: texts and answers that it was not trained on.
        names: of `variants`; None: all.

    Returns:
        One row per variant: nats per token, share right, and the share of the gain from "start" to
        "trained", in nats, that the variant has; NaN where training gained nothing on these pairs.

    Raises:
        ValueError: where the prompt does not know its start or does not fit the model, or there is
            no such variant.
    """
    if prompt.start_ids is None:
        raise ValueError("this prompt does not know where it was begun, so it has no gain to share")
    known = variants(model, prompt)
    if unknown := [name for name in names or () if name not in known]:
        raise ValueError(f"no variant {unknown[0]!r}; there are: {', '.join(known)}")
    asked = dict.fromkeys(["start", "trained", *(known if names is None else names)])
    rows = {name: score(model, pairs, known[name].to(model.device)) for name in asked}
    begun, learned = rows["start"]["nats"], rows["trained"]["nats"]
    gain = begun - learned if learned < begun else math.nan
    found = [
        {"variant": name, **row, "of_gain": (begun - row["nats"]) / gain}
        for name, row in rows.items()
    ]
    return pd.DataFrame(found)
