"""The device that a model runs on."""

import torch


def pick_device(device: str = "auto") -> torch.device:
    """The device of that name; "auto": the GPU where there is one, else the CPU.

    Raises:
        ValueError: for an unknown name, or a GPU where there is none.
    """
    if not isinstance(device, str | torch.device) or device != "auto":
        try:
            found = torch.device(device)
        except (RuntimeError, TypeError) as error:
            known = 'device must be "auto", "cpu", "cuda" or another name of PyTorch\'s'
            raise ValueError(f"{known}, not {device!r:.80}") from error
        if found.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f'device {device!r}: there is no GPU here; "auto" or "cpu" works')
        return found
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
