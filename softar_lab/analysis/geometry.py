"""Where vectors lie among the symbols (K2): one picture plane a table, so that every path can be compared."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from sklearn.decomposition import PCA
from torch import Tensor

SAMPLE = 4096  # rows of a larger table that its basis is fitted on, evenly spread


@dataclass(frozen=True)
class PCABasis:
    """The leading principal directions of a table, fitted once and used for every picture of it.

    Shapes: mean (m,), components (k, m), explained (k,): the share of the rows' variance each direction holds.
    Signs follow a rule of our own (the entry of largest size is positive), so pictures do not flip between versions.
    Rows that are orthonormal have no leading directions: every plane through them is as good as another.
    """

    mean: Float[Tensor, " m"]
    components: Float[Tensor, "k m"]
    explained: Float[Tensor, " k"]

    @classmethod
    def fit(cls, table: Float[Tensor, "V m"], n_components: int = 3) -> "PCABasis":
        """Fit on the rows of a table (V, m), of more than `SAMPLE` on as many, evenly spread.

        ValueError: fewer rows or columns than directions, all rows alike, NaN.
        """
        some = np.linspace(0, len(table) - 1, min(len(table), SAMPLE)).astype(int)
        rows = table.detach()[torch.from_numpy(some).to(table.device)].cpu().double().numpy()
        if min(rows.shape) < n_components:
            raise ValueError(f"a table of shape {tuple(rows.shape)} has no {n_components} principal directions")
        if (rows == rows[0]).all():
            raise ValueError("all rows of the table are alike, so none of its directions leads")
        pca = PCA(n_components, svd_solver="full").fit(rows)
        largest = np.abs(pca.components_).argmax(axis=1)
        signs = np.sign(pca.components_[np.arange(n_components), largest])
        components = torch.from_numpy(pca.components_ * signs[:, None]).float()
        explained = torch.from_numpy(pca.explained_variance_ratio_).float()
        return cls(torch.from_numpy(pca.mean_).float(), components, explained)

    def transform(self, vectors: Float[Tensor, "*n m"]) -> Float[Tensor, "*n k"]:
        """Coordinates of vectors (…, m) in the basis (…, k)."""
        return (vectors.detach().cpu().float() - self.mean) @ self.components.T
