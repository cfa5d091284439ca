"""Drift: where a path of soft tokens leaves what its text demands (K2), and how to detect it (K5).

`drift` compares with the truth; `detectors` work without it. Frames and tensors hold the steps of
several trajectories one after the other: S steps in all. Frames have the index (trajectory, step).
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.checks import whole_number
from ..core.predictor import Predictor, divergence
from ..core.trajectory import Trajectory
from ..models.embedding_tables import TINY
from ..models.nearest import nearest_distance
from ..models.simplex import hull_distance
from .replay import Batch, follow, replay, several

# distance of a float32 mixture from the hull that is only rounding, relative to the mean row norm
_ROUNDING = 1e-5
CHAIN = 8  # so many steps back the detector "cosine" looks


# -- drift -----------------------------------------------------------------------------------------


@torch.inference_mode()
def drift(
    trajectories: Trajectory | Sequence[Trajectory],
    model: Predictor,
    truth: Predictor | None = None,
) -> pd.DataFrame:
    """Distance of the model, on its partly soft path, from what should follow the emitted symbols.

    Args:
        trajectories: what the model wrote.
        model: the model that wrote them.
        truth: reads prompts and emitted symbols as hard tokens: a language, another model, or None
            for the model itself.

    Returns:
        One row per step. `kl`: KL(truth || model), in nats. `log_prob`: the truth's log p of the
        emitted symbol, in nats. `lost`: an earlier symbol was impossible under the truth, which
        defines nothing after it. Then kl is inf (as in the schedule "oracle") and log_prob NaN.
        Only a truth that gives every symbol some probability can follow a text to its end.

    Raises:
        ValueError: as `replay` does, or where the truth could write a symbol that the model cannot.
    """
    found = follow(trajectories, model, truth)
    should, gone, emitted = found.should, found.lost, found.emitted
    columns = {
        "kl": divergence(should, found.own).masked_fill(gone, math.inf),
        "log_prob": should.gather(1, emitted[:, None])[:, 0].double().masked_fill(gone, math.nan),
        "lost": gone,
    }
    return pd.DataFrame(
        {name: values.numpy() for name, values in columns.items()}, index=found.index
    )


def coherence_horizon(drift: pd.DataFrame, limit: float | int = 0.1, over: int = 1) -> pd.DataFrame:
    """Number of steps that each trajectory stays within a drift of `limit` nats.

    Args:
        drift: the frame that `drift` returns.
        limit: the largest allowed kl, in nats.
        over: average the kl over so many latest steps. Single steps exceed 0.1 in any imperfect
            model; over = 8 asks whether the drift lasts.

    Returns:
        One row per trajectory. `steps`: the number of steps before the mean kl first exceeds the
        limit. `passed`: False where the trajectory ends before that; then `steps` is its length,
        and the horizon is at least that.

    Raises:
        ValueError: where over is not a whole number of at least 1.
    """
    above = _lasting(drift, over) > limit
    rows = {
        row: {
            "steps": int(passed.to_numpy().argmax()) if passed.any() else len(passed),
            "passed": bool(passed.any()),
        }
        for row, passed in above.groupby(level="trajectory")
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("trajectory")


def drift_curve(drift: pd.DataFrame, over: int = 1) -> pd.DataFrame:
    """Quartiles of the drift over trajectories at each step: columns median, low, high, in nats.

    The index is the step. The drift is the mean kl of the last `over` steps, as in
    `coherence_horizon`. The quartiles are values that occur, so they are inf where most
    trajectories are lost (kl inf).

    Raises:
        ValueError: where over is not a whole number of at least 1.
    """
    steps = _lasting(drift, over).groupby(level="step")
    at = {"median": 0.5, "low": 0.25, "high": 0.75}
    return pd.DataFrame(
        {name: steps.quantile(share, interpolation="lower") for name, share in at.items()}
    )


def _lasting(drift: pd.DataFrame, over: int) -> pd.Series:
    """The mean kl of the last `over` steps; the kl counts as 0 before the first step."""
    over = whole_number("over", over)

    def mean(kl: pd.Series) -> np.ndarray:
        padded = np.concatenate([np.zeros(over - 1), kl.to_numpy()])
        return np.lib.stride_tricks.sliding_window_view(padded, over).mean(1)

    return drift["kl"].groupby(level="trajectory").transform(mean)


# -- detectors: measures without the truth ---------------------------------------------------------


@torch.inference_mode()
def detectors(
    trajectories: Trajectory | Sequence[Trajectory],
    model: Predictor,
    text: Int[Tensor, "B T"] | None = None,
) -> pd.DataFrame:
    """Measures of each step that need no truth; larger where something may be wrong.

    One row per step. Of the prediction: `entropy`, in nats. Of its soft token, in embedding units:
    `distance` to the closest row, `off_hull` and `norm`; as seen from the centre of the table,
    `region`, its distance in units of the rows' root mean square one, and `cosine`, the mean cosine
    with the soft tokens of the CHAIN steps before (0 at the first step): latents that become equal,
    or leave the rows' region (arXiv 2509.20317). Of the latest input, in embedding units:
    `input_distance` and `input_off_hull`. `soft_run`: the number of soft tokens since the last hard
    one. With `text` also `mahalanobis`: the distance of the hidden state from the hidden states on
    true text, by their mean and shrunk covariance (arXiv 1807.03888).

    Args:
        trajectories: what the model wrote.
        model: the model that wrote them.
        text: rows of true text (B, T), not longer than the context.

    Raises:
        ValueError: where the model has no vectors, or as `replay` does.
    """
    trajectories = several(trajectories)
    embedding = model.embedding
    if embedding is None:
        raise ValueError("detectors measure soft tokens: they need a model that predicts vectors")
    embedding = embedding.cpu()
    vectors, soft = (
        torch.cat([one.vectors for one in trajectories]),
        ~torch.cat([one.collapsed for one in trajectories]),
    )
    inputs = torch.cat([one.inputs for one in trajectories])
    off_hull = torch.zeros(len(inputs))
    off_hull[soft] = _off_hull(inputs[soft], embedding)
    # a first step follows the prompt, whose symbols are rows of the table: distance 0
    first = torch.cat([torch.arange(len(one)) == 0 for one in trajectories])
    columns = {
        "entropy": torch.cat([one.entropy for one in trajectories]),
        "distance": torch.cat([one.distance for one in trajectories]),
        "off_hull": _off_hull(vectors, embedding),
        "norm": vectors.norm(dim=-1),
        "region": _region(vectors, embedding),
        "cosine": torch.cat([_alike(one.vectors, embedding) for one in trajectories]),
        "input_distance": nearest_distance(inputs, embedding).roll(1).masked_fill(first, 0),
        "input_off_hull": off_hull.roll(1).masked_fill(first, 0),
        "soft_run": torch.cat([_run(one.collapsed) for one in trajectories]),
    }
    if text is not None:
        from sklearn.covariance import LedoitWolf  # it takes long to load

        at_home = model.hidden_states(text.to(model.device))[:, 1:].flatten(0, 1).cpu()
        fitted = LedoitWolf().fit(at_home.numpy())
        squares = fitted.mahalanobis(replay(trajectories, model).hidden.numpy())
        columns["mahalanobis"] = torch.from_numpy(squares).clamp_min(0).sqrt()
    index = Batch(trajectories, model).index
    return pd.DataFrame({name: values.numpy() for name, values in columns.items()}, index=index)


def _off_hull(
    vectors: Float[Tensor, "N m"], embedding: Float[Tensor, "V m"]
) -> Float[Tensor, " N"]:
    """The distance to the hull, set to 0 where it is only rounding.

    Rounding depends on how sharp a mixture is.
    """
    found = hull_distance(vectors, embedding)
    return found.masked_fill(found < _ROUNDING * embedding.norm(dim=-1).mean(), 0)


def _region(vectors: Float[Tensor, "N m"], embedding: Float[Tensor, "V m"]) -> Float[Tensor, " N"]:
    """The distance from the centre of the table; 1 is the rows' root mean square one."""
    centre = embedding.double().mean(0)
    radius = (embedding - centre).square().sum(-1).mean().sqrt()
    return (vectors - centre).norm(dim=-1) / radius.clamp_min(TINY)


