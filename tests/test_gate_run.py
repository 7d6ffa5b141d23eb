"""What the gate has measured: old selves share a session with what they became and are no cases."""

from __future__ import annotations

import pytest

from harness.build.manifest import read_candidate
from harness.gate_run import AmbiguousNames, GateRun
from harness.records import CandidateRecord, Result, WorkloadRecord
from harness.verdicts import Verdict
from tests.conftest import GOOD
from tests.gates import ratio
from tests.reports.gate.test_beside import measurement


@pytest.fixture
def place(tmp_path):
    def kernel(folder, name, remark, tasks=("mha_causal",)):
        place = tmp_path / folder / name
        place.mkdir(parents=True)
        (place / "candidate.toml").write_text(f'name = "{name}"\ntasks = {list(tasks)}\nbackend = "torch"\n')
        (place / "attention.py").write_text(GOOD + f"# {remark}\n")
        return place

    (tmp_path / "mine.toml").write_text(
        'target = "cpu"\ntasks = ["mha_causal", "gqa_causal"]\nworkloads = "smoke"\nbaselines = "sdpa-flash"\n'
        f'anchor = "sdpa-flash"\ngroup = 2\ncandidates = "{tmp_path / "now"}"\n'
    )
    return kernel, str(tmp_path / "mine.toml")


def cases_of(run, kernel):
    return [w.id for w in run.wanted if w.kernel == kernel]


def test_old_selves_join_the_session_and_are_no_cases(place):
    kernel, source = place
    for name in ("a", "b"):
        kernel("now", name, "now", ("mha_causal", "gqa_causal"))
    old = kernel("old", "a", "then", ("mha_causal", "gqa_causal"))
    ids = [i for i in cases_of(GateRun(source), "a") if i.startswith("mha")]
    run = GateRun(source, ids[:1], before=dict.fromkeys(ids, old))
    assert [w.id for w in run.wanted] == ids[:1]  # a repeat of one case has its old self too
    assert not [w for w in GateRun(source, before=dict.fromkeys(ids, old)).wanted if "@" in w.id]
    added = run._plan.candidates[-1]
    assert (added.name, added.tasks) == ("a@reference", ("mha_causal",))
    assert added.sha256 == read_candidate(old).sha256
    assert len(run._plan.groups(run.experiment.group)) == 1
    assert GateRun(source).experiment.group == 2


def test_cases_of_one_kernel_may_have_been_raised_at_different_times(place):
    kernel, source = place
    kernel("now", "a", "now")
    first, second = kernel("old", "a", "first"), kernel("older", "a", "second")
    ids = cases_of(GateRun(source), "a")
    run = GateRun(source, before={ids[0]: first, ids[1]: second, ids[2]: first})
    assert [m.name for m in run._plan.candidates] == ["a", "a@reference", "a@reference-2"]
    assert [run._old[i] for i in ids[:3]] == ["a@reference", "a@reference-2", "a@reference"]


def test_what_is_among_the_kernels_of_now_is_not_measured_twice(place):
    kernel, source = place
    kernel("now", "a", "now")
    same = kernel("old", "a", "now")
    run = GateRun(source, before=dict.fromkeys(cases_of(GateRun(source), "a"), same))
    assert [m.name for m in run._plan.candidates] == ["a"]


def test_a_kernel_with_the_name_of_an_old_self_is_refused(place):
    kernel, source = place
    kernel("now", "a", "now")
    kernel("now", "a@reference", "mine")
    ids = cases_of(GateRun(source), "a")
    with pytest.raises(AmbiguousNames, match="a@reference"):
        GateRun(source, before=dict.fromkeys(ids, kernel("old", "a", "then")))


def result(case, measured, verdict=Verdict.OK, reason=""):
    task, workload, name = case.split("/")
    return Result.model_construct(
        task=task, workload=WorkloadRecord.model_construct(key=workload), verdict=verdict, reason=reason,
        candidate=CandidateRecord.model_construct(name=name, kind="candidate", sha256=name[0] * 64),
        measurement=measured,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("old", "again"),
    [
        ((measurement(),), False),
        ((measurement(noise=ratio(1.0, 0.5)),), True),  # of another session
        ((None, Verdict.INFRA, "the speed changed"), True),
        ((None, Verdict.CRASH, "it died"), False),
    ],
)
def test_a_case_whose_old_self_was_disturbed_is_measured_again(place, old, again):
    kernel, source = place
    kernel("now", "a", "now")
    case = cases_of(GateRun(source), "a")[0]
    run = GateRun(source, before={case: kernel("old", "a", "then")})
    anchor = case.replace("/a", "/sdpa-flash")
    results = {
        case: result(case, measurement(slower=1.1)),
        anchor: result(anchor, measurement()),
        case + "@reference": result(case + "@reference", *old),
    }
    assert run._disturbed(case, results) is again
    assert run._disturbed(case, {**results, case: result(case, None, Verdict.INFRA)})
    assert not run._disturbed(anchor, results)
    run.__dict__["machine"] = None
    if again:
        found = run._of(results[case], results)
        assert (found.case, found.kind) == (None, "disturbed")
        assert "its old self was disturbed" in found.reason
