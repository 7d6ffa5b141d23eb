"""Owns questions that are answered later, from outside: the client that asks nobody, and their file.

The file is the input of OpenAI's batch interface, which vLLM and others read too. A request's sample
number is not in it, since no place of that format may hold it (`metadata` is refused where answers are
not stored): it is found again from the request's key.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from harness.llm.answers import Answered, AnswersError, read_answers
from harness.llm.chat import body_of
from harness.llm.client import Completion, Deferred, Message, Request, Sampling

__all__ = [
    "Answered",
    "AnswersError",
    "DeferredClient",
    "PendingError",
    "pending_line",
    "read_answers",
    "read_pending",
    "write_pending",
]

URL = "/v1/chat/completions"
MOST_SAMPLES = 1000  # of an experiment


class PendingError(ValueError):
    """A file of pending questions that cannot be read; the text says where and what to do."""


class DeferredClient:
    """Answers nothing: every question is to be written down."""

    def __init__(self, provider: str = "deferred") -> None:
        self._provider = provider

    @property
    def provider(self) -> str:
        """The name it was made with."""
        return self._provider

    def complete(self, request: Request) -> Completion:
        """Raises Deferred."""
        raise Deferred(f"{self._provider}: the answer of {request.model} to {request.key[:12]} comes later")


def pending_line(request: Request) -> str:
    """A question as one line of a batch, without the newline; its `custom_id` is the request's key."""
    line = {"custom_id": request.key, "method": "POST", "url": URL, "body": body_of(request)}
    return json.dumps(line)


def write_pending(path: Path, requests: Iterable[Request]) -> None:
    """Replace the file by these questions, each once, in the order of their keys; no questions: no file.

    A reader sees the old file or the new one, never half of it, also after a loss of power.
    """
    lines = dict(sorted((request.key, pending_line(request)) for request in requests))
    if not lines:
        path.unlink(missing_ok=True)
        _sync_folder(path)
        return
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines.values())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_folder(path)


def read_pending(path: Path) -> dict[str, Request]:
    """The questions of a file by their keys; none where there is no file. Raises PendingError."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise PendingError(f"{path}: {error.strerror}") from error
    requests = (_read(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip())
    return {request.key: request for request in requests}


class _Loose(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # what somebody's batch needs besides is theirs


class _Message(_Loose):
    role: Literal["system", "user", "assistant"]
    content: str


class _Body(_Loose):
    model: str
    messages: tuple[_Message, ...]
    max_tokens: int = Field(validation_alias=AliasChoices("max_tokens", "max_completion_tokens"))
    # an integer stays one: the key of a request tells 0 from 0.0
    temperature: int | float | None = None
    top_p: int | float | None = None


class _Line(_Loose):
    custom_id: str
    body: _Body


def _read(line: bytes, where: str) -> Request:
    try:
        found = _Line.model_validate(json.loads(line))
    except ValidationError as error:
        first = error.errors()[0]
        raise PendingError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except ValueError as error:
        raise PendingError(f"{where}: not JSON: {error}") from error
    body = found.body
    request = Request(
        body.model,
        tuple(Message(m.role, m.content) for m in body.messages),
        Sampling(body.max_tokens, body.temperature, body.top_p),
    )
    samples = (replace(request, sample=sample) for sample in range(MOST_SAMPLES))
    asked = next((r for r in samples if r.key == found.custom_id), None)
    if asked is None:
        raise PendingError(
            f"{where}: custom_id is not the key of this question; it was edited. Resume the run: that writes "
            "the file anew"
        )
    return asked


def _sync_folder(path: Path) -> None:
    # the rename itself is on disk only when the folder is
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
