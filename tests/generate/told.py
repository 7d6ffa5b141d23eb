"""Runs a method's story with scripted replies: what was asked for, in order, without any machine."""

from __future__ import annotations

from collections.abc import Callable

from harness.generate.method import Answer, Ask, Brief, Reply, Step
from harness.generate.methods import METHODS
from harness.llm.client import Stop
from harness.targets import TARGETS
from tasks import find

KERNEL = "```python\ndef attention(q, k, v, out, *, scale):\n    pass\n```"
PROGRAM = (
    "```tl\nKernel p\nCopy Q from global to shared\nCompute GEMM Q, K^T and get S\n"
    "Copy O from register to global\n```"
)
RIGHT, WRONG = Reply(True), Reply(False, "query 3 is off")


def brief(task: str = "mha_causal", **changes: object) -> Brief:
    t = find(task)
    given = {"rounds": 0, "turns": 6, **changes}
    return Brief(t, TARGETS["h100"], "triton", t.workloads["models"], "k", **given)  # type: ignore[arg-type]


def play(
    method: str,
    replies: Callable[[Step, int], Answer | Reply],
    given: Brief | None = None,
    most: int = 30,
) -> list[Step]:
    """The steps of a method until it ends or `most` are made; `replies(step, number)` answers each."""
    story = METHODS[method].tell(given or brief())
    steps: list[Step] = []
    step = next(story)
    while len(steps) < most:
        steps.append(step)
        try:
            step = story.send(replies(step, len(steps) - 1))
        except StopIteration:
            return steps
    story.close()
    return steps


def model(step: Step, _: int = 0) -> Answer | Reply:
    """A model that always answers well, and a machine that is always content."""
    if isinstance(step, Ask):
        text = step.messages[-1].content
        return Answer(KERNEL if "```python" in text else PROGRAM, Stop.END)
    return RIGHT


def outline(steps: list[Step]) -> list[str]:
    return [f"{type(s).__name__}:{s.stage}" for s in steps]
