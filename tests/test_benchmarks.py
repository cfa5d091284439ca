"""The benchmarks run, score as the lab scores and count fairly. Nothing here is timed."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from softar_lab.models import compiled
from softar_lab.models.objectives import OBJECTIVES
from softar_lab.models.scoring import evaluate

FOLDER = Path(__file__).parent.parent / "benchmarks"
PEER = "Hugging Face GPT-2"
STAND_IN = '''
"""Stands in for nanoGPT's model.py: the same names, one matrix."""
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        print("number of parameters")
        self.next = nn.Embedding(config.vocab_size, config.vocab_size)

    def forward(self, idx, targets):
        logits = self.next(idx)
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))

    def generate(self, idx, max_new_tokens):
        for _ in range(max_new_tokens):
            idx = torch.cat([idx, self.next(idx[:, -1]).softmax(-1).multinomial(1)], 1)
        return idx
'''


@pytest.fixture
def script(monkeypatch):
    """A factory of the benchmarks' scripts, imported from their files:
    script("training").main([...]).
    """
    monkeypatch.syspath_prepend(str(FOLDER))  # as for `python benchmarks/training.py`

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def stand_in(tmp_path):
    """A folder such as a clone of nanoGPT."""
    (tmp_path / "model.py").write_text(STAND_IN)
    return tmp_path


def without_transformers(monkeypatch, module: ModuleType) -> None:
    monkeypatch.setattr(module, "has_transformers", lambda: False)


def rows_of(table: str) -> list[list[str]]:
    """The body of the markdown table in what a script printed."""
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in lines}) == 1, table
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


@pytest.mark.slow
def test_training_runs_side_by_side(script, stand_in, tmp_path, monkeypatch, capsys):
    training, kept = script("training"), tmp_path / "kept.json"
    without_transformers(monkeypatch, training)
    training.main(
        [
            "--quick",
            "--rounds",
            "2",
            "--corpus",
            "topics",
            "--nanogpt",
            str(stand_in),
            "--json",
            str(kept),
        ]
    )
    printed = capsys.readouterr().out
    assert "transformers is not installed" in printed
    assert [row[0] for row in rows_of(printed)] == ["ours", "nanoGPT"]
    assert all(float(row[3]) < 6 for row in rows_of(printed)), "nats per character"
    rounds = json.loads(kept.read_text())["rounds"]
    assert [len(entry["history"]) for entries in rounds for entry in entries] == [2, 2, 2, 2]
    assert rounds[0][1]["nats"] != rounds[1][1]["nats"], "another round, another seed"


def test_generation_runs_in_turns(script, stand_in, monkeypatch, capsys):
    generation = script("generation")
    without_transformers(monkeypatch, generation)
    generation.main(["--quick", "--nanogpt", str(stand_in)])
    rows = rows_of(capsys.readouterr().out)
    names = ["ours, hard", "ours, soft mixture", "ours, soft raw", "nanoGPT"]
    assert [row[:2] for row in rows] == [[name, batch] for batch in ("1", "2") for name in names]
    assert [row[4] for row in rows if row[0] == "ours, hard"] == ["1.00", "1.00"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # transformers' own
@pytest.mark.parametrize("name", ["training", "generation"])
def test_hugging_face_takes_part(script, name, capsys):
    pytest.importorskip("transformers", reason="the peer is not installed: make bench installs it")
    script(name).main(["--quick", *(["--corpus", "topics"] if name == "training" else [])])
    assert PEER in [row[0] for row in rows_of(capsys.readouterr().out)]


@pytest.mark.slow
def test_attention_shows_every_length(script, capsys):
    script("attention").main(["--quick"])
    passes = [row[0] for row in rows_of(capsys.readouterr().out)]
    assert passes == [
        f"{length}, {name}" for length in (65, 257, 401) for name in ("forward", "backward", "both")
    ]


@pytest.mark.slow
def test_busy_measures_beside_other_processes_and_ends_them(script, capsys, monkeypatch):
    busy, started = script("busy"), []
    popen = busy.subprocess.Popen
    monkeypatch.setattr(
        busy.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )
    busy.main(["--quick", "--only", "1 rows, hard"])
    table = capsys.readouterr().out
    assert [line.split(" | ")[:2] for line in table.splitlines()[3:5]] == [
        ["| 1 rows, hard", "0"],
        ["| 1 rows, hard", "1"],
    ]
    assert len(started) >= 2  # the worker and one busy process
    assert all(process.poll() is not None for process in started)


def test_objectives_take_turns_beside_the_hard_one(script, tmp_path, capsys):
    objectives, kept = script("objectives"), tmp_path / "kept.json"
    objectives.main(["--quick", "--corpus", "topics", "--json", str(kept)])
    rows = {row[0]: row[1:] for row in rows_of(capsys.readouterr().out)}
    soft = [f"{name}, {how}" for name in ("ce", "mse") for how in ("scheduled", "posterior-gumbel")]
    assert list(rows) == [*OBJECTIVES.names(), *soft]
    assert rows["ce"][1:3] == ["1.00", "1.00 – 1.00"]
    assert rows["ce"][4] == "1.00"
    assert all(1.2 < float(rows[name][4]) < 1.5 for name in soft), "one more pass forward"
    assert [len(result["seconds"]) for result in json.loads(kept.read_text())["results"]] == [
        2
    ] * len(rows)


def test_objectives_compare_within_a_round(script):
    """The machine is ten times as slow in the second round: no ratio shows it."""
    times = {"ce": [1.0, 10.0, 1.0], "mse": [2.0, 20.0, 3.0]}
    results = [
        {"contestant": name, "multiply_adds": 10**6, "seconds": each}
        for name, each in times.items()
    ]
    _, mse = rows_of(script("objectives").table(results))
    assert mse == ["mse", "3000.0", "2.00", "2.00 – 2.50", "1", "1.00"]


def test_cutting_compares_units_with_the_library(script, capsys):
    script("cutting").main(["--quick", "--corpus", "topics"])
    rows = rows_of(capsys.readouterr().out)
    made = [f"{kind}, {size} tokens" for size in (256, 1024) for kind in ("BPE", "growing")]
    assert [row[0] for row in rows] == ["characters", *made]
    assert all(float(row[3]) > 0 for row in rows[1:])


@pytest.mark.slow
def test_drafts_are_measured_beside_plain_generation(script, capsys, tmp_path):
    if not compiled.prepare():
        pytest.skip("this machine compiles nothing")
    script("drafting").main(["--quick", "--json", str(tmp_path / "kept.json")])
    assert "| 16 |" in capsys.readouterr().out
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert len(kept["rows"][0]) == len(kept["header"])


def test_windows_take_turns_behind_two_lengths(script, capsys):
    script("window").main(["--quick"])
    rows = rows_of(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["sum", "ema", "rotated", "bound", "gist", "plain attention"]
    assert all(row[5] == row[6] for row in rows[:-1])  # what is kept is the same behind both
    assert rows[-1][5] != rows[-1][6]


def test_store_compares_every_content_and_contestant(script, tmp_path, capsys):
    script("store").main(
        ["--quick", "--folder", str(tmp_path), "--json", str(tmp_path / "kept.json")]
    )
    rows = rows_of(capsys.readouterr().out)
    contents = ("1,000 × 64", "list of 100 × 64", "trajectory of 200")
    names = (
        "ours",
        "ours, verify=False",
        "torch",
        "torch, flushed, mmap",
        "numpy",
        "numpy, flushed, mmap",
    )
    whole = (names, names, (*names[:1], *names[2:5], "numpy, flushed"))
    expected = [
        f"{content}, {name}" for content, present in zip(contents, whole) for name in present
    ]
    assert [row[0] for row in rows] == expected
    assert {row[2] for row in rows if row[0].endswith(", ours")} == {"1.00"}
    kept = json.loads((tmp_path / "kept.json").read_text())["results"]
    assert {
        len(spent)
        for taken in kept.values()
        for times in taken.values()
        for spent in times.values()
    } == {0, 2}
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"], "it cleans up"


def test_store_notices_a_contestant_that_is_not_exact(script, tmp_path):
    store = script("store")
    good, *_ = store.keepers_of(torch.ones(3, 4))
    rounding = good._replace(name="rounding", load=lambda path: good.load(path) + 1e-6)
    content = store.Content("x", [good, rounding], lambda x: x[0], lambda x: [x])
    with pytest.raises(AssertionError, match="not all loaded the same"):
        store.contest(content, 1, tmp_path)


def test_nanogpt_missing_is_reported(script, tmp_path):
    with pytest.raises(SystemExit, match="git clone"):
        script("generation").main(["--quick", "--nanogpt", str(tmp_path / "nowhere")])


def test_whole_split_scores_as_the_lab_does(script, tiny):
    """The peers' scorer, given our model's probabilities, says what softar_lab.evaluate says."""
    training = script("training")
    model = tiny(context=training.CONTEXT)
    text = "abcdefghijk \n" * 400 + "abc"  # the last window is short

    def loss(x, y):
        rows = torch.cat([x, y[:, -1:]], 1)
        return -model.log_probs(rows)[:, 1:].mean()

    assert training.whole_split(loss, model.tokenizer.encode(text)) == pytest.approx(
        evaluate(model, text), abs=1e-5
    )


def test_reached_interpolates(script):
    reached = script("training").reached
    history = [(10.0, 2.1), (20.0, 1.9), (30.0, 1.7)]
    assert reached(history, 2.0) == pytest.approx(15)
    assert reached(history, 1.9) == pytest.approx(20)
    assert reached(history, 2.5) == 10, "before the first evaluation nothing is known"
    assert reached(history, 1.6) is None


def test_rate_is_nanogpts(script):
    rate = script("training").rate
    assert rate(0, 2000) == pytest.approx(1e-3 / 101)
    assert rate(100, 2000) == pytest.approx(1e-3)
    assert rate(1050, 2000) == pytest.approx(5.5e-4)
    assert rate(2000, 2000) == pytest.approx(1e-4)


def test_a_target_never_reached_is_a_bound(script):
    training = script("training")
    ours = [(1.0, 2.0), (2.0, 1.8)]
    entries = [
        training.row("ours", 1, ours, ours),
        training.row("peer", 1, [(8.0, 2.2), (12.0, 1.89)], ours),
    ]
    _, peer = rows_of(training.table([entries]))
    assert peer[4:] == ["11.9", "never in 1 of 1", "7.91", "≥ 7.50", "7.74"]


@pytest.mark.slow
def test_weights_take_turns_with_the_library(script, capsys):
    pytest.importorskip("transformers", reason="it reads pretrained models")
    weights = script("weights")
    weights.main(["--quick"])
    tables = capsys.readouterr().out.split("\n\n")
    speed, *lost = [rows_of(one) for one in tables if one.strip().startswith("|")]
    kinds = ("float32", "bfloat16", "int8", "int4")
    assert [row[0] for row in speed] == [
        weights.LIBRARY,
        *(f"{kind}, {rows} rows" for kind in kinds for rows in (1, weights.BATCH)),
    ]
    assert speed[0][2] == "1.00"
    assert [[row[0] for row in rows] for rows in lost] == [list(kinds[1:])] * 2


def test_memory_searches_beside_the_bare_product(script, capsys):
    script("memory").main(["--quick"])
    names = [row[0] for row in rows_of(capsys.readouterr().out)]
    for who in ("ours", "the product", "reading once"):
        assert {f"100 queries, {who}", f"1 queries, {who}"} <= set(names)
