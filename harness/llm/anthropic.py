"""Owns asking Anthropic, or a server that speaks its Messages protocol."""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any

from harness.llm.client import Completion, Request
from harness.llm.failures import failures, provider_error
from harness.llm.keys import Access
from harness.llm.messages import MessageAnswer, body_of
from harness.llm.sdk import Connection, SdkClient, plain


class AnthropicClient(SdkClient):
    """Answers by the Messages protocol. Retries and rate limits are the SDK's, which honours retry-after.

    `latency_s` is from asking to the last event, retries and their pauses included.
    """

    package = "anthropic"
    official = "https://api.anthropic.com"

    def complete(self, request: Request) -> Completion:
        """One answer; raises ProviderError."""
        connection = self._connect()
        try:
            return _ask(connection, request)
        except failures(connection.sdk) as error:
            failure = provider_error(error, connection.sdk, connection.access, request.model)
        raise failure

    def _make(self, sdk: ModuleType, access: Access, options: dict[str, Any]) -> object:
        return sdk.Anthropic(api_key=access.key, **options)


def _ask(connection: Connection, request: Request) -> Completion:
    started = time.monotonic()
    body = body_of(request)
    # not every release of the SDK has an argument for these; a model that does not take them says so
    more = {name: body.pop(name) for name in ("temperature", "top_p") if name in body}
    answer = MessageAnswer()
    with connection.client.messages.create(**body, extra_body=more, stream=True) as stream:
        for event in stream:
            answer.add_event(plain(event))
        request_id = stream.response.headers.get("request-id", "")
    return connection.without_keys(answer.completion(time.monotonic() - started, request_id))
