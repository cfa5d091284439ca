"""What CONTRIBUTING.md adds works as it stands there, in a copy of the package."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE, _ = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## How the house stands")
BLOCKS = dict(
    zip(
        re.findall(r"^## (An? .+)$", PAGE, re.M),
        re.findall(r"```python\n(.*?)```", PAGE, re.S),
        strict=True,
    )
)
MODEL = """
import torch
import softar_lab as lab
from softar_lab.data.tokenizers import CharTokenizer

def model(objective="mse"):
    tokenizer = CharTokenizer.fit("abc")
    shape = {"vocab_size": 3, "context": 16, "n_layers": 1, "n_heads": 2, "d_model": 8}
    return lab.SoftAR(lab.ModelConfig(objective=objective, **shape), tokenizer)
"""
# Where each block goes, and what must hold then.
ADDITIONS = {
    "A collapse": (
        "generation/collapse.py",
        """
path = lab.generate(model(), "", 50, collapse="sharp")
assert path.text == lab.generate(model(), "", 50, temperature=0.5).text
assert path.settings["collapse"] == "sharp"
from softar_lab.widgets import GenerationPanel
assert "sharp" in GenerationPanel(model(), "a", 3).collapse.options
""",
    ),
    "A schedule": (
        "generation/schedule.py",
        """
path = lab.generate(model(), "", 6, schedule="after(2)")
assert path.collapsed.tolist() == [False] * 2 + [True] * 4
assert lab.generate(model(), "", 2, schedule="after").settings["schedule"] == "after(8)"
from softar_lab.widgets import CollapseExplorer, GenerationPanel
assert "after" in GenerationPanel(model(), "a", 3).schedule.options
assert "after" in CollapseExplorer(model(), "a", 3).settings[0].schedule.options
""",
    ),
    "An objective": (
        "models/objectives/regressions.py",
        """
one = model("huber(0.5)")
assert one.config.objective == "huber(0.5)"
output, ids = torch.ones(2, 8), torch.tensor([0, 2])
losses = one.objective.losses(output, ids, one.embedding, None)
gap = (output - one.embedding[ids]).abs()
expected = torch.where(gap < 0.5, gap.square() / 2, 0.5 * (gap - 0.25)).sum(-1)
torch.testing.assert_close(losses, expected)
assert len(lab.generate(one, "a", 4, schedule="never").text) == 4
""",
    ),
    "A control in a panel": (
        "widgets/__init__.py",
        """
from softar_lab.widgets import CollapseExplorer, GenerationPanel
panel = GenerationPanel(model(), "a", 12)
before = repr(panel)
assert "soft_temperature" not in before
panel.schedule.value, panel.soft_temperature.value = "never", 0
panel.generate()
assert "schedule=never, soft_temperature=0 wrote" in repr(panel)
assert panel.trajectory.settings["soft_temperature"] == 0
assert CollapseExplorer(model(), "a", 3).settings[0].soft_temperature.value is None
""",
    ),
}


def test_every_addition_is_tried():
    assert list(BLOCKS) == list(ADDITIONS)


def in_its_module(block: str, file: str) -> str:
    """A block of the page, without what it imports of the module it is put into."""
    room, module = f"softar_lab.{file[:-3].replace('/', '.')}".rsplit(".", 1)
    block = re.sub(rf"^from {room}(\.{module})? import .*\n", "", block, flags=re.M)
    return re.sub(rf"\b{module}\.(register|Schedule)\b", r"\1", block)


@pytest.mark.slow
def test_additions_work_in_a_copy_of_the_package(tmp_path):
    package = tmp_path / "softar_lab"
    shutil.copytree(ROOT / "softar_lab", package, ignore=shutil.ignore_patterns("__pycache__"))
    script = MODEL
    for what, (file, then) in ADDITIONS.items():
        with (package / file).open("a", encoding="utf-8") as target:
            target.write("\n\n" + in_its_module(BLOCKS[what], file))
        script += then
    (tmp_path / "then.py").write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "then.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
