"""Training is exact: what is trained, what is scored, and what a killed run goes on from."""

import errno
import itertools
import math
import os
import random
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from killed import killed_and_resumed

from conftest import EVERY_OBJECTIVE, TABLES
from softar_lab.core import store
from softar_lab.core.store import CheckpointError, StoreError
from softar_lab.data.corpora import SHAKESPEARE_BYTES, Corpus, load_corpus
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.data.tokenizers.subword import BPETokenizer
from softar_lab.models.config import ModelConfig
from softar_lab.models.embedding_tables import effective_rank
from softar_lab.models.scoring import evaluate, scored_batches
from softar_lab.models.soft_ar import SoftAR
from softar_lab.training import data, evaluation
from softar_lab.training.config import TrainConfig
from softar_lab.training.data import TrainingRows, compact_ids
from softar_lab.training.evaluation import EVAL_TOKENS, HeldOut
from softar_lab.training.loop import TrainingDiverged, train
from softar_lab.training.trainer import Trainer
from softar_lab.training.update import make_optimizers, update

HERE = Path(__file__).parent
SHORT = TrainConfig(steps=6, batch_size=2, eval_every=2, save_every=2)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def small(tiny, **changes):
    return tiny(**{"alive": False, "context": 8, "n_layers": 1, "d_model": 8, **changes})


# -- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("objective", EVERY_OBJECTIVE)
def test_train_learns_a_text_that_is_certain(tiny, corpus, objective):
    """Each letter is followed by the next, so what is scored need not cost anything; at first it is
    log2 13 = 3.7.
    """
    table = "joint" if objective == "ce" else "orthonormal"
    model = tiny(alive=False, objective=objective, table=table, n_layers=1)
    done = train(model, corpus, TrainConfig(steps=150, batch_size=8, eval_every=75), progress=False)
    assert done.val_bits_per_char < 0.5
    assert list(done.history["step"]) == [75, 150]
    assert done.history["val_bits_per_char"].iloc[-1] == done.val_bits_per_char
    assert done.val_bits_per_char * math.log(2) == pytest.approx(
        evaluate(model, corpus.val), abs=1e-9
    )
    assert not done.interrupted
    assert not model.training


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("objective", EVERY_OBJECTIVE)
def test_train_moves_joint_tables_only(tiny, corpus, objective, table):
    model = small(tiny, objective=objective, table=table)
    before = weights(model)
    train(model, corpus, SHORT, progress=False)
    moved = {
        name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])
    }
    assert ("table.weight" in moved) is (table == "joint")
    assert {name for name in before if name.startswith("body.blocks")} <= moved


