"""Which language models of transformers the lab reads exactly, measured on tiny random networks.

    python -m softar_studies.zoo                 measure every kind, write the table of docs/models.md
    python -m softar_studies.zoo llama mamba2    measure these again

Every column goes through the public interface and is compared with the network's own results from
ids. A process of its own reads each kind, so that none can disturb another.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from softar_lab.external.pretrained.wrapper import Pretrained
from softar_lab.generation import generate

from .zoo_networks import CONTEXT, kinds, letters_tokenizer, network_of

DOC = Path(__file__).parents[1] / "docs" / "models.md"
NOT_BUILT = "not built: "
BEGIN, END = "<!-- zoo: begin -->", "<!-- zoo: end -->"
PROMPTS = ("the king", "a cat and the queen", "so it goes, on")
LENGTH = 24  # tokens, three windows
TIMES = 8  # times the measured effect of rounding


@dataclass(frozen=True)
class Row:
    """What was found for a kind.

    Args:
        kind: its name in transformers.
        plan: how it is read; "" where it is not.
        refused: why it is refused, or could not be built; "" where it is read.
        columns: for each question "✓", "–" (nothing to compare with), "○" (equal to the network's
            own forward pass, to which its `generate` is not) or what was wrong.
    """

    kind: str
    plan: str = ""
    refused: str = ""
    columns: dict[str, str] | None = None

    @property
    def built(self) -> bool:
        """Whether a tiny network could be made."""
        return not self.refused.startswith(NOT_BUILT)

    @property
    def exact(self) -> bool:
        """Whether it is read, and every column agrees."""
        return bool(self.columns) and set(self.columns.values()) <= {"✓", "–", "○"}


class Zoo:
    """A tiny model of a kind, and the questions that are asked of it."""

    def __init__(self, model: Pretrained):
        self.model, self.network = model, model.network
        generator = torch.Generator().manual_seed(5)
        first = len(letters_tokenizer().all_special_ids)
        ids = torch.randint(first, model.vocab_size, (3, LENGTH), generator=generator)
        self.ids, other = ids[:2], ids[2:]
        self.vectors = model.embedding[self.ids]
        self.mixed = (self.vectors + model.embedding[other]) / 2
        with torch.no_grad():
            self.truth = self.network(input_ids=self.ids).logits.float().log_softmax(-1)
        signs = torch.randint(2, self.vectors.shape, generator=generator) * 2 - 1
        # a sum of n products is off by √n·u, u = eps / 2 (see tests/bounds.py)
        unit = self.vectors.shape[-1] ** 0.5 * torch.finfo(torch.float32).eps / 2
        moved = self.vectors * (1 + unit * signs)
        spread = _apart(self.whole(self.vectors), self.whole(moved))
        size = float(self.truth[self.truth.isfinite()].abs().max())
        self.bound = TIMES * (spread + TIMES * torch.finfo(torch.float32).eps * size)

    def whole(self, vectors: Tensor) -> Tensor:
        """Log-probabilities after each vector (B, T, V), all read at once."""
        hidden = self.model.hidden_states(vectors=vectors)[:, 1:]
        return self.model.predict_after(hidden.flatten(0, 1)).log_probs.unflatten(
            0, hidden.shape[:2]
        )

    def stepwise(self, **given: Tensor) -> Tensor:
        """The same, read one by one: `token_ids` (B, T) or `vectors` (B, T, m)."""
        (name, tokens), found = next(iter(given.items())), []
        state = self.model.start(len(tokens))
        for t in range(tokens.shape[1]):
            state = self.model.advance(state, **{name: tokens[:, t]})
            found.append(self.model.predict(state).log_probs)
        return torch.stack(found, 1)

    def compare(self, found: Tensor, expected: Tensor) -> str:
        """ "✓" where two results are equal up to rounding."""
        far = _apart(found, expected)
        return "✓" if far <= self.bound else f"{far:.2g} nats"

    # -- the questions -----------------------------------------------------------------------------

    def ids_are_vectors(self) -> str:
        return self.compare(self.whole(self.vectors), self.truth)

    def mixtures(self) -> str:
        return self.compare(self.stepwise(vectors=self.mixed), self.whole(self.mixed))

    def steps(self) -> str:
        return self.compare(self.stepwise(token_ids=self.ids), self.truth)

    def batch(self) -> str:
        how = {"steps": 12, "temperature": 0.7}
        together = generate(self.model, list(PROMPTS), seed=[1, 2, 3], **how)
        alone = [generate(self.model, p, seed=i + 1, **how) for i, p in enumerate(PROMPTS)]
        same = [
            torch.equal(one.token_ids, two.token_ids)
            for one, two in zip(together, alone, strict=True)
        ]
        return "✓" if all(same) else "other symbols"

    def fork(self) -> str:
        half = LENGTH // 2
        state = self.model.read(self.model.start(2), token_ids=self.ids[:, :half])
        rows = torch.tensor([1, 0, 1])
        mine = self.model.read(state.select(rows), token_ids=self.ids[rows, half:-1])
        twin = self.model.read(state, token_ids=self.ids.flip(0)[:, half:])
        self.model.advance(
            mine, token_ids=twin.hidden.argmax(-1)[[0, 1, 0]] % self.model.vocab_size
        )
        end = self.model.advance(mine, token_ids=self.ids[rows, -1])
        return self.compare(self.model.predict(end).log_probs, self.truth[rows, -1])

    def full(self) -> str:
        context = self.model.context
        if context > CONTEXT:
            return "–"  # it has no positions
        ids = self.ids.repeat(1, 2)[:, :context]
        with torch.no_grad():
            truth = self.network(input_ids=ids).logits[:, -1].float().log_softmax(-1)
        found = self.compare(
            self.model.predict(self.model.read(self.model.start(2), ids)).log_probs, truth
        )
        generate(self.model, PROMPTS[0], CONTEXT + 8, temperature=0)
        return found

    def greedy(self) -> str:
        # a network may give the padding token, which it may draw, a position of its own
        texts = {p: generate(self.model, p, 16, temperature=0).token_ids.tolist() for p in PROMPTS}
        prompt = next((p for p, text in texts.items() if 0 not in text), None)
        if prompt is None:
            return "–"
        ids, ours = self.model.tokenizer.encode(prompt)[None], texts[prompt]
        try:
            theirs = self.network.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16
            )
        except Exception:  # some kinds have no generate() that runs
            return "–"
        if ours == theirs[0, ids.shape[1] :].tolist():
            return "✓"
        # is it the network, read whole at every step, from which its generate() departs?
        with torch.no_grad():
            for _ in range(16):
                ids = torch.cat([ids, self.network(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
        return "○" if ours == ids[0, -16:].tolist() else "another text"


COLUMNS: dict[str, Callable[[Zoo], str]] = {
    "ids = vectors": Zoo.ids_are_vectors,
    "mixtures": Zoo.mixtures,
    "steps = whole text": Zoo.steps,
    "batch = one by one": Zoo.batch,
    "forks": Zoo.fork,
    "full context": Zoo.full,
    "greedy = generate()": Zoo.greedy,
}


def measure(kind: str) -> Row:
    """What the lab makes of a kind."""
    try:
        network = network_of(kind)
    except Exception as error:  # whatever a configuration of defaults is not enough for
        return Row(kind, refused=NOT_BUILT + _line(error))
    try:
        model = Pretrained(network, letters_tokenizer(), kind)
    except ValueError as error:
        return Row(kind, refused=str(error).split(" cannot be read here: ")[-1])
    zoo = Zoo(model)
    columns = {question: _asked(ask, zoo) for question, ask in COLUMNS.items()}
    return Row(kind, str(model.plan), columns=columns)


def _apart(one: Tensor, other: Tensor) -> float:
    from softar_lab.external.pretrained.checks import apart

    return apart(one, other)


def _asked(ask: Callable[[Zoo], str], zoo: Zoo) -> str:
    try:
        return ask(zoo)
    except Exception as error:  # which is what the column tells
        return _line(error)


def _line(error: Exception) -> str:
    text = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {text:.120}"


def measured_apart(kind: str) -> Row:
    """`measure` in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            with os.fdopen(write, "w") as pipe:
                json.dump(asdict(measure(kind)), pipe)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return Row(**json.loads(text)) if text else Row(kind, refused="its process died")


