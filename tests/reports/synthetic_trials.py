"""Owns an invented run in which models wrote kernels: every way to fail, round numbers, no model asked.

The best human baseline runs at 500 TFLOP/s in every cell, so a kernel's rate over 500 is its speedup.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.records import CandidateRecord, Result, WorkloadRecord, content_hash
from harness.story import Assignment, Ending, Exchange, Said, Step
from harness.verdicts import Verdict
from tests.reports import synthetic
from tests.reports.synthetic import REASONS, sha

BEST_HUMAN = 500.0
Rates = Sequence[float | Verdict]  # of a right kernel: TFLOP/s or a verdict in each cell
Plan = Mapping[tuple[str, str], Sequence[Verdict | Rates]]  # (task, method) -> samples

DISPATCH, LATE = Verdict.LIBRARY_DISPATCH, Verdict.TIMEOUT
PLAN: Plan = {
    ("mha_causal", "vanilla"): [(260, 260), Verdict.WRONG_NUMERICS, Verdict.NO_CODE],
    ("mha_causal", "tl"): [(510, 600), (450, LATE), Verdict.INFRA],
    ("mha_causal", "tl-compiled"): [(410, 560), (DISPATCH, DISPATCH), Verdict.BUILD_ERROR],
    ("mha_causal", "tl-one-stage"): [Verdict.CRASH, (200, 200), Verdict.TIMEOUT],
    ("mla_prefill", "vanilla"): [Verdict.BUILD_ERROR, Verdict.WRONG_NUMERICS, Verdict.WRONG_NUMERICS],
    ("mla_prefill", "tl"): [(560, 560), Verdict.NO_CODE, (310, 310)],
    ("mla_prefill", "tl-compiled"): [(255, 255), Verdict.WRONG_NUMERICS, Verdict.WRONG_NUMERICS],
}
CELLS = (synthetic.workload(1024), synthetic.workload(4096))
RESHAPE = "line 7: error TL401: S enters a GEMM as it left one\n  Compute GEMM S, V and accumulate O"
SHAPES = "line 5: error TL201: 64 columns meet 128 rows\n  Compute GEMM Q, K and get S"
DISAGREES = (
    "The interpreter's result differs from the task's on batch 1, heads 2, normal inputs: max error 0.4"
)
# (task, method, sample) -> what is said of its programs, one after the other; "" passes
PROGRAMS: Mapping[tuple[str, str, int], Sequence[str]] = {
    ("mha_causal", "tl", 1): [DISAGREES, ""],
    ("mha_causal", "tl-one-stage", 0): [RESHAPE, ""],
    ("mha_causal", "tl-one-stage", 2): [f"{RESHAPE}\n{SHAPES}", SHAPES],
    ("mla_prefill", "tl", 1): [],
    ("mla_prefill", "tl-compiled", 1): [SHAPES, DISAGREES],
}
PROGRAM = "Copy Q (BM, dim) in coordinate [L = bx] from global to shared\n# <a program & only for tests>\n"
PRICED = "claude"  # the model whose price is known


@dataclass(frozen=True)
class Made:
    """What one trial leaves behind."""

    ending: Ending
    steps: tuple[Step, ...]
    exchanges: tuple[Exchange, ...]
    results: tuple[Result, ...]


def generation_run(
    folder: Path, plan: Plan = PLAN, *, models: Sequence[str] = ("claude",), unfinished: bool = False
) -> Path:
    """Two tasks of two cells, three baselines (one skipped), four methods, three samples.

    With `unfinished` the last trial has steps and neither an ending nor results.
    """
    tasks = tuple(dict.fromkeys(task for task, _ in plan))
    made = [
        trial(task, method, model, sample, outcome)
        for (task, method), samples in plan.items()
        for model in models
        for sample, outcome in enumerate(samples)
    ]
    whole = made[:-1] if unfinished else made
    lines = [r for m in whole for r in m.results] + [r for task in tasks for r in _baselines(task)]
    synthetic.write_run(folder, lines)
    stories: list[Step | Ending] = []
    for m in made:
        stories += [*m.steps, *([m.ending] if m in whole else [])]
    _write(folder / "trials.jsonl", stories)
    _write(folder / "transcripts.jsonl", [e for m in made for e in m.exchanges])
    return folder


def _write(path: Path, lines: Sequence[Step | Ending | Exchange]) -> None:
    path.write_text("".join(line.model_dump_json() + "\n" for line in lines), encoding="utf-8")


def _baselines(task: str) -> list[Result]:
    return synthetic.results(
        task,
        CELLS,
        {
            "cudnn": ("baseline", lambda w: 400.0),
            "flash-attn-4": ("baseline", lambda w: BEST_HUMAN),
            "flash-attn": ("baseline", lambda w: Verdict.SKIPPED),
        },
    )


def assignment(task: str, method: str, model: str, sample: int) -> Assignment:
    return Assignment(
        method=method,
        models=tuple(f"test:{name}" for name in model.split(" -> ")),
        task=task,
        target="h100",
        backend="triton",
        sample=sample,
    )


def trial(task: str, method: str, model: str, sample: int, outcome: Verdict | Rates) -> Made:
    """A trial with this outcome: tokens, dollars and seconds grow with the sample's number."""
    a = assignment(task, method, model, sample)
    failed = outcome if isinstance(outcome, Verdict) else None
    candidate = "" if failed in (Verdict.NO_CODE, Verdict.INFRA) else sha(f"kernel {a.id}")
    files = {"kernel.py": sha(synthetic.SOURCE)} if candidate else {}
    steps, exchanges = _story(a, failed, candidate, files)
    n = sample + 1
    ending = Ending(
        trial=a.id,
        assignment=a,
        verdict=failed,
        reason=REASONS[failed] if failed else "",
        candidate=candidate,
        files=files,
        turns=len(exchanges),
        verifications=1 if candidate else 0,
        tokens_in=1000 * n,
        tokens_out=500 * n,
        tokens_estimated=method == "tl",
        usd=0.01 * n if model == PRICED and method != "tl-compiled" else None,
        wall_s=60.0 * n,
        latency_unknown=1 if method == "vanilla" else 0,
        first_correct_s=30.0 * n if failed is None else None,
        best_s=30.0 * n if failed is None else None,
        prompts={f"{method}.md": sha(method)},
        recorded_at="2026-11-20T09:00:00.000Z",
    )
    who = CandidateRecord(
        sha256=candidate or content_hash({"trial": a.id}),
        name=f"{method}-{model}-{sample}",
        kind="candidate",
        method=method,
        backend="triton",
        model=a.model,
        trial=a.id,
        sample=sample,
        files=files,
    )
    outcomes = [failed] * len(CELLS) if failed else list(outcome)  # type: ignore[arg-type]
    results = tuple(_result(task, w, who, o) for w, o in zip(CELLS, outcomes, strict=True))
    return Made(ending, steps, exchanges, results)


