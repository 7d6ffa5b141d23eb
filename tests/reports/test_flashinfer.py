"""A run as a trace set of flashinfer-bench: its own models take it, the references are the tasks."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.records import WorkloadRecord
from harness.verdicts import Verdict
from reports.dataset import Cell, load_run
from reports.figures import best_baseline, speedup
from reports.flashinfer.definitions import Unsayable, definition, workload
from reports.flashinfer.references import FORMS
from reports.flashinfer.schema import LEFT_OUT, Definition, Solution, Trace
from reports.flashinfer.traces import NO_STATUS, STATUS
from reports.flashinfer.traceset import TraceSet, trace_set
from tasks import discover, find, oracle
from tasks.spec import Workload
from tests.reports import synthetic
from tests.reports.flashinfer_models import MISSING, models
from tests.reports.synthetic import check

PUBLISHED = Path(__file__).parents[2] / "reports" / "published"
SCHEMAS = Path(__file__).parent / "flashinfer-bench-0.1.2.schema.json"
MODELS = models()
with_package = pytest.mark.skipif(MODELS is None, reason=MISSING)


def recorded(w: Workload) -> WorkloadRecord:
    task = find(w.task)
    return WorkloadRecord(
        key=w.key, scale=w.softmax_scale, dtype=w.dtype, parameters=w.params, causal=task.causal,
        flops=task.flops(w), bytes=task.bytes(w), **w.sizes,
    )  # fmt: skip


def cell_of(w: Workload) -> Cell:
    return Cell("cpu", w.task, recorded(w), ())


SHAPES = [w for task in discover().values() if task.name in FORMS for w in task.workloads["smoke"]]
# More queries than keys: rows that see nothing, where there is a mask.
SHAPES += [w.with_(seq_q=w.seq_k + 7) for w in SHAPES]


@pytest.mark.parametrize("w", SHAPES, ids=lambda w: f"{w.task}-{w.key}")
def test_the_reference_computes_the_task(w: Workload) -> None:
    task, said = find(w.task), definition([cell_of(w)])
    generator = torch.Generator().manual_seed(7)
    tensors = {t.name: torch.randn(t.shape(w), generator=generator, dtype=w.torch_dtype) for t in task.inputs}
    shapes = {
        name: [axis_size(said, workload(cell_of(w)).axes, a) for a in t.shape or ()]
        for name, t in said.inputs.items()
    }
    assert all(list(tensors[name].shape) == shapes[name] for name in tensors)
    scalars = {name: i.value for name, i in workload(cell_of(w)).inputs.items() if i.type == "scalar"}
    assert [*tensors, *scalars] == list(said.inputs)
    scope: dict[str, Any] = {}
    exec(said.reference, scope)
    out = scope["run"](*tensors.values(), *scalars.values())
    expected = oracle.expected(task, w, tensors)["out"]
    assert out.shape == expected.shape and out.dtype == w.torch_dtype
    assert (out.double() - expected).abs().max() < 2e-5


def axis_size(said: Definition, axes: dict[str, int], name: str) -> int:
    value = said.axes[name].value
    return axes[name] if value is None else value


def test_every_core_task_has_a_reference() -> None:
    assert set(FORMS) == set(discover())


def test_constraints_hold_for_the_tasks_own_workloads() -> None:
    for task in discover().values():
        for w in (w for group in task.workloads.values() for w in group):
            for said in definition([cell_of(w)]).constraints:
                assert eval(said, {}, w.sizes), f"{w.key}: {said}"


# What becomes of a run.
@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return synthetic.tiny_run(tmp_path / "tiny")


def core_run(folder: Path, verdict: Verdict = Verdict.WRONG_NUMERICS) -> Path:
    two = [synthetic.workload(1024), synthetic.workload(4096)]
    who: dict[str, tuple[str, synthetic.Rate]] = {
        "cudnn": ("baseline", lambda w: 400.0),
        "flash-attn-4": ("baseline", lambda w: 440.0),
        "mine": ("candidate", lambda w: 300.0),
        "broken": ("candidate", lambda w: verdict),
    }
    return synthetic.write_run(folder, synthetic.results("mha_causal", two, who))


def validated(files: dict[str, str]) -> int:
    """Every record against the stored schemas of the package's models; how many there were."""
    jsonschema = pytest.importorskip("jsonschema")
    schemas = json.loads(SCHEMAS.read_text())
    validators = {kind: jsonschema.Draft202012Validator(schemas[kind]) for kind in schemas if kind[0] != "$"}
    count = 0
    for name, text in files.items():
        kind = {"definitions": "definition", "solutions": "solution"}.get(name.split("/")[0], "trace")
        if name == LEFT_OUT:
            continue
        for line in [text] if name.endswith(".json") else text.splitlines():
            validators[kind].validate(json.loads(line))
            count += 1
    return count


