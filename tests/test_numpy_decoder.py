"""The NumPy decoder and the transformer are one model: same hidden states, same cache, whatever the
weights.
"""

import numpy as np
import pytest
import torch

from softar_lab.models.cache import Cache
from softar_lab.models.config import POSITIONS, ModelConfig
from softar_lab.models.numpy_decoder import RowDecoder
from softar_lab.models.transformer import Transformer


def wild(
    positions: str, dtype: torch.dtype, strength: float
) -> tuple[torch.nn.Linear, Transformer]:
    """An input layer of 5 -> 24 and a body whose weights, norms included, are all drawn at
    random.
    """
    generator = torch.Generator().manual_seed(3)
    shape = ModelConfig(
        vocab_size=5, context=30, n_layers=3, n_heads=3, d_model=24, positions=positions
    )
    input, body = torch.nn.Linear(5, 24, bias=False), Transformer(shape)
    for parameter in [*input.parameters(), *body.parameters()]:
        parameter.data = strength * torch.randn(parameter.shape, generator=generator) + (
            parameter.ndim == 1
        )
    return input.to(dtype), body.to(dtype)


def row(cache: Cache) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of the only row."""
    return cache.keys.numpy()[:, 0], cache.values.numpy()[:, 0]


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(
    ("dtype", "strength", "tolerance"), [(torch.float64, 0.5, 1e-12), (torch.float32, 0.2, 2e-5)]
)
@torch.no_grad()
def test_decoder_gives_the_hidden_states_and_the_cache_of_the_transformer(
    positions, dtype, strength, tolerance
):
    input, body = wild(positions, dtype, strength)
    vectors = torch.randn(1, 30, 5, generator=torch.Generator().manual_seed(4)).to(dtype)
    expected_cache = body.new_cache(1).reserve(0, 30)
    expected = body(input(vectors), expected_cache)[0]
    cache, decoder = body.new_cache(1).reserve(0, 30), RowDecoder(input, body)
    found = [decoder(decoder.embed(vectors[0, t].numpy()), *row(cache), t) for t in range(30)]
    np.testing.assert_allclose(np.stack(found), expected.numpy(), rtol=0, atol=tolerance)
    for one, other in zip(row(cache), row(expected_cache), strict=True):
        np.testing.assert_allclose(one[..., :30, :], other[..., :30, :], rtol=0, atol=tolerance)


@torch.no_grad()
def test_decoder_attends_as_sharply_as_the_transformer():
    """Scores hundreds apart: what is cut off as too faint must not show."""
    input, body = wild("rotary", torch.float64, 4.0)
    vectors = torch.randn(1, 12, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    cache, decoder = body.new_cache(1).reserve(0, 12), RowDecoder(input, body)
    found = [decoder(decoder.embed(vectors[0, t].numpy()), *row(cache), t) for t in range(12)]
    np.testing.assert_allclose(np.stack(found), body(input(vectors))[0].numpy(), rtol=0, atol=1e-9)
