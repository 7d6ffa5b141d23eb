"""Owns making the kernels of a run: all trials at once, each until it ends or has to wait.

Questions are asked by a few threads; everything else is done here, one thing at a time, since it needs
the device. A trial whose answer comes later (`deferred`) or whose step needs a device that is not here
waits; the run goes on with the others and says at the end what is missing.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from harness.assignments import Commission
from harness.experiment import Experiment
from harness.generate.method import Ask, Reply, Time
from harness.llm.budget import BudgetReached, Caps, Purse, Reservation
from harness.llm.client import Client, Completion, Deferred, ProviderError, Request
from harness.llm.prices import Prices
from harness.story import Ending, Exchange, Said
from harness.storybook import Storybook
from harness.trial import Trial, now
from harness.verdicts import Verdict
from harness.workshop import Workshop

GRACE_S = 20.0  # that a run which is interrupted waits for answers on their way
FREE = frozenset(("replay",))  # answers that were paid for elsewhere


class Listener(Protocol):
    """Who watches the making of kernels."""

    def begun(self, trials: int, ended: int) -> None:
        """How many trials there are, how many of them ended earlier."""

    def stepped(self, commission: Commission, what: str, told: str) -> None:
        """A step of a trial is recorded."""

    def ended(self, commission: Commission, ending: Ending) -> None:
        """A trial has ended."""


@dataclass
class Made:
    """Where the trials stand: their endings, questions that wait for answers, trials for a device."""

    endings: dict[str, Ending] = field(default_factory=dict)
    pending: list[Request] = field(default_factory=list)
    waiting: list[Commission] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not self.pending and not self.waiting


@dataclass(frozen=True)
class _Question:
    """What an asking thread is to do; `held` is what the run's purse keeps back for it."""

    request: Request
    client: Client
    held: Reservation | None


@dataclass
class _Heard:
    """What an asking thread brings back."""

    key: str
    exchange: Exchange | None = None
    error: Exception | None = None


