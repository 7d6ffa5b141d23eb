"""Owns the measurement of the checker: planted defects it finds, correct programs it blames.

A mutant of a correct program is found by the checker (an error, with or without a target), else by the
interpreter (a wrong result, or none, on small workloads), else looked at once more on other, larger
workloads: where those show a difference it was missed, where they do not it is a program as correct
as its origin. The expected values come from the caller: the language knows no task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from harness.targets import Target, find_target
from harness.tl import ir, syntax
from harness.tl.check import check
from harness.tl.corpus_index import Entry, corpus
from harness.tl.diagnostics import Severity
from harness.tl.format import format_program
from harness.tl.mutate import KINDS, Mutant, mutants
from harness.tl.mutation_trials import Expected, Trial, fails, first_trials, second_trials
from harness.tl.parse import parse
from harness.tl.problem import TaskLike

STYLES = ("reference", "primitive")
TARGETS: tuple[Target | None, ...] = (None, find_target("h100"))


class Outcome(StrEnum):
    """What became of a mutant."""

    CHECKER = "checker"
    INTERPRETER = "interpreter"
    EQUIVALENT = "equivalent"
    MISSED = "missed"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One mutant with its outcome; `codes` of the checker's errors."""

    program: str
    mutant: Mutant
    outcome: Outcome
    codes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KindFigures:
    """Counts of one kind's mutants. `found` by the checker, `interpreted`: found by running it only."""

    kind: str
    mutants: int
    found: int
    interpreted: int
    equivalent: int
    missed: int

    @property
    def defects(self) -> int:
        """Those that are wrong: by the checker's word, or by their result."""
        return self.mutants - self.equivalent


@dataclass(frozen=True, slots=True)
class Figures:
    """Both rates. `false_alarms`: a line for each error or warning on a correct program."""

    verdicts: tuple[Verdict, ...]
    programs: int
    false_alarms: tuple[str, ...]

    @property
    def kinds(self) -> tuple[KindFigures, ...]:
        """One row for each kind that applied, in the order of KINDS."""
        rows = (_counted(kind, [v for v in self.verdicts if v.mutant.kind == kind]) for kind in KINDS)
        return tuple(row for row in rows if row.mutants)

    @property
    def total(self) -> KindFigures:
        return _counted("total", self.verdicts)

    @property
    def missed(self) -> tuple[Verdict, ...]:
        return tuple(v for v in self.verdicts if v.outcome is Outcome.MISSED)

    @property
    def checker_share(self) -> float:
        """The part of all defects that the checker finds without running anything; 1 where there is none."""
        total = self.total
        return total.found / total.defects if total.defects else 1.0


def measure(
    tasks: Mapping[str, TaskLike],
    expected: Expected,
    *,
    per_kind: int | None = None,
    moved: Callable[[int, int], None] = lambda done, total: None,
) -> Figures:
    """The figures over the canonical corpus; with `per_kind`, over at most so many mutants of each kind.

    `expected(task, workload, inputs)` gives a task's exact outputs by name, at least in float32.
    `moved` is told how many mutants are done.
    """
    origins = [_Origin(entry, tasks[entry.task], expected) for style in STYLES for entry in corpus(style)]
    pairs = [(origin, mutant) for origin in origins for mutant in mutants(origin.program)]
    sample = _sampled(pairs, per_kind)
    verdicts = []
    for number, (origin, mutant) in enumerate(sample, 1):
        verdicts.append(origin.judge(mutant))
        moved(number, len(sample))
    everything = corpus()
    alarms = tuple(line for entry in everything for line in _alarms(entry, tasks[entry.task]))
    return Figures(tuple(verdicts), len(everything), alarms)


