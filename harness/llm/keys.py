"""Owns keys: where one comes from, which environment variables hold them, and that no text shows one."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from harness.llm.client import ErrorKind, ProviderError

# Every variable from which the two SDKs take a secret, whether or not it is used here.
KEY_VARIABLES = frozenset(
    {
        "OPENAI_API_KEY",
        "OPENAI_ADMIN_KEY",
        "OPENAI_CUSTOM_HEADERS",
        "OPENAI_WEBHOOK_SECRET",
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "ANTHROPIC_CUSTOM_HEADERS",
        "ANTHROPIC_IDENTITY_TOKEN",
        "ANTHROPIC_WEBHOOK_SIGNING_KEY",
    }
)

NO_KEY = "none"  # the SDKs insist on a key; servers that need none ignore it
SHORTEST_SECRET = 8  # people give local servers keys such as "x" or "EMPTY": words, and no secrets
HIDDEN = "[key]"
LONGEST_MESSAGE = 600


@dataclass(frozen=True)
class Access:
    """How a provider is reached. Neither its repr nor a text that it cleaned shows a key."""

    provider: str
    base_url: str
    key_env: str
    key: str = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)

    def clean(self, text: str) -> str:
        """The text with every secret replaced."""
        # the longest first: one may be the beginning of another
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        return text

    def message(self, text: str) -> str:
        """A text for an error: clean, on one line, of sensible length."""
        # cleaned before it is cut, so that no part of a key is left at the end
        line = " ".join(self.clean(text).split())
        return line if len(line) <= LONGEST_MESSAGE else line[: LONGEST_MESSAGE - 1] + "…"


def find_access(provider: str, base_url: str, key_env: str) -> Access:
    """Access with the key of the environment; raises ProviderError where there is none but should be.

    A server on this machine, and one whose `key_env` is empty, need no key.
    """
    if problem := address_problem(base_url):
        raise ProviderError(ErrorKind.REQUEST, f"{provider}: base_url {problem}")
    key = os.environ.get(key_env, "").strip() if key_env else ""
    if key and not (key.isascii() and key.isprintable()):
        raise ProviderError(
            ErrorKind.KEY, f"{provider}: {key_env} holds characters that no key has; copy the key again"
        )
    if not key and key_env and not on_loopback(base_url):
        raise ProviderError(ErrorKind.KEY, f"{provider}: there is no key; set the variable {key_env}")
    return Access(provider, base_url, key_env, key or NO_KEY, tuple(_secrets(key, KEY_VARIABLES)))


def address_problem(base_url: str) -> str:
    """Why this is no address of a server, without repeating what may be a password; "" where it is one."""
    example = "write it as https://host/v1"
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        return f"is no address; {example}"
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return f"is no address; {example}"
    if parts.username or parts.password or parts.query:
        return f"must hold no key or password; {example}, and name the key's variable in key_env"
    return ""


def on_loopback(base_url: str) -> bool:
    """Whether the address is this machine's own."""
    host = urlsplit(base_url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _secrets(key: str, variables: Iterable[str]) -> set[str]:
    """What must not be shown: the key, and what other variables hold (of headers, each value)."""
    found = {key}
    for name in variables:
        for line in os.environ.get(name, "").splitlines():
            value = line.partition(":")[2] if name.endswith("_HEADERS") else line
            found |= {value.strip(), value.strip().removeprefix("Bearer ").strip()}
    return {secret for secret in found if len(secret) >= SHORTEST_SECRET}
