"""Roll-outs: thinking steps and one answer for many problems at once, by the engine of generation.

What is written here is learned from in `reinforcement`; `score` is how well a model thinks.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor
from torch.nn import functional as F

from ..core.threads import limited
from ..data.tasks import Task
from ..generation.config import GenerationConfig
from ..generation.controls import Pause
from ..generation.feedback import Feedback
from ..generation.generate import prepare
from ..generation.recorder import Recorder
from ..generation.step_context import StepContext
from ..models.soft_ar import SoftAR
from .estimators import Draw, Estimator

EVALUATED = 2048  # held-out problems at most


class Thinking(Feedback):
    """An estimator as a feedback of the engine: it draws at each step, and the run stores it."""

    needs_symbol = False

    def __init__(self, estimator: Estimator):
        self.estimator = estimator

    def __call__(self, context: StepContext) -> Float[Tensor, "N m"]:
        log_probs, table = context.prediction.log_probs, context.embedding
        uniform = context.uniform(self.estimator.width(*table.shape))
        draw = self.estimator.draw(log_probs, table, uniform)
        context.run.scratch.setdefault("draws", []).append(draw)
        return self.estimator.vectors(draw, table, log_probs)


class Unreduced(Recorder):
    """Records what was read and written, but no measures of the predictions, which cost most."""

    def reduce(self, *predictions, **more) -> None:
        pass


@dataclass(frozen=True)
class RollOuts:
    """N problems, thought through and answered once each.

    Attributes:
        problems: (N, P).
        vectors: the thoughts that were read (N, T, m).
        answers: the symbols given as answers (N,).
        draws: what was drawn at each of T steps; empty for a feedback that is no estimator.
    """

    problems: Int64[Tensor, "N P"]
    vectors: Float[Tensor, "N T m"]
    answers: Int64[Tensor, " N"]
    draws: list[Draw] = field(default_factory=list)


def roll_out(
    model: SoftAR,
    problems: Int64[Tensor, "N P"],
    steps: int,
    think: Estimator | str,
    seed: int | Sequence[int] = 0,
    temperature: float | int = 1.0,
) -> RollOuts:
    """Think for some steps about each problem, and answer it.

    Args:
        model: reads the problems.
        problems: (N, P).
        steps: T, how many thoughts there are.
        think: an estimator, which draws the thoughts, or the name of a feedback.
        seed: one for all rows, or one for each. A row's draws depend on its own seed alone.
        temperature: of the answer; 0 takes the most probable symbol.
    """
    # 1) write, as any text is written
    feedback = Thinking(think) if isinstance(think, Estimator) else think
    config = GenerationConfig(
        steps=steps + 1, schedule="never", feedback=feedback, temperature=temperature, seed=seed
    )
    engine, _ = prepare(model, list(problems), config)
    engine.recorder = Unreduced(engine.embedding)
    with torch.inference_mode(), limited(model.work * len(problems)):
        for _ in engine.generate():
            pass
    # 2) what was read and answered; the answer itself is read by nobody
    written = {
        name: torch.cat([block[name] for block in engine.recorder.blocks])
        for name in ("inputs", "token_ids")
    }
    vectors = written["inputs"][:-1].to(model.embedding).transpose(0, 1)  # (N, T, m)
    draws = [draw.clone() for draw in engine.run.scratch.get("draws", [])[:steps]]
    answers = written["token_ids"][-1].to(problems.device)
    return RollOuts(problems, vectors.clone(), answers.clone(), draws)


def step_log_probs(
    model: SoftAR, problems: Int64[Tensor, "N P"], vectors: Float[Tensor, "N T m"]
) -> Float[Tensor, "N steps V"]:
    """log p at each thinking step and of the answer (N, T+1, V), in one pass, with gradients."""
    inputs = torch.cat([F.embedding(problems, model.table.weight), vectors], 1)  # (N, P+T, m)
    hidden = model.hidden_states(vectors=inputs)[:, problems.shape[1] :]  # (N, T+1, d)
    found = model.objective.predict(hidden.flatten(0, 1), model.table.weight)
    return found.log_probs.unflatten(0, hidden.shape[:2])


@dataclass(frozen=True)
class Score:
    """How well a model answers.

    Attributes:
        accuracy: the share of problems whose most probable answer is right.
        reward: the mean probability of the right answer: the expected reward of drawn answers.
    """

    accuracy: float
    reward: float


def score_thoughts(
    model: SoftAR, task: Task, problems: Int64[Tensor, "N P"], vectors: Float[Tensor, "N T m"]
) -> Score:
    """How well a model answers when it has read these thoughts, whoever made them."""
    with torch.inference_mode():
        log_probs = step_log_probs(model, problems, vectors.to(model.embedding))[:, -1]
    right = task.answers(problems)
    accuracy = (log_probs.argmax(1) == right).double().mean().item()
    reward = log_probs.double().exp().gather(1, right[:, None]).mean().item()
    return Score(accuracy, reward)


def held_out_figures(
    model: SoftAR, task: Task, held_out: Int64[Tensor, "N P"], steps: int, feedback: str | Feedback
) -> dict[str, float]:
    """How a model answers the first EVALUATED held-out problems when it thinks without noise."""
    some = held_out[:EVALUATED]
    made = roll_out(model, some, steps, feedback, temperature=0)
    return asdict(score_thoughts(model, task, some, made.vectors))


CONTROLS = ("mean", "other", "pause", "hard", "exact")


def replaced(
    model: SoftAR, task: Task, problems: Int64[Tensor, "N P"], own: Float[Tensor, "N T m"]
) -> dict[str, Float[Tensor, "N T m"]]:
    """Thoughts in place of a model's own: the controls that a gain must be held against.

    `mean`: the mean thought of each step. `other`: the thoughts about another problem. `pause`: one
    vector that stands for nothing. `hard`: the most probable symbol at each step. `exact`: the
    mixture that the thought should be; where even these do not help, nothing could.
    """
    steps = own.shape[1]
    states = task.states(problems, steps).to(model.embedding)
    return {
        "mean": own.mean(0, keepdim=True).expand_as(own),
        "other": own.roll(1, 0),
        "pause": pauses(model, problems, steps),
        "hard": roll_out(model, problems, steps, "shown", temperature=0).vectors,
        "exact": states @ model.embedding,
    }


def pauses(model: SoftAR, problems: Int64[Tensor, "N P"], steps: int) -> Float[Tensor, "N T m"]:
    """The vector that feedback "pause" reads, for each problem and step."""
    row = Pause().vector(model.embedding)
    return row.expand(len(problems), steps, -1)


def expected_reward(log_probs: Tensor, answers: Int64[Tensor, " N"]) -> Float64[Tensor, " N"]:
    """The probability of the right answer under log p (N, V)."""
    return log_probs.double().exp().gather(1, answers[:, None]).squeeze(1)
