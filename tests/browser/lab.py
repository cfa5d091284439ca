"""Use a notebook as a person does: real JupyterLab, real Chromium, and nothing that goes wrong
stays unseen.

    with Lab() as lab:                         # a server on a free port, a browser
        lab.take(ROOT / "notebooks", shots)    # a copy of a folder of notebooks; where pictures go
        lab.open("00_tour.ipynb")              # a fresh page and kernel; forgets earlier problems
        lab.run_all()                          # returns when every cell has really ended
        lab.choose("Collapse", "nearest")      # Dropdown, Select
        lab.slide("Temperature", 0.8)          # IntSlider, FloatSlider
        lab.write("Prompt", "Once upon")       # Text, Textarea, IntText, FloatText, Combobox
        lab.tick("Show words")                 # Checkbox: toggles it
        lab.press("Generate")                  # Button, ToggleButton
        lab.wait_for(r"200 of 200 steps")      # until what the outputs show matches
        lab.screenshot("generated")            # the notebook at its full height; returns the file
        lab.check()                            # AssertionError naming every problem since open()

Widgets are named by their description, exactly. Each action returns when the kernel has handled
every message it was sent; work in a thread goes on, so wait for what it shows: `wait_for(regex)`,
or `wait_until(condition, what)`. Nothing waits for a time: `timeout` is a ceiling that no machine
reaches. `shown()` is the text of all outputs; `page` is playwright's, for all else. `problems()`
lists errors in cells, in widget callbacks, in the page and its console; widgets and plotly figures
that were not drawn; requests to any host but this one, which are blocked as well. The notebooks are
opened as a copy, `data/` linked beside it, so that the tracked files never change.
"""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Locator, sync_playwright

FLAGS = [  # WebGL on the CPU, and nothing of Chromium's own on the network
    *(
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
        "--ignore-gpu-blocklist",
        "--no-first-run",
    ),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {
        "windowingMode": "none",
        "scrollPastEnd": False,
    },  # every cell is drawn
}
NOISE = r"GPU stall due to ReadPixels|GroupMarkerNotSet|Automatic fallback to software WebGL|favicon\.ico"
SCRIPT = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")


def chromium() -> str | None:
    """Path of a Chromium on this machine, or None."""
    return next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


