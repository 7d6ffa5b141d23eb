"""Claims about the commands with models, from outside: a provider on loopback, real processes, kill -9."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import GOOD, TINY_TASK
from tests.llm.server import OpenAIWords, Reply, Server

ROOT = Path(__file__).parents[1]
KEY = "sk-a-key-that-nobody-may-see-0123456789"
EXPERIMENT = """
target = "cpu"
tasks = ["tiny"]
workloads = "smoke"
baselines = ["naive"]
methods = ["vanilla", "vanilla-cot"]
backends = ["torch"]
models = ["{model}"]
samples = {samples}
[providers.local]
kind = "openai"
base_url = "{url}/v1"
key_env = "LOCAL_KEY"
[asking]
concurrency = 2
[limits]
first_call_s = 20
call_s = 5
[sampling]
half_width = 0.5
time_cap_s = 0.3
block_ms = 10
min_rounds = 4
max_rounds = 8
"""
RIGHT = f"Here it is.\n\n```python\n{GOOD}```\n"
WORDS = OpenAIWords()


@pytest.fixture
def ground(tmp_path: Path) -> Path:
    tasks = tmp_path / "my_tasks"
    tasks.mkdir()
    (tasks / "tiny.py").write_text(TINY_TASK.replace("shape(64), shape(96), shape(128)", "shape(64),"))
    return tmp_path


def experiment(
    ground: Path, url: str = "http://127.0.0.1:9", model: str = "local:m", samples: int = 2
) -> Path:
    file = ground / "tiny.toml"
    file.write_text(EXPERIMENT.format(url=url, model=model, samples=samples))
    return file


def command(ground: Path, *words: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(ground), "LOCAL_KEY": KEY}
    return subprocess.Popen(
        [sys.executable, "-m", "harness.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        cwd=ground,
    )


def run(ground: Path, *words: str) -> tuple[int, str]:
    process = command(ground, *words)
    out, err = process.communicate(timeout=200)
    return process.returncode, out + err


def asking(ground: Path, what: str, file: Path, *more: str) -> tuple[str, ...]:
    return (what, str(file), "--tasks", str(ground / "my_tasks"), "--out", str(ground / "run"), *more)


def lines(ground: Path, name: str) -> list[dict[str, object]]:
    file = ground / "run" / name
    whole = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in whole if line.endswith(b"\n")]


def replies(wait_s: float = 0.0) -> Callable[[object, int], Reply]:
    return lambda asked, number: WORDS.stream([RIGHT], wait_s=wait_s)


def everything(folder: Path) -> bytes:
    return b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())


@pytest.mark.slow
def test_a_run_killed_at_random_asks_nothing_that_was_answered_and_loses_nothing(ground: Path) -> None:
    rng, samples, concurrency = random.Random(4), 5, 2
    with Server(replies(0.3)).running() as server:
        file = experiment(ground, server.url, samples=samples)
        kept: list[str] = []
        for _ in range(2):
            begun = len(server.asked)
            process = command(ground, *asking(ground, "generate", file, *resume(ground)))
            deadline = time.monotonic() + 60
            while len(server.asked) == begun and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 0.8))
            process.send_signal(signal.SIGKILL)
            process.wait()
            now = [str(line["id"]) for line in lines(ground, "transcripts.jsonl")]
            assert now[: len(kept)] == kept  # nothing is lost
            kept = now
        before = len(server.asked)
        code, said = run(ground, *asking(ground, "generate", file, *resume(ground)))
        assert code == 0, said
        questions = 2 * samples
        assert len(server.asked) - before == questions - len(kept)
        assert before <= len(kept) + 2 * concurrency  # only what was on its way is asked again
        final = [str(line["id"]) for line in lines(ground, "transcripts.jsonl")]
        assert len(final) == len(set(final)) == questions
    assert f"{questions} trials wait for a device" in said
    assert KEY.encode() not in everything(ground / "run")


def resume(ground: Path) -> list[str]:
    return ["--resume"] if (ground / "run" / "experiment.toml").exists() else []


@pytest.mark.slow
def test_good_bad_and_absent_answers_each_end_with_their_verdict_and_the_run_goes_on(ground: Path) -> None:
    wrong = RIGHT.replace("tril(", "tril(1 + ")
    lock, first = threading.Lock(), {}

    def script(asked, number):  # type: ignore[no-untyped-def]
        talk = asked.body["messages"]
        step_by_step = "step by step" in talk[0]["content"]
        with lock:
            sample = first.setdefault(step_by_step, {}).setdefault(len(talk), 0)
            first[step_by_step][len(talk)] += 1
        if step_by_step and len(talk) == 1 and sample == 0:
            return Reply(
                status=400,
                chunks=(b'{"error": {"message": "no such model", "key": "' + KEY.encode() + b'"}}',),
            )
        if step_by_step:
            return WORDS.stream(["I would rather not."])
        return WORDS.stream([wrong if len(talk) == 1 and sample == 0 else RIGHT])

    with Server(script).running() as server:
        file = experiment(ground, server.url)
        code, said = run(ground, *asking(ground, "eval", file))
    assert code == 0, said
    endings = {
        (line["assignment"]["method"], line["assignment"]["sample"]): line  # type: ignore[index]
        for line in lines(ground, "trials.jsonl")
        if line["kind"] == "ending"
    }
    assert len(endings) == 4
    assert sorted(str(e["verdict"]) for e in endings.values()) == ["None", "None", "infra", "no_code"]
    assert (
        max(int(str(e["turns"])) for (m, _), e in endings.items() if m == "vanilla") == 2
    )  # one was repaired
    results = [r for r in lines(ground, "results.jsonl") if r["candidate"]["trial"]]  # type: ignore[index]
    assert sorted(str(r["verdict"]) for r in results) == ["infra", "no_code", "ok", "ok"]
    assert "no such model" in said and KEY not in said
    assert KEY.encode() not in everything(ground / "run")
    code, said = run(ground, "show", "--run", str(ground / "run"))
    assert code == 0 and "vanilla-m-0" in said and "no_code" in said
    code, said = run(ground, "show", "tiny/vanilla-m-0", "--run", str(ground / "run"))
    assert code == 0 and "def attention" in said and "turn 1" in said


def test_answers_from_outside_go_round(ground: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from harness.answer_commands import export_answers, import_answers
    from harness.commands import guarded

    path, asked = ground / "run", ground / "questions"

    def take(source: Path, version: str = "") -> tuple[int, str]:
        code = 0
        try:
            guarded(lambda: import_answers(source, path, version, "deferred"))
        except SystemExit as ended:
            code = int(str(ended.code))
        return code, "".join(capsys.readouterr())

    file = experiment(ground, model="deferred:m", samples=1)
    code, said = run(ground, *asking(ground, "generate", file))
    assert code == 75 and "2 questions wait" in said, said
    export_answers(path, asked)
    questions = sorted(asked.glob("*.md"))
    assert len(questions) == 2 and all("Tiny causal" in q.read_text() for q in questions)
    questions[0].with_suffix(".answer.md").write_text(RIGHT)
    assert "1 answers taken, 1 questions still wait" in take(asked, "unrecorded")[1]
    assert "1 were there already" in take(asked)[1]
    (ground / "broken.jsonl").write_text('{"custom_id": "x"}\n')
    code, said = take(ground / "broken.jsonl")
    assert code == 2 and "broken.jsonl:1" in said
    (ground / "strange.jsonl").write_text(json.dumps({"custom_id": "f" * 64, "text": "x"}) + "\n")
    code, said = take(ground / "strange.jsonl")
    assert code == 2 and "belong to no question" in said
    questions[1].with_suffix(".answer.md").write_text(RIGHT)
    assert "0 questions still wait" in take(asked)[1]
    code, said = run(ground, *asking(ground, "generate", file, "--resume"))
    assert code == 0 and "2 trials wait for a device" in said, said
    exchanges = lines(ground, "transcripts.jsonl")
    assert [e["version"] for e in exchanges] == ["unrecorded", ""]
    assert {e["provider"] for e in exchanges} == {"deferred"}
    assert not (path / "pending.jsonl").exists()


def test_wrong_words_get_a_sentence_and_the_way_out(ground: Path) -> None:
    from harness.assignments import commissions
    from harness.experiment import ExperimentError, read_experiment
    from harness.generation_commands import MODEL_ERRORS, prepare
    from tasks import discover

    known = discover(ground / "my_tasks")
    for model, says in (
        ("claude", "write provider:model"),
        ("opnai:x", "did you mean openai"),
        ("a:b -> c:d -> e:f", "names 3 models"),
        ("replay:m", "transcripts"),
    ):
        with pytest.raises((ExperimentError, *MODEL_ERRORS), match=says):
            prepare(read_experiment(str(experiment(ground, model=model))), known, "x")
    for model in ("local:m", "deferred:m"):  # a deferred answer is paid for as well
        priced = read_experiment(str(experiment(ground, model=model)), {"budget": {"usd": 1.0}})
        with pytest.raises(MODEL_ERRORS, match="price"):
            prepare(priced, known, "x")
    seen = {"providers": {"local": {"kind": "openai", "key_env": "PYTHONPATH"}}}
    with pytest.raises(MODEL_ERRORS, match="a kernel's process sees PYTHONPATH"):
        prepare(read_experiment(str(experiment(ground)), seen), known, "x")
    assert commissions(priced, known).trials
    code, said = run(ground, *asking(ground, "generate", experiment(ground, model="opnai:x")))
    assert code == 2 and "did you mean openai" in said
    assert not (ground / "run").exists()  # a mistake leaves nothing behind


def test_what_nobody_recorded_is_not_run_and_says_how_it_would_be(ground: Path) -> None:
    from harness.experiment import read_experiment
    from harness.generation import exchange_of
    from harness.generation_commands import prepare
    from harness.llm.client import Completion
    from harness.llm.deferred import read_pending
    from harness.llm.prices import Prices
    from tasks import discover

    code, said = run(ground, *asking(ground, "generate", experiment(ground, model="deferred:m")))
    assert code == 75, said
    first, *_ = read_pending(ground / "run" / "pending.jsonl").values()
    told = exchange_of(first, "deferred", Completion(RIGHT), Prices.read(None))
    (ground / "transcripts.jsonl").write_text(told.model_dump_json() + "\n")
    replay = read_experiment(str(experiment(ground, model="replay:m")), {"transcripts": [str(ground)]})
    prepared = prepare(replay, discover(ground / "my_tasks"), "x")
    assert len(prepared.wanted.trials) == 1
    (line,) = prepared.wanted.not_run
    assert "3 trials" in line and "export ANTHROPIC_API_KEY" in line and "--model" in line


def test_a_partial_run_measures_what_has_ended_and_only_that(
    ground: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from harness.experiment import Plan, read_experiment
    from harness.generation_commands import Prepared, Unfinished, make_kernels, prepare
    from harness.llm.client import Completion, Deferred
    from harness.store import Store
    from tasks import discover

    class HalfThere:
        provider = "half"

        def complete(self, request):  # type: ignore[no-untyped-def]
            if "step by step" in request.messages[0].content:
                raise Deferred
            return Completion("no kernel here")

    e = read_experiment(str(experiment(ground, model="deferred:m", samples=1)))
    known = discover(ground / "my_tasks")
    p = prepare(e, known, "x")
    p = Prepared(p.wanted, {"deferred:m": HalfThere()}, p.prices, p.source)
    plan = Plan((), ("naive",), ())
    with Store(ground / "run", resume=False) as store:
        with pytest.raises(Unfinished):
            make_kernels(e, plan, known, p, store, None, Console())
        whole = make_kernels(e, plan, known, p, store, None, Console(), partial=True)
    assert [x.ending.assignment.method for x in whole.ended] == ["vanilla"]
    assert "1 of 2 trials have not ended" in capsys.readouterr().out
    assert len(lines(ground, "pending.jsonl")) == 1


def test_a_missing_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.llm.client import Message, ProviderError, Request
    from harness.llm.providers import Asking, ProviderSettings, make_client, parse_model

    monkeypatch.delenv("LOCAL_KEY", raising=False)
    settings = {"far": ProviderSettings(kind="openai", base_url="https://192.0.2.1/v1", key_env="LOCAL_KEY")}
    client = make_client(parse_model("far:m"), Asking(), settings, [])
    with pytest.raises(ProviderError, match="LOCAL_KEY"):
        client.complete(Request("m", (Message("user", "x"),)))
