"""The house stands: a room imports only from floors below it, and no modules import each other in a
circle.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "softar_lab"

# A room is a module or a package; within one room modules may import each other, but never in a
# circle.
FLOORS = (
    {"core"},
    {"data"},
    {"models", "counting"},
    {"generation", "training", "metrics", "memory", "external", "sweeps"},
    {"evidence", "compare", "plots", "widgets"},
    {"__init__"},
)
FLOOR = {room: i for i, floor in enumerate(FLOORS) for room in floor}
# On the top floor a panel shows pictures, evidence and comparisons; on the fourth, adapters are
# trained with the soft inputs of training.
NEIGHBOURS = {("widgets", "plots"), ("widgets", "evidence"), ("widgets", "compare")}
NEIGHBOURS |= {("external", "training")}
# On the top floor a panel shows pictures, evidence and comparisons. Reinforcement trains on what the
# engine of generation writes.
NEIGHBOURS |= {("training", "generation")}

# Who alone may import these. evidence.setup() sets matplotlib's rcParams, and a panel brings
# plotly's figures to the browser; neither draws anything.
FENCED = {
    "matplotlib": {"plots", "evidence"},
    "plotly": {"plots", "widgets"},
    "ipywidgets": {"widgets"},
    "anywidget": {"widgets"},
}


def imports(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import in a file, however deep; relative ones made absolute."""
    here = ".".join([package.name, *path.relative_to(package).parent.parts])  # softar_lab.models
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), here)
            for alias in node.names:  # `from softar_lab import store` means softar_lab.core.store
                whole = f"{base}.{alias.name}"
                file = package.parent.joinpath(*whole.split("."))
                module = file.with_suffix(".py").exists() or file.is_dir()
                yield node.lineno, whole if module or base == package.name else base


def violations(package: Path) -> list[str]:
    """One message `file:line: what is wrong` for each import that the house forbids."""
    found = []
    for path in sorted(package.rglob("*.py")):
        where = path.relative_to(package.parent).as_posix()
        unit = path.relative_to(package).parts[0].removesuffix(".py")
        if unit not in FLOOR:
            found.append(f"{where}:1: {unit} has no floor in the house; give it one in FLOORS")
            continue
        for line, name in imports(path, package):
            top, _, rest = name.partition(".")
            if unit not in FENCED.get(top, {unit}):
                found.append(
                    f"{where}:{line}: imports {name}, which only {sorted(FENCED[top])} may"
                )
            if top != package.name:
                continue
            target = rest.split(".")[0]
            target = target if target in FLOOR else "__init__"  # a name the package itself exports
            if target != unit and FLOOR[target] >= FLOOR[unit] and (unit, target) not in NEIGHBOURS:
                found.append(
                    f"{where}:{line}: {unit} imports {name}, but {target} is on no floor below it"
                )
    return found


def test_house_stands():
    assert not violations(PACKAGE), "\n" + "\n".join(violations(PACKAGE))


def circles(package: Path) -> list[str]:
    """A circle of modules that import each other, for annotations or not; empty: there is none."""
    graph = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        name = ".".join([package.name, *parts]).removesuffix(".__init__")
        graph[name] = {target for _, target in imports(path, package)}
    for name, targets in graph.items():
        # A module in a package may import another one there, though the package imports both.
        own = {one for one in targets if name == one or name.startswith(f"{one}.")}
        graph[name] = (targets & graph.keys()) - own
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize(
    "package", [PACKAGE, PACKAGE.parent / "softar_studies"], ids=lambda path: path.name
)
def test_no_circle_of_imports(package):
    assert circles(package) == []


def test_package_never_imports_the_studies():
    found = [
        path.name
        for path in PACKAGE.rglob("*.py")
        if any("softar_studies" in name for _, name in imports(path, PACKAGE))
    ]
    assert found == []


def test_fast_mode_is_read_by_evidence_alone():
    def mentions(path: Path) -> bool:
        return any(
            isinstance(node, ast.Constant) and node.value == "SOFTAR_FAST"
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        )

    assert [path.name for path in sorted(PACKAGE.rglob("*.py")) if mentions(path)] == [
        "evidence.py"
    ]


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        (
            "core/store.py",
            "import softar_lab.models.config",
            ":1: core imports softar_lab.models.config",
        ),
        ("core/store.py", "from softar_lab import evidence", "evidence is on no floor below it"),
        (
            "models/config.py",
            "\nfrom ..training import train",
            ":2: models imports softar_lab.training",
        ),
        (
            "models/config.py",
            "from ..counting.exact import CountingModel",
            "counting is on no floor below it",
        ),
        ("plots/style.py", "from ..widgets import Panel", "widgets is on no floor below it"),
        ("models/config.py", "from .. import plots", "models imports softar_lab.plots"),
        ("models/__init__.py", "from ..widgets import Panel", "models imports softar_lab.widgets"),
        (
            "metrics/drift.py",
            "def late():\n    from ..generation.generate import generate",
            ":2: metrics imports",
        ),
        (
            "metrics/distributions.py",
            "from softar_lab import SoftAR",
            "but __init__ is on no floor below it",
        ),
        (
            "metrics/distributions.py",
            "import matplotlib.pyplot as plt",
            "imports matplotlib.pyplot, which only",
        ),
        ("evidence.py", "import plotly", "imports plotly, which only ['plots', 'widgets'] may"),
        (
            "plots.py",
            "from ipywidgets import Button",
            "imports ipywidgets, which only ['widgets'] may",
        ),
        ("utils.py", "", "utils has no floor in the house"),
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
        (
            "generation/generate.py",
            "from .collapse import nearest\nfrom ..models.config import ModelConfig",
        ),
        (
            "widgets/panel.py",
            "import anywidget, ipywidgets\nfrom .. import plots\nfrom . import status",
        ),
        ("plots.py", "import plotly.graph_objects\nfrom softar_lab.core import palette, store"),
    ],
)
def test_good_import_passes(tmp_path, file, source):
    path = tmp_path / "softar_lab" / file
    path.parent.mkdir(parents=True)
    path.write_text(source, encoding="utf-8")
    assert violations(tmp_path / "softar_lab") == []
