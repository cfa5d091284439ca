"""Reading vectors with gradients, and soft tokens made from what a frozen model predicts (K7, K32).

It is the reading of `Pretrained.hidden_states` and `SoftAR.hidden_states`, by which adapters and
learned prompts are trained.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ...core.predictor import MixturePrediction, Predictor
from ...models.soft_ar import SoftAR
from ...training.soft_inputs import SOFT_INPUTS, PosteriorGumbel, SoftInputs
from .wrapper import Pretrained

# Their p has a gradient. The others read a vector as probabilities by a fitted or piecewise rule.
_LIKELIHOODS = ("ce", "metric", "anchored")
_TINY = 1e-30  # the least exponential variable: float32 divides by it


def check_trainable(model: Predictor) -> None:
    """Check that the likelihood of a text has a gradient in what the model reads.

    Raises:
        ValueError: for another kind of predictor, an objective without a likelihood, or a memory.
    """
    if isinstance(model, Pretrained):
        return
    if not isinstance(model, SoftAR):
        raise ValueError(
            f"a SoftAR or a pretrained model can be adapted, not a {type(model).__name__}"
        )
    objective = model.config.objective.partition("(")[0]
    if objective not in _LIKELIHOODS:
        raise ValueError(
            f"objective {objective!r} reads its vector by a rule that has no gradient; models with "
            f"{', '.join(_LIKELIHOODS)} can be adapted"
        )
    if model.memory is not None:
        raise ValueError("a model with a window memory cannot be adapted: give one without")


def states(model: Predictor, vectors: Float[Tensor, "B T m"]) -> Float[Tensor, "B slots d"]:
    """The hidden states before and after each of T vectors (B, T+1, d), with gradients."""
    if isinstance(model, SoftAR):
        return model.hidden_states(vectors=vectors)
    return model.states_with_gradients(vectors)


def log_probs(model: Predictor, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n V"]:
    """log p of hidden states (*n, d), in nats, with gradients: (*n, V)."""
    if isinstance(model, SoftAR):
        rows = hidden.reshape(-1, hidden.shape[-1])
        found = model.objective.predict(rows, model.table.weight).log_probs
        return found.unflatten(0, hidden.shape[:-1])
    return model.log_probs_with_gradients(hidden)


def soft_tokens(
    model: Predictor,
    token_ids: Int[Tensor, "B T"],
    chosen: Bool[Tensor, "B T"],
    how: str | SoftInputs,
    done: float,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "B T m"], Float[Tensor, "B slots d"]]:
    """The rows of a text in which the chosen tokens are soft, made in a first pass without gradient.

    Args:
        model: predicts each token from the hard tokens before it.
        token_ids: the text (B, T).
        chosen: which of them become soft (B, T).
        how: a member of `training.soft_inputs`.
        done: the share of the training that is over.
        generator: draws the noise.

    Returns:
        The vectors (B, T, m), and the hidden states of the first pass (B, T+1, d).
    """
    with torch.no_grad():
        table = model.embedding
        vectors = F.embedding(token_ids, table)
        hidden = states(model, vectors)
        ids = token_ids[chosen]
        if len(ids):
            found = log_probs(model, hidden[:, :-1][chosen])
            if (
                found.isnan().any()
            ):  # no member is asked; the loss is NaN, which whoever trains sees
                vectors[chosen] = math.nan
            else:
                vectors[chosen] = _soft(found, ids, table, SOFT_INPUTS.make(how), done, generator)
    return vectors, hidden


def _soft(
    log_p: Float[Tensor, "n V"],
    ids: Int[Tensor, " n"],
    table: Float[Tensor, "V m"],
    how: SoftInputs,
    done: float,
    generator: torch.Generator,
) -> Float[Tensor, "n m"]:
    if isinstance(how, PosteriorGumbel):
        race = torch.empty_like(log_p).exponential_(generator=generator)
        return posterior_weights(log_p, ids, how.temperature, race) @ table
    return how(MixturePrediction(log_p, table), ids, table, done, generator)


def posterior_weights(
    log_p: Float[Tensor, "n V"],
    ids: Int[Tensor, " n"],
    temperature: float | int,
    exponential: Float[Tensor, "n V"],
) -> Float[Tensor, "n V"]:
    """softmax((log p + g) / temperature) with Gumbel noise g under which the symbols `ids` win.

    It is `simplex.posterior_gumbel` without logarithms, for tens of thousands of symbols: with
    x_w = exp(-(log p_w + g_w)) the weights are x^(-1/temperature), normalised; the winner's x is an
    exponential variable e, another symbol's is e + e_w / p_w. All is relative to the winner's, so
    nothing overflows.

    Args:
        log_p: log p (n, V).
        ids: the winners (n,).
        temperature: above 0.
        exponential: exponential variables (n, V); `posterior_gumbel` takes exp(-e) of them.
    """
    waits = exponential.clamp_min(_TINY)
    winner = ids[:, None]
    ratio = waits / log_p.exp() / waits.gather(1, winner)  # (n, V)
    ratio = ratio.add_(1).scatter_(1, winner, 1.0)
    weights = ratio.pow_(-1 / temperature)
    return weights / weights.sum(-1, keepdim=True)


@torch.no_grad()
def nats_per_token(
    reader: Predictor,
    texts: Sequence[str],
    how: str | None = None,
    maker: Predictor | None = None,
    seed: int = 0,
) -> float:
    """What a model gives the tokens of texts when all that it reads of them is soft, in nats.

    Args:
        reader: reads the vectors. The first token of each text is read hard, and not scored.
        texts: each is read by itself, from its beginning.
        how: a member of `training.soft_inputs`; None: symbols.
        maker: predicts the tokens, and so makes the soft ones; None: the reader itself. Readers can
            be compared where one maker makes the same vectors for them.
        seed: draws the noise of each text.
    """
    found = []
    for i, text in enumerate(texts):
        ids = reader.tokenizer.encode(text)[None].to(reader.device)
        chosen = torch.full_like(ids[:, :-1], how is not None, dtype=torch.bool)
        chosen[:, 0] = False
        noise = torch.Generator(reader.device).manual_seed((seed * 1_000_003 + i) % 2**32)
        made = soft_tokens(
            maker or reader, ids[:, :-1], chosen, how or "scheduled(0.0)", 1.0, noise
        )
        log_p = log_probs(reader, states(reader, made[0])[:, 1:])
        found.append(log_p.gather(-1, ids[:, 1:, None]).flatten())
    return -float(torch.cat(found).mean())
