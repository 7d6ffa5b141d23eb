"""Owns asking a server that speaks chat completions: OpenAI, DeepSeek, vLLM, llama.cpp, Ollama, ..."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from harness.llm.chat import ChatAnswer, body_of
from harness.llm.client import Completion, Request
from harness.llm.failures import failures, provider_error, status_of
from harness.llm.keys import Access
from harness.llm.sdk import Connection, SdkClient, plain

# A bound that is named because it is too high is no matter of its name.
_TOO_MUCH = re.compile(r"too (large|high|big|long|many)|at most|maximum|exceed|less than", re.IGNORECASE)


@dataclass(frozen=True)
class Dialect:
    """What a server takes of the protocol. Found out from its refusals."""

    stream: bool = True
    usage: bool = True  # stream_options: counts of tokens at the end of a stream
    limit: str = "max_tokens"

    def instead(self, refusal: str) -> Dialect | None:
        """The dialect to try after a refusal that names a part of this one; None: it does not."""
        if self.stream and self.usage and "stream_options" in refusal:
            return replace(self, usage=False)
        if self.limit == "max_tokens" and _names(refusal, "max_tokens") and not _TOO_MUCH.search(refusal):
            return replace(self, limit="max_completion_tokens")
        if self.stream and (_names(refusal, "stream") or _names(refusal, "streaming")):
            return replace(self, stream=False)
        return None


def _names(refusal: str, parameter: str) -> bool:
    return re.search(rf"(?<![\w-]){parameter}(?![\w-])", refusal, re.IGNORECASE) is not None


class OpenAIClient(SdkClient):
    """Answers by chat completions. Retries and rate limits are the SDK's, which honours retry-after.

    `latency_s` is from asking to the last piece, retries and their pauses included.
    """

    package = "openai"
    official = "https://api.openai.com/v1"
    _dialect = Dialect()

    def complete(self, request: Request) -> Completion:
        """One answer; raises ProviderError."""
        connection = self._connect()
        known = failures(connection.sdk)
        dialect: Dialect | None = self._dialect
        shown: Exception | None = None
        while dialect is not None:
            try:
                completion = _ask(connection, request, dialect)
            except known as error:
                # of "no max_tokens here" and "no max_completion_tokens either", the first tells more
                if shown is None or "max_completion_tokens" not in _refusal(error):
                    shown = error
                dialect = dialect.instead(_refusal(error))
            else:
                self._dialect = dialect  # what worked is what is asked first from now on
                return completion
        assert shown is not None
        raise provider_error(shown, connection.sdk, connection.access, request.model)

    def _make(self, sdk: ModuleType, access: Access, options: dict[str, Any]) -> object:
        # said twice: OPENAI_CUSTOM_HEADERS must not send another key to this server
        headers = {"Authorization": f"Bearer {access.key}"}
        return sdk.OpenAI(api_key=access.key, default_headers=headers, **options)


def _refusal(error: Exception) -> str:
    """What the server says of the request; "" where it says nothing of it."""
    return str(error) if status_of(error) in (400, 422) else ""


def _ask(connection: Connection, request: Request, dialect: Dialect) -> Completion:
    started = time.monotonic()
    body = body_of(request, dialect.limit)
    create = connection.client.chat.completions.create
    answer = ChatAnswer()
    if dialect.stream:
        if dialect.usage:
            body["stream_options"] = {"include_usage": True}
        with create(**body, stream=True) as stream:
            for piece in stream:
                answer.add(plain(piece))
            request_id = stream.response.headers.get("x-request-id", "")
    else:
        whole = create(**body)
        answer.add(plain(whole))
        request_id = getattr(whole, "_request_id", None) or ""
    return connection.without_keys(answer.completion(time.monotonic() - started, request_id))
