"""Where does a path of soft tokens leave what the text asks for (K2), and which measure sees it without the truth (K5)?

Steps of several trajectories lie one after the other, in frames and tensors alike: S steps in all, in frames with the
index (trajectory, step).
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import CensoredData, ecdf
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..evaluation import device_of
from ..generation.collapse import nearest_distance
from ..generation.session import Session
from ..generation.trajectory import Trajectory
from ..models.barycentric import hull_distance
from ..predictor import Predictor

_CLOSE = 1e-3  # how far a log-probability may be from the recorded one: float32 in batches of another size
_ROUNDING = 1e-5  # of a row's mean length: what a float32 mixture may lie off the hull


# -- the path once more, with everything a trajectory does not keep ---------------------------------------------------


class _Batch:
    """N trajectories side by side, each from the beginning of its prompt, the shorter ones padded.

    `ids` (N, L); `begin`: the first position that is a step of any; `real` (N, L - begin): which positions are steps.
    """

    def __init__(self, trajectories: Sequence[Trajectory], model: Predictor):
        self.prompts = [model.tokenizer.encode(one.prompt) for one in trajectories]
        self.begin = min(map(len, self.prompts))
        ids = [torch.cat([prompt, one.token_ids]) for prompt, one in zip(self.prompts, trajectories, strict=True)]
        self.ids: Int[Tensor, "N L"] = pad_sequence(ids, batch_first=True)
        steps = torch.arange(self.ids.shape[1]) - torch.tensor([[len(prompt)] for prompt in self.prompts])
        real = (steps >= 0) & (steps < torch.tensor([[len(one)] for one in trajectories]))
        self.index = pd.MultiIndex.from_arrays(
            [real.nonzero()[:, 0].numpy(), steps[real].numpy()], names=["trajectory", "step"]
        )
        self.real: Bool[Tensor, "N _"] = real[:, self.begin :]

    def flat(self, steps: list[Tensor]) -> Tensor:
        """What is known at each position from `begin` on, a tensor (N, …) each, at real steps only: (S, …)."""
        return torch.stack([one.cpu() for one in steps], 1)[self.real]


@dataclass(frozen=True)
class Replay:
    """What a model says and thinks before each of S steps: `log_probs` (S, V), nats; `hidden` (S, d), None without."""

    log_probs: Float[Tensor, "S V"]
    hidden: Float[Tensor, "S d"] | None


@torch.inference_mode()
def replay(trajectories: Trajectory | Sequence[Trajectory], model: Predictor) -> Replay:
    """Let `model` read what it read when it wrote: prompts as symbols, then each trajectory's `inputs`.

    Step by step, so that a full context is renewed where it was. Raises ValueError where this does not lead to the
    log-probabilities recorded: another model wrote, or it read something else (a tail that was predicted again).
    """
    trajectories = _several(trajectories)
    batch, embedding = _Batch(trajectories, model), getattr(model, "embedding", None)
    name, path = "token_ids", batch.ids.to(device_of(model))
    if embedding is not None:
        read = [torch.cat([embedding[p.to(embedding.device)], one.inputs.to(embedding)]) for p, one in zip(
            batch.prompts, trajectories)]  # fmt: skip
        name, path = "vectors", pad_sequence(read, batch_first=True)
    log_probs, hidden = [], []
    state = model.start(len(trajectories))
    if batch.begin:
        state = model.read(state, **{name: path[:, : batch.begin]})
    for t in range(batch.begin, path.shape[1]):
        log_probs.append(model.predict(state).log_probs)
        hidden.append(getattr(state, "hidden", None))
        if t + 1 < path.shape[1]:
            state = model.advance(state, **{name: path[:, t]})
    found = Replay(batch.flat(log_probs), None if hidden[0] is None else batch.flat(hidden))
    _check_same(found.log_probs, trajectories, batch.index)
    return found


def _several(trajectories: Trajectory | Sequence[Trajectory]) -> Sequence[Trajectory]:
    several = [trajectories] if isinstance(trajectories, Trajectory) else trajectories
    if not len(several):
        raise ValueError("no trajectory given; give at least one")
    return several


def _check_same(log_probs: Tensor, trajectories: Sequence[Trajectory], index: pd.MultiIndex) -> None:
    shown = torch.cat([one.token_ids for one in trajectories])
    again, was = log_probs.gather(1, shown[:, None])[:, 0].double(), torch.cat([one.log_probs for one in trajectories])
    same = torch.isclose(again, was.double(), atol=_CLOSE, rtol=_CLOSE)
    if not same.all():
        first = int((~same).nonzero()[0])
        row, step = index[first]
        raise ValueError(
            f"trajectory {row}, step {step}: the model gives the symbol shown log p = {again[first]:.4f}, recorded is "
            f"{was[first]:.4f}; another model wrote it, or it had read something else than `inputs`"
        )


# -- drift ------------------------------------------------------------------------------------------------------------


def divergence(log_q: Float[Tensor, "S V"], log_p: Float[Tensor, "S V"]) -> Float[Tensor, " S"]:
    """KL(q || p) of each row (S,), nats, in float64; a symbol with q = 0 adds nothing."""
    log_q, log_p = log_q.double(), log_p.double()
    share = log_q.exp()
    return torch.where(share > 0, share * (log_q - log_p), 0).sum(-1)


@torch.inference_mode()
def drift(
    trajectories: Trajectory | Sequence[Trajectory], model: Predictor, truth: Predictor | None = None
) -> pd.DataFrame:
    """How far the model, on its partly soft path, is from what should come after the symbols shown: a row a step.

    `truth` reads prompts and symbols shown as hard tokens: a language, another model, or None, the model itself.
    Columns: `kl` = KL(truth || model), nats; `log_prob`, what truth gives the symbol shown, nats; `lost`: a symbol that
    truth holds impossible has been shown before, so that nothing is true any more: kl is then inf (as in the schedule
    "oracle"), log_prob NaN. Only a judge that holds everything possible can follow a text to its end.
    Raises ValueError as `replay` does, and where truth could write a symbol that the model cannot.
    """
    trajectories = _several(trajectories)
    said, batch = replay(trajectories, model).log_probs, _Batch(trajectories, model)
    session, log_probs, lost = Session(model, len(trajectories)), [], []
    for t, token_ids in enumerate(batch.ids.T):
        if t >= batch.begin:
            reader = session.read_by(model if truth is None else truth)
            log_probs.append(reader.log_probs)
            lost.append(reader.lost)
        session.shown.append(token_ids)
    should, gone = batch.flat(log_probs), batch.flat(lost)
    shown = torch.cat([one.token_ids for one in trajectories])
    columns = {
        "kl": divergence(should, said).masked_fill(gone, math.inf),
        "log_prob": should.gather(1, shown[:, None])[:, 0].double().masked_fill(gone, math.nan),
        "lost": gone,
    }
    return pd.DataFrame({name: values.numpy() for name, values in columns.items()}, index=batch.index)


def coherence_horizon(drift: pd.DataFrame, limit: float | int = 0.1, over: int = 1) -> pd.DataFrame:
    """How many steps each trajectory stays within a drift of `limit` nats: a row a trajectory.

    `steps`: how many lie before the first at which the mean kl of the last `over` steps exceeds the limit (single
    steps exceed 0.1 in any model that is not perfect; over = 8 asks whether it lasts). `passed` is False where the
    trajectory ends first: then steps is its length, and the horizon at least that. Raises ValueError for over below 1.
    """
    above = _lasting(drift, over) > limit
    rows = {
        row: {"steps": int(passed.to_numpy().argmax()) if passed.any() else len(passed), "passed": bool(passed.any())}
        for row, passed in above.groupby(level="trajectory")
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("trajectory")


def drift_curve(drift: pd.DataFrame, over: int = 1) -> pd.DataFrame:
    """The drift over trajectories at each step: columns median, low and high, the quartiles, in nats; index step.

    Of the mean kl of the last `over` steps, as in `coherence_horizon`. Quartiles are values that occur, so that where
    most trajectories are lost (kl inf) they are inf. Raises ValueError for over below 1.
    """
    steps = _lasting(drift, over).groupby(level="step")
    at = {"median": 0.5, "low": 0.25, "high": 0.75}
    return pd.DataFrame({name: steps.quantile(share, interpolation="lower") for name, share in at.items()})


def _lasting(drift: pd.DataFrame, over: int) -> pd.Series:
    """The mean kl of the last `over` steps, nothing before the first."""
    if over < 1:
        raise ValueError(f"over must be a whole number of at least 1, not {over!r}")

    def mean(kl: pd.Series) -> np.ndarray:
        padded = np.concatenate([np.zeros(over - 1), kl.to_numpy()])
        return np.lib.stride_tricks.sliding_window_view(padded, over).mean(1)

    return drift["kl"].groupby(level="trajectory").transform(mean)


def survival(horizons: pd.DataFrame) -> pd.DataFrame:
    """Share of trajectories still within the limit after so many steps: Kaplan and Meier's, with its 95 % interval.

    From `coherence_horizon`; index `steps`, from 0 on; columns share, low, high (NaN where all or none are left).
    """
    passed = horizons["passed"].to_numpy()
    steps = horizons["steps"].to_numpy(dtype=float)
    curve = ecdf(CensoredData(uncensored=steps[passed], right=steps[~passed])).sf
    at = np.arange(int(steps.max()) + 1)
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # that it is undefined where all or none are left
        low, high = curve.confidence_interval(0.95, method="log-log")
    values = {"share": curve.evaluate(at), "low": low.evaluate(at), "high": high.evaluate(at)}
    return pd.DataFrame(values, index=pd.Index(at, name="steps"))


# -- what sees it without the truth -----------------------------------------------------------------------------------


@torch.inference_mode()
def detectors(
    trajectories: Trajectory | Sequence[Trajectory], model: Predictor, text: Int[Tensor, "B T"] | None = None
) -> pd.DataFrame:
    """Measures of each step that need no truth, larger where something may be wrong: a row a step.

    Of the prediction: `entropy`, nats; of its soft token: `distance` to the closest row, `off_hull`, `norm`. Of what
    has been read: `input_distance` and `input_off_hull` of the latest input, and `soft_run`, how many soft tokens
    there were since the last hard one. With `text`, rows of true text (B, T) within the context, also `mahalanobis`:
    how far the hidden state lies from those on the text, by their mean and shrunk covariance (arXiv 1807.03888).
    Embedding units. Raises ValueError for a model without vectors, or as `replay` does.
    """
    trajectories = _several(trajectories)
    embedding = getattr(model, "embedding", None)
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
    first = torch.cat([torch.arange(len(one)) == 0 for one in trajectories])  # after a prompt, whose symbols are rows
    columns = {
        "entropy": torch.cat([one.entropy for one in trajectories]),
        "distance": torch.cat([one.distance for one in trajectories]),
        "off_hull": _off_hull(vectors, embedding),
        "norm": vectors.norm(dim=-1),
        "input_distance": nearest_distance(inputs, embedding).roll(1).masked_fill(first, 0),
        "input_off_hull": off_hull.roll(1).masked_fill(first, 0),
        "soft_run": torch.cat([_run(one.collapsed) for one in trajectories]),
    }
    if text is not None:
        at_home = model.hidden_states(text.to(device_of(model)))[:, 1:].flatten(0, 1).cpu()
        fitted = LedoitWolf().fit(at_home.numpy())
        squares = fitted.mahalanobis(replay(trajectories, model).hidden.numpy())
        columns["mahalanobis"] = torch.from_numpy(squares).clamp_min(0).sqrt()
    index = _Batch(trajectories, model).index
    return pd.DataFrame({name: values.numpy() for name, values in columns.items()}, index=index)


def _off_hull(vectors: Float[Tensor, "N m"], embedding: Float[Tensor, "V m"]) -> Float[Tensor, " N"]:
    """The distance to the hull, 0 where it is no more than rounding, which depends on how sharp a mixture is."""
    found = hull_distance(vectors, embedding)
    return found.masked_fill(found < _ROUNDING * embedding.norm(dim=-1).mean(), 0)


def _run(collapsed: Bool[Tensor, " T"]) -> Int[Tensor, " T"]:
    """How many soft tokens there were before each step since the last hard one, or since the prompt."""
    steps = torch.arange(len(collapsed))
    return steps - torch.where(collapsed, steps + 1, 0).cummax(0).values.roll(1).masked_fill(steps == 0, 0)


def auroc(
    drift: pd.DataFrame, detectors: pd.DataFrame, above: float | int = 0.1, resamples: int = 200, seed: int = 0
) -> pd.DataFrame:
    """How well each detector tells the steps at which kl > `above` from the rest: 1/2 is chance, below it is reversed.

    A row a detector: `auroc`, and `low` and `high`, its 95 % interval over resampled whole trajectories (steps of one
    depend on each other; NaN for one alone); `steps` counted and the `share` of them that drift. Steps at which truth
    is lost are left out. `problem` says why auroc is NaN: only one class is there.
    """
    counted = drift[~drift["lost"]]
    drifts, names = (counted["kl"] > above).to_numpy(), drift.index.get_level_values("trajectory").unique()
    rows = names.get_indexer(counted.index.get_level_values("trajectory"))
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    table = {}
    for name, scores in detectors.loc[counted.index].items():
        value = _auroc(drifts, scores.to_numpy(), np.ones(len(drifts)))
        again = [_auroc(drifts, scores.to_numpy(), draw[rows]) for draw in draws]
        again = [one for one in again if not math.isnan(one)] if len(names) > 1 else []
        low, high = np.quantile(again, [0.025, 0.975]) if again else (math.nan, math.nan)
        table[name] = {"auroc": value, "low": low, "high": high, "steps": len(drifts)}
    found = pd.DataFrame.from_dict(table, orient="index").rename_axis("detector")
    share = drifts.mean() if len(drifts) else math.nan
    kinds = {0.0: f"no step drifts above {above}", 1.0: f"every step drifts above {above}"}
    return found.assign(share=share, problem=kinds.get(share, "" if len(drifts) else "truth is lost at every step"))


def _auroc(drifts: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    """Weighted by how often each step was drawn; NaN where only one class was."""
    drawn = weights > 0
    if len(set(drifts[drawn])) < 2:
        return math.nan
    return roc_auc_score(drifts[drawn], scores[drawn], sample_weight=weights[drawn])
