"""How far rounding may carry a result: derived from the model at hand, the same on every processor.

A sum of n products in floating point, in whatever order it is taken, is the exact sum for factors
that are off by at most n·u, u = eps / 2 (Higham, Accuracy and Stability of Numerical Algorithms,
section 3.1), and hardly ever by more than √n·u (Higham and Mary, doi 10.1137/18M1226312). So
float32 of a model lies as far from the exact result as float64 of the same model does with every
weight moved by √n·u. Whatever enlarges rounding between the weights and the result, a wild layer or
a path that feeds on itself, is in that figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from softar_lab.models.soft_ar import SoftAR

EPS = torch.finfo(torch.float32).eps
TOO_WILD = 1e-3  # of what is compared: a test that allowed more would tell nothing
_known: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()


@contextmanager
def float64() -> Iterator[None]:
    """What the package computes in float32 it computes in float64, if the model is one of
    float64.
    """
    was = torch.Tensor.float
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.Tensor.float = was


def twins(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The model in float64, and once more with every weight moved by √n·u."""
    exact = deepcopy(model).double()
    moved = deepcopy(exact)
    generator = torch.Generator().manual_seed(0)
    for weight in moved.parameters():
        n = weight.shape[-1] if weight.ndim else 1  # factors of a sum
        signs = torch.randint(2, weight.shape, generator=generator) * 2 - 1
        weight.data *= 1 + n**0.5 * EPS / 2 * signs
    return exact, moved


def rounding(
    model: nn.Module,
    compute: Callable[[nn.Module], Tensor | Sequence[Tensor]],
    both: tuple[nn.Module, nn.Module] | None = None,
) -> float:
    """How far two float32 results of `compute(model)` may lie apart, number by number.

    Args:
        compute: from a model to what is compared, one tensor or several.
        both: the model's twins, where a large one is asked several times.
    Returns: twice the largest change by moving every weight by √n·u, for either result may be off.
    Raises AssertionError where rounding may become as large as what is compared.
    """
    exact, moved = both or twins(model)
    with float64(), torch.inference_mode():
        one, other = (_several(compute(each)) for each in (exact, moved))
    apart = max(float((a - b)[a.isfinite()].abs().max()) for a, b in zip(one, other, strict=True))
    size = max(float(a[a.isfinite()].abs().max()) for a in one)
    bound = 2 * max(apart, EPS * size)
    assert bound < TOO_WILD * max(1, size), (
        f"rounding may change this by {bound:.2g}: compare it in float64"
    )
    return bound


def exact(model: SoftAR) -> dict[str, float]:
    """Tolerances for what a SoftAR predicts from equal inputs in two ways: hidden states, vectors,
    log p.
    """
    if model not in _known:
        _known[model] = rounding(model, predictions)
    return {"atol": _known[model], "rtol": 0}


def exact_logits(network: nn.Module) -> dict[str, float]:
    """Tolerances for what a network of the transformers library makes of equal tokens in two
    ways.
    """

    def compute(network: nn.Module) -> list[Tensor]:
        last = network(ids, output_hidden_states=True)
        return [last.logits, last.logits.log_softmax(-1), last.hidden_states[-1]]

    vocab_size = network.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocab_size, (8, 20), generator=torch.Generator().manual_seed(1))
    if network not in _known:
        _known[network] = rounding(network, compute)
    return {"atol": _known[network], "rtol": 0}


def predictions(model: SoftAR) -> list[Tensor]:
    """Of random texts and vectors: at every place of the context, and behind three times as many
    symbols.
    """
    generator = torch.Generator().manual_seed(1)
    c, m, dtype = model.context, model.config.embedding_dim, model.embedding.dtype
    ids = torch.randint(model.config.vocab_size, (8, 3 * c), generator=generator)
    vectors = torch.randn(8, c, m, generator=generator).to(dtype)
    of_ids, of_vectors = model.hidden_states(ids[:, :c]), model.hidden_states(vectors=vectors)
    later = model.read(model.start(8), ids).hidden[:, None]
    hidden = torch.cat([of_ids, of_vectors, later], 1)  # (8, 2 c + 3, d)
    said = model.objective.predict(hidden.flatten(0, 1), model.embedding)
    found = [hidden, said.log_probs, said.vector]
    if model.mixing is not None:
        found += [model.mixing.vectors(of_ids), model.mixing.log_probs(of_ids, model.embedding)]
    return [one for one in found if one is not None]


def _several(found: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)