def test_history_tells_rank_and_norm_of_the_table(tiny, corpus):
    done = train(small(tiny, objective="mse", table="joint"), corpus, SHORT, progress=False)
    last = done.history.iloc[-1]
    assert last["embedding_rank"] == pytest.approx(effective_rank(done.model.embedding))
    assert last["embedding_norm"] == pytest.approx(done.model.embedding.norm(dim=-1).mean().item())
    assert done.history["embedding_norm"].iloc[0] != last["embedding_norm"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_train_regularised_keeps_apart_what_joint_lets_collapse(tiny, seed):
    """Mean squared error on letters drawn at random: of these only the mean of their rows can be
    predicted.
    """
    letters = "abcdefghijk \n"
    text = letters + "".join(random.Random(seed).choices(letters, k=800))
    spread = {}
    for table in ("joint", "regularised(10)"):
        model = tiny(alive=False, objective="mse", table=table, n_layers=1, seed=seed)
        recipe = TrainConfig(steps=200, batch_size=8, eval_every=0)
        train(model, Corpus("noise", text, text[:40], text[:40]), recipe, progress=False)
        spread[table] = model.embedding.var(0).sum().item()  # 1 at the start
    assert spread["joint"] < 0.25
    assert spread["regularised(10)"] > 0.5


def test_calibration_rows_hold_enough_tokens_and_are_draws_of_their_own(tiny, corpus):
    rows = TrainingRows(small(tiny), corpus, SHORT, seed=0)
    assert torch.equal(rows.calibration(1), rows.batch(-1))
    assert rows.calibration(100).shape == (12, 9)
    assert rows.calibration(10**6).shape == (128, 9)
    assert torch.equal(
        rows.generator(3, stream=1).get_state(), rows.generator(3, stream=1).get_state()
    )
    assert not torch.equal(rows.generator(3, stream=1).get_state(), rows.generator(3).get_state())


def test_train_depends_on_its_seed_alone(tiny, corpus):
    results = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        model = small(tiny)
        train(model, corpus, SHORT, seed=seed, progress=False)
        results.append(weights(model))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_make_optimizers_hold_every_trained_parameter_once(tiny):
    model = tiny(objective="metric", table="joint", positions="learned")
    held = [
        p
        for o in make_optimizers(model, SHORT)
        for group in o.param_groups
        for p in group["params"]
    ]
    assert sorted(map(id, held)) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_batches_depend_on_seed_and_step_and_lie_in_the_text(tiny, corpus):
    model = small(tiny)
    rows = TrainingRows(model, corpus, SHORT, seed=0)
    assert torch.equal(rows.batch(3), TrainingRows(model, corpus, SHORT, seed=0).batch(3))
    assert not torch.equal(rows.batch(3), rows.batch(4))
    assert all(model.tokenizer.decode(row) in corpus.train for row in rows.batch(0))
    assert rows.batch(0).shape == (2, 9)


def test_batches_of_documents_begin_with_a_document(tiny):
    text = "abc\nd\nefghijk\nab\n" * 10
    rows = TrainingRows(
        small(tiny),
        Corpus("d", text, text, text, separator="\n"),
        replace(SHORT, batch_size=200),
        0,
    )
    begins = {text[i : i + 9] for i in range(len(text) - 8) if i == 0 or text[i - 1] == "\n"}
    tokenizer = CharTokenizer.fit("abcdefghijk \n")
    assert {tokenizer.decode(row) for row in rows.batch(0)} == begins


def test_batches_reach_the_last_window_of_the_text(tiny):
    text = "abcdefghijk"  # 11 characters, windows of 9: three places to begin
    rows = TrainingRows(
        small(tiny), Corpus("t", text, text, text), replace(SHORT, batch_size=100), 0
    )
    assert {int(row[0]) - int(rows.ids[0]) for row in rows.batch(0)} == {0, 1, 2}


def test_train_on_a_val_with_unknown_characters_warns_and_goes_on(tiny, corpus):
    odd = Corpus(name="odd", train=corpus.train, val="abcXdef", test="ab")
    with pytest.warns(UserWarning, match="1 characters .*'X'"):
        done = train(small(tiny), odd, replace(SHORT, eval_every=0), progress=False)
    assert math.isfinite(done.val_bits_per_char)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps must be .* at least 1, not 0"),
        ({"batch_size": -1}, "batch_size"),
        ({"eval_every": -1}, "eval_every"),
        ({"save_every": True}, "save_every"),
        ({"window": 0}, "window must be .* not 0"),
        ({"muon_learning_rate": 0.0}, r"muon_learning_rate must be above 0, not 0\.0"),
        ({"adam_learning_rate": math.inf}, "adam_learning_rate"),
        ({"adam_learning_rate": math.nan}, "adam_learning_rate"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"warmup": 1.0}, "warmup"),
        ({"precision": "fp8"}, "precision must be auto, bf16 or fp32, not 'fp8'"),
    ],
)
def test_train_config_names_the_wrong_field(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**wrong)


def test_train_config_takes_whole_numbers_for_rates():
    assert TrainConfig(weight_decay=0, warmup=0, muon_learning_rate=1).weight_decay == 0


