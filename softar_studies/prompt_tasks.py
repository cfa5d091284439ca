"""Tasks whose answer is known, for learned prompts (K32): lists of words, written anew in a form.

The words of the training pairs never occur in the test pairs. For the language mess3 the task is to
go on as from one hidden state, and what the best prompt could gain is known exactly.
"""

import numpy as np
import torch

from softar_lab.data.languages.hidden_markov import HiddenMarkov

_WORDS = """
goats lamps kites spoons ropes chairs clocks drums boots coins wheels bells books cups doors
eggs figs gloves hats jars keys locks maps nails ovens pens rings shoes tables vases wagons axes
bags cakes dolls fans grapes hens inks jugs knots leaves mugs nets oars plums quilts rugs socks
tents urns vests wells yarns zebras apples brooms crowns desks flutes gates hooks
"""
WORDS = _WORDS.split()
TRAIN = 48  # of the words


def bullets(words: list[str]) -> str:
    return "".join(f"- {word}\n" for word in words)


def brackets(words: list[str]) -> str:
    return f"[{', '.join(repr(word) for word in words)}]\n"


def backwards(words: list[str]) -> str:
    return f"{'; '.join(reversed(words))}.\n"


FORMS = {"bullets": bullets, "brackets": brackets, "backwards": backwards}
# What somebody would write in front, and for "bullets" an example.
WRITTEN = {
    "bullets": "Write these as a bulleted list:\n",
    "brackets": "Write these as a list in Python:\n",
    "backwards": "Write these in reverse order, with semicolons:\n",
}


def pairs(form: str, number: int, seed: int, test: bool = False) -> list[tuple[str, str]]:
    """Pairs such as ("goats, lamps and kites\\n", "- goats\\n- lamps\\n- kites\\n").

    Args:
        form: one of FORMS.
        number: how many.
        seed: draws two to four words of each pair.
        test: whether the words are those that training pairs never hold.
    """
    rng, words = np.random.default_rng([seed, test]), WORDS[TRAIN:] if test else WORDS[:TRAIN]
    found = []
    for _ in range(number):
        some = [words[i] for i in rng.permutation(len(words))[: rng.integers(2, 5)]]
        text = f"{', '.join(some[:-1])} and {some[-1]}\n"
        found.append((text, FORMS[form](some)))
    return found


# -- where the truth is known ----------------------------------------------------------------------


def texts_from(
    language: HiddenMarkov, state: int, number: int, length: int, seed: int
) -> list[tuple[str, str]]:
    """Texts that begin in one hidden state, as answers to nothing."""
    rng, (_, states, _) = np.random.default_rng(seed), language.transitions.shape
    symbols, found = language.tokenizer.tokens, []
    for _ in range(number):
        at, text = state, []
        for _ in range(length):
            outcomes = language.transitions[:, at]  # (V, S): the next symbol, the next state
            symbol, at = divmod(rng.choice(outcomes.size, p=outcomes.ravel()), states)
            text.append(symbols[symbol])
        found.append(("", "".join(text)))
    return found


def true_nats(language: HiddenMarkov, pairs: list[tuple[str, str]], belief: np.ndarray) -> float:
    """What the language itself gives the answers from a belief over its states, nats per token.

    From the state that they began in this is what no prompt can go below, but for luck; from the
    stationary belief, what no prompt gives.
    """
    nats, count = 0.0, 0
    for _, text in pairs:
        at = belief
        for symbol in language.tokenizer.encode(text).tolist():
            at = at @ language.transitions[symbol]
            nats -= np.log(at.sum())
            at, count = at / at.sum(), count + 1
    return nats / count


def every_text(vocab_size: int, length: int) -> torch.Tensor:
    """All texts of a length, as ids (V^length, length)."""
    return torch.cartesian_prod(*[torch.arange(vocab_size)] * length)
