"""Claims about budgets: never overdrawn, whatever is in flight and in whatever order it ends."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from harness.llm.budget import (
    Account,
    Budget,
    BudgetReached,
    Caps,
    Cost,
    Purse,
    Reservation,
    cost_of,
    most_of,
    tokens_of,
)
from harness.llm.client import Completion
from harness.llm.prices import Price, Prices, PricesError
from tests.llm.talk import exchange, request

PRICES = Prices({"m": Price(input=1000, output=3000)})


def answer(tokens_in: int | None, tokens_out: int | None, text: str = "x" * 9) -> Completion:
    return Completion(text, tokens_in=tokens_in, tokens_out=tokens_out)


class Accounts(RuleBasedStateMachine):
    """A run and a trial of it, asked, answered and failed in any order."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.accounts: tuple[Account, ...] = ()
        self.open: list[Cost] = []
        self.spent = 0
        self.caps = Caps(tokens=2000, usd=4.0)
        self.account = Purse(self.caps, PRICES)

    @rule(target=held, characters=st.integers(0, 900), max_tokens=st.integers(1, 900))
    def reserve(self, characters: int, max_tokens: int) -> Reservation | None:
        asked = request("x" * characters, max_tokens=max_tokens)
        most = most_of(asked, PRICES)
        try:
            held = self.account.reserve(asked)
        except BudgetReached:
            tokens = self.spent + sum(c.tokens for c in self.open) + most.tokens
            usd = (self.account.usd or 0.0) + sum(c.usd or 0.0 for c in self.open) + (most.usd or 0.0)
            assert tokens > 2000 or usd > 4.0  # nothing is refused that would fit
            return None
        self.open.append(most)
        return held

    @rule(held=consumes(held), share_in=st.floats(0, 1), share_out=st.floats(0, 1))
    def settle(self, held: Reservation | None, share_in: float, share_out: float) -> None:
        if held is None:
            return
        most = held.most
        used = answer(int(most.tokens_in * share_in), int(most.tokens_out * share_out))
        cost = self.account.settle(held, used)
        self.open.remove(most)
        self.spent += cost.tokens
        assert not cost.estimated and cost.tokens <= most.tokens

    @rule(held=consumes(held))
    def release(self, held: Reservation | None) -> None:
        if held is not None:
            self.account.release(held)
            self.open.remove(held.most)

    @invariant()
    def never_overdrawn(self) -> None:
        flying = sum(c.tokens for c in self.open)
        flying_usd = sum(c.usd or 0.0 for c in self.open)
        assert self.account.tokens == self.spent
        assert self.account.tokens + flying <= 2000
        assert self.account.usd is not None and self.account.usd + flying_usd <= 4.0 + 1e-6


Accounts.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestAccounts = Accounts.TestCase


def test_a_refusal_says_whose_budget_and_how_much() -> None:
    budget = Budget(Caps(tokens=120_000), PRICES)
    budget.used(118_300, 0.0)
    with pytest.raises(BudgetReached) as caught:
        budget.reserve(request("x" * 15_000, max_tokens=16_000))
    assert caught.value.whose == "trial"
    assert str(caught.value) == (
        "the trial's budget of 120,000 tokens would be exceeded: 118,300 spent, this question may take up to 21,000"
    )


def test_what_is_in_flight_counts_and_is_told() -> None:
    purse = Purse(Caps(usd=10.0), PRICES)
    first = purse.reserve(request("x" * 3000, max_tokens=2000))  # 1 USD and 6 USD
    with pytest.raises(
        BudgetReached, match=r"run's budget of 10.0 USD .* 7.0000 held for questions in flight"
    ) as caught:
        purse.reserve(request("", max_tokens=1001))
    assert caught.value.whose == "run"
    second = purse.reserve(request("", max_tokens=1000))
    purse.settle(first, answer(0, 1000))
    purse.release(second)
    assert purse.usd == pytest.approx(3.0)
    purse.reserve(request("", max_tokens=2333))


def test_a_reservation_is_closed_once_and_by_its_own_account() -> None:
    purse, other = Purse(Caps(), PRICES), Purse(Caps(), PRICES)
    held = purse.reserve(request("a"))
    with pytest.raises(ValueError, match="another account"):
        other.release(held)
    purse.settle(held, answer(1, 1))
    with pytest.raises(ValueError, match="closed already"):
        purse.release(held)
    assert purse.tokens == 2


