"""The page on comparing and exporting says what the code does: statuses, formats, constants."""

from __future__ import annotations

import math

from harness.verdicts import Verdict
from reports.changes.drift import FEWEST_CONTROLS, USUAL_DRIFT
from reports.changes.verdicts import ORDER
from reports.flashinfer.traces import NO_STATUS, STATUS
from reports.formats import FORMATS
from tests.docs.pages import names, plain, rows, text_of

PAGE = "docs/compare-and-export.md"


def test_the_table_of_statuses_is_the_codes() -> None:
    said: dict[Verdict, str | None] = {}
    for verdicts, status in rows(PAGE, "verdict"):
        found = names(status)
        for verdict in names(verdicts):
            said[Verdict(verdict)] = next(iter(found)) if found else None
    assert said == {**STATUS, **dict.fromkeys(NO_STATUS)}


def test_the_table_of_formats_is_the_codes() -> None:
    table = {plain(name): plain(file).rstrip("/") for name, file, _ in rows(PAGE, "format")}
    assert table == {f.name: f.default for f in FORMATS.values()}


def test_the_turns_and_constants_are_the_codes() -> None:
    assert [plain(turn) for turn, _ in rows(PAGE, "change")] == [t.value for t in ORDER]
    text = text_of(PAGE)
    assert f"fewer than {FEWEST_CONTROLS} controls" in text
    assert f"at least {100 * math.expm1(USUAL_DRIFT):.1f} %" in text
