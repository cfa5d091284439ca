"""A fixed plane for pictures of vectors among the symbols (K2), fitted once per embedding table.

One plane per table makes all pictures of paths comparable.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from sklearn.decomposition import PCA
from torch import Tensor

SAMPLE = 4096  # number of rows used to fit a larger table, evenly spread


@dataclass(frozen=True)
class PCABasis:
    """The leading principal directions of a table, fitted once and used for every picture of it.

    Shapes: mean (m,); components (k, m); explained (k,), each direction's share of the rows'
    variance. Signs follow a rule of this module (the entry of largest size is positive), so that
    pictures do not flip between versions of the library. Orthonormal rows have no leading
    directions: every plane through them is as good as another.
    """

    mean: Float[Tensor, " m"]
    components: Float[Tensor, "k m"]
    explained: Float[Tensor, " k"]

    @classmethod
    def fit(cls, table: Float[Tensor, "V m"], n_components: int = 3) -> "PCABasis":
        """Fit on the rows of a table (V, m), or on `SAMPLE` evenly spread rows of a larger one.

        Raises:
            ValueError: where there are fewer rows or columns than directions, all rows are alike,
                or the table holds NaN.
        """
        some = np.linspace(0, len(table) - 1, min(len(table), SAMPLE)).astype(int)
        rows = table.detach()[torch.from_numpy(some).to(table.device)].cpu().double().numpy()
        if min(rows.shape) < n_components:
            raise ValueError(
                f"a table of shape {tuple(rows.shape)} has no {n_components} principal directions"
            )
        if (rows == rows[0]).all():
            raise ValueError("all rows of the table are alike, so none of its directions leads")
        pca = PCA(n_components, svd_solver="full").fit(rows)
        largest = np.abs(pca.components_).argmax(axis=1)
        signs = np.sign(pca.components_[np.arange(n_components), largest])
        components = torch.from_numpy(pca.components_ * signs[:, None]).float()
        explained = torch.from_numpy(pca.explained_variance_ratio_).float()
        return cls(torch.from_numpy(pca.mean_).float(), components, explained)

    def transform(self, vectors: Float[Tensor, "*n m"]) -> Float[Tensor, "*n k"]:
        """Coordinates (…, k) of vectors (…, m) in the basis."""
        return (vectors.detach().cpu().float() - self.mean) @ self.components.T
