"""What is kept of the tokens that a window has let go (K6, K8): sums of several kinds, or gists the body has to write.

A memory is folded forward, carry and tokens -> carry, at a cost that does not depend on how much was folded before,
and read into the slots that come first in the next window. A carry is a tuple of tensors whose first axis is the row;
where rows have folded different numbers of tokens, theirs stand last and `there` (B, n) says which they are.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..registry import Registry
from .by_row import product

MEMORIES = Registry("memory")
Carry = tuple[Tensor, ...]


@MEMORIES.register("sum")
class Sums(nn.Module):
    """Sums of the tokens, mean embedding subtracted, divided by √n; log(1 + n) rides along (FACTS of compression).

    The latest `segments` times `stretch` tokens are kept as they are and summed stretch by stretch, oldest first; what
    is older has gone into the aggregate, added up in float64, so that it matters little in how many portions. The mean
    is over the rows of the table, weighted by `prior`: how often each symbol occurs in the training text.
    """

    several = False  # whether a second aggregate slot would say anything else than the first

    def __init__(self, window: Any, shape: Any, generator: torch.Generator, width: int | None = None):
        super().__init__()
        if window.aggregate > 1 and not self.several:
            raise ValueError(f"this memory has one aggregate; {window.aggregate} of them would all say the same")
        self.segments, self.stretch, self.banks = window.segments, window.stretch, max(1, window.aggregate)
        self.aggregate, self.slots, self.recent = window.aggregate, window.memory, window.segments * window.stretch
        self.width, d = shape.embedding_dim, shape.d_model
        self.maps = nn.Parameter(torch.randn(self.slots, width or self.width, d, generator=generator) * d**-0.5)
        self.kinds = nn.Parameter(torch.randn(self.slots, d, generator=generator) * 0.02)
        self.counts = nn.Parameter(torch.randn(self.slots, d, generator=generator) * 0.02)
        self.register_buffer("prior", torch.full((shape.vocab_size,), 1 / shape.vocab_size))

    def features(self, vectors: Float[Tensor, "B n m"], before: Float[Tensor, "B n m"], banks: int) -> Tensor:
        """What is summed of each token, given the one before it too, for so many aggregate slots: (B, n, banks, w)."""
        return vectors.unsqueeze(2).expand(-1, -1, banks, -1)

    def rate(self) -> Tensor:
        """What the sums of each aggregate slot are multiplied by at each step, (banks, 1 or w) float64 or complex."""
        return self.prior.new_ones(self.banks, 1, dtype=torch.float64)

    def empty(self, batch_size: int) -> Carry:
        """Nothing folded yet: tokens (B, 1 + recent, m), the first but for what it binds gone; sums; count (B,)."""
        tokens = self.prior.new_zeros(batch_size, 1 + self.recent, self.width)
        none = tokens[:, :0].double()
        sums = self.features(none, none, self.banks).sum(1) * self.rate()  # (B, banks, w)
        return tokens, sums, self.prior.new_zeros(batch_size, dtype=torch.long)

    def fold(self, carry: Carry, vectors: Float[Tensor, "B n m"], model: Any, there: Tensor | None = None) -> Carry:
        """The carry after n more tokens."""
        tokens, sums, count = carry
        if there is None:
            there = torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device)
        n, known = vectors.shape[1], torch.cat([self._known(count), there], 1)
        tokens = torch.cat([tokens, vectors], 1)
        found = self._features(tokens[:, : n + 1], known[:, : n + 1], self.banks, model)
        sums = self.rate() ** n * sums + (self._powers(n) * found).sum(1)
        return tokens[:, n:], sums, count + there.sum(1)

    def read(self, carry: Carry, model: Any) -> Float[Tensor, "B slots d"]:
        """The memory slots: aggregates, then segments, the oldest first."""
        tokens, sums, count = carry
        older = (count - self.recent).clamp_min(0)[:, None]
        parts, numbers = [(sums / self._spread(older))[:, : self.aggregate]], [older.expand(-1, self.aggregate)]
        if self.segments:
            known, shape = self._known(count), (self.segments, self.stretch)
            found = self._features(tokens, known, 1, model)[:, :, 0].unflatten(1, shape)  # (B, segments, stretch, w)
            numbers.append(known[:, 1:].unflatten(1, shape).sum(2))
            parts.append((self._powers(self.stretch)[:, 0] * found).sum(2) / self._spread(numbers[1], 1))
        content = torch.cat(parts, 1)
        if content.is_complex():
            content = torch.view_as_real(content).flatten(-2)
        content = content.to(self.maps.dtype)
        mapped = torch.stack([product(content[:, slot], one) for slot, one in enumerate(self.maps)], 1)
        return mapped + self.kinds + torch.cat(numbers, 1).to(self.maps.dtype).log1p()[..., None] * self.counts

    def _known(self, count: Tensor) -> Bool[Tensor, "B recent"]:
        """Which of the tokens kept are tokens."""
        return torch.arange(self.recent, -1, -1, device=count.device) < count[:, None]

    def _features(self, tokens: Tensor, known: Tensor, banks: int, model: Any) -> Tensor:
        """Of every token (B, 1 + n, m) but the first: (B, n, banks, w), zero for what is not `known`."""
        centred = (tokens - self.prior @ model.table.weight).double() * known[..., None]
        return self.features(centred[:, 1:], centred[:, :-1], banks) * known[:, 1:, None, None]

    def _powers(self, n: int) -> Tensor:
        """rate^age of n tokens, the youngest, of age 0, last: (n, banks, 1 or w)."""
        return self.rate() ** torch.arange(n - 1, -1, -1, device=self.prior.device)[:, None, None]

    def _spread(self, n: Tensor, banks: int | None = None) -> Tensor:
        """√ of the sum of the squared weights of n tokens (B, S), at least 1: (B, S or banks, 1 or w)."""
        square = self.rate().abs().square()[:banks]  # |rate| <= 1
        total = torch.where(square == 1, n[..., None], (1 - square ** n[..., None]) / (1 - square).clamp_min(1e-12))
        return total.clamp_min(1).sqrt()


@MEMORIES.register("ema")
class MovingAverage(Sums):
    """Sums that fade: a token counts `decay` times as much at every step. Each further slot fades four times slower."""

    several = True

    def __init__(self, window: Any, shape: Any, generator: torch.Generator, decay: float | int = 0.98):
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, not {decay!r}")
        super().__init__(window, shape, generator)
        self.decay = decay

    def rate(self) -> Tensor:
        """1 - (1 - decay) / 4^bank."""
        return (
            1 - (1 - self.decay) / 4 ** torch.arange(self.banks, dtype=torch.float64, device=self.prior.device)[:, None]
        )


@MEMORIES.register("rotated")
class Rotated(Sums):
    """Sums bound to positions: at every step the sum is turned, each pair of coordinates by an angle of its own.

    The angles are random and fixed; so the sum also tells how old each token is, as far as its width allows.
    """

    several = True

    def __init__(self, window: Any, shape: Any, generator: torch.Generator):
        pairs = -(-shape.embedding_dim // 2)
        super().__init__(window, shape, generator, 2 * pairs)
        angle = torch.rand(self.banks, pairs, generator=generator, dtype=torch.float64) * 2 * torch.pi
        self.register_buffer("angle", angle)

    def features(self, vectors, before, banks):
        """Each pair of coordinates (i, i + m/2) as a complex number."""
        halves = nn.functional.pad(vectors, (0, vectors.shape[-1] % 2)).chunk(2, -1)
        return torch.complex(*halves).unsqueeze(2).expand(-1, -1, banks, -1)

    def rate(self) -> Tensor:
        """e^(i angle)."""
        return torch.polar(torch.ones_like(self.angle), self.angle)


@MEMORIES.register("bound")
class Bound(Sums):
    """Sums of pairs: every token is bound to the one before it, (K before) ⊙ (U token), K and U random and fixed.

    So it can be asked what followed a token: a key and its value stay together, where a plain sum knows that both were
    there. `width` numbers a slot hold the products.
    """

    several = True

    def __init__(self, window: Any, shape: Any, generator: torch.Generator, width: int = 256):
        if not isinstance(width, int) or isinstance(width, bool) or width < 1:
            raise ValueError(f"width must be a whole number of at least 1, not {width!r}")
        super().__init__(window, shape, generator, width)
        binders = torch.randn(2, self.banks, width, shape.embedding_dim, generator=generator)
        binders[1] *= width**-0.5
        self.register_buffer("binders", binders)

    def features(self, vectors, before, banks):
        """The products of both sides: (B, n, banks, width)."""
        key, value = self.binders[:, :banks].double()
        keys = torch.stack([product(before, one.T) for one in key], 2)
        return keys * torch.stack([product(vectors, one.T) for one in value], 2)


@MEMORIES.register("gist")
class Gist(nn.Module):
    """Learned memory slots: the body reads [old gists | what leaves the window | queries] and answers at the queries.

    Its answers, mapped to R^m, are the next window's gists (as in gist tokens, arXiv 2304.08467, and recurrent memory,
    arXiv 2207.06881). Learning goes back through the latest `unroll` foldings. Aggregate and segments do not differ.
    """

    def __init__(self, window: Any, shape: Any, generator: torch.Generator, unroll: int = 4):
        super().__init__()
        if not isinstance(unroll, int) or isinstance(unroll, bool) or unroll < 1:
            raise ValueError(f"unroll must be a whole number of at least 1, not {unroll!r}")
        self.slots, self.unroll, m, d = window.memory, unroll, shape.embedding_dim, shape.d_model
        self.block = window.stride(shape.context)
        if self.block > shape.context - 2 * self.slots:
            raise ValueError(
                f"{self.block} tokens leave a window at once and {2 * self.slots} gists stand around them: too many "
                f"for a context of {shape.context}; a larger Window.keep lets fewer go"
            )
        self.kinds = nn.Parameter(torch.randn(self.slots, d, generator=generator) * 0.02)
        self.queries = nn.Parameter(torch.randn(self.slots, d, generator=generator) * 0.02)
        self.out = nn.Parameter(torch.randn(d, m, generator=generator) * d**-0.5)

    def empty(self, batch_size: int) -> Carry:
        """Gists of nothing: zeros (B, slots, m)."""
        return (self.kinds.new_zeros(batch_size, self.slots, self.out.shape[1]),)

    def fold(self, carry: Carry, vectors: Float[Tensor, "B n m"], model: Any, there: Tensor | None = None) -> Carry:
        """The gists after n more tokens, read so many at a time as leave a window together."""
        blocks = vectors.split(self.block, 1)
        for i, block in enumerate(blocks):
            if len(blocks) - i == self.unroll:
                carry = (carry[0].detach(),)
            with torch.set_grad_enabled(torch.is_grad_enabled() and len(blocks) - i <= self.unroll):
                new = self._write(carry, block, model)
            if there is not None:
                new = torch.where(there[:, i * self.block, None, None], new, carry[0])
            carry = (new,)
        return carry

    def _write(self, carry: Carry, block: Tensor, model: Any) -> Float[Tensor, "B slots m"]:
        queries = self.queries.expand(len(block), -1, -1)
        hidden = model.behind_start(self.read(carry, model), product(block, model.input.weight.T), queries)
        return product(hidden[:, -self.slots :], self.out).to(carry[0].dtype)

    def read(self, carry: Carry, model: Any) -> Float[Tensor, "B slots d"]:
        """The memory slots."""
        return product(carry[0], model.input.weight.T) + self.kinds


def make_memory(config: Any, generator: torch.Generator) -> nn.Module | None:
    """The memory of a model of this shape; None where its window has no slot for one. ValueError as the kinds say."""
    window = config.layout
    return MEMORIES.make(window.kind, window, config, generator) if window and window.memory else None
