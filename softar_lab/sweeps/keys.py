"""The key of a cell: a digest of all that made its figures, so that a changed cell runs again."""

import ast
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from importlib.util import resolve_name
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from ..core.fingerprint import fingerprint

PACKAGE = Path(__file__).parents[1]
# Pictures and panels compute no figure, so they may change without a cell running again.
NO_FIGURES = {"plots", "widgets", "evidence.py"}


def cell_key(made_by: str, arguments: Mapping[str, Any]) -> str:
    """The key of one cell.

    Args:
        made_by: a digest of the code and of the arguments that all cells share.
        arguments: the cell's own arguments.

    Returns:
        32 hexadecimal digits, the same on every machine.
    """
    return fingerprint({"made by": made_by, **described(arguments)})


def described(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments in the order of their names; a file or folder counts by what is in it."""
    return {
        name: _content(value) if isinstance(value, Path) else value
        for name, value in sorted(arguments.items())
    }


def code_digest(cell: Callable[..., Any]) -> str:
    """A digest of the code that decides a cell's figures; comments and docstrings do not count.

    It covers this package without its pictures and panels, and the module of the cell's function
    with all modules beside it that it imports. A function of a notebook or script counts by its
    source, together with the functions, values and modules of that notebook which it uses.
    """
    digest = hashlib.sha256(_package_digest().encode())
    for part in _own_code(bound(cell)[0], set()):
        digest.update(part.encode())
    return digest.hexdigest()[:32]


def bound(cell: Callable[..., Any]) -> tuple[Callable[..., Any], list[Any]]:
    """The function behind functools.partial, and the arguments that were bound to it."""
    arguments = []
    while isinstance(cell, partial):
        arguments += [list(cell.args), described(cell.keywords)]
        cell = cell.func
    return cell, arguments


def _own_code(function: Any, seen: set[int]) -> Iterator[str]:
    """The code of a function or class, as texts.

    What it uses of its notebook or script comes with it.
    """
    if id(function) in seen:
        return
    seen.add(id(function))
    if not isinstance(function, FunctionType | type):  # an object that can be called
        yield fingerprint(function)
        function = type(function)
    if function.__module__ != "__main__":
        yield _module_digest(function.__module__)
        return
    yield _without_docstrings(inspect.getsource(function))
    if isinstance(function, FunctionType):
        used = inspect.getclosurevars(function)
        for name, value in sorted({**used.globals, **used.nonlocals}.items()):
            if isinstance(value, FunctionType | type):
                yield from _own_code(value, seen)
            elif isinstance(value, ModuleType):
                yield _module_digest(value.__name__)
            else:
                yield f"{name} = {fingerprint(value)}"


@cache
def _module_digest(name: str) -> str:
    """A digest of a module and of all modules beside it that it imports, directly or not.

    A module that is built in or installed counts by its name and version.
    """
    first = name.partition(".")[0]
    file = getattr(sys.modules.get(name), "__file__", None)  # what is built in has none
    if first == PACKAGE.name or first in sys.stdlib_module_names:
        return name
    if file is None or "site-packages" in Path(file).parts:
        return f"{name} {getattr(sys.modules.get(first), '__version__', '')}"
    depth = len(name.split(".")) + (Path(file).name == "__init__.py")
    digest, texts = hashlib.sha256(), _imported(Path(file).parents[depth - 1], name)
    for one, text in sorted(texts.items()):
        digest.update(f"{one} {_without_docstrings(text)}".encode())
    return digest.hexdigest()


def _imported(root: Path, name: str) -> dict[str, str]:
    """The sources, by name, of a module under `root` and of those that it imports from there."""
    found, waiting = {}, [name]
    while waiting:
        name = waiting.pop()
        path = root.joinpath(*name.split("."))
        files = [path / "__init__.py", path.with_suffix(".py")]
        file = next((one for one in files if one.is_file()), None)
        if name in found or file is None or name.partition(".")[0] == PACKAGE.name:
            continue
        found[name] = file.read_text(encoding="utf-8")
        parent = name.rpartition(".")[0]
        waiting += [parent] if parent else []
        waiting += _imports(found[name], name if file == files[0] else parent)
    return found


def _imports(source: str, package: str) -> Iterator[str]:
    """The names that a source imports, in full; some may be no modules."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            base = resolve_name(base, package) if node.level else base
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


@cache
def _package_digest() -> str:
    """A digest of this package without what computes no figure."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        inside = file.relative_to(PACKAGE).parts
        if inside[0] not in NO_FIGURES:
            digest.update("/".join(inside).encode())
            digest.update(_without_docstrings(file.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()


def _without_docstrings(source: str) -> str:
    """The syntax tree of a source, as text, without comments, layout and docstrings."""
    tree = ast.parse(inspect.cleandoc(source) if source[:1].isspace() else source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return ast.dump(tree)


def _content(path: Path) -> dict[str, str]:
    """What a file or folder holds: a digest of each file."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    if not path.exists():
        raise ValueError(f"a cell's argument names {path}, and there is no such file or folder")
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.is_file()
    }
