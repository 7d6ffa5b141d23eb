"""Claims about prices: what is known, what stays unknown, and what a list may say."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.llm.budget import Caps, require_prices
from harness.llm.prices import SHIPPED, Price, Prices, PricesError

TWO = Prices(
    {
        "gpt-4o": Price(input=2, output=10),
        "gpt-4o-mini": Price(input=1, output=1),
        "a-4": Price(input=3, output=3),
    }
)


@pytest.mark.parametrize(
    ("model", "input_usd"),
    [
        ("gpt-4o", 2),
        ("openai:gpt-4o", 2),
        ("gpt-4o-2024-08-06", 2),
        ("openai:gpt-4o-2024-08-06", 2),
        ("gpt-4o-20240806", 2),
        ("gpt-4o-0806", 2),
        ("gpt-4o-mini", 1),
        ("gpt-4o-mini-2024-07-18", 1),
        ("a-4", 3),
        ("a-4-20250514", 3),
        ("a-4-5", None),  # another model, not a version
        ("a-4-5-20250514", None),
        ("gpt-4o-audio", None),
        ("gpt-4o-audio-2024-08-06", None),
        ("gpt-4", None),
        ("gpt-4o2024-08-06", None),
        ("gpt-4o-2024-08-06-x", None),
        ("GPT-4o", None),
        ("llama3:8b", None),
        ("", None),
    ],
)
def test_a_price_holds_for_a_model_and_its_dated_versions(model: str, input_usd: int | None) -> None:
    assert TWO.usd(model, 1_000_000, 0) == input_usd


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.integers(0, 10**7))
def test_cost_is_proportional(a: int, b: int, more: int) -> None:
    one, two, three = TWO.usd("gpt-4o", a, b), TWO.usd("gpt-4o", more, 0), TWO.usd("gpt-4o", a + more, b)
    assert one is not None and two is not None and three is not None
    assert one >= 0 and three == pytest.approx(one + two)


def test_a_name_with_its_provider_comes_first() -> None:
    prices = Prices({**TWO.by_model, "local:gpt-4o": Price(input=0, output=0)})
    assert prices.usd("local:gpt-4o", 10, 10) == 0 and prices.usd("openai:gpt-4o", 1_000_000, 0) == 2


def test_the_shipped_list_is_read() -> None:
    prices = Prices.read(None)
    assert len(prices.by_model) >= 10 and prices.usd("openai:gpt-4o-2024-08-06", 1_000_000, 1_000_000) == 12.5
    assert "*" not in "".join(prices.by_model)
    assert "CHECK" in SHIPPED.read_text(encoding="utf-8")
    assert set(tomllib.loads(SHIPPED.read_text(encoding="utf-8"))) == {"models"}


def test_ones_own_list_comes_before_the_shipped_one(tmp_path: Path) -> None:
    own = tmp_path / "prices.toml"
    own.write_text('[models."gpt-4o"]\ninput = 7\noutput = 0.5\n[models.mine]\ninput = 0\noutput = 0\n')
    prices = Prices.read(own)
    assert prices.usd("gpt-4o", 1_000_000, 0) == 7 and prices.usd("mine", 5, 5) == 0
    assert prices.usd("gpt-4o-mini", 1_000_000, 0) == Prices.read(None).usd("gpt-4o-mini", 1_000_000, 0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[models."*"]\ninput = 1\noutput = 1', "models: '*' names no model"),
        ('[models."gpt-*"]\ninput = 1\noutput = 1', "names no model"),
        ("[models.a]\ninput = -1\noutput = 1", "models.a.input: "),
        ("[models.a]\ninput = nan\noutput = 1", "models.a.input: "),
        ("[models.a]\ninput = 1\noutput = inf", "models.a.output: "),
        ('[models.a]\ninput = "1"\noutput = 1', "models.a.input: "),
        ("[models.a]\ninput = true\noutput = 1", "models.a.input: "),
        ("[models.a]\ninput = 1", "models.a.output: Field required"),
        ("[models.a]\ninput = 1\noutput = 1\ncached = 1", "models.a.cached: unknown key"),
        ("[prices.a]\ninput = 1\noutput = 1", "prices: unknown key"),
        ("[models", "not TOML"),
    ],
)
def test_a_list_that_is_wrong_names_the_key(tmp_path: Path, text: str, says: str) -> None:
    own = tmp_path / "mine.toml"
    own.write_text(text)
    with pytest.raises(PricesError, match=r"mine\.toml: ") as caught:
        Prices.read(own)
    assert says in str(caught.value)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PricesError, match="No such file"):
        Prices.read(tmp_path / "mine.toml")


def test_a_budget_in_money_needs_prices(tmp_path: Path) -> None:
    require_prices(["gpt-4o", "unheard-of"], Caps(tokens=5), TWO)
    require_prices(["gpt-4o", "openai:gpt-4o-0806"], Caps(usd=1.0), TWO)
    with pytest.raises(PricesError, match=r"unheard-of.*write a file prices\.toml"):
        require_prices(["gpt-4o", "unheard-of"], Caps(usd=1.0), TWO)
    own = Prices(TWO.by_model, tmp_path / "mine.toml")
    with pytest.raises(PricesError, match=r'a, b.*mine\.toml: \[models\."a"\]'):
        require_prices(["b", "a"], Caps(usd=1.0), own)
