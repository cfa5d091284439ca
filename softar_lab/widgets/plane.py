"""Plane: the latest steps of a path among the symbols, with the share that the picture holds."""

from pathlib import Path

import anywidget
import traitlets
from jaxtyping import Float
from torch import Tensor

from .. import plots
from ..core.predictor import Predictor
from ..core.trajectory import Trajectory
from ..metrics.pca import PCABasis
from ..models.simplex import barycentric

FEW = 8  # a table of at most so many symbols is well drawn in a plane


class Plane(anywidget.AnyWidget):
    """At most six steps of a path in the plane in which a table varies most.

    Dotted spokes lead to the symbols of the mixture that is nearest to the present soft token. All
    of it is one synced trait (`plane`).
    """

    _esm = Path(__file__).with_suffix(".js")
    plane = traitlets.Dict().tag(sync=True)

    def __init__(self):
        self._table: Float[Tensor, "V m"] | None = None
        self._basis: PCABasis | None = None
        super().__init__()

    def show(self, trajectory: Trajectory, model: Predictor, step: int) -> None:
        """Show one step of a trajectory of a model with an embedding table."""
        table = model.embedding
        if table is not self._table:
            self._table, self._basis = table, PCABasis.fit(table, 2)
        vector, rows = trajectory.vectors[step : step + 1], table.detach().cpu().float()
        weights = barycentric(vector, rows)[0]
        off = float((vector[0] - weights @ rows).norm())
        self.plane = plots.plane_state(trajectory, self._basis, rows, weights, off, step)


def suits(model: Predictor) -> bool:
    """Whether a plane is worth showing at once: for few symbols, or for a large table.

    Between them, letters seem to lie beside each other that do not.
    """
    table = model.embedding
    return table is not None and not FEW < len(table) < plots.MANY
