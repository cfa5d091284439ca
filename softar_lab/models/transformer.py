"""The transformer body: vectors in, hidden states out, causal, with a key-value cache (K11, K21).

There is one body class. The fields of a `ModelConfig` decide which kind of transformer it is;
GPT-2, Llama 2 and Mistral are presets.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .compiled_decoder import CompiledDecoder
from .numpy_decoder import RowDecoder

if TYPE_CHECKING:
    from .config import ModelConfig

POSITIONS = ("learned", "sinusoidal", "rotary", "none")
NORMS = ("layer", "rms")


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) · up, where x holds gate and up side by side: (..., 2n) -> (..., n).

    Source:
        arXiv 2002.05202.
    """
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


MLPS = {"gelu": F.gelu, "gelu-tanh": partial(F.gelu, approximate="tanh"), "swiglu": swiglu}


FORK = 16  # how many slots of its own a fork can hold; for more, the beginning is copied, too


@dataclass(frozen=True)
class Beginning:
    """The first `length` slots of a fork. They lie in the `keys` and `values` of another cache.

    Row b of the fork reads row `rows[b]` of that cache. These slots are never written again.
    """

    keys: Tensor
    values: Tensor
    rows: Tensor
    length: int


@dataclass
class Cache:
    """The keys and values of all slots read so far, in all layers.

    `keys` and `values` have the shape (layers, B, heads, capacity, width). In memory, the keys are
    stored with the slots last, so that one component of all slots' keys is contiguous.

    States share a cache. A state that reads on from the end writes behind it. A state that branches
    off earlier, or that selects rows, gets a copy or a fork. A fork is a cache that holds only its
    latest slots; the slots before them, its `beginning`, lie in another cache. `filled` counts the
    slots in use. The first `shared` slots are the same in all rows.
    """

    keys: Tensor
    values: Tensor
    filled: int = 0
    shared: int = 0
    # made when first needed, from the weights at that moment
    decoder: CompiledDecoder | RowDecoder | None = None
    beginning: Beginning | None = None  # only a CompiledDecoder can read it

    @classmethod
    def empty(
        cls, like: Tensor, layers: int, batch_size: int, heads: int, capacity: int, width: int
    ) -> "Cache":
        """A cache with no slot read yet, on the device and in the precision of `like`."""
        keys = like.new_empty((layers, batch_size, heads, width, capacity)).mT
        return cls(keys, like.new_empty((layers, batch_size, heads, capacity, width)))

    @property
    def offset(self) -> int:
        """How many slots lie in the beginning, that is, in another cache."""
        return self.beginning.length if self.beginning else 0

    @property
    def capacity(self) -> int:
        """How many slots fit into the cache, the beginning included."""
        return self.offset + self.keys.shape[3]

    def reserve(self, length: int, new: int) -> "Cache":
        """A cache in which slots length … length+new-1 can be written; no other state uses them."""
        # 1) the slots after the end are free: use this cache
        fits = length + new <= self.capacity
        if length == self.filled and fits:
            return self
        # 2) a state branches off, for a few slots: fork, and copy only the slots that a fork owns
        layers, rows, heads, _, width = self.keys.shape
        begin = self._as_beginning(torch.arange(rows), length)
        if begin and length < self.filled and length - begin.length + new <= FORK:
            own = Cache.empty(self.keys, layers, rows, heads, FORK, width)
            self._copy(own, begin.length, length)
            return self._fork(begin, own, length)
        # 3) otherwise copy; twice the capacity, so that growing stays cheap
        capacity = max(64, self.capacity if fits else 2 * (length + new))
        other = Cache.empty(self.keys, layers, rows, heads, capacity, width)
        self._copy(other, 0, length)
        other.filled, other.shared, other.decoder = length, min(self.shared, length), self.decoder
        return other

    def _copy(self, other: "Cache", begin: int, end: int) -> None:
        """Copy slots begin … end-1 of all rows to the first slots of another cache."""
        seam = min(max(begin, self.offset), end)  # slots before it lie in the beginning
        for name in ("keys", "values"):
            theirs = getattr(other, name)
            if begin < seam:
                theirs[..., : seam - begin, :] = getattr(self.beginning, name)[
                    :, self.beginning.rows, :, begin:seam
                ]
            own = slice(seam - self.offset, end - self.offset)
            theirs[..., seam - begin : end - begin, :] = getattr(self, name)[..., own, :]

    def _as_beginning(self, rows: Tensor, length: int) -> Beginning | None:
        """The first `length` slots of some rows, or fewer, as the beginning of a fork.

        Fewer, if this cache is a fork itself and its own beginning is shorter. None where the
        decoder cannot read forks.
        """
        if not isinstance(self.decoder, CompiledDecoder):
            return None
        if self.beginning is None:
            return Beginning(
                self.keys,
                self.values,
                torch.zeros_like(rows) if length <= self.shared else rows,
                length,
            )
        own = self.beginning
        return Beginning(own.keys, own.values, own.rows[rows], min(own.length, length))

    def _fork(self, begin: Beginning, own: "Cache", length: int) -> "Cache":
        """A cache of `length` slots: those of `begin`, then those of `own`."""
        return Cache(own.keys, own.values, length, min(self.shared, length), self.decoder, begin)

    def release(self, length: int) -> None:
        """Free the slots from `length` on: no state uses them, so they may be overwritten."""
        self.filled, self.shared = length, min(self.shared, length)

    def repeat(self, begin: int) -> None:
        """Copy the slots of row 0, from slot `begin` on, to all other rows."""
        new = slice(begin - self.offset, self.filled - self.offset)
        for one in (self.keys, self.values):
            one[:, 1:, :, new] = one[:, :1, :, new]
        self.shared = self.filled

    def select(self, rows: Tensor) -> "Cache":
        """The cache of some of the rows, in any order; a row may occur more than once."""
        if (begin := self._as_beginning(rows, self.filled)) is None or self.beginning:
            keys, values = self.keys.mT.index_select(1, rows).mT, self.values.index_select(1, rows)
            return Cache(keys, values, self.filled, self.shared, self.decoder, begin)
        layers, _, heads, _, width = self.keys.shape
        return self._fork(
            begin, Cache.empty(self.keys, layers, len(rows), heads, FORK, width), self.filled
        )

    def of_layer(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first `end` slots in one layer, (B, heads, end, width) each.

        The cache must not be a fork.
        """
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class Block(nn.Module):
    """Pre-norm attention and a pre-norm MLP, each added to the residual stream."""

    def __init__(self, config: "ModelConfig"):
        super().__init__()
        d, heads, inner = config.d_model, config.n_heads, round(config.mlp_ratio * config.d_model)
        self.heads = (heads, *[heads // config.queries_per_key] * 2)  # of queries, keys, values
        self.activation = MLPS[config.mlp]
        self.attention_norm = make_norm(config)
        self.query_key_value = linear(d, sum(self.heads) * (d // heads), config.bias)
        self.attention_out = linear(d, d, config.bias)
        self.mlp_norm = make_norm(config)
        self.mlp_in = linear(d, 2 * inner if config.mlp == "swiglu" else inner, config.bias)
        self.mlp_out = linear(inner, d, config.bias)

    def project(self, x: Tensor, rotation: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, heads, T, width) of x (B, T, d)."""
        qkv = (
            self.query_key_value(self.attention_norm(x))
            .unflatten(-1, (sum(self.heads), -1))
            .transpose(1, 2)
        )
        queries, keys, values = self.heads
        if rotation is None:
            return qkv.split(self.heads, 1)
        turned = rotate(qkv[:, : queries + keys], rotation)
        return *turned.split((queries, keys), 1), qkv[:, -values:]

    def forward(
        self,
        x: Tensor,
        rotation: Tensor | None,
        cache: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
    ) -> Tensor:
        """One block: x (B, T, d) -> (B, T, d).

        Args:
            x: the slots, (B, T, d).
            rotation: cosines and sines of the T slots, (2, T, width), or None.
            cache: keys and values (B, heads, S, width); their last T slots are written. Or None.
            mask: which slots each slot sees, (T, S); None: itself and all before it.
        """
        query, key, value = self.project(x, rotation)
        if cache is not None:
            keys, values = cache
            keys[:, :, -x.shape[1] :] = key
            values[:, :, -x.shape[1] :] = value
            key, value = keys, values
        mixed = attend(query, key, value, mask)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(x.shape))
        return x + self.mlp_out(self.activation(self.mlp_in(self.mlp_norm(x))))


