"""kill -9, power cuts, rubbish, two writers: what was acknowledged is there, nothing stands there twice.

The real pipeline under real kills is in test_resume.py; here a process that only records is killed, so that
often is affordable, and a file is cut or spoiled at any byte.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.audit_results import check_results
from harness.audit_stories import check_stories
from harness.journal import Journal, StoreError
from harness.records import Identity, Result, WorkloadRecord
from harness.runs import Environment, RunSummary
from harness.seals import read_result
from harness.store import Store
from harness.story import Exchange, Said, Step
from harness.storybook import Storybook

ROOT = Path(__file__).parents[1]
PLANNED = 24
KILLS = 50
ENVIRONMENT = Environment(
    device="a CPU", target="cpu", harness="0.1.0", python="3.12", platform="Linux", sources="a"
)
COMPONENTS = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


# --- a run that only records ---


def planned() -> list[Result]:
    """The plan: what a run ends with, however it gets there."""
    sizes = dict.fromkeys(("batch", "heads", "kv_heads", "seq_q", "seq_k", "dim", "dim_v"), 8)
    found = []
    for n in range(PLANNED):
        key = f"w{n}"
        identity = Identity(task="0" * 64, workload=key, candidate="1" * 64, target="cpu", harness="0.1.0")
        fields = {
            "id": identity.digest,
            "identity": identity,
            "task": "mha",
            "target": "cpu",
            "device": "a CPU",
            "environment": ENVIRONMENT.digest,
            "workload": WorkloadRecord(key=key, dtype="fp32", scale=1.0, flops=1, bytes=1, **sizes),
            "candidate": {
                "sha256": "1" * 64, "name": "k", "kind": "candidate", "method": "folder", "backend": "torch",
            },
            "verdict": "crash",
            "reason": "it fell over, \u00fcber die eigenen F\u00fc\u00dfe: " + "x" * (7 * n * n),
            "recorded_at": "2026-01-01T00:00:00+00:00",
        }  # fmt: skip
        found.append(Result.model_validate(fields))
    return found


def steps() -> list[Step]:
    at = {"recorded_at": "2026-01-01T00:00:00+00:00", "stage": "kernel", "trial": "3" * 64}
    return [Step(number=n, what="ask", turn=n, exchange=exchange(n).id, **at) for n in range(PLANNED)]


def exchange(n: int) -> Exchange:
    from harness.audit_stories import request_of

    draft = Exchange(
        id="0" * 64, provider="test", model="m", sample=n, messages=(Said(role="user", content="Schreibe\u2026"),),
        sampling={"max_tokens": 9}, text="\u4f60\u597d " * n, recorded_at="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    return draft.model_copy(update={"id": request_of(draft).key})


def record(run: Path, say: Callable[[str], None] = lambda _: None) -> None:
    """An invocation: goes through the plan, does what is not recorded yet, says what is safe."""
    resume = (run / "results.jsonl").exists()
    with Store(run, resume=resume) as store:
        store.add_environment(ENVIRONMENT)
        book = Storybook(run)
        say("begun")
        for result, step in zip(planned(), steps(), strict=True):
            if step.exchange not in book.exchanges:
                book.add_exchange(exchange(step.number))
                say(step.exchange)
            if len(book.steps.get(step.trial, ())) <= step.number:
                book.add(step)
                say(f"step {step.number}")
            if result.id not in store:
                store.add(result)
                say(result.id)
        book.close()
        store.add_summary(RunSummary(started_at="", wall_s=0, stages_s={}, gpu_work_s=0, results=1))


class Writer:
    """A process of its own that records and says what is safe; forked, since a start costs more than a run."""

    def __init__(self, run: Path) -> None:
        out, into = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            ended = 1
            try:
                record(run, lambda text: void(os.write(into, f"{text}\n".encode())))
                ended = 0
            finally:
                os._exit(ended)  # nothing of the tests may go on here
        os.close(into)
        self.told = os.fdopen(out)

    def kill(self) -> tuple[list[str], bool]:
        """What it had said by then that was not read yet, and whether the kill was in time."""
        os.kill(self.process, signal.SIGKILL)
        rest = self.told.read().split("\n")[:-1]
        self.told.close()
        status = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        assert status in (0, -signal.SIGKILL)
        return rest, status != 0


def void(_: object) -> None:
    """What a function is worth that is called for what it does."""


def main() -> None:
    """A process that records once it is let."""

    def say(text: str) -> None:
        print(text, flush=True)
        if text == "begun":
            sys.stdin.readline()

    record(Path(sys.argv[1]), say)


def start(run: Path) -> subprocess.Popen[str]:
    """A process with an interpreter of its own."""
    pipe = subprocess.PIPE
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.test_store_kills", str(run)],
        stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=env,
    )  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def no_disk() -> Iterator[None]:
    """What a disk forgets is spelled out in the files here, so nothing needs to be forced to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@dataclass
