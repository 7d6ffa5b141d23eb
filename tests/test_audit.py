"""Each thing that can be changed in a run's directory is changed, and found; an untouched run gives nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.audit import AuditError, audit
from harness.build.manifest import Manifest
from harness.llm.client import Message, Request, Sampling
from harness.records import CandidateRecord, Result, content_hash
from harness.runs import Environment, RunSummary
from harness.seals import seal_of
from harness.store import Store
from harness.story import Assignment, Ending, Exchange, Said, Step
from harness.storybook import Storybook
from harness.verdicts import Verdict
from tests.command import attnbench
from tests.reports import synthetic

PUBLISHED = Path(__file__).parents[1] / "reports" / "published"
SOURCES = {"candidate.toml": b'task = "mha"\nbackend = "triton"\n', "attention.py": b"# a kernel\n"}
SHA = Manifest("", (), "", (), Path(), {}, SOURCES).sha256
FILES = {name: hashlib.sha256(content).hexdigest() for name, content in SOURCES.items()}
TASKS = {"mha": synthetic.sha("mha")}
TEMPLATE = synthetic.sha("kernel.md.j2")
AT = "2026-11-25T12:00:00.000+00:00"
ENVIRONMENT = synthetic.environment().model_copy(update={"sources": "0123456789ab"})
REQUEST = Request("claude", (Message("user", "Write mha."),), Sampling(1000, 0.5), 0)


def exchange() -> Exchange:
    said = tuple(Said(role=m.role, content=m.content) for m in REQUEST.messages)
    return Exchange(
        id=REQUEST.key, provider="test", model="claude", sample=0, messages=said, text="```python\n```",
        sampling=REQUEST.sampling.to_json(), recorded_at=AT,
    )  # fmt: skip


def story() -> tuple[Step | Ending, ...]:
    a = Assignment(
        method="vanilla", models=("test:claude",), task="mha", target="h100", backend="triton", sample=0
    )
    ask: dict[str, Any] = {"trial": a.id, "stage": "kernel", "turn": 1, "recorded_at": AT}
    prompts = {"kernel.md.j2": TEMPLATE}
    return (
        Step(number=0, what="ask", exchange=REQUEST.key, prompts=prompts, **ask),
        Step(number=1, what="try", passed=True, candidate=SHA, files=FILES, **ask),
        Ending(
            trial=a.id, assignment=a, candidate=SHA, files=FILES, turns=1, verifications=1,
            prompts=prompts, recorded_at=AT,
        ),
    )  # fmt: skip


TRIAL = story()[0].trial
GENERATED = CandidateRecord(
    sha256=SHA, name="vanilla-claude-0", kind="candidate", method="vanilla", backend="triton",
    model="claude", trial=TRIAL, files=FILES,
)  # fmt: skip
CUDNN = synthetic.candidate("cudnn", "baseline", "cudnn 9.19").model_copy(
    update={"sha256": content_hash({"baseline": "cudnn", "library": "cudnn 9.19"})}
)


def results() -> list[Result]:
    found = []
    for w in (synthetic.workload(1024), synthetic.workload(4096)):
        for who, rate in ((CUDNN, 400.0), (GENERATED, 500.0)):
            m = synthetic.measurement(w, who.name, "h100", rate, synthetic.ratio("cudnn", rate / 400))
            found.append(synthetic.result("mha", w, who, Verdict.OK, m, env=ENVIRONMENT))
    return found


def summary(count: int) -> RunSummary:
    return RunSummary(started_at=AT, wall_s=1, stages_s={}, gpu_work_s=1, results=count)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run as an invocation leaves it: a model's kernel beside one baseline on two workloads."""
    with Store(tmp_path / "run", resume=False) as store:
        store.add_experiment('target = "h100"\n')
        store.add_environment(ENVIRONMENT)
        store.add_artifact(SHA, SOURCES)
        book = Storybook(store.path)
        book.add_exchange(exchange())
        for line in story():
            book.add(line)
        for result in results():
            store.add(result)
        book.close()
        store.add_summary(summary(4))
    return tmp_path / "run"


def found(run: Path) -> list[str]:
    return [f"{f.where}: {f.what}" for f in audit(run, TASKS).findings]


def lines(run: Path, name: str) -> list[str]:
    return (run / name).read_text().splitlines(keepends=True)


def write(run: Path, name: str, kept: list[str]) -> None:
    (run / name).write_text("".join(kept))


