"""Both protocols for tests that hold for either: a client, and the words of its server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from harness.llm.anthropic import AnthropicClient
from harness.llm.client import Client, Message, ProviderError, Request, Sampling
from harness.llm.openai import OpenAIClient
from tests.llm.server import AnthropicWords, OpenAIWords, Server

KEY = "sk-test-0123456789abcdef"
REQUEST = Request(
    "some-model", (Message("system", "Be short."), Message("user", "Hello")), Sampling(max_tokens=50)
)
Serve = Callable[[Any], Server]


@dataclass(frozen=True)
class Provider:
    """One of the two protocols: its client, its server's words, the SDK's package."""

    make: type[OpenAIClient] | type[AnthropicClient]
    words: OpenAIWords | AnthropicWords
    package: str

    def client(self, url: str, **more: Any) -> Client:
        """A client of the server at `url`, with the key of SOME_KEY."""
        options: dict[str, Any] = {"key_env": "SOME_KEY", "timeout_s": 5.0, "max_retries": 2, **more}
        return self.make("someone", base_url=url + self.words.base, **options)


BOTH = {
    "openai": Provider(OpenAIClient, OpenAIWords(), "openai"),
    "anthropic": Provider(AnthropicClient, AnthropicWords(), "anthropic"),
}


def failure(client: Client) -> ProviderError:
    """How a question fails."""
    with pytest.raises(ProviderError) as caught:
        client.complete(REQUEST)
    return caught.value
