"""Claims about keys: where they come from, and that nothing shows one."""

from __future__ import annotations

import traceback

import pytest

from harness.llm.client import ErrorKind, ProviderError
from harness.llm.keys import find_access, on_loopback
from tests.llm.both import KEY, REQUEST, Provider, Serve, failure
from tests.llm.server import Reply, error


def everything_shown(found: ProviderError) -> str:
    """All that a person or a log could see of an error, its causes included."""
    shown = [str(found), repr(found), *traceback.format_exception(found)]
    assert found.__cause__ is None and found.__context__ is None
    return "".join(shown)


@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_no_error_shows_the_key(provider: Provider, serve: Serve, status: int) -> None:
    said = f"wrong key {KEY} in headers {{'authorization': 'Bearer {KEY}'}}" + "x" * 475 + KEY
    found = failure(provider.client(serve([error(status, said)]).url, max_retries=1))
    assert KEY[:12] not in everything_shown(found)
    assert "[key]" in str(found)


def test_no_error_in_a_stream_shows_the_key(provider: Provider, serve: Serve) -> None:
    words = provider.words
    echo = {"type": "error", "error": {"type": "api_error", "message": f"you sent {KEY}"}}
    found = failure(provider.client(serve([Reply(chunks=(words.event(echo),))]).url))
    assert KEY not in everything_shown(found)


def test_no_answer_and_no_client_shows_the_key(provider: Provider, serve: Serve) -> None:
    client = provider.client(serve([provider.words.stream(["your key is ", KEY[:9], KEY[9:], "!"])]).url)
    answer = client.complete(REQUEST)
    assert answer.text == "your key is [key]!"
    assert KEY not in f"{answer!r} {client!r} {client!s} {vars(client)['_connected']!r}"


def test_other_secrets_of_the_sdk_are_not_shown(
    provider: Provider, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "OPENAI_CUSTOM_HEADERS", "authorization: Bearer another-secret-1\nx-more: another-secret-2"
    )
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "another-secret-3")
    said = "got another-secret-1, another-secret-2 and another-secret-3"
    server = serve([error(400, said)])
    assert "another" not in str(failure(provider.client(server.url)))
    assert "another-secret-1" not in server.asked[0].headers.get("authorization", "")


def test_a_missing_key_is_told_by_its_variable(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY")
    client = provider.client("http://192.0.2.1")  # an address that is never anybody's
    found = failure(client)
    assert found.kind is ErrorKind.KEY and "set the variable SOME_KEY" in str(found)
    with pytest.raises(ProviderError, match="SOME_KEY"):
        client.check()  # type: ignore[attr-defined]


@pytest.mark.parametrize("key_env", ["SOME_KEY", ""])
def test_a_server_on_this_machine_needs_no_key(
    provider: Provider, serve: Serve, monkeypatch: pytest.MonkeyPatch, key_env: str
) -> None:
    monkeypatch.delenv("SOME_KEY")
    server = serve([provider.words.stream(["local"])])
    assert provider.client(server.url, key_env=key_env).complete(REQUEST).text == "local"
    assert server.asked[0].headers.get("authorization") == "Bearer none"


def test_a_key_with_a_newline_at_its_end_is_a_key(
    provider: Provider, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY + "\n")
    server = serve([provider.words.stream(["ok"])])
    provider.client(server.url).complete(REQUEST)
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
    monkeypatch.setenv("SOME_KEY", "“quoted”-and-more")
    found = failure(provider.client(server.url))
    assert found.kind is ErrorKind.KEY and "quoted" not in str(found)


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.1/v1", True),
        ("http://127.3.2.1/v1", True),
        ("http://[::1]:80/v1", True),
        ("http://api.localhost/v1", True),
        ("http://localhost.example.com/v1", False),
        ("http://127.0.0.1.example.com/v1", False),
        ("http://192.168.0.2/v1", False),
        ("https://api.openai.com/v1", False),
    ],
)
def test_which_addresses_are_this_machine(url: str, own: bool) -> None:
    assert on_loopback(url) is own


def test_short_keys_are_words_and_long_ones_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K", "EMPTY")
    assert find_access("p", "http://localhost/v1", "K").clean("an EMPTY list") == "an EMPTY list"
    monkeypatch.setenv("K", "sk-12345678")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-123456789-longer")
    access = find_access("p", "http://localhost/v1", "K")
    assert access.clean("sk-12345678 sk-123456789-longer") == "[key] [key]"
    assert "sk-" not in repr(access)


def test_no_part_of_a_key_is_left_where_a_message_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K", KEY)
    access = find_access("p", "http://localhost/v1", "K")
    for before in range(560, 610):
        message = access.message("x" * before + KEY + "y" * 600)
        assert "sk" not in message and len(message) <= 600