# -- the table -------------------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    """The rows as Markdown, behind a line that counts them."""
    import transformers

    read = [row for row in rows if row.columns]
    exact, built = sum(row.exact for row in rows), sum(row.built for row in rows)
    head = ["kind", *COLUMNS, "how it is read"]
    lines = [
        f"transformers {transformers.__version__}: {len(rows)} kinds, {built} built, {exact} exact "
        f"in every column, {len(read) - exact} not, {built - len(read)} refused.",
        "",
        _cells(head),
        _cells(["---"] * len(head)),
        *(_cells([row.kind, *row.columns.values(), row.plan]) for row in read),
        "",
        _cells(["kind", "why it is not read"]),
        _cells(["---"] * 2),
        *(_cells([row.kind, row.refused]) for row in rows if not row.columns),
    ]
    return "\n".join(lines)


def _cells(texts: list[str]) -> str:
    return f"| {' | '.join(text.replace('|', '/') for text in texts)} |"


def known() -> dict[str, Row]:
    """The rows of the table as it was last written, by kind."""
    found = {}
    for line in DOC.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if cells[0] in ("", "kind", "---") or len(cells) < 2:
            continue
        if len(cells) == 2:
            found[cells[0]] = Row(cells[0], refused=cells[1])
        else:
            columns = dict(zip(COLUMNS, cells[1:-1], strict=True))
            found[cells[0]] = Row(cells[0], cells[-1], columns=columns)
    return found


def main(arguments: list[str]) -> None:
    """Measure the kinds that are named, or all, and write the table."""
    import transformers

    transformers.logging.set_verbosity_error()
    # what is imported now is not imported again in the process of each kind; a pass would begin
    # threads, and a process with threads must not be forked
    network_of("llama")
    rows = known() if arguments else {}
    for kind in arguments or kinds():
        row = rows[kind] = measured_apart(kind)
        good = "exact" if row.exact else row.refused or row.columns
        print(f"{kind:28} {row.plan:50} {good}", flush=True)
        _write(rows)  # so that what is done is kept


def _write(rows: dict[str, Row]) -> None:
    text = DOC.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    written = table([rows[kind] for kind in sorted(rows)])
    DOC.write_text(f"{before}{BEGIN}\n{written}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
