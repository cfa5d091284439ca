"""The body against a float64 numpy version written with loops, and its cache against doing without
one.
"""

import numpy as np
import pytest
import torch
from bounds import rounding
from scipy.special import erf, softmax

from softar_lab.models.config import POSITIONS, ModelConfig
from softar_lab.models.transformer import (
    Transformer,
    attend,
    rotary_angles,
    rotate,
    sinusoids,
)

CONTEXT, LAYERS, HEADS, D = 9, 2, 2, 12


def shape(**changes):
    sizes = {
        "vocab_size": 5,
        "context": CONTEXT,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "d_model": D,
    }
    return ModelConfig(**{**sizes, **changes})


def make(positions="rotary", seed=0, scale=0.4, **changes):
    body = Transformer(shape(positions=positions, **changes)).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in body.parameters():
        parameter.data += torch.empty_like(parameter).normal_(0, scale, generator=generator)
    return body


def close(body, x):
    """Tolerances for what the body makes of x in two ways."""
    return {"atol": rounding(body, lambda one: one(x.to(one.norm.weight.dtype))), "rtol": 0}


def slots(batch=2, length=CONTEXT + 1, seed=1):
    return torch.randn(batch, length, D, generator=torch.Generator().manual_seed(seed))


def oracle(body, x):
    """One row (T, d) in float64: attention by loops, rotary positions as a multiplication by
    e^{it}.
    """
    weights = {name: p.detach().double().numpy() for name, p in body.named_parameters()}

    def norm(x, gain):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * gain

    def turned(vector, t):
        half = len(vector) // 2
        z = vector[:half] + 1j * vector[half:]
        z = z * np.exp(1j * t * 10_000.0 ** (-np.arange(half) / half))
        return np.concatenate([z.real, z.imag])

    if body.config.positions == "learned":
        x = x + weights["position"][: len(x)]
    elif body.config.positions == "sinusoidal":
        wave = np.arange(len(x))[:, None] / 10_000.0 ** (np.arange(0, D, 2) / D)
        x = x + np.stack([np.sin(wave), np.cos(wave)], -1).reshape(len(x), D) / np.sqrt(D)
    for i in range(LAYERS):
        w = {name.removeprefix(f"blocks.{i}."): v for name, v in weights.items()}
        qkv = norm(x, w["attention_norm.weight"]) @ w["query_key_value.weight"].T
        width, mixed = D // HEADS, np.zeros_like(x)
        for h in range(HEADS):
            q, k, v = (
                qkv[:, part * D + h * width : part * D + (h + 1) * width] for part in range(3)
            )
            if body.config.positions == "rotary":
                q, k = (np.stack([turned(row, t) for t, row in enumerate(rows)]) for rows in (q, k))
            for t in range(len(x)):
                attention = softmax(k[: t + 1] @ q[t] / np.sqrt(width))
                mixed[t, h * width : (h + 1) * width] = attention @ v[: t + 1]
        x = x + mixed @ w["attention_out.weight"].T
        inner = norm(x, w["mlp_norm.weight"]) @ w["mlp_in.weight"].T
        x = x + inner * (1 + erf(inner / np.sqrt(2))) / 2 @ w["mlp_out.weight"].T
    return norm(x, weights["norm.weight"])


@pytest.mark.parametrize("positions", POSITIONS)
def test_forward_agrees_with_float64_loops(positions):
    body, x = make(positions), slots()
    expected = np.stack([oracle(body, row) for row in x.double().numpy()])
    np.testing.assert_allclose(body(x).detach(), expected, **close(body, x))


LLAMA = {"norm": "rms", "mlp": "swiglu", "mlp_ratio": 2.6, "queries_per_key": 2}
KINDS = [*({"positions": name} for name in POSITIONS), {"attention_window": 3}, {"mlp": "gelu-tanh", "bias": True},
         LLAMA, {**LLAMA, "attention_window": 1}, {**LLAMA, "attention_window": 4, "positions": "none"}]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pieces", [[1] * 10, [10], [3, 1, 1, 5], [1, 9], [9, 1]])
def test_forward_with_a_cache_is_the_same_in_any_pieces(kind, pieces):
    body, x = make(**kind), slots()
    cache, found = body.new_cache(2), []
    for piece in x.split(pieces, 1):
        cache = cache.reserve(cache.filled, piece.shape[1])
        found.append(body(piece, cache))
    torch.testing.assert_close(torch.cat(found, 1), body(x), **close(body, x))


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("t", [0, 4, CONTEXT])
def test_forward_never_looks_ahead(positions, t):
    body, x = make(positions), slots()
    changed = x.clone()
    changed[:, t] = slots(seed=2)[:, t]
    before, after = body(x), body(changed)
    assert torch.equal(before[:, :t], after[:, :t])
    assert ((before - after)[:, t:].abs().amax(-1) > 1e-3).all()  # and everything later does see it


