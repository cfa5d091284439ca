"""Soft tokens among the training inputs (K7), made in a first pass and read in a second one.

    pass 1, without gradient: hard tokens in -> a prediction of each of them
    pass 2, the one that learns: soft tokens made from those predictions in -> the usual loss

Both passes are parallel over the positions. A member is a callable ``(prediction, token_ids (N,),
table (V, m), done, generator) -> vectors (N, m)``. `prediction` is what pass 1 predicted for each
input token before reading it. `done` is the share of the training that is over.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..core.checks import whole_number
from ..core.predictor import Prediction
from ..core.registry import Adapted, Registry
from ..models.simplex import posterior_dirichlet, posterior_gumbel, softened
from ..models.soft_ar import SoftAR


class SoftInputs:
    """Base of the members: what each of them declares.

    Attributes:
        passes: how many times soft tokens are made before the pass that learns; each time the model
            reads those made before.
    """

    passes: int = 1


class FunctionSoftInputs(Adapted, SoftInputs):
    """A function, or any other callable, as a member."""


SOFT_INPUTS = Registry(
    "soft_inputs", lambda one: one if isinstance(one, SoftInputs) else FunctionSoftInputs(one)
)
names = SOFT_INPUTS.names

REFIT = 50  # after so many steps the readout that pass 1 uses is fitted again


@SOFT_INPUTS.register("scheduled")
@dataclass(frozen=True)
class Scheduled(SoftInputs):
    """Two-pass scheduled sampling: a growing share of inputs is replaced by the predicted vector.

    The share grows linearly from 0 to `share` at the end. The vector is the model's mean, or one
    draw where the objective predicts a distribution. Such a vector holds nothing of the token it
    stands for, so the model learns to predict the marginal over all tokens that could have stood in
    its place. Where one soft token follows another, the second is predicted from the first only
    with more `passes`: a run of k needs k.

    Raises:
        ValueError: unless share lies in [0, 1] and passes is a whole number of at least 1.

    Source: arXiv 1906.04331.
    """

    share: float | int = 0.5
    passes: int = 1

    def __post_init__(self):
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must lie in [0, 1], not {self.share!r}")
        object.__setattr__(self, "passes", whole_number("passes", self.passes))

    def __call__(self, prediction, token_ids, table, done, generator):
        soft = (
            prediction.vector
            if prediction.sampler is None
            else prediction.sample_vectors(1, generator)[0]
        )
        replaced = torch.rand(len(token_ids), 1, generator=generator) < self.share * done
        return torch.where(replaced.to(table.device), soft.detach(), F.embedding(token_ids, table))


@SOFT_INPUTS.register("posterior-gumbel")
@dataclass(frozen=True)
class PosteriorGumbel(SoftInputs):
    """Every input is softmax((log p + g) / temperature) E, with g under which the true token wins.

    g is Gumbel noise, drawn given that the true token has the largest entry. So each soft token
    still tells which symbol it stands for. Over the language it is distributed as the Gumbel
    feedback at generation is: the model reads in training what it will read of itself.

    Raises:
        ValueError: unless temperature is above 0 and finite.
    """

    temperature: float | int = 1.0

    def __post_init__(self):
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0, not {self.temperature!r}")

    def __call__(self, prediction, token_ids, table, done, generator):
        shape = prediction.log_probs.shape
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64).to(table.device)
        perturbed = posterior_gumbel(prediction.log_probs, token_ids, uniform)
        return softened(perturbed, self.temperature) @ table


@SOFT_INPUTS.register("posterior-dirichlet")
@dataclass(frozen=True)
class PosteriorDirichlet(SoftInputs):
    """Every input is wE, with w from Dirichlet(concentration · p + one-hot of the true token).

    Over the language w is distributed as Dirichlet(concentration · p), whose mean is p. The
    concentration is a dial: towards 0 each input is its token's row, so w tells the token; where it
    is large, w is p and tells nothing.

    Raises:
        ValueError: unless concentration is above 0 and finite.
    """

    concentration: float | int = 1.0

    def __post_init__(self):
        if not 0 < self.concentration < math.inf:
            raise ValueError(f"concentration must be above 0, not {self.concentration!r}")

    def __call__(self, prediction, token_ids, table, done, generator):
        shape = prediction.log_probs.shape
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64).to(table.device)
        weights = posterior_dirichlet(prediction.log_probs, token_ids, uniform, self.concentration)
        return weights @ table


def soft_rows(
    model: SoftAR,
    token_ids: Int[Tensor, "B T"],
    how: SoftInputs,
    done: float,
    generator: torch.Generator,
    memory: Float[Tensor, "B M d"] | None = None,
) -> Float[Tensor, "B T m"]:
    """Soft tokens (B, T, m) for the input tokens (B, T): the passes before the one that learns.

    There are `how.passes` of them. Each reads what the one before made, replaced in the same places
    with the same draws. In bf16 training only the body is bf16: predictions and soft tokens are
    float32, as in the loss and in generation.

    In a structured window (K8) only the newest tokens may be soft. So the last tokens of a row are
    soft, and the others stay hard.

    Args:
        model: the model as trained so far.
        token_ids: the hard tokens (B, T).
        how: a member of SOFT_INPUTS.
        done: the share of the training that is over.
        generator: draws the noise.
        memory: the memory slots, as in `SoftAR.hidden_states`.

    Raises:
        ValueError: where a prediction is NaN, so that no member meets one.
    """
    newest = model.config.layout and model.config.layout.newest(model.config.context)
    hard = 0 if newest is None else max(0, token_ids.shape[1] - newest)
    inputs, draws = F.embedding(token_ids, model.table.weight), generator.get_state()
    for _ in range(how.passes):
        with torch.no_grad():
            hidden = (
                model.hidden_states(vectors=inputs[:, :-1], memory=memory).flatten(0, 1).float()
            )
        with torch.autocast(token_ids.device.type, enabled=False):
            with torch.no_grad():
                prediction: Prediction = model.objective.predict(hidden, model.table.weight)
            if prediction.log_probs.isnan().any():
                raise ValueError("a prediction that soft tokens are made of is not finite")
            generator.set_state(draws)
            soft = how(prediction, token_ids.flatten(), model.table.weight, done, generator)
        soft = soft.unflatten(0, token_ids.shape)
        inputs = torch.cat([inputs[:, :hard], soft[:, hard:]], 1) if hard else soft
    return inputs
