"""The structured window: its memory is that of the tokens before it, the same in training, scoring
and generation.
"""

import pytest
import torch
from bounds import exact
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import LETTERS, enliven
from softar_lab import (
    Corpus,
    SoftAR,
    TrainConfig,
    Window,
    evaluate,
    generate,
    stream,
    train,
    train_mixing,
)
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.generation.redecode import redecode
from softar_lab.models.config import ModelConfig
from softar_lab.models.mixing import Mixed
from softar_lab.models.scoring import char_log_probs, pieces_of, scores
from softar_lab.models.window_memory.layout import names, resolve
from softar_lab.training.data import TrainingRows
from softar_lab.training.soft_inputs import SOFT_INPUTS, soft_rows

KINDS = ["sum", "ema(0.9)", "rotated", "bound(24)", "gist(2)"]
of_kind = pytest.mark.parametrize("kind", KINDS)


def layout(kind="sum", **changes):
    """Room for 10 tokens behind 4 memory slots in a context of 14; windows begin at multiples of
    6.
    """
    aggregate = 2 if kind.startswith(("ema", "rotated", "bound")) else 1
    given = {
        "aggregate": aggregate,
        "segments": 4 - aggregate,
        "hard": 0,
        "stretch": 3,
        "kind": kind,
    }
    return Window(**{**given, **changes})


@pytest.fixture(scope="module")
def windowed(tiny):
    """A factory of tame models with a window; what it made it keeps."""
    made = {}

    def make(kind="sum", objective="ce", **changes):
        key = (kind, objective, *sorted(changes.items()))
        if key not in made:
            with torch.inference_mode(False):
                made[key] = tiny(
                    context=14, window=layout(kind, **changes), objective=objective, scale=0.15
                )
        return made[key]

    return make


def some_ids(length, batch=3, seed=0):
    return torch.randint(
        len(LETTERS), (batch, length), generator=torch.Generator().manual_seed(seed)
    )


def text_of(length, seed=0):
    return CharTokenizer.fit(LETTERS).decode(some_ids(length, 1, seed)[0])


# -- training sees what generation sees -------------------------------------------------------------------------------


@of_kind
@torch.inference_mode()
def test_window_in_training_is_that_of_generation_slot_by_slot(windowed, kind):
    """Forty tokens read one by one; at each, its window once more from the text alone, all at
    once.
    """
    model, ids = windowed(kind), some_ids(40)
    state, begins = model.start(3), set()
    for t in range(41):
        begins.add(state.begin)
        memory = model.read_memory(model.update_memory(3, ids[:, : state.begin]))
        torch.testing.assert_close(
            memory, model.read_memory(state.memory_state), atol=1e-6, rtol=1e-6
        )
        hidden = model.hidden_states(ids[:, state.begin : t], memory=memory)[:, -1]
        torch.testing.assert_close(state.hidden, hidden, **exact(model))
        state = model.advance(state, token_ids=ids[:, t]) if t < 40 else state
    assert begins == {0, 6, 12, 18, 24, 30}


