"""A causal language model of the transformers library as a predictor that reads token ids or vectors (K31)."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.slots import SlotReader, without_gradients
from ..models.state import SoftState
from ..predictor import MixturePrediction
from .pieces import PieceTokenizer

if TYPE_CHECKING:
    from .memory import Memory

_TOKENS = 4096  # read in one pass at most when whole texts are scored
_HALF = (torch.float16, torch.bfloat16)
_ENTRIES = 2**24  # log-probabilities held at once then: 64 MB


@dataclass(frozen=True)
class PretrainedConfig:
    """What the lab asks of a model's shape; `source` says where it came from."""

    vocab_size: int
    context: int
    embedding_dim: int
    source: str

    @property
    def tokens(self) -> int:
        """How many tokens the context holds: nothing else is kept there."""
        return self.context

    @property
    def kept(self) -> int:
        """How many of the latest tokens are read again when it is full."""
        return max(1, self.context // 2)


class Pretrained(nn.Module, SlotReader):
    """`network`, any causal language model of transformers, and its tokenizer. Its soft token is the mixture pE.

    Whatever the network computes in, predictions and soft tokens are float32. Before the first token it has read what
    its tokenizer puts before a text. Where that is nothing, a prediction with nothing read yet is what the network says
    after its begin (or end) token alone, which no later prediction sees. Raises ValueError for a network that cannot be
    read this way.
    """

    def __init__(self, network: nn.Module, tokenizer: Any, source: str = ""):
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        table = network.get_input_embeddings()
        self.vocab_size, width = table.weight.shape
        text = network.config.get_text_config(decoder=True)
        context = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", 2048)
        self.config = PretrainedConfig(self.vocab_size, context, width, source)
        self.tokenizer = PieceTokenizer(tokenizer, self.vocab_size)
        self._scale, self._cap = _of_logits(text)
        self._first: dict[torch.device, Tensor] = {}  # the hidden state with nothing read yet
        names = inspect.signature(network.base_model.forward).parameters
        self._cache = "cache" if "cache" in names else "past_key_values"  # its name changed within transformers 5
        with torch.inference_mode():
            rows = torch.cat([table(ids) for ids in torch.arange(self.vocab_size, device=self.device).split(8192)])
            same = rows.dtype == torch.float32 and torch.equal(rows, table.weight)
            self.register_buffer("rows", table.weight.detach() if same else rows.float(), persistent=False)
            self._lay_out()
            self._check()

    @property
    def work(self) -> int:
        """The multiply-adds of a token, about: one for each weight."""
        return sum(one.numel() for one in self.network.parameters())

    @property
    def embedding(self) -> Float[Tensor, "V m"]:
        """The table E (V, m), in float32."""
        return self.rows

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.network.get_input_embeddings().weight.device

    @property
    def reads_hidden_states(self) -> bool:
        """Whether a hidden state is as wide as a soft token, so that it can be fed back as it is."""
        return self.network.get_output_embeddings().in_features == self.config.embedding_dim

    # -- whole texts at once -------------------------------------------------------------------------------------------

    @without_gradients
    def hidden_states(
        self, token_ids: Int[Tensor, "B T"] | None = None, vectors: Float[Tensor, "B T m"] | None = None
    ) -> Float[Tensor, "B slots d"]:
        """The hidden states before the first and after each of T tokens, (B, T+1, d); entry t predicts token t.

        Raises ValueError for more tokens than the context holds.
        """
        x = self._vectors(token_ids, vectors)
        if x.shape[1] > self.config.context:
            raise ValueError(f"{x.shape[1]} tokens are more than the context of {self.config.context}")
        begin = self._begin(len(x))
        if self.tokenizer.begin_id is not None:
            return self._body(torch.cat([begin, x], 1))
        first = self._body(begin)
        return torch.cat([first, self._body(x)], 1) if x.shape[1] else first

    @without_gradients
    def next_log_probs(self, token_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """log p(w | the tokens before t in its row) of every symbol at every t, (B, T, V), in nats: V is large."""
        hidden = [self.hidden_states(rows[:, :-1]) for rows in self._some(token_ids)]
        return self._log_probs(torch.cat(hidden))

    @without_gradients
    def log_probs(self, token_ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """log p(token t | the tokens before it in its row), (B, T), in nats, in one pass and never all (B, T, V)."""
        found = []
        for rows in self._some(token_ids):
            hidden, ids = self.hidden_states(rows[:, :-1]).flatten(0, 1), rows.flatten()
            parts = zip(*(x.split(max(1, _ENTRIES // self.vocab_size)) for x in (hidden, ids)), strict=True)
            some = [self._log_probs(h).gather(1, i[:, None]).squeeze(1) for h, i in parts]
            found.append(torch.cat(some).view_as(rows))
        return torch.cat(found)

    def _some(self, token_ids: Tensor) -> Iterator[Tensor]:
        """As many rows at a time as one pass may hold."""
        return iter(token_ids.split(max(1, _TOKENS // token_ids.shape[1])))

    # -- one token after the other: the predictor ----------------------------------------------------------------------

    @without_gradients
    def start(self, batch_size: int = 1) -> SoftState:
        """Nothing read yet, but for what the tokenizer puts before every text."""
        from .memory import Memory  # which needs transformers, as nothing else here does

        memory = Memory(self.network.config)
        if self.tokenizer.begin_id is not None:
            return SoftState(memory, 0, self._body(self._begin(batch_size), memory)[:, -1])
        if self.device not in self._first:  # nothing is trained here, so it is what it is
            self._first[self.device] = self._body(self._begin(1))[:, -1]
        return SoftState(memory, 0, self._first[self.device].expand(batch_size, -1))

    @without_gradients
    def predict(self, state: SoftState) -> MixturePrediction:
        """p(w | what was read), and the mixture that stands for it."""
        return self.predict_after(state.hidden)

    @without_gradients
    def predict_after(self, hidden: Float[Tensor, "B d"]) -> MixturePrediction:
        """The prediction that follows from hidden states."""
        return MixturePrediction(self._log_probs(hidden), self.rows)

    def _continue(self, state: SoftState, new: Tensor, at: int) -> tuple["Memory", Tensor]:
        memory = state.cache.first(at + int(self.tokenizer.begin_id is not None)) if at < state.length else None
        if memory is None and at < state.length:  # forgotten by a sliding window: all is read again
            memory, new = self.start(len(new)).cache.branch(), torch.cat([torch.cat(state.inputs, 1)[:, :at], new], 1)
            return memory, self._body(new, memory)[:, at:]
        memory = memory or state.cache.branch()
        return memory, self._body(new, memory)

    def _renew(self, state: SoftState, old: Tensor) -> SoftState:
        return replace(self.start(len(old)), begin=state.begin + old.shape[1])

    def _give_back(self, state: SoftState, cache: "Memory") -> None:
        state.cache.give_back(cache)

    def _lookup(self, token_ids: Tensor) -> Tensor:
        if token_ids.numel() and not 0 <= int(token_ids.min()) <= int(token_ids.max()) < self.vocab_size:
            raise IndexError("no such row")  # which a GPU would only notice too late
        return self.rows[token_ids]

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _body(self, x: Tensor, memory: Any = None) -> Float[Tensor, "B T d"]:
        """Hidden states (B, T, d) of vectors; those a memory holds come before them, and it remembers them too."""
        kept = {} if memory is None else {self._cache: memory.cache}
        x = x.to(self.network.get_input_embeddings().weight.dtype)
        hidden = self.network.base_model(inputs_embeds=x, use_cache=memory is not None, **kept).last_hidden_state
        return hidden.float() if hidden.dtype in _HALF else hidden

    def _log_probs(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n V"]:
        head = self.network.get_output_embeddings()
        hidden = hidden.to(head.weight.dtype)
        logits = head(hidden) if self.columns is None else F.linear(hidden, self.columns.T, head.bias)
        logits = logits.float() * self._scale
        if self._cap:
            logits = self._cap * torch.tanh(logits / self._cap)
        return torch.log_softmax(logits, -1)

    def _begin(self, batch_size: int) -> Float[Tensor, "B 1 m"]:
        """The token before the first one; ValueError for a model without any that could stand there."""
        library = self.tokenizer.library
        ids = [self.tokenizer.begin_id, library.bos_token_id, library.eos_token_id]
        found = next((i for i in ids if i is not None), None)
        if found is None:
            raise ValueError("this model has no token to begin with (bos or eos), so it predicts nothing from nothing")
        return self.rows[found].expand(batch_size, 1, -1)

    def _lay_out(self) -> None:
        """Let wide float32 matrices on a CPU lie in memory column by column: a product with one vector reads them so.

        Such products are most of a step, and wait for memory: by rows it gives half as much a second
        (benchmarks/README.md). A head that is the table is copied, since the mixture pE reads rows.
        """
        head, table = self.network.get_output_embeddings(), self.network.get_input_embeddings().weight
        for layer in self.network.modules():
            if isinstance(layer, nn.Linear) and layer.weight is not table and _gains(layer.weight):
                layer.weight.data = layer.weight.T.contiguous().T
        own = isinstance(head, nn.Linear) and head.weight is table and _gains(table)
        self.register_buffer("columns", table.detach().T.contiguous() if own else None, persistent=False)

    def _check(self) -> None:
        """ValueError where the parts put together here are not what the network itself computes from ids."""
        ids = torch.arange(4, device=self.device)[None] % self.vocab_size
        own = self.network(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        again = self._log_probs(self._body(self.rows[ids]))
        if not torch.allclose(own, again, atol=0.5 if self.network.dtype in _HALF else 1e-3):
            raise ValueError(
                f"{self.network.config.model_type}: reading vectors does not give what reading ids gives (by "
                f"{float((own - again).abs().max()):.2g} nats); this kind of network cannot be read here"
            )


def _gains(matrix: Tensor) -> bool:
    rows, columns = matrix.shape
    return matrix.device.type == "cpu" and matrix.dtype == torch.float32 and rows >= columns


def _of_logits(config: Any) -> tuple[float, float | None]:
    """What some networks do to their logits: a factor, and the bound they are softly kept within."""
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    return scale, getattr(config, "final_logit_softcapping", None)
