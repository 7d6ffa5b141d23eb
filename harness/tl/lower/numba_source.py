"""Owns copying runtime functions into a generated candidate: those it uses, and what they use in turn."""

from __future__ import annotations

import ast
from collections.abc import Collection
from functools import cache
from pathlib import Path

_PATH = Path(__file__).with_name("numba_ops.py")
ENVIRONMENT = ("np", "torch", "njit", "prange", "Tensor", "tensor")
_ALWAYS = ("import numpy as np", "import torch")
_LAST = "from torch import Tensor"


@cache
def _parsed() -> tuple[str, ast.Module]:
    text = _PATH.read_text(encoding="utf-8")
    return text, ast.parse(text)


@cache
def _definitions() -> dict[str, tuple[str, frozenset[str]]]:
    """Name -> (source, the names it mentions), in the order of the file."""
    text, module = _parsed()
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names, first = [node.name], node.decorator_list[0].lineno if node.decorator_list else node.lineno
        elif isinstance(node, ast.Assign):
            names, first = [t.id for t in node.targets if isinstance(t, ast.Name)], node.lineno
        else:
            continue
        source = "\n".join(text.splitlines()[first - 1 : node.end_lineno])
        mentioned = frozenset(part.id for part in ast.walk(node) if isinstance(part, ast.Name))
        for name in names:
            found[name] = (source, mentioned - {name})
    return found


def provided() -> tuple[str, ...]:
    """Names that the functions, or the modules they need, may take in a candidate."""
    return (*_definitions(), *(name for name, _, _ in _imports()))


@cache
def _imports() -> tuple[tuple[str, str, str], ...]:
    """(name, module, what) of each name that the file imports."""
    _, module = _parsed()
    return tuple(
        (alias.asname or alias.name, node.module or "", alias.name)
        for node in module.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    )


FLAGS_SOURCE = _definitions()["FLAGS"][0]


def functions(used: Collection[str]) -> tuple[list[str], list[str]]:
    """The import lines of a candidate, and the definitions it needs besides FLAGS, in an order that runs."""
    known = _definitions()
    wanted: set[str] = set()
    queue = sorted(used)
    while queue:
        name = queue.pop()
        if name in known and name not in wanted:
            wanted.add(name)
            queue += sorted(known[name][1])
    if "Vector" in wanted:  # the type and its model belong together
        wanted.add("VectorModel")
        queue = sorted(known["VectorModel"][1] - wanted)
        wanted |= {name for name in queue if name in known}
    mentioned = {name for w in wanted for name in known[w][1]} | {"njit", "prange"}
    lines: dict[str, list[str]] = {}
    for name, module, what in _imports():
        if name in mentioned:
            lines.setdefault(module, []).append(what)
    lines.setdefault("numba", [])
    lines["numba"] = sorted({*lines["numba"], "njit", "prange"})
    imports = [f"from {module} import {', '.join(sorted(lines[module]))}" for module in sorted(lines)]
    body = [known[name][0] for name in known if name in wanted and name != "FLAGS"]
    return [*_ALWAYS, *imports, _LAST], body
