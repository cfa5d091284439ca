"""Learned prompts: scored as text is, learned, read by the instruments, files of peft both ways."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bounds import exact, exact_logits
from safetensors.torch import save_file

from softar_lab.core.cells import load_results
from softar_lab.core.fingerprint import fingerprint
from softar_lab.core.predictor import Predictor
from softar_lab.external.pretrained.adapt_config import AdaptConfig
from softar_lab.external.pretrained.errors import PretrainedError
from softar_lab.external.pretrained.low_rank import attach
from softar_lab.external.pretrained.prompt_reading import survival, variants, words_of
from softar_lab.external.pretrained.prompted import prompted
from softar_lab.external.pretrained.prompts import (
    LearnedPrompt,
    _two_texts,
    load_prompt,
    score,
    tune_prompt,
)
from softar_lab.external.pretrained.soft_reading import states
from softar_lab.generation import generate
from softar_lab.metrics.drift import drift
from softar_lab.models.simplex import hull_distance
from softar_lab.models.soft_ar import SoftAR
from softar_lab.training.loop import TrainingDiverged
from softar_studies.make_prompts import data_of
from softar_studies.random_model import random_pretrained

pytest.importorskip("transformers")
peft = pytest.importorskip("peft", reason="the library peft, whose files are read, is missing")

PAIRS = [("abc", "def"), ("", "gh"), ("k", "abcd")]
IDS = torch.randint(3, 100, (1, 6), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model():
    return random_pretrained(layers=2)


@pytest.fixture(scope="module")
def learned(model):
    return tune_prompt(model, [("goats, lamps\n", "- goats\n- lamps\n")], tokens=3, steps=12)


def test_score_is_that_of_the_text_read_behind_the_prompt(tiny, rng):
    model = tiny()
    vectors = torch.randn(3, model.config.embedding_dim, generator=rng(0))
    nats, right, count = 0.0, 0, 0
    for text, answer in PAIRS:
        state = model.read(model.start(1), vectors=vectors[None])
        for i in model.tokenizer.encode(text):
            state = model.advance(state, token_ids=i[None])
        for i in model.tokenizer.encode(answer):
            log_p = model.predict(state).log_probs[0]
            nats, right, count = nats - float(log_p[i]), right + int(log_p.argmax() == i), count + 1
            state = model.advance(state, token_ids=i[None])
    found = score(model, PAIRS, vectors, batch_size=2)
    assert found["nats"] == pytest.approx(nats / count, abs=exact(model)["atol"])
    assert found["right"] == right / count


def test_a_row_as_prompt_is_its_token(tiny):
    model = tiny()
    by_vectors = score(model, PAIRS, model.embedding[model.tokenizer.encode("ab")])
    written = score(model, [("ab" + text, answer) for text, answer in PAIRS])
    assert by_vectors["nats"] == pytest.approx(written["nats"], abs=exact(model)["atol"])


def test_tuning_learns_and_leaves_the_model_alone(tiny):
    model = tiny()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    found = tune_prompt(model, PAIRS, tokens=2, steps=30, seed=1)
    again = tune_prompt(model, PAIRS, tokens=2, steps=30, seed=1)
    assert torch.equal(found.vectors, again.vectors)
    start = model.embedding[found.start_ids]
    assert score(model, PAIRS, found.vectors)["nats"] < score(model, PAIRS, start)["nats"] - 0.3
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())
    written = tune_prompt(model, PAIRS, start="abc", steps=1)
    assert written.start_ids.tolist() == model.tokenizer.encode("abc").tolist()


def test_tuning_ends_where_it_is_told(tiny):
    found = tune_prompt(tiny(), PAIRS, tokens=2, steps=30, on_step=lambda event: event["step"] == 4)
    assert [row["step"] for row in found.history] == [1, 2, 3, 4]


def test_instruments_read_what_they_measure(model, learned):
    table, unit = model.embedding, model.embedding.norm(dim=-1).mean()
    words = words_of(model, learned)
    far = torch.cdist(learned.vectors.double(), table.double()).min(-1)
    assert words["nearest"].tolist() == [model.tokenizer.tokens[i] for i in far.indices]
    assert words["distance"].tolist() == pytest.approx((far.values / unit).tolist(), rel=1e-5)
    off = hull_distance(learned.vectors, table) / unit
    assert words["off_hull"].tolist() == pytest.approx(off.tolist(), rel=1e-4)
    assert words["at_start"].tolist() == (far.indices == learned.start_ids).tolist()


def test_variants_are_what_they_are_called(model, learned):
    found, vectors = variants(model, learned), learned.vectors
    rows = found["nearest(l2)"]
    assert torch.equal(rows, model.embedding[torch.cdist(vectors, model.embedding).argmin(-1)])
    torch.testing.assert_close(found["0.5 of the way to nearest"], (vectors + rows) / 2)
    lengths = vectors.norm(dim=-1)
    for name in ("nearest(l2), length kept", "mixture, length kept"):
        torch.testing.assert_close(found[name].norm(dim=-1), lengths)
    assert torch.equal(found["reversed"][0], vectors[-1])


def test_survival_is_one_for_the_trained_and_zero_for_the_start(model, learned):
    pairs = [("goats, lamps\n", "- goats\n- lamps\n")]
    found = survival(model, learned, pairs, ["nearest(l2)"]).set_index("variant")
    assert [*found.index] == ["start", "trained", "nearest(l2)"]
    assert found.loc["start", "of_gain"] == 0
    assert found.loc["trained", "of_gain"] == 1
    if words_of(model, learned)["at_start"].all():
        assert found.loc["nearest(l2)", "of_gain"] == 0
    with pytest.raises(ValueError, match="does not know where"):
        survival(model, LearnedPrompt(learned.vectors), pairs)
    with pytest.raises(ValueError, match="no variant 'shouted'; there are: trained, start"):
        survival(model, learned, pairs, ["shouted"])


def test_a_prompt_that_gained_nothing_has_no_share_of_it(tiny):
    model = tiny()
    rows = LearnedPrompt(model.embedding[:2].clone(), torch.tensor([0, 1]))
    assert survival(model, rows, PAIRS, ["reversed"])["of_gain"].isna().all()


def test_a_prompt_of_another_model_is_named(tiny):
    model = tiny()
    for found, message in (
        (LearnedPrompt(torch.zeros(2, 5), torch.tensor([0, 1])), r"has the shape \(n, 16\)"),
        (LearnedPrompt(torch.zeros(2, 16), torch.tensor([0, 900])), "begun from token 900"),
    ):
        for read in (words_of, variants):
            with pytest.raises(ValueError, match=message):
                read(model, found)
    with pytest.raises(ValueError, match="soft token 0 holds NaN"):
        score(model, PAIRS, torch.full((2, 16), torch.nan))


@pytest.fixture(params=["ours", "pretrained"])
def reader(request, tiny, model):
    """A model that reads vectors."""
    return tiny(context=40) if request.param == "ours" else model


def bound(model):
    """How far two exact readings may lie apart, in nats."""
    return (exact(model) if isinstance(model, SoftAR) else exact_logits(model.network))["atol"]


def behind(model, text):
    """The model behind the rows of a text, which are a prompt like any other."""
    return prompted(model, LearnedPrompt(model.embedding[model.tokenizer.encode(text)]))


@pytest.mark.parametrize("schedule", ["always", "never", "every(2)", "retro(3)", "liquid(3)"])
def test_a_prompted_model_generates_as_one_that_read_the_rows(tiny, schedule):
    model = tiny(context=40)
    options = {"schedule": schedule, "temperature": 0}
    found = generate(behind(model, "abc"), "de", 10, **options)
    written = generate(model, "abcde", 10, **options)
    assert found.text == written.text
    if schedule == "never":
        kl, due = drift(found, behind(model, "abc"))["kl"], drift(written, model)["kl"]
        assert kl.tolist() == pytest.approx(due.tolist(), abs=exact(model)["atol"])


def test_a_prompted_model_scores_as_one_that_read_the_rows(reader):
    """Reading a text at once, token by token, and with gradients are one thing."""
    found, text = behind(reader, "abc"), "defabd"
    ids, whole = (reader.tokenizer.encode(one)[None] for one in (text, "abc" + text))
    n, close = whole.shape[1] - ids.shape[1], {"rtol": 0, "atol": bound(reader)}
    assert reader.tokenizer.encode("abc").shape == (n,)
    due = reader.log_probs(whole)[:, n:]
    torch.testing.assert_close(found.log_probs(ids), due, **close)
    one_by_one = Predictor.next_log_probs(found, ids)
    torch.testing.assert_close(found.next_log_probs(ids), one_by_one, **close)
    with_gradients = states(found, reader.embedding[ids])
    torch.testing.assert_close(with_gradients, found.hidden_states(ids), **close)
    assert found.context == reader.context - n
    both = behind(behind(reader, "a"), "bc") if n == 3 else found
    torch.testing.assert_close(both.log_probs(ids), due, **close)
    assert not torch.allclose(found.log_probs(ids), reader.log_probs(ids), atol=0.01)


@pytest.mark.parametrize("at_once", [True, False])
def test_the_prompt_stands_before_every_window(tiny, at_once):
    model = tiny(context=12)
    found, ids = behind(model, "abc"), model.tokenizer.encode("defgabcdkgfedcbakd")
    prompt, begin = model.tokenizer.encode("abc"), 0
    keep = found.config.overlap
    state = found.start(1)
    for t in range(len(ids)):
        begin = t + 1 - keep if t - begin == found.context else begin
        state = found.advance(state, token_ids=ids[t : t + 1])
        state = found.read(found.start(1), token_ids=ids[None, : t + 1]) if at_once else state
        window = torch.cat([prompt, ids[begin : t + 1], ids[:1]])  # the last one is not read
        due = model.next_log_probs(window[None])[:, -1]
        torch.testing.assert_close(
            found.predict(state).log_probs, due, rtol=0, atol=exact(model)["atol"]
        )
    assert begin > 0


def test_a_pretrained_model_has_the_prompt_before_every_window(model):
    found = behind(model, "abc")
    found.config = replace(found.config, context=6)  # a full context of it takes long
    ids = torch.randint(3, 100, (1, 9), generator=torch.Generator().manual_seed(2))
    state = found.start(1)
    for t in range(9):
        state = found.advance(state, token_ids=ids[:, t])
    window = torch.cat([model.tokenizer.encode("abc")[None], ids[:, 4:], ids[:, :1]], 1)
    due = model.next_log_probs(window)[:, -1]
    torch.testing.assert_close(found.predict(state).log_probs, due, rtol=0, atol=bound(model))


def test_prompts_tell_models_apart_and_are_not_lost(tiny, tmp_path):
    """Stored results are keyed by the fingerprint."""
    model = tiny()
    one, other = behind(model, "abc"), behind(model, "abd")
    assert len({fingerprint(each) for each in (model, one, other)}) == 3
    assert fingerprint(one) == fingerprint(behind(model, "abc"))
    assert one.unprompted is model
    assert type(model) is SoftAR
    ids = model.tokenizer.encode("de")[None]
    for copied in (deepcopy(one), one.with_readout("softmax")):
        assert torch.equal(copied.log_probs(ids), one.log_probs(ids))
    with pytest.raises(ValueError, match="no place for a prompt"):
        one.save(tmp_path)
    with pytest.raises(ValueError, match="without its prompt"):
        attach(one, AdaptConfig())


def test_a_prompt_that_cannot_stand_there_is_refused(tiny, reader):
    width = reader.embedding.shape[1]
    with pytest.raises(ValueError, match=rf"has the shape \(n, {width}\)"):
        prompted(reader, torch.zeros(2, width + 1))
    with pytest.raises(ValueError, match="at least one soft token"):
        prompted(reader, torch.zeros(0, width))
    with pytest.raises(ValueError, match="soft token 1 holds NaN"):
        prompted(reader, torch.zeros(2, width).index_fill(0, torch.tensor([1]), torch.nan))
    with pytest.raises(ValueError, match="leaves 1 of the context of 12"):
        prompted(tiny(context=12), torch.zeros(11, 16))
    with pytest.raises(ValueError, match="7 tokens are more than the context of 6"):
        prompted(tiny(context=12), torch.zeros(6, 16)).hidden_states(torch.zeros(1, 7).long())


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_saved_prompt_is_read_by_peft_alike(model, learned, tmp_path):
    learned.save(tmp_path, "base")
    found = load_prompt(tmp_path)
    assert torch.equal(found.vectors, learned.vectors)
    assert found.history == learned.history
    assert torch.equal(found.start_ids, learned.start_ids)
    theirs = peft.PeftModel.from_pretrained(model.network, tmp_path).eval()
    with torch.inference_mode():
        expected = theirs(input_ids=IDS).logits.log_softmax(-1)[:, -1]
    ours = prompted(model, found)
    state = ours.read(ours.start(1), token_ids=IDS)
    torch.testing.assert_close(
        ours.predict(state).log_probs, expected, **exact_logits(model.network)
    )


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_prompt_of_peft_s_is_read(model, tmp_path):
    from softar_lab.external.pretrained.quantised import sharing_copy

    config = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    made = peft.get_peft_model(sharing_copy(model.network), config).eval()
    made.save_pretrained(tmp_path)
    found = load_prompt(tmp_path)
    assert found.start_ids is None
    assert found.vectors.shape == (3, 64)
    with torch.inference_mode():
        expected = made(input_ids=IDS).logits.log_softmax(-1)[:, -1]
    ours = prompted(model, found)
    state = ours.read(ours.start(1), token_ids=IDS)
    torch.testing.assert_close(
        ours.predict(state).log_probs, expected, **exact_logits(model.network)
    )


def test_what_is_no_prompt_is_refused(model, tiny, learned, tmp_path):
    with pytest.raises(PretrainedError, match="no learned prompt .cannot read"):
        load_prompt(tmp_path)
    learned.save(tmp_path)
    about = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({**about, "peft_type": "PREFIX_TUNING"})
    )
    with pytest.raises(PretrainedError, match="a PREFIX_TUNING, no vectors"):
        load_prompt(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(about))
    save_file({"other": torch.ones(2, 3)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(PretrainedError, match="must hold prompt_embeddings"):
        load_prompt(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(PretrainedError, match="no learned prompt"):
        load_prompt(tmp_path)
    with pytest.raises(ValueError, match=r"has the shape \(n, 16\)"):
        prompted(tiny(), learned)
    with pytest.raises(ValueError, match="is empty"):
        tune_prompt(model, [("a", "")])
    with pytest.raises(ValueError, match='start must be "random"'):
        tune_prompt(model, [("a", "b")], start="")


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        (PAIRS, {"learning_rate": -1.0}, "learning_rate must be above 0"),
        (PAIRS, {"learning_rate": float("nan")}, "learning_rate must be above 0"),
        (PAIRS, {"learning_rate": 1e36, "steps": 3}, "lower learning_rate"),
        ([("a" * 9, "bcd")], {}, "13 tokens are more than the context of 12"),
    ],
)
def test_a_prompt_that_cannot_be_learned_is_named(tiny, pairs, options, message):
    with pytest.raises((ValueError, TrainingDiverged), match=message):
        tune_prompt(tiny(), pairs, tokens=2, **options)


@pytest.mark.parametrize("pair", [("a",), "ab", ("a", 1), 3])  # two letters are no pair
def test_what_is_no_pair_of_texts_is_named(pair):
    with pytest.raises(ValueError, match="pairs must hold pairs .text, answer. of texts, not"):
        _two_texts(pair)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"start_ids": ["a", "b", "c"]}', "start_ids must be a whole number"),
        ('{"start_ids": [0.5, 1, 2]}', "start_ids must be a whole number"),
        ('{"start_ids": [1, 2]}', "begun from 2 tokens, and 3 were learned"),
        ('{"history": 3}', "damaged"),
    ],
)
def test_a_damaged_file_of_ours_is_named(learned, tmp_path, text, message):
    learned.save(tmp_path)
    (tmp_path / "learned_prompt.json").write_text(text)
    with pytest.raises(PretrainedError, match=message):
        load_prompt(tmp_path)


def test_the_prompts_that_come_with_the_lab_are_those_of_the_table():
    data = Path(__file__).parents[1] / "data"
    table, _ = load_results(data / "results" / "prompts.csv")
    table = table[table["seed"] == 0].set_index(["part", "variant"])["nats"]
    assert load_prompt(data / "prompts" / "bullets").vectors.shape == (8, 576)
    found = load_prompt(data / "prompts" / "mess3-in-state-0")
    model = SoftAR.load(data / "checkpoints" / "mess3-hard", "cpu")
    _, test = data_of("mess3 in state 0")
    expected = table["mess3 in state 0", "trained"]  # stored with six digits
    assert score(model, test, found.vectors)["nats"] == pytest.approx(expected, abs=1e-5)
