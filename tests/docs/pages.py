"""Reads pages for the tests of the documentation: code blocks, files in them, rows of tables."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


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
