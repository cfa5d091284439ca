"""Every shipped checkpoint is what its recipe makes, and as good as its card says."""

import json
import math
from dataclasses import asdict

import pytest

from softar_lab.data.corpora import load_corpus, load_language, tales_words
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.models.scoring import evaluate
from softar_lab.models.soft_ar import SoftAR
from softar_lab.training.config import TrainConfig
from softar_studies.make_checkpoints import FOLDER, RECIPES, model_config

slow = {"tales-words": pytest.mark.slow}  # its corpus takes a while to be told
each = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=slow.get(name, ())) for name in RECIPES]
)


def card(name):
    return json.loads((FOLDER / name / "config.json").read_text(encoding="utf-8"))


def corpus_of(name):
    return load_corpus(RECIPES[name]["corpus"])


def test_every_checkpoint_has_a_recipe_and_every_recipe_a_checkpoint():
    assert {path.name for path in FOLDER.iterdir()} == set(RECIPES)


@each
def test_model_is_the_one_of_the_recipe(name):
    model, tokenizer = SoftAR.load(FOLDER / name), CharTokenizer.fit(corpus_of(name).train)
    assert model.config == model_config(RECIPES[name], tokenizer)
    assert model.tokenizer.tokens == tokenizer.tokens


@each
def test_card_tells_the_recipe(name):
    told, recipe, corpus = card(name)["card"], RECIPES[name], corpus_of(name)
    assert {**asdict(TrainConfig()), **told["train"]} == asdict(
        recipe["train"]
    )  # a card may be older than a field
    assert told["steps_done"] == recipe["train"].steps
    assert (told["seed"], told["train_seed"]) == (0, 0)
    named = {
        "name": corpus.name,
        "sha256": corpus.sha256,
        "floor_bits_per_char": corpus.floor_bits_per_char,
    }
    assert told["corpus"] == named


@each
def test_files_are_the_model_and_its_card_and_small(name):
    sizes = {path.name: path.stat().st_size for path in (FOLDER / name).iterdir()}
    assert set(sizes) == {"config.json", "model.safetensors"}
    assert sum(sizes.values()) <= 4_000_000


def truth_of(name, text, separator):
    """Bits per symbol of the language itself; of words, the bits of their letters."""
    if name == "tales-words":
        letters = tales_words().decode(text)
        return (
            evaluate(load_language("tales"), letters, "\n") / math.log(2) * len(letters) / len(text)
        )
    return evaluate(load_language(name), text, separator) / math.log(2)


@pytest.mark.slow
@each
def test_figure_on_the_card_is_what_the_model_costs(name):
    """Some documents stand for all of them: what tales cost above the truth has a standard error of
    at most 0.009.
    """
    corpus = corpus_of(name)
    some = corpus.documents("val")[
        :: 2 if name == "tales-words" else 8
    ]  # words are fewer than letters
    text, told = "".join(some), card(name)["card"]["val_bits_per_char"]
    bits = evaluate(SoftAR.load(FOLDER / name), text, corpus.separator) / math.log(2)
    truth = truth_of(corpus.name, text, corpus.separator)
    excess = told - corpus.floor_bits_per_char
    assert len(text) > 1_500
    assert bits - truth == pytest.approx(excess, abs=0.03)
    assert 0 < excess < 0.3