def _alike(vectors: Float[Tensor, "T m"], embedding: Float[Tensor, "V m"]) -> Float[Tensor, " T"]:
    """The mean cosine of each vector with those of the CHAIN steps before it."""
    away = vectors - embedding.double().mean(0)
    away = away / away.norm(dim=-1, keepdim=True).clamp_min(TINY)
    steps = torch.arange(len(vectors))
    back = steps[:, None] - steps  # how many steps ago
    near = ((back > 0) & (back <= CHAIN)).double()
    return (away @ away.T * near).sum(1) / near.sum(1).clamp_min(1)


def _run(collapsed: Bool[Tensor, " T"]) -> Int[Tensor, " T"]:
    """Number of soft tokens before each step, since the last hard one or the prompt."""
    steps = torch.arange(len(collapsed))
    return steps - torch.where(collapsed, steps + 1, 0).cummax(0).values.roll(1).masked_fill(
        steps == 0, 0
    )


def auroc(
    drift: pd.DataFrame,
    detectors: pd.DataFrame,
    above: float | int = 0.1,
    resamples: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """AUROC of each detector for the steps with kl > `above`: 1/2 is chance, below 1/2 is reversed.

    Steps at which the truth is lost are left out.

    Args:
        drift: the frame that `drift` returns.
        detectors: the frame that `detectors` returns.
        above: a step with a larger kl counts as drifting, in nats.
        resamples: number of bootstrap samples.
        seed: decides the samples.

    Returns:
        One row per detector. `auroc`; `low` and `high`, its 95 % interval over resampled whole
        trajectories (steps of one trajectory depend on each other; NaN for a single trajectory);
        `steps`, the number counted; `share`, the part of them that drift; `problem`, the reason
        where auroc is NaN: only one class, or no step left.

    Raises:
        ValueError: where a detector is NaN at a step that counts.
    """
    counted = drift[~drift["lost"]]
    drifts, names = (
        (counted["kl"] > above).to_numpy(),
        drift.index.get_level_values("trajectory").unique(),
    )
    rows = names.get_indexer(counted.index.get_level_values("trajectory"))
    # bootstrap: how often each trajectory is drawn in each resample
    draws = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=resamples
    )
    table = {}
    for name, scores in detectors.loc[counted.index].items():
        if scores.isna().any():
            raise ValueError(f"the detector {name!r} has no number (NaN) at some steps")
        value = _auroc(drifts, scores.to_numpy(), np.ones(len(drifts)))
        again = [_auroc(drifts, scores.to_numpy(), draw[rows]) for draw in draws]
        again = [one for one in again if not math.isnan(one)] if len(names) > 1 else []
        low, high = np.quantile(again, [0.025, 0.975]) if again else (math.nan, math.nan)
        table[name] = {"auroc": value, "low": low, "high": high, "steps": len(drifts)}
    found = pd.DataFrame.from_dict(table, orient="index").rename_axis("detector")
    share = drifts.mean() if len(drifts) else math.nan
    kinds = {0.0: f"no step drifts above {above}", 1.0: f"every step drifts above {above}"}
    return found.assign(
        share=share, problem=kinds.get(share, "" if len(drifts) else "truth is lost at every step")
    )


def _auroc(drifts: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    """AUROC with each step weighted by how often it was drawn; NaN for one class only."""
    from sklearn.metrics import roc_auc_score  # it takes long to load

    drawn = weights > 0
    if len(set(drifts[drawn])) < 2:
        return math.nan
    return roc_auc_score(drifts[drawn], scores[drawn], sample_weight=weights[drawn])
