"""Low-rank adapters (LoRA) on a frozen model: put on, saved as peft does, read again, merged (K32)."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ...core.predictor import Predictor
from ...core.store import read_bytes, write_atomic
from ...models.soft_ar import SoftAR
from .adapt_config import AdaptConfig
from .adapters import ABOUT, WEIGHTS
from .errors import PretrainedError, listed, reason
from .prompted import Prompted
from .quantised import holds_nf4, is_nf4, matrix_of, sharing_copy
from .soft_reading import check_trainable
from .wrapper import Pretrained

NAME = "default"  # as peft calls an adapter that nobody named


@lru_cache
def peft() -> Any:
    """The library peft, loaded when it is first needed.

    Raises:
        PretrainedError: where it is not installed.
    """
    if find_spec("peft") is None:
        raise PretrainedError('peft missing: pip install "softar-lab[adapting]"')
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # peft loads it, and it would complain
    import peft as library

    return library


class Adapted:
    """A copy of a frozen model with adapters in it that can be trained.

    Attributes:
        frozen: the model itself; it is not changed.
        model: the copy. A pretrained one shares all weights with `frozen`.
        library: the copy as peft has it.
    """

    def __init__(self, frozen: Predictor, config: Any):
        _check_unprompted(frozen)
        self.frozen = frozen
        with _quiet():
            if isinstance(frozen, Pretrained):
                network = sharing_copy(frozen.network)
                self.library = peft().get_peft_model(network, config)
                source = frozen.tokenizer.library, frozen.config.source
                self.model: Predictor = Pretrained(network, *source)
            else:
                self.model = deepcopy(frozen).eval()
                self.library = peft().get_peft_model(self.model, config)
        for weight in self.weights.values():
            weight.requires_grad_(True)  # a pretrained model freezes all that is in it

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The trained weights by name."""
        found = self.library.named_parameters()
        return {name: one for name, one in found if ".lora_" in name}

    def finished(self) -> Predictor:
        """The model to generate with: a pretrained one as it is, a SoftAR with merged weights.

        The compiled steps of a SoftAR read its matrices themselves, so an adapter beside them would
        be overlooked.
        """
        if isinstance(self.model, Pretrained):
            for weight in self.weights.values():
                weight.requires_grad_(False)
            return self.model
        plain = deepcopy(self.frozen).eval()
        with torch.no_grad():
            for name, layer in adapted_layers(self.model).items():
                _check_sum(name, layer)
                plain.get_submodule(name).weight.copy_(summed(layer))
        return plain

    def save(self, folder: str | Path) -> None:
        """Write the adapters as peft does, file by file, each completely or not at all."""
        with TemporaryDirectory() as place, _quiet():
            self.library.save_pretrained(place, save_embedding_layers=False)
            for file in (WEIGHTS, ABOUT):
                write_atomic(Path(folder, file), read_bytes(Path(place, file)))


def attach(model: Predictor, config: AdaptConfig, seed: int = 0) -> Adapted:
    """Put new adapters on a model; they change nothing until they are trained.

    Args:
        model: it is not changed.
        config: the adapters' rank, alpha and targets.
        seed: draws their first weights.

    Raises:
        ValueError: where the model cannot be adapted, or has adapters already.
    """
    check_trainable(model)
    module = model.network if isinstance(model, Pretrained) else model
    if adapted_layers(module):
        raise ValueError("this model has adapters already: merge them (merged) or load its base")
    options = {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": 0.0}
    options["target_modules"] = _short(targets(model, config.targets), module)
    if isinstance(model, Pretrained):
        options["task_type"] = "CAUSAL_LM"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        return Adapted(model, peft().LoraConfig(**options))


def _check_unprompted(model: Predictor) -> None:
    if isinstance(model, Prompted):
        raise ValueError(
            "give the model without its prompt (model.unprompted); put the prompt in front of what "
            "comes out: prompted(adapted, prompt)"
        )


def targets(model: Predictor, which: str) -> list[str]:
    """The names of the linear layers that get an adapter: "all", "attention" or "mlp"."""
    if isinstance(model, SoftAR):
        found = [
            f"body.{name}" for name, one in model.body.named_modules() if isinstance(one, nn.Linear)
        ]
        attends = ("query_key_value", "attention_out")
    else:
        head = model.network.get_output_embeddings()
        layers = model.network.named_modules()
        found = [name for name, one in layers if isinstance(one, nn.Linear) and one is not head]
        attends = ("attn", "attention")
    inside = {name for name in found if any(part in name for part in attends)}
    chosen = {"all": found, "attention": [n for n in found if n in inside]}
    chosen["mlp"] = [n for n in found if n not in inside]
    if not chosen[which]:
        raise ValueError(f"this model has no linear layers for targets={which!r}")
    return chosen[which]


def _short(names: list[str], module: nn.Module) -> list[str]:
    """The last parts of layers' names where they mean these layers alone; else the whole names."""
    ends = sorted({name.rpartition(".")[2] for name in names})
    meant = [name for name, _ in module.named_modules() if name.rpartition(".")[2] in ends]
    return ends if sorted(meant) == sorted(names) else names


# -- what was saved --------------------------------------------------------------------------------


def load_adapter(model: Predictor, folder: str | Path) -> Predictor:
    """A model with the low-rank adapters of a folder of peft; `model` itself does not change.

    A pretrained model gets them beside its weights, a SoftAR into them.

    Raises:
        PretrainedError: where the folder holds something else, or weights that do not fit, in name
            or shape; the message names them.
    """
    from safetensors.torch import load_file

    check_trainable(model)
    try:
        config = peft().PeftConfig.from_pretrained(str(folder))
        given = load_file(Path(folder, WEIGHTS))
    except Exception as error:  # whatever a foreign folder makes the library stumble over
        raise PretrainedError(f"{folder}: no adapter of peft ({reason(error)})") from error
    if config.peft_type.value != "LORA":
        raise PretrainedError(f"{folder}: a {config.peft_type.value}, not low-rank adapters (LORA)")
    try:
        adapted = Adapted(model, config)
        due = peft().get_peft_model_state_dict(adapted.library)
        _check_fits(folder, given, due)
        peft().set_peft_model_state_dict(adapted.library, given)
        found = adapted.finished()
        if isinstance(found, SoftAR):
            _check_same(adapted.model, found)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, PretrainedError):
            raise
        raise PretrainedError(f"{folder}: does not fit this model ({reason(error)})") from error
    return found


