"""The transformer body: vectors in, hidden states out, causal, with a key-value cache (K11, K21).

One body; which kind of transformer it is, is data: the fields of a `ModelConfig`, of which GPT-2, Llama 2 and Mistral
are presets.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .compiled_decoder import CompiledDecoder
from .decoding import RowDecoder

if TYPE_CHECKING:
    from .config import ModelConfig

POSITIONS = ("learned", "sinusoidal", "rotary", "none")
NORMS = ("layer", "rms")


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) · up of their two halves side by side (..., 2n) -> (..., n) (arXiv 2002.05202)."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


MLPS = {"gelu": F.gelu, "gelu-tanh": partial(F.gelu, approximate="tanh"), "swiglu": swiglu}


FORK = 16  # slots of its own for which a fork has room before its beginning is copied


@dataclass(frozen=True)
class Beginning:
    """The first `length` slots of a fork, which lie in another cache's `keys` and `values`.

    Row b of the fork finds its own in row `rows[b]`. Nobody writes there any more.
    """

    keys: Tensor
    values: Tensor
    rows: Tensor
    length: int


@dataclass
class Cache:
    """Keys and values of the slots read so far, of all layers: (layers, B, heads, capacity, width) each.

    Keys lie in memory width by width, so that one number of all slots' keys is read in one go. States share a cache:
    whoever reads on from its end writes behind it; whoever branches off earlier, or takes some rows, gets a copy, or
    a fork: a cache that holds its latest slots only, behind a `beginning` in another. The first `shared` slots are the
    same in all rows.
    """

    keys: Tensor
    values: Tensor
    filled: int = 0
    shared: int = 0
    decoder: CompiledDecoder | RowDecoder | None = None  # made when first needed, from the weights of that moment
    beginning: Beginning | None = None  # read by a CompiledDecoder only

    @classmethod
    def empty(cls, like: Tensor, layers: int, batch_size: int, heads: int, capacity: int, width: int) -> "Cache":
        """Nothing read yet; `like` tells where and in which precision."""
        keys = like.new_empty((layers, batch_size, heads, width, capacity)).mT
        return cls(keys, like.new_empty((layers, batch_size, heads, capacity, width)))

    @property
    def offset(self) -> int:
        """How many slots lie in the beginning."""
        return self.beginning.length if self.beginning else 0

    @property
    def capacity(self) -> int:
        """How many slots there is room for."""
        return self.offset + self.keys.shape[3]

    def room_for(self, length: int, new: int) -> "Cache":
        """A cache in which slots length … length+new-1 may be written without harm to any other state."""
        fits = length + new <= self.capacity
        if length == self.filled and fits:
            return self
        layers, rows, heads, _, width = self.keys.shape
        begin = self._as_beginning(torch.arange(rows), length)
        if begin and length < self.filled and length - begin.length + new <= FORK:
            own = Cache.empty(self.keys, layers, rows, heads, FORK, width)
            self._copy(own, begin.length, length)
            return self._fork(begin, own, length)
        capacity = max(64, self.capacity if fits else 2 * (length + new))
        other = Cache.empty(self.keys, layers, rows, heads, capacity, width)
        self._copy(other, 0, length)
        other.filled, other.shared, other.decoder = length, min(self.shared, length), self.decoder
        return other

    def _copy(self, other: "Cache", begin: int, end: int) -> None:
        """Write slots begin … end-1 of all rows to the first slots of another cache."""
        seam = min(max(begin, self.offset), end)  # from here on they are our own
        for name in ("keys", "values"):
            theirs = getattr(other, name)
            if begin < seam:
                theirs[..., : seam - begin, :] = getattr(self.beginning, name)[:, self.beginning.rows, :, begin:seam]
            own = slice(seam - self.offset, end - self.offset)
            theirs[..., seam - begin : end - begin, :] = getattr(self, name)[..., own, :]

    def _as_beginning(self, rows: Tensor, length: int) -> Beginning | None:
        """As many of the first `length` slots of some rows as another cache can begin with; None where it cannot."""
        if not isinstance(self.decoder, CompiledDecoder):
            return None
        if self.beginning is None:
            return Beginning(self.keys, self.values, torch.zeros_like(rows) if length <= self.shared else rows, length)
        own = self.beginning
        return Beginning(own.keys, own.values, own.rows[rows], min(own.length, length))

    def _fork(self, begin: Beginning, own: "Cache", length: int) -> "Cache":
        """A cache of `length` slots with that beginning, and what lies behind it in `own`."""
        return Cache(own.keys, own.values, length, min(self.shared, length), self.decoder, begin)

    def give_back(self, length: int) -> None:
        """Slots from `length` on belong to no state: they may be written over."""
        self.filled, self.shared = length, min(self.shared, length)

    def repeat(self, begin: int) -> None:
        """Let all rows have what row 0 has from slot `begin` on."""
        new = slice(begin - self.offset, self.filled - self.offset)
        for one in (self.keys, self.values):
            one[:, 1:, :, new] = one[:, :1, :, new]
        self.shared = self.filled

    def select(self, rows: Tensor) -> "Cache":
        """The cache of some of the rows, in any order, also repeated."""
        if (begin := self._as_beginning(rows, self.filled)) is None or self.beginning:
            keys, values = self.keys.mT.index_select(1, rows).mT, self.values.index_select(1, rows)
            return Cache(keys, values, self.filled, self.shared, self.decoder, begin)
        layers, _, heads, _, width = self.keys.shape
        return self._fork(begin, Cache.empty(self.keys, layers, len(rows), heads, FORK, width), self.filled)

    def of_layer(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first `end` slots in one layer, (B, heads, end, width) each; not of a fork."""
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class Block(nn.Module):
    """Pre-norm attention and a wider layer, each added to the stream."""

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
        qkv = self.query_key_value(self.attention_norm(x)).unflatten(-1, (sum(self.heads), -1)).transpose(1, 2)
        queries, keys, values = self.heads
        if rotation is None:
            return qkv.split(self.heads, 1)
        turned = rotate(qkv[:, : queries + keys], rotation)
        return *turned.split((queries, keys), 1), qkv[:, -values:]

    def forward(
        self, x: Tensor, rotation: Tensor | None, cache: tuple[Tensor, Tensor] | None, mask: Tensor | None
    ) -> Tensor:
        """x (B, T, d) -> (B, T, d). `cache`: keys and values (B, heads, S, width), whose last T slots are written."""
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
    """x over its root mean square, in float32 also where training is in bf16, as PyTorch has it for layer norms."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


def make_norm(config: "ModelConfig") -> nn.Module:
    """The norm before a layer, over d_model."""
    if config.norm == "rms":
        return RMSNorm(config.d_model, config.norm_eps)
    return nn.LayerNorm(config.d_model, config.norm_eps, bias=config.bias)


def linear(inputs: int, outputs: int, bias: bool) -> nn.Linear:
    """A linear map; its bias, if any, begins at zero."""
    layer = nn.Linear(inputs, outputs, bias)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Transformer(nn.Module):
    """A stack of blocks over slots 0 … context; slot 0 is the start, read before any token."""

    def __init__(self, config: "ModelConfig"):
        super().__init__()
        self.config, slots, d = config, config.context + 1, config.d_model
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = make_norm(config)
        self.start = nn.Parameter(torch.zeros(d))
        position = rotation = None
        if config.positions == "learned":
            position = nn.Parameter(torch.zeros(slots, d))
        elif config.positions == "sinusoidal":  # the paper makes the tokens √d times as long instead
            position = nn.Buffer(sinusoids(slots, d) * d**-0.5, persistent=False)
        elif config.positions == "rotary":
            rotation = nn.Buffer(rotary_angles(slots, d // config.n_heads, config.rotary_base), persistent=False)
        self.position, self.rotation = position, rotation

    def initialise(self, generator: torch.Generator) -> None:
        """Matrices normal with variance 1 / fan-in; what writes into the stream starts at zero; positions small."""
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
        """Slots x (B, T, d) -> hidden states (B, T, d); with a cache the slots follow, and join, those it holds."""
        begin = cache.filled if cache is not None else 0
        x, rotation, mask = self._enter(x, begin)
        end = begin + x.shape[1]
        for i, block in enumerate(self.blocks):
            x = block(x, rotation, None if cache is None else cache.of_layer(i, end), mask)
        if cache is not None:
            cache.filled = end
        return self.norm(x)

    def attention(self, x: Tensor) -> Tensor:
        """Where each of the slots x (B, T, d) looks: (layers, B, heads, T, T), every row of which sums to 1."""
        x, rotation, mask = self._enter(x, 0)
        found = []
        for block in self.blocks:
            query, key, _ = block.project(x, rotation)
            found.append(attention_weights(query, key, mask))
            x = block(x, rotation, None, mask)
        return torch.stack(found)

    def _enter(self, x: Tensor, begin: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What enters the first block, and for all of them the rotation and the mask."""
        end = begin + x.shape[1]
        if self.position is not None:
            x = x + self.position[begin:end]
        rotation = None if self.rotation is None else self.rotation[:, begin:end].to(x.dtype)
        return x, rotation, self._mask(begin, end, x.device)

    def _mask(self, begin: int, end: int, device: torch.device) -> Tensor | None:
        """Which slots the slots begin … end-1 see (T, S); None where it is all of them up to each itself."""
        window = self.config.attention_window
        narrow = window is not None and end > window
        if not narrow and (begin == 0 or end - begin == 1):
            return None
        mask = torch.ones(end - begin, end, dtype=torch.bool, device=device).tril(begin)
        return mask.triu(begin - window + 1) if narrow else mask


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(QKᵀ/√width)V per head (B, heads, T, width); causal where no mask is given.

    There may be fewer heads of keys and values: each then serves as many heads of queries, side by side.

    On a CPU, training in bf16 spells the products out: the backward pass of torch's fused bf16 kernel takes several
    times as long at 65 slots, and still longer at 400 (benchmarks/attention.py).
    """
    key, value = shared(key, query), shared(value, query)
    if query.dtype == torch.bfloat16 and query.device.type == "cpu" and (mask is None or mask.dtype == torch.bool):
        return attention_weights(query, key, mask) @ value
    causal = mask is None and query.shape[2] > 1
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(QKᵀ/√width) per head (B, heads, T, S); the last T slots look, each at all up to itself or at `mask`."""
    (length, width), key = query.shape[2:], shared(key, query)
    seen = torch.ones(length, key.shape[2], dtype=torch.bool, device=query.device)
    seen = seen.tril(key.shape[2] - length) if mask is None else mask  # (T, S)
    hidden = torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill(~seen, -math.inf)
    scores = torch.baddbmm(hidden, query.flatten(0, 1), key.flatten(0, 1).mT, alpha=width**-0.5)  # (B*heads, T, S)
    return scores.softmax(-1).unflatten(0, query.shape[:2])


def shared(key: Tensor, query: Tensor) -> Tensor:
    """Keys or values (B, fewer, S, width), once for each head of the queries (B, heads, S, width)."""
    return key if key.shape[1] == query.shape[1] else key.repeat_interleave(query.shape[1] // key.shape[1], 1)


def rotary_angles(length: int, width: int, base: float = 10_000.0) -> Tensor:
    """Cosines and signed sines of the rotary position embedding (RoFormer), (2, length, width)."""
    frequency = base ** (-torch.arange(0, width, 2) / width)
    angle = torch.outer(torch.arange(length), frequency)  # (length, width/2)
    return torch.stack([angle.cos().repeat(1, 2), torch.cat([-angle.sin(), angle.sin()], -1)])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair (i, i + width/2) of x (..., T, width) by its slot's angle."""
    return x * rotation[0] + x.roll(x.shape[-1] // 2, -1) * rotation[1]


def sinusoids(length: int, width: int, base: float = 10_000.0) -> Tensor:
    """Sine and cosine by turns, of wavelengths from 2π to 2π · base (arXiv 1706.03762): (length, width)."""
    angle = torch.outer(torch.arange(length), base ** (-torch.arange(0, width, 2) / width))  # (length, width/2)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)
