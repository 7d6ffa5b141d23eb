"""Owns whether the way from a result to what a model was asked is whole: trials.jsonl, transcripts.jsonl.

A result of a generated kernel names its trial; the trial's ending names the kernel, its steps the
exchanges, and an exchange is named by the hash of its request: model, messages, sampling, sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.audit_results import Report, ResultLine
from harness.journal import lines_of, torn
from harness.llm.client import Message, Request, Sampling
from harness.records import content_hash
from harness.seals import RecordError
from harness.story import Ending, Exchange, Step, read_line
from harness.storybook import TRANSCRIPTS, TRIALS


@dataclass
class Stories:
    """What the two files hold, each record with its place."""

    exchanges: dict[str, str] = field(default_factory=dict)  # id -> where
    steps: dict[str, dict[int, tuple[Step, str]]] = field(default_factory=dict)
    endings: dict[str, tuple[Ending, str]] = field(default_factory=dict)

    def kernels(self) -> Iterator[tuple[str, str, Mapping[str, str]]]:
        """Where a kernel is named, its hash, its files."""
        for steps in self.steps.values():
            for step, where in steps.values():
                if step.candidate and step.files:
                    yield where, step.candidate, step.files
        for ending, where in self.endings.values():
            if ending.candidate and ending.files:
                yield where, ending.candidate, ending.files

    def check_results(self, results: Iterable[ResultLine], report: Report) -> None:
        """Each result of a generated kernel has its trial, which ended with this very kernel."""
        measured: set[str] = set()
        for line in results:
            c = line.result.candidate
            if not c.trial:
                continue
            measured.add(c.trial)
            if c.trial not in self.endings:
                report.found(line.where, f"{TRIALS} has no ending of its trial {c.trial[:12]}")
                continue
            ending, where = self.endings[c.trial]
            kernel = ending.candidate or content_hash({"trial": ending.trial})
            if (c.sha256, dict(c.files)) != (kernel, dict(ending.files)):
                report.found(line.where, f"its kernel is not the one that its trial ended with ({where})")
            a = ending.assignment
            if (c.method, c.model, c.sample, line.result.task) != (a.method, a.model, a.sample, a.task):
                report.found(line.where, f"it names another method, model, sample or task than {where}")
            if ending.verdict is not None and line.result.verdict is not ending.verdict:
                report.found(line.where, f"it is {line.result.verdict}, and {where} is {ending.verdict}")
        if left := len(self.endings.keys() - measured):
            report.notes.append(f"{left} trials of models ended and have no result: not measured, or dropped")


def check_stories(run: Path, report: Report) -> Stories:
    """Both files; none of them is there in a run without generated kernels."""
    stories = Stories()
    for where, line in _read(run / TRANSCRIPTS, report):
        if not isinstance(line, Exchange):
            report.found(where, f"a {line.kind} does not belong there")
            continue
        if line.id in stories.exchanges:
            report.found(where, f"the same question as {stories.exchanges[line.id]}: one of them was put in")
        stories.exchanges.setdefault(line.id, where)
        if line.id != request_of(line).key:
            report.found(where, "its id is not the hash of what was asked: model, prompt or sampling changed")
    for where, line in _read(run / TRIALS, report):
        if isinstance(line, Exchange):
            report.found(where, "an exchange does not belong there")
        elif isinstance(line, Ending):
            if line.trial in stories.endings:
                report.found(where, f"its trial ended before, at {stories.endings[line.trial][1]}")
            stories.endings[line.trial] = (line, where)
        else:
            _take_step(line, where, stories, report)
    for trial, steps in stories.steps.items():
        _check_numbers(trial, steps, report)
    for ending, where in stories.endings.values():
        for what in _ending_without_grounds(ending, stories.steps.get(ending.trial, {})):
            report.found(where, what)
    return stories


def request_of(exchange: Exchange) -> Request:
    """The question that an exchange answers."""
    given = exchange.sampling
    return Request(
        model=exchange.model,
        messages=tuple(Message(m.role, m.content) for m in exchange.messages),
        sampling=Sampling(int(given.get("max_tokens", 0)), given.get("temperature"), given.get("top_p")),
        sample=exchange.sample,
    )


def _read(file: Path, report: Report) -> Iterator[tuple[str, Exchange | Step | Ending]]:
    lines = lines_of(file.read_bytes()) if file.is_file() else []
    for number, line in enumerate(lines, 1):
        where = f"{file.name}:{number}"
        if number == len(lines) and torn(line):
            report.notes.append(f"{where} is torn: writing it was cut off, and resuming does it again")
            return
        try:
            yield where, read_line(line.decode())
        except (RecordError, UnicodeDecodeError) as error:
            report.found(where, str(error))


def _take_step(step: Step, where: str, stories: Stories, report: Report) -> None:
    steps = stories.steps.setdefault(step.trial, {})
    if step.number in steps:
        report.found(where, f"step {step.number} of its trial stands at {steps[step.number][1]} already")
    if step.trial in stories.endings:
        report.found(where, f"its trial ended before, at {stories.endings[step.trial][1]}")
    if step.what == "ask" and step.exchange not in stories.exchanges:
        report.found(where, f"{TRANSCRIPTS} lacks the exchange {step.exchange[:12]} that it names")
    steps.setdefault(step.number, (step, where))


def _check_numbers(trial: str, steps: Mapping[int, tuple[Step, str]], report: Report) -> None:
    missing = sorted(set(range(max(steps))) - steps.keys())
    if missing:
        numbers = ", ".join(map(str, missing))
        report.found(TRIALS, f"trial {trial[:12]} lacks its steps number {numbers}: lines were dropped")


def _ending_without_grounds(ending: Ending, steps: Mapping[int, tuple[Step, str]]) -> list[str]:
    """What an ending says that the steps before it do not."""
    taken = [step for step, _ in steps.values()]
    asks = [step for step in taken if step.what == "ask"]
    found = []
    if ending.turns != len(asks):
        found.append(f"it counts {ending.turns} questions, and its trial has steps of {len(asks)}")
    if ending.candidate and ending.candidate not in {step.candidate for step in taken}:
        found.append(f"no step of its trial made the kernel {ending.candidate[:12]} that it names")
    told = {name: hashed for step in asks for name, hashed in step.prompts.items()}
    if told != dict(ending.prompts):
        found.append("the templates that it names are not those that its questions were made of")
    return found
