"""Learned prompts: soft tokens trained in front of a task, on a frozen model (K32).

A learned prompt is a table (n, m). It is written and read as peft does (prompt tuning), but never
used through peft's `generate`: transformers 5.24 would put it in again at every step.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors import torch as safe
from torch import Tensor
from torch.nn import functional as F

from ...core.checks import SEEDS, real_number, sequence, whole_number
from ...core.predictor import Predictor, check_finite
from ...core.store import read_bytes, write_atomic
from ...training.interruption import interruption
from ...training.loop import TrainingDiverged
from .adapters import ABOUT, WEIGHTS
from .errors import PretrainedError, reason
from .soft_reading import check_trainable, log_probs, states

ROWS = "prompt_embeddings"
OURS = "learned_prompt.json"  # what peft has no place for
_READABLE = ("PROMPT_TUNING", "P_TUNING")  # their files hold the vectors that stand before a text
_STEP = 0.15  # Adam's step, in root mean squares of the table's entries

Pair = tuple[str, str]


@dataclass(frozen=True, eq=False)
class LearnedPrompt:
    """Soft tokens that stand before a text.

    Attributes:
        vectors: the soft tokens (n, m), float32.
        start_ids: the tokens whose rows they were begun from (n,); None: unknown.
        history: one row per step: step, loss in nats per token.
    """

    vectors: Float[Tensor, "n m"]
    start_ids: Int[Tensor, " n"] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"LearnedPrompt({len(self.vectors)} soft tokens, {len(self.history)} steps)"

    def save(self, folder: str | Path, base: str = "") -> None:
        """Write a folder that peft reads, too.

        Args:
            folder: where it goes.
            base: the name or folder of the model, which peft wants to know.
        """
        n, width = self.vectors.shape
        about = {
            "peft_type": "PROMPT_TUNING",
            "task_type": "CAUSAL_LM",
            "num_virtual_tokens": n,
            "token_dim": width,
            "num_transformer_submodules": 1,
            "prompt_tuning_init": "RANDOM",
            "base_model_name_or_path": base,
            "inference_mode": True,
        }
        start = None if self.start_ids is None else self.start_ids.tolist()
        ours = {"start_ids": start, "history": self.history}
        folder = Path(folder)
        write_atomic(folder / OURS, json.dumps(ours).encode())
        write_atomic(folder / ABOUT, (json.dumps(about, indent=1) + "\n").encode())
        write_atomic(folder / WEIGHTS, safe.save({ROWS: self.vectors.contiguous()}))


def load_prompt(folder: str | Path) -> LearnedPrompt:
    """The learned prompt in a folder of peft's or the lab's.

    Raises:
        PretrainedError: where the folder is damaged, or holds something else: an adapter, or
            keys and values instead of vectors (prefix tuning).
    """
    folder = Path(folder)
    try:
        about = json.loads(read_bytes(folder / ABOUT))
        arrays = safe.load(read_bytes(folder / WEIGHTS))
        kind = about["peft_type"]
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise PretrainedError(f"{folder}: no learned prompt ({reason(error)})") from error
    if kind not in _READABLE:
        raise PretrainedError(
            f"{folder}: a {kind}, no vectors that stand before a text ({', '.join(_READABLE)})"
        )
    if set(arrays) != {ROWS} or arrays[ROWS].ndim != 2 or not len(arrays[ROWS]):
        raise PretrainedError(f"{folder}: {WEIGHTS} must hold {ROWS} (n, m) and nothing else")
    vectors = arrays[ROWS].float()
    if not vectors.isfinite().all():
        raise PretrainedError(f"{folder}: {WEIGHTS} holds NaN or infinity")
    return LearnedPrompt(vectors, *_ours(folder / OURS, len(vectors)))


def _ours(file: Path, n: int) -> tuple[Int[Tensor, " n"] | None, list[dict[str, Any]]]:
    """Where a prompt of n soft tokens was begun, and its history, as far as a file knows them.

    Raises:
        PretrainedError: where the file is damaged, or of another prompt.
    """
    if not file.exists():
        return None, []
    try:
        about = json.loads(read_bytes(file))
        start, history = about.get("start_ids"), list(about.get("history", []))
        if start is not None:
            start = torch.tensor([whole_number("start_ids", one, 0) for one in start])
    except (ValueError, TypeError, AttributeError) as error:
        raise PretrainedError(f"{file}: damaged ({reason(error)})") from error
    if start is not None and len(start) != n:
        raise PretrainedError(f"{file}: begun from {len(start)} tokens, and {n} were learned")
    return start, history


def check_prompt(
    model: Predictor, vectors: Float[Tensor, "n m"], start_ids: Int[Tensor, " n"] | None = None
) -> None:
    """Check that a prompt fits a model.

    Raises:
        ValueError: where its vectors have another width or are not finite, or it was begun from
            tokens that the model does not have.
    """
    width = model.embedding.shape[1]
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise ValueError(
            f"a prompt for this model has the shape (n, {width}), not {tuple(vectors.shape)}"
        )
    check_finite(vectors)
    if start_ids is not None and int(start_ids.max()) >= model.vocab_size:
        raise ValueError(
            f"this prompt was begun from token {int(start_ids.max())}, and the model has "
            f"{model.vocab_size}: it was learned for another"
        )


# -- a task ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """Pairs of a text and its answer, as tokens."""

    pairs: list[tuple[Int[Tensor, " _"], Int[Tensor, " _"]]]

    @classmethod
    def of(cls, model: Predictor, pairs: Sequence[Pair]) -> "Task":
        """The task of pairs of texts.

        Raises:
            ValueError: where there are none, one is no pair of texts, or an answer is empty.
        """
        if model.tokenizer is None:
            raise ValueError("the model has no tokenizer to read the pairs with")
        encode, found = model.tokenizer.encode, []
        for pair in sequence("pairs", pairs, "pairs (text, answer)"):
            text, answer = _two_texts(pair)
            if not len(ids := encode(answer)):
                raise ValueError(f"the answer to {text!r:.40} is empty")
            found.append((encode(text), ids))
        return cls(found)

    def answers(
        self,
        model: Predictor,
        vectors: Float[Tensor, "n m"],
        chosen: Sequence[int],
    ) -> tuple[Float[Tensor, "k V"], Int[Tensor, " k"]]:
        """log p at each token of some answers, with gradients, and the tokens.

        Args:
            model: reads the prompt, then text and answer.
            vectors: the prompt (n, m); n may be 0.
            chosen: which pairs.
        """
        pairs = [self.pairs[i] for i in chosen]
        rows = [torch.cat(pair) for pair in pairs]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
        at = torch.arange(ids.shape[1])
        first = torch.tensor([len(text) for text, _ in pairs])[:, None]
        last = torch.tensor([len(row) for row in rows])[:, None]
        answer = (at >= first) & (at < last)  # (B, T)
        read = F.embedding(ids[:, :-1], model.embedding)
        read = torch.cat([vectors.expand(len(ids), -1, -1), read], 1)
        hidden = states(model, read)[:, len(vectors) :]  # entry t predicts token t
        return log_probs(model, hidden[answer]), ids[answer]


def _two_texts(pair: Any) -> Pair:
    two = tuple(pair) if isinstance(pair, tuple | list) else ()
    if len(two) != 2 or not all(isinstance(one, str) for one in two):
        raise ValueError(f"pairs must hold pairs (text, answer) of texts, not {pair!r:.60}")
    return two


@torch.no_grad()
def score(
    model: Predictor, pairs: Sequence[Pair], vectors: Tensor | None = None, batch_size: int = 8
) -> dict[str, float]:
    """What a model gives the answers of a task behind a prompt.

    Args:
        model: reads the prompt.
        pairs: texts and answers.
        vectors: the prompt (n, m); None: nothing.
        batch_size: pairs read at once.

    Returns:
        nats: per token of the answers; right: the share of tokens that are the most probable.

    Raises:
        ValueError: for vectors that do not fit the model, or as `Task.of` does.
    """
    task, batch_size = Task.of(model, pairs), whole_number("batch_size", batch_size)
    vectors = model.embedding[:0] if vectors is None else vectors
    check_prompt(model, vectors)
    nats, right, count = 0.0, 0, 0
    for begin in range(0, len(task.pairs), batch_size):
        chosen = range(begin, min(begin + batch_size, len(task.pairs)))
        found, ids = task.answers(model, vectors, chosen)
        nats -= float(found.gather(-1, ids[:, None]).sum())
        right += int((found.argmax(-1) == ids).sum())
        count += len(ids)
    return {"nats": nats / count, "right": right / count}


# -- learning --------------------------------------------------------------------------------------


def tune_prompt(
    model: Predictor,
    pairs: Sequence[Pair],
    tokens: int = 8,
    start: str = "random",
    *,
    steps: int = 40,
    batch_size: int = 6,
    learning_rate: float | None = None,
    seed: int = 0,
    on_step: Callable[[dict[str, Any]], Any] | None = None,
) -> LearnedPrompt:
    """Learn soft tokens before a task: the likelihood of the answers, the model frozen (K32).

    Ctrl-C or the notebook's stop button ends it with what is learned by then.

    Args:
        model: a pretrained model, in NF4 too, or a SoftAR that predicts by likelihood.
        pairs: texts and their answers.
        tokens: how many soft tokens; a text as `start` has a number of its own.
        start: "random": the rows of random tokens; any other text: the rows of its tokens.
        steps: how many steps.
        batch_size: pairs per step.
        learning_rate: of Adam at the first step; it falls linearly. None: 0.15 times the root mean
            square of the table's entries.
        seed: draws the first rows and the pairs of each step.
        on_step: gets step, steps, loss; it ends where that returns True.

    Raises:
        ValueError: where the model cannot learn a prompt, or no start or pairs are given.
        TrainingDiverged: where the loss or a soft token is not finite.

    Source:
        Prompt tuning, arXiv 2104.08691.
    """
    check_trainable(model)
    tokens, steps = whole_number("tokens", tokens), whole_number("steps", steps)
    batch_size, seed = whole_number("batch_size", batch_size), whole_number("seed", seed, *SEEDS)
    task, table = Task.of(model, pairs), model.embedding
    if learning_rate is None:
        learning_rate = _STEP * float(table.square().mean().sqrt())
    real_number("learning_rate", learning_rate, "above 0", lambda one: 0 < one < math.inf)
    ids = _start_ids(model, start, tokens, seed)
    vectors = table[ids].clone().requires_grad_(True)
    optimizer = torch.optim.Adam([vectors], lr=learning_rate)
    history: list[dict[str, Any]] = []
    with interruption() as stop:
        for step in range(steps):
            # 1) the pairs of this step
            generator = torch.Generator().manual_seed((seed * 1_000_003 + step + 1) % 2**32)
            chosen = torch.randperm(len(task.pairs), generator=generator)[:batch_size].tolist()
            # 2) one step of the prompt, at the rate of this step
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
            loss = _learn(model, task, vectors, chosen, optimizer)
            if not math.isfinite(loss) or not vectors.isfinite().all():
                raise TrainingDiverged(f"step {step} of loss {loss} diverged: lower learning_rate")
            # 3) report it
            history.append({"step": step + 1, "loss": loss})
            if on_step is not None and on_step({**history[-1], "steps": steps}) is True:
                break
            if stop.is_set():
                break
    return LearnedPrompt(vectors.detach().cpu(), ids.cpu(), history)


def _learn(
    model: Predictor,
    task: Task,
    vectors: Tensor,
    chosen: Sequence[int],
    optimizer: torch.optim.Optimizer,
) -> float:
    """One step of Adam on the prompt's vectors alone; returns the loss before it."""
    found, ids = task.answers(model, vectors, chosen)
    loss = F.nll_loss(found, ids)
    (gradient,) = torch.autograd.grad(loss, [vectors])  # a SoftAR's weights stay untouched
    vectors.grad = gradient
    optimizer.step()
    return loss.item()


def _start_ids(model: Predictor, start: str, tokens: int, seed: int) -> Int[Tensor, " n"]:
    """The tokens whose rows a prompt is begun from.

    Raises:
        ValueError: for an empty text, or no text.
    """
    if not isinstance(start, str):
        raise ValueError(f'start must be "random" or a text, not {start!r:.40}')
    if start == "random":
        generator = torch.Generator().manual_seed(seed % 2**32)
        return torch.randint(model.vocab_size, (tokens,), generator=generator).to(model.device)
    ids = model.tokenizer.encode(start)
    if not len(ids):
        raise ValueError('start must be "random" or a text of at least one token')
    return ids.to(model.device)
