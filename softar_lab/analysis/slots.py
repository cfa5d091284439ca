"""Which token sits in which slot of a structured window (K8), and what a model still answers from there."""

from dataclasses import dataclass

import torch

from ..models.window import Window
from ..predictor import Predictor
from ..sources.tales import question_parts


def window_begin(window: Window, context: int, read: int) -> int:
    """Which token is the window's first once `read` tokens were read: all before it are in the memory, or lost."""
    tokens, stride = window.tokens(context), window.stride(context)
    return max(0, -(-(read - tokens) // stride) * stride)


def token_slots(window: Window, context: int, read: int) -> list[str]:
    """Where each of `read` tokens is: "aggregate", "segment 1" (the oldest) …, "hard", "soft", or "lost".

    "soft" are the newest, which alone may stay soft. Raises ValueError where the window does not fit the context.
    """
    begin, newest = window_begin(window, context, read), window.newest(context)
    recent = begin - window.segments * window.stretch
    soft = begin if newest is None else max(begin, read - newest)
    older = "aggregate" if window.aggregate else "lost"
    return [
        older if t < recent
        else f"segment {(t - recent) // window.stretch + 1}" if t < begin
        else "hard" if t < soft else "soft"
        for t in range(read)
    ]  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What a model says to a story's question: `prob` of the true answer, and its likeliest letters."""

    prob: float
    said: str


@torch.inference_mode()
def still_answers(model: Predictor, story: str, longest: int = 40) -> Answer:
    """Read a story of `tales` and its question, window after window, and answer, letter after letter.

    Raises ValueError where the story asks nothing or has no answer.
    """
    told, question, answer = question_parts(story)
    answer = answer.rstrip("\n")
    if not answer:
        raise ValueError(f"the story asks, but has no answer: …{question!r}")
    encode = model.tokenizer.encode
    state = asked = model.read(model.start(), token_ids=encode(told + question)[None])
    log_prob = 0.0
    for token_id in encode(answer)[:, None]:
        log_prob += model.predict(state).log_probs[0, token_id].item()
        state = model.advance(state, token_ids=token_id)
    said, state = "", asked
    while len(said) < longest and not said.endswith((".", "\n")):
        best = model.predict(state).log_probs.argmax(-1)
        said += model.tokenizer.decode(best)
        state = model.advance(state, token_ids=best)
    return Answer(float(torch.tensor(log_prob).exp()), said)