@given(
    st.sampled_from(KINDS[:4]), st.integers(0, 2), st.integers(0, 3), st.integers(1, 5), st.integers(1, 9),
    st.lists(st.integers(1, 8), min_size=1, max_size=6),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
@torch.inference_mode()
def test_sums_are_the_same_in_whatever_portions_they_are_folded(
    kind, aggregate, segments, stretch, tokens, portions
):
    if aggregate + segments == 0 or (kind == "sum" and aggregate > 1):
        return
    window = Window(aggregate, segments, hard=0, stretch=stretch, kind=kind)
    config = ModelConfig(
        vocab_size=5,
        context=window.memory + tokens,
        n_layers=1,
        n_heads=1,
        d_model=6,
        window=window,
    )
    model = enliven(SoftAR(config), 0, 0.3)
    vectors = torch.randn(2, sum(portions), 6, generator=torch.Generator().manual_seed(tokens))
    memory_state = model.update_memory(2)
    for portion in vectors.split(portions, 1):
        memory_state = model.update_memory(memory_state, vectors=portion)
    at_once = model.read_memory(model.update_memory(2, vectors=vectors))
    torch.testing.assert_close(model.read_memory(memory_state), at_once, atol=1e-6, rtol=1e-6)


@of_kind
@torch.inference_mode()
def test_rows_with_less_before_them_remember_as_if_they_were_alone(windowed, kind):
    model, ids, lengths = windowed(kind), some_ids(18), (18, 6, 0)
    there = torch.arange(18, 0, -1) <= torch.tensor(lengths)[:, None]
    together = model.read_memory(model.update_memory(3, ids, is_token=there))
    for row, n in enumerate(lengths):
        alone = model.read_memory(model.update_memory(1, ids[row : row + 1, 18 - n :]))
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@of_kind
def test_no_position_sees_its_own_future(windowed, kind):
    """Another symbol at p: what is said of the symbols up to p is the same to the last bit, of
    later ones it is not.
    """
    model, ids = windowed(kind), some_ids(60, 1)[0]
    pieces = pieces_of(model, ids, None)
    before = scores(model, ids, pieces)
    for p in (7, 20, 41):
        changed = ids.clone()
        changed[p] = (ids[p] + 1) % len(LETTERS)
        after = scores(model, changed, pieces)  # scores begin with symbol 1
        assert torch.equal(before[: p - 1], after[: p - 1])
        assert (before[p:] - after[p:]).abs().max() > 1e-3
        assert (
            before[p + 10 :] - after[p + 10 :]
        ).abs().max() > 1e-6  # when it has left the window, the memory knows


@of_kind
def test_aggregate_knows_what_left_the_window_and_segments(windowed, kind):
    model, ids = windowed(kind), some_ids(24)
    other = ids.clone()
    other[:, 2] = (ids[:, 2] + 1) % len(LETTERS)
    with torch.inference_mode():
        one, two = (model.read_memory(model.update_memory(3, some)) for some in (ids, other))
    changed = (one - two).abs().amax((0, 2)) > 1e-7
    aggregate = 1 if kind in ("sum", "gist(2)") else 2
    assert (
        changed.tolist() == [True] * 4
        if kind == "gist(2)"
        else [True] * aggregate + [False] * (4 - aggregate)
    )


def test_sum_is_the_centred_sum_over_the_root_of_their_number(tiny):
    model = tiny(context=14, window=Window(1, 1, hard=0, stretch=4))
    memory, ids = model.memory, some_ids(20, 1)
    memory.prior.copy_(torch.arange(13.0).softmax(0))
    rows = model.embedding[ids[0]] - memory.prior @ model.embedding
    with torch.inference_mode():
        found = model.read_memory(model.update_memory(1, ids))[0]
    for slot, some in enumerate((rows[:16], rows[16:])):
        n = torch.tensor(float(len(some)))
        expected = (
            some.sum(0) / n.sqrt() @ memory.maps[slot]
            + memory.kinds[slot]
            + (1 + n).log() * memory.counts[slot]
        )
        torch.testing.assert_close(found[slot], expected, atol=1e-5, rtol=1e-5)


# -- scoring ----------------------------------------------------------------------------------------------------------


@of_kind
@pytest.mark.parametrize("separator", [None, "\n"])
def test_evaluate_is_the_predictor_token_by_token_over_any_length(windowed, kind, separator):
    model, text = windowed(kind), text_of(90) + "\n" + text_of(3, 1)
    documents = [text] if separator is None else [one + "\n" for one in text.split("\n")]
    expected = []
    with torch.inference_mode():
        for document in documents:
            state = model.start()
            for i, token_id in enumerate(model.tokenizer.encode(document)[:, None]):
                if separator or i:
                    expected.append(model.predict(state).log_probs[0, token_id])
                state = model.advance(state, token_ids=token_id)
    expected = torch.cat(expected)[: len(text) - (separator is None)]
    torch.testing.assert_close(char_log_probs(model, text, separator), expected, **exact(model))
    assert evaluate(model, text, separator) == pytest.approx(
        -expected.mean().item(), abs=exact(model)["atol"]
    )


def test_evaluate_masked_shows_every_window_an_empty_memory(windowed):
    model = windowed("sum")
    masked, text = model.with_window("masked"), text_of(40)
    found = char_log_probs(masked, text)
    ids = model.tokenizer.encode(text)[None]
    first = model.log_probs(ids[:, :11])[0, 1:]
    second = model.log_probs(ids[:, 6:17])[0, 5:]  # from token 11 on
    torch.testing.assert_close(found[:16], torch.cat([first, second]), **exact(model))
    assert not torch.allclose(found[16:], char_log_probs(model, text)[16:], atol=1e-3)


def test_evaluate_other_shows_each_document_the_memory_of_another(windowed):
    """Two documents of one length: each scored with the other's memory is what their windows say
    with it by hand.
    """
    model, one, two = windowed("sum"), "abcdefghijkabcdef\n", "kjihgfedcbakjihgf\n"
    found = char_log_probs(model.with_window("other"), one + two, "\n").split(18)
    for mine, (here, there) in zip(found, ((one, two), (two, one))):
        ids, strange = model.tokenizer.encode(here)[None], model.tokenizer.encode(there)[None]
        with torch.inference_mode():
            memory = model.read_memory(model.update_memory(1, strange[:, :6]))
            expected = model.log_probs(ids[:, 6:17], memory)[0, 5:]
        torch.testing.assert_close(mine[11:17], expected, **exact(model))


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [None, "\n"])
def test_training_rows_stand_behind_the_text_that_their_memory_holds(windowed, separator):
    text = "".join(text_of(n, n).replace("\n", "a") + "\n" for n in (40, 3, 70, 25, 12, 61))
    model, corpus = windowed("sum"), Corpus("some", text, text, text, separator=separator)
    rows, stride = TrainingRows(model, corpus, TrainConfig(batch_size=64, history=30), seed=0), 6
    begins = {0, *(i + 1 for i, letter in enumerate(text[:-1]) if letter == "\n")}
    depths = set()
    for step in range(4):
        batch, (before, there) = rows.batch(step), rows.before(step)
        for row, past, known in zip(batch, before, there):
            past = past[known]
            depths.add(len(past))
            whole = model.tokenizer.decode(torch.cat([past, row]))
            places = [i for i in range(len(text)) if text.startswith(whole, i)]
            assert places
            assert len(past) % stride == 0
            assert not separator or begins & set(places)
    assert depths == set(range(0, 70, 6)) if separator else depths == set(range(0, 31, 6))


