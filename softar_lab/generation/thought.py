"""What a schedule or a feedback gets to see at one step."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from ..predictor import Prediction


@dataclass(frozen=True)
class Thought:
    """One step of B rows: `step` (B,) counts from 0 after each row's prompt; `token_ids` (B,) is what was collapsed to.

    `collapsed_probs` (B, V) is the distribution the collapse gave, before temperature; `embedding` is the table (V, m).
    """

    step: Int[Tensor, " B"]
    prediction: Prediction
    collapsed_probs: Float[Tensor, "B V"]
    token_ids: Int[Tensor, " B"]
    embedding: Float[Tensor, "V m"] | None
