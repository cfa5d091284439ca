"""The re-fitted reader: has a soft path forgotten its past, or is it only misread? (K2, K5, K30)

A model reads its hidden states by a readout that was trained on hard contexts. On a soft path this
reader may be wrong although the state still holds the past: then the drift says nothing about what
is lost. So the same states are read once more, by readers fitted on other soft paths:

    own       the model's own log p
    tempered  own log p, after one temperature
    refitted  softmax(sharpness · own log p + W h + b) of the hidden state h: a linear reader
    unigram   the same distribution everywhere: nothing known of the past

The truth's own drift is 0. Each reader contains the one before it (but for the unigram, which only
the re-fitted one contains), so fitted well, none is worse than what it contains. What the re-fitted
reader gets back was *misread*. What it does not get back is *forgotten*, or is held in a form that
no linear reader of so many steps finds: an upper bound.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ..core.checks import real_number, sequence
from ..core.fingerprint import fingerprint
from ..core.predictor import Predictor, divergence
from ..core.trajectory import Trajectory
from .replay import Followed, ReplayError, follow

RIDGES = (
    1.0,
    1e-1,
    1e-2,
    1e-3,
    1e-4,
)  # penalties on |W|² + |b|², in nats, for states of unit spread
FLOOR = -100.0  # an own log p below this counts as this, in nats
SHARPEST = 12.0  # how far the logarithm of a temperature may lie from 0
HELD_OUT = 4  # every fourth trajectory chooses the ridge
STEEP = 0.01  # curvature of the loss by a score, about; it decides speed alone

Pair = tuple[Tensor, Tensor]  # to fit, and to choose by


@dataclass(frozen=True)
class Readers:
    """Readers of one kind of soft path.

    Attributes:
        temperature: the one temperature of the tempered reader.
        sharpness, weight (d, V), bias (V,): the re-fitted reader, for hidden states (h - centre) /
            spread.
        ridge: the penalty that held-out paths chose.
        unigram: log p of every symbol (V,), the same at every step.
        steps: how many steps the readers were fitted on.
        model: the fingerprint of the model whose states they read; "": not known.
    """

    temperature: float
    sharpness: float
    weight: Float64[Tensor, "d V"]
    bias: Float64[Tensor, " V"]
    centre: Float64[Tensor, " d"]
    spread: float
    ridge: float
    unigram: Float64[Tensor, " V"]
    steps: int
    model: str = ""

    def log_probs(
        self, own: Float[Tensor, "S V"], hidden: Float[Tensor, "S d"]
    ) -> dict[str, Float[Tensor, "S V"]]:
        """log p of every symbol by each reader, in nats."""
        floored = own.double().clamp_min(FLOOR)
        states = (hidden.double() - self.centre) / self.spread
        scores = self.sharpness * floored + states @ self.weight + self.bias
        return {
            "own": own.double(),
            "tempered": torch.log_softmax(floored / self.temperature, -1),
            "refitted": torch.log_softmax(scores, -1),
            "unigram": self.unigram.expand(len(own), -1),
        }


@torch.inference_mode()
def fit_readers(
    trajectories: Sequence[Trajectory],
    model: Predictor,
    truth: Predictor | None = None,
    ridges: Sequence[float | int] = RIDGES,
) -> Readers:
    """Fit the readers on soft paths; then score *other* paths with `drift_by_reader`.

    Args:
        trajectories: paths of training text, made as those to be scored are made; at least 4.
        model: the model that wrote them.
        truth: as in `drift`; None: the model itself, reading hard tokens alone.
        ridges: penalties; the one that suits every fourth path best is chosen, then all are fitted.

    Raises:
        ValueError: as `drift` does; where truth can judge steps of fewer than 4 paths.
        ReplayError: for a model without hidden states.
    """
    found = follow(trajectories, model, truth)
    rows = torch.from_numpy(found.index.get_level_values("trajectory").to_numpy().copy())
    keep = ~found.lost
    states = _hidden(found)
    readers = fit(found.own[keep], states[keep], found.should[keep].exp(), rows[keep], ridges)
    return replace(readers, model=fingerprint(model))


def fit(
    own: Float[Tensor, "S V"],
    hidden: Float[Tensor, "S d"],
    should: Float[Tensor, "S V"],
    rows: Int[Tensor, " S"],
    ridges: Sequence[float | int] = RIDGES,
) -> Readers:
    """The readers that minimize the mean KL(should || reader) of S steps.

    Args:
        own: the model's log p.
        hidden: its hidden states.
        should: the true probabilities.
        rows: the trajectory of each step; every fourth chooses the ridge.
        ridges: the penalties to choose from.

    Raises:
        ValueError: for steps of fewer than 4 trajectories, or ridges that are none.
    """
    for ridge in sequence("ridges", ridges, "penalties"):
        real_number("a ridge", ridge, "at least 0", lambda one: 0 <= one < math.inf)
    names, row = rows.unique(return_inverse=True)
    if len(names) < HELD_OUT:
        raise ValueError(
            f"readers are fitted on at least {HELD_OUT} paths with steps that truth can judge, "
            f"not on {len(names)}: give more trajectories of training text"
        )
    # 1) nothing known, and one temperature
    own, should = own.double().clamp_min(FLOOR), should.double()
    unigram = _unigram(should)
    temperature = _temperature(own, should)
    # 2) one scale for all coordinates: a rotation or another unit changes nothing
    states = hidden.double()
    centre = states.mean(0)
    spread = (states - centre).square().mean().sqrt().item() or 1.0
    states = (states - centre) / spread
    # 3) choose the ridge on held-out trajectories, from the strongest to the weakest
    held = row % HELD_OUT == HELD_OUT - 1
    start = torch.zeros(states.shape[1] + 2, own.shape[1], dtype=torch.float64)
    start[0, 0] = 1 / temperature
    ridge = _best_ridge(ridges, start, *((x[~held], x[held]) for x in (own, states, should)))
    # 4) fit all of it
    found = _minimize(own, states, should, ridge, start)
    sharpness, weight, bias = found[0, 0].item(), found[1:-1], found[-1]
    return Readers(temperature, sharpness, weight, bias, centre, spread, ridge, unigram, len(own))


@torch.inference_mode()
def drift_by_reader(
    trajectories: Trajectory | Sequence[Trajectory],
    model: Predictor,
    readers: Readers,
    truth: Predictor | None = None,
) -> pd.DataFrame:
    """The drift KL(truth || reader) of each step by every reader, in nats.

    Args:
        trajectories: paths that the readers were not fitted on.
        model: the model that wrote them.
        readers: what `fit_readers` returns.
        truth: as in `fit_readers`.

    Returns:
        One row per step, columns `own` (the kl of `drift`), `tempered`, `refitted`, `unigram` and
        `lost`. Where truth is lost, every column is inf.

    Raises:
        ValueError: as `drift` does; where the readers were fitted on another model's paths.
        ReplayError: for a model without hidden states.
    """
    if readers.model not in ("", fingerprint(model)):
        raise ValueError(
            "these readers were fitted on another model, or before this one was trained further: "
            "fit_readers again"
        )
    found = follow(trajectories, model, truth)
    columns = {
        name: divergence(found.should, log_probs).masked_fill(found.lost, math.inf).numpy()
        for name, log_probs in readers.log_probs(found.own, _hidden(found)).items()
    }
    return pd.DataFrame({**columns, "lost": found.lost.numpy()}, index=found.index)


def split_harm(frame: pd.DataFrame, begin: int = 0) -> pd.Series:
    """Mean drift, split into what is misread and what is forgotten.

    Args:
        frame: what `drift_by_reader` returns.
        begin: the first step that counts. Steps at which truth is lost never count.

    Returns:
        The means of `own`, `tempered`, `refitted`, `unigram`, in nats, and `misread`, own -
        refitted; `forgotten`, refitted; `left`, 1 - refitted / unigram: the share of what the past
        is worth that a linear reader still finds.
    """
    counted = frame[~frame["lost"] & (frame.index.get_level_values("step") >= begin)]
    mean = counted[["own", "tempered", "refitted", "unigram"]].mean()
    mean["misread"] = mean["own"] - mean["refitted"]
    mean["forgotten"] = mean["refitted"]
    mean["left"] = 1 - mean["refitted"] / mean["unigram"] if mean["unigram"] else math.nan
    return mean


def harm_by_text(
    trajectories: Sequence[Trajectory], training: Sequence[Trajectory], model: Predictor
) -> pd.DataFrame:
    """What soft tokens did to each text, by readers fitted on `training`; in bits per symbol.

    The truth is the same model, reading the same symbols as hard tokens.

    Returns:
        One row per text: `harm`, the mean drift; its parts `misread` and `forgotten`, as in
        `split_harm`; `nothing_known`, the drift of the unigram reader. All are NaN where a path
        cannot be read again or the model has no hidden states.
    """
    names = pd.RangeIndex(len(trajectories), name="trajectory")
    try:
        frame = drift_by_reader(trajectories, model, fit_readers(training, model))
    except ReplayError:
        return pd.DataFrame(math.nan, names, ["harm", "misread", "forgotten", "nothing_known"])
    bits = frame[~frame["lost"]].groupby(level="trajectory").mean() / math.log(2)
    columns = {
        "harm": bits["own"],
        "misread": bits["own"] - bits["refitted"],
        "forgotten": bits["refitted"],
        "nothing_known": bits["unigram"],
    }
    return pd.DataFrame(columns).reindex(names)


def _hidden(found: Followed) -> Float[Tensor, "S d"]:
    if found.hidden is None:
        raise ReplayError(
            "a re-fitted reader reads hidden states, and this model has none: give a SoftAR"
        )
    return found.hidden


def _unigram(should: Float64[Tensor, "S V"]) -> Float64[Tensor, " V"]:
    """log of the mean of the true probabilities and one step that knows nothing at all."""
    return ((should.sum(0) + 1 / should.shape[1]) / (len(should) + 1)).log()


def _temperature(own: Float64[Tensor, "S V"], should: Float64[Tensor, "S V"]) -> float:
    """The temperature T of softmax(own / T) with the least cross-entropy."""
    from scipy.optimize import minimize_scalar  # it takes long to load

    def nats(log_temperature: float) -> float:
        log_probs = torch.log_softmax(own / math.exp(log_temperature), -1)
        return -(should * log_probs).sum(-1).mean().item()

    options = {"xatol": 1e-6}
    bounds = (-SHARPEST, SHARPEST)
    return math.exp(minimize_scalar(nats, bounds=bounds, method="bounded", options=options).x)


def _best_ridge(
    ridges: Sequence[float | int], start: Tensor, own: Pair, states: Pair, should: Pair
) -> float:
    """The ridge whose reader, fitted on the first of each pair, reads the second one best.

    It goes from the strongest to the weakest, each begun where the one before ended.
    """
    order = sorted(map(float, ridges), reverse=True)
    best, least = order[0], math.inf
    for ridge in order if len(order) > 1 else []:
        start = _minimize(own[0], states[0], should[0], ridge, start)
        log_probs = torch.log_softmax(_scores(start, own[1], states[1]), -1)
        found = divergence(should[1].log(), log_probs).mean().item()
        if found < least:
            best, least = ridge, found
    return best


def _scores(
    found: Float64[Tensor, "_ V"], own: Float64[Tensor, "S V"], states: Float64[Tensor, "S d"]
) -> Float64[Tensor, "S V"]:
    return found[0, 0] * own + states @ found[1:-1] + found[-1]


def _minimize(
    own: Float64[Tensor, "S V"],
    states: Float64[Tensor, "S d"],
    should: Float64[Tensor, "S V"],
    ridge: float,
    start: Float64[Tensor, "_ V"],
) -> Float64[Tensor, "_ V"]:
    """The reader with the least cross-entropy + ridge (|W|² + |b|²): a convex problem.

    Rows of the result: sharpness (its first number), W (d rows), b. L-BFGS works in coordinates in
    which every direction is about equally steep.
    """
    from scipy.optimize import minimize  # it takes long to load

    # 1) coordinates: W = directions @ (what L-BFGS sees)
    values, axes = torch.linalg.eigh(states.T @ states / len(states))
    steep = (STEEP * values.clamp_min(0) + 2 * ridge).sqrt()
    directions, level = axes / steep, (STEEP + 2 * ridge) ** -0.5
    turned, penalty = states @ directions, ridge * directions.T @ directions

    # 2) loss and slopes there
    def nats(flat: np.ndarray) -> tuple[float, np.ndarray]:
        seen = torch.from_numpy(flat).view_as(start)
        weight, bias = seen[1:-1], level * seen[-1]
        log_probs = torch.log_softmax(seen[0, 0] * own + turned @ weight + bias, -1)
        error, slopes = (log_probs.exp() - should) / len(own), torch.zeros_like(seen)
        slopes[0, 0] = (error * own).sum()
        slopes[1:-1] = turned.T @ error + 2 * penalty @ weight
        slopes[-1] = level * (error.sum(0) + 2 * ridge * bias)
        cost = (weight * (penalty @ weight)).sum() + ridge * bias.square().sum()
        loss = cost - (should * log_probs).sum() / len(own)
        return loss.item(), slopes.numpy().ravel()

    # 3) minimize, and back
    seen = torch.cat([start[:1], steep[:, None] * (axes.T @ start[1:-1]), start[-1:] / level])
    options = {"maxiter": 500, "ftol": 1e-8, "gtol": 1e-6}
    flat = minimize(nats, seen.numpy().ravel(), jac=True, method="L-BFGS-B", options=options).x
    seen = torch.from_numpy(flat).view_as(start)
    return torch.cat([seen[:1], directions @ seen[1:-1], level * seen[-1:]])
