"""What is fitted on a trained model: the mixing layer learns, the body stays, the seed decides."""

import pytest
import torch

from softar_lab.data.corpora import Corpus
from softar_lab.models.mixing import Mixed
from softar_lab.models.scoring import evaluate
from softar_lab.models.soft_ar import SoftAR
from softar_lab.training.mixing import train_mixing


def fitted(tiny, corpus, **how):
    model = tiny(letters=corpus.train, **{"objective": "mse", **how.pop("model", {})})
    return model, train_mixing(
        model, corpus, **{"window": 3, "steps": 40, "rows": 12, "learning_rate": 0.02, **how}
    )


@pytest.mark.parametrize("objective", ["ce", "mse", "metric", "energy(4)"])
def test_train_mixing_reads_better_than_the_model_and_leaves_the_body_alone(
    tiny, corpus, objective
):
    before = tiny(objective=objective, letters=corpus.train)
    model, layer = fitted(tiny, corpus, model={"objective": objective})
    assert layer is model.mixing
    assert evaluate(Mixed(model), corpus.val) < 0.5 * evaluate(model, corpus.val)
    for name, tensor in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert not any(p.requires_grad for p in layer.parameters())
    assert model.card["mixing"] == {"corpus": corpus.sha256, "steps": 40, "seed": 0}


def test_train_mixing_is_decided_by_its_seed(tiny, corpus):
    torch.manual_seed(1)
    first = fitted(tiny, corpus, steps=3)[1].state_dict()
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    same, other = (fitted(tiny, corpus, steps=3, seed=seed)[1].state_dict() for seed in (0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("objective", ["mse", "metric"])
def test_train_mixing_begins_with_the_models_own_point(tiny, corpus, objective):
    """Where nothing is learned yet the block lets the hidden state through, so the reading is the
    model's.
    """
    model, _ = fitted(tiny, corpus, model={"objective": objective}, steps=1, learning_rate=1e-12)
    token_ids = model.tokenizer.encode(corpus.val)[None, :12]
    torch.testing.assert_close(
        Mixed(model).next_log_probs(token_ids), model.next_log_probs(token_ids)
    )


def test_train_mixing_is_saved_in_the_checkpoint(tiny, corpus, tmp_path):
    model, _ = fitted(tiny, corpus, steps=2)
    model.save(tmp_path)
    loaded = SoftAR.load(tmp_path)
    assert loaded.card == model.card
    assert evaluate(Mixed(loaded), corpus.val) == evaluate(Mixed(model), corpus.val)


def test_train_mixing_begins_its_rows_where_documents_begin(tiny):
    """Each document's first letter tells its only continuation, so all but that letter is
    certain.
    """
    documents = "abc abc abc \nbca bca bca \ncab cab cab \n"
    corpus = Corpus(
        name="turns", train=documents * 20, val=documents, test=documents, separator="\n"
    )
    model, _ = fitted(tiny, corpus, model={"context": 13})
    assert evaluate(Mixed(model), corpus.val, "\n") < 0.5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "TrainConfig.steps must be .* not 0"),
        ({"batch_size": 0}, "TrainConfig.batch_size must be .* not 0"),
        ({"rows": 0}, "rows above 0, not 0"),
        ({"learning_rate": 0}, "learning_rate above 0, not 0"),
        ({"window": 0}, "window must be .* not 0"),
    ],
)
def test_train_mixing_names_a_wrong_number(tiny, corpus, wrong, message):
    with pytest.raises(ValueError, match=message):
        fitted(tiny, corpus, **wrong)


def test_train_mixing_needs_a_tokenizer_and_a_text(tiny, corpus):
    with pytest.raises(ValueError, match="training text has 10 tokens"):
        train_mixing(
            tiny(letters=corpus.train),
            Corpus(name="short", train=corpus.train[:10], val="ab", test="ab"),
        )
    model = tiny(letters=corpus.train)
    model.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"):
        train_mixing(model, corpus)


def test_a_mixing_layer_is_scored_under_every_control_of_the_window(tiny, corpus):
    """The control "other" asks the reader for the window without a control."""
    model = tiny(window="window(1, 1, 3, 3, 'sum', 4)", mixing=3, letters=corpus.train)
    scored = {
        control: evaluate(Mixed(model.with_window(control) if control else model), corpus.val)
        for control in (None, "masked", "other")
    }
    assert len(set(scored.values())) == 3


def test_the_memory_of_another_window_needs_another_window(tiny):
    model = tiny(window="window(1, 1, 3, 3, 'sum', 4)").with_window("other")
    with pytest.raises(ValueError, match='window "other" gives a window the memory of another'):
        evaluate(model, "abc")