def replaced(name: str, old: str, new: str, number: int = 0) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        kept = lines(run, name)
        assert old in kept[number], old
        kept[number] = kept[number].replace(old, new, 1)
        write(run, name, kept)

    return change


def dropped(name: str, number: int) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        kept = lines(run, name)
        del kept[number]
        write(run, name, kept)

    return change


def resealed(number: int, **changes: object) -> Callable[[Path], None]:
    """By somebody who knows how one seal is made."""

    def change(run: Path) -> None:
        kept = lines(run, "results.jsonl")
        data = json.loads(kept[number]) | changes
        kept[number] = json.dumps(data | {"seal": seal_of(data)}) + "\n"
        write(run, "results.jsonl", kept)

    return change


def unsealed(number: int) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        kept = lines(run, "results.jsonl")
        data = json.loads(kept[number]) | {"schema_version": 1}
        del data["seal"], data["previous"]
        kept[number] = json.dumps(data) + "\n"
        write(run, "results.jsonl", kept)

    return change


def swapped(name: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        kept = lines(run, name)
        kept[1], kept[2] = kept[2], kept[1]
        write(run, name, kept)

    return change


def artifact(name: str, content: bytes | None) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        file = run / "artifacts" / SHA / name
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)

    return change


def edited_environment(run: Path) -> None:
    text = (run / "environment.json").read_text()
    (run / "environment.json").write_text(text.replace("570.86", "580.1"))


def without_extents(run: Path) -> None:
    """As a run that was killed has it: what else is there must be found without them."""
    (run / "summary.jsonl").unlink()


