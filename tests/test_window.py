"""The structured window: its memory is that of the tokens before it, the same in training, scoring and generation."""

import pytest
import torch

from conftest import LETTERS
from softar_lab import Corpus, TrainConfig, Window, evaluate, generate, stream, train

KINDS = ["sum", "ema(0.9)", "rotated", "bound(24)", "gist(2)"]
EXACT = {"atol": 1e-4, "rtol": 0}
of_kind = pytest.mark.parametrize("kind", KINDS)


def layout(kind="sum", **changes):
    """Room for 10 tokens behind 4 memory slots; windows begin at multiples of 6."""
    aggregate = 2 if kind.startswith(("ema", "rotated", "bound")) else 1
    given = {"aggregate": aggregate, "segments": 4 - aggregate, "hard": 6, "soft": 4, "stretch": 3, "kind": kind}
    return Window(**{**given, **changes})


def some_ids(length, batch=3, seed=0):
    return torch.randint(len(LETTERS), (batch, length), generator=torch.Generator().manual_seed(seed))


# -- training sees what generation sees -------------------------------------------------------------------------------


@of_kind
@torch.inference_mode()
def test_window_vectors_in_training_are_those_of_generation_slot_by_slot(tiny, kind):
    """Forty tokens read one by one; at each, the slots of its window again from the text alone."""
    model, ids = tiny(context=14, window=layout(kind)), some_ids(40)
    state, begins = model.start(3), []
    for t in range(41):
        n = state.begin
        begins.append(n)
        before = ids[:, :n]
        memory = model.recall(model.fold(3, before))  # as a training row has it: all at once
        torch.testing.assert_close(memory, model.recall(state.carry), atol=1e-5, rtol=1e-5)
        hidden = model.hidden_states(ids[:, n:t], memory=memory)[:, -1]
        torch.testing.assert_close(state.hidden, hidden, atol=1e-3, rtol=1e-3)
        state = model.advance(state, token_ids=ids[:, t]) if t < 40 else state
    assert sorted(set(begins)) == [0, 6, 12, 18, 24, 30]


@pytest.mark.parametrize("way", [{}, {"schedule": "never"}, {"schedule": "retro(3)"}, {"schedule": "liquid(4)"}])
def test_stream_hands_over_what_generate_writes(tiny, way):
    model = tiny(context=14, window=layout(hard=0, soft=None), objective="mse")
    prompts, seeds = ["abc", "ab"], [1, 2]
    whole = generate(model, prompts, 300, seed=seeds, **way)
    pieces = list(stream(model, prompts, 300, seed=seeds, **way))
    assert len(pieces) >= 3
    for row, one in enumerate(whole):
        assert "".join(piece[row].text for piece in pieces) == one.text
        assert torch.equal(torch.cat([piece[row].inputs for piece in pieces]), one.inputs)
