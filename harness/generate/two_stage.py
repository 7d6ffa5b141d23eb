"""Owns the way through LLM-TL: sketch, program, kernel; the program is proven before the kernel."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from harness.generate.conversation import Conversation
from harness.generate.extract import program_of
from harness.generate.method import (
    Answer,
    Brief,
    Compile,
    Examine,
    Reply,
    Step,
    Story,
    Time,
    answer_of,
    reply_of,
)
from harness.generate.prompts import render
from harness.generate.vanilla import kernel_story
from harness.llm.client import Stop

KEPT_FOR_KERNEL = 2  # turns that thinking leaves to the translation: to write it, and to repair it once

# A program, and what the checker or the interpreter still says of it ("" where nothing).
_Thought = Generator[Step, Answer | Reply, tuple[str, str]]


def tl(brief: Brief) -> Story:
    """Sketch, then program, then a translation by a model."""
    talk = yield from _sketch(brief)
    program, findings = yield from _program(brief, talk, brief.turns - KEPT_FOR_KERNEL)
    yield from _translate(brief, program, findings)


def tl_unguided(brief: Brief) -> Story:
    """As `tl`, but the translation is asked for without the guide to the backend: does the guide help?"""
    talk = yield from _sketch(brief)
    program, findings = yield from _program(brief, talk, brief.turns - KEPT_FOR_KERNEL)
    yield from _translate(brief, program, findings, guided=False)


def tl_one_stage(brief: Brief) -> Story:
    """The program without a sketch before it, then a translation by a model."""
    talk = Conversation(render("tl-one-stage", brief))
    program, findings = yield from _program(brief, talk, brief.turns - KEPT_FOR_KERNEL)
    yield from _translate(brief, program, findings)


def tl_compiled(brief: Brief) -> Story:
    """Sketch, then program, then the compiler; what it or the verification says goes back to the program."""
    talk = yield from _sketch(brief)
    program, _ = yield from _program(brief, talk, brief.turns)
    program = yield from _compiled(brief, talk, program)
    yield from _refine(brief, talk, program)


def tl_scheduled(brief: Brief) -> Story:
    """As `tl_compiled`, and the model writes the schedule too, a question of its own."""
    talk = yield from _sketch(brief)
    program, findings = yield from _program(brief, talk, brief.turns - KEPT_FOR_KERNEL)
    if not findings and talk.answers < brief.turns:
        talk.tell(render("tl-schedule", brief))
        program, _ = yield from _program(brief, talk, brief.turns, stage="schedule")
    program = yield from _compiled(brief, talk, program)
    yield from _refine(replace(brief, search=False), talk, program)  # the model's schedule stands


def _compiled(brief: Brief, talk: Conversation, program: str) -> Generator[Step, Answer | Reply, str]:
    """Until the compiled program passes; returns it."""
    while not (reply := reply_of((yield Compile("compile", program)))).passed:
        _correct(brief, talk, "The compiler or the verification says", reply.told)
        program, _ = yield from _program(brief, talk, brief.turns, stage="repair")
    return program


def _sketch(brief: Brief) -> Generator[Step, Answer | Reply, Conversation]:
    """Ask for a sketch; what the checker says of it goes into the question for the program."""
    talk = Conversation(render("tl-sketch", brief))
    answer = talk.heard(answer_of((yield talk.ask("sketch"))))
    sketch = program_of(answer.text)
    findings = ""
    if sketch is not None:
        reply = reply_of((yield Examine("sketch", sketch, "sketch")))
        findings = "" if reply.passed else reply.told
    talk.tell(render("tl-code", brief, findings=findings, sketch_missing=sketch is None))
    return talk


def _program(brief: Brief, talk: Conversation, turns: int, stage: str = "code") -> _Thought:
    """Until the program passes, or `turns` questions are asked; then the last program goes on as it is."""
    program, told = "", ""
    while True:
        answer = talk.heard(answer_of((yield talk.ask(stage))))
        found = program_of(answer.text)
        if found is not None:
            program = found
            reply = reply_of((yield Examine("code", program)))
            if reply.passed:
                return program, ""
            told = reply.told
        if program and talk.answers >= turns:
            return program, told
        stage = "repair"
        if found is None:
            _ask_again(brief, talk, answer)
        else:
            _correct(brief, talk, "The checker says", told)


def _correct(brief: Brief, talk: Conversation, source: str, told: str) -> None:
    talk.tell(render("program-feedback", brief, missing=False, cut=False, source=source, told=told))


def _ask_again(brief: Brief, talk: Conversation, answer: Answer) -> None:
    cut = answer.stop is Stop.LENGTH
    talk.tell(render("program-feedback", brief, missing=True, cut=cut, source="", told=""))


def _translate(brief: Brief, program: str, findings: str, guided: bool = True) -> Story:
    prompt = render("translate", brief, program=program.strip("\n"), findings=findings, guided=guided)
    yield from kernel_story(brief, prompt, stage="translation", role="translate", program=program)


def _refine(brief: Brief, talk: Conversation, program: str) -> Story:
    """As for any kernel; what changes is the program, whose tiles are searched before it is timed."""
    for _ in range(brief.rounds):
        timed = reply_of((yield Time("refine", program)))
        talk.tell(render("refine", brief, told=timed.told, program_wanted=True))
        answer = talk.heard(answer_of((yield talk.ask("refine"))))
        found = program_of(answer.text)
        if found is None or not reply_of((yield Compile("refine", found))).passed:
            return
        program = found
    if brief.rounds or brief.search:
        yield Time("refine", program)
