"""Learned counting (K15): a small network learns how often each token is still to come.

It does not store the counts.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.predictor import Prediction
from ..data.tokenizers.char import CharTokenizer
from .token_predictor import Memory, TokenPredictor, Vocabulary, encode

# long sequences are cut into rows of _ROW tokens; the _WARM tokens before each row are only read
_ROW, _WARM = 32, 8
_LEAST = 1e-9  # no probability is smaller, so that every score is finite


class SuccessorModel(nn.Module, TokenPredictor):
    """psi(s)[t]: the expected count of t after s; each further step counts gamma times as much.

    This is learned counting (K15). With window n, a network sees the last n tokens. With window
    None, the update is learned: the network sees only the previous frequencies and the chosen
    token, and outputs the new frequencies. `fit` makes the model.

    The prediction is read off psi. Negative values are raised to almost 0 (`clipped` measures how
    much), and the rest is scaled to sum to 1. Where the values sum to less than 0.5, the sequence
    is over, and the model predicts the first token of the next one. It can only know what comes
    after that token if the training sequences also went on into a next one.

    Raises:
        ValueError: where gamma or window is out of range.
    """

    def __init__(
        self,
        tokenizer: CharTokenizer | Vocabulary,
        gamma: float | int = 0.9,
        window: int | None = 3,
        width: int = 128,
        seed: int = 0,
    ):
        super().__init__()
        if not 0 <= gamma <= 1 or (window is not None and not 1 <= window <= _WARM):
            raise ValueError(
                f"gamma must lie in 0 … 1, window in 1 … {_WARM} or be None, not {gamma!r}, {window!r}"
            )
        v = tokenizer.vocab_size
        self.tokenizer, self.gamma, self.window, self.vocab_size = tokenizer, gamma, window, v
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = nn.Linear(v * (window or 2), width), nn.ReLU(), nn.Linear(width, v)
            self.net = nn.Sequential(*layers).double()
        # psi before any token, for the learned update
        self.first = nn.Parameter(torch.zeros(v, dtype=torch.float64))

    def start(self, batch_size: int = 1) -> Memory:
        """The state in which nothing has been read yet."""
        blanks = torch.full((batch_size, self.window or 0), self.vocab_size)
        return Memory(self.first.expand(batch_size, -1) if self.window is None else blanks)

    def frequencies(self, state: Memory) -> Float64[Tensor, "B V"]:
        """psi(s), (B, V): expected discounted counts of every token after what was read."""
        return self._psi(state.data)

    @torch.no_grad()
    def raw_probs(self, state: Memory) -> Float64[Tensor, "B V"]:
        """What the identity of `read_off` gives, before anything is clipped (B, V)."""
        b, v = len(state.data), self.vocab_size
        # the state after each possible next token, (B V, ·)
        following = self._step(state.data.repeat_interleave(v, 0), torch.arange(v).repeat(b))
        return read_off(self._psi(state.data), self._psi(following).view(b, v, v), self.gamma)

    def clipped(self, state: Memory) -> Float64[Tensor, " B"]:
        """How much negative probability is clipped, (B,)."""
        return (-self.raw_probs(state)).clamp_min(0).sum(-1)

    def predict(self, state: Memory) -> Prediction:
        """p(x | what was read), (B, V) in float64; none is less than about 1e-9."""
        raw = self.raw_probs(state)
        over = raw.sum(-1, keepdim=True) < 0.5
        probs = torch.where(over, self.raw_probs(self.start()), raw).clamp_min(_LEAST)
        return Prediction((probs / probs.sum(-1, keepdim=True)).log())

    def _step(self, data: Tensor, token_ids: Tensor) -> Tensor:
        if self.window is None:
            return self.net(torch.cat([data, self._one_hot(token_ids)], -1))
        return torch.cat([data[:, 1:], token_ids[:, None]], 1)

    def _psi(self, data: Tensor) -> Tensor:
        return data if self.window is None else self.net(self._one_hot(data).flatten(-2))

    def _one_hot(self, token_ids: Tensor) -> Tensor:
        """(…) -> (…, V); a blank, which has the id V, becomes zeros."""
        return F.one_hot(token_ids, self.vocab_size + 1)[..., :-1].double()

    # -- learning ----------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        sequences: Sequence[Sequence[str]],
        *,
        tokenizer: CharTokenizer | Vocabulary | None = None,
        steps: int = 2000,
        batch_size: int = 64,
        learning_rate: float = 0.01,
        seed: int = 0,
        progress: Callable[[int, float], None] | None = None,
        **settings,
    ) -> "SuccessorModel":
        """Learn by temporal difference: psi(s) moves towards onehot(x) + gamma psi(s+x).

        Where s ends, it moves towards 0. The target is held fixed while psi moves (a semi-gradient,
        clipped to norm 1). The optimizer is Adam; its learning rate falls linearly to 0.

        Args:
            sequences: as in `CountingModel.fit`.
            tokenizer: whose ids to use. None: a Vocabulary of the tokens, in order of first
                appearance.
            steps: number of training steps.
            batch_size: rows per step; all of them if fewer exist.
            learning_rate: the rate of the first step.
            seed: decides the first weights and the batches.
            progress: called as `progress(step, loss)` after each step.
            settings: gamma, window, width.

        Raises:
            ValueError: as `CountingModel.fit` does.
        """
        found = Vocabulary.fit(sequences)
        model = cls(tokenizer or found, seed=seed, **settings)
        token_ids, learned = model._rows(
            [encode(model.tokenizer, sequence) for sequence in sequences]
        )
        generator = torch.Generator().manual_seed(seed)
        adam = torch.optim.Adam(model.parameters(), learning_rate, fused=True)
        for step in range(steps):
            rows = slice(None)
            if len(token_ids) > batch_size:
                rows = torch.randint(len(token_ids), (batch_size,), generator=generator)
            loss = model._loss(token_ids[rows], learned[rows])
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            adam.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
            adam.step()
            if progress:
                progress(step, loss.item())
        return model.eval().requires_grad_(False)

    def _rows(self, sequences: list[Tensor]) -> tuple[Int64[Tensor, "R L"], Float64[Tensor, "R L"]]:
        """Training rows of the sequences.

        Returns:
            Token ids, with blanks from the end of a sequence on, and a mask: 1 where psi before a
            token is learned, 0 where the token is only read, (R, L) each.
        """
        rows, learned = [], []
        for ids in sequences:
            ids = F.pad(ids, (0, 1), value=self.vocab_size)  # after the last token: nothing
            for begin in range(0, len(ids), _ROW):
                first = max(0, begin - _WARM)
                rows.append(ids[first : begin + _ROW])
                learned.append((torch.arange(first, first + len(rows[-1])) >= begin).double())
        pad = nn.utils.rnn.pad_sequence
        return pad(rows, True, self.vocab_size), pad(learned, True)

    def _loss(self, token_ids: Tensor, learned: Tensor) -> Tensor:
        """Mean squared distance between psi and its fixed target, over the learned positions."""
        psi = self._psi(self._memories(token_ids))  # (R, L + 1, V)
        goes_on = (token_ids < self.vocab_size)[..., None]
        target = self._one_hot(token_ids) + self.gamma * goes_on * psi[:, 1:].detach()
        return ((psi[:, :-1] - target).square().sum(-1) * learned).sum() / learned.sum()

    def _memories(self, token_ids: Tensor) -> Tensor:
        """The state before each token of rows (R, L), and after the last one, (R, L + 1, ·)."""
        if self.window is not None:
            return F.pad(token_ids, (self.window, 0), value=self.vocab_size).unfold(
                1, self.window, 1
            )
        memory = [self.start(len(token_ids)).data]
        for t in range(token_ids.shape[1]):
            memory.append(self._step(memory[-1], token_ids[:, t]))
        return torch.stack(memory, 1)


def read_off(
    psi: Float64[Tensor, "B V"], next_psi: Float64[Tensor, "B V V"], gamma: float | int
) -> Float64[Tensor, "B V"]:
    """P(.|s) by K13's identity: psi(s) = P(.|s) + gamma Σ_u P(u|s) psi(s+u), solved for P.

    The result is as exact as psi is, whatever the rows of impossible u hold. Its sum is 1 - P(the
    sequence ends here).

    Args:
        psi: psi(s) (B, V).
        next_psi: psi(s+u) in row u (B, V, V).
        gamma: the discount of each further step.

    Returns:
        P (B, V).

    Raises:
        ValueError: where the frequencies do not determine P. Without a discount, for example, the
            same tokens are still to come before "ab" and before "ba".
    """
    system = torch.eye(psi.shape[-1], dtype=psi.dtype) + gamma * next_psi
    try:
        return torch.linalg.solve(system.mT, psi)
    except torch.linalg.LinAlgError:
        raise ValueError(
            f"I + gamma next_psi has no inverse; a gamma below {gamma!r} may tell orders apart"
        ) from None