def _check_fits(folder: str | Path, given: dict[str, Tensor], due: dict[str, Tensor]) -> None:
    """Check the names and shapes of an adapter's weights.

    Raises:
        PretrainedError: for weights that are missing, left over, or of another shape.
    """
    other = [n for n in given.keys() & due.keys() if given[n].shape != due[n].shape]
    problems = {
        "missing": due.keys() - given.keys(),
        "without a place": given.keys() - due.keys(),
        "of another shape": other,
    }
    for what, names in problems.items():
        if names:
            raise PretrainedError(
                f"{folder}: not the weights of adapters on this model; {what}: {listed(sorted(names))}"
            )


# -- merging ---------------------------------------------------------------------------------------


def adapted_layers(module: nn.Module) -> dict[str, nn.Module]:
    """The layers of a module that have an adapter of peft's kind LoRA, by name."""
    if not any(type(one).__module__.startswith("peft.") for one in module.modules()):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: one for name, one in module.named_modules() if isinstance(one, LoraLayer)}


def summed(layer: Any) -> Tensor:
    """The matrix of a layer plus its adapter's, summed in float64 and rounded once."""
    whole = layer.get_base_layer().weight.detach()
    a, b = layer.lora_A[NAME].weight.double(), layer.lora_B[NAME].weight.double()
    return (whole.double() + layer.scaling[NAME] * (b @ a)).to(whole.dtype)


def merged(model: Pretrained) -> Pretrained:
    """A pretrained model whose low-rank adapters are added to its weights; it needs peft no more.

    The merged model must predict what the model does, up to rounding.

    Raises:
        ValueError: for a model without adapters, or with a kind of adapters that is no plain sum;
            for weights in NF4. There an update of 1 % of the weights survives by 2 %, since the
            grid is coarser than the update: the adapter would be deleted.
    """
    _check_unprompted(model)
    layers = adapted_layers(model.network)
    if not layers:
        raise ValueError("this model has no low-rank adapters to merge")
    if holds_nf4(model.network):
        raise ValueError(
            "adapters cannot be merged into NF4: its grid is coarser than the update, of which some 2 % "
            "would be left. Merge them into the float32 model: load_adapter(load_pretrained(…), folder)"
        )
    network = sharing_copy(model.network)
    for name, layer in layers.items():
        network.set_submodule(name, _plain(name, layer))
    new = Pretrained(network, model.tokenizer.library, model.config.source)
    _check_same(model, new)
    return new


def _plain(name: str, layer: Any) -> nn.Linear:
    """A linear layer with the sum of a layer's matrix and its adapter's."""
    _check_sum(name, layer)
    base = layer.get_base_layer()
    new = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
    new.weight = nn.Parameter(summed(layer), requires_grad=False)
    new.bias = base.bias
    return new


def _check_sum(name: str, layer: Any) -> None:
    """Check that a layer computes with its matrix plus B A, and nothing else.

    Raises:
        ValueError: where it does not: a DoRA, a bias of the adapter's, several adapters.
    """
    plain = type(layer.get_base_layer()) is nn.Linear and [*layer.lora_A] == [NAME]
    if not plain or layer.use_dora.get(NAME) or layer.lora_bias.get(NAME):
        raise ValueError(f"{name}: its adapter is no plain sum with a linear layer of PyTorch's")


def _check_same(model: Predictor, new: Predictor) -> None:
    """Check that two models predict the same for random tokens, up to rounding.

    Raises:
        ValueError: where they do not.
    """
    generator = torch.Generator().manual_seed(0)
    shape = 2, min(16, model.context)
    ids = torch.randint(model.vocab_size, shape, generator=generator).to(model.device)
    with torch.no_grad():
        one, other = model.log_probs(ids)[:, 1:], new.log_probs(ids)[:, 1:]
    apart = float((one - other).abs().max())
    # half the digits are left: what a wrong sum changes is larger, what rounding does is smaller
    bound = torch.finfo(next(new.parameters()).dtype).eps ** 0.5 * float(one.abs().max())
    if not apart <= bound:
        raise ValueError(
            f"merged, the model predicts something else: off by {apart:.2g} nats, where rounding "
            f"explains {bound:.2g}"
        )


def left_after_nf4(layer: Any) -> float:
    """The share of an adapter's update that is left when it is merged into NF4, along itself.

    Args:
        layer: a layer in NF4 with an adapter.
    """
    from .quantised import nf4

    base = layer.get_base_layer()
    if not is_nf4(base):
        raise ValueError("this layer's matrix is not in NF4")
    whole = matrix_of(base)
    a, b = layer.lora_A[NAME].weight.detach(), layer.lora_B[NAME].weight.detach()
    update = layer.scaling[NAME] * (b @ a)
    moved = nf4(whole + update) - whole
    return float((moved * update).sum() / update.square().sum())


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the warnings of a library, which would spoil a notebook's output."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
