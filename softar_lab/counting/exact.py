"""Counting (K12–K16): the exact model of a set of sequences.

Nothing is learned; everything is looked up. In the code below, a token is the code point of its id,
and a sequence is a Python string. When the sequences are sorted, those that share a prefix are
neighbours, and bisection finds them. This replaces a trie with nodes.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float64, Int, Int64
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from ..core.predictor import Prediction
from ..data.tokenizers.char import CharTokenizer
from .contexts import ContextCounts
from .successor import SuccessorModel
from .token_predictor import Memory, TokenPredictor, Vocabulary, check_ids, encode

__all__ = ["TWO_STRINGS", "CountingModel", "SuccessorModel", "Vocabulary"]

TWO_STRINGS = (("<start>", "C", "A", "A", "R", "<end>"), ("<start>", "H", "A", "T", "<end>"))


class CountingModel(TokenPredictor):
    """The model that has read some sequences and counts (K12–K16). `fit` makes it.

    order None: p(x | prefix) is the share of x among the tokens directly after the whole prefix,
    read from the start of a sequence. If nothing ever followed the prefix, the model uses its
    longest suffix that something followed, anywhere in a sequence. If nothing ever followed even
    the last token, that token ends sequences, and the model predicts the first token of the next
    one.

    order n, for running text: p(x | last n tokens), or as many of these as something ever followed.
    Before anything is read, p is the share of each token among all tokens.

    smoothing "witten-bell" needs an order. Where N tokens, T of them distinct, follow a context,
    p(x) = (count(x) + T p'(x)) / (N + T). p' is the same with a context one token shorter, down to
    uniform, so p is never 0.

    A prefix is a sequence of tokens, or a text to be cut into tokens.

    Raises:
        ValueError: for an unknown token, in every method.

    Source:
        "witten-bell" is method C of Witten and Bell 1991.
    """

    def __init__(
        self,
        sequences: Sequence[Sequence[str]],
        order: int | None,
        smoothing: str | None,
        tokenizer,
    ):
        self.tokenizer, self.order, self.smoothing = tokenizer, order, smoothing
        self.vocabulary, self.vocab_size = tokenizer.tokens, tokenizer.vocab_size
        self._sequences = sorted(map(self._coded, sequences))

    @classmethod
    def fit(
        cls,
        sequences: Sequence[Sequence[str]],
        order: int | None = None,
        smoothing: str | None = None,
        tokenizer: CharTokenizer | Vocabulary | None = None,
    ) -> "CountingModel":
        """Count sequences of tokens.

        Args:
            sequences: the sequences. The tokens of a str are its characters; one running text is
                `[text]`.
            order: None for the whole prefix, or how many of the last tokens to use.
            smoothing: None, or "witten-bell" with an order.
            tokenizer: whose ids to use. None: a Vocabulary of the tokens, in order of first
                appearance.

        Raises:
            ValueError: for no sequence, an empty one, a token the tokenizer does not know, or a bad
                setting.
        """
        if order is not None and order < 0:
            raise ValueError(f"order must be None (the whole prefix) or at least 0, not {order!r}")
        if smoothing not in (None, "witten-bell") or (smoothing and order is None):
            raise ValueError(
                f'smoothing must be None or, with an order, "witten-bell", not {smoothing!r}'
            )
        found = Vocabulary.fit(sequences)
        return cls(sequences, order, smoothing, tokenizer or found)

    # -- the trie: how often, after which prefix (K13) ---------------------------------------------

    def freq(self, token: str, prefix: Sequence[str] = ()) -> int:
        """freq(t, s): how often t occurs anywhere after s, in all sequences that begin with s."""
        return self._freq(self._coded([token]), self._coded(prefix))

    def next_freq(self, token: str, prefix: Sequence[str] = ()) -> int:
        """nextFreq(t, s): how often t stands directly after s."""
        return len(self._beginning(self._coded(prefix) + self._coded([token])))

    def hoped_next_freq(self, token: str, prefix: Sequence[str] = ()) -> int:
        """freq(t, s) - freq(t, s+[t]): the hoped-for formula for nextFreq(t, s).

        It is right only where no sequence that continues with another token has a t later.
        """
        t, s = self._coded([token]), self._coded(prefix)
        return self._freq(t, s) - self._freq(t, s + t)

    def corrected_next_freq(self, token: str, prefix: Sequence[str] = ()) -> int:
        """freq(t, s) - Σ_u freq(t, s+[u]): always nextFreq(t, s).

        The sum counts t in the same sequences, but from one position later.
        """
        t, s = self._coded([token]), self._coded(prefix)
        return self._freq(t, s) - sum(self._freq(t, s + u) for u in self._children(s))

    def simple_update(self, token: str, prefix: Sequence[str] = ()) -> int:
        """freq(t, s) - nextFreq(t, s): the simple update of freq(t, s) to freq(t, s+[u]) (K15).

        It is right only where no continuation of s other than u has a t later.
        """
        return self.freq(token, prefix) - self.next_freq(token, prefix)

    def children(self, prefix: Sequence[str] = ()) -> dict[str, int]:
        """{token: how often it stands directly after `prefix`}, in order of the vocabulary."""
        return {self.vocabulary[ord(t)]: n for t, n in self._children(self._coded(prefix)).items()}

    def prefixes(self) -> Iterator[tuple[str, ...]]:
        """Yield every distinct prefix, the empty one first.

        Each comes directly before its continuations.
        """
        yield ()
        for before, sequence in pairwise(["", *self._sequences]):
            tokens = tuple(self.vocabulary[ord(t)] for t in sequence)
            yield from (
                tokens[:n] for n in range(1, len(tokens) + 1) if not before.startswith(sequence[:n])
            )

    def probability(
        self, events: Mapping[int, str], given: Mapping[int, str] | None = None
    ) -> float:
        """P(events | given), both {position: token}; position 0 is a sequence's first token (K12).

        P(A) = sequences in which A holds / sequences long enough for A. P(A | B) = P(A and B) /
        P(B), both counted among the sequences long enough for A *and* B: the share of A where B
        holds. With a separate denominator for each, the ratio could exceed 1: of "ab", "x", "x",
        P(a at 0 and b at 1) would be 1/1, but P(a at 0) = 1/3.

        Raises:
            ValueError: where no sequence is long enough, or B holds in none that is.
        """
        a, b = (
            [(i, self._coded([t])) for i, t in event.items()] for event in (events, given or {})
        )
        positions = [i for i, _ in a + b]
        if min(positions, default=0) < 0:
            raise ValueError(f"positions count from 0, not {min(positions)}")
        # 1) the sequences long enough for both
        able = [
            sequence for sequence in self._sequences if len(sequence) > max(positions, default=-1)
        ]
        if not able:
            raise ValueError(f"no sequence reaches position {max(positions)}")
        # 2) of these, the ones in which `given` holds
        able = [sequence for sequence in able if all(sequence[i] == t for i, t in b)]
        if not able:
            raise ValueError(
                f"never observed: {given} in a sequence that reaches position {max(positions)}"
            )
        return sum(all(sequence[i] == t for i, t in a) for sequence in able) / len(able)

    # -- the predictor (K14) -----------------------------------------------------------------------

    def start(self, batch_size: int = 1) -> Memory:
        """The state in which nothing has been read yet.

        A state holds all token ids (B, T), or the last n, with blanks before the first token.
        """
        return Memory(torch.full((batch_size, self.order or 0), self.vocab_size))

    def predict(self, state: Memory) -> Prediction:
        """p(x | what was read), (B, V) in float64; log 0 is -inf."""
        if self.order is None:
            probs = np.array([self._after_prefix(_text(row)) for row in state.data]).reshape(
                -1, self.vocab_size
            )
        else:
            probs = self._contexts.probs(state.data.numpy())
        probs = torch.from_numpy(probs)
        return Prediction(probs.log(), probs=probs)

    def next_log_probs(self, token_ids: Int[Tensor, "B T"]) -> Float64[Tensor, "B T V"]:
        """log p(w | the tokens before t in its row) of every symbol, (B, T, V), in nats.

        A model with an order computes all of them at once.
        """
        if self.order is None:
            return super().next_log_probs(token_ids)
        probs = self._contexts.probs(self._windows(token_ids)[:, :-1])  # (B T, V)
        return torch.from_numpy(probs).log().view(*token_ids.shape, self.vocab_size)

    def log_probs(self, token_ids: Int[Tensor, "B T"]) -> Float64[Tensor, "B T"]:
        """log p(token t | the tokens before it in its row), (B, T), in nats.

        A model with an order computes all of them at once.
        """
        if self.order is None:
            return super().log_probs(token_ids)
        windows = self._windows(token_ids)
        return (
            torch.from_numpy(self._contexts.probs(windows[:, :-1], windows[:, -1]))
            .log()
            .view(token_ids.shape)
        )

    # -- private: tokens as code points ------------------------------------------------------------

    def _step(self, token_ids: Tensor, new: Tensor) -> Tensor:
        longer = torch.cat([token_ids, new[:, None]], 1)
        return longer if self.order is None else longer[:, 1:]

    def _coded(self, tokens: Sequence[str]) -> str:
        return _text(encode(self.tokenizer, tokens))

    def _beginning(self, s: str) -> list[str]:
        """The sequences that begin with s."""
        first = bisect_left(self._sequences, s)
        return self._sequences[
            first : bisect_right(self._sequences, s, first, key=lambda sequence: sequence[: len(s)])
        ]

    def _freq(self, t: str, s: str) -> int:
        return sum(sequence.count(t, len(s)) for sequence in self._beginning(s))

    def _children(self, s: str) -> dict[str, int]:
        return Counter(
            sequence[len(s)] for sequence in self._beginning(s) if len(sequence) > len(s)
        )

    def _after_prefix(self, s: str) -> Float64[np.ndarray, " V"]:
        """Shares of the tokens after a prefix, or after its longest suffix that was followed."""
        counts = self._children(s)
        if not counts:  # if something followed a suffix of s, it also followed all shorter suffixes
            longest = bisect_left(range(len(s)), True, key=lambda i: any(self._followers(s[i:])))
            counts = (
                Counter(self._followers(s[longest:])) if longest < len(s) else self._children("")
            )
        row = np.zeros(self.vocab_size)
        row[[ord(t) for t in counts]] = [*counts.values()]
        return row / row.sum()

    @cached_property
    def _joined(self) -> str:
        blank = chr(self.vocab_size)
        return blank + blank.join(self._sequences) + blank

    def _followers(self, context: str) -> Iterator[str]:
        """Yield what follows each occurrence of a context, anywhere in a sequence."""
        at = self._joined.find(context)
        while at >= 0:
            if (follower := self._joined[at + len(context)]) != self._joined[0]:
                yield follower
            at = self._joined.find(context, at + 1)

    @cached_property
    def _contexts(self) -> ContextCounts:
        """What followed each context, in a model with an order."""
        return ContextCounts(
            _ids(self._joined), self.vocab_size, self.order, self.smoothing is not None
        )

    def _windows(self, token_ids: Tensor) -> Int64[np.ndarray, "BT n1"]:
        """Each token with the n tokens before it in its row, (B T, n + 1)."""
        check_ids(token_ids, self.vocab_size)
        ids = token_ids.cpu().numpy().astype(np.int64)
        padded = np.pad(ids, ((0, 0), (self.order, 0)), constant_values=self.vocab_size)
        return sliding_window_view(padded, self.order + 1, axis=1).reshape(-1, self.order + 1)


def _text(token_ids: Tensor) -> str:
    """Token ids (T,) as code points."""
    return token_ids.numpy().astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


def _ids(text: str) -> Int64[np.ndarray, " T"]:
    """Code points as token ids (T,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.int64)
