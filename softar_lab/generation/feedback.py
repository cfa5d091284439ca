"""What goes back in when a soft token is not collapsed (K2)? A feedback is a callable ``thought -> vectors (B, m)``."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..models.by_row import product
from ..predictor import MixturePrediction
from ..registry import Registry
from ..soft_inputs import posterior_gumbel
from .collapse import nearest, soft_tokens
from .thought import Thought

FEEDBACKS = Registry("feedback")
register, names, resolve = FEEDBACKS.register, FEEDBACKS.names, FEEDBACKS.resolve


def mixture(probs: Float[Tensor, "B V"], embedding: Float[Tensor, "V m"]) -> Float[Tensor, "B m"]:
    """The probability-weighted mean of the rows, pE: (B, V) @ (V, m) -> (B, m)."""
    return product(probs, embedding)


@register("mixture")
@dataclass(frozen=True)
class Mixture:
    """pE with the model's own p(w | prefix): Soft Thinking's concept token (arXiv 2505.15778).

    `temperature` sharpens p below 1 and flattens it above; `top_k` then keeps the k most probable symbols alone, scaled
    to sum to 1 (the paper: 0.6 and 30).
    """

    temperature: float | int = 1.0
    top_k: int | None = None

    def __post_init__(self):
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"mixture(temperature) needs a number above 0, not {self.temperature!r}")
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise ValueError(f"mixture(temperature, top_k) needs a whole top_k of at least 1, not {self.top_k!r}")

    def __call__(self, thought: Thought) -> Float[Tensor, "B m"]:
        prediction, table = thought.prediction, thought.embedding
        if self.top_k is not None and self.top_k < len(table):
            best = prediction.log_probs.topk(self.top_k)
            weights = torch.softmax(best.values / self.temperature, dim=-1)  # (B, k)
            return (weights[..., None] * table[best.indices]).sum(1)  # (B, k, 1) * (B, k, m)
        if self.temperature != 1:
            return mixture(torch.softmax(prediction.log_probs / self.temperature, dim=-1), table)
        return prediction.vector if isinstance(prediction, MixturePrediction) else mixture(prediction.probs, table)


@register("raw")
@dataclass(frozen=True)
class Raw:
    """The predicted vector y itself, on the hull of the table or off it."""

    def __call__(self, thought: Thought) -> Float[Tensor, "B m"]:
        return thought.prediction.vector


@register("gumbel")
@dataclass(frozen=True)
class GumbelSoft:
    """softmax((log p + g) / temperature) E, the Gumbel noise g drawn given that the symbol shown wins.

    A soft token that leans towards what was said. For symbols drawn from p (collapse "softmax" at temperature 1) it is
    plain Gumbel noise; towards temperature 0 it becomes the symbol's own row.
    """

    temperature: float | int = 1.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"gumbel(temperature) needs a temperature above 0, not {self.temperature!r}")

    def __call__(self, thought: Thought) -> Float[Tensor, "B m"]:
        log_probs = thought.prediction.log_probs
        perturbed = posterior_gumbel(log_probs, thought.token_ids, thought.uniform(log_probs.shape[-1]))
        return mixture(torch.softmax(perturbed / self.temperature, dim=-1), thought.embedding)


@register("norm-restored")
@dataclass(frozen=True)
class NormRestored:
    """pE made as long as the rows it mixes are in the mean, sum p|e|: a mixture is shorter, so positions outweigh it.

    A mixture of length 0 has no direction and stays where it is.
    """

    def __call__(self, thought: Thought) -> Float[Tensor, "B m"]:
        probs, mixed = thought.prediction.probs, mixture(thought.prediction.probs, thought.embedding)
        length = product(probs, thought.embedding.norm(dim=-1, keepdim=True))  # (B, 1)
        return mixed * (length / mixed.norm(dim=-1, keepdim=True).clamp_min(1e-12))


@register("sampled")
@dataclass(frozen=True)
class Sampled:
    """Mixture of Inputs (arXiv 2505.14827): wE with w = (H p + (beta + 1 - H) y) / (beta + 1), y the symbol shown.

    H is the entropy of p over ln V. The surer the model, or the larger `beta`, the more weight the symbol has.
    """

    beta: float | int = 1.0

    def __post_init__(self):
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"sampled(beta) needs a number of at least 0, not {self.beta!r}")

    def __call__(self, thought: Thought) -> Float[Tensor, "B m"]:
        probs, shown = thought.prediction.probs, thought.embedding[thought.token_ids]  # (B, V), (B, m)
        entropy = thought.prediction.entropy[:, None] / max(math.log(probs.shape[-1]), 1e-12)
        weight = entropy / (self.beta + 1)
        return weight * mixture(probs, thought.embedding) + (1 - weight) * shown


@register("hidden")
@dataclass(frozen=True)
class Hidden:
    """The body's last hidden state goes back in (Coconut, arXiv 2412.06769): the vector read most like it.

    The model reads R^m through a linear map; where m is less than the body's width, part of the state is lost.
    Raises ValueError for a model that is not a SoftAR.
    """

    def __call__(self, thought: Thought) -> Float[Tensor, "B m"]:
        inverse = thought.session.inverse  # (d, m)
        return product(thought.state.hidden, inverse)


# -- controls: what a soft token must be better than ------------------------------------------------------------------


@register("shown")
@dataclass(frozen=True)
class Shown:
    """The row of the symbol shown: hard tokens wherever a schedule would leave a soft one.

    The same-rule hard control: with the same rule and the same temperatures, what is left of a gain is the rule's.
    """

    def __call__(self, thought: Thought) -> Float[Tensor, "B m"]:
        return thought.embedding[thought.token_ids]


@register("mean")
@dataclass(frozen=True)
class Mean:
    """The mean of all rows, whatever was predicted: a mixture's place among the rows without anything it says."""

    def __call__(self, thought: Thought) -> Float[Tensor, "B m"]:
        return thought.embedding.mean(0).expand(len(thought.token_ids), -1)