def test_train_on_a_text_shorter_than_a_window_says_so(tiny):
    with pytest.raises(ValueError, match="8 tokens, one window needs 9"):
        train(small(tiny), Corpus("short", "abcdefgh", "abc", "abc"), SHORT, progress=False)


def test_train_with_a_window_beyond_the_context_names_both(tiny, corpus):
    with pytest.raises(ValueError, match=r"window 20 .* context 8"):
        train(small(tiny), corpus, replace(SHORT, window=20), progress=False)


def test_train_without_a_tokenizer_says_so(corpus):
    with pytest.raises(ValueError, match="no tokenizer"):
        train(SoftAR(ModelConfig(vocab_size=13)), corpus, SHORT)


def test_train_on_documents_too_short_says_so(tiny):
    text = "abcdefghijk abcdefghijk"
    corpus = Corpus("d", text[:8] + "\nab\n", text, text, separator="\n")
    done = train(small(tiny), corpus, SHORT, progress=False)  # one document begins early enough
    assert math.isfinite(done.val_bits_per_char)


# -- saving and resuming ----------------------------------------------------------------------------------------------


def test_train_saves_what_it_returns_and_returns_a_finished_run_as_it_is(tiny, corpus, tmp_path):
    done = train(small(tiny), corpus, SHORT, out=tmp_path, progress=False)
    assert same(weights(done.model), weights(SoftAR.load(tmp_path)))
    before = {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()
    }
    again = train(small(tiny), corpus, SHORT, out=tmp_path, progress=False, on_step=pytest.fail)
    assert same(weights(done.model), weights(again.model))
    assert again.history.equals(done.history)
    assert not again.interrupted
    assert before == {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()
    }
    card = SoftAR.load(tmp_path).card
    assert card["corpus"]["sha256"] == corpus.sha256
    assert card["train"]["steps"] == card["steps_done"] == 6
    assert card["val_bits_per_char"] == done.val_bits_per_char


@pytest.mark.parametrize("objective", EVERY_OBJECTIVE)
@pytest.mark.parametrize("stop_at", [1, 2, 6])
def test_train_stopped_by_control_c_saves_returns_and_goes_on_exactly(
    tiny, corpus, tmp_path, objective, stop_at
):
    shape = {"objective": objective, "table": "joint"}
    whole = train(small(tiny, **shape), corpus, SHORT, progress=False)
    before = signal.getsignal(signal.SIGINT)

    def press(event):
        if event["step"] == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    part = train(small(tiny, **shape), corpus, SHORT, out=tmp_path, progress=False, on_step=press)
    assert part.interrupted is (stop_at < 6)
    assert signal.getsignal(signal.SIGINT) is before
    assert math.isfinite(part.val_bits_per_char)
    assert part.history["step"].iloc[-1] == stop_at
    rest = train(small(tiny, **shape), corpus, SHORT, out=tmp_path, progress=False)
    assert same(weights(whole.model), weights(rest.model))
    assert whole.history.drop(columns="seconds").equals(rest.history.drop(columns="seconds"))
    assert not rest.interrupted


def test_train_stopped_by_its_callback_also_from_a_thread(tiny, corpus, tmp_path):
    results = []

    def work():
        done = train(
            small(tiny),
            corpus,
            SHORT,
            out=tmp_path,
            progress=False,
            on_step=lambda event: event["step"] == 3,
        )
        results.append(done)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results[0].interrupted
    whole = train(small(tiny), corpus, SHORT, progress=False)
    assert same(
        weights(whole.model),
        weights(train(small(tiny), corpus, SHORT, out=tmp_path, progress=False).model),
    )


def test_train_tells_each_step_to_its_callback(tiny, corpus):
    events = []
    train(small(tiny), corpus, SHORT, progress=False, on_step=events.append)
    assert [event["step"] for event in events] == [1, 2, 3, 4, 5, 6]
    assert ["val_bits_per_char" in event for event in events] == [False, True] * 3
    assert events[0]["train_loss"] == pytest.approx(math.log(13), abs=1e-5)


