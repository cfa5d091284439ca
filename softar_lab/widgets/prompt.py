"""PromptExplorer: a learned prompt beside its nearest words, and what each of them answers."""

import html
import threading
from collections.abc import Sequence
from typing import Any

import ipywidgets as w
import pandas as pd

from .. import plots
from ..core.checks import whole_number
from ..core.predictor import Predictor
from ..evidence import masked
from ..external.pretrained.prompt_reading import variants, words_of
from ..external.pretrained.prompted import prompted
from ..external.pretrained.prompts import LearnedPrompt, Pair, Task, score
from ..generation import generate
from .panel import Panel
from .setting import NARROW, always_chosen, menu


class PromptExplorer(Panel):
    """Choose what becomes of a learned prompt, and see its words, its score and its answer.

    The prompt may be as it was trained, as it was begun, collapsed to its nearest words, anywhere
    on the way between, in another order, and so on (`prompt_reading.variants`). Beside the answer
    of the choice stand that of the trained prompt and the right one. `explorer.change` and `explorer.pair` are the
    controls; `show()` does the same from Python and waits.

    Args:
        model: reads the prompt.
        prompt: soft tokens, learned in front of a task.
        pairs: texts and answers that it was not trained on.
        change: the choice at the start, one of `prompt_reading.variants`.
        steps: how many tokens an answer has.

    Raises:
        ValueError: for an unknown choice, a prompt that does not fit the model, pairs that are no
            texts that it reads, or no steps.
    """

    def __init__(
        self,
        model: Predictor,
        prompt: LearnedPrompt,
        pairs: Sequence[Pair],
        change: str = "nearest(l2)",
        steps: int = 16,
    ):
        super().__init__()
        Task.of(model, pairs)  # an error now, not in the status line
        self.model, self.pairs, self.steps = model, list(pairs), whole_number("steps", steps)
        self.variants = variants(model, prompt)
        if change not in self.variants:
            raise ValueError(f"change must be one of {', '.join(self.variants)}, not {change!r}")
        self._words = words_of(model, prompt)
        self._scores: dict[str, dict[str, float]] = {}
        self._answers: dict[tuple[str, int], str] = {}
        # 1) the parts
        self.change = menu("Prompt", list(self.variants), change)
        self.change.layout.width = "360px"
        texts = [(f"{t!r:.40} → {a!r:.20}", i) for i, (t, a) in enumerate(self.pairs)]
        self.pair = always_chosen(w.Dropdown(options=texts, description="Text", style=NARROW))
        self.words, self.answers = w.HTML(_table(self._words)), w.HTML()
        self.children = (w.HBox([self.change, self.pair]), self.status, self.answers, self.words)
        # 2) the first answer
        self.show()
        for control in (self.change, self.pair):
            control.observe(lambda _: self._run_in_background(self._show), "value")

    def show(self) -> dict[str, float]:
        """Score and answer with the chosen prompt, and wait.

        Returns:
            nats per token of the answers, and the share of tokens that are right.
        """
        self._run(self._show, self._begin())
        return self._scores.get(self.change.value, {})

    def _show(self, stop: threading.Event) -> None:
        chosen, pair = self.change.value, self.pair.value
        self.say("reading …")
        for name in ("trained", chosen):
            self._measure(name, pair)
            if stop.is_set():
                return
        with self._drawing:
            rows = [self._row(name, pair) for name in dict.fromkeys(("trained", chosen))]
            due = f"<td><i>the right answer</i></td><td></td><td>{_code(self.pairs[pair][1])}</td>"
            self.answers.value = f"<table>{''.join(rows)}<tr>{due}</tr></table>"
        self.say(f"{len(self.pairs)} pairs scored")

    def _measure(self, name: str, pair: int) -> None:
        """Score a variant on all pairs, and let it answer one; what is known is not done again."""
        vectors = self.variants[name].to(self.model.device)
        if name not in self._scores:
            self._scores[name] = score(self.model, self.pairs, vectors)
        if (name, pair) not in self._answers:
            behind = prompted(self.model, vectors)
            path = generate(behind, self.pairs[pair][0], self.steps, temperature=0)
            self._answers[name, pair] = path.text

    def _row(self, name: str, pair: int) -> str:
        found = self._scores[name]
        return (
            f"<tr><td><b>{html.escape(name)}</b></td><td>{found['right']:.0%} right, "
            f"{found['nats']:.2f} nats a token</td><td>{_code(self._answers[name, pair])}</td></tr>"
        )

    def still(self) -> Any:
        """Return a figure of the share right of each variant that was scored, or None."""
        names = [name for name in self.variants if name in self._scores]
        if not names:
            return None
        right = {name: self._scores[name]["right"] for name in names}
        frame = pd.DataFrame({"share right": right}).rename_axis("prompt")
        return plots.draw_lines(frame, "share of tokens that are right")

    def __repr__(self) -> str:
        chosen = self.change.value
        found: dict[str, Any] = self._scores.get(chosen, {"right": float("nan")})
        at_start = int(self._words["at_start"].sum())
        return (
            f"PromptExplorer({len(self._words)} soft tokens, {masked(at_start)} nearest to their start; "
            f"{chosen}: {masked(found['right'])} right)"
        )


def _code(text: str) -> str:
    return f"<code>{html.escape(text)}</code>".replace("\n", "<br>")


def _table(words: pd.DataFrame) -> str:
    """Each soft token: the word it was begun from, the nearest word now, and how far that is."""
    head = (
        "<tr><th>begun from</th><th>nearest word</th><th>distance (1: the mean length of a row)</th>"
        "</tr>"
    )
    rows = [
        f"<tr><td><code>{html.escape(repr(row.start))}</code></td>"
        f"<td><code>{html.escape(repr(row.nearest))}</code></td><td>{row.distance:.2f}</td></tr>"
        for row in words.itertuples()
    ]
    return f"<table>{head}{''.join(rows)}</table>"
