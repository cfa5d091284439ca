"""Learned prompts: scored as text is, learned, read by the instruments, files of peft both ways."""

import json
from pathlib import Path

import pytest
import torch
from bounds import exact, exact_logits
from safetensors.torch import save_file

from softar_lab.core.cells import load_results
from softar_lab.external.pretrained.errors import PretrainedError
from softar_lab.external.pretrained.prompt_reading import survival, variants, words_of
from softar_lab.external.pretrained.prompts import (
    LearnedPrompt,
    load_prompt,
    prompted,
    score,
    tune_prompt,
)
from softar_lab.generation import generate
from softar_lab.models.simplex import hull_distance
from softar_lab.models.soft_ar import SoftAR
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


@pytest.mark.parametrize("schedule", ["always", "never", "every(2)"])
def test_a_prompted_model_generates_as_one_that_read_the_rows(tiny, schedule):
    """A prompt that is made of rows is a text."""
    model = tiny(context=40)
    rows = LearnedPrompt(model.embedding[model.tokenizer.encode("abc")])
    options = {"schedule": schedule, "temperature": 0}
    behind = generate(prompted(model, rows), "de", 10, **options)
    written = generate(model, "abcde", 10, **options)
    assert behind.text == written.text
    assert generate(model, "de", 10, **options).text == generate(model, "de", 10, **options).text


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
