"""What every objective has: a head, a loss, and the steps from the head's output to a `Prediction`.

    hidden (N, d) --output--> output (N, out) --vector--> soft token (N, m)
                  --readout--> log p(w | prefix) (N, V)

An objective gets the body's hidden states and the table E (V, m). How its vector is turned into
probabilities is a separate choice, the readout (readouts.py).
"""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...core.predictor import Prediction
from ...core.registry import Registry
from ..by_row import product, single
from .readouts import READOUTS

OBJECTIVES = Registry("objective")
names = OBJECTIVES.names


class Objective(nn.Module):
    """Base class of the objectives.

    `readouts` names the readouts that make sense, the default first. `linear`: whether the soft
    token is the head's output itself. `noise_dim`: how many normal numbers a draw needs (0: the
    objective predicts one vector, not a distribution over vectors).
    """

    readouts: tuple[str, ...] = ("tau", "affine", "barycentric")
    linear = False
    noise_dim = 0

    def __init__(
        self, d_model: int, vocab_size: int, embedding_dim: int, *, out_dim: int | None = None
    ):
        super().__init__()
        self.embedding_dim = embedding_dim
        self.head = nn.Linear(d_model, out_dim or embedding_dim, bias=False)
        # zeros: the first prediction is uniform, and the first loss is that of a uniform guess
        nn.init.zeros_(self.head.weight)
        self.readout = READOUTS.make(self.readouts[0], vocab_size, embedding_dim)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the first weights, for objectives that do not start at zero."""

    def output(self, hidden: Float[Tensor, "N d"]) -> Float[Tensor, "N out"]:
        """The head's output (N, out), in float32 at least.

        It uses a product instead of calling the module, which would double the cost.
        """
        return single(product(hidden, self.head.weight.T))

    def loss(
        self,
        hidden: Float[Tensor, "B T d"],
        target_ids: Int[Tensor, "B T"],
        table: Float[Tensor, "V m"],
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """The mean training loss over B rows of T positions; `generator` draws the noise, if any.

        This method is for losses that treat each position by itself. Other losses override it.
        """
        return self.losses(
            self.output(hidden.flatten(0, 1)), target_ids.flatten(), table, generator
        ).mean()

    def losses(
        self,
        output: Float[Tensor, "N out"],
        target_ids: Int[Tensor, " N"],
        table: Tensor,
        generator: torch.Generator,
    ) -> Float[Tensor, " N"]:
        """The loss of each position (N,)."""
        raise NotImplementedError

    def vector(
        self, output: Float[Tensor, "N out"], table: Float[Tensor, "V m"]
    ) -> Float[Tensor, "N m"]:
        """The soft token (N, m): the mean, if the prediction is a distribution over vectors."""
        return output

    def scores(
        self, output: Float[Tensor, "N out"], table: Float[Tensor, "V m"]
    ) -> Float[Tensor, "N V"]:
        """log p(w | prefix) up to one constant per row (N, V).

        Only for objectives that define it without a fitted readout.
        """
        raise NotImplementedError

    def affine_scores(
        self, table: Float[Tensor, "V m"]
    ) -> tuple[Float[Tensor, "out V"], Float[Tensor, " V"]] | None:
        """(matrix, bias) if scores are output @ matrix + bias, up to row constants; else None."""
        return None

    def draw(
        self,
        output: Float[Tensor, "N out"],
        noise: Float[Tensor, "S _ k"],
        table: Float[Tensor, "V m"],
    ) -> Float[Tensor, "S N m"]:
        """S vectors per position from the predicted distribution, (S, N, m).

        `noise` is (S, N, k) with k = `noise_dim`, or (S, 1, k) for the same noise in every row.
        """
        raise NotImplementedError

    def predict(self, hidden: Float[Tensor, "N d"], table: Float[Tensor, "V m"]) -> Prediction:
        """The prediction of each of N positions: p(w | prefix) and the soft token."""
        output = self.output(hidden)
        vector = self.vector(output, table)
        log_probs, probs = self.readout.read(self, output, vector, table)
        return Prediction(
            log_probs,
            vector,
            partial(self._sample, output, table) if self.noise_dim else None,
            probs,
        )

    def _sample(
        self,
        output: Tensor,
        table: Tensor,
        n: int,
        generator: torch.Generator | Sequence[torch.Generator],
    ) -> Tensor:
        return self.draw(output, normal((n, len(output), self.noise_dim), generator, output), table)

    def affine_logits(
        self, table: Float[Tensor, "V m"]
    ) -> tuple[Float[Tensor, "d V"], Float[Tensor, " V"]] | None:
        """(weight, bias) if p(w | prefix) is softmax(hidden @ weight + bias); else None."""
        found = self.readout.affine(self, table)
        return None if found is None else (self.head.weight.T @ found[0], found[1])

    def calibrate(
        self,
        hidden: Float[Tensor, "N d"],
        target_ids: Int[Tensor, " N"],
        table: Float[Tensor, "V m"],
    ) -> None:
        """Fit the readout's parameters, if it has any. Never fit them on validation text."""
        output = self.output(hidden)
        self.readout.calibrate(self, output, self.vector(output, table), target_ids, table)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Accept checkpoints from before readouts were modules: their tau is beside the head."""
        if prefix + "log_tau" in state_dict and not hasattr(self, "log_tau"):
            state_dict[prefix + "readout.log_tau"] = state_dict.pop(prefix + "log_tau")
        super()._load_from_state_dict(state_dict, prefix, *args)


def make_objective(
    spec: str, readout: str | None, d_model: int, vocab_size: int, embedding_dim: int
) -> Objective:
    """The objective that `spec` names, such as "energy" or "mixture(8)", with a readout.

    Args:
        spec: name and arguments of the objective.
        readout: name and arguments of the readout; None: the objective's default.
        d_model: the width of the hidden states.
        vocab_size: V.
        embedding_dim: m, the width of the table.

    Raises:
        ValueError: where a name is unknown, an argument is wrong, or the readout makes no sense for
            the objective.
    """
    objective = OBJECTIVES.make(spec, d_model, vocab_size, embedding_dim)
    if readout is not None:
        name = READOUTS.name_of(readout)
        if name not in objective.readouts:
            known = ", ".join(objective.readouts)
            raise ValueError(
                f"objective {spec!r} cannot be read by {name!r}; its readouts: {known}"
            )
        objective.readout = READOUTS.make(readout, vocab_size, embedding_dim)
    return objective


def normal(
    shape: tuple[int, ...], generator: torch.Generator | Sequence[torch.Generator], like: Tensor
) -> Float[Tensor, "..."]:
    """Normal numbers in the type and on the device of `like`, drawn on the generator's device.

    With a sequence of generators, each draws one entry of the second axis.
    """
    if isinstance(generator, Sequence):
        return torch.stack([normal((shape[0], *shape[2:]), one, like) for one in generator], 1)
    return torch.randn(shape, generator=generator, device=generator.device).to(like)
