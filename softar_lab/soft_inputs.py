"""Soft tokens among the inputs of training (K7): what the second of two parallel passes reads in place of hard tokens.

    pass 1, without gradient: hard tokens in -> a prediction of each of them
    pass 2, the one that learns: soft tokens made from those predictions in -> the usual loss

A member is a callable ``(prediction, token_ids (N,), table (V, m), done, generator) -> vectors (N, m)``: `prediction`
is what pass 1 said of each input token before it read it, `done` the share of the training that lies behind.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from .models.soft_ar import SoftAR
from .predictor import Prediction
from .registry import Registry

SOFT_INPUTS = Registry("soft_inputs")
names = SOFT_INPUTS.names

REFIT = 50  # steps after which the readout that pass 1 speaks through is fitted again


@SOFT_INPUTS.register("scheduled")
@dataclass(frozen=True)
class Scheduled:
    """Two-pass scheduled sampling (arXiv 1906.04331): a growing share of inputs is replaced by the predicted vector.

    `share` is reached at the end, in a straight line from 0. The vector is the model's mean, or one draw of an
    objective that predicts a distribution. Read like this it knows nothing of the token it stands for, so the model
    learns to predict the marginal over all that could have stood there. Where one soft token follows another, the
    second is predicted from the first only if there are more `passes`: a run of k needs k.
    """

    share: float | int = 0.5
    passes: int = 1

    def __post_init__(self):
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must lie in [0, 1], not {self.share!r}")
        if not isinstance(self.passes, int) or isinstance(self.passes, bool) or self.passes < 1:
            raise ValueError(f"passes must be a whole number of at least 1, not {self.passes!r}")

    def __call__(self, prediction, token_ids, table, done, generator):
        soft = prediction.vector if prediction.sampler is None else prediction.sample_vectors(1, generator)[0]
        replaced = torch.rand(len(token_ids), 1, generator=generator) < self.share * done
        return torch.where(replaced.to(table.device), soft.detach(), F.embedding(token_ids, table))


@SOFT_INPUTS.register("posterior-gumbel")
@dataclass(frozen=True)
class PosteriorGumbel:
    """Every input is softmax((log p + g) / temperature) E, the Gumbel noise g drawn given that the true token wins.

    So each soft token still says which symbol it stands for, and over the language it is distributed as the Gumbel
    feedback at generation is: what the model reads in training is what it will read of itself.
    """

    temperature: float | int = 1.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature!r}")

    def __call__(self, prediction, token_ids, table, done, generator):
        shape = prediction.log_probs.shape
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64).to(table.device)
        perturbed = posterior_gumbel(prediction.log_probs, token_ids, uniform)
        return torch.softmax(perturbed / self.temperature, dim=-1) @ table


def posterior_gumbel(
    log_probs: Float[Tensor, "N V"], token_ids: Int[Tensor, " N"], uniform: Float[Tensor, "N V"]
) -> Float[Tensor, "N V"]:
    """log p + g with standard Gumbel noise g, given that `token_ids` have the largest entry of their row.

    Where the ids are drawn from p the result is that of plain Gumbel noise, symbol and noise coupled (Gumbel-max).
    Shapes: (N, V), (N,), `uniform` numbers in [0, 1) (N, V) -> (N, V). The largest of all is a Gumbel variable of its
    own, whichever symbol it is; the others are Gumbel variables cut off at it (Maddison et al., arXiv 1411.0030).
    """
    gumbel = -(-uniform.double().clamp_min(1e-300).log()).log()  # (N, V)
    winner = token_ids[:, None]
    best = gumbel.gather(1, winner)  # (N, 1): p sums to 1, so the largest has location 0
    others = -torch.logaddexp(-best, -(log_probs.double() + gumbel))
    return others.scatter(1, winner, best).to(log_probs.dtype)


def soft_rows(
    model: SoftAR,
    token_ids: Int[Tensor, "B T"],
    how: Any,
    done: float,
    generator: torch.Generator,
    memory: Float[Tensor, "B M d"] | None = None,
) -> Float[Tensor, "B T m"]:
    """Pass 1, or all `how.passes` of them but the last: soft tokens for the input tokens (B, T) -> (B, T, m), by `how`.

    Each pass reads what the one before made, replaced in the same places with the same draws. In bf16 training only
    the body is bf16: predictions and soft tokens are float32, as in the loss and in generation.

    In a structured window only the newest of its tokens may be soft (K7a); so the last ones of a row are, the others
    stay hard. `memory` as in `SoftAR.hidden_states`.
    """
    newest = model.config.layout and model.config.layout.newest(model.config.context)
    hard = 0 if newest is None else max(0, token_ids.shape[1] - newest)
    inputs, draws = F.embedding(token_ids, model.table.weight), generator.get_state()
    for _ in range(getattr(how, "passes", 1)):
        with torch.no_grad():
            hidden = model.hidden_states(vectors=inputs[:, :-1], memory=memory).flatten(0, 1).float()
        with torch.autocast(token_ids.device.type, enabled=False):
            with torch.no_grad():
                prediction: Prediction = model.objective.predict(hidden, model.table.weight)
            generator.set_state(draws)
            soft = how(prediction, token_ids.flatten(), model.table.weight, done, generator)
        soft = soft.unflatten(0, token_ids.shape)
        inputs = torch.cat([inputs[:, :hard], soft[:, hard:]], 1) if hard else soft
    return inputs
