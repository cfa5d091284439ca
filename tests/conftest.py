"""Tiny models that are alive: a fresh one's blocks and head are zero, so any wrong cache would look
right.
"""

import os

import pytest
import torch
import typed  # noqa: F401 (before the package, whose functions it checks)
from hypothesis import HealthCheck, settings

from softar_lab.data.corpora import Corpus
from softar_lab.data.tokenizers.char import CharTokenizer
from softar_lab.models import compiled
from softar_lab.models.config import ModelConfig
from softar_lab.models.mixing import MixingCollapse
from softar_lab.models.soft_ar import SoftAR

compiled.prepare()  # once for a processor, like `make venv`; else the first tests would go PyTorch's way
# One thread, unless the user says otherwise: handing such small products round costs more than it
# gains.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1").split(",")[0]))

# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("lab", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lab")

LETTERS = "abcdefghijk \n"  # 13 symbols
OBJECTIVES = ("ce", "mse", "metric", "vmf")  # p moves gently with the hidden state
EVERY_OBJECTIVE = (
    *OBJECTIVES,
    "anchored",
    "cosine",
    "successor(0.5)",
    "mixture(2)",
    "energy(4)",
    "flow(3)",
)
TABLES = ("joint", "random", "orthonormal")


def enliven(model: SoftAR, seed: int, scale: float) -> SoftAR:
    """Give every weight but the table's a random value, so that each part has its say in every
    prediction.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if not name.startswith("table"):
            parameter.data += torch.empty_like(parameter).normal_(0, scale, generator=generator)
    for name, buffer in model.objective.readout.named_buffers():
        if name in ("weight", "bias"):  # of an affine reading, which begins knowing nothing
            buffer.normal_(0, 1, generator=generator)
    return model.eval()


@pytest.fixture(scope="session")
def tiny():
    """A factory of small models: tiny(objective="mse", context=8, …); alive=False leaves them as
    they begin.

    `mixing`: the window of a mixing layer, as alive as the rest. At scale 0.3 they are wild: moving
    an input by 1 moves a prediction by up to 270. At 0.15 they are tame.
    """

    def make(alive=True, seed=0, letters=LETTERS, scale=0.3, mixing=None, **changes) -> SoftAR:
        tokenizer = CharTokenizer.fit(letters)
        shape = {
            "vocab_size": tokenizer.vocab_size,
            "context": 12,
            "n_layers": 2,
            "n_heads": 2,
            "d_model": 16,
        }
        model = SoftAR(ModelConfig(**{**shape, **changes}), tokenizer, seed)
        if mixing:
            model.mixing = MixingCollapse(model.config, mixing, seed).requires_grad_(False)
        return enliven(model, seed, scale) if alive else model

    return make


@pytest.fixture(scope="session")
def rng():
    """A factory of seeded generators."""
    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """A small text in which each letter is followed by the next: easy to learn, and every letter
    occurs.
    """
    text = "abcdefghijk \n" * 30
    return Corpus(name="letters", train=text, val=text[:60], test=text[:40])


@pytest.fixture
def nothing_raised_or_logged(capsys, caplog):
    """Behind a panel. (An error in a worker would be a warning, and so an error, of pytest's
    own.)
    """
    yield
    assert capsys.readouterr() == ("", "")
    assert caplog.records == []
