"""Adapters of the library peft on a pretrained network: in a folder, or in memory (K31)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .errors import PretrainedError, listed, reason

ABOUT, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Their rows stand in front of a text; they are no change of the network.
_PROMPTS = (
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"),
)


def is_adapter(place: str) -> bool:
    """Whether a folder holds an adapter, and no network of its own."""
    return Path(place, ABOUT).is_file() and not Path(place, "config.json").is_file()


def read_adapter(place: str, read_base: Callable[[str], nn.Module]) -> tuple[nn.Module, str]:
    """The network of an adapter's folder, with the adapter in it, and where its base is.

    Args:
        place: the folder.
        read_base: reads the network that the adapter was trained on, from a folder or by name.

    Raises:
        PretrainedError: where the folder holds something else, or weights that do not fit.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    # 1) what the folder says
    try:
        about = json.loads(Path(place, ABOUT).read_text(encoding="utf-8"))
        kind, base = about["peft_type"], about["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PretrainedError(f"{place}: {ABOUT} is damaged ({reason(error)})") from error
    _refuse_prompts(place, kind, about)
    if not base:
        raise PretrainedError(f"{place}: {ABOUT} does not name the base (base_model_name_or_path)")
    # 2) the base, and the adapter on it
    network = read_base(base)
    try:
        given = set(load_file(Path(place, WEIGHTS)))
        config = PeftConfig.from_pretrained(place)
        model = PeftModel.from_pretrained(network, place, config=config, local_files_only=True)
        due = set(get_peft_model_state_dict(model))
    except Exception as error:  # whatever a foreign file makes the library stumble over
        raise PretrainedError(
            f"{place}: this adapter does not fit {base} ({reason(error)})"
        ) from error
    # 3) the library is silent about what is missing or left over
    for what, names in {"missing": due - given, "without a place": given - due}.items():
        if names:
            raise PretrainedError(
                f"{place}: these are not the weights of this adapter on {base}; {what}: "
                f"{listed(sorted(names))}"
            )
    return unwrapped(model), base


def unwrapped(network: nn.Module) -> nn.Module:
    """The network inside a model of peft, with its active adapters; any other network unchanged.

    A model of peft no longer trains afterwards, as every network that is read.

    Raises:
        PretrainedError: where the network inside does not give what the whole model gives.
    """
    if type(network).__module__.partition(".")[0] != "peft":
        return network
    config = network.active_peft_config
    _refuse_prompts("this model", config.peft_type.value, config.to_dict())
    inside = network.get_base_model()
    ids = torch.arange(4, device=inside.get_input_embeddings().weight.device)[None]
    network.eval()
    with torch.inference_mode():
        whole, found = (one(input_ids=ids, use_cache=False).logits for one in (network, inside))
    if whole.shape != found.shape or not torch.equal(whole, found):
        raise PretrainedError(
            f"adapters of the kind {config.peft_type.value} cannot be read here: "
            "they act outside the network; merge_and_unload() of peft may put them into it"
        )
    return inside


def _refuse_prompts(place: str, kind: str, about: dict[str, Any]) -> None:
    """Refuse what is not a change of the network's weights.

    Raises:
        PretrainedError: for soft prompts, and for adapters that begin at a certain text.
    """
    if kind in _PROMPTS:
        raise PretrainedError(
            f"{place}: {about.get('num_virtual_tokens')} soft tokens of the kind {kind}, not the weights of a "
            f"network. Load the base {about.get('base_model_name_or_path')} and, of prompt tuning, put the "
            "vectors in front of it: prompted(model, load_prompt(folder))"
        )
    if about.get("alora_invocation_tokens"):
        raise PretrainedError(
            f"{place}: this adapter begins at certain tokens (alora_invocation_tokens), which texts of "
            "vectors do not have"
        )
