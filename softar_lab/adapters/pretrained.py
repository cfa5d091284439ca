"""A causal language model of the transformers library as a predictor that reads token ids or vectors (K31)."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..models.soft_ar import without_gradients
from ..models.state import SoftState
from ..predictor import MixturePrediction, Predictor
from .pieces import PieceTokenizer

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


class Pretrained(nn.Module, Predictor):
    """`network`, any causal language model of transformers, and its tokenizer. Its soft token is the mixture pE.

    Whatever the network computes in, predictions and soft tokens are float32. Before the first token it has read what
    its tokenizer puts before a text. Where that is nothing, a prediction with nothing read yet is what the network says
    after its begin (or end) token alone, which no later prediction sees. A full context goes on as in `SoftAR`: the
    latest half of the slots is read again, once. Raises ValueError for a network that cannot be read this way.
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
            self._check()

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

    def advance(self, state, token_ids=None, vectors=None) -> SoftState:
        """One more slot a row: a hard token (B,) or a soft one (B, m).

        Raises ValueError for both or neither, a wrong shape, an unknown id, NaN or infinity.
        """
        if token_ids is not None:
            token_ids = token_ids.unsqueeze(1)
        if vectors is not None:
            vectors = vectors.unsqueeze(1)
        return self.read(state, token_ids=token_ids, vectors=vectors)

    @without_gradients
    def read(self, state, token_ids=None, vectors=None) -> SoftState:
        """T more slots a row in one pass: hard tokens (B, T) or soft ones (B, T, m)."""
        new = self._vectors(token_ids, vectors, state)
        if new.shape[1] == 0:
            return state
        inputs, begin = (*state.inputs, new), state.begin
        total, context = state.length + new.shape[1], self.config.context
        if total > context:
            keep = max(1, context // 2)
            length = keep + (total - context - 1) % (context - keep + 1)
            new = torch.cat(inputs, 1)[:, -length:]
            state, inputs, begin, total = self.start(new.shape[0]), (new,), begin + total - length, length
        memory = state.cache.branch()
        return SoftState(memory, total, self._body(new, memory)[:, -1], inputs, begin)

    @without_gradients
    def replace(self, state: SoftState, slot: int, vectors: Float[Tensor, "B n m"]) -> SoftState:
        """The state there would be had n slots, `slot` and those after it, held these vectors from the start (K5).

        Raises ValueError, naming those that are, for slots that are not in the context; or as `advance` does.
        """
        new, n = self._vectors(None, vectors, state), vectors.shape[1]
        if not state.begin <= slot <= state.end - n:
            asked = f"slots {slot} … {slot + n - 1} cannot be replaced"
            held = f"holds {state.begin} … {state.end - 1}" if state.length else "is empty"
            raise ValueError(f"{asked}: the context {held}")
        if n == 0:
            return state
        at, inputs = slot - state.begin, torch.cat(state.inputs, 1)
        inputs = torch.cat([inputs[:, :at], new, inputs[:, at + n :]], 1)
        memory = state.cache.first(at + int(self.tokenizer.begin_id is not None))
        if memory is None:
            memory, at = self.start(len(new)).cache.branch(), 0
        return SoftState(memory, state.length, self._body(inputs[:, at:], memory)[:, -1], (inputs,), state.begin)

    @without_gradients
    def foresee(self, state: SoftState, vectors: Float[Tensor, "B n m"]) -> Float[Tensor, "B n d"]:
        """The hidden states that n more slots would leave, one after each, in one pass; the state stays as it is.

        Where the context has no room for them, they are read after its latest half, or as much of it as leaves room.
        Raises ValueError for more slots than the context holds; or as `advance` does.
        """
        new, n, context = self._vectors(None, vectors, state), vectors.shape[1], self.config.context
        if n > context:
            raise ValueError(f"{n} slots ahead are more than the context of {context}")
        if n == 0:
            return state.hidden[:, None, :][:, :0]
        if state.length + n > context:
            keep = min(max(1, context // 2), context - n)
            latest = torch.cat(state.inputs, 1)[:, state.length - keep :]
            return self.hidden_states(vectors=torch.cat([latest, new], 1))[:, -n:]
        memory = state.cache.branch()
        hidden = self._body(new, memory)
        state.cache.give_back(memory)
        return hidden

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _body(self, x: Tensor, memory: Any = None) -> Float[Tensor, "B T d"]:
        """Hidden states (B, T, d) of vectors; those a memory holds come before them, and it remembers them too."""
        kept = {} if memory is None else {self._cache: memory.cache}
        x = x.to(self.network.get_input_embeddings().weight.dtype)
        hidden = self.network.base_model(inputs_embeds=x, use_cache=memory is not None, **kept).last_hidden_state
        return hidden.float() if hidden.dtype in _HALF else hidden

    def _log_probs(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n V"]:
        head = self.network.get_output_embeddings()
        logits = head(hidden.to(head.weight.dtype)).float() * self._scale
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

    def _vectors(self, token_ids: Tensor | None, vectors: Tensor | None, state: SoftState | None = None) -> Tensor:
        """The rows of the table for ids, the vectors themselves otherwise; ValueError for what is neither or unfit."""
        if (token_ids is None) == (vectors is None):
            raise ValueError("give either token_ids or vectors")
        given = token_ids if vectors is None else vectors
        if state is not None and len(given) != len(state.hidden):
            raise ValueError(f"{len(given)} rows given, the state has {len(state.hidden)}")
        if token_ids is not None:
            if given.numel() and not 0 <= int(given.min()) <= int(given.max()) < self.vocab_size:
                raise ValueError(f"token ids must lie in 0 … {self.vocab_size - 1}")
            return self.rows[token_ids]
        if vectors.shape[-1] != self.config.embedding_dim:
            raise ValueError(f"soft tokens are {self.config.embedding_dim} wide here, not {vectors.shape[-1]}")
        if not torch.isfinite(vectors).all():
            raise ValueError("soft tokens must be finite; found NaN or infinity")
        return vectors

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


def _of_logits(config: Any) -> tuple[float, float | None]:
    """What some networks do to their logits: a factor, and the bound they are softly kept within."""
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    return scale, getattr(config, "final_logit_softcapping", None)
