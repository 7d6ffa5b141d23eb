"""Samples of one method and model stand together, the best of each cell; other runs look as before."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.verdicts import Verdict
from reports.dataset import Dataset, load_run
from reports.figures import headlines
from reports.funnel import funnel
from reports.samples import METHODS, best_of_samples, by_maker, makers, makers_names
from tests.reports import synthetic
from tests.reports.synthetic_trials import PLAN, generation_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_run(generation_run(tmp_path_factory.mktemp("runs") / "run"))


def test_a_run_without_generated_kernels_is_its_own_view(tmp_path: Path) -> None:
    data = load_run(synthetic.h100_run(tmp_path / "run"))
    assert best_of_samples(data) is data
    assert by_maker(data) is data


def test_one_contender_for_each_method_and_model_in_the_order_of_methods(data: Dataset) -> None:
    labels = [c.label for c in best_of_samples(data).candidates]
    assert labels == [f"{m}, claude (best of 3)" for m in METHODS if any(m == n for _, n in PLAN)]
    assert len(data.candidates) == 12
    assert [m.method for m in makers(data)] == ["vanilla", "tl-one-stage", "tl", "tl-compiled"]


def test_of_each_cell_the_fastest_sample_stays_with_its_own_record(data: Dataset) -> None:
    short, long = best_of_samples(data).cells_of("h100", "mha_causal")
    shown = [c.row("tl, claude (best of 3)") for c in (short, long)]
    assert [r.result.candidate.sample for r in shown if r] == [0, 0]
    assert [r.measured.tflops for r in shown if r and r.measured] == [510, 600]
    originals = {r.line: r.result for r in data.rows}
    assert all(r is not None and originals[r.line] is r.result for r in shown)


def test_where_none_was_measured_the_one_that_came_furthest_speaks(data: Dataset) -> None:
    cell = best_of_samples(data).cells_of("h100", "mla_prefill")[0]
    row = cell.row("vanilla, claude (best of 3)")
    assert row is not None
    assert row.result.verdict is Verdict.WRONG_NUMERICS  # it ran; the other did not build
    assert row.result.candidate.sample == 1


def test_infra_speaks_for_a_method_only_where_nothing_else_does(tmp_path: Path) -> None:
    plan = {
        ("mha", "vanilla"): [Verdict.INFRA, Verdict.NO_CODE],
        ("mha", "tl"): [Verdict.INFRA, Verdict.INFRA],
    }
    view = best_of_samples(load_run(generation_run(tmp_path / "run", plan)))
    verdicts = {r.contender: r.result.verdict for r in view.cells[0].candidates}
    assert verdicts == {
        "vanilla, claude (best of 2)": Verdict.NO_CODE,
        "tl, claude (best of 2)": Verdict.INFRA,
    }


def test_the_headline_is_one_a_method_and_says_out_of_how_many(data: Dataset) -> None:
    overall = {h.candidate: h for h in headlines(best_of_samples(data)) if h.scope == "overall"}
    assert len(overall) == 4
    tl = overall["tl, claude (best of 3)"]
    assert tl.geomean is not None
    assert tl.geomean.median == pytest.approx((1.02 * 1.2 * 1.12 * 1.12) ** 0.25)
    assert (tl.measured, tl.cells) == (4, 4)


def test_the_label_names_the_number_of_samples_only_where_there_are_several(tmp_path: Path) -> None:
    plan = {("mha", "vanilla"): [(260, 260)], ("mha", "tl"): [(260, 260)] * 2, ("mla", "tl"): [(260, 260)]}
    view = best_of_samples(load_run(generation_run(tmp_path / "run", plan)))
    assert [c.label for c in view.candidates] == ["vanilla, claude", "tl, claude (best of up to 2)"]


def test_models_are_told_apart(tmp_path: Path) -> None:
    data = load_run(generation_run(tmp_path / "run", models=("claude", "other")))
    names = list(makers_names(data).values())
    assert len(names) == len(set(names)) == 8
    assert names[:2] == ["vanilla, claude", "tl-one-stage, claude"]


def test_by_maker_keeps_every_row(data: Dataset) -> None:
    view = by_maker(data)
    assert sorted(r.line for r in view.rows) == sorted(r.line for r in data.rows)
    counted = {f.contender.label: f.trials for f in funnel(view, "candidate")}
    assert counted == {
        "vanilla, claude": 12,
        "tl-one-stage, claude": 6,
        "tl, claude": 10,  # two results of the spoilt trial are in no rate
        "tl-compiled, claude": 12,
    }


def test_tasks_keep_their_order_in_the_view(data: Dataset) -> None:
    assert best_of_samples(data).groups == data.groups == by_maker(data).groups