@register("other")
@dataclass(frozen=True)
class Other:
    """The mixture pE of the row before in the batch (the first takes the last's): a soft token of another text.

    As long, as sharp and as likely as the own one, but not about this text. Only here does a row depend on its
    neighbours, so give prompts or seeds that differ. Raises ValueError for a batch of one.
    """

    def __call__(self, thought: Thought) -> Float[Tensor, "B m"]:
        probs = thought.prediction.probs
        if len(probs) < 2:
            raise ValueError('feedback "other" takes the soft tokens of another row: give at least 2 prompts')
        return mixture(probs.roll(1, dims=0), thought.embedding)


@register("nearest")
@dataclass(frozen=True)
class Nearest:
    """The row closest to the predicted vector: what the soft token says with all that lies between the rows taken off.

    Raises ValueError for a model without vectors.
    """

    def __call__(self, thought: Thought) -> Float[Tensor, "B m"]:
        vectors = soft_tokens('feedback "nearest"', thought.prediction, thought.embedding)
        return thought.embedding[nearest(vectors, thought.embedding)]


@register("pause")
@dataclass(frozen=True)
class Pause:
    """One fixed vector that stands for no symbol, as long as the rows in the mean: one more slot to think in, no more.

    Its direction is drawn by `seed`; what the rows span is taken off it, unless they span everything. No model here
    has been trained to pause, so this is the untrained relative of a pause token (arXiv 2310.02226).
    """

    seed: int = 0

    def __call__(self, thought: Thought) -> Float[Tensor, "B m"]:
        memory, key = ({} if thought.session is None else thought.session.memory), f"pause {self.seed}"
        if key not in memory:
            memory[key] = self._vector(thought.embedding)
        return memory[key].expand(len(thought.token_ids), -1)

    def _vector(self, table: Float[Tensor, "V m"]) -> Float[Tensor, " m"]:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(table.shape[1], generator=generator, dtype=torch.float64).to(table.device)
        rows = table.double()
        spanned = rows.T @ rows if len(rows) > 4 * rows.shape[1] else rows  # the same span, of a table of any height
        free = drawn - torch.linalg.pinv(spanned) @ (spanned @ drawn)  # the part of it that no row has
        direction = free if free.norm() > 1e-6 * drawn.norm() else drawn
        paused = direction / direction.norm() * rows.norm(dim=-1).mean()
        return paused.to(table)
