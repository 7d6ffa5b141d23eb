"""Reads the LLM-TL programs of the documentation: whole ones, and changes to programs of the corpus."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.tl.corpus_index import corpus
from tests.docs.pages import ROOT

_CHANGE = re.compile(
    r"^In the (?:(reference|primitive) program of `(\w+)`|program `([\w/]+)`)"
    r"(?:, on `(\w+)`)?(?:, in `(\w+)`)?:\n\n```diff\n(.*?)^```",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Example:
    """A wrong program and the right one that it is made from."""

    task: str
    wrong: str
    right: str
    target: str | None
    dtype: str


def sections(page: str) -> dict[str, str]:
    """The text of each section by its heading, of any depth."""
    found = re.split(r"^#+ (.*)$", (ROOT / page).read_text(), flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def examples(text: str) -> list[Example]:
    """The changes in a part of a page, each applied to its program."""
    programs = {entry.name: entry for entry in corpus()}
    found = []
    for style, task, name, target, dtype, diff in _CHANGE.findall(text):
        entry = programs[name or f"{style}/{task}"]
        wrong = changed(entry.text, diff)
        found.append(Example(entry.task, wrong, entry.text, target or None, dtype or "fp16"))
    assert len(found) == text.count("```diff"), "a diff without a sentence that names its program"
    return found


def changed(program: str, diff: str) -> str:
    """The program with its `+` lines, found with their neighbours in the diff, turned into the `-` lines."""
    lines = [line for line in program.split("\n") if line.strip() and not line.lstrip().startswith("#")]
    for hunk in diff.split("@@\n"):
        parts = [(line[:1], line[1:]) for line in hunk.split("\n") if line]
        before = [text for mark, text in parts if mark != "-"]
        after = [text for mark, text in parts if mark != "+"]
        if not before:  # an added line alone: last in a loop where it is indented, else before the first copy
            at = insertion(lines, after[0])
            lines[at:at] = after
            continue
        places = [n for n in range(len(lines)) if stripped(lines[n : n + len(before)]) == stripped(before)]
        assert len(places) == 1, f"{len(places)} places for:\n{hunk}"
        lines[places[0] : places[0] + len(before)] = after
    return "\n".join(lines) + "\n"


def insertion(lines: list[str], new: str) -> int:
    """Where a line goes that the page shows without its neighbours."""
    first = "end" if new.startswith(" ") else "Copy"
    if new.startswith("Compute"):
        return next(n for n, line in enumerate(lines) if "to global" in line)
    return next(n for n, line in enumerate(lines) if line.startswith(first))


def stripped(lines: list[str]) -> list[str]:
    return [line.strip() for line in lines]
