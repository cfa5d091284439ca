"""What a training run reads: rows of a corpus, decided by the recipe, a seed and a step."""

import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from ..data.corpora import Corpus
from ..data.tokenizers.char import CharTokenizer
from ..data.tokenizers.subword import UnitTokenizer
from ..models.scoring import calibrate, document_begins, known_text, separator_id
from ..models.soft_ar import SoftAR
from .config import TrainConfig

PART = 2**20  # characters that are encoded at once, about


def compact_ids(model: SoftAR, text: str) -> Integer[Tensor, " N"]:
    """Ids of the training text, in the smallest type that holds the vocabulary.

    Characters that the tokenizer does not know are left out, with a warning. A long text is encoded
    part by part, where no token crosses a line's end.

    Raises:
        ValueError: where nothing is left, or the model has no tokenizer.
    """
    text, tokenizer = known_text(model, text, "training"), model.tokenizer
    small = next(one for one in _TYPES if tokenizer.vocab_size <= torch.iinfo(one).max + 1)
    by_line = isinstance(tokenizer, CharTokenizer | UnitTokenizer)
    parts, begin = [], 0
    while begin < len(text):
        end = (by_line and text.find("\n", begin + PART) + 1) or len(text)
        parts.append(tokenizer.encode(text[begin:end]).to(small))
        begin = end
    return torch.cat(parts)


_TYPES = (torch.uint8, torch.int16, torch.int32)


class TrainingRows:
    """The batches of a run: batch `step` depends on the seed and the step alone.

    So resuming needs no state. Where a row begins depends on the corpus and the model:

    * In a corpus of documents it begins where a document begins, as every evaluated window does.
    * With a structured window it begins where generation would begin a window of a document. The
      memory holds the document up to that place.
    * In running text it begins anywhere. The memory holds a stretch of text before it, which is as
      often short as long (log-uniform).

    Raises:
        ValueError: for a window longer than the context, or a text too short for one row.
    """

    def __init__(self, model: SoftAR, corpus: Corpus, config: TrainConfig, seed: int):
        self.seed, self.size, self.device = seed, config.batch_size, model.device
        length, most = (config.window or model.config.tokens) + 1, model.config.tokens
        if length > most + 1:
            raise ValueError(
                f"TrainConfig.window {length - 1} is more than the model's context {most}"
            )
        # 1) the text
        self.ids = compact_ids(model, corpus.train)
        if len(self.ids) < length:
            raise ValueError(
                f"the training text has {len(self.ids)} tokens, one window needs {length}: give a longer text or "
                f"a model with a shorter context"
            )
        self.stride, self.history = most + 1 - model.config.overlap, config.history
        # 2) where rows may begin: everywhere, or where documents and their windows do
        self.places = last = len(self.ids) - length + 1
        self.begins: Tensor | None = None  # None: everywhere
        self.since: Tensor | None = None  # where the document of each row begins
        if corpus.separator:
            begins = document_begins(self.ids, separator_id(model, corpus.separator))
            if model.config.layout:
                begins, self.since = self._windows(begins)
            # 3) those that end within the text
            self.begins = begins[begins < last]
            self.since = None if self.since is None else self.since[begins < last]
            self.places = len(self.begins)
        if not self.places:
            raise ValueError(
                f"no document of the training text begins {length} tokens before its end"
            )
        self.offsets = torch.arange(length)

    def _windows(self, begins: Int[Tensor, " D"]) -> tuple[Int[Tensor, " W"], Int[Tensor, " W"]]:
        """Where the windows of documents begin (W,), and where the document of each does (W,)."""
        ends = torch.cat([begins[1:], torch.tensor([len(self.ids)])])
        each = -(-(ends - begins) // self.stride)
        since = begins.repeat_interleave(each)
        depth = torch.arange(len(since)) - (each.cumsum(0) - each).repeat_interleave(each)
        return since + depth * self.stride, since

    def batch(self, step: int) -> Int[Tensor, "B T"]:
        """The rows of one step (B, window+1)."""
        chosen = self._begins(self._chosen(self.generator(step)))
        return self.ids[chosen[:, None] + self.offsets].long().to(self.device)

    def _chosen(self, generator: torch.Generator) -> Int[Tensor, " B"]:
        return torch.randint(self.places, (self.size,), generator=generator)

    def _begins(self, chosen: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
        return chosen if self.begins is None else self.begins[chosen]

    def before(self, step: int) -> tuple[Int[Tensor, "B n"], Bool[Tensor, "B n"]]:
        """What stands before the rows of a step in their streams.

        Returns:
            Token ids (B, n), which end where the row begins; and which of them exist (B, n),
            because some rows have fewer than n.
        """
        generator = self.generator(step)
        row = self._chosen(generator)  # as in `batch`
        chosen = self._begins(row)
        if self.since is not None:
            n = chosen - self.since[row]
        else:
            # how many windows may lie before, then log-uniformly 0 … most of them
            most = torch.minimum(chosen, torch.tensor(self.history)) // self.stride
            n = torch.rand(self.size, generator=generator, dtype=torch.float64)
            n = ((most + 2).double().log() * n).exp().long().sub(1) * self.stride
        ages = torch.arange(int(n.max()), 0, -1)
        is_token = ages <= n[:, None]
        ids = self.ids[(chosen[:, None] - ages) * is_token].long() * is_token
        return ids.to(self.device), is_token.to(self.device)

    def memory(self, model: SoftAR, step: int) -> Float[Tensor, "B M d"] | None:
        """The memory slots before the rows of a step; None for a model without memory."""
        if model.memory is None:
            return None
        before, is_token = self.before(step)
        return model.read_memory(model.update_memory(self.size, before, is_token=is_token))

    def generator(self, step: int, stream: int = 0) -> torch.Generator:
        """The random numbers of one step.

        torch's generator for the CPU takes only the lower 32 bits of a seed.

        Args:
            step: the step.
            stream: 0 chooses its rows, 1 is the objective's noise, 2 the soft inputs, 3 the batches
                of `train_mixing`.
        """
        return torch.Generator().manual_seed(
            (self.seed * 1_000_003 + step + 1 + stream * 2**30) % 2**32
        )

    def calibration(self, tokens: int) -> Int[Tensor, "B T"]:
        """Rows drawn apart from the steps': as many batches as hold `tokens` tokens, at most 64."""
        return torch.cat([self.batch(-1 - i) for i in range(self._batches(tokens))])

    def calibrate(self, model: SoftAR) -> None:
        """Fit the model's readout of vectors on such rows."""
        tokens = model.objective.readout.tokens
        if model.levels is not None:
            tokens = max(tokens, model.levels.tokens)
        with torch.no_grad():
            memory = [self.memory(model, -1 - i) for i in range(self._batches(tokens))]
        calibrate(model, self.calibration(tokens), None if None in memory else torch.cat(memory))

    def _batches(self, tokens: int) -> int:
        return min(64, -(-tokens // (self.size * len(self.offsets))))
