"""Print how the house stands: floors, circles, sizes, density, and what nobody should have to ask.

usage: python tools/house.py

A syntax-tree node counts for a line of code: the fewer nodes a line holds, the easier it is to
read.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from test_floors import FLOORS, PACKAGE, circles, violations  # noqa: E402

BEGIN, END = "<!-- the house -->", "<!-- end of the house -->"  # in README.md
WIDE, LONG = 100, 40  # columns of a line, lines of a function
LOOPS = ("generation/engine.py", "training/loop.py", "models/window_memory/memories.py")
# What a newcomer reads in an afternoon; the rest serves a feature.
SPINE = (
    *("core", "data/corpora.py", "data/tokenizers/char.py", "training"),
    *(
        f"models/{name}.py"
        for name in (
            "config",
            "cache",
            "activations",
            "transformer",
            "soft_ar",
            "forward",
            "device",
            "vector_predictor",
            "state",
            "scoring",
        )
    ),
    *(f"models/{name}.py" for name in ("embedding_tables", "simplex", "nearest", "numpy_decoder")),
    *(
        "models/objectives/base.py",
        "models/objectives/likelihoods.py",
        "models/objectives/regressions.py",
    ),
    *(
        f"generation/{name}.py"
        for name in (
            "generate",
            "config",
            "engine",
            "engine_state",
            "collapse",
            "schedule",
            "feedback",
        )
    ),
    *(f"generation/{name}.py" for name in ("step_context", "run_context", "recorder", "grounding")),
)


def lines(path: Path) -> list[str]:
    """The lines of a file."""
    return path.read_text(encoding="utf-8").splitlines()


def nodes(path: Path) -> int:
    """Syntax-tree nodes of a file; operators and marks of loading and storing are part of the node
    they stand in.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    marks = (ast.expr_context, ast.operator, ast.unaryop, ast.cmpop, ast.boolop)
    return sum(not isinstance(node, marks) for node in ast.walk(tree))


def functions(path: Path) -> list[tuple[int, str]]:
    """(length, name) of each function, its docstring left out."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            doc = ast.get_docstring(node) is not None
            length = node.end_lineno - node.lineno + 1
            found.append(
                (length - (first.end_lineno - first.lineno + 1) * doc, f"{path.name}:{node.name}")
            )
    return found


def figures(files: list[Path]) -> str:
    """Lines, nodes a line, and the share of wide lines of some files."""
    every = [line for path in files for line in lines(path)]
    density = sum(map(nodes, files)) / len(every)
    wide = sum(len(line) > WIDE for line in every) / len(every)
    return (
        f"{len(every):6,} lines  {density:4.2f} nodes a line  {wide:5.1%} wider than {WIDE} columns"
    )


def comments(path: Path) -> float:
    """The share of lines that hold a comment."""
    every = [line for line in lines(path) if line.strip()]
    return sum("# " in line for line in every) / len(every)


def ideas(files: list[Path]) -> set[str]:
    """Ideas that are cited and that docs/ideas.md does not know."""
    known = set(
        re.findall(r"^\| (K\d+) ", (ROOT / "docs" / "ideas.md").read_text(encoding="utf-8"), re.M)
    )
    cited = {
        each for path in files for each in re.findall(r"\bK\d+\b", path.read_text(encoding="utf-8"))
    }
    return cited - known


def first_line(path: Path) -> str:
    """The first line of a module's docstring."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()[0]


def spine() -> list[Path]:
    """The files a newcomer reads in an afternoon."""
    return [
        path
        for name in SPINE
        for path in sorted((PACKAGE / name).rglob("*.py")) or [PACKAGE / name]
    ]


def tree() -> str:
    """The house as a list, the upper floors first, one line per file, the spine in bold."""
    bold, found = set(spine()), []
    for number, floor in reversed([*enumerate(FLOORS[:-1], 1)]):
        for room in sorted(floor):
            path = PACKAGE / room
            files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
            for file in files:
                name = file.relative_to(PACKAGE).as_posix()
                if name.endswith("__init__.py"):
                    continue
                name = f"**{name}**" if file in bold else name
                found.append(f"| {number} | {name} | {first_line(file).rstrip('.')} |")
    for file in sorted((ROOT / "softar_studies").rglob("*.py")):
        if file.name != "__init__.py":
            name = file.relative_to(ROOT).as_posix()
            found.append(f"| | {name} | {first_line(file).rstrip('.')} |")
    return "\n".join(["| floor | file | what it is |", "|---|---|---|", *found])


def with_tree(readme: str) -> str:
    """A README whose tree is that of the house as it stands."""
    begin, end = readme.index(BEGIN) + len(BEGIN), readme.index(END)
    return f"{readme[:begin]}\n\n{tree()}\n\n{readme[end:]}"


def main() -> None:
    if "--tree" in sys.argv[1:]:
        readme = ROOT / "README.md"
        readme.write_text(with_tree(readme.read_text(encoding="utf-8")), encoding="utf-8")
        return
    package, studies = (
        sorted(PACKAGE.rglob("*.py")),
        sorted((ROOT / "softar_studies").rglob("*.py")),
    )
    long = sorted(
        (one for path in package + studies for one in functions(path) if one[0] > LONG),
        reverse=True,
    )
    broken, circle = len(violations(PACKAGE)), len(circles(PACKAGE))
    print(f"floors         {len(FLOORS) - 1}, imports that break them {broken}, circles {circle}")
    print(f"softar_lab     {figures(package)}, {len(package)} files")
    print(f"  the spine    {figures(spine())}, {len(spine())} files")
    print(f"softar_studies {figures(studies)}, {len(studies)} files")
    print("comments       " + ", ".join(f"{name} {comments(PACKAGE / name):.1%}" for name in LOOPS))
    print(
        f"functions over {LONG} lines: {len(long)}  "
        + ", ".join(f"{name} {n}" for n, name in long[:15])
    )
    print(f"ideas cited and not listed: {sorted(ideas(package + studies)) or 'none'}")


if __name__ == "__main__":
    main()
