"""A fixed plane for pictures of vectors among the symbols (K2), fitted once per embedding table.

One plane per table makes all pictures of paths comparable.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
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

        A table of fewer rows or columns than `n_components` has no further directions: these are
        zero, and so are the coordinates along them.

        Raises:
            ValueError: where all rows are alike, or the table holds NaN.
        """
        some = np.linspace(0, len(table) - 1, min(len(table), SAMPLE)).astype(int)
        rows = table.detach()[torch.from_numpy(some).to(table.device)].cpu().double().numpy()
        if (rows == rows[0]).all():
            raise ValueError("all rows of the table are alike, so none of its directions leads")
        missing = max(0, n_components - min(rows.shape))
        from sklearn.decomposition import PCA  # it takes long to load

        pca = PCA(n_components - missing, svd_solver="full").fit(rows)
        largest = np.abs(pca.components_).argmax(axis=1)
        signs = np.sign(pca.components_[np.arange(len(largest)), largest])
        components = np.pad(pca.components_ * signs[:, None], ((0, missing), (0, 0)))
        explained = np.pad(pca.explained_variance_ratio_, (0, missing))
        components, explained = (torch.from_numpy(x).float() for x in (components, explained))
        return cls(torch.from_numpy(pca.mean_).float(), components, explained)

    def transform(self, vectors: Float[Tensor, "*n m"]) -> Float[Tensor, "*n k"]:
        """Coordinates (…, k) of vectors (…, m) in the basis."""
        return (vectors.detach().cpu().float() - self.mean) @ self.components.T
