"""Owns what is said to a model and what comes back: one protocol for every provider.

A request is identified by its content and the number of its sample; who answers it is not part
of that, so an answer recorded from one provider can be replayed for another.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. None: the provider's own default, and nothing is sent."""

    max_tokens: int = 16_000
    temperature: float | None = None
    top_p: float | None = None

    def to_json(self) -> dict[str, int | float]:
        """What is set, by the names that the protocols share."""
        given = {"max_tokens": self.max_tokens, "temperature": self.temperature, "top_p": self.top_p}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Request:
    """A conversation that wants one more message. `sample` tells independent answers to it apart."""

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    sample: int = 0

    @property
    def key(self) -> str:
        """SHA-256 of canonical JSON of model, messages, sampling and sample number."""
        content = {
            "model": self.model,
            "messages": [[m.role, m.content] for m in self.messages],
            "sampling": self.sampling.to_json(),
            "sample": self.sample,
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


class Stop(StrEnum):
    """Why an answer ended."""

    END = "end"
    LENGTH = "length"  # cut at max_tokens, or the context is full
    REFUSAL = "refusal"  # the model or a filter of the provider declined
    OTHER = "other"


@dataclass(frozen=True)
class Completion:
    """An answer. `text` may be empty: that is the model's answer, not an error.

    Token counts and `latency_s` are the provider's and the client's word; None where nobody said.
    """

    text: str
    stop: Stop = Stop.END
    tokens_in: int | None = None
    tokens_out: int | None = None
    latency_s: float | None = None
    model: str = ""  # the name that the provider reports
    version: str = ""  # of the model, where it is told; "unrecorded" where somebody says it is not
    request_id: str = ""


class ErrorKind(StrEnum):
    """Which failure of a provider it was; none of them is the model's fault."""

    KEY = "key"  # missing, wrong, or not allowed to use the model
    REQUEST = "request"  # the provider refuses the request as such: unknown model, too long
    RATE = "rate"  # still limited after all retries
    SERVER = "server"  # 5xx, or no connection, after all retries
    TIMEOUT = "timeout"
    MALFORMED = "malformed"  # what came back is no answer of the protocol, or was cut off
    MISS = "miss"  # replay: no such request is recorded
    MISSING = "missing"  # the SDK of the provider is not installed


class ProviderError(RuntimeError):
    """No answer, and it is not the model's doing; the text says what to do and never holds a key."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Deferred(Exception):
    """The answer comes later, from outside: the request is to be written down, and the run to stop."""


class Client(Protocol):
    """Answers requests; safe to call from several threads."""

    @property
    def provider(self) -> str:
        """Name of the provider, as records carry it."""

    def complete(self, request: Request) -> Completion:
        """One answer. Raises ProviderError, or Deferred where the answer comes later."""
