"""What pictures hold of soft tokens: counted by hand where that is easy, and at its limits."""

from dataclasses import replace

import pytest
import torch

from softar_lab.generation import generate
from softar_lab.metrics.held import by_candidates, by_plane, right_in_plane
from softar_lab.metrics.pca import PCABasis


@pytest.fixture(scope="module")
def path(tiny):
    model = tiny(objective="ce", scale=0.3, letters="abcdef")
    return model, generate(model, "ab", 40, schedule="never")


def test_all_candidates_hold_a_mixture_wholly(path):
    """The model's soft tokens are pE, and six candidates are all there are."""
    model, one = path
    assert abs(by_candidates([one], model.embedding, 6) - 1) < 1e-9
    shares = [by_candidates([one], model.embedding, k) for k in (1, 3, 5)]
    assert shares == sorted(shares)
    assert shares[-1] < 1


def test_candidates_hold_what_a_sum_over_steps_and_symbols_says(path):
    model, one = path
    rows = model.embedding.detach().double()
    mean, left, whole = rows.mean(0), 0.0, 0.0
    for t in range(len(one)):
        best = sorted(one.candidates(t), key=lambda pair: -pair[1])[:3]
        rebuilt = (1 - sum(p for _, p in best)) * mean
        for symbol, p in best:
            rebuilt = rebuilt + p * rows[model.tokenizer.tokens.index(symbol)]
        left += float((one.vectors[t].double() - rebuilt).square().sum())
        whole += float((one.vectors[t].double() - mean).square().sum())
    assert by_candidates([one], model.embedding) == pytest.approx(1 - left / whole, abs=1e-9)


def test_a_plane_holds_what_lies_in_it(path):
    model, _ = path
    basis = PCABasis.fit(model.embedding, 2)
    inside = basis.mean + torch.randn(9, 2) @ basis.components
    assert by_plane(inside, basis) == pytest.approx(1, abs=1e-5)
    away = inside - basis.mean
    normal = torch.linalg.svd(basis.components)[2][2]
    outside = basis.mean + away.norm(dim=1, keepdim=True) * normal
    assert by_plane(outside, basis) == pytest.approx(0, abs=1e-5)
    assert by_plane(torch.cat([inside, outside]), basis) == pytest.approx(0.5, abs=1e-5)


def test_in_a_plane_rows_are_nearest_to_themselves(path):
    model, one = path
    ids = torch.arange(6).repeat(7)[:40]
    certain = torch.zeros(40, 6)
    certain[:, 0] = 0.8  # of symbol ids[t], which comes first
    shown = torch.stack([(ids + i) % 6 for i in range(6)], 1)
    rows = replace(one, vectors=model.embedding[ids], top_ids=shown, top_probs=certain)
    assert right_in_plane([rows], model.embedding) == 1
    other = replace(rows, top_ids=shown.roll(1, 1))
    assert right_in_plane([other], model.embedding) == 0
    assert torch.isnan(torch.tensor(right_in_plane([rows], model.embedding, doubt=0.5)))
