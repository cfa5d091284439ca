"""The house of DESIGN.md stands: every module imports only from the rows above its own."""

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "softar_lab"

# A name is a module or a whole package; within one package modules may import each other.
ROWS = (
    {"registry", "estimates", "evidence", "predictor", "store", "threads"},
    {"sources"},
    {"models"},
    {"evaluation", "resuming", "soft_inputs"},
    {"batches"},
    {"training"},
    {"fitting"},
    {"adapters"},
    {"generation"},
    {"analysis"},
    {"plots"},
    {"widgets"},
    {"__init__"},
)
ROW = {name: i for i, row in enumerate(ROWS) for name in row}

# Who alone may import these. evidence.setup() sets matplotlib's rcParams; it draws nothing.
FENCED = {
    "matplotlib": {"plots", "evidence"},
    "plotly": {"plots"},
    "ipywidgets": {"widgets"},
    "anywidget": {"widgets"},
}


def imports(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import in a file, however deep; relative ones made absolute."""
    here = ".".join([package.name, *path.relative_to(package).parent.parts])  # softar_lab.models
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), here)
            for alias in node.names:  # `from softar_lab import store` means softar_lab.store
                yield node.lineno, f"{base}.{alias.name}" if base == package.name else base


def violations(package: Path) -> list[str]:
    """One message `file:line: what is wrong` for each import that the house forbids."""
    found = []
    for path in sorted(package.rglob("*.py")):
        where = path.relative_to(package.parent).as_posix()
        unit = path.relative_to(package).parts[0].removesuffix(".py")
        if unit not in ROW:
            found.append(f"{where}:1: {unit} has no row in the house; give it one in ROWS")
            continue
        for line, name in imports(path, package):
            top, _, rest = name.partition(".")
            if unit not in FENCED.get(top, {unit}):
                found.append(f"{where}:{line}: imports {name}, which only {sorted(FENCED[top])} may")
            if top != package.name:
                continue
            target = rest.split(".")[0]
            target = target if target in ROW else "__init__"  # a name the package itself exports
            if target != unit and ROW[target] >= ROW[unit]:
                found.append(f"{where}:{line}: {unit} imports {name}, but {target} is in no row above it")
    return found


def test_house_stands():
    assert not violations(PACKAGE), "\n" + "\n".join(violations(PACKAGE))


def test_fast_mode_is_read_by_evidence_alone():
    def mentions(path: Path) -> bool:
        return any(
            isinstance(node, ast.Constant) and node.value == "SOFTAR_FAST"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )

    assert [path.name for path in sorted(PACKAGE.rglob("*.py")) if mentions(path)] == ["evidence.py"]


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("store.py", "import softar_lab.models.config", ":1: store imports softar_lab.models.config"),
        ("store.py", "from softar_lab import evidence", "evidence is in no row above it"),
        ("models/config.py", "\nfrom ..training import train", ":2: models imports softar_lab.training"),
        ("models/config.py", "from .. import plots", "models imports softar_lab.plots"),
        ("models/__init__.py", "from ..widgets import Panel", "models imports softar_lab.widgets"),
        ("training.py", "def late():\n    from .generation.loop import generate", ":2: training imports"),
        ("analysis/metrics.py", "from softar_lab import SoftAR", "but __init__ is in no row above it"),
        ("analysis/metrics.py", "import matplotlib.pyplot as plt", "imports matplotlib.pyplot, which only"),
        ("evidence.py", "import plotly", "imports plotly, which only ['plots'] may"),
        ("plots.py", "from ipywidgets import Button", "imports ipywidgets, which only ['widgets'] may"),
        ("utils.py", "", "utils has no row in the house"),
    ],
)
def test_violation_is_caught(tmp_path, file, source, complaint):
    path = tmp_path / "softar_lab" / file
    path.parent.mkdir(parents=True)
    path.write_text(source, encoding="utf-8")
    (message,) = violations(tmp_path / "softar_lab")
    assert message.startswith(f"softar_lab/{file}:")
    assert complaint in message


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("__init__.py", "from .widgets import Panel\nfrom softar_lab.evidence import claim"),
        ("evidence.py", "import matplotlib"),
        ("generation/loop.py", "from .collapse import nearest\nfrom ..models.config import ModelConfig"),
        ("widgets/panel.py", "import anywidget, ipywidgets\nfrom .. import plots\nfrom . import status"),
        ("plots.py", "import plotly.graph_objects\nfrom softar_lab import evidence, store"),
    ],
)
def test_good_import_passes(tmp_path, file, source):
    path = tmp_path / "softar_lab" / file
    path.parent.mkdir(parents=True)
    path.write_text(source, encoding="utf-8")
    assert violations(tmp_path / "softar_lab") == []