@pytest.mark.parametrize("positions", POSITIONS)
def test_forward_notices_order(positions):
    body, x = make(positions), slots()
    swapped = x[:, [1, 0, *range(2, CONTEXT + 1)]]
    assert ((body(x) - body(swapped))[:, 2:].abs().amax(-1) > 1e-4).all()


def test_forward_rows_do_not_mix():
    body, x = make("rotary"), slots(batch=3)
    changed = x.clone()
    changed[1] = slots(seed=2)[1]
    torch.testing.assert_close(body(changed)[[0, 2]], body(x)[[0, 2]], **close(body, x))


@pytest.mark.parametrize("kind", [{}, {**LLAMA, "positions": "none"}])
def test_a_slot_sees_as_many_slots_as_its_window_holds(kind):
    """With one layer, exactly those; the outputs are those of a text that begins where the window
    does.
    """
    body, x = make(**kind, n_layers=1, attention_window=4), slots()
    free = make(**kind, n_layers=1)
    free.load_state_dict(body.state_dict())
    near = close(body, x)
    for t in range(10):
        begin = max(0, t - 3)
        torch.testing.assert_close(body(x)[:, t], free(x[:, begin : t + 1])[:, -1], **near)


def test_sinusoids_are_the_papers():
    found = sinusoids(50, 6).double()
    for t, i in ((0, 0), (3, 0), (49, 2), (17, 1)):
        angle = t / 10_000 ** (2 * i / 6)
        assert found[t, 2 * i].item() == pytest.approx(np.sin(angle), abs=1e-5)
        assert found[t, 2 * i + 1].item() == pytest.approx(np.cos(angle), abs=1e-5)


@pytest.mark.parametrize("length", [2, 7])
def test_attend_in_bf16_sees_what_the_mask_shows(length):
    generator = torch.Generator().manual_seed(length)
    query, key, value = torch.randn(3, 2, 4, length, 8, generator=generator)
    mask = torch.ones(length, length, dtype=torch.bool).tril().triu(-2)
    found = attend(query.bfloat16(), key[:, :2].bfloat16(), value[:, :2].bfloat16(), mask)
    torch.testing.assert_close(
        found.float(), attend(query, key[:, :2], value[:, :2], mask), atol=0.05, rtol=0
    )


@pytest.mark.parametrize("length", [1, 2, 7])
def test_attend_in_bf16_is_attend_in_float32(length):
    """bf16 has 8 bits of mantissa: scores of size 3 are right to 0.01, so the weighted means of
    size 1 are too.
    """
    generator = torch.Generator().manual_seed(length)
    query, key, value = torch.randn(3, 2, 3, length, 8, generator=generator)
    found = attend(*(x.bfloat16() for x in (query, key, value)), None)
    torch.testing.assert_close(found.float(), attend(query, key, value, None), atol=0.05, rtol=0)
    later = value.clone()
    later[:, :, -1] = 1e4
    hidden = attend(*(x.bfloat16() for x in (query, key, later)), None)
    assert torch.equal(found[:, :, :-1], hidden[:, :, :-1])


def test_rotate_keeps_lengths_and_makes_scores_depend_on_the_distance_alone():
    width, generator = 8, torch.Generator().manual_seed(0)
    angles = rotary_angles(50, width).double()
    query, key = torch.randn(2, width, generator=generator).double()
    turned_query, turned_key = (rotate(x.expand(50, width), angles) for x in (query, key))
    torch.testing.assert_close(
        turned_query.norm(dim=-1), query.norm().expand(50), atol=1e-5, rtol=0
    )
    scores = turned_query @ turned_key.T  # (50, 50)
    for distance in (0, 1, 7, 30):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=0)
    torch.testing.assert_close(scores[0, 0], query @ key, atol=1e-6, rtol=0)


def test_cache_branches_do_not_disturb_each_other():
    body, x = make("rotary"), slots(1, 6)
    stem = body.new_cache(1).reserve(0, 3)
    body(x[:, :3], stem)
    first = stem.reserve(3, 1)
    body(x[:, 3:4], first)
    second = stem.reserve(3, 1)  # the place behind the stem is taken now
    assert second is not first
    body(x[:, 5:6], second)
    again = first.reserve(4, 1)
    torch.testing.assert_close(
        body(x[:, 4:5], again)[:, -1], body(x[:, :5])[:, -1], **close(body, x)
    )


def test_reserve_grows_seldom():
    """Doubling: reading n slots one by one copies O(log n) times, not n times."""
    cache, copies = (
        Transformer(shape(context=1000, n_layers=1, n_heads=1, d_model=2)).new_cache(1),
        0,
    )
    for length in range(1000):
        roomier = cache.reserve(length, 1)
        copies += roomier is not cache
        cache = roomier
        cache.filled = length + 1
    assert copies <= 12
    assert cache.capacity <= 4 * 1000


def test_initialise_depends_on_the_generator_alone():
    first, second = (Transformer(shape(positions="learned", bias=True)) for _ in range(2))
    for body in (first, second):
        torch.manual_seed(id(body) % 1000)
        body.initialise(torch.Generator().manual_seed(5))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
