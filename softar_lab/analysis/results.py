"""Tidy tables of results: kept cell by cell while they are made, saved with their recipes, summed up over seeds."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from ..resuming import differences
from ..store import StoreError, read_bytes, write_atomic

Rows = list[dict[str, Any]]


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean of one value a seed and its 95 % t interval: mean, low, high, seeds; of one seed no interval (NaN)."""
    n, mean = len(values), values.mean()
    half = student.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
    return {"mean": mean, "low": mean - half, "high": mean + half, "seeds": n}


def kept(path: Path | None, recipe: dict[str, Any], run: Callable[[], Rows]) -> Rows:
    """The rows of a cell: those kept at `path` if it is there, else what `run` gives, kept there from then on.

    `recipe`, JSON-able, is all that decides them but for the cell's name. `path` None keeps nothing.
    Raises StoreError where the cell there is damaged or of another recipe.
    """
    if path is not None and path.exists():
        return _kept_rows(path, recipe)
    rows = run()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"recipe": recipe, "rows": rows}).encode())
    return rows


def cell_path(folder: str | Path | None, *parts: object) -> Path | None:
    """Where the cell with these names is kept; None where there is no folder."""
    names = (re.sub(r"[^A-Za-z0-9.=-]+", "-", str(part)).strip("-") for part in parts)
    return None if folder is None else Path(folder, "_".join(names) + ".json")


def _kept_rows(path: Path, recipe: dict[str, Any]) -> Rows:
    try:
        found = json.loads(read_bytes(path))
        rows, there = found["rows"], found["recipe"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is no finished cell ({error}): delete it to run the cell again") from None
    if different := differences(recipe, there):
        raise StoreError(f"{path} was made by another recipe ({different}): choose another folder")
    return rows


def save_results(frame: pd.DataFrame, recipes: Sequence[dict[str, Any]], path: str | Path, keys: Sequence[str]) -> None:
    """Write a tidy table to `path` (.csv), ordered by `keys`, which come first; recipes and hash beside it (.json)."""
    path, keys = Path(path), list(keys)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = keys + [name for name in frame if name not in keys]
    text = frame[columns].sort_values(keys).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    about = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "recipes": list(recipes)}
    write_atomic(path, text.encode())
    write_atomic(path.with_suffix(".json"), (json.dumps(about, indent=1) + "\n").encode())


def load_results(path: str | Path) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """The table and recipes that `save_results` wrote. Raises StoreError where a file is missing or damaged."""
    path = Path(path)
    try:
        data = read_bytes(path).replace(b"\r\n", b"\n")  # which git may write on Windows
        about = json.loads(read_bytes(path.with_suffix(".json")))
        whole, recipes = hashlib.sha256(data).hexdigest() == about["sha256"], about["recipes"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: no table of results ({error})") from None
    if not whole:
        raise StoreError(f"{path}: damaged, or not the table its .json was written for")
    frame = pd.read_csv(BytesIO(data), dtype={"problem": str})
    return frame.assign(problem=frame["problem"].fillna("")), recipes
