"""Objectives that predict a density over R^m in closed form: `vmf`, `mixture`."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from ..embedding_tables import TINY, mean_norm
from .base import OBJECTIVES, Objective
from .readouts import squared_distance


@OBJECTIVES.register("vmf")
class VonMisesFisher(Objective):
    """A von Mises-Fisher density on the sphere: direction z / |z|, concentration kappa = |z|.

    The loss is -log C(kappa) - z · ê. log C contains a Bessel function of order m/2 - 1. The bound
    of Ruiz-Antolín and Segura needs no Bessel function. Up to a constant, its error is below 0.35
    nat for kappa up to 5m, and below 0.9 nat up to 20m. The soft token is the mean of the density,
    z A(kappa) / kappa, times the rows' mean length. Every draw has the rows' mean length.

    Args:
        published: use the order that is one too low, as in the paper's code (errors of 2.4 and 4.3
            nats), and its two regularisers: 0.02 kappa is added, and z · ê has weight 0.1, not 1.

    Source:
        arXiv 1812.04616.
    """

    readouts = ("density", "tau", "affine", "barycentric")

    def __init__(self, d_model: int, vocab_size: int, embedding_dim: int, published: bool = False):
        super().__init__(d_model, vocab_size, embedding_dim)
        self.published, self.order = published, embedding_dim / 2 - published
        self.noise_dim = embedding_dim + 1

    def losses(self, output, target_ids, table, generator):
        dot = (output * F.normalize(F.embedding(target_ids, table), dim=-1, eps=TINY)).sum(-1)
        if self.published:
            return negative_log_c(output, self.order) + 0.02 * output.norm(dim=-1) - 0.1 * dot
        return negative_log_c(output, self.order) - dot

    def vector(self, output, table):
        root = ((self.order + 1) ** 2 + output.square().sum(-1, keepdim=True)).sqrt()
        return output / (self.order - 1 + root) * mean_norm(table)

    def scores(self, output, table):
        return output @ F.normalize(table, dim=-1, eps=TINY).T

    def affine_scores(self, table):
        return F.normalize(table, dim=-1, eps=TINY).T, table.new_zeros(len(table))

    def draw(self, output, noise, table):
        # 1) the first normal number, as a uniform one, chooses the angle to the mean direction
        uniform = torch.special.ndtr(noise[..., 0].double()).expand(-1, len(output))  # (S, N)
        if self.embedding_dim == 1:  # a sphere of two points
            return torch.where(uniform[..., None] < torch.sigmoid(2 * output), 1.0, -1.0).to(
                output
            ) * mean_norm(table)
        kappa, axis = (
            output.double().norm(dim=-1, keepdim=True),
            F.normalize(output, dim=-1, eps=TINY),
        )
        angle = angles(kappa, self.embedding_dim, uniform.T.contiguous()).T[..., None].to(output)
        # 2) the other numbers choose the direction at right angles to it; angle is (S, N, 1)
        across = noise[..., 1:] - (noise[..., 1:] * axis).sum(-1, keepdim=True) * axis  # (S, N, m)
        points = angle.cos() * axis + angle.sin() * F.normalize(across, dim=-1)
        # at z = 0 the axis is zero, and `across` alone is uniform over all directions
        return F.normalize(points, dim=-1) * mean_norm(table)


def negative_log_c(z, order):
    """-log C_m(|z|) up to a constant, of vectors z (N, m) -> (N,); the right `order` is m/2."""
    root = ((order + 1) ** 2 + z.square().sum(-1)).sqrt()
    return root - (order - 1) * (order - 1 + root).log()


def angles(kappa, m, uniform, cells=512):
    """Quantiles of the angle to the mean direction, with density exp(kappa cos) sin^(m-2).

    The density is summed over cells, up to 12 standard deviations around its mode. Within a cell it
    counts as constant.

    Args:
        kappa: concentrations (N, 1).
        m: the dimension of the space.
        uniform: which quantiles (N, S), in [0, 1].
        cells: the number of cells.

    Returns:
        Angles (N, S), in radians.
    """
    kappa = kappa.clamp_min(1e-9)
    mode = 2 * kappa / (m - 2 + ((m - 2) ** 2 + 4 * kappa**2).sqrt())  # the cosine at the mode
    width = 12 / (kappa * (mode + 1 / mode)).sqrt()
    low, high = (mode.acos() - width).clamp_min(0), (mode.acos() + width).clamp_max(math.pi)
    size = (high - low) / cells
    middle = low + size * (torch.arange(cells).to(kappa) + 0.5)  # (N, cells)
    mass = torch.softmax(kappa * middle.cos() + (m - 2) * middle.sin().log(), dim=-1)
    below = mass.cumsum(-1) - mass
    cell = torch.searchsorted(below, uniform, right=True) - 1  # (N, S)
    share = (uniform - below.gather(1, cell)) / mass.gather(1, cell).clamp_min(1e-300)
    return low + size * (cell + share.clamp(0, 1))


@OBJECTIVES.register("mixture")
class GaussianMixture(Objective):
    """A mixture of round Gaussians over R^m with predicted weights, means and widths.

    The density is exact. The soft token is the mean of the mixture. A density at single points can
    grow without bound. So the target is the row plus normal noise (dequantised), and no width is
    smaller than that of the noise: sigma² = (noise² + exp(2s)) / m.

    Args:
        components: the number of Gaussians, K.
        noise: about the length of the noise.

    Raises:
        ValueError: where components is below 1 or noise is not above 0.
    """

    readouts = ("density", "votes", "tau", "affine", "barycentric")

    def __init__(
        self,
        d_model: int,
        vocab_size: int,
        embedding_dim: int,
        components: int = 8,
        noise: float = 0.5,
    ):
        if components < 1 or not noise > 0:
            raise ValueError(
                f"components must be at least 1 and noise above 0, not {components} and {noise}"
            )
        super().__init__(
            d_model, vocab_size, embedding_dim, out_dim=components * (embedding_dim + 2)
        )
        self.components, self.noise = components, noise
        self.noise_dim = embedding_dim + 1
        self.means = nn.Parameter(torch.zeros(components, embedding_dim))

    def initialise(self, generator):
        """Draw the means, because equal means would stay equal."""
        self.means.data.normal_(0, self.embedding_dim**-0.5, generator=generator)

    def parts(self, output):
        """log weights (N, K), means (N, K, m) and variances per dimension (N, K)."""
        log_weights, log_width, means = output.split(
            [self.components, self.components, self.means.numel()], -1
        )
        variance = (self.noise**2 + (2 * log_width).clamp(max=60).exp()) / self.embedding_dim
        return (
            torch.log_softmax(log_weights, -1),
            means.unflatten(-1, self.means.shape) + self.means,
            variance,
        )

    def log_density(self, output, squares):
        """log f at P points per position, (N, P), in nats.

        `squares` (N, K, P) are the squared distances of these points to the means.
        """
        log_weights, _, variance = self.parts(output)
        peaks = log_weights - self.embedding_dim / 2 * (2 * math.pi * variance).log()  # (N, K)
        return torch.logsumexp(peaks[..., None] - squares / (2 * variance[..., None]), dim=1)

    def losses(self, output, target_ids, table, generator):
        rows = F.embedding(target_ids, table)
        noise = torch.randn(rows.shape, generator=generator, device=generator.device).to(rows)
        points = rows + noise * (self.noise * self.embedding_dim**-0.5)
        squares = (points[:, None] - self.parts(output)[1]).square().sum(-1)  # (N, K)
        return -self.log_density(output, squares[..., None]).squeeze(-1)

    def scores(self, output, table):
        means = self.parts(output)[1]
        return self.log_density(
            output, squared_distance(means.flatten(0, 1), table).unflatten(0, means.shape[:2])
        )

    def vector(self, output, table):
        log_weights, means, _ = self.parts(output)
        return (log_weights.exp()[..., None] * means).sum(1)

    def draw(self, output, noise, table):
        log_weights, means, variance = self.parts(output)
        # the first normal number, as a uniform one, chooses the component
        uniform = torch.special.ndtr(noise[..., :1])  # (S, N, 1)
        # (S, N)
        chosen = (uniform > log_weights.exp().cumsum(-1)).sum(-1).clamp_max(self.components - 1)
        rows = torch.arange(len(output), device=output.device)
        return means[rows, chosen] + noise[..., 1:] * variance[rows, chosen].sqrt()[..., None]