def test_train_anew_forgets_the_old_run(tiny, corpus, tmp_path):
    train(small(tiny), corpus, SHORT, out=tmp_path, seed=1, progress=False)
    anew = train(small(tiny), corpus, SHORT, out=tmp_path, seed=2, resume=False, progress=False)
    assert same(weights(anew.model), weights(SoftAR.load(tmp_path)))
    assert same(
        weights(anew.model),
        weights(train(small(tiny), corpus, SHORT, seed=2, progress=False).model),
    )


def test_train_goes_on_with_a_run_from_before_a_setting_existed(
    tiny, corpus, tmp_path, monkeypatch
):
    done, load = (
        train(small(tiny), corpus, SHORT, out=tmp_path, progress=False),
        SoftAR.load_with_files,
    )

    def older(folder, device="auto"):
        model, files = load(folder, device)
        del model.card["train"]["history"]
        return model, files

    monkeypatch.setattr(SoftAR, "load_with_files", older)
    again = train(small(tiny), corpus, SHORT, out=tmp_path, progress=False, on_step=pytest.fail)
    assert same(weights(done.model), weights(again.model))
    other = replace(SHORT, history=5)
    with pytest.raises(CheckpointError, match=r"train\.history: saved 1024, now 5"):
        train(small(tiny), corpus, other, out=tmp_path, progress=False)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("recipe", r"train\.batch_size: saved 2, now 3"),
        ("seed", "seed: saved 0, now 9"),
        ("corpus", r"corpus\.sha256: saved"),
        ("vocabulary", r"model\.vocab_size: saved 13, now 14|vocabulary"),
        ("same size", r"vocabulary\.tokens: saved"),
        ("model", r"model\.d_model: saved 8, now 16"),
        ("start", "start: saved 0, now 4"),
    ],
)
def test_train_refuses_to_go_on_with_another(tiny, corpus, tmp_path, what, message):
    train(
        small(tiny),
        corpus,
        SHORT,
        out=tmp_path,
        progress=False,
        on_step=lambda event: event["step"] == 2,
    )
    saved = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    letters = {"vocabulary": "abcdefghijk \nz", "same size": "abcdefghijl \n"}.get(
        what, "abcdefghijk \n"
    )
    other = corpus
    if what == "corpus":
        other = replace(corpus, train=corpus.train[:-1])
    elif what == "same size":
        other = Corpus(
            *(
                text.replace("k", "l")
                for text in (corpus.name, corpus.train, corpus.val, corpus.test)
            )
        )
    model = small(
        tiny, letters=letters, seed=4 * (what == "start"), d_model=16 if what == "model" else 8
    )
    recipe = replace(SHORT, batch_size=3 if what == "recipe" else 2)
    with pytest.raises(CheckpointError, match=message):
        train(model, other, recipe, out=tmp_path, seed=9 * (what == "seed"), progress=False)
    assert saved == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_train_refuses_a_folder_with_a_model_but_no_training(tiny, corpus, tmp_path):
    small(tiny).save(tmp_path)
    with pytest.raises(CheckpointError, match="no training to resume"):
        train(small(tiny), corpus, SHORT, out=tmp_path, progress=False)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "training.json", "training.safetensors"]
)
def test_train_refuses_damaged_files(tiny, corpus, tmp_path, name):
    train(small(tiny), corpus, SHORT, out=tmp_path, progress=False)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=name):
        train(small(tiny), corpus, SHORT, out=tmp_path, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["mse", "metric"])
def test_train_killed_at_any_moment_goes_on_to_the_same_bits(tmp_path, objective):
    """At least ten kills at random times, and kills between the file operations of every save."""
    killed_and_resumed(tmp_path, objective)