class Generation:
    """Runs commissions to their ends."""

    def __init__(
        self,
        experiment: Experiment,
        book: Storybook,
        workshop: Workshop,
        clients: Mapping[str, Client],
        prices: Prices,
        listener: Listener,
    ) -> None:
        self._book, self._workshop, self._clients = book, workshop, clients
        self._prices, self._listener = prices, listener
        asking, budget = experiment.asking, experiment.budget
        self._sampling = asking.sampling
        self._caps = Caps(budget.turns, budget.tokens, budget.verifications, budget.usd)
        self._purse = Purse(Caps(tokens=experiment.run_budget.tokens, usd=experiment.run_budget.usd), prices)
        for exchange in book.exchanges.values():
            if exchange.provider not in FREE:
                self._purse.add(exchange)
        self._questions: queue.Queue[_Question | None] = queue.Queue()
        self._answers: queue.Queue[_Heard] = queue.Queue()
        self._asked: dict[str, list[Trial]] = {}  # questions on their way -> the trials that wait for them
        self._threads = asking.concurrency
        self.made = Made()

    def run(self, commissions: Sequence[Commission]) -> Made:
        """All trials, until each has ended or waits. Raises StoreError."""
        ended = [c for c in commissions if c.id in self._book.endings]
        self.made.endings = {c.id: self._book.endings[c.id] for c in ended}
        self._listener.begun(len(commissions), len(ended))
        todo = deque(
            Trial(c, self._book, self._sampling, self._caps, self._prices)
            for c in commissions
            if c.id not in self._book.endings
        )
        threads = [threading.Thread(target=self._ask_on, daemon=True) for _ in range(self._threads)]
        for thread in threads:
            thread.start()
        try:
            while todo or self._asked:
                while todo:
                    self._advance(todo.popleft(), todo)
                    self._collect(todo, wait=False)
                if self._asked:
                    self._collect(todo, wait=True)
        finally:
            self._leave(threads)
        return self.made

    def _leave(self, threads: Sequence[threading.Thread]) -> None:
        """Ask nothing more; what is being answered just now is waited for a little, since it is paid for."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._questions.get_nowait()
        for _ in threads:
            self._questions.put(None)
        deadline = time.monotonic() + GRACE_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    # --- one step ---

    def _advance(self, trial: Trial, todo: deque[Trial]) -> None:
        """The next step of a trial: done at once, sent off, or found to have to wait."""
        step = trial.step
        if step is None:
            self._end(trial)
        elif reached := _reached(trial):
            self._end(trial, reason=str(reached))
        elif isinstance(step, Ask):
            self._ask(trial, todo)
        elif not self._workshop.can(step):
            self.made.waiting.append(trial.commission)
        else:
            begun = time.monotonic()
            standing = None
            if isinstance(step, Time):
                assert trial.standing is not None
                standing = self._workshop.kept(
                    trial.commission, trial.standing.candidate, trial.standing.files
                )
            done = self._workshop.do(step, trial.commission, trial.number, standing)
            trial.done(done, time.monotonic() - begun)
            what = type(step).__name__.lower()
            self._listener.stepped(trial.commission, f"{step.stage}: {what}", _told(done.reply))
            todo.appendleft(trial)

    def _ask(self, trial: Trial, todo: deque[Trial]) -> None:
        request = trial.request()
        known = self._book.exchanges.get(request.key)
        if known is not None:
            trial.answered(known)
            todo.append(trial)
            return
        if request.key in self._asked:
            self._asked[request.key].append(trial)
            return
        client = self._clients[str(trial.commission.model_for(trial.step.role))]  # type: ignore[union-attr]
        try:
            held = None if client.provider in FREE else self._purse.reserve(request)
        except BudgetReached as reached:  # the run's, which is no fault of the trial's
            self._end(trial, Verdict.INFRA, str(reached))
            return
        self._asked[request.key] = [trial]
        self._questions.put(_Question(request, client, held))

    def _collect(self, todo: deque[Trial], *, wait: bool) -> None:
        """Take what the asking threads bring."""
        try:
            heard = self._answers.get(block=wait)
        except queue.Empty:
            return
        trials = self._asked.pop(heard.key)
        if isinstance(heard.error, Deferred):
            self.made.pending.append(trials[0].request())
            return
        for trial in trials:
            if heard.exchange is not None:
                stage = trial.step.stage if trial.step else ""
                trial.answered(heard.exchange)
                self._listener.stepped(trial.commission, f"{stage}: answer", _size(heard.exchange))
                todo.append(trial)
            elif isinstance(heard.error, ProviderError):
                trial.failed_to_ask(str(heard.error))
                first, _, more = str(heard.error).partition("\n")  # all of it stands in the step
                self._end(trial, Verdict.INFRA, first + (" (...)" if more else ""))
        if heard.exchange is None and not isinstance(heard.error, ProviderError):
            assert heard.error is not None
            raise heard.error

    def _end(self, trial: Trial, verdict: Verdict | None = None, reason: str = "") -> None:
        ending = trial.end(verdict, reason)
        self.made.endings[trial.id] = ending
        self._listener.ended(trial.commission, ending)

    # --- the asking threads ---

    def _ask_on(self) -> None:
        """Ask, record, hand over; what was answered is on disk before anybody else hears of it."""
        while (asked := self._questions.get()) is not None:
            heard = _Heard(asked.request.key)
            try:
                completion = asked.client.complete(asked.request)
                heard.exchange = exchange_of(asked.request, asked.client.provider, completion, self._prices)
                self._book.add_exchange(heard.exchange)
            except (ProviderError, Deferred) as error:
                heard.error = error
            except Exception as error:  # the thread's boundary: the run's thread raises it
                heard.exchange, heard.error = None, error
            if asked.held is not None and heard.exchange is not None:
                self._purse.settle(asked.held, heard.exchange)
            elif asked.held is not None:
                self._purse.release(asked.held)
            self._answers.put(heard)


def _reached(trial: Trial) -> BudgetReached | None:
    try:
        trial.check_budget()
    except BudgetReached as reached:
        return reached
    return None


def exchange_of(request: Request, provider: str, completion: Completion, prices: Prices) -> Exchange:
    """An answer as it is kept."""
    usd = None
    if completion.tokens_in is not None and completion.tokens_out is not None:
        usd = prices.usd(request.model, completion.tokens_in, completion.tokens_out)
    return Exchange(
        id=request.key,
        provider=provider,
        model=request.model,
        sample=request.sample,
        messages=tuple(Said(role=m.role, content=m.content) for m in request.messages),
        sampling=request.sampling.to_json(),
        text=completion.text.encode("utf-8", "replace").decode(),
        stop=completion.stop.value,
        reported_model=completion.model,
        version=completion.version,
        request_id=completion.request_id,
        tokens_in=completion.tokens_in,
        tokens_out=completion.tokens_out,
        latency_s=completion.latency_s,
        usd=usd,
        recorded_at=now(),
    )


def _told(reply: Reply) -> str:
    return "passed" if reply.passed else (reply.told.splitlines() or ["failed"])[0]


def _size(exchange: Exchange) -> str:
    return f"{len(exchange.text):,} characters" + ("" if exchange.stop == "end" else f", {exchange.stop}")
