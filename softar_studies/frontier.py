"""Which soft tokens must be collapsed (K5)? Share collapsed against the cost of staying soft."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from softar_lab.core.predictor import Prediction, Predictor, divergence
from softar_lab.generation import feedback as feedbacks
from softar_lab.generation.collapse import Collapse
from softar_lab.generation.generate import generate
from softar_lab.generation.schedule import SCHEDULES, Threshold
from softar_lab.generation.step_context import StepContext
from softar_lab.metrics.drift import drift
from softar_lab.models.aligned_predictor import AlignedPredictor
from softar_lab.models.soft_ar import SoftAR

ENDS = ("always", "never")  # the end points that all families of schedules share


@dataclass(frozen=True)
class TeacherForced(Collapse):
    """A collapse that follows `truth`, not the model: the symbols form a text of the true language.

    So every schedule is measured on the same kind of text. No schedule can lead that text astray,
    and `truth` can predict it to the end. The cost of a soft path is then exactly what the model no
    longer knows of a true text's past.
    """

    needs_context: ClassVar[bool] = True
    truth: Predictor = field(repr=False)

    def __call__(
        self, prediction: Prediction, embedding: Tensor | None, context: StepContext
    ) -> Float[Tensor, "B V"]:
        return context.run.aligned_state(self.truth).log_probs.exp().to(prediction.log_probs.device)


@dataclass(frozen=True)
class OneStepOracle(Threshold):
    """A schedule that looks one step ahead: hard where the *next* prediction would go wrong.

    It measures KL(truth after the emitted symbol || model after the soft token), nats. The schedule
    "oracle" measures how wrong the model is already, after a symbol that it did not read. Neither
    is a bound on what a schedule can do: a symbol may matter a sentence later, and this schedule
    looks no further than the next prediction.

    Args:
        above: the threshold in nats.
        truth: a predictor; None: the model itself, reading hard tokens only.
        feedback: must be the feedback used in generation.
    """

    above: float | int = 0.1
    truth: Predictor | None = field(default=None, repr=False)
    feedback: Any = "mixture"

    def measure(self, context: StepContext) -> Float[Tensor, " B"]:
        run, model = context.run, context.run.model
        judge = model if self.truth is None else self.truth
        ahead = run.aligned(judge).advance(run.aligned_state(judge), token_ids=context.token_ids)
        soft = model.advance(context.state, vectors=self._feedback(context))
        found = divergence(ahead.log_probs.cpu(), model.predict(soft).log_probs.cpu())
        return found.masked_fill(ahead.lost.cpu(), math.inf).to(context.step.device)

    @cached_property
    def _feedback(self) -> Any:
        return feedbacks.resolve(self.feedback)


def selective_frontier(
    model: Predictor,
    prompts: Sequence[str],
    truth: Predictor,
    families: Mapping[str, Sequence[Any]],
    steps: int = 128,
    seeds: int = 1,
    **options: Any,
) -> pd.DataFrame:
    """The cost of each schedule and the share that it collapses; one row per schedule and seed.

    All texts of a schedule form one batch. As in `compare`, every text draws numbers of its own: at
    `seed` s, prompt i is written with the seed s * len(prompts) + i.

    Args:
        model: the model that writes.
        prompts: the beginnings of the texts.
        truth: the predictor that judges them.
        families: schedules by the name of their line, such as {"entropy": [Entropy(0.1),
            Entropy(1)], "ends": ENDS}.
        steps: tokens per text.
        seeds: the number of seeds.
        options: arguments of generate(). collapse=TeacherForced(truth) measures on true texts, any
            other collapse on the model's own texts. `valid` then gives the share that truth can
            judge.

    Returns:
        Columns family, schedule, seed; `share` of tokens collapsed; `excess`, mean KL(truth ||
        model) in bits per step; `bits`, the cost of the emitted symbols under truth in bits per
        step; `valid`, the share of steps at which truth is not lost. `excess` and `bits` are means
        over these steps.
    """
    rows, several = [], range(seeds * len(prompts))  # one seed per text, for draws of its own
    for family, schedules in families.items():
        for schedule in schedules:
            written = generate(
                model, [*prompts] * seeds, steps, schedule=schedule, seed=several, **options
            )
            frame = drift(written, model, truth)
            collapsed = torch.cat([one.collapsed for one in written]).numpy()
            frame = frame.assign(
                collapsed=collapsed, judged=frame["log_prob"].where(np.isfinite(frame["log_prob"]))
            )
            by_seed = frame.groupby(frame.index.get_level_values("trajectory") // len(prompts))
            for seed, part in by_seed:
                rows.append(
                    {
                        "family": family,
                        "schedule": SCHEDULES.short(written[0].settings["schedule"]),
                        "seed": seed,
                        "share": part["collapsed"].mean(),
                        "excess": part["kl"][~part["lost"]].mean() / math.log(2),
                        "bits": -part["judged"].mean() / math.log(2),
                        "valid": 1 - part["lost"].mean(),
                    }
                )
    return pd.DataFrame(rows)


def against_oracle(frontier: pd.DataFrame, oracle: str = "oracle") -> pd.DataFrame:
    """Each schedule's mean over seeds beside the family `oracle` at the same share.

    The oracle's excess is interpolated between its points and, where present, "always" and "never",
    which belong to every family. It is NaN beyond the ends. No point of this line costs more than
    one that collapses less: otherwise it would make the schedules beside it look good.

    Returns:
        The means, with the columns `at_oracle` (the oracle's excess) and `ratio` (excess over it).

    Raises:
        ValueError: where `oracle` is no family of the frontier.
    """
    names = ["family", "schedule"]
    mean = (
        frontier.groupby(names, sort=False)[["share", "excess", "bits", "valid"]]
        .mean()
        .reset_index()
    )
    line = mean[(mean["family"] == oracle) | mean["schedule"].isin(ENDS)].drop_duplicates(
        "schedule"
    )
    if not (mean["family"] == oracle).any():
        raise ValueError(
            f"no family {oracle!r} to compare with; there are {', '.join(frontier['family'].unique())}"
        )
    line = line.groupby("share")["excess"].min().cummin()  # ascending, one point per share
    found = np.interp(mean["share"], line.index, line, left=math.nan, right=math.nan)
    return mean.assign(at_oracle=found, ratio=mean["excess"] / found)


@torch.inference_mode()
def harm_by_lag(
    model: SoftAR,
    token_ids: Int[Tensor, "N T"],
    places: Sequence[int],
    truth: Predictor,
    lags: int = 16,
) -> pd.DataFrame:
    """What one soft slot costs the predictions after it, by how long ago it was read.

    Every slot holds its symbol's row, but for one, which holds the mixture pE that the model
    predicts there from a *hard* past. So this is the price of one soft token, not of a chain.

    Args:
        model: reads the texts, which fit its context.
        token_ids: true texts (N, T), in the model's symbols.
        places: the positions of the soft slot, one at a time; at most T - lags.
        truth: judges the predictions.
        lags: 1 is the prediction that follows the soft slot.

    Returns:
        One row per text and place, with the index (text, place). `choice`: the truth's entropy at
        the place, in nats. A column per lag: KL(truth || model) with the soft slot, minus that
        without, in bits.
    """
    # 1) the truth after every prefix, and the model after hard ones
    judge, n = AlignedPredictor(truth, model.tokenizer.tokens), len(token_ids)
    should = judge.next_log_probs(token_ids)  # (N, T, V)
    hidden = model.hidden_states(token_ids[:, :-1])  # (N, T, d)

    def drifts(states: Tensor, at: slice) -> Tensor:
        found = model.objective.predict(states.flatten(0, 1), model.embedding).log_probs
        return divergence(should[:, at], found.unflatten(0, states.shape[:2]))

    hard, columns = drifts(hidden, slice(None)), []
    rows = model.embedding[token_ids]  # (N, T, m)
    # 2) one place at a time, in all texts
    for place in places:
        after = slice(place + 1, place + 1 + lags)
        slots = rows[:, : place + lags].clone()
        probs = model.objective.predict(hidden[:, place], model.embedding).probs
        slots[:, place] = feedbacks.mixture(probs, model.embedding)
        soft = model.hidden_states(vectors=slots)[:, after]
        columns.append((drifts(soft, after) - hard[:, after]) / math.log(2))
    # 3) one row per text and place
    entropy = torch.special.entr(should.exp()).sum(-1)[:, list(places)]  # (N, P)
    index = pd.MultiIndex.from_product([range(n), places], names=["text", "place"])
    table = torch.stack(columns, 1).flatten(0, 1).numpy()  # (N * P, lags)
    frame = pd.DataFrame(table, index=index, columns=range(1, lags + 1))
    return frame.assign(choice=entropy.flatten().numpy())
