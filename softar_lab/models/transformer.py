"""The transformer body: vectors in, hidden states out, causal, with a key-value cache (K11, K21).

There is one body class. The fields of a `ModelConfig` decide which kind of transformer it is;
GPT-2, Llama 2 and Mistral are presets.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .activations import MLPS
from .cache import Cache
from .config import ModelConfig


class Block(nn.Module):
    """Pre-norm attention and a pre-norm MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig):
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


def make_norm(config: ModelConfig) -> nn.Module:
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

    def __init__(self, config: ModelConfig):
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
        for state in self._layers(x, cache):
            x = state
        return self.norm(x)

    def layer_states(self, x: Tensor) -> list[Tensor]:
        """The residual stream behind each block, (B, T, d) each; the last one is normed."""
        *states, last = self._layers(x, None)
        return [*states, self.norm(last)]

    def _layers(self, x: Tensor, cache: Cache | None) -> Iterator[Tensor]:
        """The residual stream behind each block, one after the other."""
        begin = cache.filled if cache is not None else 0
        x, rotation, mask = self._enter(x, begin)
        end = begin + x.shape[1]
        for i, block in enumerate(self.blocks):
            x = block(x, rotation, None if cache is None else cache.of_layer(i, end), mask)
            yield x
        if cache is not None:
            cache.filled = end

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
