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


def against_sampling(
    soft: Predictor,
    hard: Predictor,
    language: Predictor,
    steps: int = 12,
    chains: int = 2048,
    seed: int = 0,
) -> pd.DataFrame:
    """What one soft chain is worth in sampled hard chains, as forecasts of (qPᵏ)E.

    All start from each symbol. A soft chain gives one vector per step. Of N hard chains the mean
    counts: of the rows of their symbols, or, which is sharper at equal cost, of the vectors that
    they predict. A step costs each chain the same, so N chains cost N times one soft chain. The
    expected squared error of N independent chains is |mean - (qPᵏ)E|² + spread / N, where the spread
    is that of one chain, so `chains` of them give it for every N.

    Args:
        soft: writes the soft chain (schedule "never", feedback "raw").
        hard: writes the hard chains (collapse "barycentric").
        language: a first-order Markov language with the symbols of both.
        steps: k = 1 … steps.
        chains: hard chains per symbol, from which mean and spread are estimated.
        seed: of the first hard chain.

    Returns:
        One row per k: `soft`, the soft chain's squared error; `unconditional`, that of the
        stationary law; for the means of `symbols` and of `vectors`, `…_bias`, the squared error that
        no N removes, and `…_spread`. All are means over the symbols.

    Raises:
        ValueError: where the two models have different tables, or the language is not first-order.
    """
    if soft.tokenizer.tokens != hard.tokenizer.tokens or not torch.equal(
        soft.embedding, hard.embedding
    ):
        raise ValueError(
            "soft and hard chains are compared as vectors, so both models need one table and one "
            "order of its symbols"
        )
    symbols, P = list(language.tokenizer.tokens), transitions(language)
    laws = marginals(P, torch.eye(len(P), dtype=torch.float64), steps)  # (V, K, V)
    order = torch.tensor([soft.tokenizer.tokens.index(symbol) for symbol in symbols])
    should = laws @ soft.embedding.double()[order]
    anywhere = torch.from_numpy(language.stationary) @ soft.embedding.double()[order]

    def squares(gap: Float64[Tensor, "V K m"]) -> np.ndarray:
        return gap.square().sum(-1).mean(0).numpy()

    written = generate(soft, symbols, steps, schedule="never", feedback="raw", temperature=0)
    found = {
        "soft": squares(torch.stack([one.inputs for one in written]).double() - should),
        "unconditional": squares(anywhere - should),
    }
    seeds = range(seed, seed + len(symbols) * chains)
    prompts = [symbol for symbol in symbols for _ in range(chains)]
    written = generate(hard, prompts, steps, collapse="barycentric", seed=seeds)
    for name in ("symbols", "vectors"):
        paths = [one.vectors if name == "vectors" else one.inputs for one in written]
        paths = torch.stack(paths).double().unflatten(0, (len(symbols), chains))  # (V, N, K, m)
        spread = paths.var(1).sum(-1)  # (V, K)
        # the mean of the sample is itself off by spread / chains
        bias = squares(paths.mean(1) - should) - spread.mean(0).numpy() / chains
        found |= {f"{name}_bias": bias.clip(0), f"{name}_spread": spread.mean(0).numpy()}
    return pd.DataFrame(found, index=pd.RangeIndex(1, steps + 1, name="k"))


def worth(frame: pd.DataFrame, of: str = "vectors") -> pd.Series:
    """How many hard chains forecast as well as the soft one, by k; inf where no number does."""
    left = (frame["soft"] - frame[f"{of}_bias"]).clip(lower=0)
    return frame[f"{of}_spread"] / left.where(left > 0, 0.0)
