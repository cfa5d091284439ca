"""Languages whose exact probabilities are known, so that a model can be compared with the truth."""

from .grammar import Choice, Grammar, GrammarLanguage, Reading
from .hidden_markov import HiddenMarkov, mess3
from .language import Language
from .markov import Markov, slow_chain
from .recall import Recall
from .urn import Urn

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
    "slow_chain",
]
