"""Which token is in which slot of a structured window (K8), and what a model can answer from it."""

from dataclasses import dataclass

import torch

from ..core.predictor import Predictor
from ..data.languages.tales import question_parts
from ..models.window_memory.layout import Window


def window_begin(window: Window, context: int, read: int) -> int:
    """Index of the window's first token after `read` tokens.

    Earlier tokens are in the memory, or lost.
    """
    tokens, stride = window.tokens(context), window.stride(context)
    return max(0, -(-(read - tokens) // stride) * stride)


def token_slots(window: Window, context: int, read: int) -> list[str]:
    """The place of each of `read` tokens in the window, or "lost".

    The places are "aggregate", "segment 1" (the oldest), …, "hard" and "soft". "soft" tokens are
    the newest ones; only they may stay soft.

    Raises:
        ValueError: where the window does not fit into the context.
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
    """A model's answer to a story's question.

    `prob` is the probability of the true answer; `text` is the model's greedy answer.
    """

    prob: float
    text: str


@torch.inference_mode()
def still_answers(model: Predictor, story: str, longest: int = 40) -> Answer:
    """Let a model read a `tales` story with its question, window after window, and answer it.

    The greedy answer is decoded token by token, up to a full stop, a line end or `longest`
    characters.

    Raises:
        ValueError: where the story has no question or no answer.
    """
    facts, question, answer = question_parts(story)
    answer = answer.rstrip("\n")
    if not answer:
        raise ValueError(f"the story asks, but has no answer: …{question!r}")
    encode = model.tokenizer.encode
    state = asked = model.read(model.start(), token_ids=encode(facts + question)[None])
    # 1) the probability of the true answer
    log_prob = 0.0
    for token_id in encode(answer)[:, None]:
        log_prob += model.predict(state).log_probs[0, token_id].item()
        state = model.advance(state, token_ids=token_id)
    # 2) the greedy answer, from the state after the question
    text, state = "", asked
    while len(text) < longest and not text.endswith((".", "\n")):
        best = model.predict(state).log_probs.argmax(-1)
        text += model.tokenizer.decode(best)
        state = model.advance(state, token_ids=best)
    return Answer(float(torch.tensor(log_prob).exp()), text)
