"""The page on cheating shows the corpus as it is: attack, verdict, what stops it."""

from __future__ import annotations

from pathlib import Path

from tests.hacks.corpus import CORPUS
from tests.hacks.gpu_corpus import GPU_CORPUS

PAGE = Path(__file__).parents[2] / "docs" / "cheating.md"


def table(hacks) -> str:  # type: ignore[no-untyped-def]
    """As Markdown."""
    lines = ["| kernel | attack | verdict | what stops it |", "|---|---|---|---|"]
    for hack in hacks:
        verdicts = " or ".join(f"`{v}`" for v in sorted(hack.verdict))
        lines.append(f"| `{hack.name}` | {hack.attack} | {verdicts} | {hack.stopped_by} |")
    return "\n".join(lines)


def test_the_tables_are_the_corpus() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert table(CORPUS) in text
    assert table(GPU_CORPUS) in text
    assert len(CORPUS) + len(GPU_CORPUS) >= 45
