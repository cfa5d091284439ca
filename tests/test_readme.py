"""What README and CONTRIBUTING show runs as it stands there, on a text nobody saw before."""

import re
import sys
from pathlib import Path

import softar_lab as lab

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import house  # noqa: E402


def code_block(page: str) -> str:
    """The first Python block of a page."""
    return re.search(
        r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL
    ).group(1)


def test_readme_ten_lines_train_and_write(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (
        "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.\n" * 60
        + "ROMEO: ¿qué?\n" * 20
    )
    Path("unseen.txt").write_text(text, encoding="utf-8")
    code = code_block("README.md")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    for shown, here in (
        ('"shakespeare"', '"unseen.txt"'),
        ("steps=400", "steps=3"),
        ("steps=200", "steps=12"),
    ):
        assert shown in code
        code = code.replace(shown, here)
    names: dict = {}
    exec(code, names)
    assert names["run"].val_bits_per_char > 0
    assert len(names["path"].text) == 12
    assert len(capsys.readouterr().out.splitlines()) >= 2
    assert lab.SoftAR.load("runs/first").config == names["config"]


def test_the_tree_of_the_house_is_the_house():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert house.with_tree(readme) == readme, "python tools/house.py --tree"
