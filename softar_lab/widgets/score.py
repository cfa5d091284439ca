"""How good a text is: by the words that exist, and by a judge; never by the writer alone."""

import math
from collections.abc import Collection
from dataclasses import dataclass

from ..core.predictor import Predictor
from ..core.trajectory import Trajectory
from ..data.corpora import load_language, tales_words
from ..metrics.free_texts import known_words
from ..metrics.texts import judge as judged
from .setting import corpus_name

TALES = ("tales", "tales-words")
KNOWN = {**dict.fromkeys(TALES, "tales"), "mess3": "mess3", "recall": "recall"}


@dataclass(frozen=True)
class Scale:
    """What texts are measured by.

    Args:
        judge: a true language or another model; None: nobody but the writer.
        name: who that is.
        words: the words that exist; None: not known.
    """

    judge: Predictor | None = None
    name: str = ""
    words: Collection[str] | None = None

    @classmethod
    def of(cls, model: Predictor, judge: Predictor | None = None) -> "Scale":
        """The scale for what a model writes: the judge, or the language that it was trained on."""
        corpus = corpus_name(model)
        words = frozenset(tales_words().words) if corpus in TALES else None
        if judge is not None:
            return cls(judge, "the judge", words)
        if corpus not in KNOWN:
            return cls(words=words)
        language = KNOWN[corpus]
        return cls(load_language(language), f"the true grammar of {language}", words)

    def score(self, trajectory: Trajectory) -> str:
        """One sentence on a text: share of words that exist, and bits under the judge."""
        parts, prompt = [], trajectory.prompt
        if self.words is not None:
            share = known_words(trajectory.text, self.words, prompt)
            if not math.isnan(share):
                parts.append(f"{100 * share:.0f} % of its words exist")
        return " · ".join([*parts, self._bits(trajectory)])

    def _bits(self, trajectory: Trajectory) -> str:
        if self.judge is None:
            own = -float(trajectory.log_probs.mean()) / math.log(2)
            return (
                f"{own:.2f} bits a symbol by the writer itself, who likes what it writes "
                "(a panel with judge=… asks somebody else)"
            )
        try:
            found = judged(trajectory.text, self.judge, trajectory.prompt)
        except ValueError as error:
            return f"{self.name} cannot say: {error}"
        count, total = len(found.scored), len(found.log_probs)
        bits = f"{float(found.bits_per_char):.2f} bits a character" if count else "no bits"
        if count == total:
            return f"{bits} under {self.name}"
        so_far, odd = (trajectory.prompt + trajectory.text[:count])[-12:], trajectory.text[count]
        return (
            f"{self.name} follows {count} of {total} characters ({bits}): "
            f"after {so_far!r} it knows no {odd!r}"
        )
