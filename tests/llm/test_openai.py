"""Claims about servers of chat completions, which differ in what they take and send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness.llm.client import ErrorKind
from harness.llm.openai import Dialect
from tests.llm.both import REQUEST, Provider, Serve, failure
from tests.llm.server import OpenAIWords, Reply, error, json_reply


def particular(refused: Callable[[dict[str, Any]], str | None]) -> Callable[..., Reply]:
    """A server that refuses what it does not take, and otherwise answers as it is asked to."""

    def script(asked: Any, _: int) -> Reply:
        if problem := refused(asked.body):
            return error(400, problem)
        if asked.body.get("stream"):
            return OpenAIWords().stream(["ok"], usage=(1, 2) if "stream_options" in asked.body else None)
        choice = {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 2}
        return json_reply(
            {"id": "c", "model": "m", "choices": [choice], "usage": usage}, headers={"x-request-id": "r"}
        )

    return script


@pytest.mark.parametrize(
    ("refused", "found", "usage"),
    [
        (
            lambda b: (
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                "'max_completion_tokens' instead."
                if "max_tokens" in b
                else None
            ),
            Dialect(limit="max_completion_tokens"),
            (1, 2),
        ),
        (
            lambda b: "unknown field stream_options" if "stream_options" in b else None,
            Dialect(usage=False),
            (None, None),
        ),
        (
            lambda b: "streaming is not supported" if b.get("stream") else None,
            Dialect(stream=False),
            (1, 2),
        ),
        (
            lambda b: next(
                (f"no {n} here" for n in ("stream_options", "max_tokens", "stream") if b.get(n)), None
            ),
            Dialect(stream=False, usage=False, limit="max_completion_tokens"),
            (1, 2),
        ),
    ],
)
def test_what_a_server_does_not_take_is_left_out_and_remembered(
    openai: Provider, serve: Serve, refused: Any, found: Dialect, usage: tuple[int | None, int | None]
) -> None:
    server = serve(particular(refused))
    client = openai.client(server.url)
    answer = client.complete(REQUEST)
    assert answer.text == "ok" and (answer.tokens_in, answer.tokens_out) == usage
    before = len(server.asked)
    assert client.complete(REQUEST).text == "ok"
    assert len(server.asked) == before + 1  # not found out again
    sent = server.asked[-1].body
    assert sent.get("stream", False) is found.stream and sent[found.limit] == 50
    assert ("stream_options" in sent) is (found.usage and found.stream)


def test_a_bound_that_is_too_high_is_no_matter_of_its_name(openai: Provider, serve: Serve) -> None:
    server = serve(
        [error(400, "max_tokens is too large: 50. This model supports at most 40 completion tokens")]
    )
    found = failure(openai.client(server.url))
    assert found.kind is ErrorKind.REQUEST and "at most 40" in str(found) and len(server.asked) == 1


@pytest.mark.parametrize("status", [404, 500])
def test_only_a_refusal_of_the_request_changes_what_is_asked(
    openai: Provider, serve: Serve, status: int
) -> None:
    server = serve([error(status, "stream and max_tokens and stream_options")])
    failure(openai.client(server.url, max_retries=0))
    assert len(server.asked) == 1


def test_of_two_refusals_the_first_is_told(openai: Provider, serve: Serve) -> None:
    server = serve([error(400, "bad value for max_tokens"), error(400, "unknown max_completion_tokens")])
    assert "bad value" in str(failure(openai.client(server.url)))
    server = serve([error(400, "no max_tokens here"), error(404, "no such model")])
    assert "no such model" in str(failure(openai.client(server.url)))


def test_a_dialect_that_did_not_help_is_not_remembered(openai: Provider, serve: Serve) -> None:
    refused, answered = error(400, "stream is odd today"), OpenAIWords().stream(["ok"])
    server = serve([refused, error(404, "no"), answered])
    client = openai.client(server.url)
    failure(client)
    assert client.complete(REQUEST).text == "ok" and server.asked[-1].body["stream"] is True


def test_thoughts_and_other_choices_are_no_part_of_the_text(openai: Provider, serve: Serve) -> None:
    words = OpenAIWords()
    parts = [{"type": "thinking", "text": "hm"}, {"type": "text", "text": "B"}]
    other = {"index": 1, "delta": {"content": "no"}, "finish_reason": "stop"}
    chunks = [
        words.piece({"reasoning_content": "let me think", "reasoning": "hm"}),
        words.piece({"content": "A"}),
        words.piece({"content": parts}),
        words.event({"choices": [other]}),
        words.piece({"content": None}, "stop"),
    ]
    assert openai.client(serve([Reply(chunks=tuple(chunks))]).url).complete(REQUEST).text == "AB"


def test_a_character_in_two_halves_is_joined(openai: Provider, serve: Serve) -> None:
    words = OpenAIWords()
    chunks = [words.piece({"content": half}) for half in ("\ud83d", "\ude42", "\ud83d")]
    reply = Reply(chunks=(*chunks, words.piece({}, "stop")))
    assert openai.client(serve([reply]).url).complete(REQUEST).text == "🙂\ufffd"


@pytest.mark.parametrize("finish", ["insufficient_system_resource", "error", "abort"])
def test_a_provider_that_says_it_broke_off_failed(openai: Provider, serve: Serve, finish: str) -> None:
    found = failure(openai.client(serve([OpenAIWords().stream(["half"], finish)]).url))
    assert found.kind is ErrorKind.SERVER and finish in str(found)


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": -1, "completion_tokens": "7"}, {"prompt_tokens": True}, [1], "none", True]
)
def test_a_strange_count_loses_no_answer(openai: Provider, serve: Serve, usage: object) -> None:
    words = OpenAIWords()
    reply = Reply(
        chunks=(words.piece({"content": "ok"}, "stop"), words.event({"choices": [], "usage": usage}))
    )
    answer = openai.client(serve([reply]).url).complete(REQUEST)
    assert answer.text == "ok" and answer.tokens_in is None and answer.tokens_out is None