class RMSNorm(nn.RMSNorm):
    """x over its root mean square, in the weight's precision.

    So it is computed in float32 where training is in bf16, as PyTorch does for layer norms.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def make_norm(config: "ModelConfig") -> nn.Module:
    """A norm over d_model, of the config's kind."""
    if config.norm == "rms":
        return RMSNorm(config.d_model, config.norm_eps)
    return nn.LayerNorm(config.d_model, config.norm_eps, bias=config.bias)


def linear(inputs: int, outputs: int, bias: bool) -> nn.Linear:
    """A linear map; its bias, if it has one, starts at zero."""
    layer = nn.Linear(inputs, outputs, bias)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Transformer(nn.Module):
    """A stack of blocks over slots 0 … context; slot 0 is the start slot, before any token."""

    def __init__(self, config: "ModelConfig"):
        super().__init__()
        self.config, slots, d = config, config.context + 1, config.d_model
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = make_norm(config)
        self.start = nn.Parameter(torch.zeros(d))
        position = rotation = None
        if config.positions == "learned":
            position = nn.Parameter(torch.zeros(slots, d))
        elif config.positions == "sinusoidal":
            # d^-0.5, because the paper makes the token vectors √d times as long instead
            position = nn.Buffer(sinusoids(slots, d) * d**-0.5, persistent=False)
        elif config.positions == "rotary":
            rotation = nn.Buffer(
                rotary_angles(slots, d // config.n_heads, config.rotary_base), persistent=False
            )
        self.position, self.rotation = position, rotation

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the first weights.

        Matrices are normal with variance 1 / fan-in. The matrices that write into the residual
        stream start at zero. The start slot and learned positions are normal with deviation 0.02.
        """
        for name, parameter in self.named_parameters():
            if name.endswith(("attention_out.weight", "mlp_out.weight")):
                nn.init.zeros_(parameter)
            elif name in ("start", "position"):
                parameter.data.normal_(0, 0.02, generator=generator)
            elif parameter.ndim == 2:
                parameter.data.normal_(0, parameter.shape[1] ** -0.5, generator=generator)

    def new_cache(self, batch_size: int) -> Cache:
        """An empty cache for a batch."""
        config = self.config
        heads, width = config.n_heads // config.queries_per_key, config.d_model // config.n_heads
        return Cache.empty(self.start.detach(), config.n_layers, batch_size, heads, 0, width)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """Slots x (B, T, d) -> hidden states (B, T, d).

        With a cache, the slots follow those in the cache and are added to it.
        """
        begin = cache.filled if cache is not None else 0
        x, rotation, mask = self._enter(x, begin)
        end = begin + x.shape[1]
        for i, block in enumerate(self.blocks):
            x = block(x, rotation, None if cache is None else cache.of_layer(i, end), mask)
        if cache is not None:
            cache.filled = end
        return self.norm(x)

    def attention(self, x: Tensor) -> Tensor:
        """Attention weights of the slots x (B, T, d): (layers, B, heads, T, T); rows sum to 1."""
        x, rotation, mask = self._enter(x, 0)
        found = []
        for block in self.blocks:
            query, key, _ = block.project(x, rotation)
            found.append(attention_weights(query, key, mask))
            x = block(x, rotation, None, mask)
        return torch.stack(found)

    def _enter(self, x: Tensor, begin: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The input of the first block, and the rotation and the mask of all blocks."""
        end = begin + x.shape[1]
        if self.position is not None:
            x = x + self.position[begin:end]
        rotation = None if self.rotation is None else self.rotation[:, begin:end].to(x.dtype)
        return x, rotation, self._mask(begin, end, x.device)

    def _mask(self, begin: int, end: int, device: torch.device) -> Tensor | None:
        """Which of S = end slots each of the T slots begin … end-1 sees, (T, S).

        None where no mask is needed: a single slot that sees all, or plain causal attention.
        """
        window = self.config.attention_window
        narrow = window is not None and end > window
        if not narrow and (begin == 0 or end - begin == 1):
            return None
        mask = torch.ones(end - begin, end, dtype=torch.bool, device=device).tril(begin)
        return mask.triu(begin - window + 1) if narrow else mask


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(QKᵀ/√width)V per head, (B, heads, T, width); causal where no mask is given.

    Keys and values may have fewer heads than queries. Each of them then serves a group of adjacent
    query heads.

    In bf16 on a CPU the products are written out. The backward pass of torch's fused bf16 kernel
    takes several times as long at 65 slots, and still longer at 400 (benchmarks/attention.py).
    """
    key, value = shared(key, query), shared(value, query)
    if (
        query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and (mask is None or mask.dtype == torch.bool)
    ):
        return attention_weights(query, key, mask) @ value
    causal = mask is None and query.shape[2] > 1
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(QKᵀ/√width) per head, (B, heads, T, S), of the last T of S slots.

    Each slot sees what `mask` (T, S) allows; None: itself and all slots before it.
    """
    (length, width), key = query.shape[2:], shared(key, query)
    seen = torch.ones(length, key.shape[2], dtype=torch.bool, device=query.device)
    seen = seen.tril(key.shape[2] - length) if mask is None else mask  # (T, S)
    hidden = torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill(
        ~seen, -math.inf
    )
    # (T, S) + (B*heads, T, width) @ (B*heads, width, S) -> (B*heads, T, S)
    scores = torch.baddbmm(hidden, query.flatten(0, 1), key.flatten(0, 1).mT, alpha=width**-0.5)
    return scores.softmax(-1).unflatten(0, query.shape[:2])


def shared(key: Tensor, query: Tensor) -> Tensor:
    """Keys or values (B, fewer, S, width), repeated for each query head: (B, heads, S, width)."""
    return (
        key
        if key.shape[1] == query.shape[1]
        else key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    )


def rotary_angles(length: int, width: int, base: float = 10_000.0) -> Tensor:
    """Cosines and signed sines of rotary position embeddings (RoFormer): (2, length, width)."""
    frequency = base ** (-torch.arange(0, width, 2) / width)
    angle = torch.outer(torch.arange(length), frequency)  # (length, width/2)
    return torch.stack([angle.cos().repeat(1, 2), torch.cat([-angle.sin(), angle.sin()], -1)])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate each pair (i, i + width/2) of x (..., T, width) by the angle of its slot."""
    return x * rotation[0] + x.roll(x.shape[-1] // 2, -1) * rotation[1]


def sinusoids(length: int, width: int, base: float = 10_000.0) -> Tensor:
    """Sines and cosines in alternation, of wavelengths from 2π to 2π · base: (length, width).

    Source:
        arXiv 1706.03762.
    """
    # (length, width/2)
    angle = torch.outer(torch.arange(length), base ** (-torch.arange(0, width, 2) / width))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