def _result(task: str, w: WorkloadRecord, who: CandidateRecord, outcome: float | Verdict) -> Result:
    if isinstance(outcome, Verdict):
        return synthetic.result(task, w, who, outcome, None)
    over = synthetic.ratio("cudnn", outcome / 400.0, 0.0006)
    measured = synthetic.measurement(w, who.name, "h100", float(outcome), over)
    return synthetic.result(task, w, who, Verdict.OK, measured)


def _story(
    a: Assignment, failed: Verdict | None, candidate: str, files: dict[str, str]
) -> tuple[tuple[Step, ...], tuple[Exchange, ...]]:
    """Steps and exchanges as the method would have left them."""
    steps: list[Step] = []
    talk: list[Said] = [Said(role="user", content=f"Write {a.task}. <prompt & only for tests>")]
    exchanges: list[Exchange] = []

    def ask(stage: str, answer: str) -> None:
        key = sha(f"{a.id}/{len(exchanges)}")
        exchanges.append(
            Exchange(
                id=key,
                provider="test",
                model=a.model,
                sample=a.sample,
                messages=tuple(talk),
                text=answer,
                reported_model=f"{a.model}-1",
                tokens_in=None if a.method == "tl" else 400,
                tokens_out=None if a.method == "tl" else 200,
                latency_s=None if a.method == "vanilla" else 12.5,
                usd=0.004 if a.model == PRICED else None,
                recorded_at="2026-11-20T08:59:00.000Z",
            )
        )
        step(what="ask", stage=stage, exchange=key)
        talk.extend([Said(role="assistant", content=answer), Said(role="user", content="Go on.")])

    def step(**fields: object) -> None:
        head = {"trial": a.id, "number": len(steps), "turn": len(exchanges)}
        steps.append(Step.model_validate({**head, **fields, "recorded_at": "2026-11-20T08:59:00.000Z"}))

    if failed is Verdict.INFRA:
        step(what="failed_ask", stage="kernel", told="the provider did not answer: 529")
        return tuple(steps), ()
    if a.method in ("tl", "tl-compiled"):
        ask("sketch", "a sketch")
        step(what="examine", stage="sketch", passed=True, program="a sketch", wall_s=0.1)
    for told in _said(a):
        ask("code" if len(exchanges) < 2 else "repair", f"```tl\n{PROGRAM}```")
        step(what="examine", stage="code", passed=not told, told=told, program=PROGRAM, wall_s=0.4)
    if a.method != "tl-compiled":
        ask("kernel", f"```python\n{synthetic.SOURCE}```" if candidate else "I would rather not.")
    if candidate:
        told = REASONS[failed] if failed else "right on every input tried"
        fields = {"passed": failed is None, "verdict": failed, "told": told, "candidate": candidate}
        step(what="compile" if a.method == "tl-compiled" else "try", stage="kernel", files=files, **fields)
    return tuple(steps), tuple(exchanges)


def _said(a: Assignment) -> Iterator[str]:
    if a.method.startswith("tl"):
        yield from PROGRAMS.get((a.task, a.method, a.sample), [""])
