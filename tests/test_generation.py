"""Claims about making kernels: every trial ends with the right verdict, nothing is asked twice or lost."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.assignments import Commission, commissions
from harness.experiment import Experiment, experiment_of
from harness.generate.method import Compile, Examine, Reply, Step, Time, Try
from harness.generation import Generation, Made
from harness.journal import StoreError
from harness.llm.client import Completion, Deferred, ErrorKind, ProviderError, Request, Stop
from harness.llm.prices import Prices
from harness.store import Store
from harness.story import Ending
from harness.storybook import Storybook
from harness.verdicts import Verdict
from harness.workshop import Done, Workshop
from tasks import discover
from tests.generate.told import KERNEL, PROGRAM

KNOWN = discover()


class Quiet:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def begun(self, trials: int, ended: int) -> None:
        self.trials, self.already = trials, ended

    def stepped(self, commission: Commission, what: str, told: str) -> None:
        self.steps.append(what)

    def ended(self, commission: Commission, ending: Ending) -> None:
        self.steps.append("end")


@dataclass
class Fake:
    """A model of tests: answers by a function of the request and its number; counts what it was asked."""

    answer: Callable[[Request, int], Completion]
    provider: str = "fake"
    asked: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def complete(self, request: Request) -> Completion:
        with self.lock:
            self.asked.append(request.key)
            number = len(self.asked)
        return self.answer(request, number)


def good(request: Request, _: int = 0) -> Completion:
    wants_kernel = "```python" in request.messages[-1].content
    return Completion(KERNEL if wants_kernel else PROGRAM, tokens_in=100, tokens_out=50, latency_s=2.0)


class Bench(Workshop):
    """A workshop without a machine: verdicts of kernels come from a function."""

    def __init__(self, store: Store, judge: Callable[[Step, Commission], Reply], device: bool = True) -> None:
        super().__init__(store, None)
        self.judge, self.device = judge, device

    def can(self, step: Step) -> bool:
        return self.device or isinstance(step, Examine)

    def do(self, step, commission, number, standing) -> Done:  # type: ignore[no-untyped-def]
        reply = self.judge(step, commission)
        manifest = None
        if isinstance(step, Try):
            manifest = self.keep(commission, step.files)
        elif isinstance(step, Compile):
            manifest = self.keep(commission, {"attention.py": step.program})
        elif isinstance(step, Time):
            manifest = standing
        return Done(reply, getattr(step, "program", ""), manifest)


def content(step: Step, _: Commission) -> Reply:
    return Reply(True, score=1.0 if isinstance(step, Time) else None)


def experiment(**changes: object) -> Experiment:
    given = {
        "target": "h100",
        "tasks": ["mha_causal", "gqa_causal"],
        "methods": ["vanilla", "tl", "tl-compiled"],
        "models": ["deferred:m"],
        "samples": 2,
        **changes,
    }
    return experiment_of(given, "test")


def run(
    path: Path,
    client: object,
    judge: Callable[[Step, Commission], Reply] = content,
    *,
    resume: bool = False,
    device: bool = True,
    prices: Path | None = None,
    given: Experiment | None = None,
) -> tuple[Made, Storybook]:
    e = given or experiment()
    wanted = commissions(e, KNOWN)
    clients = {str(m): client for c in wanted.trials for m in c.models}
    with Store(path, resume=resume) as store:
        store.add_experiment("x = 1\n")
        book = Storybook(path)
        try:
            workshop = Bench(store, judge, device)
            made = Generation(e, book, workshop, clients, Prices.read(prices), Quiet()).run(wanted.trials)  # type: ignore[arg-type]
        finally:
            book.close()
    return made, book


def test_every_trial_ends_with_a_kernel_where_all_goes_well(tmp_path: Path) -> None:
    made, _ = run(tmp_path / "run", Fake(good))
    assert made.complete and len(made.endings) == 2 * 3 * 2
    assert all(e.verdict is None and e.candidate for e in made.endings.values())
    for e in made.endings.values():
        assert (tmp_path / "run" / "artifacts" / e.candidate / "attention.py").exists()
        assert e.first_correct_s is not None and e.first_correct_s >= 2.0 * e.turns


def test_methods_that_share_a_question_share_its_answer(tmp_path: Path) -> None:
    client = Fake(good)
    made, _ = run(tmp_path / "run", client)
    assert len(client.asked) == len(set(client.asked))
    # vanilla 1; tl and tl-compiled share sketch and program; tl translates: 1 + 2 + 1 for a task and a sample
    assert len(client.asked) == 2 * 2 * (1 + 2 + 1)
    tokens = {e.assignment.method: e.tokens_in for e in made.endings.values()}
    assert tokens == {"vanilla": 100, "tl": 300, "tl-compiled": 200}


def test_samples_are_asked_apart(tmp_path: Path) -> None:
    client = Fake(good)
    given = experiment(methods=["vanilla"], tasks=["mha_causal"], samples=5)
    run(tmp_path / "run", client, given=given)
    assert len(set(client.asked)) == 5


def test_a_provider_that_dies_ends_its_trial_as_infra_and_the_run_goes_on(tmp_path: Path) -> None:
    def answer(request: Request, number: int) -> Completion:
        if "grouped" in request.messages[0].content:
            raise ProviderError(ErrorKind.SERVER, "500 again and again")
        return good(request)

    made, book = run(tmp_path / "run", Fake(answer))
    by_task = {}
    for e in made.endings.values():
        by_task.setdefault(e.assignment.task, set()).add(e.verdict)
    assert by_task == {"mha_causal": {None}, "gqa_causal": {Verdict.INFRA}}
    failed = [s for steps in book.steps.values() for s in steps if s.what == "failed_ask"]
    assert failed and all("500" in s.told for s in failed)


@pytest.mark.parametrize(
    "answer",
    [Completion(""), Completion("I will not.", Stop.REFUSAL), Completion("```python\ndef att", Stop.LENGTH)],
)
def test_answers_without_code_end_as_no_code_when_the_turns_are_used_up(
    tmp_path: Path, answer: Completion
) -> None:
    client = Fake(lambda request, n: answer)
    made, _ = run(
        tmp_path / "run", client, given=experiment(methods=["vanilla"], tasks=["mha_causal"], samples=1)
    )
    (ending,) = made.endings.values()
    assert ending.verdict is Verdict.NO_CODE
    assert ending.turns == 6 and "6 turns" in ending.reason
    assert len(client.asked) == 6


def test_wrong_kernels_end_with_the_last_verdict_when_the_verifications_are_used_up(tmp_path: Path) -> None:
    def judge(step: Step, _: Commission) -> Reply:
        if isinstance(step, Try | Compile):
            return Reply(False, "does not import", Verdict.BUILD_ERROR)
        return Reply(True)

    made, _ = run(tmp_path / "run", Fake(good), judge)
    for e in made.endings.values():
        assert e.verdict is Verdict.BUILD_ERROR
        assert "does not import" in e.reason and "3 verifications" in e.reason
        assert e.verifications == 3 and e.candidate
        assert e.first_correct_s is None


def test_a_token_budget_stops_before_the_question_that_could_exceed_it(tmp_path: Path) -> None:
    given = experiment(
        methods=["vanilla"],
        tasks=["mha_causal"],
        samples=1,
        budget={"tokens": 20_000},
        asking={"max_tokens": 18_000},
    )
    client = Fake(lambda request, n: Completion("", tokens_in=100, tokens_out=1500))
    made, _ = run(tmp_path / "run", client, given=given)
    (ending,) = made.endings.values()
    assert ending.verdict is Verdict.NO_CODE and "20,000 tokens" in ending.reason
    assert len(client.asked) == 1  # a second one could take 18,000 and more


def test_the_runs_budget_ends_what_is_left_as_infra(tmp_path: Path) -> None:
    given = experiment(
        methods=["vanilla"],
        tasks=["mha_causal"],
        samples=8,
        run_budget={"tokens": 60_000},
        asking={"max_tokens": 10_000, "concurrency": 1},
    )
    client = Fake(lambda request, n: Completion(KERNEL, tokens_in=1000, tokens_out=9000))
    made, _ = run(tmp_path / "run", client, given=given)
    verdicts = [e.verdict for e in made.endings.values()]
    assert Verdict.INFRA in verdicts and None in verdicts
    assert 10_000 * len(client.asked) <= 60_000
    assert all("60,000 tokens" in e.reason for e in made.endings.values() if e.verdict is Verdict.INFRA)


def test_deferred_questions_are_collected_once_each_and_nothing_ends(tmp_path: Path) -> None:
    def later(request: Request, number: int) -> Completion:
        raise Deferred

    made, _ = run(tmp_path / "run", Fake(later, provider="deferred"))
    keys = [r.key for r in made.pending]
    assert len(keys) == len(set(keys)) == 2 * 2 * 2  # vanilla's, and the sketch that two methods share
    assert not made.endings and not made.complete


def test_without_a_device_trials_go_as_far_as_they_can(tmp_path: Path) -> None:
    made, _ = run(tmp_path / "run", Fake(good), device=False)
    assert len(made.waiting) == 12 and not made.pending and not made.endings
    client = Fake(good)
    made, _ = run(tmp_path / "run", client, resume=True)
    assert made.complete and not client.asked


class Killed(BaseException):
    """As if by kill -9: nothing below gets to react."""


@pytest.mark.parametrize("after", range(1, 30, 3))
def test_killed_anywhere_and_resumed_asks_nothing_twice_and_loses_nothing(tmp_path: Path, after: int) -> None:
    asked: list[str] = []
    budget = [after]

    def dying(step: Step, commission: Commission) -> Reply:
        budget[0] -= 1
        if budget[0] == 0:
            raise Killed
        return content(step, commission)

    client = Fake(good, asked=asked)
    with pytest.raises(Killed):
        run(tmp_path / "run", client, dying)
    made, _ = run(tmp_path / "run", client, resume=True)
    whole, _ = run(tmp_path / "whole", Fake(good))
    assert len(asked) == len(set(asked))
    assert made.endings.keys() == whole.endings.keys()
    assert {k: e.candidate for k, e in made.endings.items()} == {
        k: e.candidate for k, e in whole.endings.items()
    }
    numbers = [(s.trial, s.number) for line in steps_of(tmp_path / "run") for s in [line]]
    assert len(numbers) == len(set(numbers))


def steps_of(path: Path):  # type: ignore[no-untyped-def]
    from harness.story import Step as Line
    from harness.story import read_line

    lines = [read_line(text) for text in (path / "trials.jsonl").read_text().splitlines()]
    return [line for line in lines if isinstance(line, Line)]


@pytest.mark.parametrize("cut", [1, 30, 300])
@pytest.mark.parametrize("file", ["trials.jsonl", "transcripts.jsonl"])
def test_a_torn_line_of_a_story_is_told_again(tmp_path: Path, file: str, cut: int) -> None:
    path = tmp_path / "run"
    run(path, Fake(good))
    whole = (path / file).read_bytes()
    (path / file).write_bytes(whole[:-cut])
    client = Fake(good)
    if file == "transcripts.jsonl":  # its answer is gone with it, though a step names it
        drop_endings(path)
        with pytest.raises(StoreError, match="lacks the answer"):
            run(path, client, resume=True)
        return
    made, _ = run(path, client, resume=True)
    assert made.complete and len(made.endings) == 12
    assert (path / "torn.txt").exists() and not client.asked


def drop_endings(path: Path) -> None:
    lines = (path / "trials.jsonl").read_text().splitlines(keepends=True)
    (path / "trials.jsonl").write_text("".join(x for x in lines if json.loads(x)["kind"] != "ending"))


def test_a_run_begun_with_other_prompts_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    run(path, Fake(good))
    drop_endings(path)
    other = experiment(asking={"max_tokens": 999})
    with pytest.raises(StoreError, match="other prompts"):
        run(path, Fake(good), resume=True, given=other)


def test_the_fastest_right_kernel_of_a_refinement_is_handed_on(tmp_path: Path) -> None:
    scores = iter([10.0, 30.0, 20.0])

    def judge(step: Step, _: Commission) -> Reply:
        return Reply(True, score=next(scores)) if isinstance(step, Time) else Reply(True)

    def versions(request: Request, number: int) -> Completion:
        return Completion(KERNEL.replace("pass", f"version = {number}"), latency_s=1.0)

    given = experiment(methods=["vanilla"], tasks=["mha_causal"], samples=1, refine={"rounds": 2})
    made, _ = run(tmp_path / "run", Fake(versions), judge, given=given)
    (ending,) = made.endings.values()
    source = (tmp_path / "run" / "artifacts" / ending.candidate / "attention.py").read_text()
    assert "version = 2" in source
    assert ending.turns == 3 and ending.best_s is not None and ending.best_s > (ending.first_correct_s or 0)


def test_a_refinement_that_goes_wrong_keeps_the_right_kernel(tmp_path: Path) -> None:
    tries = iter([True, False])

    def judge(step: Step, _: Commission) -> Reply:
        if isinstance(step, Time):
            return Reply(True, score=1.0)
        ok = next(tries)
        return Reply(ok, "" if ok else "wrong now", None if ok else Verdict.CRASH)

    def versions(request: Request, number: int) -> Completion:
        return Completion(KERNEL.replace("pass", f"version = {number}"))

    given = experiment(methods=["vanilla"], tasks=["mha_causal"], samples=1, refine={"rounds": 2})
    made, _ = run(tmp_path / "run", Fake(versions), judge, given=given)
    (ending,) = made.endings.values()
    assert ending.verdict is None
    assert "version = 1" in (tmp_path / "run" / "artifacts" / ending.candidate / "attention.py").read_text()
    assert ending.latency_unknown == 2


def test_what_is_not_known_is_not_invented(tmp_path: Path) -> None:
    given = experiment(methods=["vanilla"], tasks=["mha_causal"], samples=1)
    made, book = run(tmp_path / "run", Fake(lambda r, n: Completion(KERNEL)), given=given)
    (ending,) = made.endings.values()
    (exchange,) = book.exchanges.values()
    assert exchange.tokens_in is None and exchange.latency_s is None and exchange.usd is None
    assert ending.tokens_estimated and ending.usd is None and ending.latency_unknown == 1