def markdown(figures: Figures) -> str:
    """The figures as a table, a row for each kind, and the totals in words."""
    lines = [
        "| defect | mutants | found by the checker | found by running | same result | missed |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in figures.kinds:
        title = f"{row.kind.replace('_', ' ')}: {KINDS[row.kind].description}"
        lines.append(_row(title, row))
    lines.append(_row("**all**", figures.total))
    alarms = len(figures.false_alarms)
    lines += [
        "",
        f"The checker finds {figures.checker_share:.1%} of {figures.total.defects} defects without running "
        f"anything. False alarms on {figures.programs} correct programs: {alarms}.",
    ]
    return "\n".join(lines) + "\n"


def _row(title: str, row: KindFigures) -> str:
    cells = (title, row.mutants, row.found, row.interpreted, row.equivalent, row.missed)
    return f"| {' | '.join(map(str, cells))} |"


def _counted(kind: str, verdicts: Iterable[Verdict]) -> KindFigures:
    outcomes = [v.outcome for v in verdicts]
    return KindFigures(kind, len(outcomes), *(outcomes.count(outcome) for outcome in Outcome))


class _Origin:
    """A correct program of the corpus, with the trials of its task."""

    def __init__(self, entry: Entry, task: TaskLike, expected: Expected) -> None:
        self.name, self.task, self.expected = entry.name, task, expected
        self.program = parse(entry.text)
        self._first: tuple[Trial, ...] = first_trials(task, expected)
        self._second: tuple[Trial, ...] = second_trials(task, expected)
        _, resolved = _errors(self.program, task, None)
        self._meaning = _meaning(resolved)

    def judge(self, mutant: Mutant) -> Verdict:
        resolved: ir.Program | None = None
        written = parse(format_program(mutant.program))  # every statement has a line of its own
        for target in TARGETS:
            try:
                codes, resolved = _errors(written, self.task, target)
            except Exception as error:  # the checker raises nothing, whatever the text: say on which it did
                error.add_note(f"checking {self.name} with {mutant.kind}: {mutant.title}")
                raise
            if codes or resolved is None:
                return Verdict(self.name, mutant, Outcome.CHECKER, codes)
        assert resolved is not None
        return Verdict(self.name, mutant, self._run(resolved))

    def _run(self, resolved: ir.Program) -> Outcome:
        if _meaning(resolved) == self._meaning:
            return Outcome.EQUIVALENT
        if fails(resolved, self._first):
            return Outcome.INTERPRETER
        return Outcome.MISSED if fails(resolved, self._second) else Outcome.EQUIVALENT


def _meaning(program: ir.Program | None) -> tuple[object, ...] | None:
    """What decides a result: not the schedule, nor which tile sizes there are to choose from."""
    if program is None:
        return None
    kernels = tuple(replace(kernel, name="") for kernel in program.kernels)
    return (kernels, frozenset(name for name, _ in program.parameters))


def _errors(
    program: syntax.Program, task: TaskLike, target: Target | None
) -> tuple[tuple[str, ...], ir.Program | None]:
    report = check(program, task, target=target)
    return tuple(f.code for f in report.findings if f.is_error), report.program


def _alarms(entry: Entry, task: TaskLike) -> Iterator[str]:
    """Every error or warning on a correct program; on a target only where a program is written for all."""
    for target in TARGETS if entry.style in STYLES else (None,):
        for found in check(entry.text, task, level=entry.level, target=target).findings:
            if found.severity is not Severity.NOTE:
                on = f" on {target.name}" if target else ""
                yield f"{entry.name}:{found.pos.line}{on}: {found.code} {found.severity}: {found.message}"


def _sampled(pairs: list[tuple[_Origin, Mutant]], per_kind: int | None) -> list[tuple[_Origin, Mutant]]:
    """At most so many of each kind, spread evenly over its places."""
    if per_kind is None:
        return pairs
    of_kind: dict[str, list[tuple[_Origin, Mutant]]] = {}
    for pair in pairs:
        of_kind.setdefault(pair[1].kind, []).append(pair)
    return [
        found[at * len(found) // min(per_kind, len(found))]
        for found in of_kind.values()
        for at in range(min(per_kind, len(found)))
    ]
