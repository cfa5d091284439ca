"""Execute notebooks, 1…n on a fresh kernel each, and store their outputs: what nbval will compare.

usage: python tools/refresh_notebooks.py [--check] [NOTEBOOK ...]     (default: all under
notebooks/)

A notebook is written back, in one step, only where every cell ran without error; otherwise the cell
is named and the exit code is 1. Always in full mode. --check executes and writes nothing: it names
the notebooks whose metadata are not as this tool would leave them.
"""

import argparse
import base64
import io
import os
import sys
import time
from copy import deepcopy
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from PIL import Image
from traitlets.config import Config

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SECONDS_PER_CELL = 600
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
KEPT_CELL_METADATA = {"tags", "jupyter"}
# A model's id is drawn at random and dead once the kernel is gone: without it, JupyterLab and
# GitHub alike show the still picture or the text that stands beside it.
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def cleaned(nb: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy without what differs from run to run or machine to machine and tells a reader
    nothing.
    """
    nb = deepcopy(nb)
    nb.metadata = nbformat.from_dict(METADATA)
    for cell in nb.cells:
        cell.metadata = {
            key: value for key, value in cell.metadata.items() if key in KEPT_CELL_METADATA
        }
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET_VIEW, None)
            output.get("metadata", {}).pop(WIDGET_VIEW, None)
    return nb


def shrink_pictures(nb: nbformat.NotebookNode) -> None:
    """Give every stored picture a palette of 256 colours, rare ones too: nobody sees it, and the
    file is a third.
    """
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if picture := output.get("data", {}).get("image/png"):
                small = io.BytesIO()
                image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
                image = image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
                image.save(small, "png", optimize=True)
                output["data"]["image/png"] = base64.b64encode(small.getvalue()).decode() + "\n"


def refresh(path: Path) -> None:
    """Execute one notebook in its own folder and write it back; raises where a cell does."""
    started: list[int] = []
    nb = nbformat.read(path, as_version=4)
    client = NotebookClient(
        nb,
        timeout=SECONDS_PER_CELL,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False,
        record_timing=False,
        coalesce_streams=True,
        config=Config({"KernelManager": {"transport_encryption": "auto"}}),  # else it warns of TCP
        on_cell_start=lambda cell, cell_index: started.append(cell_index),
    )
    begin = time.perf_counter()
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise RuntimeError(f"{path}: cell {started[-1] if started else '?'}: {error}") from None
    shrink_pictures(nb)
    text = nbformat.writes(cleaned(nb)) + "\n"
    draft = path.with_suffix(".ipynb.draft")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
    print(
        f"{path}: {len(text.encode()) / 1000:.0f} KB, {time.perf_counter() - begin:.1f} s",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; name what is not clean"
    )
    arguments = parser.parse_args()
    found = (
        path
        for path in sorted(NOTEBOOKS.rglob("*.ipynb"))
        if ".ipynb_checkpoints" not in path.parts
    )
    os.environ["JUPYTER_PREFER_ENV_PATH"] = (
        "1"  # `python3` is this environment's kernel, not the user's
    )
    os.environ.pop(
        "SOFTAR_FAST", None
    )  # the outputs that are stored and compared are those of the full mode

    failed = False
    for path in arguments.notebooks or found:
        if arguments.check:
            nb = nbformat.read(path, as_version=4)
            clean = nb == cleaned(nb)
            print(f"{path}: {'clean' if clean else 'not clean'}")
            failed |= not clean
            continue
        try:
            refresh(path)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