def test_a_run_that_nobody_touched_gives_nothing(run: Path) -> None:
    clean = audit(run, TASKS)
    assert (clean.findings, clean.notes, clean.results, clean.sealed) == ([], [], 4, 4)
    without_extents(run)
    assert audit(run, TASKS) == clean


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a figure": (replaced("results.jsonl", '"tflops":400.0', '"tflops":401.0'), "results.jsonl:1: changed after"),
    "a verdict": (
        replaced("results.jsonl", '"verdict":"ok","reason":""', '"verdict":"infra","reason":"x"', 1),
        "results.jsonl:2: changed after",
    ),
    "a place": (replaced("results.jsonl", '"previous":"', '"previous":"0', 2), "results.jsonl:3: changed after"),
    "the first line": (dropped("results.jsonl", 0), "results.jsonl:1: it was recorded after another"),
    "a line": (dropped("results.jsonl", 1), "results.jsonl:2: it was recorded after another"),
    "two lines": (swapped("results.jsonl"), "results.jsonl:2: it was recorded after another"),
    "a figure and its seal": (resealed(1, reason="so"), "results.jsonl:3: it was recorded after another"),
    "a seal": (unsealed(0), "results.jsonl:1: it has no seal, and the attnbench of its environment"),
    "a seal in the middle": (unsealed(2), "results.jsonl:3: it has no seal, and the line before"),
    "a line that stands twice": (
        lambda run: write(run, "results.jsonl", [*lines(run, "results.jsonl"), lines(run, "results.jsonl")[0]]),
        "results.jsonl:5: the same result as line 1",
    ),
    "no JSON": (lambda run: write(run, "results.jsonl", ["{\n", *lines(run, "results.jsonl")]), ":1: not JSON"),
    "an id": (resealed(3, id="0" * 64), "results.jsonl:4: the record: Value error, id is not the hash"),
    "a device": (resealed(3, device="another"), "results.jsonl:4: its device is 'another'"),
    "an environment's name": (resealed(3, environment="1" * 64), ":4: its environment 111111111111 is not in"),
    "a library": (
        resealed(0, candidate=CUDNN.model_copy(update={"family": "cudnn 9.20"}).model_dump()),
        "results.jsonl:1: its hash is not that of cudnn of cudnn 9.20",
    ),
    "another trial": (
        resealed(1, candidate=GENERATED.model_copy(update={"trial": "1" * 64}).model_dump()),
        "results.jsonl:2: its trial is 111111111111",
    ),
    "a kernel": (artifact("attention.py", b"# another\n"), "attention.py is not the file that was measured"),
    "a file that is gone": (artifact("candidate.toml", None), "candidate.toml is missing"),
    "a file more": (artifact("fast.cu", b""), "fast.cu was added"),
    "a driver": (edited_environment, f"environment.json: {ENVIRONMENT.digest[:12]}: its content is not"),
    "no environment": (lambda run: (run / "environment.json").unlink(), "environment.json: is not there"),
    "a broken environment": (lambda run: write(run, "environment.json", ["[1]"]), "is no object of environ"),
    "a prompt": (replaced("transcripts.jsonl", "Write mha.", "Write MHA."), "transcripts.jsonl:1: its id is"),
    "a temperature": (replaced("transcripts.jsonl", ":0.5", ":0.6"), "transcripts.jsonl:1: its id is not"),
    "an exchange": (dropped("transcripts.jsonl", 0), "trials.jsonl:1: transcripts.jsonl lacks the exchange"),
    "a step": (dropped("trials.jsonl", 0), f"trials.jsonl: trial {TRIAL[:12]} lacks its steps number 0"),
    "an ending": (dropped("trials.jsonl", 2), "results.jsonl:2: trials.jsonl has no ending of its trial"),
    "the ending's kernel": (
        replaced("trials.jsonl", f'"candidate":"{SHA}"', '"candidate":"' + "1" * 64 + '"', 2),
        "results.jsonl:2: its kernel is not the one that its trial ended with (trials.jsonl:3)",
    ),
    "the ending's verdict": (
        replaced("trials.jsonl", '"verdict":null,"reason":""', '"verdict":"crash","reason":"x"', 2),
        "results.jsonl:2: it is ok, and trials.jsonl:3 is crash",
    ),
    "a template": (replaced("trials.jsonl", TEMPLATE, "1" * 64, 2), "trials.jsonl:3: the templates that it"),
    "the number of questions": (replaced("trials.jsonl", '"turns":1', '"turns":2', 2), ":3: it counts 2 questions"),
    "a story in the transcripts": (
        lambda run: write(run, "transcripts.jsonl", [*lines(run, "transcripts.jsonl"), lines(run, "trials.jsonl")[0]]),
        "transcripts.jsonl:2: a step does not belong there",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_found_without_the_help_of_a_summary(run: Path, what: str) -> None:
    change, says = CHANGES[what]
    without_extents(run)
    change(run)
    assert any(says in line for line in found(run)), found(run)


LATE: dict[str, tuple[Callable[[Path], None], str]] = {
    "the last line": (dropped("results.jsonl", 3), "results.jsonl: "),
    "the last line and its seal": (resealed(3, reason="so"), "results.jsonl: its first "),
    "an answer": (replaced("transcripts.jsonl", "```python", "```c"), "transcripts.jsonl: "),
    "what a model was told": (replaced("trials.jsonl", '"told":""', '"told":"x"', 1), "trials.jsonl: its first"),
    "the experiment": (replaced("experiment.toml", "h100", "h200"), "experiment.toml: its first 16 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("what", LATE)
def test_what_no_hash_of_a_line_holds_is_held_by_the_summary(run: Path, what: str) -> None:
    change, says = LATE[what]
    with Store(run, resume=True) as store:
        store.add_summary(summary(0))  # a later invocation, with nothing to do
    assert found(run) == []
    change(run)
    assert (
        len(of := [line for line in found(run) if "since line 1 of summary.jsonl was written" in line]) == 1
    )
    assert of[0].startswith(says)


def test_a_torn_line_and_what_a_kill_leaves_are_no_findings(run: Path) -> None:
    for name in ("results.jsonl", "trials.jsonl", "transcripts.jsonl", "summary.jsonl"):
        write(run, name, [*lines(run, name), lines(run, name)[0][:40]])
    half = run / "artifacts" / ("1" * 64)
    half.mkdir()
    (half / "attention.py.new").write_bytes(b"# ha")
    cache = run / "artifacts" / SHA / "__pycache__"
    cache.mkdir()
    (cache / "attention.cpython-312.pyc").write_bytes(b"")
    told = audit(run, TASKS)
    assert told.findings == []
    assert len(told.notes) == 5 and told.results == 4


def test_a_run_goes_on_after_a_torn_line_with_its_chain_whole(run: Path) -> None:
    write(run, "results.jsonl", [*lines(run, "results.jsonl")[:2], lines(run, "results.jsonl")[2][:-9]])
    without_extents(run)
    with Store(run, resume=True) as store:
        for result in results():
            store.add(result)
        store.add_summary(summary(2))
    assert found(run) == [] and len(lines(run, "results.jsonl")) == 4


def test_a_run_of_schema_1_verifies_with_a_note_and_goes_on_sealed(run: Path) -> None:
    """Whatever its figures are: nothing in the line holds them."""
    old = ENVIRONMENT.model_copy(update={"sources": ""})
    known = {old.digest: old.content}
    (run / "environment.json").write_text(json.dumps(known))
    without_extents(run)
    kept = []
    for line in lines(run, "results.jsonl")[:2]:
        data = json.loads(line) | {"schema_version": 1, "environment": old.digest}
        del data["seal"], data["previous"]
        kept.append(json.dumps(data) + "\n")
    write(run, "results.jsonl", kept)
    told = audit(run, TASKS)
    assert told.findings == [] and "2 of 2 results carry no seal" in told.notes[-1]
    with Store(run, resume=True) as store:
        store.add_environment(ENVIRONMENT)
        for result in results():
            store.add(result)
    told = audit(run, TASKS)
    assert told.findings == [] and (told.results, told.sealed) == (4, 2)


def test_results_that_an_old_summary_counts_and_nobody_has_are_a_note(run: Path) -> None:
    old = summary(9).model_dump_json(exclude={"files"})
    (run / "summary.jsonl").write_text(old + "\n")
    assert "summary.jsonl counts 9 results, results.jsonl holds 4" in " ".join(audit(run, TASKS).notes)


def test_another_version_of_a_task_is_a_note(run: Path) -> None:
    assert "another version of the task" in audit(run, {"mha": "0" * 64}).notes[0]
    assert "mha is no task of this attnbench" in audit(run, {}).notes[0]


def test_a_failed_trial_names_itself_where_it_has_no_kernel(run: Path) -> None:
    ask, _, ending = story()
    assert isinstance(ending, Ending)
    failed = ending.model_copy(
        update={
            "verdict": Verdict.NO_CODE,
            "reason": "none",
            "candidate": "",
            "files": {},
            "verifications": 0,
        }
    )
    (run / "trials.jsonl").write_text(f"{ask.model_dump_json()}\n{failed.model_dump_json()}\n")
    who = GENERATED.model_copy(update={"sha256": content_hash({"trial": TRIAL}), "files": {}})
    (run / "results.jsonl").unlink()
    without_extents(run)
    with Store(run, resume=True) as store:
        store.add(
            synthetic.result("mha", synthetic.workload(1024), who, Verdict.NO_CODE, None, env=ENVIRONMENT)
        )
    assert found(run) == []


def test_a_directory_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match=r"holds no results\.jsonl"):
        audit(tmp_path, {})


def test_the_command_ends_with_what_it_found(run: Path) -> None:
    clean = attnbench("verify", str(run))
    assert (clean.returncode, clean.stderr) == (
        0,
        "",
    ) and "4 results, 4 of them sealed; nothing found" in clean.stdout
    CHANGES["a figure"][0](run)
    wrong = attnbench("verify", str(run))
    assert wrong.returncode == 1 and "results.jsonl:1: changed after it was recorded" in wrong.stdout
    said = json.loads(attnbench("verify", str(run), "--json").stdout)
    assert not said["clean"] and said["findings"][0]["where"] == "results.jsonl:1" and said["results"] == 4
    assert attnbench("verify", str(run / "artifacts")).returncode == 2
    assert "no secret key" in attnbench("verify", "--help").stdout


def test_an_edited_record_is_in_no_report_and_no_run_goes_on_with_it(run: Path) -> None:
    from harness.store import StoreError
    from reports.dataset import load_run

    CHANGES["a figure"][0](run)
    dataset = load_run(run)
    assert len(dataset.rows) == 3 and "changed after it was recorded" in dataset.skipped[0].why
    with pytest.raises(StoreError, match=r"results\.jsonl:1: changed after.*Nothing was changed"):
        Store(run, resume=True)


def test_an_environment_record_of_before_keeps_its_hash() -> None:
    """The environment of a published run, as it is there."""
    for file in sorted(PUBLISHED.glob("*/environment.json")):
        for digest, value in json.loads(file.read_text()).items():
            assert Environment.model_validate(value).digest == digest == content_hash(value)


@pytest.mark.parametrize("name", sorted(p.parent.name for p in PUBLISHED.glob("*/results.jsonl")))
def test_published_runs_verify(name: str) -> None:
    assert audit(PUBLISHED / name, {}).findings == []
