"""Owns an invented run of kernels that came from LLM-TL: the files are a compiler's, the figures nobody's.

A reference program compiled in the run, a tuned candidate of a folder, a model's program with a schedule of its
own, one whose choices a search found, a program translated by a model, and a kernel of before anything was carried.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.records import CandidateRecord, Result
from harness.story import Assignment, Ending, Step
from harness.targets import find_target
from harness.tl import ir
from harness.tl.check import check
from harness.tl.corpus_index import corpus
from harness.tl.lower.carried import Searched
from harness.tl.lower.choices import Row
from harness.tl.lower.cute import lower_cute
from harness.tl.lower.gluon import lower_gluon
from harness.tl.lower.lowered import Lowered
from harness.tl.lower.triton import lower_triton
from tasks import find
from tests.reports import synthetic

TASK, HOPPER = find("mha_causal"), find_target("h100")
TEXT = next(e.text for e in corpus("reference") if e.task == TASK.name)
SKETCH = "Copy Q from global to shared\nfor j = 0 : N\n    Compute GEMM Q, K^T and get S  # <a sketch & only for tests>\nend\n"
OWN_LINE = "Schedule consumers 2, stages in {2, 3}, overlap true, pingpong true, persistent dynamic"
CELLS = (synthetic.workload(1024), synthetic.workload(4096))
FOUND = {"BM": 128, "BN": 128, "consumers": 2, "stages": 2, "overlap": 1, "pingpong": 0, "heads": 4}
TOLD = {"recorded_at": "2026-11-20T08:59:00.000Z"}


@dataclass(frozen=True)
class Made:
    """A kernel of the run: its record, its files, and the trial that made it."""

    record: CandidateRecord
    files: Mapping[str, str]
    steps: tuple[Step, ...] = ()
    ending: Ending | None = None


def resolved(text: str) -> ir.Program:
    program = check(text, TASK, target=HOPPER).program
    assert program is not None
    return program


def scheduled() -> str:
    """The reference program with `OWN_LINE` in the place of its own."""
    lines = [line for line in TEXT.splitlines() if not line.lower().startswith("schedule")]
    at = next(n for n, line in enumerate(lines) if line.lower().startswith("tile"))
    return "\n".join([*lines[: at + 1], OWN_LINE, *lines[at + 1 :]]) + "\n"


def searched(lowered: Lowered, varied: set[str]) -> Lowered:
    """As if searches of 288 choices had given the table, 46 timings each."""
    rows = {s.row for s in lowered.carried.rows if s.file == "attention.py"}
    took = [
        Searched(f"b{16384 // r.seq}-h16-n{r.seq}-d{r.dim}-fp16", r.dim, r.seq, 288, 46, 12.5, "NVIDIA H100 80GB HBM3")
        for r in sorted(rows, key=lambda r: (r.dim, r.seq))
    ]  # fmt: skip
    return lowered.with_carried(lowered.carried.after(took, lambda _: varied))


def kernels() -> dict[str, Made]:
    """By name."""
    table = [
        Row.of(2, dim, seq, {**FOUND, "BN": 64 if dim == 64 else 128, "heads": heads})
        for dim in (64, 128)
        for seq, heads in ((512, 16), (1024, 4), (4096, 4), (16384, 0))
    ]
    varied = {"BM", "BN", "consumers", "stages", "overlap", "pingpong", "heads"}
    tuned = searched(lower_gluon(resolved(TEXT), TASK, HOPPER, table), varied)
    own = lower_gluon(resolved(scheduled()), TASK, HOPPER)
    with_search = searched(lower_gluon(resolved(scheduled()), TASK, HOPPER, table), varied)
    before = {
        n: t
        for n, t in lower_cute(resolved(TEXT), TASK, HOPPER).files.items()
        if not n.startswith(("pro", "sch"))
    }
    return {
        "reference": _made(
            "reference", "program", "triton", lower_triton(resolved(TEXT), TASK, HOPPER).files
        ),
        "tuned": _made("tuned", "folder", "gluon", tuned.files),
        "own-schedule": _of_trial("own-schedule", "tl-scheduled", own.files, scheduled()),
        "search": _of_trial("search", "tl-compiled", with_search.files, scheduled()),
        "translated": _of_trial("translated", "tl", {"attention.py": synthetic.SOURCE}, scheduled()),
        "before": _made("before", "program", "cuda", before),
    }


def run(folder: Path) -> Path:
    """The kernels beside two baselines on two cells; every figure is invented."""
    made = kernels()
    lines: list[Result] = synthetic.results(
        TASK.name,
        CELLS,
        {"cudnn": ("baseline", lambda w: 500.0), "flash-attn-4": ("baseline", lambda w: 600.0)},
    )
    for n, kernel in enumerate(made.values()):
        for w in CELLS:
            rate = 400.0 + 50 * n
            over = synthetic.ratio("cudnn", rate / 500, 0.0006)
            measured = synthetic.measurement(w, kernel.record.name, "h100", rate, over)
            lines.append(synthetic.result(TASK.name, w, kernel.record, synthetic.Verdict.OK, measured))
    synthetic.write_run(folder, lines)
    for kernel in made.values():
        for name, text in kernel.files.items():
            (folder / "artifacts" / kernel.record.sha256 / name).write_text(text, encoding="utf-8")
    told = [line for k in made.values() for line in (*k.steps, *([k.ending] if k.ending else []))]
    (folder / "trials.jsonl").write_text("".join(line.model_dump_json() + "\n" for line in told))
    return folder


def _made(name: str, method: str, backend: str, files: Mapping[str, str], trial: str = "") -> Made:
    hashes = {n: hashlib.sha256(t.encode()).hexdigest() for n, t in files.items()}
    record = CandidateRecord(
        sha256=synthetic.sha(f"{name}{sorted(hashes.items())}"),
        name=name,
        kind="candidate",
        method=method,
        backend=backend,
        model="claude" if trial else "",
        trial=trial,
        files=hashes,
    )
    return Made(record, files)


def _of_trial(name: str, method: str, files: Mapping[str, str], program: str) -> Made:
    a = Assignment(
        method=method, models=("test:claude",), task=TASK.name, target="h100", backend="gluon", sample=0
    )
    made = _made(name, method, "gluon", files, a.id)
    sha256, hashes = made.record.sha256, made.record.files
    compiled = method != "tl"
    last = {"what": "compile", "program": program} if compiled else {"what": "try"}
    steps: list[dict[str, object]] = [
        {"what": "examine", "stage": "sketch", "passed": True, "program": SKETCH},
        {"what": "examine", "stage": "code", "passed": False, "told": "TL101", "program": "a first try"},
        {"what": "examine", "stage": "code", "passed": True, "program": program},
        {**last, "stage": "compile", "passed": True, "candidate": sha256, "files": hashes},
    ]
    told = tuple(
        Step.model_validate({"trial": a.id, "number": n, "turn": n, **TOLD, **s}) for n, s in enumerate(steps)
    )
    ending = Ending(
        trial=a.id, assignment=a, candidate=sha256, files=hashes, turns=3, verifications=1, **TOLD  # type: ignore[arg-type]
    )  # fmt: skip
    return Made(made.record, files, told, ending)
