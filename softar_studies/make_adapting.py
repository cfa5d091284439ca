"""Measure what adapters learn of soft tokens: python -m softar_studies.make_adapting [ARM …]

Without an ARM, those of the table are measured (ten minutes on one core); those of SmolLM2 take an
hour, and must be asked for. An arm is a frozen model and what its adapters are trained on. Every
arm writes from the same openings under every feedback, and the unadapted model judges, reading
symbols. THE VERDICT'S UNIT, NAMED BEFORE THE RUN, IS NATS A TOKEN: a step of generation is a token,
and what is fed back replaces one. Bits a character stand beside it, with the characters of a token
and distinct-4, since few frequent words are cheap, too.

Training texts are drawn from the model itself at temperature 1; at a lower one the control on hard
text would sharpen the model. Adapters and finished cells are saved in runs/adapting; the table goes
to data/results/adapting.csv and .json.
"""

from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import pandas as pd
import torch

from softar_lab import SoftAR, generate, load_corpus, load_pretrained, sweep
from softar_lab.core.cells import save_results
from softar_lab.core.predictor import Predictor
from softar_lab.external.pretrained.adapt_config import AdaptConfig
from softar_lab.external.pretrained.adapting import adapt
from softar_lab.metrics.texts import distinct_n

from .make_results import ROOT
from .tables import asked_for, figures

RUNS, RESULTS = ROOT / "runs" / "adapting", ROOT / "data" / "results" / "adapting.csv"
WHO = ("A farmer", "The teacher", "My sister", "An old man")
WHERE = ("in the morning", "near the river", "on a train", "at the market")
DOES = ("said that", "looked for")
OPENINGS = [f"{who} {where} {does}" for who in WHO for where in WHERE for does in DOES]
# no word of these stands in the others
TESTS = [
    *("The captain of the ship", "Once upon a time", "Water is", "The opposite of hot"),
    *("In the year 1905", "Bread is made of", "Dear Anna,", "The cat sat on"),
    *("To learn music", "A good friend", "The largest city", "When it snows"),
]
DRAWN = 80  # tokens of a training text that SmolLM2 draws
READ = 200_000  # characters of the stories that ours is trained on


@dataclass(frozen=True)
class Base:
    """A frozen model: how its adapters are trained, and how long it writes.

    Args:
        seeds: adapters trained for each arm; each writes with a seed of its own.
        steps: of generation.
    """

    config: AdaptConfig
    seeds: int = 3
    steps: int = 48
    dtype: str = "float32"
    quantise: str | None = None


BASES = {
    "tales-hard": Base(
        AdaptConfig(steps=150, batch_size=4, window=160, learning_rate=1e-3, save_every=0),
        steps=160,
    ),
    "smollm2": Base(AdaptConfig(steps=30), seeds=1, steps=32, dtype="bfloat16"),
    "smollm2 nf4": Base(AdaptConfig(steps=30), seeds=1, steps=32, quantise="nf4"),
}
TRAINED = {
    "nothing": None,
    "hard text": {},
    "mixtures": {"soft_inputs": "scheduled(1.0)", "soft_share": 0.5},
    "gumbel": {"soft_inputs": "posterior-gumbel(0.5)", "soft_share": 0.5},
}
FEEDBACKS = {
    "hard": {"schedule": "always"},
    "mixture": {"schedule": "never", "feedback": "mixture"},
    "gumbel(0.5)": {"schedule": "never", "feedback": "gumbel(0.5)"},
    "gumbel(1.0)": {"schedule": "never", "feedback": "gumbel(1.0)"},
}
ARMS = [f"{base}, {trained}" for base in BASES for trained in TRAINED]
TABLE = [arm for arm in ARMS if arm.startswith("tales-hard")]  # what the stored table holds


def parts(arm: str) -> tuple[str, Base, dict[str, Any] | None]:
    """The name of an arm's base, the base, and what its adapters are trained on."""
    base, trained = arm.split(", ")
    return base, BASES[base], TRAINED[trained]


def recipe(arm: str, seed: int, feedback: str) -> dict[str, Any]:
    """Everything that determines a cell's rows."""
    name, base, trained = parts(arm)
    config = None if trained is None else {**asdict(replace(base.config, **trained))}
    about = {"arm": arm, "seed": seed, "feedback": feedback, "unit": "nats a token"}
    about |= {"steps": base.steps, "dtype": base.dtype, "quantise": base.quantise}
    about |= {"read": READ} if name == "tales-hard" else {"drawn": DRAWN}
    return about | {"adapt": config, "openings": len(OPENINGS), "tests": len(TESTS)}


