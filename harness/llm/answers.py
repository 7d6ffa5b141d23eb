"""Owns reading answers that came from outside: results of a batch, or what a person brings.

Known are the results of OpenAI's batches and of Anthropic's, a plain form, and a folder with a text for
each answer. A file is read as a whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.llm.chat import ChatAnswer
from harness.llm.client import Completion, Stop
from harness.llm.messages import MessageAnswer
from harness.llm.wire import InterruptedAnswer, MalformedAnswer, entry, whole

SUFFIX = ".answer.md"
SHORTEST_NAME = 8  # characters of a key that name its answer in a folder

PLAIN = '{"custom_id": "KEY", "text": "the answer"}'
OPENAI = '{"custom_id": "KEY", "response": {"status_code": 200, "body": {"choices": [...]}}, "error": null}'
ANTHROPIC = '{"custom_id": "KEY", "result": {"type": "succeeded", "message": {"content": [...]}}}'


class AnswersError(ValueError):
    """Answers that cannot be read; the text says where, what is wrong, and shows what is right."""


@dataclass(frozen=True)
class Answered:
    """What came back for one question: an answer, or why there is none."""

    key: str
    completion: Completion | None
    error: str = ""


class _Plain(BaseModel):
    """The plain form. What somebody does not know of an answer, they leave out."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    custom_id: str
    text: str
    model: str = ""
    version: str = ""
    latency_s: float | None = Field(None, ge=0)
    tokens_in: int | None = Field(None, ge=0)
    tokens_out: int | None = Field(None, ge=0)
    stop: Stop = Stop.END


def read_answers(path: Path, asked: Iterable[str] = ()) -> list[Answered]:
    """All answers of a JSONL file or of a folder, whether they were asked for or not.

    In a folder, `NAME.answer.md` is the text of the answer to the one key of `asked` that begins with
    NAME. Raises AnswersError for the first thing that is wrong.
    """
    try:
        return _read_folder(path, list(asked)) if path.is_dir() else _read_file(path)
    except OSError as error:
        raise AnswersError(
            f"{error.filename or path}: {error.strerror}; give a JSONL file, a line for each answer: {PLAIN}"
        ) from error


def _read_file(path: Path) -> list[Answered]:
    found: dict[str, Answered] = {}
    # a file that was written on Windows may begin with a mark
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        answer = _read_line(line, where)
        known = found.setdefault(answer.key, answer)
        if known != answer:
            raise AnswersError(f"{where}: another answer to {answer.key} stands above; leave one of them out")
    return list(found.values())


def _read_line(line: bytes, where: str) -> Answered:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise AnswersError(f"{where}: not JSON: {error}; a line looks like {PLAIN}") from error
    if not isinstance(data, dict):
        raise AnswersError(f"{where}: is no object; a line looks like {PLAIN}")
    if "result" in data:
        form, example = _anthropic, ANTHROPIC
    elif "response" in data or "error" in data:
        form, example = _openai, OPENAI
    else:
        form, example = _plain, PLAIN
    try:
        key = entry(data, "custom_id", str)
        if not key:
            raise MalformedAnswer("custom_id is missing: the key of the question")
        return form(key, data)
    except MalformedAnswer as error:
        raise AnswersError(f"{where}: {error}; right is {example}") from error


def _openai(key: str, data: dict[str, object]) -> Answered:
    response = entry(data, "response", dict)
    if (error := entry(data, "error", object)) or response is None:
        return Answered(key, None, _words(error or "no response"))
    status, body = entry(response, "status_code", int), entry(response, "body", dict) or {}
    if status != 200:
        return Answered(key, None, f"HTTP {status}: {_words(body.get('error') or body)}")
    answer = ChatAnswer()
    try:
        answer.add(body)
        return Answered(key, answer.completion(request_id=entry(response, "request_id", str) or ""))
    except InterruptedAnswer as interrupted:
        return Answered(key, None, str(interrupted))


def _anthropic(key: str, data: dict[str, object]) -> Answered:
    result = entry(data, "result", dict) or {}
    kind = entry(result, "type", str)
    if kind == "succeeded":
        answer = MessageAnswer()
        answer.add_message(entry(result, "message", dict) or {})
        return Answered(key, answer.completion())
    if kind not in ("errored", "canceled", "expired"):
        raise MalformedAnswer(f"result.type is {kind!r}")
    return Answered(key, None, _words(result.get("error") or kind))


def _plain(key: str, data: dict[str, object]) -> Answered:
    try:
        plain = _Plain.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        known = f"; fields: {', '.join(_Plain.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise MalformedAnswer(f"{name}: {first['msg']}{known}") from error
    values = plain.model_dump(exclude={"custom_id"})
    return Answered(key, Completion(**values))


def _read_folder(folder: Path, asked: list[str]) -> list[Answered]:
    found: dict[str, Answered] = {}
    for path in sorted(folder.glob("*" + SUFFIX)):
        name = path.name.removesuffix(SUFFIX)
        keys = [key for key in asked if key.startswith(name)] if len(name) >= SHORTEST_NAME else []
        if len(keys) > 1:
            raise AnswersError(f"{path}: {len(keys)} questions begin with {name}; write more of the key")
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise AnswersError(f"{path}: is no UTF-8 text: {error}; save it as UTF-8") from error
        key = keys[0] if keys else name
        if key in found:
            raise AnswersError(f"{path}: another file answers {key}; leave one of them out")
        found[key] = Answered(key, Completion(text))
    if not found:
        raise AnswersError(f"{folder}: holds no answer; name each KEY{SUFFIX}, or give a JSONL file")
    return list(found.values())


def _words(error: object) -> str:
    """What an error says, in whatever form it came."""
    for _ in range(3):  # {"error": {"message": ...}}
        if isinstance(error, dict):
            error = error.get("error") or error.get("message") or error.get("code") or str(error)
    return whole(" ".join(str(error).split()))[:400]
