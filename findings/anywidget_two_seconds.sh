#!/usr/bin/env bash
# anywidget 0.11.0 in JupyterLab 4.6.6: a widget whose ES module needs more than two seconds to load is drawn, and
# from then on hears nothing. Its first state appears, late; every later change of a synced trait is lost, without an
# error in Python, in the cell or in the widget. One would expect the changes to wait for the module, or at least the
# next one to arrive. The same widget with a quick module shows every change. So any widget with a large module (plotly's
# FigureWidget brings 5 MB) may stay as it was on a busy machine.
#
# Needs Chromium (`chromium` on the PATH) and some two minutes. Exit code 1 if the behaviour is another one.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q anywidget==0.11.0 jupyterlab==4.6.6 ipywidgets==8.1.9 playwright==1.65.0 nbformat
cd "$place"
cat >make.py <<'EOF'
import nbformat
from nbformat.v4 import new_code_cell as cell, new_notebook
first = """
import anywidget, traitlets
SCRIPT = '''
%s
export default { render({ model, el }) {
    const draw = () => { el.textContent = `${model.get("name")} shows ${model.get("value")}`; };
    draw();
    model.on("change:value", draw);
} };
'''
class Shown(anywidget.AnyWidget):
    name, value = (traitlets.Unicode().tag(sync=True), traitlets.Int(0).tag(sync=True))
class Quick(Shown):
    _esm = SCRIPT % ""
class Slow(Shown):
    _esm = SCRIPT % "await new Promise(done => setTimeout(done, 4000));"
quick, slow = Quick(name="quick"), Slow(name="slow")
"""
cells = [cell(first), cell("quick"), cell("slow"), cell("quick.value = slow.value = 1"),
         cell("import time; time.sleep(8)"), cell("quick.value = slow.value = 2; print('en' + 'ded')")]
book = new_notebook(cells=cells)
book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
nbformat.write(book, "book.ipynb")
EOF
cat >use.py <<'EOF'
import shutil, sys
from playwright.sync_api import sync_playwright
with sync_playwright() as play:
    page = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"]).new_page()
    console = []
    page.on("pageerror", lambda error: console.append(str(error)))
    page.goto("http://127.0.0.1:18877/lab/tree/book.ipynb?reset")
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.context?.isReady", timeout=120_000)
    page.evaluate("jupyterapp.shell.currentWidget.context.sessionContext.ready")
    page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
    page.get_by_text("ended", exact=True).wait_for(timeout=120_000)
    page.get_by_text("slow shows").wait_for(timeout=60_000)
    page.wait_for_timeout(3000)
    seen = sorted(text for text in page.locator(".jp-OutputArea-output").all_inner_texts() if "shows" in text)
print(seen, sorted(set(console)))
sys.exit(seen != ["quick shows 2", "slow shows 0"])
EOF
"$place/venv/bin/python" make.py
"$place/venv/bin/jupyter" lab --no-browser --expose-app-in-browser --allow-root --IdentityProvider.token= \
    --ServerApp.port=18877 --ServerApp.port_retries=0 --ServerApp.root_dir="$place" >lab.log 2>&1 &
trap 'kill $!; wait $! || true; rm -rf "$place"' EXIT
for _ in $(seq 60); do grep -q "is running at" lab.log && break; sleep 1; done
"$place/venv/bin/python" use.py
# Seen on 2026-11-30: ['quick shows 2', 'slow shows 0'] []
