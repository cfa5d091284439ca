"""How well what lies ahead is known (K24), and what an early exit costs (K25), against the truth."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.predictor import divergence
from ..data.languages.language import Language
from ..models.exit_heads import exit_heads_of
from ..models.levels import Span
from ..models.soft_ar import SoftAR

SHARES = 1000  # points of the control's curve


@torch.inference_mode()
def excess_ahead(model: SoftAR, truth: Language, token_ids: Int[Tensor, "B T"]) -> pd.DataFrame:
    """What each reading of a model loses against the truth, exactly: the mean KL(q || p).

    q is the exact law of a symbol in the reading's span, given the tokens before; so no chance but
    that of the rows is in the figures.

    Args:
        model: with or without levels.
        truth: the language of the rows, with the model's symbols.
        token_ids: rows from the language's start, at most the model's context long.

    Returns:
        One row per reading: layer, first, last, floor (the entropy of q) and excess, in bits. The
        model's own prediction of the next symbol is the row of its last layer, 1 to 1, whose
        column `of` is "objective"; others are "levels".
    """
    # 1) the truth at every horizon that is read
    top, table = Span(model.config.n_layers, 1, 1), model.table.weight
    spans = [top, *(model.levels.spans if model.levels else [])]
    horizons = sorted({k for span in spans for k in range(span.first, span.last + 1)})
    laws = dict(zip(horizons, truth.ahead_probs(token_ids, horizons), strict=True))  # (B, T, V)
    # 2) the model, at the same positions
    states = [state.flatten(0, 1) for state in model.layer_states(token_ids[:, :-1])]
    read = [("objective", top, model.objective.predict(states[-1], table).log_probs)]
    if model.levels:
        read += [("levels", *one) for one in model.levels.log_probs(states, table).items()]
    # 3) the figures
    rows = []
    for of, span, log_probs in read:
        places = range(span.first, span.last + 1)
        law = sum(laws[k] for k in places).flatten(0, 1) / len(places)
        rows.append(
            {
                "of": of,
                "layer": span.layer,
                "first": span.first,
                "last": span.last,
                "floor": torch.special.entr(law).sum(-1).mean().item() / math.log(2),
                "excess": divergence(law.log(), log_probs).mean().item() / math.log(2),
            }
        )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Layers:
    """What every layer of a model says at N positions of a text, read at full depth.

    Attributes:
        log_probs: (layers, N, V), in nats; the last layer is the model's own prediction.
        target_ids: the symbols that stand there (N,).
    """

    log_probs: Float[Tensor, "layers N V"]
    target_ids: Int[Tensor, " N"]

    @classmethod
    @torch.inference_mode()
    def of(cls, model: SoftAR, token_ids: Int[Tensor, "B T"]) -> "Layers":
        """Read rows of tokens (B, T) with a model that has exit heads."""
        heads = exit_heads_of(model)
        states = [state.flatten(0, 1) for state in model.layer_states(token_ids[:, :-1])]
        read = [heads.log_probs(layer, state) for layer, state in enumerate(states[:-1], 1)]
        read.append(model.objective.predict(states[-1], model.table.weight).log_probs)
        return cls(torch.stack(read), token_ids.flatten())

    @property
    def losses(self) -> Float[Tensor, "layers N"]:
        """Bits that each symbol costs when a layer predicts it."""
        ids = self.target_ids.expand(len(self.log_probs), -1)[..., None]
        return -self.log_probs.gather(-1, ids)[..., 0] / math.log(2)

    @property
    def regret(self) -> Float[Tensor, "layers N"]:
        """KL(top layer || layer) in bits: what an exit there loses if the top layer is right."""
        top = self.log_probs[-1:].expand_as(self.log_probs)
        return divergence(top, self.log_probs).float() / math.log(2)


def exit_curve(
    confidence: Float[Tensor, "below N"], losses: Float[Tensor, "layers N"]
) -> pd.DataFrame:
    """Share of layers saved against bits lost, over all thresholds.

    A position leaves at the first layer whose confidence is at least the threshold, and at the last
    layer otherwise.

    Args:
        confidence: of each layer but the last (layers - 1, N).
        losses: bits per symbol where each layer speaks (layers, N).

    Returns:
        Columns threshold, saved (share of layers not computed) and lost (bits per symbol against
        the last layer), by falling threshold.
    """
    depth, rows = len(losses), []
    best = confidence.flatten().sort(descending=True).values
    picked = best[torch.linspace(0, len(best) - 1, 200).long()]
    for threshold in [math.inf, *picked.tolist()]:
        leaves = confidence >= threshold
        at = torch.where(leaves.any(0), leaves.float().argmax(0), depth - 1)
        rows.append(_point(threshold, at, losses))
    return pd.DataFrame(rows)


def oracle_curve(losses: Float[Tensor, "layers N"]) -> pd.DataFrame:
    """The best that any choice of one layer per position can do, knowing what each would lose.

    At a price per layer, each position takes the layer with the least loss plus price; prices from
    0 up give the lower convex hull of all choices. Columns are those of `exit_curve`, with the
    price as threshold.
    """
    depth, rows = len(losses), []
    cost = torch.arange(1, depth + 1)[:, None] / depth
    for price in [0.0, *np.geomspace(1e-4, 30, 120)]:
        # among equals the last layer: at price 0 nothing is given away
        at = depth - 1 - (losses + price * cost).flip(0).argmin(0)
        rows.append(_point(price, at, losses))
    return pd.DataFrame(rows)


def random_curve(losses: Float[Tensor, "layers N"]) -> pd.DataFrame:
    """The control: every position leaves at a layer drawn regardless of what it reads.

    Between two layers' mean losses the mixture is linear; the best mixture for each share is the
    lower convex hull of the layers' means. Shares are `SHARES` equal steps apart.
    """
    depth = len(losses)
    shares = 1 - np.arange(1, depth + 1) / depth  # falling
    means = (losses.double().mean(1) - losses[-1].double().mean()).tolist()
    saved = np.linspace(0, shares[0], SHARES + 1)
    lines = [
        _line(saved, shares[i], means[i], shares[j], means[j])
        for i in range(depth)
        for j in range(i, depth)
    ]
    return pd.DataFrame({"threshold": math.nan, "saved": saved, "lost": np.min(lines, 0)})


def _line(x: np.ndarray, right: float, high: float, left: float, low: float) -> np.ndarray:
    """The line from (left, low) to (right, high) at x; infinite outside."""
    between = np.interp(x, [left, right], [low, high])
    return np.where((left - 1e-9 <= x) & (x <= right + 1e-9), between, math.inf)


def saved_at(curve: pd.DataFrame, lost: float) -> float:
    """The largest share of layers that a curve saves for at most `lost` bits per symbol."""
    return float(curve.loc[curve["lost"] <= lost + 1e-9, "saved"].max())


def _point(threshold: float, at: Int[Tensor, " N"], losses: Tensor) -> dict[str, float]:
    """One row of a curve, where position n leaves at layer at[n], counted from 0."""
    taken = losses.gather(0, at[None])[0]
    return {
        "threshold": float(threshold),
        "saved": 1 - (at.double() + 1).mean().item() / len(losses),
        "lost": (taken.double() - losses[-1].double()).mean().item(),
    }
