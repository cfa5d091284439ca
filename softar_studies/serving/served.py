"""A served model: how it reads what clients send, and what it says about its tokens."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from softar_lab.external.pretrained.load import load_pretrained
from softar_lab.external.pretrained.tokenizer import PieceTokenizer
from softar_lab.external.pretrained.wrapper import Pretrained
from softar_lab.models.scoring import distributions, pieces_of
from softar_lab.models.soft_ar import CHECKPOINT_FORMAT, MANIFEST, SoftAR

from .fields import BadRequest

MOST_READ = 2**16  # tokens of one prompt
ENTRIES = 2**28  # log-probs that are held at once while a prompt is scored: 1 GB
PART = 256  # predictions of a pretrained model that are held at once
SMOLLM2 = "smollm2"
IMPOSSIBLE = -9999.0  # stands for log 0, which JSON cannot hold; vLLM sends the same


@dataclass(frozen=True)
class Entry:
    """What a model says of one token: log p (nats) of it and of the `top` most probable ones."""

    token_id: int
    log_prob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Prompt:
    """A prompt as it is read.

    Attributes:
        ids: its tokens (T,), as the client counts them.
        pieces: the part of `text` that each token adds; joined they are `text`.
        lead: 1 where the first token is the one that the model puts before every text, else 0.
    """

    ids: Int[Tensor, " T"]
    pieces: tuple[str, ...]
    lead: int

    @property
    def text(self) -> str:
        """What the tokens spell."""
        return "".join(self.pieces)

    @property
    def own_ids(self) -> Int[Tensor, " N"]:
        """The tokens behind the lead."""
        return self.ids[self.lead :]


@dataclass(frozen=True)
class Served:
    """A model under a name, and how it writes.

    `choices` are those of `generate`: collapse, schedule, feedback, soft_temperature.

    Raises:
        ValueError: where the model has no tokenizer.
    """

    model: SoftAR | Pretrained
    name: str
    choices: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.model.tokenizer is None:
            raise ValueError("a model without a tokenizer cannot be served: clients send texts")

    @property
    def tokenizer(self) -> Any:
        """The model's."""
        return self.model.tokenizer

    @cached_property
    def begin_id(self) -> int | None:
        """The token that the model itself reads before every text; None: it is no token."""
        own = self.tokenizer
        return own.begin_id if isinstance(own, PieceTokenizer) else None

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""
        if not isinstance(self.model, Pretrained):
            return frozenset()
        found = self.model.network.generation_config.eos_token_id
        found = found if isinstance(found, list) else [found]
        return frozenset({*found, self.tokenizer.end_id} - {None})

    @cached_property
    def names(self) -> tuple[str, ...]:
        """A name of its own for every token of the vocabulary."""
        return self.tokenizer.tokens

    @property
    def most(self) -> int:
        """The most tokens that a prompt may have."""
        if isinstance(self.model, Pretrained):
            return MOST_READ
        return min(MOST_READ, ENTRIES // self.model.vocab_size)

    def info(self) -> dict[str, Any]:
        """What /tokenizer_info says: the special tokens, and the chat template if there is one.

        A checkpoint of the lab has no special tokens. Its documents end with a line's end, which is
        named as the end where it is a token: clients put it before the texts that they score.
        """
        own, names = self.tokenizer, ("bos_token", "eos_token", "pad_token", "unk_token")
        if isinstance(own, PieceTokenizer):
            found = {name: getattr(own.library, name) for name in (*names, "chat_template")}
        else:
            end = "\n" if self.names.count("\n") else None
            found = {**dict.fromkeys((*names, "chat_template")), "eos_token": end}
        size = {"vocab_size": self.model.vocab_size, "model_max_length": self.model.context}
        return {"tokenizer_class": type(own).__name__, **found, **size}

    def prompt(self, name: str, given: str | list[int]) -> Prompt:
        """What is read of a text or of token ids.

        Args:
            name: the field, for the message.
            given: the text or the ids. A first token `begin_id` is the one that the model reads.

        Raises:
            BadRequest: where the text cannot be encoded, an id is unknown, or both are too long.
        """
        ids = self._ids(name, given)
        if len(ids) > self.most:
            raise BadRequest(name, f"{len(ids)} tokens are too many; at most {self.most} are read")
        pieces = spelled(self.tokenizer, [], ids.tolist())
        if isinstance(given, str) and len(given) == sum(map(len, pieces)):
            # the client's own characters, of which the tokenizer may know less
            ends = torch.tensor([0, *map(len, pieces)]).cumsum(0).tolist()
            pieces = [given[begin:end] for begin, end in itertools.pairwise(ends)]
        lead = len(ids) > 0 and int(ids[0]) == self.begin_id
        return Prompt(ids, tuple(pieces), int(lead))

    def _ids(self, name: str, given: str | list[int]) -> Int[Tensor, " T"]:
        if isinstance(given, str):
            try:
                return self.tokenizer.encode(given)
            except ValueError as error:
                raise BadRequest(name, str(error)) from None
        size = self.model.vocab_size
        for position, one in enumerate(given):
            if not 0 <= one < size:
                raise BadRequest(name, f"id {one} at position {position} is not in 0..{size - 1}")
        return torch.tensor(given, dtype=torch.long)

    @torch.inference_mode()
    def scored(self, prompt: Prompt, best: int) -> list[Entry | None]:
        """One entry per token of a prompt, with the `best` most probable tokens at its place.

        The first token has none: it is only read. All others are scored as `char_log_probs` scores
        them, in windows of the model's context.
        """
        ids, model = prompt.own_ids, self.model
        pieces = pieces_of(model, ids, None)
        if prompt.lead and len(ids):  # the lead stands before the first token, which is scored, too
            first = pieces[0] if pieces else (0, 1, 0)
            pieces = [(*first[:2], 0), *pieces[1:]]
        found: list[Entry | None] = [None] if len(prompt.ids) else []
        if pieces:
            for log_probs, targets in self._predictions(ids, pieces):
                found += entries(log_probs, targets, best)
        return found

    def _predictions(
        self, ids: Int[Tensor, " N"], pieces: list[tuple[int, int, int]]
    ) -> Iterator[tuple[Float[Tensor, "n V"], Int[Tensor, " n"]]]:
        """log p of every symbol at the scored tokens, and these tokens, some at a time."""
        model = self.model
        if not isinstance(model, Pretrained):
            yield distributions(model, ids, pieces)
            return
        for begin, end, skip in pieces:
            hidden = model.hidden_states(ids[None, begin : end - 1].to(model.device))[0, skip:]
            targets = ids[begin + skip : end]
            for some, these in zip(hidden.split(PART), targets.split(PART), strict=True):
                yield model.predict_after(some).log_probs.cpu(), these


def entries(
    log_probs: Float[Tensor, "N V"], token_ids: Int[Tensor, " N"], best: int
) -> list[Entry]:
    """What (N, V) log-probs say of N tokens; impossible ones are not among the best."""
    values, ids = log_probs.topk(min(best, log_probs.shape[1]))
    own = log_probs.gather(1, token_ids[:, None])[:, 0].clamp_min(IMPOSSIBLE)
    rows = zip(token_ids.tolist(), own.tolist(), ids.tolist(), values.tolist(), strict=True)
    return [
        Entry(one, log_prob, tuple(pair for pair in zip(top, figures) if pair[1] > IMPOSSIBLE))
        for one, log_prob, top, figures in rows
    ]


def spelled(tokenizer: Any, before: list[int], ids: list[int]) -> list[str]:
    """The text that each token adds to what `before` spells; the first of several that spell one
    character gets it.
    """
    if not ids:
        return []
    start = len(tokenizer.decode(before)) if before else 0
    text = tokenizer.decode([*before, *ids])[start:]
    lengths = tokenizer.lengths(torch.tensor([*before, *ids]))[len(before) :]
    ends = [0, *lengths.cumsum(0).tolist()]
    ends[-1] = max(ends[-1], len(text))
    return [text[begin:end] for begin, end in itertools.pairwise(ends)]


def load(place: str) -> tuple[SoftAR | Pretrained, str]:
    """The model at a place, and its name.

    Args:
        place: a checkpoint's folder of the lab, or what `load_pretrained` reads; "smollm2" is the
            model that it reads without a name.

    Raises:
        CheckpointError, PretrainedError: where no model can be read there.
    """
    manifest = Path(place, MANIFEST)
    if manifest.is_file() and CHECKPOINT_FORMAT in manifest.read_text("utf-8", "replace"):
        return SoftAR.load(place).eval(), Path(place).resolve().name
    model = load_pretrained(None if place == SMOLLM2 else place)
    return model, Path(model.config.source).name
