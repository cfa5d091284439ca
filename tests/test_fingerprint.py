"""A fingerprint tells apart what answers differently, and nothing else."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from softar_lab.core.fingerprint import fingerprint
from softar_lab.counting.exact import CountingModel
from softar_lab.data.corpora import load_language
from softar_lab.data.languages import Markov, Urn
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.generation import generate
from softar_lab.models.soft_ar import SoftAR


def test_copies_and_reloaded_models_are_the_same(tiny, tmp_path):
    model = tiny(objective="mse", context=8)
    model.save(tmp_path)
    model.card["note"] = "changes no answer"
    for other in (deepcopy(model), SoftAR.load(tmp_path), model.train(), model.eval()):
        assert fingerprint(other) == fingerprint(model)


def test_one_weight_one_setting_or_one_symbol_makes_another_model(tiny):
    model = tiny()
    changed = deepcopy(model)
    changed.body.norm.weight.data[0] += 1e-7
    found = [
        fingerprint(one)
        for one in (model, changed, tiny(context=13), tiny(readout="tau", objective="mse"))
    ]
    renamed = deepcopy(model)
    renamed.tokenizer = CharTokenizer.fit("ABCDEFGHIJK \n")
    assert len({*found, fingerprint(renamed)}) == 5
    assert fingerprint(replace(model.config, context=9)) != fingerprint(model.config)


@pytest.mark.parametrize("name", ["tales", "mess3"])
def test_use_changes_no_language(name):
    language = load_language(name)
    before = fingerprint(language)
    generate(language, "", 12)
    language.next_log_probs(language.sample(9, 2, seed=0))
    assert fingerprint(language) == before == fingerprint(load_language(name))


def test_languages_and_counts_differ_by_their_numbers():
    one, other = (CountingModel.fit([text], 2) for text in ("abab", "abba"))
    numbers = np.array([1.0, 1.0])
    made = [Markov.random(3), Markov.random(3, seed=1), Urn(numbers), Urn(numbers, 2.0), one, other]
    assert len({fingerprint(each) for each in made}) == len(made)
    assert fingerprint(Markov.random(3)) == fingerprint(made[0])


def test_what_holds_itself_ends():
    loop = {"name": "loop"}
    loop["self"] = [loop]
    assert fingerprint(loop) == fingerprint(deepcopy(loop))


def test_order_matters_in_lists_and_not_in_sets():
    assert fingerprint([1, 2]) != fingerprint([2, 1])
    assert fingerprint({"b", "a"}) == fingerprint({"a", "b"})
    assert fingerprint(torch.tensor([1, 2])) != fingerprint(torch.tensor([1.0, 2.0]))
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"])
