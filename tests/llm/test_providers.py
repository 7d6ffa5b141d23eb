"""Claims about names of models, settings of providers, and the clients that are made of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.llm import client as protocol
from harness.llm.anthropic import AnthropicClient
from harness.llm.client import Deferred, ErrorKind, ProviderError, Sampling
from harness.llm.keys import KEY_VARIABLES
from harness.llm.openai import OpenAIClient
from harness.llm.providers import (
    Asking,
    ModelError,
    ModelSpec,
    ProviderSettings,
    key_variables,
    make_client,
    parse_model,
    parse_models,
)
from tests.llm.talk import exchange, request

VLLM = ProviderSettings(kind="openai", base_url="http://127.0.0.1:8000/v1")


@pytest.mark.parametrize(
    ("text", "models"),
    [
        ("openai:gpt-4o", (ModelSpec("openai", "gpt-4o"),)),
        (" deferred : some model ", (ModelSpec("deferred", "some model"),)),
        ("local:llama3:8b", (ModelSpec("local", "llama3:8b"),)),
        ("openai:a -> anthropic:b", (ModelSpec("openai", "a"), ModelSpec("anthropic", "b"))),
        ("openai:a->openai:a", (ModelSpec("openai", "a"), ModelSpec("openai", "a"))),
    ],
)
def test_models_are_read(text: str, models: tuple[ModelSpec, ...]) -> None:
    assert parse_models(text) == models


@given(
    st.lists(
        st.builds(
            ModelSpec,
            st.sampled_from(["openai", "my-own.1"]),
            st.from_regex(r"[\w./:]{1,12}", fullmatch=True),
        ),
        min_size=1,
        max_size=2,
    )
)
def test_models_are_read_as_they_are_written(specs: list[ModelSpec]) -> None:
    assert parse_models(" -> ".join(map(str, specs)), ["my-own.1"]) == tuple(specs)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gpt-4o", "as in openai:gpt-4o"),
        ("claude-x", "as in anthropic:claude-x"),
        ("something", "write provider:model"),
        ("openai:", "write provider:model"),
        (":gpt", "write provider:model"),
        ("Open AI:gpt", "write provider:model"),
        ("", "write provider:model"),
        ("openai:a ->", "'' is no model"),
        ("openai:a -> openai:b -> openai:c", "names 3 models"),
    ],
)
def test_what_is_no_model(text: str, says: str) -> None:
    with pytest.raises(ModelError) as caught:
        parse_models(text)
    assert says in str(caught.value)


def test_an_unknown_provider_is_told_with_those_that_are_near() -> None:
    assert parse_model("opnai:x") == ModelSpec("opnai", "x")  # nobody said which there are
    with pytest.raises(ModelError, match="did you mean openai"):
        parse_model("opnai:x", [])
    with pytest.raises(ModelError, match="did you mean local"):
        parse_models("openai:y -> locl:x", ["local"])
    with pytest.raises(
        ModelError, match=r"did you mean openai, anthropic, replay, deferred\?.*\[providers.zzz\]"
    ):
        parse_model("zzz:x", [])
    with pytest.raises(ModelError, match="did you mean openai"):
        make_client(ModelSpec("opnai", "x"), Asking(), {}, [])


def test_each_provider_has_its_client() -> None:
    asked = request("a", model="x")
    made = {n: make_client(ModelSpec(n, "x"), Asking(), {"vllm": VLLM}, [exchange(asked)]) for n in
            ("openai", "anthropic", "replay", "deferred", "vllm")}  # fmt: skip
    assert {name: client.provider for name, client in made.items()} == {name: name for name in made}
    assert isinstance(made["openai"], OpenAIClient) and isinstance(made["vllm"], OpenAIClient)
    assert isinstance(made["anthropic"], AnthropicClient)
    assert made["replay"].complete(asked).text == "answer"
    with pytest.raises(Deferred):
        made["deferred"].complete(asked)
    for name, variable in (("openai", "OPENAI_API_KEY"), ("anthropic", "ANTHROPIC_API_KEY")):
        with pytest.raises(ProviderError, match=variable) as caught:
            made[name].complete(asked)
        assert caught.value.kind is ErrorKind.KEY


def test_all_clients_are_clients() -> None:
    names: list[protocol.Client] = [
        make_client(ModelSpec(n, "x"), Asking(), {}, []) for n in ("replay", "deferred")
    ]
    assert [c.provider for c in names] == ["replay", "deferred"]


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_the_address_of_the_environment_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{name.upper()}_BASE_URL", "ftp://somewhere")
    with pytest.raises(ProviderError, match="base_url is no address"):
        make_client(ModelSpec(name, "x"), Asking(), {}, []).complete(request("a"))
    monkeypatch.setenv(f"{name.upper()}_BASE_URL", "http://localhost:1/v1")
    client = make_client(ModelSpec(name, "x"), Asking(max_retries=0), {}, [])
    client.check()  # type: ignore[attr-defined]  # no key is needed on this machine
    own = make_client(
        ModelSpec("mine", "x"), Asking(), {"mine": ProviderSettings(kind="openai", key_env="K")}, []
    )
    with pytest.raises(ProviderError, match="set the variable K"):  # it answers where OpenAI does
        own.complete(request("a"))


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ModelError, match=r"\[providers.openai\]: this name is taken"):
        make_client(ModelSpec("openai", "x"), Asking(), {"openai": VLLM}, [])


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "else"},
        {"kind": "openai", "base_url": "localhost:8000"},
        {"kind": "openai", "base_url": "https://"},
        {"kind": "openai", "base_url": "http://host:99999/v1"},
        {"kind": "openai", "url": "https://host/v1"},
        {"kind": "openai", "base_url": "https://user:secret-word@host/v1"},
        {"kind": "openai", "base_url": "https://host/v1?key=secret-word"},
        {"kind": "openai", "key_env": "sk-secret-word"},
    ],
)
def test_settings_that_are_wrong_are_refused(settings: dict[str, str]) -> None:
    with pytest.raises(ValidationError) as caught:
        ProviderSettings.model_validate(settings)
    assert all("secret-word" not in error["msg"] for error in caught.value.errors())


def test_how_models_are_asked() -> None:
    asking = Asking(temperature=0.5)
    assert asking.sampling == Sampling(16_000, 0.5, None)
    assert (asking.concurrency, asking.timeout_s, asking.max_retries) == (4, 600, 4)
    for wrong in (
        {"concurrency": 0},
        {"concurrency": 65},
        {"timeout_s": 0},
        {"top_p": 2},
        {"max_tokens": 0},
        {"seed": 1},
    ):
        with pytest.raises(ValidationError):
            Asking.model_validate(wrong)


def test_all_variables_that_hold_keys_are_known() -> None:
    mine = ProviderSettings(kind="anthropic", key_env="MY_KEY")
    assert key_variables({"mine": mine, "vllm": VLLM}) == KEY_VARIABLES | {"MY_KEY"}
    assert {"OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"} <= KEY_VARIABLES
