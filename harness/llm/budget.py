"""Owns how much may be spent: the account of a trial and that of a run, asked before each question.

A question is reserved with the most that it may take, and settled with what it took. So an account is
never overdrawn, whatever is in flight, as long as no answer takes more than was reserved for it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from harness.llm.client import Request
from harness.llm.prices import Prices, PricesError
from harness.story import Exchange

# Tokenizers take 3.5 to 4.5 characters of English or of code as one token; three is on the safe side.
# It is an estimate all the same: of Chinese, a character may be a token.
FEWEST_CHARACTERS = 3
USUAL_CHARACTERS = 4  # where nobody reported a count
ROUNDING_USD = 1e-9  # ten answers for 0.1 are not more than 1


@dataclass(frozen=True)
class Caps:
    """The most that may be spent; None: no bound. Of a run, tokens and usd count."""

    turns: int | None = None
    tokens: int | None = None
    verifications: int | None = None
    usd: float | None = None


class BudgetReached(Exception):
    """What is asked for would exceed a budget, so it was not done; `whose` budget it is."""

    def __init__(self, whose: Literal["trial", "run"], message: str) -> None:
        super().__init__(message)
        self.whose = whose


class Counted(Protocol):
    """An answer with the provider's counts: a Completion or an Exchange."""

    @property
    def text(self) -> str: ...
    @property
    def tokens_in(self) -> int | None: ...
    @property
    def tokens_out(self) -> int | None: ...


@dataclass(frozen=True)
class Cost:
    """What an answer took. `usd` None: no price is known; `estimated`: nobody reported some of its tokens."""

    tokens_in: int
    tokens_out: int
    usd: float | None
    estimated: bool = False

    @property
    def tokens(self) -> int:
        """In and out."""
        return self.tokens_in + self.tokens_out


@dataclass(frozen=True, eq=False)
class Reservation:
    """What an account holds back for a question until it is settled or released."""

    request: Request
    most: Cost


class Account:
    """Tokens and money: spent, held back for questions in flight, left. Safe from several threads."""

    whose: Literal["trial", "run"]

    def __init__(self, caps: Caps, prices: Prices) -> None:
        self.caps, self._prices = caps, prices
        self.tokens = 0  # spent, in and out
        self.usd: float | None = 0.0  # spent; None: something had no known price
        self._open: list[Reservation] = []
        self._lock = threading.Lock()

    def check(self, request: Request) -> None:
        """Raises what `reserve` would, and holds nothing back."""
        with self._lock:
            self._check(most_of(request, self._prices), request)

    def reserve(self, request: Request) -> Reservation:
        """Hold back the most that a question may take.

        Raises BudgetReached where that is not left, PricesError where money is bounded and a price lacks.
        """
        held = Reservation(request, most_of(request, self._prices))
        with self._lock:
            self._check(held.most, request)
            self._open.append(held)
        return held

    def settle(self, held: Reservation, answer: Counted) -> Cost:
        """Replace a reservation by what the answer took, and return that."""
        characters = _characters(m.content for m in held.request.messages)
        cost = _cost(held.request.model, characters, answer, self._prices)
        with self._lock:
            self._close(held)
            self._book(cost.tokens, cost.usd)
        return cost

    def release(self, held: Reservation) -> None:
        """Give a reservation back: the question has no answer."""
        with self._lock:
            self._close(held)

    def add(self, exchange: Exchange) -> Cost:
        """Count an answer of earlier, whatever is left: it is spent."""
        cost = cost_of(exchange, self._prices)
        with self._lock:
            self._book(cost.tokens, cost.usd)
        return cost

    def used(self, tokens: int, usd: float | None) -> None:
        """Count what was spent; `usd` None: nobody knows how much."""
        with self._lock:
            self._book(tokens, usd)

    def _close(self, held: Reservation) -> None:
        if held not in self._open:
            raise ValueError("this reservation is closed already, or another account's")
        self._open.remove(held)

    def _book(self, tokens: int, usd: float | None) -> None:
        self.tokens += tokens
        self.usd = None if self.usd is None or usd is None else self.usd + usd

    def _check(self, most: Cost, request: Request) -> None:
        caps, flying = self.caps, sum(held.most.tokens for held in self._open)
        if caps.tokens is not None and self.tokens + flying + most.tokens > caps.tokens:
            self._refuse(f"{caps.tokens:,} tokens", f"{self.tokens:,}", f"{flying:,}", f"{most.tokens:,}")
        if caps.usd is None:
            return
        if most.usd is None:
            raise PricesError(_no_price([request.model], self._prices))
        if self.usd is None:
            raise PricesError(
                f"the {self.whose}'s budget of {caps.usd} USD cannot be kept: an earlier answer has no known "
                "price; add its model to the price list, or drop the bound"
            )
        flying_usd = sum(held.most.usd or 0.0 for held in self._open)
        if self.usd + flying_usd + most.usd > caps.usd + ROUNDING_USD:
            self._refuse(f"{caps.usd} USD", f"{self.usd:.4f}", f"{flying_usd:.4f}", f"{most.usd:.4f}")

    def _refuse(self, budget: str, spent: str, flying: str, most: str) -> None:
        held = f"{flying} held for questions in flight, " if self._open else ""
        raise BudgetReached(
            self.whose,
            f"the {self.whose}'s budget of {budget} would be exceeded: {spent} spent, {held}"
            f"this question may take up to {most}",
        )


