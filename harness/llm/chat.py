"""Owns the chat completions protocol: the body of a request, and reading an answer, whole or in pieces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.llm.client import Completion, Request, Stop
from harness.llm.wire import NOTHING, InterruptedAnswer, MalformedAnswer, count, entry, whole

_STOPS: Mapping[str, Stop] = {
    "stop": Stop.END,
    "length": Stop.LENGTH,
    "content_filter": Stop.REFUSAL,
}
# OpenRouter, DeepSeek and vLLM say with these that they broke off: not the model's doing.
_INTERRUPTED = frozenset({"error", "insufficient_system_resource", "abort"})


def body_of(request: Request, limit: str = "max_tokens") -> dict[str, Any]:
    """What is sent; `limit` is the server's name for the bound on tokens."""
    sampling = request.sampling.to_json()
    bound = sampling.pop("max_tokens")
    return {
        "model": request.model,
        "messages": [{"role": m.role, "content": m.content} for m in request.messages],
        limit: bound,
        **sampling,
    }


@dataclass
class ChatAnswer:
    """An answer as it is read: `add` a whole completion, or each piece of one, then ask for `completion`."""

    pieces: int = 0
    _text: list[str] = field(default_factory=list)
    _refusal: list[str] = field(default_factory=list)
    _finish: str = ""
    _usage: object = None
    _names: dict[str, str] = field(default_factory=dict)

    def add(self, data: object) -> None:
        """Read one JSON object; raises MalformedAnswer or InterruptedAnswer."""
        if entry(data, "error", object):
            raise InterruptedAnswer(str(entry(data, "error", object)))
        self.pieces += 1
        for name in ("id", "model", "system_fingerprint"):
            if value := entry(data, name, str):
                self._names[name] = value
        self._usage = entry(data, "usage", object) or self._usage
        for choice in entry(data, "choices", list) or []:
            if not entry(choice, "index", int):  # the first, and only one asked for
                self._choose(choice)

    def _choose(self, choice: object) -> None:
        said = entry(choice, "delta", dict) or entry(choice, "message", dict) or {}
        self._text.append(_text_of(said.get("content")))
        self._refusal.append(entry(said, "refusal", str) or "")
        self._finish = entry(choice, "finish_reason", str) or self._finish

    def completion(self, latency_s: float | None = None, request_id: str = "") -> Completion:
        """The answer; raises MalformedAnswer where its end is missing, InterruptedAnswer for a break."""
        if not self._finish:
            raise MalformedAnswer("no finish_reason: the stream was cut off" if self.pieces else NOTHING)
        if self._finish in _INTERRUPTED:
            raise InterruptedAnswer(f"the answer broke off: finish_reason {self._finish}")
        text, refusal = whole("".join(self._text)), whole("".join(self._refusal))
        return Completion(
            text=text or refusal,
            stop=Stop.REFUSAL if refusal else _STOPS.get(self._finish, Stop.OTHER),
            tokens_in=count(self._usage, "prompt_tokens"),
            tokens_out=count(self._usage, "completion_tokens"),
            latency_s=latency_s,
            model=self._names.get("model", ""),
            version=self._names.get("system_fingerprint", ""),
            request_id=request_id or self._names.get("id", ""),
        )


def _text_of(content: object) -> str:
    """Content is a text, or a list of parts of which some are text and others are thought."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise MalformedAnswer(f"'content' is {type(content).__name__}, not a text")
    return "".join(entry(part, "text", str) or "" for part in content if entry(part, "type", str) == "text")