def runs() -> list[Path]:
    return sorted(PUBLISHED.iterdir())


@pytest.mark.parametrize("run", runs(), ids=lambda p: p.name)
def test_published_runs_fit_the_stored_schemas(run: Path) -> None:
    assert validated(dict(trace_set(load_run(run)).files)) > 20


@with_package
@pytest.mark.parametrize("run", runs(), ids=lambda p: p.name)
def test_the_package_reads_published_runs(run: Path, tmp_path: Path) -> None:
    assert MODELS is not None
    made = trace_set(load_run(run))
    write(made, tmp_path)
    read = MODELS.trace_set.from_path(str(tmp_path))
    assert set(read.definitions) == {d.name for d in made.definitions}
    assert sum(map(len, read.solutions.values())) == len(made.solutions)
    assert sum(map(len, read.workloads.values())) == len(made.workloads)
    assert read.summary()["total"] == len(made.traces)
    names = {s.name for s in made.solutions}
    assert all(t.solution in names for t in made.traces), "every trace of these runs has its solution"
    for name, of in read.workloads.items():
        shapes = [read.definitions[name].get_input_shapes(t.workload.axes) for t in of]
        assert all(shapes)


@with_package
def test_the_packages_models_refuse_what_ours_refuse(tmp_path: Path) -> None:
    assert MODELS is not None
    made = trace_set(load_run(core_run(tmp_path / "run")))
    trace = json.loads(made.traces[0].model_dump_json())
    MODELS.trace.model_validate(trace)
    for part in ("performance", "correctness"):
        without = json.loads(json.dumps(trace))
        without["evaluation"][part] = None
        failed = json.loads(json.dumps(trace))
        failed["evaluation"] |= {"status": "RUNTIME_ERROR", "performance": None, "correctness": None}
        failed["evaluation"][part] = trace["evaluation"][part]
        for wrong in (without, failed):
            for model in (MODELS.trace, Trace):
                with pytest.raises(ValueError, match=part):
                    model.model_validate(wrong)


@with_package
def test_the_stored_schemas_are_the_packages(tmp_path: Path) -> None:
    """UPDATE_GOLDEN=1 writes them again, under the version that is installed."""
    assert MODELS is not None
    version = importlib.metadata.version("flashinfer-bench")
    comment = (
        f"JSON schemas of the models Definition, Solution and Trace of flashinfer-bench {version}, "
        "Apache-2.0, https://github.com/flashinfer-ai/flashinfer-bench; made by tests/reports/test_flashinfer.py"
    )
    found = {
        "$comment": comment,
        "definition": MODELS.definition.model_json_schema(),
        "solution": MODELS.solution.model_json_schema(),
        "trace": MODELS.trace.model_json_schema(),
    }
    file = SCHEMAS.with_name(f"flashinfer-bench-{version}.schema.json")
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(json.dumps(found, indent=1) + "\n")
    assert json.loads(file.read_text()) == found


def write(made: TraceSet, folder: Path) -> None:
    for name, text in made.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_every_verdict_has_a_status_or_a_reason_why_not() -> None:
    assert STATUS.keys() | NO_STATUS.keys() == set(Verdict)
    assert not STATUS.keys() & NO_STATUS.keys()


