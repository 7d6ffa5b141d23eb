"""Owns one trial while its method tells it: replayed from the record first, then gone on with, then ended."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.assignments import Commission
from harness.generate.method import Answer, Ask, Compile, Examine, Reply, Step, Time, Try
from harness.journal import StoreError
from harness.llm.budget import Budget, Caps
from harness.llm.client import Request, Sampling, Stop
from harness.llm.prices import Prices
from harness.story import Ending, Exchange
from harness.story import Step as StepRecord
from harness.storybook import Storybook
from harness.verdicts import Verdict
from harness.workshop import Done


@dataclass
class Kernel:
    """A kernel as a trial last tried it."""

    candidate: str
    files: Mapping[str, str]
    verdict: Verdict | None  # None: it passed
    reason: str
    score: float | None = None
    at_s: float = 0.0  # the trial's clock when it was there


@dataclass
class Account:
    """What a trial has used so far, on its own clock: latencies of answers and our own work."""

    tokens_in: int = 0
    tokens_out: int = 0
    estimated: bool = False
    usd: float | None = 0.0
    wall_s: float = 0.0
    latency_unknown: int = 0
    prompts: dict[str, str] = field(default_factory=dict)


class Trial:
    """One commission on its way. `step` is what it wants now; None once the method has no more to say."""

    def __init__(
        self,
        commission: Commission,
        book: Storybook,
        sampling: Sampling,
        caps: Caps,
        prices: Prices,
    ) -> None:
        self.commission, self._book, self._sampling = commission, book, sampling
        self.budget = Budget(caps, prices)
        self.account = Account()
        self.last: Kernel | None = None
        self.best: Kernel | None = None
        self.first_correct_s: float | None = None
        self.said = ""  # the last thing said against it
        self._number = 0
        self._story = commission.method.tell(commission.brief)
        self.step: Step | None = next(self._story, None)
        for record in book.steps.get(commission.id, []):
            self._retell(record)

    @property
    def id(self) -> str:
        return self.commission.id

    @property
    def number(self) -> int:
        """How many steps it has behind it."""
        return self._number

    @property
    def standing(self) -> Kernel | None:
        """The last kernel, if it passed: the one to be timed."""
        return self.last if self.last is not None and self.last.verdict is None else None

    def request(self) -> Request:
        """The question that it asks now."""
        assert isinstance(self.step, Ask)
        model = self.commission.model_for(self.step.role)
        sample = self.commission.assignment.sample
        return Request(model.model, self.step.messages, self._sampling, sample)

    def check_budget(self) -> None:
        """Raises BudgetReached where the trial may not do the step that it wants."""
        if isinstance(self.step, Ask):
            self.budget.check(self.request())
        elif isinstance(self.step, Try | Compile):
            self.budget.check_verification()

    # --- going on ---

    def answered(self, exchange: Exchange) -> None:
        """Its question has an answer, which is recorded already."""
        assert isinstance(self.step, Ask)
        self._record(
            what="ask",
            stage=self.step.stage,
            turn=self.budget.turns + 1,
            exchange=exchange.id,
            prompts=dict(self.step.prompts),
        )
        self._hear(exchange, self.step)

    def done(self, done: Done, wall_s: float) -> None:
        """A step that is no question was carried out."""
        step = self.step
        assert step is not None and not isinstance(step, Ask)
        record = self._record(
            what=_WHAT[type(step)],
            stage=step.stage,
            turn=self.budget.turns,
            passed=done.reply.passed,
            verdict=done.reply.verdict,
            told=done.reply.told,
            program=done.program,
            candidate=done.manifest.sha256 if done.manifest else "",
            files=done.manifest.hashes if done.manifest else {},
            refused=done.refused,
            verification=done.verification,
            score=done.reply.score,
            best=dict(done.best),
            wall_s=round(wall_s, 3),
        )
        self._take(record)

    def failed_to_ask(self, reason: str) -> None:
        """Its question has no answer; kept for the reader."""
        assert isinstance(self.step, Ask)
        self._record(what="failed_ask", stage=self.step.stage, turn=self.budget.turns + 1, told=reason)

    def end(self, verdict: Verdict | None = None, reason: str = "") -> Ending:
        """Close it: a right kernel is handed on, whatever stopped the rest; else the verdict says why not.

        Without a `verdict` of the caller's the last kernel's counts, or `no_code` where there is none.
        """
        self._story.close()
        account = self.account
        kernel = self.best or self.last
        if self.best is not None:
            verdict, reason = None, reason
        elif verdict is None:
            verdict = self.last.verdict if self.last else Verdict.NO_CODE
            cause = self.last.reason if self.last else (self.said or "no answer held a kernel")
            reason = "; ".join(filter(None, (cause, reason)))
        ending = Ending(
            trial=self.id,
            assignment=self.commission.assignment,
            verdict=verdict,
            reason=reason,
            candidate=kernel.candidate if kernel else "",
            files=dict(kernel.files) if kernel else {},
            turns=self.budget.turns,
            verifications=self.budget.verifications,
            tokens_in=account.tokens_in,
            tokens_out=account.tokens_out,
            tokens_estimated=account.estimated,
            usd=account.usd,
            wall_s=round(account.wall_s, 3),
            latency_unknown=account.latency_unknown,
            first_correct_s=self.first_correct_s,
            best_s=round(self.best.at_s, 3) if self.best else None,
            prompts=account.prompts,
            recorded_at=now(),
        )
        self._book.add(ending)
        return ending

    # --- the record ---

    def _record(self, **fields: object) -> StepRecord:
        record = StepRecord(trial=self.id, number=self._number, recorded_at=now(), **fields)
        self._book.add(record)
        self._number += 1
        return record

    def _retell(self, record: StepRecord) -> None:
        """Go over a step that an earlier invocation recorded."""
        if record.what == "failed_ask":
            self._number = record.number + 1
            return
        if isinstance(self.step, Ask):
            asked = self.request().key
            if record.what != "ask" or record.exchange != asked:
                self._changed(record)
            exchange = self._book.exchanges.get(record.exchange)
            if exchange is None:
                raise StoreError(
                    f"transcripts.jsonl lacks the answer {record.exchange[:12]} that a step of trial "
                    f"{self.id[:12]} names; restore that line, or start a new run"
                )
            self._number = record.number + 1
            self._hear(exchange, self.step)
            return
        if self.step is None or record.what != _WHAT[type(self.step)]:
            self._changed(record)
        self._number = record.number + 1
        self._take(record)

    def _changed(self, record: StepRecord) -> None:
        raise StoreError(
            f"trial {self.id[:12]} ({self.commission.brief.name}, {self.commission.assignment.task}) cannot "
            f"go on: step {record.number} ({record.stage}) was recorded with other prompts, tasks or rules. "
            "Resume with the attnbench that began the run, or start a new run with another --out"
        )

    def _hear(self, exchange: Exchange, step: Ask) -> None:
        account = self.account
        cost = self.budget.add(exchange)
        account.tokens_in += cost.tokens_in
        account.tokens_out += cost.tokens_out
        account.estimated |= cost.estimated
        account.usd = None if cost.usd is None or account.usd is None else account.usd + cost.usd
        account.latency_unknown += exchange.latency_s is None
        account.wall_s += exchange.latency_s or 0.0
        account.prompts.update(step.prompts)
        self._send(Answer(exchange.text, Stop(exchange.stop)))

    def _take(self, record: StepRecord) -> None:
        """What a step that is no question means for the trial."""
        account, step = self.account, self.step
        account.wall_s += record.wall_s
        if isinstance(step, Try | Compile):
            if not record.refused:
                self.budget.verify()
            kernel = Kernel(record.candidate, record.files, record.verdict, record.told, at_s=account.wall_s)
            self.last = kernel
            if record.passed:
                self.first_correct_s = self.first_correct_s or round(account.wall_s, 3)
                self.last.verdict = None
                if self.best is None or self.best.score is None:
                    self.best = kernel
        if isinstance(step, Time) and record.passed and record.score is not None:
            timed = Kernel(record.candidate, record.files, None, "", score=record.score, at_s=account.wall_s)
            if self.best is None or self.best.score is None or record.score > self.best.score:
                self.best = timed
        if isinstance(step, Examine) and not record.passed:
            self.said = f"the last program: {record.told.splitlines()[0] if record.told else 'wrong'}"
        self._send(Reply(bool(record.passed), record.told, record.verdict, record.score))

    def _send(self, reply: Answer | Reply) -> None:
        try:
            self.step = self._story.send(reply)
        except StopIteration:
            self.step = None


_WHAT = {Examine: "examine", Compile: "compile", Try: "try", Time: "time"}


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
