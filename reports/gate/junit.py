"""Owns the gate as JUnit XML: a test case a case, for whatever shows test results."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from reports.gate.decision import FAILS, Judgement, Outcome
from reports.gate.words import sentence

SKIPPED = frozenset({Outcome.NOT_COMPARABLE, Outcome.NEW, Outcome.AGAIN})
# What XML 1.0 cannot hold, escaped or not: a kernel's own message may.
_UNSPEAKABLE = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(judgement: Judgement) -> bytes:
    """The document. Slower and missing are failures; not comparable, new and undecided are skipped."""
    suite = ElementTree.Element(
        "testsuite",
        name="attnbench gate",
        tests=str(len(judgement.decisions)),
        failures=str(len(judgement.of(*FAILS))),
        errors="0",
        skipped=str(len(judgement.of(*SKIPPED))),
    )
    for d in judgement.decisions:
        place, _, name = d.case.rpartition("/")
        case = ElementTree.SubElement(suite, "testcase", classname=_clean(place), name=_clean(name))
        message = _clean(f"{d.case} {sentence(d)}")
        if d.outcome in FAILS:
            failure = ElementTree.SubElement(case, "failure", type=str(d.outcome), message=message)
            failure.text = message
        elif d.outcome in SKIPPED:
            ElementTree.SubElement(case, "skipped", message=message)
        else:
            ElementTree.SubElement(case, "system-out").text = message
    suites = ElementTree.Element("testsuites", name="attnbench gate")
    suites.append(suite)
    ElementTree.indent(suites)
    document: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return document


def _clean(text: str) -> str:
    return _UNSPEAKABLE.sub("?", text)