@pytest.mark.parametrize("verdict", [v for v in Verdict if v is not Verdict.OK])
def test_each_verdict_is_a_trace_or_left_out_with_its_reason(verdict: Verdict, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    lines = [*load_lines(core_run(tmp_path / "plain"))]
    failed = [with_verdict(r, verdict) if r.candidate.name == "broken" else r for r in lines]
    made = trace_set(load_run(synthetic.write_run(folder, failed)))
    validated(dict(made.files))
    mine = [t for t in made.traces if t.solution and t.solution.startswith("broken")]
    if verdict in STATUS:
        assert len(mine) == 2
        for trace in mine:
            assert trace.evaluation is not None
            assert trace.evaluation.status is STATUS[verdict]
            assert trace.evaluation.log.startswith(f"{verdict.value}: ")
            assert trace.evaluation.performance is None
    else:
        assert not mine
        left = [x for x in made.left_out if x.contender == "broken" and x.what == "trace"]
        assert [(x.verdict, x.why) for x in left] == [(verdict.value, NO_STATUS[verdict])] * 2
        assert all(x.reason for x in left)


def load_lines(run: Path) -> list[Any]:
    return [row.result for row in load_run(run).rows]


def with_verdict(r: Any, verdict: Verdict) -> Any:
    return synthetic.result(r.task, r.workload, r.candidate, verdict, None)


def test_a_passed_trace_says_what_was_measured(tmp_path: Path) -> None:
    dataset = load_run(core_run(tmp_path / "run"))
    made = trace_set(dataset)
    cell = dataset.cells[0]
    row, best = cell.row("mine"), best_baseline(cell)
    assert row is not None and row.measured is not None and best is not None and best.measured is not None
    trace = next(
        t for t in made.traces if t.solution == f"mine_{row.result.candidate.sha256[:8]}__{t.definition}"
    )
    said, over = trace.evaluation, speedup(cell, row)
    assert (
        said is not None
        and said.performance is not None
        and said.correctness is not None
        and over is not None
    )
    assert said.performance.latency_ms == row.measured.device_time.median_ms
    assert said.performance.reference_latency_ms == best.measured.device_time.median_ms
    assert said.performance.speedup_factor == over.estimate.median
    assert best.contender == "flash-attn-4" and "over flash-attn-4" in said.log
    assert said.environment.hardware == row.result.device
    assert said.environment.libs["torch"] == "2.11.0" and said.environment.libs["attnbench protocol"] == "2"
    assert said.timestamp == row.result.recorded_at
    assert (said.correctness.max_absolute_error, said.correctness.max_relative_error) == (0.001, 0.002)


def test_the_errors_are_those_of_the_random_inputs_of_this_workload(tmp_path: Path) -> None:
    lines = load_lines(core_run(tmp_path / "plain"))
    r = next(r for r in lines if r.candidate.name == "mine")
    own = check(r.workload, True)
    others = (
        own.model_copy(update={"recipe": "huge_scale", "error_max": 5.0}),
        own.model_copy(update={"workload": "hidden", "error_max": 7.0}),
        own.model_copy(update={"timed": True, "error_max": 0.002}),
    )
    r2 = r.model_copy(update={"verification": r.verification.model_copy(update={"checks": (own, *others)})})
    made = trace_set(
        load_run(synthetic.write_run(tmp_path / "run", [r2, *(x for x in lines if x.id != r.id)]))
    )
    said = next(
        t.evaluation
        for t in made.traces
        if t.evaluation
        and t.workload.axes["seq_k"] == r.workload.seq_k
        and t.solution
        and t.solution.startswith("mine")
    )
    assert said.correctness is not None and said.correctness.extra is not None
    assert said.correctness.max_absolute_error == 0.002
    assert len(said.correctness.extra["checks"]) == 4
    assert said.correctness.extra["errors_over"] == "this workload, recipe normal"


@pytest.mark.parametrize("error", [math.inf, math.nan])
def test_errors_that_are_no_numbers_stay_such(error: float, tmp_path: Path) -> None:
    lines = load_lines(core_run(tmp_path / "plain"))
    r = next(r for r in lines if r.candidate.name == "broken")
    bad = check(r.workload, False).model_copy(update={"error_max": error})
    r2 = r.model_copy(
        update={"verification": r.verification.model_copy(update={"checks": (check(r.workload, False), bad)})}
    )
    made = trace_set(load_run(synthetic.write_run(tmp_path / "run", [r2])))
    (trace,) = made.traces
    line = next(text for name, text in made.files.items() if name.startswith("traces/"))
    value = json.loads(line)["evaluation"]["correctness"]["max_absolute_error"]
    assert value == ("Infinity" if error > 0 else "NaN")
    if MODELS is not None:
        read = MODELS.trace.model_validate_json(line).evaluation.correctness.max_absolute_error
        assert read == error or (math.isnan(read) and math.isnan(error))
    assert trace.evaluation is not None


def test_without_a_measured_baseline_there_is_no_reference_latency(tmp_path: Path) -> None:
    lines = [r for r in load_lines(core_run(tmp_path / "plain")) if r.candidate.name == "mine"]
    for trace in trace_set(load_run(synthetic.write_run(tmp_path / "run", lines))).traces:
        assert trace.evaluation is not None and trace.evaluation.performance is not None
        assert trace.evaluation.performance.reference_latency_ms == 0
        assert trace.evaluation.performance.speedup_factor == 0
        assert "No human baseline" in trace.evaluation.log


def test_a_workload_has_one_identifier_in_every_export(tmp_path: Path) -> None:
    first, second = (trace_set(load_run(core_run(tmp_path / n))) for n in ("a", "b"))
    assert [t.workload.uuid for t in first.workloads] == [t.workload.uuid for t in second.workloads]
    assert len({t.workload.uuid for t in first.workloads}) == 2
    assert first.files == second.files


# Sources.
def one(made: TraceSet, name: str) -> Solution:
    return next(s for s in made.solutions if s.name.startswith(name))


def torch_candidate(tmp_path: Path) -> Path:
    """A run whose candidate is a working kernel of two files, in plain PyTorch."""
    import hashlib

    from harness.build.manifest import read_candidate

    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "candidate.toml").write_text(
        'name = "mine"\ntask = "softcap"\nbackend = "torch"\n[entries]\nsoftcap = "capped.py"\n'
    )
    (folder / "scores.py").write_text("def capped(s, c):\n    return c * (s / c).tanh()\n")
    (folder / "capped.py").write_text(
        "from scores import capped\n\n\n"
        "def attention(q, k, v, out, *, scale, softcap):\n"
        "    g = q.shape[2] // k.shape[2]\n"
        "    k, v = (t.transpose(1, 2).repeat_interleave(g, 1) for t in (k, v))\n"
        "    s = capped(scale * q.transpose(1, 2) @ k.transpose(-1, -2), softcap)\n"
        "    n, m = s.shape[-2:]\n"
        "    s = s.masked_fill(~s.new_ones(n, m).tril(m - n).bool(), float('-inf'))\n"
        "    out.copy_((s.softmax(-1) @ v).transpose(1, 2))\n"
    )
    manifest = read_candidate(folder)
    w = find("softcap").workloads["smoke"][1]
    who = synthetic.candidate("mine").model_copy(
        update={"sha256": manifest.sha256, "files": manifest.hashes, "backend": "torch"}
    )
    env = synthetic.environment("cpu", "AMD EPYC 9V74")
    record = recorded(w)
    base = synthetic.candidate("naive", "baseline", "torch 2.13.0")
    over = synthetic.ratio("naive", 1.0)
    rows = [
        synthetic.result(
            "softcap", record, c, Verdict.OK, synthetic.measurement(record, c.name, "cpu", 0.1, over), env=env
        )
        for c in (who, base)
    ]
    run = synthetic.write_run(tmp_path / "run", rows, env=env)
    for name, content in manifest.files.items():
        (run / "artifacts" / manifest.sha256 / name).write_bytes(content)
        assert hashlib.sha256(content).hexdigest() == who.files[name]
    return run


