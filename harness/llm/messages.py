"""Owns Anthropic's Messages protocol: the body of a request, and reading an answer, whole or in events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.llm.client import Completion, Request, Stop
from harness.llm.wire import NOTHING, MalformedAnswer, count, entry, whole

_STOPS: Mapping[str, Stop] = {
    "end_turn": Stop.END,
    "stop_sequence": Stop.END,
    "max_tokens": Stop.LENGTH,
    "model_context_window_exceeded": Stop.LENGTH,
    "refusal": Stop.REFUSAL,
}
# What is read from a cache, or written to it, is not in input_tokens.
_TOKENS_IN = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


def body_of(request: Request) -> dict[str, Any]:
    """What is sent: system messages have a field of their own."""
    system = "\n\n".join(m.content for m in request.messages if m.role == "system")
    return {
        "model": request.model,
        **({"system": system} if system else {}),
        "messages": [{"role": m.role, "content": m.content} for m in request.messages if m.role != "system"],
        **request.sampling.to_json(),
    }


@dataclass
class MessageAnswer:
    """An answer as it is read: `add_event` for each event of a stream, or `add_message` for a whole one."""

    pieces: int = 0
    _text: list[str] = field(default_factory=list)
    _stop: str = ""
    _usage: dict[str, object] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)

    def add_event(self, data: object) -> None:
        """Read one event; raises MalformedAnswer. Kinds of events that are not known are passed over."""
        self.pieces += 1
        match entry(data, "type", str):
            case "message_start":
                self.add_message(entry(data, "message", dict) or {})
            case "content_block_start":
                self._block(entry(data, "content_block", dict) or {})
            case "content_block_delta":
                delta = entry(data, "delta", dict) or {}
                if delta.get("type") == "text_delta":
                    self._text.append(entry(delta, "text", str) or "")
            case "message_delta":
                self._stop = entry(entry(data, "delta", dict) or {}, "stop_reason", str) or self._stop
                self._count(data)

    def add_message(self, data: object) -> None:
        """Read a message: whole, or the empty one that a stream begins with."""
        self.pieces += 1
        for name in ("id", "model"):
            if value := entry(data, name, str):
                self._names[name] = value
        for block in entry(data, "content", list) or []:
            self._block(block)
        self._stop = entry(data, "stop_reason", str) or self._stop
        self._count(data)

    def _block(self, block: object) -> None:
        if entry(block, "type", str) == "text":
            self._text.append(entry(block, "text", str) or "")

    def _count(self, data: object) -> None:
        usage = entry(data, "usage", object)
        if isinstance(usage, dict):
            self._usage |= {name: value for name, value in usage.items() if value is not None}

    def completion(self, latency_s: float | None = None, request_id: str = "") -> Completion:
        """The answer; raises MalformedAnswer where its end is missing."""
        if not self._stop:
            raise MalformedAnswer("no stop_reason: the stream was cut off" if self.pieces else NOTHING)
        counts = [n for name in _TOKENS_IN if (n := count(self._usage, name)) is not None]
        return Completion(
            text=whole("".join(self._text)),
            stop=_STOPS.get(self._stop, Stop.OTHER),
            tokens_in=sum(counts) if count(self._usage, "input_tokens") is not None else None,
            tokens_out=count(self._usage, "output_tokens"),
            latency_s=latency_s,
            model=self._names.get("model", ""),
            request_id=request_id or self._names.get("id", ""),
        )
