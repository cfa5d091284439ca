"""Languages whose exact probabilities are known, so that the truth itself can judge a model."""

from .documents import Recall, Urn
from .grammar import Choice, Grammar, GrammarLanguage, Reading
from .language import Language
from .processes import HiddenMarkov, Markov, mess3

__all__ = [
    "Choice",
    "Grammar",
    "GrammarLanguage",
    "HiddenMarkov",
    "Language",
    "Markov",
    "Reading",
    "Recall",
    "Urn",
    "mess3",
]