@contextmanager
def unpacked(s: Solution, folder: Path) -> Iterator[Any]:
    """The entry point of a solution, imported as flashinfer-bench does: its sources as a package."""
    package = f"fib_{s.name.replace('-', '_').replace('.', '_')}"
    for source in s.sources:
        path = folder / package / source.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source.content)
    file, _, symbol = s.spec.entry_point.partition("::")
    sys.path.insert(0, str(folder))
    before = set(sys.modules)
    try:
        yield getattr(importlib.import_module(f"{package}.{Path(file).stem}"), symbol)
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            del sys.modules[name]


@pytest.mark.parametrize("contender", ["mine", "naive"])
def test_a_solution_runs_by_its_entry_and_agrees_with_the_reference(
    contender: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trace_set(load_run(torch_candidate(tmp_path)))
    w = find("softcap").workloads["smoke"][1]
    scope: dict[str, Any] = {}
    exec(made.definitions[0].reference, scope)
    inputs = [torch.randn(t.shape(w)) for t in find("softcap").inputs]
    scalars = [i.value for i in made.workloads[0].workload.inputs.values() if i.type == "scalar"]
    out = torch.full(find("softcap").outputs[0].shape(w), math.nan)
    s = one(made, contender)
    with unpacked(s, tmp_path / "unpacked") as run:
        run(*inputs, *scalars, out)
        run(*inputs, *scalars, out)
    assert (out - scope["run"](*inputs, *scalars)).abs().max() < 1e-4
    if MODELS is not None:
        monkeypatch.setenv("FIB_CACHE_PATH", str(tmp_path / "cache"))
        built = MODELS.builder().build(
            MODELS.definition.model_validate_json(made.definitions[0].model_dump_json(exclude_unset=True)),
            MODELS.solution.model_validate_json(s.model_dump_json()),
        )
        again = torch.full_like(out, math.nan)
        built(*inputs, *scalars, again)
        assert torch.equal(out, again)


def test_sources_are_the_recorded_bytes(tmp_path: Path) -> None:
    run = torch_candidate(tmp_path)
    s = one(trace_set(load_run(run)), "mine")
    kept = {p.name: p.read_text() for p in (run / "artifacts").glob("*/*")}
    assert {x.path: x.content for x in s.sources if x.path in kept} == kept
    assert [x.path for x in s.sources if x.path not in kept] == ["attnbench_entry.py"]


def _without(run: Path) -> None:
    next((run / "artifacts").glob("*/capped.py")).unlink()


def _changed(run: Path) -> None:
    next((run / "artifacts").glob("*/scores.py")).write_text("# not what ran\n")


def _linked(run: Path) -> None:
    file = next((run / "artifacts").glob("*/scores.py"))
    secret = run.parent / "secret.py"
    secret.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(secret)


@pytest.mark.parametrize(
    ("harm", "says"),
    [(_without, "not among the run's artifacts"), (_changed, "changed after"), (_linked, "not among")],
)
def test_sources_that_are_not_what_ran_are_left_out_with_the_reason(
    harm: Any, says: str, tmp_path: Path
) -> None:
    run = torch_candidate(tmp_path)
    harm(run)
    made = trace_set(load_run(run))
    assert not any(s.name.startswith("mine") for s in made.solutions)
    assert len(made.traces) == 2, "what was measured stays"
    (left,) = [x for x in made.left_out if x.what == "solution"]
    assert left.contender == "mine" and says in left.why


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "a/../../b.py"])
def test_no_file_outside_of_the_run_is_read(name: str, tmp_path: Path) -> None:
    lines = load_lines(core_run(tmp_path / "plain"))
    r = next(r for r in lines if r.candidate.name == "mine")
    hostile = r.candidate.model_copy(update={"files": {name: synthetic.sha("x")}})
    (tmp_path / "run").mkdir()
    line = r.model_copy(update={"candidate": hostile})
    run = tmp_path / "run"
    (run / "results.jsonl").write_text("".join(x + "\n" for x in synthetic.stored([line])))
    made = trace_set(load_run(run))
    assert not made.solutions
    assert "outside" in next(x.why for x in made.left_out if x.what == "solution")


