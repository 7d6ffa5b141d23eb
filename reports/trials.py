"""Owns reading how generated kernels came to be: trials.jsonl and transcripts.jsonl of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.seals import RecordError
from harness.story import Ending, Exchange, Step, read_line
from reports.lines import SkippedLine, read_lines

TRIALS = "trials.jsonl"
TRANSCRIPTS = "transcripts.jsonl"


@dataclass(frozen=True)
class Stories:
    """Trials as read: endings and exchanges once each, steps in the order in which they were taken."""

    endings: tuple[Ending, ...] = ()
    steps: tuple[Step, ...] = ()
    exchanges: tuple[Exchange, ...] = ()


def read_stories(run: Path, skipped: list[SkippedLine]) -> Stories:
    """Both files of a run; empty for a run without generated kernels.

    The later ending of a trial counts, the later record of a step, and the first of an exchange: an
    answer that was heard is not asked for again.
    """
    endings: dict[str, Ending] = {}
    steps: dict[tuple[str, int], Step] = {}
    for _, line in read_lines(run / TRIALS, _step_or_ending, skipped):
        if isinstance(line, Ending):
            endings[line.trial] = line
        else:
            steps[(line.trial, line.number)] = line
    exchanges: dict[str, Exchange] = {}
    for _, exchange in read_lines(run / TRANSCRIPTS, _exchange, skipped):
        exchanges.setdefault(exchange.id, exchange)
    return Stories(tuple(endings.values()), tuple(steps.values()), tuple(exchanges.values()))


def _step_or_ending(line: str) -> Step | Ending:
    value = read_line(line)
    if isinstance(value, Exchange):
        raise RecordError(f"an exchange does not belong into {TRIALS}")
    return value


def _exchange(line: str) -> Exchange:
    value = read_line(line)
    if not isinstance(value, Exchange):
        raise RecordError(f"a line of kind {value.kind} does not belong into {TRANSCRIPTS}")
    return value