@lru_cache(maxsize=1)
def base_model(name: str) -> Predictor:
    """The frozen model of a base."""
    if name == "tales-hard":
        return SoftAR.load(ROOT / "data" / "checkpoints" / name, "cpu")
    base = BASES[name]
    dtype = getattr(torch, base.dtype)
    return load_pretrained(device="cpu", dtype=dtype, quantise=base.quantise)


@lru_cache(maxsize=1)
def judge(name: str) -> Predictor:
    """The unadapted model, in the type in which the study writes."""
    return base_model(name) if "nf4" not in name else base_model.__wrapped__("smollm2")


def training_texts(name: str) -> list[str]:
    """What adapters are trained on: SmolLM2's own texts, or the stories that ours was trained on."""
    if name == "tales-hard":
        return documents(load_corpus("tales").train[:READ])
    frame = sweep(drawn_texts, {"tokens": [DRAWN]}, out=RUNS / "texts", progress=False)
    return list(frame["text"])


def drawn_texts(tokens: int) -> list[dict[str, str]]:
    """What SmolLM2 writes after the openings, one row per text."""
    seeds = list(range(len(OPENINGS)))
    drawn = generate(base_model("smollm2"), OPENINGS, tokens, seed=seeds, temperature=1.0)
    return [{"text": path.prompt + path.text} for path in drawn]


def documents(text: str) -> list[str]:
    """The whole stories of a text, each with its end."""
    return [f"{story}\n" for story in text.split("\n")[:-1]]


@lru_cache(maxsize=1)
def adapted(arm: str, seed: int) -> Predictor:
    """The model of an arm, trained or read from its folder."""
    name, base, trained = parts(arm)
    texts = training_texts(name)
    model = base_model(name)
    if trained is None:
        return model
    config = replace(base.config, **trained)
    out = RUNS / f"{name} {arm.split(', ')[1]} {seed}".replace(" ", "-")
    return adapt(model, texts, config, out=out, seed=seed).model


def cell(arm: str, seed: int, feedback: str) -> list[dict[str, Any]]:
    """The texts of an arm under one feedback, judged: one row."""
    name, base, _ = parts(arm)
    model = adapted(arm, seed)
    tests = TESTS if name != "tales-hard" else ["Once "] * len(TESTS)
    seeds = [1000 * seed + i for i in range(len(tests))]
    paths = generate(model, tests, base.steps, seed=seeds, temperature=1.0, **FEEDBACKS[feedback])
    texts = "".join(path.text for path in paths)
    nats = sum(float(one) for one in judged(judge(name), paths))
    tokens = sum(len(path.token_ids) for path in paths)
    return [
        {
            "nats": nats / tokens,
            "bits": nats / torch.tensor(2.0).log().item() / len(texts),
            "chars_per_token": len(texts) / tokens,
            "distinct_4": sum(distinct_n(path.text, 4) for path in paths) / len(paths),
            "sample": paths[1].text[:120],
        }
    ]


def run(base: str, trained: str, seed: int) -> list[dict[str, Any]]:
    """Train one arm with one seed; one row per feedback."""
    arm = f"{base}, {trained}"
    return [{"feedback": name, **row} for name in FEEDBACKS for row in cell(arm, seed, name)]


@torch.inference_mode()
def judged(judge: Predictor, paths: list[Any]) -> list[float]:
    """The nats of each text, read as the symbols that were written, behind its prompt."""
    found = []
    for path in paths:
        ids = judge.tokenizer.encode(path.prompt)
        whole = torch.cat([ids, path.token_ids])[None]
        found.append(-float(judge.log_probs(whole)[0, len(ids) :].sum()))
    return found


def main(arguments: list[str] | None = None) -> None:
    asked, frames = asked_for(__doc__, ARMS, "ARM", arguments), []
    for arm in asked.names or TABLE:
        name, base, _ = parts(arm)
        grid = {"base": [name], "trained": [arm.split(", ")[1]], "seed": range(base.seeds)}
        settings = {feedback: recipe(arm, 0, feedback) for feedback in FEEDBACKS}
        frames.append(figures(run, grid, RUNS, settings, asked.backend))
    if not asked.names:
        recipes = [recipe(arm, 0, feedback) for arm in TABLE for feedback in FEEDBACKS]
        keys = ["base", "trained", "feedback", "seed"]
        save_results(pd.concat(frames), recipes, RESULTS, keys)
        print(f"written: {RESULTS}")


if __name__ == "__main__":
    main()
