"""Owns what GitHub Actions is told: annotations on standard output, and the page of a step."""

from collections.abc import Iterator

from reports.gate.decision import Decision, Judgement, Outcome
from reports.gate.words import sentence

LEVELS = {
    Outcome.SLOWER: "error",
    Outcome.MISSING: "error",
    Outcome.NOT_COMPARABLE: "warning",
    Outcome.UNCLEAR: "warning",
    Outcome.FASTER: "notice",
    Outcome.NEW: "notice",
}


def annotations(judgement: Judgement) -> Iterator[str]:
    """A workflow command for each case that somebody should look at."""
    for d in judgement.decisions:
        if level := LEVELS.get(d.outcome):
            yield f"::{level} {_properties(d)}::{_data(f'{d.case} {sentence(d)}')}"


def _properties(d: Decision) -> str:
    case = d.new or d.stored
    found = {"title": f"Gate: {d.outcome}"}
    if case is not None and case.source:
        found = {"file": case.source, **found}
    return ",".join(f"{key}={_property(value)}" for key, value in found.items())


def _data(text: str) -> str:
    """As GitHub's own toolkit escapes the text of a command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
