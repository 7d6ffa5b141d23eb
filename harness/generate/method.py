"""Owns what a method is: a conversation as a generator of steps, told what became of each. No I/O.

A method yields a step and is sent its reply; it knows nothing of clients, devices, files or budgets.
Whoever runs it may stop after any step (a budget, a failed provider): the last kernel tried stands.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from harness.llm.client import Message, Stop
from harness.targets import Target
from harness.verdicts import Verdict
from tasks.spec import Task, Workload


@dataclass(frozen=True)
class Brief:
    """What a method is asked for: a kernel for a task, on a target, in a backend.

    `workloads` are those that will be measured. `turns` is how many questions it may ask in all,
    `rounds` how many of refinement may follow a right kernel, `search` whether the tiles of a program
    are searched by measuring; `name` is the kernel's name.
    """

    task: Task
    target: Target
    backend: str
    workloads: tuple[Workload, ...]
    name: str
    turns: int = 6
    rounds: int = 0
    search: bool = False
    first_call_s: float = 180.0


@dataclass(frozen=True)
class Ask:
    """A question to a model: the one that thinks, or the one that translates."""

    stage: str
    messages: tuple[Message, ...]
    prompts: Mapping[str, str] = field(default_factory=dict)  # template -> hash of its text
    role: Literal["think", "translate"] = "think"


@dataclass(frozen=True)
class Examine:
    """Check an LLM-TL program, and where `run`, interpret it against the oracle."""

    stage: str
    program: str
    level: Literal["sketch", "code"] = "code"


@dataclass(frozen=True)
class Compile:
    """Lower an LLM-TL program to the backend and verify the kernel."""

    stage: str
    program: str


@dataclass(frozen=True)
class Try:
    """Build and verify a kernel: name -> text of its sources."""

    stage: str
    files: Mapping[str, str]
    entry: str = "attention.py"


@dataclass(frozen=True)
class Time:
    """Time the last kernel that passed; search the tiles of `program`, which it was compiled from, first."""

    stage: str
    program: str = ""


@dataclass(frozen=True)
class Answer:
    """A model's answer."""

    text: str
    stop: Stop = Stop.END


@dataclass(frozen=True)
class Reply:
    """What became of a step that is no question. `told` is what a model may be told of it."""

    passed: bool
    told: str = ""
    verdict: Verdict | None = None
    score: float | None = None  # of a timing: more is faster


Step: TypeAlias = Ask | Examine | Compile | Try | Time
Story: TypeAlias = Generator[Step, Answer | Reply, None]


@dataclass(frozen=True)
class Method:
    """One way to a kernel. `stages`: the paper's words for what it asks, in order."""

    name: str
    title: str
    tell: Callable[[Brief], Story]
    translates: bool = False  # a model writes the kernel from the program, maybe another one


def answer_of(reply: Answer | Reply) -> Answer:
    """The reply to a question."""
    assert isinstance(reply, Answer)
    return reply


def reply_of(reply: Answer | Reply) -> Reply:
    """The reply to anything else."""
    assert isinstance(reply, Reply)
    return reply
