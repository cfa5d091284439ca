"""The transformer body: vectors in, hidden states out, causal, with a key-value cache (K11, K21)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .decoding import RowDecoder

POSITIONS = ("learned", "rotary")


@dataclass
class Cache:
    """Keys and values of the slots read so far, all layers in one tensor (layers, 2, B, heads, capacity, width).

    States share it: whoever reads on from its end writes behind it; whoever branches off earlier gets a copy.
    """

    data: Tensor
    filled: int = 0
    decoder: RowDecoder | None = None  # made when first needed, from the weights of that moment

    def room_for(self, length: int, new: int) -> "Cache":
        """A cache in which slots length … length+new-1 may be written without harm to any other state."""
        if length == self.filled and length + new <= self.data.shape[4]:
            return self
        capacity = max(64, self.data.shape[4] if length + new <= self.data.shape[4] else 2 * (length + new))
        data = self.data.new_empty(*self.data.shape[:4], capacity, self.data.shape[5])
        data[..., :length, :] = self.data[..., :length, :]
        return Cache(data, length, self.decoder)

    def select(self, rows: Tensor) -> "Cache":
        """The cache of some of the rows, in any order, also repeated."""
        return Cache(self.data.index_select(2, rows), self.filled, self.decoder)


class Block(nn.Module):
    """Pre-norm attention and a four times wider GELU layer, each added to the stream."""

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm = nn.LayerNorm(d_model, bias=False)
        self.query_key_value = nn.Linear(d_model, 3 * d_model, bias=False)
        self.attention_out = nn.Linear(d_model, d_model, bias=False)
        self.mlp_norm = nn.LayerNorm(d_model, bias=False)
        self.mlp_in = nn.Linear(d_model, 4 * d_model, bias=False)
        self.mlp_out = nn.Linear(4 * d_model, d_model, bias=False)

    def forward(self, x: Tensor, rotation: Tensor | None, cache: Tensor | None, mask: Tensor | None) -> Tensor:
        """x (B, T, d) -> (B, T, d). `cache` (2, B, heads, S, width): its last T slots are written here."""
        batch, length, width = x.shape
        qkv = self.query_key_value(self.attention_norm(x))
        qkv = qkv.view(batch, length, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)  # (3, B, heads, T, width)
        if rotation is not None:
            query, key = rotate(qkv[:2], rotation)
        else:
            query, key = qkv[0], qkv[1]
        value = qkv[2]
        if cache is not None:
            cache[0, :, :, -length:] = key
            cache[1, :, :, -length:] = value
            key, value = cache[0], cache[1]
        mixed = attend(query, key, value, mask)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))


class Transformer(nn.Module):
    """A stack of blocks over slots 0 … context; slot 0 is the start, read before any token."""

    def __init__(self, context: int, n_layers: int, n_heads: int, d_model: int, positions: str):
        super().__init__()
        self.n_layers, self.n_heads, self.d_model, self.positions = n_layers, n_heads, d_model, positions
        self.blocks = nn.ModuleList(Block(d_model, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model, bias=False)
        self.start = nn.Parameter(torch.zeros(d_model))
        if positions == "learned":
            self.position = nn.Parameter(torch.zeros(context + 1, d_model))
        else:
            self.register_buffer("rotation", rotary_angles(context + 1, d_model // n_heads), persistent=False)

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
        shape = (self.n_layers, 2, batch_size, self.n_heads, 0, self.d_model // self.n_heads)
        return Cache(self.start.new_empty(shape))

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """Slots x (B, T, d) -> hidden states (B, T, d); with a cache the slots follow, and join, those it holds."""
        begin = cache.filled if cache is not None else 0
        end = begin + x.shape[1]
        if self.positions == "learned":
            x, rotation = x + self.position[begin:end], None
        else:
            rotation = self.rotation[:, begin:end].to(x.dtype)
        mask = None
        if begin and x.shape[1] > 1:  # (T, S): slot t sees slots 0 … begin+t
            mask = torch.ones(x.shape[1], end, dtype=torch.bool, device=x.device).tril(begin)
        for i, block in enumerate(self.blocks):
            x = block(x, rotation, None if cache is None else cache.data[i, ..., :end, :], mask)
        if cache is not None:
            cache.filled = end
        return self.norm(x)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(QKᵀ/√width)V per head (B, heads, T, width); causal where no mask is given.

    On a CPU, training in bf16 spells the products out: the backward pass of torch's fused bf16 kernel takes several
    times as long at 65 slots, and still longer at 400 (benchmarks/attention.py).
    """
    length = query.shape[2]
    if query.dtype == torch.bfloat16 and query.device.type == "cpu" and mask is None:
        hidden = torch.full((length, length), -math.inf, dtype=query.dtype).triu(1)  # (T, T)
        scores = torch.baddbmm(
            hidden, query.flatten(0, 1), key.flatten(0, 1).mT, alpha=query.shape[-1] ** -0.5
        )  # (B*heads, T, T)
        return (scores.softmax(-1) @ value.flatten(0, 1)).view_as(query)
    causal = mask is None and length > 1
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)


def rotary_angles(length: int, width: int, base: float = 10_000.0) -> Tensor:
    """Cosines and signed sines of the rotary position embedding (RoFormer), (2, length, width)."""
    frequency = base ** (-torch.arange(0, width, 2) / width)
    angle = torch.outer(torch.arange(length), frequency)  # (length, width/2)
    return torch.stack([angle.cos().repeat(1, 2), torch.cat([-angle.sin(), angle.sin()], -1)])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair (i, i + width/2) of x (..., T, width) by its slot's angle."""
    return x * rotation[0] + x.roll(x.shape[-1] // 2, -1) * rotation[1]