@pytest.mark.parametrize(
    ("kind", "objective"), [("sum", "ce"), ("gist(2)", "mse"), ("bound(8)", "metric")]
)
def test_training_learns_resumes_exactly_and_comes_back_from_disk(
    tmp_path, corpus, kind, objective
):
    """In a text of 13 letters, each followed by the next; a run that was interrupted ends as one
    that was not.
    """
    recipe = TrainConfig(steps=12, batch_size=8, save_every=4, eval_every=0, precision="fp32")

    def run(out, stop=None):
        tokenizer = CharTokenizer.fit(corpus.train)
        shape = {"context": 14, "n_layers": 1, "n_heads": 2, "d_model": 16, "objective": objective}
        config = ModelConfig(vocab_size=tokenizer.vocab_size, window=layout(kind), **shape)
        model = SoftAR(config, tokenizer, seed=1)
        halt = None if stop is None else lambda event: event["step"] == stop
        return train(model, corpus, recipe, out=out, progress=False, on_step=halt)

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", stop=5)
    parts = run(tmp_path / "parts")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, parts.model.state_dict()[name]), name
    again = SoftAR.load(tmp_path / "whole", "cpu")
    assert again.config.layout == layout(kind)
    assert evaluate(again, corpus.val) == evaluate(whole.model, corpus.val)
    fresh = SoftAR(again.config, again.tokenizer, seed=1)
    moved = [
        n
        for n, p in again.named_parameters()
        if p.requires_grad and not torch.equal(p, fresh.state_dict()[n])
    ]
    assert {"memory.kinds", "memory.maps" if kind != "gist(2)" else "memory.queries"} <= set(moved)
    if kind != "gist(2)":
        torch.testing.assert_close(again.memory.prior.sum().item(), 1.0)


def test_soft_inputs_of_a_window_are_its_newest_tokens(tiny):
    model = tiny(context=14, window=layout(hard=6, soft=4))
    ids, how = some_ids(10), SOFT_INPUTS.make("posterior-gumbel")
    memory = model.read_memory(model.update_memory(3, some_ids(6, seed=1))).detach()
    soft = soft_rows(model, ids, how, 1.0, torch.Generator().manual_seed(0), memory)
    hard = (soft == model.embedding[ids]).all(-1)
    assert hard.all(0).tolist() == [True] * 6 + [False] * 4


