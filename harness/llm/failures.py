"""Owns what an exception of an SDK means: which failure of a provider, and what to say of it.

The SDKs of OpenAI and Anthropic are made by one tool and share the names of their exceptions.
"""

from __future__ import annotations

import json
import sys
from types import ModuleType

from harness.llm.client import ErrorKind, ProviderError
from harness.llm.keys import Access
from harness.llm.wire import InterruptedAnswer, MalformedAnswer

# What a server says in the middle of a stream, when it is too late for a status.
_KINDS_OF_BODY = {
    "rate_limit_error": ErrorKind.RATE,
    "rate_limit_exceeded": ErrorKind.RATE,
    "429": ErrorKind.RATE,
    "invalid_request_error": ErrorKind.REQUEST,
    "authentication_error": ErrorKind.KEY,
    "permission_error": ErrorKind.KEY,
    "timeout_error": ErrorKind.TIMEOUT,
}
_WHAT = {
    ErrorKind.KEY: "the key is not accepted",
    ErrorKind.REQUEST: "the request is refused",
    ErrorKind.RATE: "still limited after all retries; ask with less concurrency, or later",
    ErrorKind.SERVER: "the server failed after all retries",
    ErrorKind.TIMEOUT: "no answer in time; raise timeout_s, or see whether the server is well",
    ErrorKind.MALFORMED: "what came back is no answer",
}


def failures(sdk: ModuleType) -> tuple[type[Exception], ...]:
    """What asking may raise: the SDK's errors, and those of HTTP and JSON that it lets through."""
    http = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    return (
        sdk.APIError,
        *(getattr(module, name) for module in http for name in ("HTTPError", "StreamError")),
        json.JSONDecodeError,
        UnicodeError,
        MalformedAnswer,
        InterruptedAnswer,
    )


def provider_error(error: Exception, sdk: ModuleType, access: Access, model: str) -> ProviderError:
    """What an exception of asking means. Raise it outside the `except`: its context may hold the key."""
    kind = kind_of(error, sdk)
    what = _WHAT[kind]
    if kind is ErrorKind.KEY:
        what += f"; see the variable {access.key_env}" if access.key_env else "; name its variable in key_env"
    status = status_of(error)
    if status is not None:
        what += f" (HTTP {status})"
    return ProviderError(kind, access.message(f"{access.provider}: {model}: {what}: {_detail(error)}"))


def kind_of(error: Exception, sdk: ModuleType) -> ErrorKind:
    """Which failure it was."""
    status = status_of(error)
    if status is not None:
        return _kind_of_status(status)
    if isinstance(error, sdk.APITimeoutError) or "Timeout" in type(error).__name__:
        return ErrorKind.TIMEOUT
    broken = (json.JSONDecodeError, UnicodeError, MalformedAnswer, sdk.APIResponseValidationError)
    if isinstance(error, broken):
        return ErrorKind.MALFORMED
    words = _words_of(getattr(error, "body", None))
    return next((_KINDS_OF_BODY[word] for word in words if word in _KINDS_OF_BODY), ErrorKind.SERVER)


def status_of(error: Exception) -> int | None:
    """The HTTP status that says what it was; None for an error in the middle of a stream, which has 200."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) and status >= 300 else None


def _detail(error: Exception) -> str:
    """The server's own words where there are some, else the exception's."""
    body = getattr(error, "body", None)
    for _ in range(3):  # {"error": {"message": ...}}, {"message": ...}, {"detail": ...}
        if isinstance(body, dict):
            body = body.get("error") or body.get("message") or body.get("detail") or ""
    if isinstance(body, str) and body.strip():
        return body
    cause = error.__cause__
    text = str(error) or type(error).__name__
    return text if cause is None else f"{text} ({type(cause).__name__}: {cause})"


def _kind_of_status(status: int) -> ErrorKind:
    if status in (401, 402, 403):  # 402: the account has no credit
        return ErrorKind.KEY
    if status == 408:
        return ErrorKind.TIMEOUT
    if status == 429:
        return ErrorKind.RATE
    return ErrorKind.SERVER if status >= 500 or status == 409 else ErrorKind.REQUEST


def _words_of(body: object) -> list[str]:
    """Types and codes in the body of an error, the outer ones first."""
    if not isinstance(body, dict):
        return []
    own = [str(body[name]) for name in ("type", "code") if body.get(name) is not None]
    return own + _words_of(body.get("error"))