class Held:
    """What a run's files hold."""

    results: list[str]
    steps: list[int]
    exchanges: list[str]

    @property
    def everything(self) -> set[str]:
        return {*self.results, *self.exchanges, *(f"step {n}" for n in self.steps)}


def held(run: Path) -> Held:
    """Whole lines, in order."""

    def lines(name: str) -> list[dict[str, object]]:
        file = run / name
        data = file.read_bytes() if file.exists() else b""
        return [json.loads(line) for line in data.split(b"\n")[:-1]]

    numbers = [int(str(step["number"])) for step in lines("trials.jsonl")]
    return Held(
        [str(r["id"]) for r in lines("results.jsonl")],
        numbers,
        [str(e["id"]) for e in lines("transcripts.jsonl")],
    )


class Findings(list[str]):
    """Where an audit puts what it finds."""

    results = sealed = 0

    def __init__(self) -> None:
        self.notes: list[str] = []

    def found(self, where: str, what: str) -> None:
        self.append(f"{where}: {what}")


def whole(run: Path) -> None:
    """The run holds exactly the plan, each once, in order, and its chain and its links are unbroken."""
    now = held(run)
    assert now.results == [r.id for r in planned()]
    assert now.steps == list(range(PLANNED))
    assert now.exchanges == [exchange(n).id for n in range(PLANNED)]
    findings = Findings()
    check_results(run / "results.jsonl", {ENVIRONMENT.digest: ENVIRONMENT.content}, findings)
    check_stories(run, findings)
    assert findings == [] and findings.notes == []


def test_fifty_kills_lose_nothing_that_was_acknowledged_and_repeat_nothing(tmp_path: Path) -> None:
    """One process after the other, each killed at a random point; a run that is done begins anew."""
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    print(f"seed {seed}")
    kills = within = torn = 0
    run, acknowledged = tmp_path / "0", set[str]()
    for n in range(4 * KILLS):
        writer = Writer(run)
        for _ in range(chance.randint(0, 25)):
            if line := writer.told.readline():
                acknowledged.add(line.strip())
        time.sleep(chance.choice((0, 0, chance.uniform(0, 0.002))))
        rest, in_time = writer.kill()
        acknowledged.update(rest)
        kills += in_time
        now = held(run)
        assert acknowledged - {"begun"} <= now.everything
        within += in_time and 0 < len(now.results) < PLANNED
        if kills == KILLS:
            break
        if len(now.results) == PLANNED:
            record(run)
            whole(run)
            torn += (run / "torn.txt").exists()
            run, acknowledged = tmp_path / str(n + 1), set()
    record(run)
    whole(run)
    print(f"{within} of {kills} kills in the middle, {torn} runs with a torn line")
    assert kills == KILLS and within >= KILLS / 4


# --- what a power cut leaves ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a run that went to its end, by name."""
    run = tmp_path_factory.mktemp("finished") / "run"
    record(run)
    whole(run)
    return {p.name: p.read_bytes() for p in run.iterdir() if p.is_file() and p.name != ".lock"}


JOURNALS = ("results.jsonl", "trials.jsonl", "transcripts.jsonl", "summary.jsonl")


def laid_out(folder: Path, files: dict[str, bytes]) -> Path:
    run = folder / f"{len(list(folder.iterdir()))}"
    run.mkdir()
    for name, content in files.items():
        (run / name).write_bytes(content)
    return run


@COMPONENTS
@given(cut=st.data())
def test_a_file_cut_at_any_byte_is_gone_on_with(
    tmp_path: Path, finished: dict[str, bytes], cut: st.DataObject
) -> None:
    name = cut.draw(st.sampled_from(JOURNALS))
    at = cut.draw(st.integers(0, len(finished[name])))
    run = laid_out(tmp_path, finished | {name: finished[name][:at]})
    complete = finished[name][:at].rpartition(b"\n")[0]
    record(run)
    whole(run)
    assert (run / name).read_bytes().startswith(complete)
    left = finished[name][:at][len(complete) :].lstrip(b"\n")
    assert not left or left in (run / "torn.txt").read_bytes()


