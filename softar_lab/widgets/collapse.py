"""CollapseExplorer: two readings of the same predictions, side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.predictor import Predictor
from .generation import GenerationPanel


class CollapseExplorer(GenerationPanel):
    """The `GenerationPanel` that begins with two collapses and shows the drift.

    Some paths do not depend on the symbols that are read off them (schedule "never"). After a
    change of collapse, temperature or seed, the panel then reads the stored path again.

    Args:
        models: one predictor, or several by name.
        prompt: the prompt of all settings.
        steps: how many symbols each setting generates.
        settings: what each setting begins with.
        options: further arguments of `GenerationPanel`.
    """

    def __init__(
        self,
        models: Predictor | Mapping[str, Predictor],
        prompt: str = "",
        steps: int = 120,
        settings: Sequence[Mapping[str, Any]] = ({"collapse": "softmax"}, {"collapse": "nearest"}),
        **options: Any,
    ):
        options = {"strip": "drift", **options}
        super().__init__(models, prompt, steps, settings=settings, **options)