class Lab:
    """JupyterLab in headless Chromium, on copies of folders of notebooks. See the module's
    docstring.
    """

    def __init__(self, timeout: float = 600, width: int = 1280):
        self.timeout, self._window = timeout, {"width": width, "height": 900}
        self._seen, self.page = [], None

    def __enter__(self) -> "Lab":
        with ExitStack() as stack:
            home = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            self._serve(Path(home), stack)
            chrome = stack.enter_context(sync_playwright()).chromium
            browser = chrome.launch(
                executable_path=chromium(), args=FLAGS, timeout=self.timeout * 1000
            )
            stack.callback(browser.close)
            self._context = browser.new_context(viewport=self._window)
            self._close = stack.pop_all().close
        return self

    def __exit__(self, *_) -> None:
        self._close()

    def _serve(self, home: Path, stack: ExitStack) -> None:
        """Start the server; all that it reads and writes, but for `data/`, lies under `home`."""
        self._root = root = home / "root"
        root.mkdir()
        for name, values in SETTINGS.items():
            file = home / "settings/@jupyterlab" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        folders = {
            f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "DATA", "RUNTIME")
        }
        folders |= {
            f"JUPYTERLAB_{name.upper()}_DIR": str(home / name)
            for name in ("settings", "workspaces")
        }
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._url, self._log, self._token = (
            f"http://127.0.0.1:{port}",
            home / "log",
            secrets.token_hex(16),
        )
        options = {"ServerApp.ip": "127.0.0.1", "ServerApp.port": port, "ServerApp.port_retries": 0}
        options |= {
            "ServerApp.root_dir": root,
            "IdentityProvider.token": self._token,
            "LabApp.news_url": "",
        }
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser"]
        command += [f"--{name}={value}" for name, value in options.items()]
        command += ["--allow-root"] if os.geteuid() == 0 else []
        log = stack.enter_context(self._log.open("w"))
        self._server = subprocess.Popen(
            command, env=os.environ | folders, cwd=root, stdout=log, stderr=log
        )
        stack.enter_context(self._server)  # waited for, whatever happens
        stack.callback(self._server.kill)
        stack.callback(self._server.wait, self.timeout)  # it ends its kernels first
        stack.callback(self._server.terminate)
        self.wait_until(
            lambda: "is running at" in self._log.read_text(), "jupyter lab did not start"
        )

    def take(self, notebooks: Path, shots: Path) -> "Lab":
        """Let what is opened be a copy of these notebooks, their `data/` linked beside it."""
        self.shots = Path(shots)
        self._place = Path(tempfile.mkdtemp(dir=self._root))
        shutil.copytree(notebooks, self._place / "notebooks")
        (self._place / "data").symlink_to(Path(notebooks).resolve().parent / "data")
        return self

    def open(self, notebook: str) -> None:
        if self.page:
            self.page.evaluate("jupyterapp.serviceManager.sessions.shutdownAll()")
            self.page.close()
        self._seen, self.page = [], self._context.new_page()
        self.page.set_default_timeout(self.timeout * 1000)
        self.page.on(
            "console", lambda m: m.type == "error" and self._see(f"{m.text} @ {m.location['url']}")
        )
        self.page.on("pageerror", lambda error: self._see(f"page: {error}"))
        self.page.on("websocket", lambda socket: self._foreign(socket.url))
        self.page.route(self._foreign, lambda route: route.abort())
        self.page.goto(
            f"{self._url}/lab/tree/{self._place.name}/notebooks/{notebook}?reset&token={self._token}"
        )
        self.page.wait_for_function("window.jupyterapp?.shell.currentWidget?.context?.isReady")
        self.page.evaluate(SCRIPT)
        self._settle()

    def _see(self, problem: str) -> None:
        if not re.search(NOISE, problem):
            self._seen.append(problem)

    def _foreign(self, url: str) -> bool:
        """Whether a request is for another machine; if so, it is a problem."""
        parts = urlsplit(url)
        if (
            foreign := parts.scheme in ("http", "https", "ws", "wss")
            and parts.hostname != "127.0.0.1"
        ):
            self._see(f"request to another host: {url}")
        return foreign

    def run_all(self) -> None:
        """Run all cells. A cell that fails ends it, and is among the problems."""
        self.page.evaluate("lab.runAll()")
        self._settle()

    def _settle(self) -> None:
        """Wait until the kernel has handled all it was sent, and the page all that it answered."""
        self.page.evaluate("lab.rest()")
        self.wait_until(lambda: not self.page.evaluate("lab.resting()"), "the kernel is still busy")

    def _act(self, action: Callable[[Locator], object], description: str, inner: str) -> None:
        exactly = re.compile(rf"^\s*{re.escape(description)}\s*$")
        if inner == "button":
            action(self.page.locator("button.jupyter-button", has_text=exactly).first)
        else:
            label = self.page.locator(".widget-label, .widget-label-basic", has_text=exactly)
            action(self.page.locator(".widget-inline-hbox", has=label).locator(inner).first)
        self._settle()

    def press(self, description: str) -> None:
        self._act(Locator.click, description, "button")

    def choose(self, description: str, option: str) -> None:
        self._act(lambda select: select.select_option(label=option), description, "select")

    def slide(self, description: str, value: float) -> None:
        self._act(
            lambda field: (field.fill(f"{value}"), field.press("Enter")),
            description,
            ".widget-readout",
        )

    def write(self, description: str, text: str) -> None:
        self._act(
            lambda field: (field.fill(text), field.press("Tab")), description, "input, textarea"
        )

    def tick(self, description: str) -> None:
        self._act(Locator.click, description, "input[type=checkbox]")

    def shown(self) -> str:
        """The text of all outputs and widgets, as a reader sees it."""
        return self.page.evaluate("lab.shown()")

    def wait_for(self, regex: str, timeout: float | None = None) -> None:
        self.wait_until(
            lambda: re.search(regex, self.shown(), re.S), f"no output matches {regex!r}", timeout
        )

    def wait_until(
        self, condition: Callable[[], object], what: str, timeout: float | None = None
    ) -> None:
        """Wait for a true condition; TimeoutError says `what` went wrong, and what else had."""
        end = time.monotonic() + (timeout or self.timeout)
        while not condition():
            if self._server.poll() is not None or time.monotonic() > end:
                raise TimeoutError(f"{what}\n{self.problems()}\n{self._log.read_text()[-2000:]}")
            self.page.wait_for_timeout(100) if self.page else time.sleep(0.1)

    def screenshot(self, name: str) -> Path:
        """Photograph the whole notebook, the window stretched to it: JupyterLab scrolls inside the
        page.
        """
        height = max(self._window["height"], self.page.evaluate("lab.height()") + 160)
        self.page.set_viewport_size(self._window | {"height": min(height, 12_000)})
        self._settle()
        self.page.screenshot(path=self.shots / f"{name}.png")  # playwright makes the folder
        self.page.set_viewport_size(self._window)
        return self.shots / f"{name}.png"

    def problems(self) -> list[str]:
        """Everything that went wrong since `open`, each once."""
        inside = self.page.evaluate("window.lab ? lab.problems() : []") if self.page else []
        return list(dict.fromkeys([*inside, *self._seen]))

    def check(self) -> None:
        assert not (problems := self.problems()), "\n".join(problems)
