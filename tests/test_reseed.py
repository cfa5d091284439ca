"""tools/reseed.py: other seeds, the same languages, and claims counted by what they rest on."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import reseed

ROOT = reseed.ROOT

DRAW = """
import sys; sys.path.insert(0, "tools")
import reseed, torch, numpy as np
reseed.change_seeds(int(sys.argv[1]))
import softar_lab as lab
from softar_lab.data.languages.markov import Markov
language = Markov.random(5, seed=1)
torch.manual_seed(3)
print(torch.randn(1).item(), torch.randn(1, generator=torch.Generator().manual_seed(3)).item(),
      np.random.default_rng(3).random(), language.sample(12, seed=3).tolist(), sep="|")
print(float(language.entropy_rate()), lab.load_corpus("mess3").train[:40])
"""


def test_rounds_differ_in_chance_and_not_in_languages():
    draws, same = [], set()
    for round in ("1", "1", "2"):
        command = [sys.executable, "-c", DRAW, round]
        lines = subprocess.check_output(command, cwd=ROOT, text=True).splitlines()
        draws.append(lines[0].split("|"))
        same.add(lines[1])
    assert len(same) == 1
    assert draws[0] == draws[1]  # a round can be repeated
    assert all(one != two for one, two in zip(draws[0], draws[2], strict=True))


def test_no_two_rounds_share_streams_of_neighbouring_seeds():
    near = [{reseed.other(seed, round) for seed in range(2000)} for round in range(6)]
    assert near[0] == set(range(2000))  # round 0 changes nothing
    assert sum(map(len, near)) == len(set.union(*near))


@pytest.mark.slow
def test_a_notebook_goes_on_after_a_claim_that_fails(tmp_path):
    cells = [
        "import torch\nimport softar_lab as lab\nfrom softar_lab.evidence import claim, measured",
        "measured('a draw', torch.randn(1, generator=torch.Generator().manual_seed(0)), 0, 9)",
        "claim('never', False)\nclaim('always', True)",
        "1 / 0",
        "claim('the stored one again', True)",
    ]
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(nb, tmp_path / "small.ipynb")
    rows = []
    for round in (0, 1):
        report = tmp_path / f"{round}.jsonl"
        reseed.run(tmp_path / "small.ipynb", round, report)
        rows.append(pd.read_json(report, lines=True).assign(round=round, notebook="small"))
    later = reseed.compare(pd.concat(rows))
    assert list(later.kind) == [
        "figure that moved",
        "did not move, or is no figure",
        "did not move, or is no figure",
        "stored cell again",
        "did not move, or is no figure",
    ]
    assert list(later.holds) == [True, False, True, True, False]
    assert later.text.iloc[-1] == "cell 4: ZeroDivisionError: division by zero"
