"""The table of a study: one sweep over its cells, and what its command line takes."""

import argparse
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from softar_lab import sweep
from softar_lab.sweeps.backends import BACKENDS


def figures(
    cell: Callable[..., Any],
    grid: Any,
    out: str | Path | None,
    depends: Mapping[str, Any],
    backend: str = "here",
    *,
    seconds: bool = False,
    **options: Any,
) -> pd.DataFrame:
    """The arguments and figures of each cell of a study, in the order of the grid.

    Finished cells are saved in `out` and not run again; a cell that failed before is tried again.

    Args:
        cell, grid, out, backend: as in `sweep`.
        depends: what decides the figures beside code and arguments: the recipe of the study.
        seconds: whether the table says how long each cell took.
        options: more arguments of `sweep`.

    Raises:
        RuntimeError: where cells failed, so that no table is written without them.
    """
    cell = _importable(cell)
    frame = sweep(cell, grid, out=out, depends=depends, backend=backend, retry=True, **options)
    failed = frame.loc[frame["problem"] != "", "problem"]
    if len(failed):
        raise RuntimeError(
            f"{len(failed)} cells failed, the first with {failed.iloc[0]!r}; the same command "
            "tries them again, and finished cells stay"
        )
    return frame.drop(columns=["problem"] if seconds else ["seconds", "problem"])


def _importable(cell: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the module that runs as a program, as others import it."""
    program = sys.modules["__main__"].__spec__  # python -m softar_studies.…
    if cell.__module__ != "__main__" or program is None:
        return cell
    return vars(importlib.import_module(program.name))[cell.__name__]


def asked_for(
    description: str,
    known: Iterable[Any] = (),
    what: str = "NAME",
    arguments: list[str] | None = None,
) -> argparse.Namespace:
    """What the command line of a study asks for.

    Args:
        description: the study's docstring.
        known: the names that a user may choose from; none: there is nothing to choose.
        what: how the help calls such a name.
        arguments: in place of the command line.

    Returns:
        `names`: the chosen ones of `known`, of their type; empty means all of them. `backend`: where
        cells run, as in `sweep`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    by_text = {str(name): name for name in known}
    if by_text:
        parser.add_argument("names", nargs="*", metavar=what, help=", ".join(by_text))
    parser.add_argument("--backend", choices=BACKENDS, default="here", help="where cells run")
    given = parser.parse_args(arguments)
    names = given.names if by_text else []
    if unknown := set(names) - set(by_text):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(by_text)}")
    given.names = [by_text[name] for name in names]
    return given