def test_train_mixing_reads_the_memory_too(windowed, corpus):
    model = windowed("sum").with_window(Window(1, 3, hard=0, stretch=3, keep=3))
    train_mixing(model, corpus, window=4, steps=2, rows=8)
    ids = some_ids(30, 1)
    mixed, state = Mixed(model), model.start()
    for t in range(29):
        state = model.advance(state, token_ids=ids[:, t])
    scored = char_log_probs(mixed, model.tokenizer.decode(ids[0]))
    torch.testing.assert_close(
        scored[-1], mixed.predict(state).log_probs[0, ids[0, 29]], **exact(model)
    )


# -- generation -------------------------------------------------------------------------------------------------------


@of_kind
def test_one_row_is_written_as_in_a_batch_across_windows(windowed, kind):
    """One row takes the NumPy decoder, which must find the memory slots in the cache."""
    model = windowed(kind)
    one, two = generate(model, ["abc", "kji"], 60, seed=[3, 4])
    alone = generate(model, "abc", 60, seed=3)
    assert alone.text == one.text
    torch.testing.assert_close(alone.log_probs, one.log_probs, **exact(model))
    assert alone.text != two.text


def test_a_prompt_may_be_longer_than_the_window(windowed):
    model, text = windowed("sum"), text_of(100)
    trajectory = generate(model, text[:80], 1, temperature=0)
    assert trajectory.log_probs[0].item() == pytest.approx(
        char_log_probs(model, text[:80] + trajectory.text)[-1].item(), abs=exact(model)["atol"]
    )


def test_only_the_newest_tokens_of_a_window_stay_soft(windowed):
    model = windowed("sum", objective="mse", hard=6, soft=4)
    found = generate(model, "abc", 40, schedule="never")
    assert found.collapsed.tolist() == [True] * 36 + [False] * 4
    assert torch.equal(found.inputs[:36], model.embedding[found.token_ids[:36]])
    free = windowed("sum", objective="mse")
    assert not generate(free, "abc", 40, schedule="never").collapsed.any()
    with pytest.raises(ValueError, match="no place for soft tokens"):
        generate(model.with_window(layout(hard=10)), "abc", 4, schedule="never")


def test_recollapse_reads_the_memory_too(windowed):
    model = windowed("sum", objective="mse")
    free = generate(model, "abc", 50, schedule="never", feedback="raw", collapse="nearest")
    again = redecode(model, free, "softmax")
    assert again.text == generate(model, "abc", 50, schedule="never", feedback="raw").text


@pytest.mark.slow
@pytest.mark.parametrize(
    "way", [{}, {"schedule": "never"}, {"schedule": "retro(3)"}, {"schedule": "liquid(2)"}]
)
def test_stream_hands_over_what_generate_writes(windowed, way):
    model, prompts, seeds = windowed("sum", objective="mse"), ["abc", "ab"], [1, 2]
    whole = generate(model, prompts, 150, seed=seeds, **way)
    pieces = list(stream(model, prompts, 150, seed=seeds, **way))
    assert len(pieces) >= 2
    assert [piece[1].settings["begin"] for piece in pieces][:2] == [0, 128]
    for row, one in enumerate(whole):
        assert "".join(piece[row].text for piece in pieces) == one.text
        assert torch.equal(torch.cat([piece[row].inputs for piece in pieces]), one.inputs)


@of_kind
def test_what_a_state_holds_does_not_grow(windowed, kind):
    def size(state):
        return sum(
            one.numel()
            for one in (*state.inputs, *state.memory_state, state.cache.keys, state.cache.values)
        )

    model, state, sizes = windowed(kind), windowed(kind).start(), []
    with torch.inference_mode():
        for t in range(400):
            state = model.advance(state, token_ids=torch.tensor([t % 13]))
            sizes.append(size(state))
    assert max(sizes[200:]) == max(sizes[20:200])


def test_stream_goes_on_without_end(windowed):
    model = windowed("sum")
    running = stream(model, "abc")
    assert sum(len(next(running)) for _ in range(3)) == 384


