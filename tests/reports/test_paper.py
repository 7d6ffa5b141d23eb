"""Each claim of the paper stands beside what was measured here, or beside the reason why nothing was."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.verdicts import Verdict
from reports.dataset import load_run
from reports.generated import Generated
from reports.paper import CLAIMS, Answers, answers
from tests.reports.synthetic_trials import PLAN, Plan, generation_run


def answered(folder: Path, plan: Plan = PLAN) -> dict[str, Answers]:
    of = Generated(load_run(generation_run(folder / "run", plan)))
    return {claim.slug: found for claim, found in answers(of)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answers]:
    return answered(tmp_path_factory.mktemp("runs"))


def test_every_claim_is_answered_by_a_figure_or_a_reason(found: dict[str, Answers]) -> None:
    assert list(found) == [c.slug for c in CLAIMS]
    for several in found.values():
        assert several
        assert all(bool(a.measured) != bool(a.why_not) for a in several)


def test_the_speedup_over_vanilla_names_its_three_variants(found: dict[str, Answers]) -> None:
    tl = next(a for a in found["vanilla"] if a.subject == "tl, claude over vanilla, claude")
    assert "best of samples up to 2.308x" in tl.measured
    assert "failures counted up to 11.200x" in tl.measured
    assert tl.row is not None and tl.row.result.candidate.method == "tl"


def test_libraries_are_counted_cell_by_cell_and_absent_ones_not(tmp_path: Path) -> None:
    plan: Plan = {("mha", "tl"): [(450, 600)], ("mla", "tl"): [Verdict.CRASH]}
    found = answered(tmp_path, plan)["libraries"]
    assert [a.subject for a in found] == ["over cudnn", "over flash-attn-4"]
    assert found[0].measured.startswith("ahead beyond noise in 2 of 4 cells")
    assert found[1].measured.startswith("ahead beyond noise in 1 of 4 cells")


def test_mla_is_compared_with_cudnn(found: dict[str, Answers]) -> None:
    (mla,) = found["mla"]
    assert "1.400" in mla.measured and "2 of 2 cells" in mla.measured  # 560 over 400


def test_what_this_run_cannot_say_has_its_reason(found: dict[str, Answers], tmp_path: Path) -> None:
    assert "h100" in found["turing"][0].why_not
    assert "no fp8 workload" in found["fp8"][0].why_not
    lean = answered(tmp_path, {("mha", "vanilla"): [(250, 250)]})
    assert "no MLA task" in lean["mla"][0].why_not
    assert all(a.why_not for several in lean.values() for a in several)


def test_the_sketch_claim_counts_both_kinds_of_failure(found: dict[str, Answers]) -> None:
    one, tl = found["sketch"]
    assert one.subject == "tl-one-stage, claude" and "wrong 2 times" in one.measured
    assert tl.subject == "tl, claude" and "wrong 0 times" in tl.measured


def test_minutes_are_medians_with_how_many_came_to_a_kernel(found: dict[str, Answers]) -> None:
    tl = next(a for a in found["minutes"] if a.subject == "tl, claude")
    assert tl.measured.startswith("0.8 min") and "4 of 6 trials" in tl.measured
