"""Owns what the readers of both protocols share: typed access to JSON, and errors for what is no answer.

By hand, not by pydantic: an answer comes in thousands of pieces, and half a surrogate pair in one of
them is no error.
"""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")

NOTHING = "nothing of the protocol came; is base_url right? Many end with /v1"


class MalformedAnswer(ValueError):
    """What came is no answer of the protocol, or only the beginning of one."""


class InterruptedAnswer(RuntimeError):
    """The provider itself says that it broke off."""


def entry(data: object, name: str, kind: type[T]) -> T | None:
    """A value of a JSON object; None where it is absent or null.

    Raises MalformedAnswer for a value of another kind, or where `data` is no object.
    """
    if not isinstance(data, dict):
        raise MalformedAnswer(f"expected an object with {name!r}, got {type(data).__name__}")
    value = data.get(name)
    if value is not None and not isinstance(value, kind):
        raise MalformedAnswer(f"{name!r} is {type(value).__name__}, not {kind.__name__}")
    return value


def count(usage: object, name: str) -> int | None:
    """A number of tokens; None for anything else: a paid answer is not lost for a wrong count."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def whole(text: str) -> str:
    """The text with surrogate pairs joined that came in two pieces; a lone half becomes U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
