"""Owns finding the packaged corpus: correct programs in several styles, each with the task it is for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

STYLES = ("reference", "primitive", "lenient", "sketch")
_FOLDER = Path(__file__).with_name("corpus")
_TASK = re.compile(r"^(?:#|//)\s*task:\s*(\w+)", re.MULTILINE)
# A sketch names no sizes and so fits several tasks; this is the one whose symbols it uses.
_SKETCHES = {
    "01_paper": "mha",
    "02_causal": "mha_causal",
    "03_window": "sliding_window",
    "04_softcap_by_hand": "softcap",
    "05_two_loops": "mha_causal",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One program. `name` is unique: style/stem. Canonical styles have one program for each task."""

    name: str
    style: str
    task: str
    text: str

    @property
    def level(self) -> Literal["sketch", "code"]:
        """The level of completeness it is written for."""
        return "sketch" if self.style == "sketch" else "code"


def corpus(style: str | None = None) -> tuple[Entry, ...]:
    """All programs, or those of one style, in order of their names; raises ValueError for no such style."""
    if style is not None and style not in STYLES:
        raise ValueError(f"no style {style!r}; there are: {', '.join(STYLES)}")
    return tuple(entry for one in STYLES if style in (None, one) for entry in _style(one))


@cache
def _style(style: str) -> tuple[Entry, ...]:
    return tuple(_entry(style, path) for path in sorted((_FOLDER / style).glob("*.tl")))


def _entry(style: str, path: Path) -> Entry:
    text = path.read_text(encoding="utf-8")
    written = _TASK.search(text)
    task = written[1] if written else _SKETCHES.get(path.stem, path.stem)
    return Entry(f"{style}/{path.stem}", style, task, text)