def test_two_equal_questions_are_two_reservations() -> None:
    purse = Purse(Caps(tokens=20), PRICES)
    one, two = (purse.reserve(request("", max_tokens=10)) for _ in range(2))
    purse.release(two)
    purse.settle(one, answer(0, 10))
    assert purse.tokens == 10


def test_sums_of_cents_reach_their_cap_exactly() -> None:
    purse = Purse(Caps(usd=0.3), Prices({"m": Price(input=0, output=100_000)}))
    for _ in range(3):
        purse.settle(purse.reserve(request("", max_tokens=1)), answer(0, 1))
    with pytest.raises(BudgetReached):
        purse.reserve(request("", max_tokens=1))


def test_the_most_is_few_characters_a_token_and_a_full_answer() -> None:
    most = most_of(request("a" * 10, "b", max_tokens=50), PRICES)
    assert (most.tokens_in, most.tokens_out) == (4, 50)
    assert most.usd == pytest.approx(0.154)


@given(
    st.none() | st.integers(0, 99), st.none() | st.integers(0, 99), st.text(max_size=50), st.text(max_size=50)
)
def test_unreported_tokens_are_estimated_and_said_to_be(
    tokens_in: int | None, tokens_out: int | None, question: str, text: str
) -> None:
    kept = exchange(request(question), text, tokens_in=tokens_in, tokens_out=tokens_out)
    purse = Purse(Caps(), PRICES)
    cost = purse.settle(
        purse.reserve(request(question)), Completion(text, tokens_in=tokens_in, tokens_out=tokens_out)
    )
    assert cost == cost_of(kept, PRICES)
    assert tokens_of(kept) == (cost.tokens_in, cost.tokens_out, cost.estimated)
    assert cost.tokens_in == (tokens_in if tokens_in is not None else -(-len(question) // 4))
    assert cost.tokens_out == (tokens_out if tokens_out is not None else -(-len(text) // 4))
    assert cost.estimated is (tokens_in is None or tokens_out is None)
    assert purse.tokens == cost.tokens


def test_an_unknown_price_is_no_price_and_no_budget_in_money_goes_without() -> None:
    asked = request("a", model="unheard-of")
    purse = Purse(Caps(), PRICES)
    assert purse.settle(purse.reserve(asked), answer(1, 1)).usd is None and purse.usd is None
    with pytest.raises(PricesError, match="unheard-of"):
        Purse(Caps(usd=5.0), PRICES).reserve(asked)
    purse = Purse(Caps(usd=5.0), PRICES)
    purse.add(exchange(asked))
    with pytest.raises(PricesError, match="an earlier answer has no known price"):
        purse.reserve(request("a"))


def test_what_was_spent_earlier_counts() -> None:
    purse = Purse(Caps(tokens=100), PRICES)
    purse.add(exchange(request("a"), tokens_in=60, tokens_out=60))
    with pytest.raises(BudgetReached, match="120 spent"):
        purse.check(request("", max_tokens=1))


def test_a_check_holds_nothing_back() -> None:
    purse = Purse(Caps(tokens=10), PRICES)
    for _ in range(3):
        purse.check(request("", max_tokens=10))
    purse.reserve(request("", max_tokens=10))
    with pytest.raises(BudgetReached):
        purse.check(request("", max_tokens=1))


def test_a_trial_counts_its_turns_and_verifications() -> None:
    budget = Budget(Caps(turns=2, verifications=1), PRICES)
    failed = budget.reserve(request("a"))
    budget.release(failed)  # no answer, no turn
    budget.settle(budget.reserve(request("a")), answer(1, 1))
    budget.reserve(request("b"))
    with pytest.raises(BudgetReached, match="budget of 2 turns is used up"):
        budget.reserve(request("c"))
    budget.verify()
    with pytest.raises(BudgetReached, match="budget of 1 verifications is used up") as caught:
        budget.verify()
    assert caught.value.whose == "trial" and (budget.turns, budget.verifications) == (1, 1)
    budget.add(exchange(request("d")))
    assert budget.turns == 2


def test_threads_together_do_not_overdraw_a_run() -> None:
    purse = Purse(Caps(tokens=1000), PRICES)
    refused = []

    def ask() -> None:
        for n in range(50):
            try:
                held = purse.reserve(request("", max_tokens=10))
            except BudgetReached:
                refused.append(1)
            else:
                purse.settle(held, answer(0, 10)) if n % 2 else purse.release(held)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert purse.tokens <= 1000
    assert purse.tokens == 1000 and refused  # 8 x 25 settled of 10 each would be 2000
