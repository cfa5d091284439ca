"""The static pages: built from the stored notebooks, every link resolves, and their rivers are alive."""

import base64
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools/site"))
import build  # noqa: E402

NOTEBOOKS = sorted(path.stem for path in ROOT.glob("notebooks/*.ipynb"))
LOADS = {("img", "src"), ("script", "src"), ("link", "href"), ("iframe", "src"), ("source", "src")}
STATE = {"rivers": [{"name": "</script>"}]}
PIXEL = base64.b64encode(b"a picture").decode()


class Page(HTMLParser):
    """The ids of a page, its links, and what a browser loads for it."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.loads = set(), [], []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found.get("id"), found.get("name")}
        for (place, name), links in [
            (("a", "href"), self.links),
            *((x, self.loads) for x in LOADS),
        ]:
            if tag == place and found.get(name):
                links.append(found[name])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """All of the site, built as `make site` does it."""
    folder = tmp_path_factory.mktemp("pages") / "site"
    command = [sys.executable, str(ROOT / "tools/site/build.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_notebook_has_a_page_and_the_site_is_small(site, pages):
    for name in NOTEBOOKS:
        assert site / f"notebooks/{name}.html" in pages
        assert f'href="notebooks/{name}.html"' in pages[site / "index.html"].text
    assert sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) <= 25e6


def test_every_link_resolves(pages):
    ids = {path.resolve(): page.ids for path, page in pages.items()}
    broken = []
    for path, page in pages.items():
        for link in (*page.links, *page.loads):
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
            fragment = unquote(parts.fragment)
            if not target.is_file() or (fragment and fragment not in ids.get(target, ())):
                broken.append(f"{path.name}: {link}")
    assert not broken


def test_pages_load_nothing_from_elsewhere(site, pages):
    for path, page in pages.items():
        foreign = [link for link in page.loads if urlsplit(link).scheme not in ("", "data")]
        assert not foreign, path
        assert not any(link.startswith(("/", "file:")) for link in (*page.links, *page.loads)), path
    for path in site.rglob("*.css"):
        for place in re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", path.read_text("utf-8")):
            assert not re.match(r"[\"']?(https?:|//|/)", "".join(place)), path


def test_formulas_are_drawn_by_the_browser_itself(site, pages):
    text = pages[site / "notebooks/03_transformer_from_scratch.html"].text
    assert text.count("<math") >= 8
    assert "<msqrt>" in text
    assert "$$" not in text
    # a doubled backslash: a new line, and the command's name as letters
    assert not [path for path, page in pages.items() if 'linebreak="newline"' in page.text]


def test_river_becomes_its_data_and_a_picture_for_readers_without_scripts():
    data = {"text/plain": "River(a '<b>')", "image/png": PIXEL, build.RIVER: json.dumps(STATE)}
    page = build.panel_as_page(data)
    stored = re.search(r"<script type=\"application/json\">(.*?)</script>", page)[1]
    assert json.loads(stored) == STATE
    assert f'src="data:image/png;base64,{PIXEL}"' in page
    assert "&lt;b&gt;" in page


def test_panel_becomes_its_picture_and_what_it_does_in_the_lab():
    data = {"text/plain": "WindowExplorer(model, aggregate=1)", "image/png": PIXEL}
    page = build.panel_as_page(data)
    assert "<script" not in page
    assert "In the running lab this is a <code>WindowExplorer</code>." in page
    summary = build.widgets.WindowExplorer.__doc__.splitlines()[0]
    assert summary.replace("`", "") in re.sub("</?code>", "", page)


@pytest.mark.parametrize("text", ["<Figure size 8x8>", "Panels(", "3"])
def test_what_is_no_panel_stays_as_it_is(text):
    assert build.panel_as_page({"text/plain": text, "image/png": PIXEL}) is None
    assert build.panel_as_page({"text/plain": "River()"}) is None


def test_notebooks_that_prose_names_become_links(tmp_path):
    (tmp_path / "solutions").mkdir()
    prose = new_markdown_cell("`01_a`, `solutions/01_a.ipynb`, [`01_a`](x), `02_b`, 01_a")
    output = new_output("stream", text="`01_a`")
    nb = new_notebook(cells=[prose, new_code_cell("`01_a`", outputs=[output])])
    for folder in (tmp_path, tmp_path / "solutions"):
        nbformat.write(nb, folder / "01_a.ipynb")
    page = build.notebook_as_page(tmp_path / "01_a.ipynb", ["01_a"])
    links = "[`01_a`](01_a.ipynb), [`solutions/01_a`](solutions/01_a.ipynb)"
    assert page.cells[0].source == f"{links}, [`01_a`](x), `02_b`, 01_a"
    assert page.cells[1] == nb.cells[1]
    assert "solutions/01_a\n" in page.cells[-1].source


def test_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="name another folder"):
        build.build(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


# -- in Chromium, from the disk ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    from browser.lab import FLAGS, chromium

    if chromium() is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as play:
        chrome = play.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield chrome
        chrome.close()


@pytest.fixture
def visit(browser, site):
    """visit(page, **context) -> playwright's page; errors and requests elsewhere fail the test."""
    problems = []

    def see(request):
        if not request.url.startswith((site.as_uri(), "data:", "blob:")):
            problems.append(f"request: {request.url}")

    def open_page(name: str, **context):
        page = browser.new_context(**context).new_page()
        page.on("console", lambda m: m.type in ("error", "warning") and problems.append(m.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", see)
        page.goto(f"{site.as_uri()}/{name}")
        return page

    yield open_page
    assert problems == []


@pytest.mark.browser
def test_river_answers_mouse_and_keys(visit):
    page = visit("notebooks/00_tour.html")
    details = page.locator(".softar-river .details").first
    column = page.locator(".softar-river [data-river='1'][data-step='12']").first
    column.scroll_into_view_if_needed()
    assert "step 0:" in details.inner_text()
    column.hover()
    assert "step 12:" in details.inner_text()
    assert details.locator("button:enabled").count() == 0  # nobody is there to write on
    page.mouse.move(0, 0)
    assert "step 0:" in details.inner_text()
    column.click()
    assert "step 12:" in details.inner_text()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert "step 13:" in details.inner_text()
    page.keyboard.press("End")
    page.locator(".softar-river [data-step='79']").first.wait_for()  # it was not drawn before


@pytest.mark.browser
def test_pages_fit_a_phone_and_follow_the_dark(visit):
    phone = {"viewport": {"width": 390, "height": 800}, "color_scheme": "dark"}
    for name in ("index.html", *(f"notebooks/{name}.html" for name in NOTEBOOKS[:4])):
        page = visit(name, **phone)
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wide) <= 0, name
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert sum(map(int, re.findall(r"\d+", dark)[:3])) < 3 * 64


@pytest.mark.browser
def test_search_finds_pages_without_a_server(visit):
    page = visit("search.html?q=exercises")
    page.locator("#search-results li").first.wait_for()
    assert page.locator("#search-results a[href*='00_tour']").count() > 0
