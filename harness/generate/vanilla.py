"""Owns the direct way: the task goes in, a kernel comes out; builds and verifications go back."""

from __future__ import annotations

from harness.generate.conversation import Conversation, Role
from harness.generate.extract import kernel_of
from harness.generate.method import Brief, Story, Time, Try, answer_of, reply_of
from harness.generate.prompts import Prompt, render
from harness.llm.client import Stop
from harness.verdicts import Verdict


def vanilla(brief: Brief) -> Story:
    """Ask for the kernel at once."""
    yield from kernel_story(brief, render("vanilla", brief), stage="kernel")


def vanilla_cot(brief: Brief) -> Story:
    """The same, thinking aloud first."""
    yield from kernel_story(brief, render("vanilla-cot", brief), stage="kernel")


def kernel_story(
    brief: Brief, first: Prompt, *, stage: str, role: Role = "think", program: str = ""
) -> Story:
    """Ask for a kernel, try it, give back what went wrong, until it is right; then refine it."""
    talk = Conversation(first, role)
    while True:
        answer = talk.heard(answer_of((yield talk.ask(stage))))
        code = kernel_of(answer.text)
        source, told = "", ""
        if code.files:
            reply = reply_of((yield Try(stage, code.files)))
            if reply.passed:
                yield from _refine(brief, talk)
                return
            source, told = said_by(reply.verdict), reply.told
        stage = "repair"
        talk.tell(
            render(
                "kernel-feedback",
                brief,
                missing=not code.files,
                cut=answer.stop is Stop.LENGTH,
                source=source,
                told=told,
                program=program,
            )
        )


def said_by(verdict: Verdict | None) -> str:
    """Who speaks against a kernel."""
    return "The build says" if verdict is Verdict.BUILD_ERROR else "Verification says"


def _refine(brief: Brief, talk: Conversation) -> Story:
    """The measured time goes back, a new kernel comes; a wrong one ends it. The fastest right one stands."""
    for _ in range(brief.rounds):
        timed = reply_of((yield Time("refine")))
        talk.tell(render("refine", brief, told=timed.told, program_wanted=False))
        answer = talk.heard(answer_of((yield talk.ask("refine"))))
        code = kernel_of(answer.text)
        if not code.files or not reply_of((yield Try("refine", code.files))).passed:
            return
    if brief.rounds:
        yield Time("refine")