NULS = st.integers(1, 5000).map(lambda n: b"\0" * n)
RUBBISH = st.one_of(
    st.binary(min_size=1, max_size=300),
    NULS,
    NULS.map(lambda nuls: nuls + b"\n"),
    st.binary(max_size=40).flatmap(lambda head: NULS.map(lambda nuls: head + nuls)),
    st.sampled_from(
        [b"\n", b"\xe4\xbd", b'{"reason": "\xc3', b'{"a": 1}', b'{"a": 1}\n', b"12", b"null\n", b"[" * 99999]
    ),
)


@COMPONENTS
@given(name=st.sampled_from(JOURNALS), lines=st.integers(0, PLANNED), rubbish=RUBBISH)
def test_rubbish_at_the_end_is_kept_aside_or_refused_and_then_nothing_is_changed(
    tmp_path: Path, finished: dict[str, bytes], name: str, lines: int, rubbish: bytes
) -> None:
    good = b"".join(line + b"\n" for line in finished[name].split(b"\n")[:-1][:lines])
    run = laid_out(tmp_path, finished | {name: good + rubbish})
    refused = ""
    try:
        record(run)
    except StoreError as error:
        refused = str(error)
    if refused:
        number = good.count(b"\n") + 1
        assert any(f"{name}:{n}: " in refused for n in range(number, number + 1 + rubbish.count(b"\n")))
        assert refused.endswith("Nothing was changed.")
        assert (run / name).read_bytes() == good + rubbish
    else:
        whole(run)
        assert rubbish in (run / "torn.txt").read_bytes()
        assert (run / name).read_bytes().startswith(good)


@pytest.mark.parametrize("name", JOURNALS[:3])
def test_a_whole_line_without_its_end_is_done_again(
    tmp_path: Path, finished: dict[str, bytes], name: str
) -> None:
    """Nobody was told that it is safe: its trial is tried again, and the line is kept aside."""
    run = laid_out(tmp_path, finished | {name: finished[name][:-1]})
    record(run)
    whole(run)
    assert finished[name].split(b"\n")[-2] in (run / "torn.txt").read_bytes()


@COMPONENTS
@given(name=st.sampled_from(JOURNALS[:3]), line=st.integers(0, PLANNED - 2), at=st.data())
def test_what_is_spoiled_in_the_middle_is_refused_and_named(
    tmp_path: Path, finished: dict[str, bytes], name: str, line: int, at: st.DataObject
) -> None:
    """A line with others behind it was safe once, so it is nobody's to cut off."""
    lines = finished[name].split(b"\n")
    where = at.draw(st.integers(0, len(lines[line]) - 1))
    lines[line] = lines[line][:where] + b"\xff" + lines[line][where + 1 :]
    spoiled = b"\n".join(lines)
    run = laid_out(tmp_path, finished | {name: spoiled})
    with pytest.raises(StoreError, match=rf"{name}:{line + 1}: .*Nothing was changed\."):
        record(run)
    assert (run / name).read_bytes() == spoiled
    assert not (run / "torn.txt").exists()


# --- two writers ---


def test_a_second_process_is_refused_at_once_and_the_first_is_not_disturbed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = start(run)
    assert first.stdout is not None and first.stdout.readline() == "begun\n"
    began = time.monotonic()
    for resume in (True, False):
        with pytest.raises(StoreError, match="is being written by another attnbench; wait for it to end"):
            Store(run, resume=resume)
    assert time.monotonic() - began < 1
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    _, error = start(run).communicate(timeout=60)
    assert f"StoreError: {run} is being written by another attnbench" in error
    assert {p.name: p.read_bytes() for p in run.iterdir()} == before
    _, error = first.communicate("go\n", timeout=60)
    assert first.returncode == 0, error
    whole(run)
    with Store(run, resume=True) as store:  # the lock went with its process
        assert len(store.results) == PLANNED


def test_who_comes_after_another_began_and_ended_does_not_write_into_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a first look at the folder and the lock there is time for a whole run."""
    run = tmp_path / "run"
    take = Store._take_lock
    began = []

    def late(self: Store) -> None:
        take(self)
        if not began:
            began.append(self)
            (run / "results.jsonl").write_bytes(b"")

    monkeypatch.setattr(Store, "_take_lock", late)
    with pytest.raises(StoreError, match="holds a run already"):
        Store(run, resume=False)


def test_a_journal_says_which_line_it_cannot_read(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_bytes(b"\0\0\n{}\n")
    with pytest.raises(StoreError, match=r"results\.jsonl:1: not JSON.*Nothing was changed"):
        Journal(file, read_result)
    assert file.read_bytes() == b"\0\0\n{}\n"


if __name__ == "__main__":
    main()
