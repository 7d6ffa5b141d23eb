"""A scripted server for each test of a client, and an environment without the caller's keys and proxies."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache

import pytest

from harness.llm.keys import KEY_VARIABLES
from tests.llm.both import BOTH, KEY, Provider
from tests.llm.server import Reply, Script, Server


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's settings reaches a test."""
    proxies = [name for name in os.environ if name.lower().endswith("_proxy")]
    for name in (*KEY_VARIABLES, *proxies, "OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "OPENAI_ORG_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True, scope="session")
def one_store_of_certificates() -> Iterator[None]:
    """Reading it takes 50 ms a client, and no test here speaks TLS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", cache(ssl.create_default_context))
        yield


@pytest.fixture
def serve() -> Iterator[Callable[[Script | Sequence[Reply]], Server]]:
    """Start a server that replies by a script, or by these replies in turn."""
    with ExitStack() as stack:
        yield lambda script: stack.enter_context(Server(script).running())


@pytest.fixture(params=list(BOTH))
def provider(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Provider:
    """Each of the two protocols in turn, with a key in SOME_KEY."""
    monkeypatch.setenv("SOME_KEY", KEY)
    return BOTH[request.param]


@pytest.fixture
def openai(monkeypatch: pytest.MonkeyPatch) -> Provider:
    """Chat completions, with a key in SOME_KEY."""
    monkeypatch.setenv("SOME_KEY", KEY)
    return BOTH["openai"]