def test_full_is_a_window_that_nothing_may_leave(windowed):
    model = windowed("sum", hard=3, soft=3)
    full = generate(model, "abc", 8, window="full", seed=1)
    assert full.settings["window"].startswith("window(aggregate=1, segments=3, hard=0, soft=None")
    ids = model.tokenizer.encode("abc" + full.text)[None]
    expected = model.with_window("full").log_probs(ids)[0, 3:]
    torch.testing.assert_close(full.log_probs, expected, **exact(model))
    with pytest.raises(ValueError, match='window "full" holds 10 tokens, 11 are too many'):
        generate(model, "abc", 10, window="full")


def test_plain_window_is_what_a_plain_model_does(tiny):
    model = tiny()
    assert generate(model, "abc", 40, window="plain").text == generate(model, "abc", 40).text


# -- what is wrong is said --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"aggregate": -1}, "aggregate must be a whole number of at least 0, not -1"),
        ({"stretch": 0}, "stretch must be a whole number of at least 1"),
        ({"hard": None}, "cannot both be None"),
        ({"kind": "som"}, "unknown memory 'som'; known: sum, ema"),
        ({"control": "half"}, "control must be None or one of masked, other, full"),
    ],
)
def test_window_says_what_is_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        Window(**wrong)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (
            Window(),
            "3 memory slots and 97 tokens do not fit into a context of 14: hard \\+ soft must be 1 … 11",
        ),
        (Window(1, 2, 10, 2), "12 tokens do not fit"),
        (Window(1, 13, hard=0), "do not fit"),
        (Window(1, 2, hard=0, keep=12), "keep must be at most the window's 11 tokens"),
        (Window(2, 0, hard=0), "one aggregate; 2 of them"),
        (Window(1, 0, hard=0, kind="ema(1.0)"), "decay must lie between 0 and 1"),
        (Window(5, 0, hard=0, kind="gist"), "too many for a context of 14"),
        ("sums", "unknown window 'sums'; known: plain, sum"),
        ("masked", "unknown window 'masked'"),
    ],
)
def test_config_says_what_is_wrong_with_a_window(window, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(vocab_size=13, context=14, n_heads=2, d_model=16, window=window)


def test_with_window_says_what_is_wrong(tiny, windowed):
    model = windowed("sum")
    with pytest.raises(
        ValueError, match="would have another: only hard, soft, keep and control may change"
    ):
        model.with_window("plain")
    with pytest.raises(ValueError, match="no memory"):
        tiny(context=14).with_window(layout())
    with pytest.raises(ValueError, match="it needs at least two rows"):
        generate(model, "abc", 20, window="other")
    with pytest.raises(ValueError, match="unknown window 'nothing'"):
        generate(model, "abc", 20, window="nothing")


@pytest.mark.parametrize("spec", ["ema(0.9)", "window(1, 2, 6)", Window(hard=6), "plain", None])
def test_config_keeps_a_window_as_text(spec):
    config = ModelConfig(vocab_size=13, context=110, window=spec and resolve(spec))
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert config.layout == resolve(spec)
    assert set(names()) >= {
        "plain",
        "sum",
        "ema",
        "rotated",
        "bound",
        "gist",
        "window",
        "masked",
        "other",
        "full",
    }


def test_a_checkpoint_from_before_windows_loads(tmp_path, tiny):
    values = tiny().config.to_dict()
    del values["window"]
    assert ModelConfig.from_dict(values).layout is None


def test_gists_refuse_a_block_that_is_partly_there(tiny):
    """A block counts as a whole, so half a block would be read or lost in silence."""
    model = tiny(window="window(1, 0, 0, None, 'gist(2)')")
    block = model.memory.block
    ids = torch.zeros(2, 2 * block, dtype=torch.long)
    there = torch.ones(2, 2 * block, dtype=torch.bool)
    there[0, :block] = False
    memory = model.update_memory(2, ids, is_token=there)
    alone = model.update_memory(1, ids[:1, block:])
    torch.testing.assert_close(memory[0][:1], alone[0], atol=1e-6, rtol=1e-6)
    for part in (slice(0, 1), slice(1, block)):
        partly = torch.ones_like(there)
        partly[1, part] = False
        with pytest.raises(ValueError, match=f"block 0 of {block} tokens is partly there"):
            model.update_memory(2, ids, is_token=partly)
