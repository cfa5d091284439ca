"""What a correct chain of soft tokens predicts (K2): the marginals (q Pᵏ)E after k steps."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from softar_lab.core.predictor import Predictor
from softar_lab.data.languages.markov import Markov
from softar_lab.generation.generate import generate


def transitions(language: Predictor) -> Float64[Tensor, "V V"]:
    """The transition matrix P (V, V) of a first-order Markov chain.

    Row a is the distribution of the symbol after a; it is all zeros where a never occurs.

    Raises:
        ValueError: where the language is of another kind or order.
    """
    order = language.order if isinstance(language, Markov) else None
    if order != 1:
        raise ValueError(
            f"marginals need a Markov language of order 1, not {type(language).__name__} of {order=}"
        )
    law = language.stationary
    found = torch.zeros(len(law), len(law), dtype=torch.float64)
    seen = torch.from_numpy(np.flatnonzero(law > 0))
    state = language.advance(language.start(len(seen)), token_ids=seen)
    found[seen] = language.predict(state).probs
    return found


def marginals(
    transition: Float64[Tensor, "V V"], start: Float64[Tensor, "*B V"], steps: int
) -> Float64[Tensor, "*B K V"]:
    """The marginals q P, q P², … q P^K: distributions of the symbols 1, 2, … K steps later.

    Args:
        transition: the matrix P (V, V).
        start: the distribution q of the first symbol (…, V).
        steps: the number of steps K.

    Returns:
        The marginals (…, K, V).
    """
    laws = []
    for _ in range(steps):
        start = start @ transition
        laws.append(start)
    return torch.stack(laws, -2)


def forecast_error(
    model: Predictor,
    language: Predictor,
    prompts: Sequence[str],
    steps: int = 8,
    feedback: str = "raw",
) -> pd.DataFrame:
    """How far a soft chain, never collapsed, is from the marginals: |y - (qPᵏ)E| / |(qPᵏ)E|.

    q puts all weight on the prompt's last symbol. y is what is fed back at step k: the k-th soft
    token.

    Args:
        model: the model that writes the chain.
        language: a first-order Markov language with the model's symbols.
        prompts: one chain is written per prompt.
        steps: the length of each chain.
        feedback: the name of the feedback.

    Returns:
        One row per prompt and k, with the index (prompt, k). `error` is that of the chain.
        `unconditional` is the error of the language's stationary distribution in its place, which
        is what a chain that has forgotten its prompt would have.

    Raises:
        ValueError: where a prompt is empty or the language is not first-order.
    """
    if not all(prompts):
        raise ValueError("a prompt is empty; the chain starts from its last symbol")
    # 1) what the language predicts after the last symbol of each prompt
    ids = torch.tensor([int(language.tokenizer.encode(prompt)[-1]) for prompt in prompts])
    P = transitions(language)
    laws = marginals(P, torch.eye(len(P), dtype=torch.float64)[ids], steps)  # (N, K, V)
    # 2) what the model feeds back
    written = generate(
        model, list(prompts), steps, schedule="never", feedback=feedback, temperature=0
    )
    found = torch.stack([one.inputs for one in written]).double()  # (N, K, m)
    # 3) both as vectors, and their relative distance
    order = torch.tensor(
        [model.tokenizer.tokens.index(symbol) for symbol in language.tokenizer.tokens]
    )
    table = model.embedding.cpu().double()[order]  # rows in the language's order
    should = laws @ table
    anywhere = torch.from_numpy(language.stationary) @ table
    columns = {"error": found - should, "unconditional": anywhere - should}
    index = pd.MultiIndex.from_product(
        [range(len(prompts)), range(1, steps + 1)], names=["prompt", "k"]
    )
    relative = {
        name: (gap.norm(dim=-1) / should.norm(dim=-1)).flatten().numpy()
        for name, gap in columns.items()
    }
    return pd.DataFrame(relative, index=index)
