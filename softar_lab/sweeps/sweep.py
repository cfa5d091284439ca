"""sweep(): one call for each cell of a grid; finished cells are saved and never run again."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FunctionType
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from ..core.cells import save_results
from ..core.checks import whole_number
from ..core.fingerprint import fingerprint
from .backends import BACKENDS, Task
from .journal import Journal
from .keys import bound, cell_key, code_digest, described

Cell = Callable[..., Mapping[str, Any] | Sequence[Mapping[str, Any]]]
Grid = Mapping[str, Sequence[Any]] | Iterable[Mapping[str, Any]]
_OWN = ("seconds", "problem")  # columns of the table that no cell may return


def sweep(
    cell: Cell,
    grid: Grid,
    *,
    common: Mapping[str, Any] | None = None,
    depends: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    backend: str = "here",
    workers: int | None = None,
    address: str | None = None,
    retry: bool = False,
    version: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Call `cell(**arguments, **common)` for each cell of a grid, and return one tidy table.

    Every cell runs on one processor thread, on each backend, so the figures are equal. A cell that
    is finished is saved at once; a call with the same `out` goes on where the last one stopped. A
    cell is known by all that made it: the code of this package and of the function, its arguments
    and the common ones (models by their weights, texts and files by their content).

    Args:
        cell: any function that can be pickled; returns a dict of figures (numbers, texts, bools,
            None), or a sequence of such dicts.
        grid: lists of values by name, of which all combinations are cells; or the cells themselves,
            as dicts of arguments.
        common: arguments that all cells share, such as a model or a corpus; sent once.
        depends: what else decides the figures, by name, such as settings of the study or, as paths,
            files that a cell reads. It counts in the keys and stands in the recipe; no cell gets it.
        out: a folder for cells.jsonl (every finished cell) and table.csv, table.json; None: the
            table is only returned.
        backend: "here" (this process), "cores" (one process per worker), "ray".
        workers: how many cells run at a time; None: one per core, or all of the Ray cluster.
        address: the Ray cluster's address; None: the one that is connected, else a local one.
        retry: whether cells that failed before run again.
        version: a name of your own for the code, in place of its digest; cells saved under the
            same name are not run again, whatever changed in the code.
        progress: whether to show a bar with the time left.

    Returns:
        One row per cell, in the order of the grid, or as many as it returned: its arguments, its
        figures, `seconds`, and `problem` (why it failed; empty where it did not).

    Raises:
        ValueError: for an unknown backend, an empty or ambiguous grid, wrong numbers.
        CheckpointError: where another process writes `out`.
        StoreError: where `out` is damaged or the disk is full; finished cells stay.
        KeyboardInterrupt: on Ctrl-C; finished cells stay.

    Source: K34.
    """
    # 1) what is to be done, and under which key
    if backend not in BACKENDS:
        raise ValueError(f"no backend {backend!r}: {', '.join(BACKENDS)}")
    workers = None if workers is None else whole_number("workers", workers)
    cells, common, depends = cells_of(grid), dict(common or {}), dict(depends or {})
    code = code_digest(cell) if version is None else version
    function, arguments = bound(cell)
    made_by = fingerprint([_name(function), arguments, code, described(common), described(depends)])
    keys = _keys(made_by, cells, common)

    # 2) run what is not finished; each outcome is saved as it arrives
    with _folder(out) as folder, Journal(folder) as journal:
        todo = [i for i, k in enumerate(keys) if k not in journal or (retry and journal.failed(k))]
        task = Task(cell, common)
        bar = tqdm(total=len(cells), initial=len(cells) - len(todo), disable=not progress)
        with bar:
            arguments = [cells[i] for i in todo]
            problems = 0
            for number, outcome in BACKENDS[backend](task, arguments, workers, address):
                journal.add(keys[todo[number]], outcome)
                problems += bool(outcome.problem)
                bar.set_postfix({"failed": problems} if problems else {}, refresh=False)
                bar.update()

        # 3) the table, in the order of the grid
        frame = _table(cells, keys, journal)
        if out is not None:
            recipe = {"cell": _name(function), "code": code, "common": _shown(common)}
            recipe |= {"depends": _shown(depends)} if depends else {}
            save_results(frame, [recipe], Path(out) / "table.csv", list(cells[0]), sort=False)
    return frame


def cells_of(grid: Grid) -> list[dict[str, Any]]:
    """The cells of a grid, each with its arguments by name.

    Raises:
        ValueError: where the grid has no cell, or its cells have different arguments.
    """
    if isinstance(grid, Mapping):
        for name, values in grid.items():
            if isinstance(values, str) or not isinstance(values, Iterable):
                raise ValueError(f"grid[{name!r}] must be a list of values, not {values!r:.60}")
        lists = [list(values) for values in grid.values()]
        cells = [dict(zip(grid, values, strict=True)) for values in product(*lists)]
    else:
        cells = [dict(one) for one in grid]
    if not cells:
        raise ValueError("the grid has no cell: give at least one value for each name")
    for one in cells:
        if set(one) != set(cells[0]):
            raise ValueError(
                f"all cells must have the same arguments: {sorted(cells[0])}, not {sorted(one)}"
            )
    return cells


def _keys(made_by: str, cells: list[dict[str, Any]], common: dict[str, Any]) -> list[str]:
    """The key of each cell, after a check that the cells can be told apart."""
    if both := sorted(set(cells[0]) & set(common)):
        raise ValueError(f"{both} stand in the grid and in `common`: choose one")
    if taken := sorted(set(cells[0]) & set(_OWN)):
        raise ValueError(f"the table has columns {taken} of its own: rename these arguments")
    keys = [cell_key(made_by, one) for one in cells]
    seen: dict[str, int] = {}
    for i, key in enumerate(keys):
        if key in seen:
            raise ValueError(
                f"cells {seen[key]} and {i} of the grid are the same: {cells[i]!r:.80}"
            )
        seen[key] = i
    return keys


@contextmanager
def _folder(out: str | Path | None):
    """The folder of the journal; a temporary one where nothing is to stay."""
    if out is not None:
        yield Path(out)
    else:
        with TemporaryDirectory(prefix="softar-sweep-") as folder:
            yield Path(folder)


def _table(cells: list[dict[str, Any]], keys: list[str], journal: Journal) -> pd.DataFrame:
    rows = []
    for arguments, key in zip(cells, keys, strict=True):
        outcome = journal[key]
        end = {"seconds": outcome.seconds, "problem": outcome.problem}
        rows += [{**_shown(arguments), **row, **end} for row in outcome.rows or [{}]]
    frame = pd.DataFrame(rows)
    return frame[[name for name in frame if name not in _OWN] + list(_OWN)]


def _shown(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as a table holds them: an object by its type and the begin of its fingerprint."""
    return {
        name: value
        if value is None or isinstance(value, bool | int | float | str)
        else str(value)
        if isinstance(value, Path)
        else f"{type(value).__name__}:{fingerprint(value)[:8]}"
        for name, value in arguments.items()
    }


def _name(function: Callable[..., Any]) -> str:
    named = function if isinstance(function, FunctionType) else type(function)
    return f"{named.__module__}.{named.__qualname__}"