# -- when things go wrong ---------------------------------------------------------------------------------------------


def poison(model, at_step, what):
    """From a step on, make the loss (or only a gradient) infinite."""
    steps = []
    loss = model.objective.loss

    def poisoned(*args):
        steps.append(1)
        bad = len(steps) == at_step
        value = loss(*args)
        if bad and what == "gradient":
            value.register_hook(lambda gradient: gradient * math.nan)
        return value * math.nan if bad and what == "loss" else value

    model.objective.loss = poisoned


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("at_step", [3, 4])
def test_train_that_diverges_names_the_step_and_leaves_the_checkpoint_before(
    tiny, corpus, tmp_path, what, at_step
):
    """A NaN gradient poisons the weights of a step whose loss is still fine: that step must not be
    saved either.
    """
    model = small(tiny)
    poison(model, at_step, what)
    with pytest.raises(
        TrainingDiverged, match=rf"step ({at_step - 1}|{at_step}|{at_step + 1})\b.*learning_rate"
    ):
        train(model, corpus, SHORT, out=tmp_path, progress=False)
    saved = SoftAR.load(tmp_path)
    assert saved.card["steps_done"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in saved.state_dict().values())


def test_train_that_diverges_at_the_last_step_does_not_save_it(tiny, corpus, tmp_path):
    model = small(tiny)
    poison(model, 6, "gradient")
    with pytest.raises(TrainingDiverged):
        train(model, corpus, SHORT, out=tmp_path, progress=False)
    assert SoftAR.load(tmp_path).card["steps_done"] == 4


def test_train_with_a_huge_learning_rate_diverges_with_a_clear_error(tiny, corpus):
    wild = replace(SHORT, adam_learning_rate=1e30, muon_learning_rate=1e30)
    with pytest.raises(TrainingDiverged, match=r"at step \d.*lower muon_learning_rate \(1e\+30\)"):
        train(small(tiny), corpus, wild, progress=False)


def test_train_on_a_full_disk_says_so_and_keeps_the_old_checkpoint(
    tiny, corpus, tmp_path, monkeypatch
):
    train(
        small(tiny),
        corpus,
        SHORT,
        out=tmp_path,
        progress=False,
        on_step=lambda event: event["step"] == 2,
    )
    shutil.copytree(tmp_path, tmp_path.with_name("copy"))

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(store.os, "fsync", full)
        with pytest.raises(StoreError, match="No space left on device"):
            train(small(tiny), corpus, SHORT, out=tmp_path, progress=False)
    assert SoftAR.load(tmp_path).card["steps_done"] == 2
    rest = train(small(tiny), corpus, SHORT, out=tmp_path, progress=False)
    assert same(
        weights(rest.model), weights(train(small(tiny), corpus, SHORT, progress=False).model)
    )


def test_two_runs_never_train_into_one_folder(tiny, corpus, tmp_path):
    """The second is refused at once; the first goes on undisturbed."""
    inner = []

    def on_step(event):
        if event["step"] == 2:
            with pytest.raises(CheckpointError, match="is being written by process"):
                train(small(tiny), corpus, SHORT, out=tmp_path, progress=False)
            inner.append(event["step"])

    run = train(small(tiny), corpus, SHORT, out=tmp_path, progress=False, on_step=on_step)
    assert inner == [2]
    alone = train(small(tiny), corpus, SHORT, progress=False)
    for one, other in zip(run.model.parameters(), alone.model.parameters(), strict=True):
        assert torch.equal(one, other)
    train(small(tiny), corpus, SHORT, out=tmp_path, progress=False)  # finished: returned as it is


def test_a_folder_that_cannot_be_written_is_noticed_before_the_first_step(tiny, corpus, tmp_path):
    (tmp_path / "file").write_text("no folder")
    steps = []
    with pytest.raises(StoreError, match="cannot write"):
        train(
            small(tiny), corpus, SHORT, out=tmp_path / "file", progress=False, on_step=steps.append
        )
    assert steps == []


