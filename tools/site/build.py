"""Write the suite as static pages: the notebooks as they are stored, with rivers that stay alive.

usage: python tools/site/build.py [FOLDER]     (default: site/)

Sphinx makes the pages from the notebooks' stored outputs; nothing is executed. They ask for nothing
outside their folder, so they work from a disk and under any address. A panel becomes its last
picture and a line that says what it does in the running lab. Where a river's data is stored beside
the picture, the page draws it with the lab's own river.js.
"""

import argparse
import base64
import html
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbformat.v4 import new_markdown_cell
from sphinx.cmd.build import build_main

from softar_lab import widgets
from softar_lab.widgets.panel import RIVER

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PAGES = ("CONTRIBUTING.md", "docs/models.md", "docs/serving.md", "docs/ideas.md", "docs/cluster.md")
PAGES = (*PAGES, "benchmarks/README.md", "data/README.md")
PICTURE = re.compile(r"^!\[(?P<text>[^]]*)\]\((?P<file>docs/[\w.]+\.png)\)$", re.M)  # README's own
PANEL = re.compile(rf"({'|'.join(name for name in widgets.__all__)})\(")
KEYS = "Hover over a column, click it, or walk with the arrow keys. "
FORCING = "In the running lab a click on a candidate that lost makes the model write on from it."


def toctree(caption: str, names: list[str]) -> str:
    """A list of pages for the sidebar, in MyST's Markdown."""
    entries = "\n".join(names)
    return f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"


def figure(picture: str, text: str, caption: str, river: str | None = None) -> str:
    """A picture as HTML, in whose place the page draws the river, where it has its data.

    Args:
        picture: a PNG in base64.
        text: what it shows, for those who cannot see it.
        caption: a line of HTML below it.
        river: the state of a `River` as JSON.
    """
    still = f'<img alt="{html.escape(text)}" src="data:image/png;base64,{picture.strip()}">'
    if river is None:
        return f'<figure class="panel">{still}<figcaption>{caption}</figcaption></figure>'
    safe = river.replace("</", r"<\/")  # no text of the data ends the script
    data = f'<script type="application/json">{safe}</script>'
    return (
        f'<figure class="panel"><div class="river">{still}{data}</div>'
        f"<figcaption>{KEYS}{caption}</figcaption></figure>"
    )


def panel_as_page(data: dict) -> str | None:
    """The HTML of an output that is a panel, or None where it is something else."""
    text = data.get("text/plain", "")
    match = PANEL.match(text)
    if match is None or "image/png" not in data:
        return None
    summary = getattr(widgets, match[1]).__doc__.splitlines()[0]
    described = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(summary, quote=False))
    caption = f"In the running lab this is a <code>{match[1]}</code>. {described}"
    return figure(data["image/png"], text, caption, data.get(RIVER))


def notebook_as_page(path: Path, names: list[str]) -> nbformat.NotebookNode:
    """A stored notebook with panels as HTML, its solutions below it, and links to other notebooks.

    Args:
        path: of the notebook.
        names: of all notebooks; where prose has one of them as code, it becomes a link.
    """
    nb = nbformat.read(path, as_version=4)
    known = re.compile(rf"(?<!\[)`((?:solutions/)?(?:{'|'.join(names)}))(?:\.ipynb)?`")
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = known.sub(r"[`\1`](\1.ipynb)", cell.source)
        for output in cell.get("outputs", []):
            if page := panel_as_page(output.get("data", {})):
                output.data = nbformat.from_dict({"text/html": page})
    if (path.parent / "solutions" / path.name).exists():
        nb.cells.append(new_markdown_cell(toctree("Solutions", [f"solutions/{path.stem}"])))
    return nb


def first_river(nb: nbformat.NotebookNode) -> str | None:
    """The JSON of the first river that a notebook stores, or None."""
    outputs = (output for cell in nb.cells for output in cell.get("outputs", []))
    return next(filter(None, (output.get("data", {}).get(RIVER) for output in outputs)), None)


def front_page(names: list[str]) -> str:
    """README, its picture alive where the tour stores a river, and the lists of all pages."""
    river = first_river(nbformat.read(ROOT / f"notebooks/{names[0]}.ipynb", as_version=4))

    def alive(match: re.Match) -> str:
        picture = base64.b64encode((ROOT / match["file"]).read_bytes()).decode()
        return figure(picture, match["text"], FORCING if river else "", river)

    readme = PICTURE.sub(alive, (ROOT / "README.md").read_text(encoding="utf-8"))
    more = [page.removesuffix(".md") for page in PAGES]
    notebooks = [f"notebooks/{name}" for name in names]
    return readme + toctree("Notebooks", notebooks) + toctree("More", more)


def river_script() -> str:
    """river.js and the script that starts it, as one script of the kind a page on a disk may load."""
    module = (ROOT / "softar_lab/widgets/river.js").read_text(encoding="utf-8")
    body, export, rest = module.partition("export default { render };")
    if not export or rest.strip():
        raise ValueError("river.js should end with `export default { render };`")
    host = (HERE / "host.js").read_text(encoding="utf-8")
    return f"(() => {{\n{body}\n{host}}})();\n"


def write_sources(folder: Path) -> None:
    """Write what Sphinx reads: all pages where they stand in the repository, and its settings."""
    for name in PAGES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    names = [path.stem for path in sorted(ROOT.glob("notebooks/*.ipynb"))]
    (folder / "notebooks/solutions").mkdir(parents=True)
    for path in (*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("notebooks/solutions/*.ipynb")):
        nbformat.write(notebook_as_page(path, names), folder / path.relative_to(ROOT))
    (folder / "index.md").write_text(front_page(names), encoding="utf-8")
    (folder / "_static").mkdir()
    (folder / "_static/rivers.js").write_text(river_script(), encoding="utf-8")
    shutil.copy(HERE / "style.css", folder / "_static")
    shutil.copy(HERE / "conf.py", folder)


def build(folder: Path) -> int:
    """Build the site into `folder`, whose earlier site is replaced; returns Sphinx's exit code."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "searchindex.js").exists():
            raise FileExistsError(f"{folder} holds something else than a site: name another folder")
        shutil.rmtree(folder)
    with tempfile.TemporaryDirectory() as temporary:
        sources, trees = Path(temporary, "sources"), Path(temporary, "trees")
        sources.mkdir()
        write_sources(sources)
        options = ["--fail-on-warning", "--keep-going", "--quiet", "-d", str(trees)]
        code = build_main([*options, str(sources), str(folder)])
    shutil.rmtree(folder / "_sources", ignore_errors=True)
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "site")
    folder = parser.parse_args().folder
    if code := build(folder):
        return code
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder / 'index.html'}: {size / 1e6:.1f} MB in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
