"""Claims about the clients of both SDKs, held against a server that misbehaves on purpose."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness.llm import sdk
from harness.llm.client import Completion, ErrorKind, Message, ProviderError, Request, Sampling, Stop
from tests.llm.both import KEY, REQUEST, Provider, Serve, failure
from tests.llm.server import OpenAIWords, Reply, Server, error


def test_an_answer_has_its_text_and_all_that_is_told_of_it(provider: Provider, serve: Serve) -> None:
    server = serve([provider.words.stream(["Hel", "lo ", "wörld 🙂"])])
    client = provider.client(server.url)
    answer = client.complete(REQUEST)
    assert client.provider == "someone"
    assert answer.text == "Hello wörld 🙂"
    assert (answer.stop, answer.tokens_in, answer.tokens_out) == (Stop.END, 11, 7)
    assert answer.model.startswith("model-2026") and answer.request_id == "req-1"
    assert answer.version == ("fp_1" if provider.package == "openai" else "")
    assert answer.latency_s is not None and 0 < answer.latency_s < 5


def test_what_is_sent_is_the_request_and_nothing_that_was_not_set(provider: Provider, serve: Serve) -> None:
    server = serve([provider.words.stream(["ok"])])
    client = provider.client(server.url)
    client.complete(REQUEST)
    client.complete(Request("m", REQUEST.messages, Sampling(9, temperature=0.5, top_p=0.9), sample=3))
    first, second = server.asked
    assert first.path == provider.words.path
    assert first.headers["authorization"] == f"Bearer {KEY}" or first.headers.get("x-api-key") == KEY
    assert first.body["model"] == "some-model" and first.body["max_tokens"] == 50
    assert first.body["stream"] is True
    assert not {"temperature", "top_p", "sample"} & set(first.body)
    assert (second.body["temperature"], second.body["top_p"]) == (0.5, 0.9)
    user = {"role": "user", "content": "Hello"}
    if provider.package == "anthropic":
        assert first.body["system"] == "Be short." and first.body["messages"] == [user]
    else:
        assert first.body["messages"] == [{"role": "system", "content": "Be short."}, user]


@pytest.mark.parametrize(
    ("finish", "stop"),
    [("stop", Stop.END), ("length", Stop.LENGTH), ("content_filter", Stop.REFUSAL), ("strange", Stop.OTHER)],
)
def test_why_an_answer_ended(provider: Provider, serve: Serve, finish: str, stop: Stop) -> None:
    server = serve([provider.words.stream(["some"], finish)])
    assert provider.client(server.url).complete(REQUEST).stop is stop


def test_a_refusal_is_an_answer(provider: Provider, serve: Serve) -> None:
    server = serve([provider.words.refusal()])
    answer = provider.client(server.url).complete(REQUEST)
    assert answer.stop is Stop.REFUSAL and answer.text == "I can't help."


def test_an_empty_answer_is_an_answer(provider: Provider, serve: Serve) -> None:
    server = serve([provider.words.stream([])])
    answer = provider.client(server.url).complete(REQUEST)
    assert answer.text == "" and answer.stop is Stop.END and answer.tokens_out == 7


def test_counts_that_are_not_reported_stay_unknown(provider: Provider, serve: Serve) -> None:
    server = serve([provider.words.stream(["hi"], usage=None)])
    answer = provider.client(server.url).complete(REQUEST)
    assert answer.tokens_in is None and answer.tokens_out is None


# --- failures ---


def test_a_limit_is_waited_out(provider: Provider, serve: Serve) -> None:
    limited = error(429, "slow down")
    server = serve(
        [Reply(429, limited.chunks, {**limited.headers, "retry-after": "0.2"}), provider.words.stream(["ok"])]
    )
    begun = time.monotonic()
    answer = provider.client(server.url).complete(REQUEST)
    assert answer.text == "ok" and len(server.asked) == 2
    assert 0.2 <= time.monotonic() - begun < 10
    assert answer.latency_s is not None and answer.latency_s >= 0.2


@pytest.mark.parametrize(
    ("status", "kind", "asked"),
    [
        (429, ErrorKind.RATE, 3),
        (500, ErrorKind.SERVER, 3),
        (503, ErrorKind.SERVER, 3),
        (504, ErrorKind.SERVER, 3),
        (529, ErrorKind.SERVER, 3),
        (408, ErrorKind.TIMEOUT, 3),
        (400, ErrorKind.REQUEST, 1),
        (404, ErrorKind.REQUEST, 1),
        (413, ErrorKind.REQUEST, 1),
        (422, ErrorKind.REQUEST, 1),
        (401, ErrorKind.KEY, 1),
        (402, ErrorKind.KEY, 1),
        (403, ErrorKind.KEY, 1),
    ],
)
def test_a_status_becomes_a_kind_after_the_retries_that_help(
    provider: Provider, serve: Serve, status: int, kind: ErrorKind, asked: int
) -> None:
    server = serve([error(status, "the server's own words")])
    found = failure(provider.client(server.url))
    assert found.kind is kind and len(server.asked) == asked
    assert "someone: some-model: " in str(found) and "the server's own words" in str(found)
    assert f"HTTP {status}" in str(found)
    if kind is ErrorKind.KEY:
        assert "SOME_KEY" in str(found)


def test_no_answer_in_time(provider: Provider, serve: Serve) -> None:
    server = serve([Reply(wait_s=3.0)])
    begun = time.monotonic()
    found = failure(provider.client(server.url, timeout_s=0.2, max_retries=0))
    assert found.kind is ErrorKind.TIMEOUT and "timeout_s" in str(found)
    assert time.monotonic() - begun < 2.5


def test_silence_in_the_middle_of_an_answer(provider: Provider, serve: Serve) -> None:
    server = serve([provider.words.stream(["some"], pause_s=3.0)])
    found = failure(provider.client(server.url, timeout_s=0.2, max_retries=0))
    assert found.kind is ErrorKind.TIMEOUT


def test_a_long_answer_takes_longer_than_the_longest_silence(provider: Provider, serve: Serve) -> None:
    whole = provider.words.stream(["a", "b"])
    slow = Reply(chunks=whole.chunks, pause_s=0.5, wait_s=0.5)
    assert provider.client(serve([slow]).url, timeout_s=0.9, max_retries=0).complete(REQUEST).text == "ab"


@pytest.mark.parametrize("drop", [False, True])
def test_half_an_answer_is_no_answer(provider: Provider, serve: Serve, drop: bool) -> None:
    server = serve([provider.words.stream(["half"], finish=None, usage=None, drop=drop)])
    found = failure(provider.client(server.url, max_retries=0))
    assert found.kind is (ErrorKind.SERVER if drop else ErrorKind.MALFORMED)
    assert drop or "the stream was cut off" in str(found)


def test_broken_json_is_no_answer(provider: Provider, serve: Serve) -> None:
    found = failure(provider.client(serve([provider.words.broken()]).url))
    assert found.kind is ErrorKind.MALFORMED


@pytest.mark.parametrize(
    "body", [b"", b"<html>welcome</html>", b"data: \xff\xfe\n\n", b"event: x\ndata: 7\n\n"]
)
def test_what_is_no_protocol_is_no_answer(provider: Provider, serve: Serve, body: bytes) -> None:
    found = failure(provider.client(serve([Reply(chunks=(body,))]).url))
    assert found.kind is ErrorKind.MALFORMED


def test_errors_in_the_middle_of_a_stream(provider: Provider, serve: Serve) -> None:
    found = failure(provider.client(serve([provider.words.overloaded()]).url))
    assert found.kind is ErrorKind.SERVER and "overloaded" in str(found)
    found = failure(provider.client(serve([provider.words.limited()]).url))
    assert found.kind is ErrorKind.RATE and "slow down" in str(found)


def test_nobody_there(provider: Provider, serve: Serve) -> None:
    with Server([]).running() as gone:
        url = gone.url
    found = failure(provider.client(url, max_retries=0))
    assert found.kind is ErrorKind.SERVER


def test_a_long_error_is_cut(provider: Provider, serve: Serve) -> None:
    found = failure(provider.client(serve([error(400, "very long " * 10_000)]).url))
    assert len(str(found)) <= 600 and "\n" not in str(found)


def test_any_json_in_a_stream_is_an_answer_or_a_typed_error(provider: Provider, serve: Serve) -> None:
    odd: list[Any] = [None, True, 7, "text", [], [1], {}, {"choices": 3}, {"choices": [3]}, {"choices": [{}]}]
    odd += [
        {"choices": [{"index": "x", "delta": {"content": "a"}}]},
        {"choices": [{"delta": 5}]},
        {"model": 4},
    ]
    odd += [{"choices": [{"delta": {"content": {"a": 1}}}]}, {"choices": [{"finish_reason": 3}]}]
    odd += [
        {"type": t, f: v}
        for t in ("message_start", "content_block_start", "content_block_delta", "message_delta")
        for f in ("message", "content_block", "delta", "usage")
        for v in (3, [], {"type": 7}, {"content": 3}, None)
    ]
    odd += [{"type": 9}, {"type": "content_block_delta", "delta": {"type": "text_delta", "text": 5}}]

    def event(data: Any) -> bytes:
        return (
            provider.words.event(data)
            if isinstance(data, dict) and "type" in data
            else OpenAIWords.event(data)
        )

    server = serve(lambda _, n: Reply(chunks=(event(odd[n]),)))
    client = provider.client(server.url, max_retries=0)
    for _ in odd:
        with contextlib.suppress(ProviderError):
            assert isinstance(client.complete(REQUEST), Completion)


def test_threads_share_a_client(provider: Provider, serve: Serve) -> None:
    server = serve(lambda asked, _: provider.words.stream([asked.body["messages"][-1]["content"]]))
    client = provider.client(server.url)

    def ask(n: int) -> str:
        return client.complete(Request("m", (Message("user", f"number {n}"),))).text

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(24))) == [f"number {n}" for n in range(24)]


def test_a_missing_sdk_says_how_to_install_it(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sdk, "import_module", missing)
    found = failure(provider.client("http://127.0.0.1:1"))
    assert found.kind is ErrorKind.MISSING and "python3 -m pip install 'attnbench[models]'" in str(found)
    assert provider.package in str(found)


def test_importing_the_clients_imports_no_sdk() -> None:
    code = (
        "import sys, harness.llm.providers; print([m for m in ('openai', 'anthropic') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
