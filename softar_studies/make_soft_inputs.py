"""Measure soft tokens in training on stories: python -m softar_studies.make_soft_inputs [SEED …]

Without a SEED, all are measured. Each model is trained on `tales` with as many multiply-adds as the
plain model of its objective. Then it writes with hard tokens, with its own mixtures and with
Gumbel-soft tokens. The checkpoint tales-hard judges the texts. Finished cells are saved in
runs/soft_inputs. A run without a SEED writes data/results/soft_inputs.csv and .json at the end.
"""

import re
from dataclasses import replace

from softar_lab import CharTokenizer, SoftAR, generate, load_corpus, train
from softar_lab.core.cells import save_results
from softar_lab.metrics.distributions import distinct_n, judge
from softar_lab.models import objectives
from softar_lab.training.data import TrainingRows
from softar_studies.objectives_table import multiply_adds, recipe

from .make_results import BUDGETS, ROOT
from .tables import asked_for, figures

CELLS, RESULTS = ROOT / "runs" / "soft_inputs", ROOT / "data" / "results" / "soft_inputs.csv"
SEEDS = 3
# objectives and their readouts; the table is orthonormal
OBJECTIVES = {"ce": "softmax", "mse": "barycentric", "energy": "barycentric"}
HARD = "hard tokens"
SOFT = [HARD, "scheduled(share=0.5, passes=1)", "posterior-gumbel(1.0)"]
WRITE = {
    "hard": ("always", "mixture"),
    "mixture": ("never", "mixture"),
    "gumbel": ("never", "gumbel(1.0)"),
}
PROMPTS, LENGTH = 32, 240


def run(objective: str, inputs: str, seed: int) -> dict:
    """One model: its bits per character on validation text, and its texts in each mode."""
    # 1) the model
    corpus, budget = load_corpus("tales"), BUDGETS["tales"]
    tokenizer = CharTokenizer.fit(corpus.train)
    shape = budget.config(tokenizer.vocab_size, objective, "orthonormal")
    model = SoftAR(replace(shape, readout=OBJECTIVES[objective]), tokenizer, seed)
    # 2) as many steps as cost what the plain recipe costs
    plain, soft = budget.train, None if inputs == HARD else inputs
    config = replace(plain, soft_inputs=soft)
    rows = TrainingRows(model, corpus, plain, seed)
    price = multiply_adds(model, rows, config) / multiply_adds(model, rows, plain)
    config = replace(config, steps=round(plain.steps / price))
    # 3) train, and score whole documents of validation text
    end = corpus.val.index("\n", budget.chars) + 1
    done = train(model, replace(corpus, val=corpus.val[:end]), config, seed=seed, progress=False)
    found = {
        "corpus": "tales",
        "table": model.config.table,
        "readout": model.config.readout,
        "steps": config.steps,
        "bits": done.val_bits_per_char,
    }
    # 4) write in each mode, and judge the texts
    reader = SoftAR.load(ROOT / "data" / "checkpoints" / "tales-hard")
    words = set(re.findall(r"\w+", corpus.train))
    for name, (schedule, feedback) in WRITE.items():
        figures = _judged_texts(model, schedule, feedback, seed, reader, words)
        found |= {f"{name}_{figure}": value for figure, value in figures.items()}
    return found


def _judged_texts(
    model: SoftAR, schedule: str, feedback: str, seed: int, reader: SoftAR, words: set[str]
) -> dict[str, float]:
    """Figures of the texts that a model writes in one mode.

    Args:
        model: writes the texts.
        schedule, feedback: the mode.
        seed: of the first text.
        reader: the model whose bits are counted.
        words: the words that count as known.
    """
    seeds = range(seed, seed + PROMPTS)
    prompts = [""] * PROMPTS
    texts = generate(model, prompts, LENGTH, schedule=schedule, feedback=feedback, seed=seeds)
    written = "\n".join(path.text for path in texts)
    found = re.findall(r"\w+", written)
    return {
        "judge": float(sum(judge(path.text, reader).bits_per_char for path in texts) / PROMPTS),
        "distinct_4": distinct_n(written, 4),
        "words": sum(word in words for word in found) / max(1, len(found)),
    }


def cell_recipe() -> dict:
    """Everything that determines a cell except its objective, soft inputs and seed."""
    return {**recipe(load_corpus("tales"), BUDGETS["tales"]), "prompts": PROMPTS, "length": LENGTH}


def main(arguments: list[str] | None = None) -> None:
    asked = asked_for(__doc__, range(SEEDS), "SEED", arguments)
    grid = {"objective": list(OBJECTIVES), "inputs": SOFT, "seed": asked.names or range(SEEDS)}
    frame = figures(run, grid, CELLS, cell_recipe(), asked.backend)
    complete = {name: objectives.OBJECTIVES.complete(name, *[None] * 3) for name in OBJECTIVES}
    frame["objective"] = frame["objective"].map(complete)
    if not asked.names:
        save_results(frame.assign(problem=""), [cell_recipe()], RESULTS, list(grid))
        print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