# -- long validation texts, prolonged runs, long training texts ------------------------------------


def long_val(corpus, copies=40):
    """The corpus with a long validation text: 2,400 characters, 300 windows of 8."""
    return replace(corpus, val=corpus.val * copies)


def test_a_long_validation_text_is_sampled_and_the_run_says_so(tiny, corpus):
    done = train(small(tiny), long_val(corpus), SHORT, eval_tokens=800, progress=False)
    assert set(done.history["val_chars"]) == {800}
    assert "a sample of 800 of 2,399 characters" in repr(done)
    whole = train(small(tiny), long_val(corpus), SHORT, eval_tokens=None, progress=False)
    assert set(whole.history["val_chars"]) == {2399}
    assert "on 2,399 characters" in repr(whole)
    assert same(weights(done.model), weights(whole.model))  # looking changes nothing


def test_built_in_validation_texts_are_shorter_than_the_sample():
    """Tiny Shakespeare is not always at hand; its validation text is its last tenth."""
    lengths = [len(load_corpus(name).val) for name in ("tales", "topics", "mess3", "recall")]
    assert max(*lengths, SHAKESPEARE_BYTES // 10 + 1) < EVAL_TOKENS


@pytest.mark.parametrize("most", [1, 8, 100, 800, 2398])
@pytest.mark.parametrize("objective", ["ce", "mse"])
def test_a_sampled_evaluation_is_the_mean_over_its_windows(tiny, corpus, most, objective):
    """Against every window read alone; the windows lie evenly: no gap is twice as wide as another."""
    model, text = small(tiny, alive=True, objective=objective), long_val(corpus)
    held_out = HeldOut(model, text, most)
    found = held_out.score(model, lambda share: True)
    assert found.chars == sum(end - begin - skip for begin, end, skip in held_out.pieces)
    assert found.chars <= max(most, 8)
    alone = [
        -evaluate(model, model.tokenizer.decode(held_out.ids[b:e])) for b, e, _ in held_out.pieces
    ]
    sizes = [end - begin - skip for begin, end, skip in held_out.pieces]
    expected = sum(size * nats for size, nats in zip(sizes, alone, strict=True)) / sum(sizes)
    assert found.nats_per_char == pytest.approx(-expected, rel=1e-5)  # float32 log-probs
    begins = [begin // 8 for begin, _, _ in held_out.pieces]
    gaps = {after - before for before, after in itertools.pairwise(begins)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_a_sample_of_streams_reads_each_from_its_beginning(tiny, corpus):
    model = tiny(window="window(1, 0, 0, None, 'sum')", context=8)
    documents = Corpus("d", corpus.train, ("abcdefghijk " * 3 + "\n") * 9, "ab", separator="\n")
    held_out = HeldOut(model, documents, 150)
    begins = [begin for begin, _, first in held_out.pieces if first == 0]
    assert all(begin % 37 == 0 for begin in begins)
    assert len(begins) > 1
    for before, piece in itertools.pairwise(held_out.pieces):
        assert piece[2] == 0 or before[0] < piece[0] < before[1]
    assert sum(end - begin - skip for begin, end, skip in held_out.pieces) <= 150


def test_an_evaluation_is_interrupted_between_batches_and_made_up_for(
    tiny, corpus, tmp_path, monkeypatch
):
    """Ctrl-C within the second of five batches of the second evaluation; then it goes on exactly."""
    text, batches, wait_for_ever = long_val(corpus), [], threading.Event()
    whole = train(small(tiny), text, SHORT, progress=False)

    def watched(*arguments):
        for found in scored_batches(*arguments):
            batches.append(len(found))
            if len(batches) == 7:
                os.kill(os.getpid(), signal.SIGINT)
                wait_for_ever.wait(600)  # what Ctrl-C cuts short
            yield found

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "scored_batches", watched)
        part = train(small(tiny), text, SHORT, out=tmp_path, progress=False)
    assert part.interrupted
    assert part.history["step"].tolist() == [2, 4]
    assert part.history["val_chars"].tolist() == [2399, 2048]  # the caller's
    assert len(batches) == 5 + 2 + 4
    assert "a sample of 2,048 of 2,399 characters, step 4, interrupted" in repr(part)
    rest = train(small(tiny), text, SHORT, out=tmp_path, progress=False)
    assert rest.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))
    assert same(weights(whole.model), weights(rest.model))