class Purse(Account):
    """The account of a run."""

    whose = "run"


class Budget(Account):
    """The account of one trial, which also counts questions and verifications."""

    whose = "trial"

    def __init__(self, caps: Caps, prices: Prices) -> None:
        super().__init__(caps, prices)
        self.turns = 0  # questions that have an answer
        self.verifications = 0

    def settle(self, held: Reservation, answer: Counted) -> Cost:
        """Replace a reservation by what the answer took; that is a turn."""
        cost = super().settle(held, answer)
        with self._lock:
            self.turns += 1
        return cost

    def add(self, exchange: Exchange) -> Cost:
        """Count an answer of earlier; that is a turn too."""
        cost = super().add(exchange)
        with self._lock:
            self.turns += 1
        return cost

    def check_verification(self) -> None:
        """Raises BudgetReached where `verify` would."""
        most = self.caps.verifications
        if most is not None and self.verifications >= most:
            raise BudgetReached("trial", f"the trial's budget of {most} verifications is used up")

    def verify(self) -> None:
        """Count one more verification; raises BudgetReached where none is left."""
        with self._lock:
            self.check_verification()
            self.verifications += 1

    def _check(self, most: Cost, request: Request) -> None:
        turns = self.caps.turns
        if turns is not None and self.turns + len(self._open) >= turns:
            raise BudgetReached("trial", f"the trial's budget of {turns} turns is used up")
        super()._check(most, request)


def most_of(request: Request, prices: Prices) -> Cost:
    """The most that a question may take: its text at few characters a token, and a full answer."""
    characters = _characters(m.content for m in request.messages)
    tokens_in, tokens_out = -(-characters // FEWEST_CHARACTERS), request.sampling.max_tokens
    return Cost(tokens_in, tokens_out, prices.usd(request.model, tokens_in, tokens_out), estimated=True)


def cost_of(exchange: Exchange, prices: Prices) -> Cost:
    """What a recorded answer took."""
    return _cost(exchange.model, _characters(m.content for m in exchange.messages), exchange, prices)


def tokens_of(exchange: Exchange) -> tuple[int, int, bool]:
    """Tokens in and out of a recorded answer, and whether some are estimated."""
    return _tokens(_characters(m.content for m in exchange.messages), exchange)


def require_prices(models: Iterable[str], caps: Caps, prices: Prices) -> None:
    """Raises PricesError that names each model without a price, where money is bounded."""
    unknown = sorted({model for model in models if prices.usd(model, 0, 0) is None})
    if caps.usd is not None and unknown:
        raise PricesError(_no_price(unknown, prices))


def _cost(model: str, characters: int, answer: Counted, prices: Prices) -> Cost:
    tokens_in, tokens_out, estimated = _tokens(characters, answer)
    return Cost(tokens_in, tokens_out, prices.usd(model, tokens_in, tokens_out), estimated)


def _tokens(characters: int, answer: Counted) -> tuple[int, int, bool]:
    told_in, told_out = answer.tokens_in, answer.tokens_out
    tokens_in = told_in if told_in is not None else -(-characters // USUAL_CHARACTERS)
    tokens_out = told_out if told_out is not None else -(-len(answer.text) // USUAL_CHARACTERS)
    return tokens_in, tokens_out, told_in is None or told_out is None


def _characters(contents: Iterable[str]) -> int:
    return sum(map(len, contents))


def _no_price(models: Sequence[str], prices: Prices) -> str:
    return (
        f"no price is known of {', '.join(models)}, and there is a budget in USD; "
        f"{prices.how_to_add(models[0])}; or drop the bound"
    )
