"""Measure what a soft chain is worth as a forecast: python -m softar_studies.make_forecast

Both chains of notebook 07 (the recipes chain-hard and chain-soft) are trained with five seeds, and
the soft one is set beside sampled hard ones. The checkpoints are seed 0. Finished seeds are saved in
runs/forecast; the same command goes on, and writes data/results/forecast.csv and .json at the end.
"""

from dataclasses import asdict

from softar_lab import CharTokenizer, SoftAR, load_corpus, load_language, train
from softar_lab.core.cells import save_results
from softar_studies.forecast import against_sampling

from .make_checkpoints import RECIPES, model_config
from .make_results import ROOT
from .tables import asked_for, figures

CELLS, RESULTS = ROOT / "runs" / "forecast", ROOT / "data" / "results" / "forecast.csv"
SEEDS, STEPS, CHAINS = 5, 12, 2048


def trained(name: str, seed: int) -> SoftAR:
    """A chain of the recipe `name`, from another seed; seed 0 is the checkpoint."""
    if not seed:
        return SoftAR.load(ROOT / "data" / "checkpoints" / name)
    recipe, corpus = RECIPES[name], load_corpus("chain")
    tokenizer = CharTokenizer.fit(corpus.train)
    model = SoftAR(model_config(recipe, tokenizer), tokenizer, seed)
    return train(model, corpus, recipe["train"], seed=seed, progress=False).model


def run(seed: int) -> list[dict]:
    """One seed: a row per k."""
    soft, hard = trained("chain-soft", seed), trained("chain-hard", seed)
    found = against_sampling(soft, hard, load_language("chain"), STEPS, CHAINS)
    untrained = against_sampling(hard, hard, load_language("chain"), STEPS, chains=2)
    found["never_met"] = untrained["soft"]
    return found.reset_index().to_dict("records")


def cell_recipe() -> dict:
    """Everything that determines a cell except its seed."""
    names = ("chain-hard", "chain-soft")
    recipes = {
        name: {**RECIPES[name]["model"], "train": asdict(RECIPES[name]["train"])} for name in names
    }
    return {"corpus": load_corpus("chain").sha256, "steps": STEPS, "chains": CHAINS, **recipes}


def main(arguments: list[str] | None = None) -> None:
    asked = asked_for(__doc__, arguments=arguments)
    frame = figures(run, {"seed": range(SEEDS)}, CELLS, cell_recipe(), asked.backend)
    save_results(frame, [cell_recipe()], RESULTS, ["seed", "k"])
    print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