@pytest.mark.parametrize("fit", [1, 2, 3, 4])  # of a step or of an evaluation, in turns
def test_a_fit_is_interrupted_and_made_up_for(tiny, corpus, tmp_path, monkeypatch, fit):
    """Ctrl-C while a readout is being fitted: it is as before, and the run goes on exactly."""
    monkeypatch.setattr("softar_lab.training.trainer.REFIT", 2)
    config = replace(SHORT, soft_inputs="scheduled(0.5)", eval_every=2)
    whole = train(soft_model(tiny), corpus, config, progress=False)
    fits, calibrate, wait_for_ever = [], data.calibrate, threading.Event()

    def watched(model, *given):
        fits.append(0)
        calibrate(model, *given)
        if len(fits) == fit:
            os.kill(os.getpid(), signal.SIGINT)
            wait_for_ever.wait(600)  # what Ctrl-C cuts short

    with monkeypatch.context() as patch:
        patch.setattr(data, "calibrate", watched)
        part = train(soft_model(tiny), corpus, config, out=tmp_path, progress=False)
    assert part.interrupted
    rest = train(soft_model(tiny), corpus, config, out=tmp_path, progress=False)
    assert rest.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))
    assert same(weights(whole.model), weights(rest.model))


def soft_model(tiny):
    return tiny(alive=False, objective="mse", table="random", readout="affine(64)")


def test_the_last_evaluation_is_made_up_for_too(tiny, corpus, tmp_path, monkeypatch):
    text = long_val(corpus)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", lambda *args, **kwargs: stop_here(args))
        part = train(small(tiny), text, replace(SHORT, eval_every=0), out=tmp_path, progress=False)
    assert part.interrupted
    rest = train(small(tiny), text, replace(SHORT, eval_every=0), out=tmp_path, progress=False)
    assert not rest.interrupted
    assert rest.history["step"].tolist() == [6]
    assert SoftAR.load(tmp_path).card["val_bits_per_char"] == rest.val_bits_per_char


def stop_here(args):
    """An evaluation that is interrupted at once; the one for the caller gives a row."""
    trainer, *watched = args
    if not watched:
        trainer.history.append({"step": trainer.step, "val_bits_per_char": 0.0, "seconds": 0.0})
        return trainer.history[-1]
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)  # the handler runs
    return watched[0](0.5) or None


@pytest.mark.parametrize("wrong", [0, -1])
def test_eval_tokens_is_a_whole_number_or_none(tiny, corpus, wrong):
    with pytest.raises(ValueError, match="eval_tokens must be a whole number"):
        train(small(tiny), corpus, SHORT, eval_tokens=wrong, progress=False)


