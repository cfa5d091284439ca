"""Which vectors does the model see (K8)? The axis `window` of generate(): a name or a `Window`, as in ModelConfig."""

from ..models.window import Window, names, resolve

__all__ = ["Window", "names", "resolve"]
