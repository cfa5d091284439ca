"""What a chain of soft tokens says where it is right (K2): the marginals of what is to come, (q Pᵏ)E after k steps."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from ..generation.loop import generate
from ..predictor import Predictor
from ..sources.processes import Markov


def transitions(language: Predictor) -> Float64[Tensor, "V V"]:
    """P of a first-order chain: row a is the law of what follows a; a row of zeros where a never occurs.

    Raises ValueError for a language of another kind or order.
    """
    order = getattr(language, "order", None)
    if not isinstance(language, Markov) or order != 1:
        raise ValueError(f"marginals need a Markov language of order 1, not {type(language).__name__} of {order=}")
    law = language.stationary
    found = torch.zeros(len(law), len(law), dtype=torch.float64)
    seen = torch.from_numpy(np.flatnonzero(law > 0))
    state = language.advance(language.start(len(seen)), token_ids=seen)
    found[seen] = language.predict(state).probs
    return found


def marginals(
    transition: Float64[Tensor, "V V"], start: Float64[Tensor, "*B V"], steps: int
) -> Float64[Tensor, "*B K V"]:
    """q P, q P², … q P^K: what stands 1, 2, … K = `steps` symbols after a symbol drawn from q = `start` (…, V)."""
    laws = []
    for _ in range(steps):
        start = start @ transition
        laws.append(start)
    return torch.stack(laws, -2)


def forecast_error(
    model: Predictor, language: Predictor, prompts: Sequence[str], steps: int = 8, feedback: str = "raw"
) -> pd.DataFrame:
    """How far a soft chain, never collapsed, is from the marginals: a row a prompt and k, |y - (qPᵏ)E| / |(qPᵏ)E|.

    q is all weight on the prompt's last symbol, y what is fed back at step k: the k-th soft token. `error` is that of
    the chain; `unconditional` that of the language's stationary law in its place, which a chain that has forgotten its
    prompt would have. Index (prompt, k). Raises ValueError for an empty prompt or a language that is not first-order.
    """
    if not all(prompts):
        raise ValueError("a prompt is empty; the chain starts from its last symbol")
    ids = torch.tensor([int(language.tokenizer.encode(prompt)[-1]) for prompt in prompts])
    P = transitions(language)
    laws = marginals(P, torch.eye(len(P), dtype=torch.float64)[ids], steps)  # (N, K, V)
    written = generate(model, list(prompts), steps, schedule="never", feedback=feedback, temperature=0)
    found = torch.stack([one.inputs for one in written]).double()  # (N, K, m)
    order = torch.tensor([model.tokenizer.tokens.index(symbol) for symbol in language.tokenizer.tokens])
    table = model.embedding.cpu().double()[order]  # rows in the language's order
    should = laws @ table
    anywhere = torch.from_numpy(language.stationary) @ table
    columns = {"error": found - should, "unconditional": anywhere - should}
    index = pd.MultiIndex.from_product([range(len(prompts)), range(1, steps + 1)], names=["prompt", "k"])
    relative = {name: (gap.norm(dim=-1) / should.norm(dim=-1)).flatten().numpy() for name, gap in columns.items()}
    return pd.DataFrame(relative, index=index)