def test_a_name_of_a_contender_makes_no_path(tmp_path: Path) -> None:
    lines = load_lines(core_run(tmp_path / "plain"))
    r = next(r for r in lines if r.candidate.name == "mine")
    hostile = r.candidate.model_copy(update={"name": "../../x y/" + "ü" * 300})
    made = trace_set(
        load_run(synthetic.write_run(tmp_path / "run", [r.model_copy(update={"candidate": hostile})]))
    )
    for name in made.files:
        assert ".." not in name.split("/") and len(name.split("/")) <= 4 and len(name.split("/")[-1]) < 200


def test_a_task_of_ones_own_is_left_out_with_the_reason(tmp_path: Path) -> None:
    lines = synthetic.results(
        "alibi_of_mine", [synthetic.workload(1024)], {"cudnn": ("baseline", lambda w: 400.0)}
    )
    made = trace_set(load_run(synthetic.write_run(tmp_path / "run", lines)))
    assert not made.definitions and not made.traces
    (left,) = made.left_out
    assert left.what == "definition" and "no core task" in left.why and left.task == "alibi_of_mine"
    with pytest.raises(Unsayable, match="no dtype for fp64"):
        definition([replace(cell_of(SHAPES[0]), workload=recorded(SHAPES[0].with_(dtype="fp64")))])


def test_torn_lines_and_what_is_not_comparable_are_named(tmp_path: Path) -> None:
    other = synthetic.environment(device="NVIDIA H100 PCIe")
    lines = load_lines(core_run(tmp_path / "plain"))
    who = synthetic.candidate("late")
    w = lines[0].workload
    late = synthetic.result(
        "mha_causal",
        w,
        who,
        Verdict.OK,
        synthetic.measurement(w, "late", "h100", 9.0, synthetic.ratio("cudnn", 1.0)),
        env=other,
    )
    run = synthetic.write_run(tmp_path / "run", [*lines, late], more=[other])
    with (run / "results.jsonl").open("a") as file:
        file.write('{"schema_version": 2, "id"')
    made = trace_set(load_run(run))
    assert [x.what for x in made.left_out if x.line == len(lines) + 2] == ["line"]
    apart = next(x for x in made.left_out if x.contender == "late")
    assert "NVIDIA H100 PCIe" in apart.why
    assert not any(t.solution and t.solution.startswith("late") for t in made.traces)
