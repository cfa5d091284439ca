"""What the model saves of tokens that have left its window (K6, K8): sums, or gists that it writes.

A memory has a state. `update` folds tokens into it, at a cost that does not depend on how much was
folded in before. `read` turns it into the slots that come first in the next window.

The state is a tuple of tensors whose first axis is the row. Where rows fold in different numbers of
tokens, their tokens stand last, and `there` (B, n) marks them.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ...core.checks import whole_number
from ...core.registry import Registry
from ..by_row import product

MEMORIES = Registry("memory")
MemoryState = tuple[Tensor, ...]


@MEMORIES.register("sum")
class Sums(nn.Module):
    """Sums of the tokens minus the mean embedding, divided by √n; log(1 + n) is added to the slot.

    The latest `segments` times `stretch` tokens are saved unchanged, and summed stretch by stretch,
    oldest first. Older tokens are summed in the aggregate. It is added up in float64, so the number
    of portions hardly matters. The mean is over the rows of the table, weighted by `prior`: how
    often each symbol occurs in the training text.

    Raises:
        ValueError: for several aggregates in a memory where they would all hold the same.

    Source:
        K6; FACTS, section on compression.
    """

    several = False  # whether a second aggregate slot would hold anything else than the first

    def __init__(
        self, window: Any, shape: Any, generator: torch.Generator, width: int | None = None
    ):
        super().__init__()
        if window.aggregate > 1 and not self.several:
            raise ValueError(
                f"this memory has one aggregate; {window.aggregate} of them would all say the same"
            )
        self.segments, self.stretch, self.banks = (
            window.segments,
            window.stretch,
            max(1, window.aggregate),
        )
        self.aggregate, self.slots, self.recent = (
            window.aggregate,
            window.memory,
            window.segments * window.stretch,
        )
        self.width, d = shape.embedding_dim, shape.d_model
        self.maps = nn.Parameter(
            torch.randn(self.slots, width or self.width, d, generator=generator) * d**-0.5
        )
        self.kinds = nn.Parameter(torch.randn(self.slots, d, generator=generator) * 0.02)
        self.counts = nn.Parameter(torch.randn(self.slots, d, generator=generator) * 0.02)
        self.register_buffer("prior", torch.full((shape.vocab_size,), 1 / shape.vocab_size))

    def features(
        self, vectors: Float[Tensor, "B n m"], before: Float[Tensor, "B n m"], banks: int
    ) -> Tensor:
        """What is summed for each token, given also the token before it: (B, n, banks, w).

        `banks` is the number of aggregate slots.
        """
        return vectors.unsqueeze(2).expand(-1, -1, banks, -1)

    def rate(self) -> Tensor:
        """The factor on the sums of each aggregate slot at each step, (banks, 1 or w).

        It is float64 or complex.
        """
        return self.prior.new_ones(self.banks, 1, dtype=torch.float64)

    def log_fading(self) -> Float[Tensor, "banks 1"] | None:
        """log |rate|, below 0, in float64; None where |rate| is 1, so that nothing fades.

        It says so by itself: a computed |rate| of 1 may round to something else.
        """
        return None

    def empty(self, batch_size: int) -> MemoryState:
        """The state in which nothing has been folded in.

        Returns:
            Tokens (B, 1 + recent, m), sums (B, banks, w) and a count (B,). The first of the tokens
            has left already; it is saved only for what is bound to it.
        """
        tokens = self.prior.new_zeros(batch_size, 1 + self.recent, self.width)
        none = tokens[:, :0].double()
        sums = self.features(none, none, self.banks).sum(1) * self.rate()  # (B, banks, w)
        return tokens, sums, self.prior.new_zeros(batch_size, dtype=torch.long)

    def update(
        self,
        memory_state: MemoryState,
        vectors: Float[Tensor, "B n m"],
        model: Any,
        there: Tensor | None = None,
    ) -> MemoryState:
        """The state after n more tokens.

        Args:
            memory_state: the state before.
            vectors: the tokens (B, n, m).
            model: the model that has the embedding table.
            there: which of `vectors` are tokens (B, n). None: all.
        """
        tokens, sums, count = memory_state
        if there is None:
            there = torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device)
        n, known = vectors.shape[1], torch.cat([self._known(count), there], 1)
        # n tokens come in, so the n oldest that are not in the sums yet move into them
        tokens = torch.cat([tokens, vectors], 1)
        found = self._features(tokens[:, : n + 1], known[:, : n + 1], self.banks, model)
        sums = self.rate() ** n * sums + (self._powers(n) * found).sum(1)
        return tokens[:, n:], sums, count + there.sum(1)

    def read(self, memory_state: MemoryState, model: Any) -> Float[Tensor, "B slots d"]:
        """The memory slots: first the aggregates, then the segments, oldest first."""
        tokens, sums, count = memory_state
        # 1) the aggregates
        older = (count - self.recent).clamp_min(0)[:, None]
        parts, numbers = (
            [(sums / self._spread(older))[:, : self.aggregate]],
            [older.expand(-1, self.aggregate)],
        )
        # 2) the segments, from the tokens that are saved unchanged
        if self.segments:
            known, shape = self._known(count), (self.segments, self.stretch)
            # (B, segments, stretch, w)
            found = self._features(tokens, known, 1, model)[:, :, 0].unflatten(1, shape)
            numbers.append(known[:, 1:].unflatten(1, shape).sum(2))
            parts.append(
                (self._powers(self.stretch)[:, 0] * found).sum(2) / self._spread(numbers[1], 1)
            )
        # 3) one learned map per slot, plus what kind of slot it is and how many tokens it holds
        content = torch.cat(parts, 1)  # (B, slots, w), in float64
        # rotations are complex numbers: a map of real weights reads both parts
        if content.is_complex():
            content = torch.view_as_real(content).flatten(-2)
        content = content.to(self.maps.dtype)
        mapped = torch.stack(
            [product(content[:, slot], one) for slot, one in enumerate(self.maps)], 1
        )
        return (
            mapped
            + self.kinds
            + torch.cat(numbers, 1).to(self.maps.dtype).log1p()[..., None] * self.counts
        )

    def _known(self, count: Tensor) -> Bool[Tensor, "B recent"]:
        """Which of the 1 + recent saved tokens are real ones: the latest `count` of each row."""
        return torch.arange(self.recent, -1, -1, device=count.device) < count[:, None]

    def _features(self, tokens: Tensor, known: Tensor, banks: int, model: Any) -> Tensor:
        """`features` of every token (B, 1 + n, m) except the first: (B, n, banks, w).

        They are zero where a token is not `known`.
        """
        # the mean symbol is taken off: else the sums would hold mostly how many tokens there were
        centred = (tokens - self.prior @ model.table.weight).double() * known[..., None]
        return self.features(centred[:, 1:], centred[:, :-1], banks) * known[:, 1:, None, None]

    def _powers(self, n: int) -> Tensor:
        """rate^age of n tokens, (n, banks, 1 or w); the youngest comes last and has age 0."""
        return self.rate() ** torch.arange(n - 1, -1, -1, device=self.prior.device)[:, None, None]

    def _spread(self, n: Tensor, banks: int | None = None) -> Tensor:
        """√(sum of squared weights) of n tokens (B, S), at least 1: (B, S or banks, 1 or w)."""
        total, fading = n[..., None].double().clamp_min(1), self.log_fading()
        if fading is not None:  # a geometric sum, exact also where the rate is close to 1
            total = torch.expm1(total * 2 * fading[:banks]) / torch.expm1(2 * fading[:banks])
        return total.sqrt()


@MEMORIES.register("ema")
class MovingAverage(Sums):
    """Sums that fade: at every step the weight of a token is multiplied by `decay`.

    Each further aggregate slot fades four times slower.

    Raises:
        ValueError: where `decay` is not between 0 and 1.
    """

    several = True

    def __init__(
        self, window: Any, shape: Any, generator: torch.Generator, decay: float | int = 0.98
    ):
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, not {decay!r}")
        super().__init__(window, shape, generator)
        self.decay = decay

    def rate(self) -> Tensor:
        """1 - (1 - decay) / 4^bank."""
        return 1 - self._lost()

    def log_fading(self) -> Float[Tensor, "banks 1"]:
        """log of the rate, also where the rate itself rounds to 1."""
        return torch.log1p(-self._lost())

    def _lost(self) -> Float[Tensor, "banks 1"]:
        """The share of a sum that each step takes away: (1 - decay) / 4^bank, above 0."""
        bank = torch.arange(self.banks, dtype=torch.float64, device=self.prior.device)
        return (1 - self.decay) / 4 ** bank[:, None]


@MEMORIES.register("rotated")
class Rotated(Sums):
    """Sums bound to positions: at every step, each pair of coordinates turns by its own angle.

    The angles are random and fixed. So the sum also holds how old each token is, as far as its
    width allows.
    """

    several = True

    def __init__(self, window: Any, shape: Any, generator: torch.Generator):
        pairs = -(-shape.embedding_dim // 2)
        super().__init__(window, shape, generator, 2 * pairs)
        angle = (
            torch.rand(self.banks, pairs, generator=generator, dtype=torch.float64) * 2 * torch.pi
        )
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
    """Sums of pairs: each token is bound to the one before it, (K before) ⊙ (U token).

    K and U are random and fixed. The products keep a key and its value together, so the memory can
    answer what followed a token. A plain sum only holds that both occurred. Each slot holds `width`
    numbers.

    Raises:
        ValueError: where `width` is not a whole number of at least 1.
    """

    several = True

    def __init__(self, window: Any, shape: Any, generator: torch.Generator, width: int = 256):
        width = whole_number("width", width)
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
    """Learned memory slots: the body reads [old gists | what leaves the window | queries].

    The body's outputs at the queries, mapped to R^m, are the gists of the next window. Gradients
    flow back through the latest `unroll` blocks of tokens. Aggregate slots and segment slots do not
    differ.

    Raises:
        ValueError: where `unroll` is not a whole number of at least 1, or what the body must read
            does not fit into the context.

    Source:
        gist tokens, arXiv 2304.08467; recurrent memory, arXiv 2207.06881.
    """

    prior = None  # it needs no symbol frequencies

    def __init__(self, window: Any, shape: Any, generator: torch.Generator, unroll: int = 4):
        super().__init__()
        unroll = whole_number("unroll", unroll)
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

    def empty(self, batch_size: int) -> MemoryState:
        """Gists of nothing: zeros (B, slots, m)."""
        return (self.kinds.new_zeros(batch_size, self.slots, self.out.shape[1]),)

    def update(
        self,
        memory_state: MemoryState,
        vectors: Float[Tensor, "B n m"],
        model: Any,
        there: Tensor | None = None,
    ) -> MemoryState:
        """The gists after n more tokens, read in blocks of as many as leave a window together.

        Args:
            memory_state: the gists before.
            vectors: the tokens (B, n, m).
            model: the model whose body writes the gists.
            there: which of `vectors` are tokens (B, n): in each block all or none. None: all.

        Raises:
            ValueError: where a block is only partly there.
        """
        blocks = vectors.split(self.block, 1)
        for i, block in enumerate(blocks):
            if len(blocks) - i == self.unroll:
                memory_state = (memory_state[0].detach(),)  # no gradients before this block
            with torch.set_grad_enabled(torch.is_grad_enabled() and len(blocks) - i <= self.unroll):
                new = self._write(memory_state, block, model)
            if there is not None:  # a row whose block holds no tokens retains its gists
                part = there[:, i * self.block : (i + 1) * self.block]
                if not torch.equal(part.any(1), part.all(1)):
                    raise ValueError(
                        f"gists are written block by block, and block {i} of {self.block} tokens is partly there: "
                        "give whole blocks"
                    )
                new = torch.where(part.all(1)[:, None, None], new, memory_state[0])
            memory_state = (new,)
        return memory_state

    def _write(
        self, memory_state: MemoryState, block: Tensor, model: Any
    ) -> Float[Tensor, "B slots m"]:
        """The gists that the body writes after one block."""
        queries = self.queries.expand(len(block), -1, -1)
        # the body reads the gists before, then the block; the queries stand last, and see both
        hidden = model.behind_start(
            self.read(memory_state, model), product(block, model.input.weight.T), queries
        )
        return product(hidden[:, -self.slots :], self.out).to(memory_state[0].dtype)

    def read(self, memory_state: MemoryState, model: Any) -> Float[Tensor, "B slots d"]:
        """The memory slots."""
        return product(memory_state[0], model.input.weight.T) + self.kinds


def make_memory(config: Any, generator: torch.Generator) -> nn.Module | None:
    """The memory of a model with this config; None where its window has no slot for one.

    Raises:
        ValueError: as the kinds of memory do.
    """
    window = config.layout
    return (
        MEMORIES.make(window.kind, window, config, generator) if window and window.memory else None
    )
