"""Reads pages for the tests of the documentation: code blocks, files in them, rows of tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))

PROGRAMS = ("attnbench", "nox", "python3", "python", "pip", "pytest", "ruff", "mypy", "git", "export", "cd")
SHELLS = ("", "sh", "bash", "shell", "console")  # languages of fenced blocks that hold commands
_COMMAND = re.compile(rf"(?:\$ )?((?:[A-Z_]+=\S+ )*(?:{'|'.join(PROGRAMS)})(?: .*)?)$")


@dataclass(frozen=True)
class Line:
    """A command as a page shows it, on one line, without its comment."""

    page: str
    number: int
    text: str
    inline: bool  # in a sentence, where it may name a command rather than be one

    def __str__(self) -> str:
        return f"{self.page}:{self.number}: {self.text}"


def command_lines(page: Path) -> list[Line]:
    """Every command of a page: of indented and fenced blocks, and of code in sentences."""
    name = str(page.relative_to(ROOT))
    return list(_lines(name, page.read_text(encoding="utf-8")))


def _lines(name: str, text: str) -> Iterator[Line]:
    fence: str | None = None
    indented, prose, began = False, [""], 1
    for number, line in enumerate([*text.splitlines(), ""], 1):
        opened = re.match(r"\s*```\s*([\w-]*)", line)
        # an indented block begins after an empty line; in a list or a sentence it is no block
        indented = fence is None and line.startswith("    ") and (indented or not prose[-1].strip())
        if opened or fence is not None or indented or not line.strip():
            yield from _in_sentences(name, began, prose)
            prose, began = [""], number + 1
        else:
            prose.append(line)
        if opened:
            fence = opened[1] if fence is None else None
        elif (fence is not None and fence in SHELLS) or indented:
            yield from (Line(name, number, part, False) for part in _commands(line.strip()))
            yield from _in_sentences(name, number, [line.partition("#")[2]])


def _in_sentences(name: str, began: int, lines: list[str]) -> Iterator[Line]:
    """Code of a paragraph; it may go over the end of a line."""
    text = "\n".join(lines).removeprefix("\n")
    for code in re.finditer(r"`([^`]+)`", text):
        number = began + text.count("\n", 0, code.start())
        yield from (Line(name, number, part, True) for part in _commands(" ".join(code[1].split())))


def _commands(text: str) -> list[str]:
    """The commands of a line: without a comment, apart at && and &."""
    bare = re.sub(r"(^|\s)#.*$", "", text)
    parts = (" ".join(part.split()) for part in re.split(r"&&|&(?= |$)", bare))
    return [found[1].strip() for part in parts if (found := _COMMAND.match(part))]


def blocks(page: str, language: str) -> list[str]:
    """Fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def files(page: str) -> dict[str, str]:
    """Blocks whose first line is a comment that names a file: name -> text."""
    found = (
        re.match(r"# ([\w/]+\.(?:py|toml))\n", text)
        for lang in ("toml", "python")
        for text in blocks(page, lang)
    )
    return {match[1]: match.string for match in found if match}


def rows(page: str, first_column: str) -> list[list[str]]:
    """The cells of the one table whose first heading is `first_column`."""
    lines = (ROOT / page).read_text().splitlines()
    heads = [n for n, line in enumerate(lines) if line.startswith(f"| {first_column} |")]
    assert len(heads) == 1, f"{page} has {len(heads)} tables that begin with {first_column!r}"
    table = []
    for line in lines[heads[0] + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")])
    return table


def plain(cell: str) -> str:
    """A cell without its code marks."""
    return cell.replace("`", "")


def names(cell: str) -> set[str]:
    """What stands in code marks in a cell."""
    return set(re.findall(r"`([^`]+)`", cell))


def text_of(page: str) -> str:
    """A page on one line."""
    return " ".join((ROOT / page).read_text().split())
