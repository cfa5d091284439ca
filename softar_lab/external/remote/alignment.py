"""Which part of a text each token of a server's answer stands for.

A server sends the text of each token as it decodes by itself, and that may be less than what the
token stands for: a part of a character is U+FFFD or nothing, and a space before it may be lost.
"""

import re
from collections.abc import Iterator, Sequence

from .protocols import LONGEST, Unusable

REPLACEMENT = "\ufffd"
# A place in the text, and how many more parts the characters just before it must have at least;
# NOT_SPELLING where they are no parts of characters.
State = tuple[int, int]
NOT_SPELLING = -1


def aligned(tokens: Sequence[str | None], text: str) -> list[str]:
    """The part of the text that each token stands for; joined they are the text.

    Where several tokens spell one character, it belongs to the one that the server gave it to, or
    else to the first. Of several alignments the plainest is taken: no lost spaces, then no parts of
    characters. They differ only in which of two neighbours has a character.

    Args:
        tokens: the tokens' texts; the first may be None, where the server does not send it.
        text: the text that was to be scored.

    Raises:
        Unusable: where the tokens are not those of this text.
    """
    furthest = (0, 0)
    for space in ("", " "):
        layers = _layers(tokens, text, space)
        done = layers[-1] if len(layers) > len(tokens) else {}
        if end := next((state for state in done if state[0] == len(text) and state[1] < 1), None):
            return _parts(layers, end, text)
        furthest = max(furthest, (len(layers) - 1, max(at for at, _ in layers[-1])))
    raise Unusable(_complaint(tokens, text, *furthest))


def _layers(tokens: Sequence[str | None], text: str, space: str) -> list[dict[State, State]]:
    """For 0, 1 … tokens, the states that they lead to, each with the state before its last token.

    It ends at the first token that cannot stand in the text; then it is shorter.
    """
    layers: list[dict[State, State]] = [{(0, NOT_SPELLING): (0, NOT_SPELLING)}]
    for token in tokens:
        found: dict[State, State] = {}
        for state in layers[-1]:
            if token is None:
                after = _after_any(text)
            else:
                after = [*_after(state, token, text)]
                if space and not token.startswith(space):
                    after += _after(state, space + token, text)
            for one in after:
                found.setdefault(one, state)
        if not found:
            break
        layers.append(found)
    return layers


def _after(state: State, token: str, text: str) -> list[State]:
    """The states that a token leads to."""
    if not token:
        return [*_after_nothing(*state, text)]
    states = [state]
    for piece in filter(None, re.split(f"({REPLACEMENT})", token)):
        step = _after_part if piece == REPLACEMENT else _after_letters
        states = [new for at, owed in states for new in step(at, owed, text, piece)]
    return states


def _after_any(text: str) -> list[State]:
    """The states that a first token leads to whose text is not sent."""
    ends = range(min(LONGEST, len(text)) + 1)
    spelling = [(at, 0) for at in ends if at and not text[at - 1].isascii()]
    return [(at, NOT_SPELLING) for at in ends] + spelling


def _after_nothing(at: int, owed: int, text: str) -> Iterator[State]:
    yield at, max(owed - 1, min(owed, 0))  # one more part
    if owed < 1 and text.startswith(REPLACEMENT, at):
        yield at + 1, NOT_SPELLING  # the character itself was taken for a part


def _after_letters(at: int, owed: int, text: str, letters: str) -> Iterator[State]:
    if owed < 1 and text.startswith(letters, at):
        yield at + len(letters), NOT_SPELLING


def _after_part(at: int, owed: int, text: str, part: str) -> Iterator[State]:
    if owed >= 0:
        yield at, max(0, owed - 1)
        return
    yield from _after_letters(at, owed, text, part)
    # the first part of some characters; each has at least two, and none is ASCII
    for count, char in enumerate(text[at : at + LONGEST], 1):
        if char.isascii():
            break
        yield at + count, 2 * count - 1


def _parts(layers: list[dict[State, State]], end: State, text: str) -> list[str]:
    """The part of the text of each token, from the last state back."""
    parts = []
    for layer in reversed(layers[1:]):
        before = layer[end]
        parts.append(text[before[0] : end[0]])
        end = before
    return parts[::-1]


def _complaint(tokens: Sequence[str | None], text: str, done: int, at: int) -> str:
    """Why tokens do not fit: `done` of them do, up to the character `at`."""
    joined = "".join(token or "" for token in tokens)
    if tokens[0] is None and text.endswith(joined):
        return f"it scored only the last {len(joined)} of {len(text)} characters"
    if done == len(tokens):
        return f"it scored only {at} of {len(text)} characters"
    if at == len(text):
        return f"it goes on after the text, with {tokens[done]!r:.40}"
    here = text[at : at + 20]
    return (
        f"it scored another text: at character {at} stands {here!r}, its token is "
        f"{tokens[done]!r:.40}"
    )
