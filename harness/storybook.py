"""Owns the stories of a run on disk: exchanges with models, steps and endings of trials.

Both files are append-only and belong to the run's one writer; answers are written by the thread that
received them, before anything else is done with them: an answer that was paid for is not lost.
"""

from __future__ import annotations

import threading
from pathlib import Path

from harness.journal import Journal, StoreError
from harness.records import Verification
from harness.seals import RecordError
from harness.story import Ending, Exchange, Step, read_line

TRANSCRIPTS = "transcripts.jsonl"
TRIALS = "trials.jsonl"


class Storybook:
    """`transcripts.jsonl` and `trials.jsonl` of a run, whose `Store` holds the lock."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._transcripts: Journal[Exchange] = Journal(path / TRANSCRIPTS, _exchange)
        try:
            self._trials: Journal[Step | Ending] = Journal(path / TRIALS, _step_or_ending)
        except StoreError:
            self._transcripts.close()
            raise
        self.exchanges: dict[str, Exchange] = {e.id: e for e in self._transcripts.lines}
        self.steps: dict[str, list[Step]] = {}
        self.endings: dict[str, Ending] = {}
        for line in self._trials.lines:
            self._take(line)
        self.dropped = self._transcripts.dropped or self._trials.dropped

    def _take(self, line: Step | Ending) -> None:
        if isinstance(line, Step):
            self.steps.setdefault(line.trial, []).append(line)
        else:
            self.endings[line.trial] = line

    def add_exchange(self, exchange: Exchange) -> None:
        """Keep an answer; one that is there already stays. Safe to call from any thread."""
        with self._lock:
            if exchange.id not in self.exchanges:
                self._transcripts.append(exchange.model_dump_json(exclude_defaults=False))
                self.exchanges[exchange.id] = exchange

    def add(self, line: Step | Ending) -> None:
        """Keep a step or an ending."""
        with self._lock:
            self._trials.append(line.model_dump_json(exclude_defaults=False))
            self._take(line)

    def last_verification(self, ending: Ending) -> Verification | None:
        """The checks of the kernel that a trial ended with."""
        tries = [s for s in self.steps.get(ending.trial, []) if s.candidate == ending.candidate != ""]
        return tries[-1].verification if tries else None

    def close(self) -> None:
        """Nothing more is written."""
        self._transcripts.close()
        self._trials.close()


def _exchange(line: str) -> Exchange:
    value = read_line(line)
    if not isinstance(value, Exchange):
        raise RecordError(f"a {value.kind} does not belong into {TRANSCRIPTS}")
    return value


def _step_or_ending(line: str) -> Step | Ending:
    value = read_line(line)
    if isinstance(value, Exchange):
        raise RecordError(f"an exchange does not belong into {TRIALS}")
    return value
