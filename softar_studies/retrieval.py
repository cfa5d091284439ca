"""Tasks that judge encodings of texts, made of what every Python brings along (K28)."""

import ast
import inspect
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

from softar_lab.core.estimates import interval
from softar_lab.memory.encodings import TextIndex, nearest_label, ranks, retrieval_figures

_NAMES = """
    argparse ast bisect calendar cmd configparser copy csv datetime difflib fnmatch fractions
    functools glob gzip heapq imaplib inspect ipaddress locale mailbox mimetypes nntplib os
    pathlib pickle pprint random sched shelve shlex shutil smtplib socket statistics string
    tarfile tempfile textwrap threading timeit trace turtle typing uuid warnings weakref
    webbrowser zipfile
"""
MODULES = tuple(_NAMES.split())
_SENTENCE = re.compile(r"(.{20,200}?[.:])\s", re.DOTALL)
_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")


def parts_of_names(text: str) -> list[str]:
    """The words in a text, names such as `addHandler` and `add_handler` cut into theirs."""
    return [part.lower() for part in _PART.findall(text)]


class Task(NamedTuple):
    """Texts to be found, queries, the number of the right text for each, and labels of texts."""

    texts: list[str]
    queries: list[str]
    targets: list[int]
    labels: list[str]


def known_items(n: int = 400, seed: int = 0) -> Task:
    """Paragraphs of Python's documentation: the first sentence is to find the rest."""
    from pydoc_data.topics import topics

    found = []
    for name in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[name]):
            paragraph = " ".join(paragraph.split())
            head = _SENTENCE.match(paragraph)
            if head and len(paragraph) - head.end() > 120:
                found.append((head[1], paragraph[head.end() :][:800], name))
    return _sampled(found, n, seed)


def code_search(n: int = 400, seed: int = 0) -> Task:
    """Functions of the standard library: a docstring's first sentence is to find the function."""
    folder, found = Path(sysconfig.get_path("stdlib")), []
    for module in MODULES:
        path = folder / f"{module}.py"
        if path.exists():
            source = path.read_text(encoding="utf-8")
            found += [(*one, module) for one in _functions(source)]
    return _sampled(found, n, seed)


def _functions(source: str) -> Iterator[tuple[str, str]]:
    """The first sentence of each function's docstring, and the function without it."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or not ast.get_docstring(node):
            continue
        head = _SENTENCE.match(inspect.cleandoc(ast.get_docstring(node)) + " ")
        node.body = node.body[1:]
        if head and node.body:
            yield " ".join(head[1].split()), ast.unparse(node)[:800]


def _sampled(found: list[tuple[str, str, str]], n: int, seed: int) -> Task:
    """n of them whose queries and texts are all different."""
    found = list({query: (query, text, label) for query, text, label in found}.values())
    found = list({one[1]: one for one in found}.values())
    some = Random(seed).sample(sorted(found), min(n, len(found)))
    queries, texts, labels = map(list, zip(*some))
    return Task(texts, queries, list(range(len(some))), labels)


SHARES = ("recall@1", "recall@10", "label of 5 nearest")
TASKS = {"known item": known_items, "code": code_search}


def judged(index: TextIndex, task: Task) -> list[dict[str, object]]:
    """Rows measure, value, low, high: retrieval, and the labels of the five nearest texts."""
    figures = retrieval_figures(ranks(index, task.queries, task.targets))
    counts = {label: task.labels.count(label) for label in set(task.labels)}
    asked = [i for i, label in enumerate(task.labels) if counts[label] > 3][:200]
    right = [
        nearest_label(index.search(task.texts[i], 6), task.labels, i) == task.labels[i]
        for i in asked
    ]
    figures["label of 5 nearest"] = np.array(right, dtype=float)
    return [measured(measure, values) for measure, values in figures.items()]


def measured(measure: str, values: np.ndarray) -> dict[str, object]:
    """One row: a mean over queries (Q,) and its 95 % interval.

    Values are from 0 to 1. A share, of queries that count 0 or 1, has Wilson's interval; any other
    mean has Student's, as far as it lies within 0 and 1.
    """
    about = interval(values)
    low, high = max(0.0, about["low"]), min(1.0, about["high"])
    if measure in SHARES:
        low, high = binomtest(int(values.sum()), len(values)).proportion_ci(method="wilson")
    row = {"measure": measure, "value": about["mean"], "low": float(low), "high": float(high)}
    return row | {"queries": len(values)}
