"""Rows by themselves: the largest entries of each, the smaller id first among equal ones."""

import pytest
import torch

from softar_lab.models.by_row import _WIDE, largest


@pytest.mark.parametrize("width", [1, 5, _WIDE, _WIDE + 1, 5000])
@pytest.mark.parametrize("values", [1, 3, 50, 10**6])
def test_largest_entries_come_in_order_and_equal_ones_by_their_ids(rng, width, values):
    scores = torch.randint(values, (20, width), generator=rng(width)).float()
    for count in (1, 3, 8):
        expected = scores.sort(descending=True, stable=True).indices[:, :count]
        assert torch.equal(largest(scores, count), expected)
