"""Owns what was found in the LLM-TL programs of models: right at first, after feedback, which errors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from harness.story import Step
from reports.dataset import Dataset
from reports.generation import Attempt
from reports.samples import Maker

INTERPRETER = "interpreter"  # found no fault in reading; run on small shapes, it disagrees with the task
_CODE = re.compile(r"\bTL\d{3}\b")


@dataclass(frozen=True)
class Programs:
    """Of one maker's trials that wrote a program; `findings`: code -> programs and sketches that had it."""

    maker: Maker
    trials: int
    without: int  # trials of which no program could be examined: not among `trials`
    at_first: int
    after_feedback: int
    never: int
    examined: int  # programs, corrected ones too, and sketches
    findings: dict[str, int]  # most frequent first

    def found(self, codes: Sequence[str]) -> int:
        return sum(self.findings.get(code, 0) for code in codes)


def programs(dataset: Dataset, of: Sequence[Attempt]) -> list[Programs]:
    """One for each maker whose trials had programs examined."""
    steps: dict[str, list[Step]] = {}
    for step in dataset.steps:
        if step.what == "examine":
            steps.setdefault(step.trial, []).append(step)
    found = []
    for maker in dict.fromkeys(a.maker for a in of):
        trials = [steps.get(a.ending.trial, []) for a in of if a.maker == maker]
        if any(trials):
            found.append(_programs(maker, trials))
    return found


def _programs(maker: Maker, trials: Sequence[Sequence[Step]]) -> Programs:
    whole = [[s for s in steps if s.stage != "sketch"] for steps in trials]
    written = [[bool(s.passed) for s in steps] for steps in whole if steps]
    counts = Counter(code for steps in trials for s in steps for code in findings(s.told))
    at_first = sum(passed[0] for passed in written)
    ever = sum(any(passed) for passed in written)
    return Programs(
        maker=maker,
        trials=len(written),
        without=len(trials) - len(written),
        at_first=at_first,
        after_feedback=ever - at_first,
        never=len(written) - ever,
        examined=sum(map(len, trials)),
        findings=dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))),
    )


def findings(told: str) -> set[str]:
    """Codes in what was said of a program; without one, what the interpreter said."""
    return set(_CODE.findall(told)) or ({INTERPRETER} if told.strip() else set())
