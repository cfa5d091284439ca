"""The error of everything that reads a pretrained model."""


class PretrainedError(ValueError):
    """A model cannot be loaded; the message gives the reason and a remedy."""


def listed(names: list[str], most: int = 3) -> str:
    """The first few names of a list, and how many follow."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def reason(error: Exception) -> str:
    """The first line of an error's message, or its kind."""
    text = str(error).strip()
    return f"{text.splitlines()[0]:.200}" if text else type(error).__name__
