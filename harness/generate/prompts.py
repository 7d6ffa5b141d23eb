"""Owns the prompts: templates in files, rendered strictly, each identified by the hash of its text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, nodes

from harness.generate.method import Brief

FOLDER = Path(__file__).parent / "prompts"
EXAMPLE = "tl-example.tl"


@dataclass(frozen=True)
class Prompt:
    """A text for a model and the templates it was made of, by the hash of each."""

    text: str
    hashes: Mapping[str, str]


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(FOLDER),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def render(template: str, brief: Brief, **values: object) -> Prompt:
    """The prompt of `template` (without its suffix) for a brief.

    Besides what the brief holds, templates use `values`; a name that neither gives is an error.
    """
    name = f"{template}.md.j2"
    dtypes = ", ".join(dict.fromkeys(w.dtype for w in brief.workloads))
    given = {
        "task": brief.task,
        "target": brief.target,
        "backend": brief.backend,
        "workloads": brief.workloads,
        "dtypes": dtypes,
        "first_call_s": f"{brief.first_call_s:g}",
        "example": (FOLDER / EXAMPLE).read_text(encoding="utf-8"),
    }
    text = _environment().get_template(name).render(**given, **values)
    return Prompt(_tidy(text), {n: _hash(n) for n in _parts(name, brief.backend)})


def templates() -> tuple[str, ...]:
    """The files of the prompts."""
    return tuple(sorted(p.name for p in FOLDER.iterdir() if p.suffix in (".j2", ".tl")))


def _tidy(text: str) -> str:
    """No trailing blanks, no two empty lines in a row, one end of line at the end."""
    lines: list[str] = []
    for line in (raw.rstrip() for raw in text.splitlines()):
        if line or (lines and lines[-1]):
            lines.append(line)
    return "\n".join(lines).strip() + "\n"


@cache
def _hash(name: str) -> str:
    return hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()


@cache
def _parts(name: str, backend: str) -> tuple[str, ...]:
    """The template and all that it includes."""
    environment = _environment()
    tree = environment.parse((FOLDER / name).read_text(encoding="utf-8"))
    found = [name]
    for include in tree.find_all(nodes.Include):
        if isinstance(include.template, nodes.Const):
            part = str(include.template.value)
        else:  # 'backend-' ~ backend ~ '.md.j2'
            assert isinstance(include.template, nodes.Concat)
            part = "".join(
                str(piece.value) if isinstance(piece, nodes.Const) else backend
                for piece in include.template.nodes
            )
        found += [p for p in _parts(part, backend) if p not in found]
    if name == "tl-language.md.j2":
        found.append(EXAMPLE)
    return tuple(found)
