"""Tidy tables of results: saved cell by cell while they are made, and whole with their recipes."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from .store import StoreError, read_bytes, write_atomic

Rows = list[dict[str, Any]]


def load_or_run(path: Path | None, recipe: dict[str, Any], run: Callable[[], Rows]) -> Rows:
    """The rows of a cell: loaded from `path` if it exists, else computed by `run` and saved.

    Args:
        path: the cell's file; None: nothing is loaded or saved.
        recipe: JSON-able; all that decides the rows, except the cell's name.
        run: computes the rows.

    Raises:
        StoreError: where the saved cell is damaged or of another recipe.
    """
    if path is not None and path.exists():
        return _stored_rows(path, recipe)
    rows = run()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"recipe": recipe, "rows": rows}).encode())
    return rows


def cell_path(folder: str | Path | None, *parts: object) -> Path | None:
    """The file of the cell with these names; None where there is no folder."""
    names = (re.sub(r"[^A-Za-z0-9.=-]+", "-", str(part)).strip("-") for part in parts)
    return None if folder is None else Path(folder, "_".join(names) + ".json")


def _stored_rows(path: Path, recipe: dict[str, Any]) -> Rows:
    try:
        found = json.loads(read_bytes(path))
        rows, stored = found["rows"], found["recipe"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} is no finished cell ({error}): delete it to run the cell again"
        ) from None
    if different := differences(recipe, stored):
        raise StoreError(f"{path} was made by another recipe ({different}): choose another folder")
    return rows


def save_results(
    frame: pd.DataFrame,
    recipes: Sequence[dict[str, Any]],
    path: str | Path,
    keys: Sequence[str],
    sort: bool = True,
) -> None:
    """Write a tidy table as .csv to `path`, and beside it its recipes and hash as .json.

    The columns `keys` come first, and the rows are sorted by them, unless `sort` is False.
    """
    path, keys = Path(path), list(keys)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = keys + [name for name in frame if name not in keys]
    frame = frame[columns].sort_values(keys) if sort else frame[columns]
    text = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    about = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "recipes": list(recipes)}
    write_atomic(path, text.encode())
    write_atomic(path.with_suffix(".json"), (json.dumps(about, indent=1) + "\n").encode())


def load_results(path: str | Path) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """The table and the recipes that `save_results` wrote.

    Empty cells of the column "problem", if there is one, come back as empty texts.

    Raises:
        StoreError: where a file is missing or damaged.
    """
    path = Path(path)
    try:
        data = read_bytes(path).replace(b"\r\n", b"\n")  # git may write \r\n on Windows
        about = json.loads(read_bytes(path.with_suffix(".json")))
        whole, recipes = hashlib.sha256(data).hexdigest() == about["sha256"], about["recipes"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: no table of results ({error})") from None
    if not whole:
        raise StoreError(f"{path}: damaged, or not the table its .json was written for")
    frame = pd.read_csv(BytesIO(data), dtype={"problem": str})
    if "problem" in frame:
        frame["problem"] = frame["problem"].fillna("")
    return frame, recipes


def differences(now: Any, stored: Any, name: str = "") -> str:
    """What differs between two nested settings, as text for a message; empty: nothing."""
    if isinstance(now, dict) and isinstance(stored, dict):
        parts = [
            differences(now.get(k), stored.get(k), f"{name}.{k}" if name else k)
            for k in {**stored, **now}
        ]
        return "; ".join(part for part in parts if part)
    return "" if now == stored else f"{name}: saved {stored!r:.60}, now {now!r:.60}"