@pytest.mark.parametrize("stop_at", [6, 3])
def test_a_run_is_prolonged_by_the_schedule_of_its_new_length(tiny, corpus, tmp_path, stop_at):
    """Against the steps made one by one: the old schedule up to `stop_at`, then the new one."""
    longer = replace(SHORT, steps=10)
    train(
        small(tiny),
        corpus,
        SHORT,
        out=tmp_path,
        progress=False,
        on_step=lambda e: e["step"] == stop_at,
    )
    done = train(small(tiny), corpus, longer, out=tmp_path, progress=False)
    model = small(tiny).train()
    rows, optimizers = TrainingRows(model, corpus, SHORT, 0), make_optimizers(model, SHORT)
    for step in range(10):
        update(model, rows, step, optimizers, SHORT if step < stop_at else longer)
    assert same(weights(done.model), weights(model))
    card = SoftAR.load(tmp_path).card
    assert card["prolonged"] == [{"step": stop_at, "steps": 6}]
    assert card["train"]["steps"] == card["steps_done"] == 10
    # the prolonged run is a run: returned as it is, and prolonged again
    again = train(small(tiny), corpus, longer, out=tmp_path, progress=False, on_step=pytest.fail)
    assert again.history.equals(done.history)
    train(small(tiny), corpus, replace(SHORT, steps=12), out=tmp_path, progress=False)
    assert SoftAR.load(tmp_path).card["prolonged"] == [
        {"step": stop_at, "steps": 6}, {"step": 10, "steps": 10},
    ]  # fmt: skip
    with pytest.raises(CheckpointError, match="12 steps, which can be prolonged but not cut to 6"):
        train(small(tiny), corpus, SHORT, out=tmp_path, progress=False)
    anew = train(small(tiny), corpus, SHORT, out=tmp_path, resume=False, progress=False)
    assert "prolonged" not in anew.model.card


def test_what_decides_nothing_does_not_hinder_a_run_from_going_on(tiny, corpus, tmp_path):
    whole = train(small(tiny), corpus, SHORT, progress=False)
    train(
        small(tiny), corpus, SHORT, out=tmp_path, progress=False, on_step=lambda e: e["step"] == 3
    )
    renamed, rarely = replace(corpus, name="other.txt"), replace(SHORT, save_every=0)
    rest = train(small(tiny), renamed, rarely, out=tmp_path, progress=False)
    assert same(weights(whole.model), weights(rest.model))


@pytest.mark.parametrize(
    "rates",
    [{"adam_learning_rate": 1e38}, {"adam_learning_rate": 1e300}, {"muon_learning_rate": 1e38},
     {"weight_decay": 1e300}],
)  # fmt: skip
@pytest.mark.parametrize("soft_inputs", [None, "scheduled(0.5)"])
@pytest.mark.parametrize("objective", ["ce", "mse", "flow(3)"])
def test_train_whose_numbers_overflow_diverges(tiny, corpus, rates, soft_inputs, objective):
    wild = replace(SHORT, soft_inputs=soft_inputs, **rates)
    with pytest.raises(TrainingDiverged, match=r"at step \d: lower muon_learning_rate"):
        train(small(tiny, objective=objective), corpus, wild, progress=False)


@pytest.mark.parametrize("tokenizer", [CharTokenizer, BPETokenizer])
def test_compact_ids_are_those_of_the_whole_text_in_the_smallest_type(tiny, monkeypatch, tokenizer):
    monkeypatch.setattr(data, "PART", 50)
    text = "one two three\n\n  four\tfive six seven\nthe end of the lines" * 9
    fitted = tokenizer.fit(text) if tokenizer is CharTokenizer else tokenizer.fit(text, 60)
    model = SoftAR(ModelConfig(vocab_size=fitted.vocab_size), fitted)
    ids = compact_ids(model, text)
    assert ids.dtype == torch.uint8
    assert torch.equal(ids.long(), fitted.encode(text))


@pytest.mark.parametrize(
    ("size", "dtype"), [(255, "uint8"), (256, "uint8"), (257, "int16"), (32_769, "int32")]
)
def test_compact_ids_hold_every_id(size, dtype):
    text = "".join(map(chr, range(0x10000, 0x10000 + size)))
    model = SoftAR(
        ModelConfig(vocab_size=size, embedding_dim=2, d_model=8), CharTokenizer.fit(text)
    )
    ids = compact_ids(model, text)
    assert ids.dtype == getattr(torch, dtype)
    assert torch.equal(ids.long(), torch.arange(size))
