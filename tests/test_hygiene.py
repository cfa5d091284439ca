"""Every notebook keeps the rules of the suite, and nbval compares verdicts while it masks
digits.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from softar_lab.evidence import MASK

ROOT = Path(__file__).parents[1]
NOTEBOOKS = [
    path
    for path in sorted(ROOT.glob("notebooks/**/*.ipynb"))
    if ".ipynb_checkpoints" not in path.parts
]

# (file name, cell id) -> why this one cell may be skipped, left uncompared, or raise.
ALLOWED: dict[tuple[str, str], str] = {}

MARKERS = re.compile(r"^\s*#\s*(NBVAL_|PYTEST_VALIDATE)\w+", re.M)
MARKER_TAGS = {"nbval-ignore-output", "nbval-skip", "nbval-raises-exception", "raises-exception"}
MARKER_TAGS |= {"pytest-validate-ignore-output", "skip-execution"}
EVIDENCE = re.compile(r"^[^#\n]*\b(claim|measured)\(", re.M)
NO_EVIDENCE = re.compile(
    r"(Setup|Try it|What we learned|Exercises|Next)\b", re.I
)  # sections that prove nothing new
PROMISE = re.compile(r"^\*You will see .+ · Needs .+ · Runs in .+ s\*$", re.M)
FIGURE = re.compile(r"\d+\.\d+(?:e[-+]\d+)?|\d+e[-+]\d+")
BESIDE_A_MASK = re.compile(r"\S*(\s\s+|\t)⟨|⟩( \s+|\t)\S+")
# An absolute path, of any machine: /one/two at the start of a word, C:\Users, file://
MACHINE_PATH = re.compile(
    r"(?<![\w./:<*~)\]}>-])/\w[\w.-]*/\w[\w./-]*|\b[A-Z]:\\+Users\\|\bfile://"
)


def broken_rules(nb, name: str, size: int = 0, solution: bool = False) -> list[str]:
    """All that is wrong with a notebook: `name: rule: what, where`. size: of its file, in bytes."""
    found = [
        *_format(nb),
        *_execution(nb),
        *_markers(nb, name),
        *_evidence(nb),
        *_masks(nb),
        *_sizes(nb, size),
        *_paths(nb),
    ]
    return [f"{name}: {message}" for message in found + list(_headings(nb, solution))]


def _code(nb) -> list[tuple[int, nbformat.NotebookNode]]:
    return [(i, cell) for i, cell in enumerate(nb.cells) if cell.cell_type == "code"]


def _format(nb) -> Iterator[str]:
    if (nb.nbformat, nb.nbformat_minor) < (4, 5):
        yield "format: older than 4.5, so its cells have no ids"
    ids = [cell.get("id") for cell in nb.cells]
    if None in ids or len(set(ids)) < len(ids):
        yield "format: a cell's id is missing or there twice"
    else:
        try:
            nbformat.validate(nb)  # would itself invent the ids that are missing
        except nbformat.ValidationError as error:
            yield f"format: {error.message}"
    if nb.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "kernelspec: must be python3"


def _execution(nb) -> Iterator[str]:
    counts = [cell.get("execution_count") for _, cell in _code(nb)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"counts: not executed 1…n on a fresh kernel: {counts}"
    for i, cell in _code(nb):
        for output in cell.get("outputs", []):
            if output.output_type == "error" or output.get("name") == "stderr":
                yield f"output: cell {i} holds {output.get('ename', 'stderr')}"
        shown = "".join(output.get("text", "") for output in cell.get("outputs", []))
        if EVIDENCE.search(cell.source) and not re.search("^✓ ", shown, re.M):
            yield f"compared: cell {i} claims something, but no verdict is stored to compare with"


def _markers(nb, name: str) -> Iterator[str]:
    for i, cell in _code(nb):
        marked = MARKERS.search(cell.source) or MARKER_TAGS & set(cell.metadata.get("tags", []))
        if marked and (name, cell.get("id")) not in ALLOWED:
            yield f"marker: cell {i} is skipped, uncompared or raises, and ALLOWED gives no reason"


def _evidence(nb) -> Iterator[str]:
    """Every `## section` that holds code holds a claim; what stands before the first is set-up."""
    sections: list[tuple[str, list[str]]] = []
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            sections += [(heading, []) for heading in re.findall(r"^## +(.+)$", cell.source, re.M)]
        elif sections and cell.cell_type == "code":
            sections[-1][1].append(cell.source)
    for heading, sources in sections:
        if sources and not NO_EVIDENCE.match(heading) and not EVIDENCE.search("\n".join(sources)):
            yield f"evidence: nothing is claimed or measured under {heading!r}"


def _masks(nb) -> Iterator[str]:
    """Nothing that nbval compares may depend on figures: neither a digit nor the spaces around
    it.
    """
    typed = "\n".join(cell.source for _, cell in _code(nb))
    for i, cell in _code(nb):
        if re.search("[⟨⟩]", cell.source):
            yield f"mask: cell {i} writes ⟨…⟩ itself; lab.masked does"
        if unseen := _tables_nobody_sees(cell.source):
            yield f"table: cell {i} makes a table and does not show it: {unseen[0]}"
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if not data.get("text/html", "").startswith(
                "<table>\n<thead>"
            ):  # lab.table has widths of its own
                text = output.get("text", "") + data.get("text/plain", "")
                if match := BESIDE_A_MASK.search(text):
                    yield f"layout: cell {i} pads a figure outside its mask: {match.group()!r}"
            free = re.sub(r"\(expected .*\)$", "", MASK.sub("", output.get("text", "")), flags=re.M)
            # a number that a cell's last line left there; a panel's text has numbers of its own
            if FIGURE.fullmatch(bare := data.get("text/plain", "").strip(" -\n")):
                free += bare
            if untyped := [figure for figure in FIGURE.findall(free) if figure not in typed]:
                yield f"figure: cell {i} prints {untyped[0]}, which nobody typed, outside ⟨…⟩"


def _tables_nobody_sees(source: str) -> list[str]:
    """Calls of lab.table before the last line of a cell, which alone is shown."""
    earlier = ast.parse(source).body[:-1]
    calls = (ast.unparse(line.value) for line in earlier if isinstance(line, ast.Expr))
    return [call for call in calls if call.startswith("lab.table(")]


def _sizes(nb, size: int) -> Iterator[str]:
    if size > 300_000:
        yield f"size: {size // 1000} KB, more than 300"
    for n, (i, cell) in enumerate(_code(nb)):
        lines = cell.source.splitlines()
        if len(lines) > (12 if n == 0 else 15):
            yield f"lines: {'the set-up' if n == 0 else 'a'} cell, number {i}, has {len(lines)} lines"
        if wide := [line for line in lines if len(line) > 79]:
            yield f"columns: cell {i} is wider than 79: {wide[0]!r}"


def _paths(nb) -> Iterator[str]:
    for i, cell in enumerate(nb.cells):
        texts = [cell.source]
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            texts += [
                output.get("text", ""),
                *(str(v) for kind, v in data.items() if kind.startswith("text/")),
            ]
        for match in filter(None, map(MACHINE_PATH.search, texts)):
            yield f"path: cell {i} holds {match.group()!r}, a place on one machine"


def _headings(nb, solution: bool) -> Iterator[str]:
    first = nb.cells[0] if nb.cells else new_code_cell()
    title = first.source.split("\n")[0] if first.cell_type == "markdown" else ""
    if not title.startswith("# "):
        yield "title: the first cell must begin with a title"
    elif not solution:
        if not title.rstrip().endswith("?"):
            yield f"title: {title!r} asks no question"
        if not PROMISE.search(first.source):
            yield "promise: under the title belongs *You will see … · Needs … · Runs in … s*"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_rules(path):
    nb = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    assert not (
        found := broken_rules(nb, path.name, path.stat().st_size, "solutions" in path.parts)
    ), "\n".join(found)


def test_allow_list_names_only_cells_that_exist():
    cells = {
        (path.name, cell.get("id")) for path in NOTEBOOKS for cell in nbformat.read(path, 4).cells
    }
    assert set(ALLOWED) <= cells
    assert all(ALLOWED.values())


def good_notebook():
    """The smallest notebook that keeps every rule."""
    verdict = [new_output("stream", name="stdout", text="✓ sums add up\n")]
    nb = new_notebook(
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        }
    )
    nb.cells = [
        new_markdown_cell(
            "# Do sums add up?\n\n*You will see a sum · Needs nothing · Runs in 1 s*"
        ),
        new_code_cell("import softar_lab as lab\nlab.evidence.setup()", execution_count=1),
        new_markdown_cell("## A sum and/or a ratio 1 / 2 (see https://example.org/a/b, ../data/x)"),
        new_code_cell('lab.claim("sums add up", 1 + 1 == 2)', execution_count=2, outputs=verdict),
        new_markdown_cell("## Try it"),
        new_code_cell("1", execution_count=3),
    ]
    return nb


def test_good_notebook_breaks_no_rule():
    assert broken_rules(good_notebook(), "good.ipynb") == []


def _edit(cell: int, **changes):
    return lambda nb: nb.cells[cell].update(changes)


def _output(**output):
    return _edit(5, outputs=[nbformat.from_dict(output)])


@pytest.mark.parametrize(
    ("rule", "spoil"),
    [
        ("format", lambda nb: nb.update(nbformat_minor=4)),
        ("format", _edit(1, id="not an id")),
        ("format", lambda nb: nb.cells[1].pop("id")),
        ("format", lambda nb: nb.cells[1].update(id=nb.cells[0].id)),
        ("kernelspec", lambda nb: nb.metadata.kernelspec.update(name="venv")),
        ("counts", _edit(3, execution_count=None)),
        ("counts", _edit(5, execution_count=7)),
        ("output", _output(output_type="error", ename="ValueError", evalue="no", traceback=[])),
        ("output", _output(output_type="stream", name="stderr", text="Warning")),
        ("compared", _edit(3, outputs=[])),
        ("marker", _edit(3, metadata=nbformat.from_dict({"tags": ["nbval-skip"]}))),
        ("marker", _edit(5, source="# NBVAL_IGNORE_OUTPUT\n1")),
        ("evidence", _edit(3, source="# claim(\n1 + 1")),
        ("evidence", _edit(4, source="## Another sum")),
        ("mask", _edit(5, source='print(f"⟨{1 / 3}⟩")')),
        ("table", _edit(5, source="lab.table(frame)\nlab.claim('shown', True)")),
        ("layout", _output(output_type="stream", name="stdout", text="loss   ⟨0.5⟩")),
        ("layout", _output(output_type="stream", name="stdout", text="⟨0.5⟩  loss")),
        (
            "layout",
            _output(output_type="display_data", metadata={}, data={"text/plain": "x\t⟨0.5⟩"}),
        ),
        (
            "figure",
            _output(
                output_type="stream",
                name="stdout",
                text="✓ loss ⟨0.5⟩, or 0.125 (expected 0.5 ± 1)",
            ),
        ),
        ("figure", _output(output_type="stream", name="stdout", text="1e-05 is left")),
        (
            "figure",
            _output(
                output_type="execute_result",
                execution_count=3,
                metadata={},
                data={"text/plain": "-0.49384853"},
            ),
        ),
        ("lines", _edit(1, source="\n".join("1" * 13))),
        ("lines", _edit(5, source="\n".join("1" * 16))),
        ("columns", _edit(5, source="1" * 80)),
        ("path", _edit(5, source="open('/somewhere/else/x')")),
        ("path", _output(output_type="stream", name="stdout", text="saved to /somewhere/else")),
        (
            "path",
            _output(
                output_type="display_data", metadata={}, data={"text/html": "<b>C:\\Users\\me</b>"}
            ),
        ),
        ("title", _edit(0, source="# Sums\n\n*You will see a sum · Needs nothing · Runs in 1 s*")),
        ("title", lambda nb: nb.cells.pop(0)),
        ("promise", _edit(0, source="# Do sums add up?")),
    ],
)
def test_broken_notebook_is_caught(rule, spoil):
    nb = good_notebook()
    spoil(nb)
    found = broken_rules(nb, "bad.ipynb")
    assert any(message.startswith(f"bad.ipynb: {rule}: ") for message in found), found


def test_large_file_is_caught():
    assert broken_rules(good_notebook(), "bad.ipynb", size=300_001) == [
        "bad.ipynb: size: 300 KB, more than 300"
    ]


def test_marker_with_a_reason_is_allowed(monkeypatch):
    nb = good_notebook()
    nb.cells[5].metadata["tags"] = ["nbval-ignore-output"]
    monkeypatch.setitem(ALLOWED, ("good.ipynb", nb.cells[5].id), "it shows the time of day")
    assert broken_rules(nb, "good.ipynb") == []


@pytest.mark.slow
def test_nbval_masks_digits_and_compares_verdicts(tmp_path):
    """Outputs stored by another processor: only digits inside ⟨…⟩ may differ, wherever they
    stand.
    """
    shown = 'show(f"<td>{a}</td>", f"{a} exact")'
    cells = {  # name: (source, what is stored: stdout or (html, text), whether nbval shall pass it)
        "digits in a stream": (
            "print('✓ x ⟨1.5⟩ (expected 1 ± 1)')",
            "✓ x ⟨1.25⟩ (expected 1 ± 1)\n",
            True,
        ),
        "verdict in a stream": (
            "print('✗ x ⟨1.5⟩ (expected 1 ± 1)')",
            "✓ x ⟨1.5⟩ (expected 1 ± 1)\n",
            False,
        ),
        "digits outside": (
            "print('✓ x ⟨1.5⟩ (expected 2 ± 1)')",
            "✓ x ⟨1.5⟩ (expected 1 ± 1)\n",
            False,
        ),
        "digits in text and html": (
            f"a = '⟨1.5⟩'; {shown}",
            ("<td>⟨1.25⟩</td>", "⟨1.25⟩ exact"),
            True,
        ),
        "html differs": (f"a = '2'; {shown}", ("<td>3</td>", "2 exact"), False),
        "text differs": (f"a = '2'; {shown}", ("<td>2</td>", "3 exact"), False),
        "a warning": (
            "import warnings; warnings.warn('!', stacklevel=1)\nprint('✓')",
            "✓\n",
            False,
        ),
    }
    show = (
        "from IPython.display import display\n"
        "def show(html, text):\n    display({'text/html': html, 'text/plain': text}, raw=True)"
    )
    nb = good_notebook()
    nb.cells = [new_code_cell(show, execution_count=1)]
    for count, (source, stored, _) in enumerate(cells.values(), 2):
        if isinstance(stored, str):
            output = new_output("stream", name="stdout", text=stored)
        else:
            output = new_output(
                "display_data", data={"text/html": stored[0], "text/plain": stored[1]}
            )
        nb.cells.append(new_code_cell(source, execution_count=count, outputs=[output]))
    nbformat.write(nb, tmp_path / "other.ipynb")

    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        str(ROOT),
    ]
    command += ["-p", "conftest", "-p", "no:cacheprovider", "-v", str(tmp_path / "other.ipynb")]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900).stdout
    verdicts = dict(re.findall(r"::Cell (\d+) (PASSED|FAILED)", output))
    expected = {
        str(i): "PASSED" if ok else "FAILED" for i, (_, _, ok) in enumerate(cells.values(), 1)
    }
    assert verdicts == {"0": "PASSED"} | expected, output


def test_git_never_changes_the_line_ends_of_data(tmp_path):
    """Cloned with core.autocrlf=true, as on Windows, checkpoints are what their hashes say."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    files = [str(path.relative_to(ROOT)) for path in (ROOT / "data").rglob("*") if path.is_file()]
    command = ["git", "-C", str(ROOT), "check-attr", "text", "--", *files]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(found) == len(files) > 10
    assert {line.rpartition(" ")[2] for line in found} == {"unset"}
