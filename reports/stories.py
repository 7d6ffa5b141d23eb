"""Owns what the page tells of each trial: its steps, programs, questions and answers, bounded in length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.story import Ending, Exchange, Said, Step
from reports import text
from reports.generated import Generated
from reports.generation import Attempt
from reports.trials import TRANSCRIPTS, TRIALS

TEXT_LIMIT = 20_000  # characters of one prompt, answer, program or finding
PAGE_LIMIT = 3_000_000  # characters of all stories together; past it a trial is named, not told


@dataclass(frozen=True)
class Asked:
    """One question and its answer. What the conversation held before is not repeated."""

    facts: str
    before: int  # messages of the conversation that earlier steps show
    prompt: tuple[tuple[str, str], ...]  # role, text
    answer: str
    characters: int  # of the whole answer


@dataclass(frozen=True)
class Told:
    """One step of a trial."""

    number: int
    stage: str
    what: str
    outcome: str
    said: str  # findings, disagreement, reason or times
    program: str
    asked: Asked | None

    @property
    def size(self) -> int:
        asked = (
            0 if self.asked is None else len(self.asked.answer) + sum(len(t) for _, t in self.asked.prompt)
        )
        return len(self.said) + len(self.program) + asked


@dataclass(frozen=True)
class Story:
    """One trial; without steps where the page has no room for them."""

    trial: str
    title: str
    ended: str
    style: str  # good, bad, or muted where the machine spoilt it
    facts: tuple[tuple[str, str], ...]
    steps: tuple[Told, ...]
    left_out: str  # why there are no steps, and where they are


def anchor(trial: str) -> str:
    """The fragment of a trial's story."""
    return f"t-{trial[:12]}"


def stories(of: Generated) -> list[Story]:
    """Every trial that ended, in the order of the report; told in full as far as there is room."""
    exchanges = {e.id: e for e in of.dataset.exchanges}
    steps: dict[str, list[Step]] = {}
    for step in of.dataset.steps:
        steps.setdefault(step.trial, []).append(step)
    room, found = PAGE_LIMIT, []
    for attempt in of.attempts:
        told = _steps(steps.get(attempt.ending.trial, []), exchanges)
        size = sum(t.size for t in told)
        fits = size <= room
        room -= size if fits else 0
        found.append(_story(of, attempt, told if fits else (), fits))
    return found


def _story(of: Generated, a: Attempt, told: tuple[Told, ...], fits: bool) -> Story:
    where = f"{TRIALS} and {TRANSCRIPTS}"
    left_out = (
        "" if told else f"No step of it is in {TRIALS}." if fits else f"No room in this page; see {where}."
    )
    return Story(
        trial=a.ending.trial,
        title=f"{of.names[a.maker]}, sample {a.ending.assignment.sample}, {a.task}",
        ended="correct" if a.correct else str(a.ending.verdict),
        style="good" if a.correct else "bad" if a.counted else "muted",
        facts=_facts(a.ending),
        steps=told,
        left_out=left_out,
    )


def _facts(e: Ending) -> tuple[tuple[str, str], ...]:
    a = e.assignment
    usd = text.usd(e.usd or 0.0, unpriced=e.usd is None, of=1)
    first = e.first_correct_s
    least = bool(e.latency_unknown)
    facts = [
        ("trial", e.trial),
        ("assignment", f"{a.method}, {a.task} on {a.target} in {a.backend}, sample {a.sample}"),
        ("models", " -> ".join(a.models)),
        ("ended", "with a correct kernel" if e.verdict is None else str(e.verdict)),
        ("why", e.reason),
        ("kernel", f"{e.candidate[:12]} ({', '.join(e.files)})" if e.candidate else "none"),
        ("turns", f"{e.turns}, kernels tried: {e.verifications}"),
        (
            "tokens",
            f"{text.tokens(e.tokens_in, e.tokens_estimated)} in, "
            f"{text.tokens(e.tokens_out, e.tokens_estimated)} out; USD: {usd}",
        ),
        ("minutes", text.minutes(e.wall_s, least)),
        ("to the first correct kernel, min", "" if first is None else text.minutes(first, least)),
        ("prompts", ", ".join(f"{name} {sha[:8]}" for name, sha in sorted(e.prompts.items()))),
        ("recorded", e.recorded_at),
    ]
    return tuple((name, said) for name, said in facts if said)


def _steps(steps: Sequence[Step], exchanges: dict[str, Exchange]) -> tuple[Told, ...]:
    told = []
    heard: tuple[Said, ...] = ()  # the conversation so far
    for step in sorted(steps, key=lambda s: s.number):
        exchange = exchanges.get(step.exchange) if step.what == "ask" else None
        told.append(
            Told(
                number=step.number,
                stage=step.stage,
                what=step.what.replace("_", " "),
                outcome=_outcome(step),
                said=cut(_said(step, exchange)),
                program=cut(step.program),
                asked=_asked(exchange, heard) if exchange else None,
            )
        )
        if exchange is not None:
            heard = (*exchange.messages, Said(role="assistant", content=exchange.text))
    return tuple(told)


def _outcome(step: Step) -> str:
    if step.what == "ask":
        return f"turn {step.turn}"
    if step.what == "failed_ask":
        return "no answer"
    passed = {True: "passed", False: "not passed", None: ""}[step.passed]
    verdict = step.verdict.value if step.verdict else ""
    score = "" if step.score is None else f"{step.score:.1f} TFLOP/s"
    wall = f"{step.wall_s:.1f} s" if step.wall_s else ""
    return ", ".join(filter(None, (verdict or passed, score, wall)))


def _said(step: Step, exchange: Exchange | None) -> str:
    if step.what == "ask":
        return "" if exchange else f"Its answer {step.exchange[:12]} is not in {TRANSCRIPTS}."
    best = [f"best tiles for {cell}: {tiles}" for cell, tiles in step.best.items()]
    kernel = [f"kernel {step.candidate[:12]}: {', '.join(step.files)}"] if step.candidate else []
    return "\n".join([*([step.told] if step.told else []), *best, *kernel])


def _asked(e: Exchange, heard: tuple[Said, ...]) -> Asked:
    before = 0
    while before < min(len(heard), len(e.messages)) and heard[before] == e.messages[before]:
        before += 1
    counts = "tokens not reported"
    if e.tokens_in is not None and e.tokens_out is not None:
        counts = f"{e.tokens_in:,} + {e.tokens_out:,} tokens"
    facts = [
        f"to {e.model}",
        f"answered by {e.reported_model}" if e.reported_model else "",
        e.version,
        counts,
        "latency not known" if e.latency_s is None else f"{e.latency_s:.1f} s",
        "" if e.stop == "end" else f"stopped: {e.stop}",
    ]
    prompt = tuple((m.role, cut(m.content)) for m in e.messages[before:])
    return Asked(", ".join(filter(None, facts)), before, prompt, cut(e.text), len(e.text))


def cut(said: str) -> str:
    """The beginning of a long text, with a mark where it was cut."""
    if len(said) <= TEXT_LIMIT:
        return said
    return f"{said[:TEXT_LIMIT]}\n[... cut here: {len(said) - TEXT_LIMIT:,} more characters]"
