"""Train the notebooks' checkpoints: python -m softar_studies.make_checkpoints [NAME …]

Without a NAME, those that are missing are trained. Each is saved in data/checkpoints/NAME with its
card (recipe, seed, corpus hash, figures) in config.json. An interrupted run resumes where it
stopped; --again trains from the beginning.
"""

import argparse
import shutil
from pathlib import Path

from softar_lab import CharTokenizer, ModelConfig, SoftAR, TrainConfig, load_corpus, train

FOLDER = Path(__file__).parent.parent / "data" / "checkpoints"
STORY = TrainConfig(steps=600, eval_every=100)
RECIPES = {
    "tales-hard": {"corpus": "tales", "model": {"objective": "ce"}, "train": STORY},
    "tales-soft": {
        "corpus": "tales",
        "model": {"objective": "mse", "table": "random", "embedding_dim": 64},
        "train": STORY,
    },
    "tales-orthonormal": {
        "corpus": "tales",
        "model": {"objective": "mse", "table": "orthonormal"},
        "train": STORY,
    },
    "tales-words": {
        "corpus": "tales-words",
        "model": {"context": 80, "n_layers": 2},
        "train": TrainConfig(steps=2500, eval_every=500),
    },
    "tales-window": {  # the cell "sum + 2 segments" of data/results/window.csv
        "corpus": "tales",
        "model": {"context": 64, "window": "window(1, 2, 0, None, 'sum', 32)"},
        "train": TrainConfig(steps=1500, batch_size=48, eval_every=0, save_every=0),
    },
    "mess3-hard": {
        "corpus": "mess3",
        "model": {"context": 64, "n_layers": 2, "d_model": 64, "embedding_dim": 16},
        "train": TrainConfig(steps=400, batch_size=32, eval_every=100),
    },
    **{
        name: {
            "corpus": "chain",
            "model": {
                "objective": "mse",
                "table": "orthonormal",
                "context": 16,
                "n_layers": 1,
                "n_heads": 2,
                "d_model": 32,
                "embedding_dim": 32,
            },
            "train": TrainConfig(
                steps=400,
                batch_size=64,
                soft_inputs=soft,
                eval_every=0,
                save_every=0,
                precision="fp32",
            ),
        }
        for name, soft in (("chain-hard", None), ("chain-soft", "scheduled(0.9, 8)"))
    },
    "recall-hard": {
        "corpus": "recall",
        "model": {"context": 96, "n_layers": 2, "embedding_dim": 32},
        "train": TrainConfig(steps=2500, batch_size=32, eval_every=100),
    },
}


def model_config(recipe: dict, tokenizer: CharTokenizer) -> ModelConfig:
    """The config of a recipe's model."""
    if recipe["corpus"] == "tales":
        return ModelConfig.preset("tales", vocab_size=tokenizer.vocab_size, **recipe["model"])
    return ModelConfig(vocab_size=tokenizer.vocab_size, **recipe["model"])


def make(name: str, again: bool = False) -> None:
    """Train one checkpoint in a scratch folder, then save the model alone in data/checkpoints."""
    recipe = RECIPES[name]
    corpus = load_corpus(recipe["corpus"])
    tokenizer = CharTokenizer.fit(corpus.train)
    model = SoftAR(model_config(recipe, tokenizer), tokenizer)
    scratch = Path("runs") / name
    run = train(model, corpus, recipe["train"], out=scratch, resume=not again)
    if run.interrupted:
        raise SystemExit(
            f"{name}: interrupted at step {model.card['steps_done']}; the same command goes on"
        )
    model.save(FOLDER / name)
    shutil.rmtree(scratch)
    print(
        f"{name}: {run.val_bits_per_char:.4f} bits per character (floor {corpus.floor_bits_per_char:.4f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--again", action="store_true", help="train even what is there")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(RECIPES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(RECIPES)}")
    for name in arguments.names or RECIPES:
        if arguments.again or arguments.names or not (FOLDER / name / "config.json").exists():
            make(name, arguments.again)


if __name__ == "__main__":
    main()
