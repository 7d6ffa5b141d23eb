"""Owns which versions of the harness decide the same numbers, though their sources differ.

A version is the hash of the sources that decide a number or a verdict. Where a change among them leaves
numbers and recorded verdicts as they were, it is named here with the reason, and the report of a run that
spans it says so. Nothing else makes two versions comparable.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Alike:
    """Versions that decide the same numbers, the first named for all, and why."""

    versions: tuple[str, ...]
    why: str


ALIKE = (
    Alike(
        ("b9db7e833f8f", "459c4846b429", "71cd6a3799d8", "d4b2ba7cc104"),
        "between them the judge's bursts came to be one CUDA graph each, with less slack; how kernels are "
        "checked and sampled is the same, and in published runs that span them no clock convicted anybody, "
        "and no time contradicts what the judge saw by the stricter rule",
    ),
)


def version(sources: str) -> str:
    """That which stands for all versions like this one."""
    return next((a.versions[0] for a in ALIKE if sources in a.versions), sources)


def told(sources: Iterable[str]) -> list[str]:
    """What a reader must know of figures made of results of these versions."""
    known = set(sources)
    return [
        f"Harness sources {', '.join(found)} count as one version: {a.why}."
        for a in ALIKE
        if len(found := [v for v in a.versions if v in known]) > 1
    ]
