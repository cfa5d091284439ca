"""A causal language model of transformers as a predictor that reads token ids or vectors (K31)."""

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
from .adapters import unwrapped
from .configs import logits_of, positions, special_ids, text_length
from .tokenizer import PieceTokenizer
from .weights import Packed, stored

if TYPE_CHECKING:
    from .kv_cache import Memory
    from .reading import Plan

_TOKENS = 4096  # the most tokens read in one pass when whole texts are scored
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
    def overlap(self) -> int:
        """Number of latest tokens that are read again when the context is full."""
        return max(1, self.context // 2)


class Pretrained(nn.Module, VectorPredictor):
    """`network`, any causal language model of transformers, with its tokenizer.

    Its soft token is the mixture pE. Predictions and soft tokens are float32, whatever type the
    network computes in. Before the first token, the network has read what its tokenizer puts before
    a text. If the tokenizer puts nothing there, the first prediction comes from the network's begin
    (or end) token alone, which no later prediction sees. If it has no such token, there is no first
    prediction: the log-probs of a first token are NaN, and a prompt must not be empty.

    How the network is read is found at loading (`plan`, see checks.py). Where its own forward pass
    does more to the hidden states than its output embedding, its logits stand for hidden states.

    Raises:
        ValueError: where a network cannot be read exactly by vectors; the message says why.
    """

    reads_at_once = True

    def __init__(self, network: nn.Module, tokenizer: Any, source: str = ""):
        super().__init__()
        network = unwrapped(network)
        self.network = network.eval().requires_grad_(False)
        table = network.get_input_embeddings()
        if not isinstance(table, nn.Module) or getattr(table, "weight", None) is None:
            kind = network.config.model_type
            raise ValueError(f"{kind} cannot be read here: it has no one table of input vectors")
        self.vocab_size = len(table.weight)
        self.tokenizer = PieceTokenizer(tokenizer, self.vocab_size)
        text = network.config.get_text_config(decoder=True)
        self._scale, self._cap = logits_of(text)  # see _log_probs
        self._first: dict[torch.device, Tensor] = {}  # the hidden state with nothing read yet
        with torch.no_grad():  # what is trained in front of it needs gradients
            self.register_buffer("rows", _rows(table), persistent=False)
            self._lay_out()
        context = positions(network, text) - self.n_front
        width = self.rows.shape[1]
        weights = ", ".join(f"{kind}: {n:,}" for kind, n in stored(network).items())
        self.config = PretrainedConfig(self.vocab_size, context, width, source, weights)
        self._check(text)

    @property
    def work(self) -> int:
        """Multiply-adds per token, about: one for each weight."""
        return sum(stored(self.network).values())

    @property
    def n_front(self) -> int:
        """How many vectors are read before every text: one where the tokenizer begins with one."""
        return self._begins

    @property
    def _begins(self) -> int:
        return int(self.tokenizer.begin_id is not None)

    @property
    def predicts_first(self) -> bool:
        """Whether there is a token to begin with."""
        return self._begin_token is not None

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
        if not self.plan.head:
            return False
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
        if self.n_front:
            return self._behind_front(x)
        first = self._before(len(x))
        return torch.cat([first, self._reader.whole(x)], 1) if x.shape[1] else first

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
        most = _TOKENS if self.plan.head else min(_TOKENS, 8 * _ENTRIES // self.vocab_size)
        return iter(token_ids.split(max(1, most // token_ids.shape[1])))

    def states_with_gradients(self, vectors: Float[Tensor, "B T m"]) -> Float[Tensor, "B slots d"]:
        """`hidden_states` of vectors, with gradients: (B, T, m) -> (B, T+1, d).

        Where the network predicts nothing from nothing, entry 0 is that of the row 0.
        """
        if self.n_front:
            return self._behind_front(vectors)
        first = self._reader.whole(self._begin(len(vectors)))
        return torch.cat([first, self._reader.whole(vectors)], 1)

    def log_probs_with_gradients(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n V"]:
        """log p of hidden states, in nats, with gradients."""
        return self._log_probs(hidden)

    # -- one token after the other: the predictor --------------------------------------------------

    @without_gradients
    def start(self, batch_size: int = 1) -> SoftState:
        """The state with nothing read yet, except what the tokenizer puts before every text."""
        from .kv_cache import Memory  # imported here, because it needs transformers

        memory = Memory()
        if self.n_front:
            front = self._front(batch_size)
            read = (
                self._reader.on(front, memory, 0) if self.plan.cache else self._reader.whole(front)
            )
            return SoftState(memory, 0, read[:, -1])
        return SoftState(memory, 0, self._before(batch_size)[:, -1])

    @without_gradients
    def predict(self, state: SoftState) -> MixturePrediction:
        """p(w | what was read), with the mixture pE as soft token.

        Raises:
            ValueError: where nothing was read, and the model has no token to begin with.
        """
        if not (state.length or state.begin or self.predicts_first):
            raise ValueError(
                "this model has no token to begin with (bos or eos), so it predicts nothing from "
                "nothing: give a prompt"
            )
        return self.predict_after(state.hidden)

    @without_gradients
    def predict_after(self, hidden: Float[Tensor, "B d"]) -> MixturePrediction:
        """The prediction that follows from hidden states (B, d)."""
        return MixturePrediction(self._log_probs(hidden), self.rows)

    def _continue(self, state: SoftState, new: Tensor, at: int) -> tuple["Memory", Tensor]:
        from .kv_cache import Memory

        front = self.n_front
        if self.plan.cache:
            whole = at == state.length
            memory = state.cache.branch() if whole else state.cache.first(at + front)
            if memory is not None:
                return memory, self._reader.on(new, memory, at + front)
        # nothing is held of the tokens before, or a window has dropped some: read them again
        before, memory = torch.cat([*state.inputs, new[:, :0]], 1)[:, :at], Memory()
        x = torch.cat([self._front(len(new)), before, new], 1)
        read = self._reader.on(x, memory, 0) if self.plan.cache else self._reader.whole(x)
        return memory, read[:, at + front :]

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

    def _log_probs(self, hidden: Float[Tensor, "*n d"]) -> Float[Tensor, "*n V"]:
        return self._log_probs_of(self.plan.head, hidden)

    def _log_probs_of(self, head: bool, hidden: Tensor) -> Tensor:
        """Log-probabilities of hidden states, or where `head` is False of the network's logits."""
        if not head:
            return torch.log_softmax(hidden.float(), -1)
        output = self.network.get_output_embeddings()
        if not isinstance(output, Packed):  # that one takes any type
            hidden = hidden.to(output.weight.dtype)
        logits = (
            output(hidden)
            if self.columns is None
            else F.linear(hidden, self.columns.T, output.bias)
        )
        logits = logits.float() * self._scale
        if self._cap:
            logits = self._cap * torch.tanh(logits / self._cap)
        return torch.log_softmax(logits, -1)

    @property
    def _begin_token(self) -> int | None:
        """The token before the first one; None where the model has none for this place."""
        library = self.tokenizer.library
        ids = (self.tokenizer.begin_id, library.bos_token_id, library.eos_token_id)
        return next((i for i in ids if i is not None), None)

    def _begin(self, batch_size: int) -> Float[Tensor, "B 1 m"]:
        """The vector of the token before the first one, (B, 1, m); any row where there is none."""
        return self.rows[self._begin_token or 0].expand(batch_size, 1, -1)

    def _front(self, batch_size: int) -> Float[Tensor, "B front m"]:
        """The vectors that are read before every text, (B, n_front, m)."""
        return self._begin(batch_size)[:, : self._begins]

    def _behind_front(self, x: Float[Tensor, "B T m"]) -> Float[Tensor, "B slots d"]:
        """The hidden states before and after each of T vectors behind the front, (B, T+1, d)."""
        read = self._reader.whole(torch.cat([self._front(len(x)), x], 1))
        return read[:, self.n_front - 1 :]

    def _before(self, batch_size: int) -> Float[Tensor, "B 1 d"]:
        """The hidden state with nothing read yet, (B, 1, d); NaN where there is none."""
        if self.device not in self._first:  # the weights are fixed, so compute it once
            first = self._reader.whole(self._begin(1))
            known = self.predicts_first
            self._first[self.device] = first if known else torch.full_like(first, torch.nan)
        return self._first[self.device].expand(batch_size, -1, -1)

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

    @without_gradients
    def _check(self, text: Any) -> None:
        """Find out how the network is read exactly.

        Args:
            text: the config of its decoder.

        Raises:
            ValueError: where it cannot be; the message says why.
        """
        from .checks import plan_of
        from .reading import Reader

        avoid = {*self.tokenizer.library.all_special_ids, *special_ids(self.network.config)}
        length = text_length(text, self.config.context)
        self.plan: Plan = plan_of(self.network, avoid, length, self._log_probs_of)
        self._reader = Reader(self.network, self.plan)


def _rows(table: nn.Module) -> Float[Tensor, "V m"]:
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
