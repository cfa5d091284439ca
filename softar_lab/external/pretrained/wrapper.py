"""A causal language model of transformers as a predictor that reads token ids or vectors (K31)."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.predictor import MixturePrediction
from ...models.state import SoftState
from ...models.vector_predictor import VectorPredictor, without_gradients
from .tokenizer import PieceTokenizer
from .weights import Packed, stored

if TYPE_CHECKING:
    from .kv_cache import Memory

_TOKENS = 4096  # the most tokens read in one pass when whole texts are scored
# How the configs of transformers call the number of positions.
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_HALF = (torch.float16, torch.bfloat16)
_ENTRIES = 2**24  # log-probabilities held at once when texts are scored: 64 MB


@dataclass(frozen=True)
class PretrainedConfig:
    """The properties of a model that the lab needs.

    `source` names where it came from, `weights` counts its weights by how they are stored.
    """

    vocab_size: int
    context: int
    embedding_dim: int
    source: str
    weights: str = ""

    @property
    def tokens(self) -> int:
        """Number of tokens that the context holds: it holds nothing else."""
        return self.context

    @property
    def kept(self) -> int:
        """Number of latest tokens that are read again when the context is full."""
        return max(1, self.context // 2)


class Pretrained(nn.Module, VectorPredictor):
    """`network`, any causal language model of transformers, with its tokenizer.

    Its soft token is the mixture pE. Predictions and soft tokens are float32, whatever type the
    network computes in. Before the first token, the network has read what its tokenizer puts before
    a text. If the tokenizer puts nothing there, the first prediction comes from the network's begin
    (or end) token alone, which no later prediction sees.

    Raises:
        ValueError: where a network cannot be read by vectors.
    """

    reads_at_once = True

    def __init__(self, network: nn.Module, tokenizer: Any, source: str = ""):
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        table = network.get_input_embeddings()
        self.vocab_size, width = table.weight.shape
        text = network.config.get_text_config(decoder=True)
        lengths = (getattr(text, name, None) for name in _LENGTHS)
        context = next((n for n in lengths if n is not None and n > 0), 2048)
        weights = ", ".join(f"{kind}: {n:,}" for kind, n in stored(network).items())
        self.config = PretrainedConfig(self.vocab_size, context, width, source, weights)
        self.tokenizer = PieceTokenizer(tokenizer, self.vocab_size)
        self._scale, self._cap = _of_logits(text)  # see _log_probs
        self._first: dict[torch.device, Tensor] = {}  # the hidden state with nothing read yet
        names = inspect.signature(network.base_model.forward).parameters
        # the argument's name changed within transformers 5
        self._cache = "cache" if "cache" in names else "past_key_values"
        with torch.inference_mode():
            self.register_buffer("rows", _looked_up(table), persistent=False)
            self._lay_out()
            self._check()

    @property
    def work(self) -> int:
        """Multiply-adds per token, about: one for each weight."""
        return sum(stored(self.network).values())

    @property
    def embedding(self) -> Float[Tensor, "V m"]:
        """The embedding table E (V, m), in float32."""
        return self.rows

    @property
    def context(self) -> int:
        """Number of tokens that the context holds."""
        return self.config.context

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.network.get_input_embeddings().weight.device

    @property
    def reads_hidden_states(self) -> bool:
        """Whether a hidden state is as wide as a soft token, and so can be fed back unchanged."""
        return self.network.get_output_embeddings().in_features == self.config.embedding_dim

    # -- whole texts at once -----------------------------------------------------------------------

    @without_gradients
    def hidden_states(
        self,
        token_ids: Int[Tensor, "B T"] | None = None,
        vectors: Float[Tensor, "B T m"] | None = None,
    ) -> Float[Tensor, "B slots d"]:
        """The hidden states before the first and after each of T tokens, (B, T+1, d).

        Entry t predicts token t.

        Raises:
            ValueError: where there are more tokens than the context holds.
        """
        x = self._vectors(token_ids, vectors)
        if x.shape[1] > self.config.context:
            raise ValueError(
                f"{x.shape[1]} tokens are more than the context of {self.config.context}"
            )
        begin = self._begin(len(x))
        if self.tokenizer.begin_id is not None:
            return self._body(torch.cat([begin, x], 1))
        first = self._body(begin)
        return torch.cat([first, self._body(x)], 1) if x.shape[1] else first

    @without_gradients
    def next_log_probs(self, token_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """log p(w | the tokens before t in its row) of every symbol w at every t, in nats.

        The shape is (B, T, V). The result is large, because V is.
        """
        hidden = [self.hidden_states(rows[:, :-1]) for rows in self._some(token_ids)]
        return self._log_probs(torch.cat(hidden))

    @without_gradients
    def log_probs(self, token_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """log p(token t | the tokens before it in its row), (B, T), in nats.

        Each group of rows is read in one pass, and all of (B, T, V) is never held at once.
        """
        found = []
        for rows in self._some(token_ids):
            hidden, ids = self.hidden_states(rows[:, :-1]).flatten(0, 1), rows.flatten()
            parts = zip(
                *(x.split(max(1, _ENTRIES // self.vocab_size)) for x in (hidden, ids)), strict=True
            )
            some = [self._log_probs(h).gather(1, i[:, None]).squeeze(1) for h, i in parts]
            found.append(torch.cat(some).view_as(rows))
        return torch.cat(found)

    def _some(self, token_ids: Tensor) -> Iterator[Tensor]:
        """Groups of as many rows as one pass may hold."""
        return iter(token_ids.split(max(1, _TOKENS // token_ids.shape[1])))

    # -- one token after the other: the predictor --------------------------------------------------

    @without_gradients
    def start(self, batch_size: int = 1) -> SoftState:
        """The state with nothing read yet, except what the tokenizer puts before every text."""
        from .kv_cache import Memory  # imported here, because it needs transformers

        memory = Memory(self.network.config)
        if self.tokenizer.begin_id is not None:
            return SoftState(memory, 0, self._body(self._begin(batch_size), memory)[:, -1])
        if self.device not in self._first:  # the weights are fixed, so compute it once
            self._first[self.device] = self._body(self._begin(1))[:, -1]
        return SoftState(memory, 0, self._first[self.device].expand(batch_size, -1))

    @without_gradients
    def predict(self, state: SoftState) -> MixturePrediction:
        """p(w | what was read), with the mixture pE as soft token."""
        return self.predict_after(state.hidden)

    @without_gradients
    def predict_after(self, hidden: Float[Tensor, "B d"]) -> MixturePrediction:
        """The prediction that follows from hidden states (B, d)."""
        return MixturePrediction(self._log_probs(hidden), self.rows)

    def _continue(self, state: SoftState, new: Tensor, at: int) -> tuple["Memory", Tensor]:
        memory = (
            state.cache.first(at + int(self.tokenizer.begin_id is not None))
            if at < state.length
            else None
        )
        # a sliding window may have dropped earlier tokens, so everything is read again
        if memory is None and at < state.length:
            memory, new = (
                self.start(len(new)).cache.branch(),
                torch.cat([torch.cat(state.inputs, 1)[:, :at], new], 1),
            )
            return memory, self._body(new, memory)[:, at:]
        memory = memory or state.cache.branch()
        return memory, self._body(new, memory)

    def _restart(self, state: SoftState, old: Tensor) -> SoftState:
        return replace(self.start(len(old)), begin=state.begin + old.shape[1])

    def _release(self, state: SoftState, cache: "Memory") -> None:
        state.cache.release(cache)

    def _lookup(self, token_ids: Tensor) -> Tensor:
        if (
            token_ids.numel()
            and not 0 <= int(token_ids.min()) <= int(token_ids.max()) < self.vocab_size
        ):
            raise IndexError("no such row")  # a GPU would report this too late
        return self.rows[token_ids]

    # -- parts -------------------------------------------------------------------------------------

    def _body(self, x: Tensor, memory: Any = None) -> Float[Tensor, "B T d"]:
        """Hidden states (B, T, d) of vectors (B, T, m).

        The network also attends to the tokens in `memory`, and adds the new ones to it.
        """
        kept = {} if memory is None else {self._cache: memory.cache}
        x = x.to(self.network.get_input_embeddings().weight.dtype)
        hidden = self.network.base_model(
            inputs_embeds=x, use_cache=memory is not None, **kept
        ).last_hidden_state
        return hidden.float() if hidden.dtype in _HALF else hidden

    def _log_probs(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n V"]:
        head = self.network.get_output_embeddings()
        if not isinstance(head, Packed):  # that one takes any type
            hidden = hidden.to(head.weight.dtype)
        logits = (
            head(hidden) if self.columns is None else F.linear(hidden, self.columns.T, head.bias)
        )
        logits = logits.float() * self._scale
        if self._cap:
            logits = self._cap * torch.tanh(logits / self._cap)
        return torch.log_softmax(logits, -1)

    def _begin(self, batch_size: int) -> Float[Tensor, "B 1 m"]:
        """The vector of the token before the first one, (B, 1, m).

        Raises:
            ValueError: where the model has no token for this place.
        """
        library = self.tokenizer.library
        ids = [self.tokenizer.begin_id, library.bos_token_id, library.eos_token_id]
        found = next((i for i in ids if i is not None), None)
        if found is None:
            raise ValueError(
                "this model has no token to begin with (bos or eos), so it predicts nothing from nothing"
            )
        return self.rows[found].expand(batch_size, 1, -1)

    def _lay_out(self) -> None:
        """Store wide float32 matrices on a CPU column by column, for products with one vector.

        A product with one vector reads a matrix by columns. Such products take most of a step and
        wait for memory: stored by rows, they give half as many tokens per second
        (benchmarks/README.md). A head that is the table itself is copied, since the mixture pE
        reads rows.
        """
        head, table = (
            self.network.get_output_embeddings(),
            self.network.get_input_embeddings().weight,
        )
        for layer in self.network.modules():
            if isinstance(layer, nn.Linear) and layer.weight is not table and _gains(layer.weight):
                layer.weight.data = layer.weight.T.contiguous().T
        own = isinstance(head, nn.Linear) and head.weight is table and _gains(table)
        self.register_buffer(
            "columns", table.detach().T.contiguous() if own else None, persistent=False
        )

    def _check(self) -> None:
        """Compare the parts put together here with the network's own result from ids.

        Raises:
            ValueError: where they differ.
        """
        ids = torch.arange(4, device=self.device)[None] % self.vocab_size
        own = self.network(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        again = self._log_probs(self._body(self.rows[ids]))
        if not torch.allclose(own, again, atol=0.5 if self.network.dtype in _HALF else 1e-3):
            raise ValueError(
                f"{self.network.config.model_type}: reading vectors does not give what reading ids gives (by "
                f"{float((own - again).abs().max()):.2g} nats); this kind of network cannot be read here"
            )


def _looked_up(table: nn.Module) -> Float[Tensor, "V m"]:
    """The table as its network looks it up, which may scale its rows, in float32."""
    weight = table.weight.detach()
    if type(table) is nn.Embedding and table.max_norm is None and weight.dtype == torch.float32:
        return weight  # unread: it may lie in a file
    ids = torch.arange(len(weight), device=weight.device)
    rows = torch.cat([table(some) for some in ids.split(8192)])
    same = rows.dtype == torch.float32 and torch.equal(rows, weight)
    return weight if same else rows.float()


def _gains(matrix: Tensor) -> bool:
    rows, columns = matrix.shape
    return matrix.device.type == "cpu" and matrix.dtype == torch.float32 and rows >= columns


def _of_logits(config: Any) -> tuple[float, float | None]:
    """How a network changes its logits: a factor, and the bound of a soft cap (None: no cap)."""
    scale = (getattr(config, "logit_scale", None) or 1.0) / (
        getattr(config, "logits_scaling", None) or 1.0
    )
    return scale, getattr(config, "final_logit_softcapping", None)
