"""What a panel knows of a path's drift, and which part of it is only misread (K2, K5)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..core.predictor import Predictor
from ..core.trajectory import Trajectory
from ..generation import generate
from ..metrics.drift import drift
from ..metrics.drift_readers import Readers, drift_by_reader, fit_readers

PATHS, BEGIN, FITTED = (
    16,
    24,
    64,
)  # paths that readers are fitted on, and their steps: hard, then soft
SEED = 10**6  # of the first of them; a panel's own text has another
PARTS = {  # the strips that need a judge, or the model's own hard reading
    "drift": "drift (nats)",
    "misread": "drift, part misread (nats)",
    "forgotten": "drift, part forgotten (nats)",
}


def part_of_drift(
    kind: str,
    trajectory: Trajectory,
    model: Predictor,
    judge: Predictor | None,
    readers: Readers | None = None,
) -> dict[str, Tensor]:
    """One of `PARTS` of each step (T,), in nats, with whatever else is known then.

    `misread` is below 0 where the re-fitted reader is worse than the model's own.

    Raises:
        ValueError: where there is none: the text is impossible for the judge, or a re-fitted reader
            finds no hidden states.
    """
    if kind == "drift":
        frame = drift(trajectory, model, judge)
        return {"drift": torch.from_numpy(frame["kl"].to_numpy(copy=True))}
    frame = drift_by_reader(trajectory, model, readers, judge)
    own, refitted = (
        torch.from_numpy(frame[name].to_numpy(copy=True)) for name in ("own", "refitted")
    )
    return {"drift": own, "misread": own - refitted, "forgotten": refitted}


def readers_for(
    model: Predictor, options: Mapping[str, Any], prompt: str, judge: Predictor | None
) -> Readers:
    """Readers fitted on paths that were written as a text was, from other beginnings.

    The beginnings are what the model writes behind the prompt when it reads symbols.

    Args:
        model: writes the paths.
        options: of `generate`, as for the text itself, but its seed.
        prompt: of the text.
        judge: the truth; None: the model itself, reading symbols.

    Raises:
        ValueError: as `fit_readers` does.
    """
    seeds = range(SEED, SEED + PATHS)
    hard = generate(model, [prompt] * PATHS, BEGIN, seed=seeds, temperature=1)
    begins = [path.prompt + path.text for path in hard]
    paths = generate(model, begins, FITTED, seed=seeds, **options)
    return fit_readers(paths, model, judge)
