"""The page on the paper says what the published runs say: each figure in it is computed again from the records."""

from __future__ import annotations

import re
from functools import cache

import pytest

from harness.experiment import SHIPPED
from harness.generate.methods import METHODS
from reports import load_run
from reports.generated import Generated
from reports.paper import CLAIMS, answers
from tasks import DTYPES
from tests.docs.pages import ROOT, names, plain, rows, text_of

PAGE = "docs/reproduce-the-paper.md"
PUBLISHED = ROOT / "reports" / "published"
TRITON, CUDA = "h100-2026-11-25-generation", "h100-2026-11-25-cuda-generation"
ROWS = dict(zip((c.slug for c in CLAIMS), rows(PAGE, "claim of the paper"), strict=True))


@cache
def measured(run: str, slug: str) -> dict[str, str]:
    """What a published run says of a claim, by whom it says it of; without a subject: why it does not."""
    found = next(a for claim, a in answers(Generated(load_run(PUBLISHED / run))) if claim.slug == slug)
    return {a.subject: a.measured or a.why_not for a in found}


def part(text: str, begin: str, end: str = "") -> str:
    """What stands between two words of a cell."""
    after = text.partition(begin)[2]
    return after.partition(end)[0] if end else after


@pytest.mark.parametrize(("run", "where"), [(TRITON, ("[Triton]", "[CUDA]")), (CUDA, ("[CUDA]", ""))])
def test_the_figures_over_vanilla_are_the_records(run: str, where: tuple[str, str]) -> None:
    told = part(ROWS["vanilla"][2], *where)
    found = re.findall(r"`([\w-]+)` geomean ([\d.]+x), up to ([\d.]+x)", told)
    assert len(found) == 2
    cells = re.search(r"\((\d+ cells)\)", told)
    for method, geomean, top in found:
        said = measured(run, "vanilla")[f"{method}, claude over vanilla, claude"]
        assert cells and f"best of samples up to {top}, geomean {geomean} ({cells[1]});" in said


@pytest.mark.parametrize(("run", "where"), [(TRITON, ("Triton:", "CUDA:")), (CUDA, ("CUDA:", ""))])
def test_the_cells_ahead_of_libraries_are_the_records(run: str, where: tuple[str, str]) -> None:
    told = part(ROWS["libraries"][2], *where)
    for library, name in (("cuDNN", "over cudnn"), ("flash-attn 4", "over flash-attn-4")):
        count = re.search(rf"of {library} in (\d+ of \d+)", told)
        assert count and f"ahead beyond noise in {count[1]} cells" in measured(run, "libraries")[name]


def test_mla_sketch_and_minutes_are_the_records() -> None:
    mla = measured(TRITON, "mla")["over cudnn"]
    top, mean = re.findall(r"[\d.]+x", ROWS["mla"][2])
    assert f"up to {top} [" in mla and f"geomean {mean} over 5 of 5 cells" in mla
    sketch = measured(TRITON, "sketch")
    for count, who in zip(
        re.findall(r"0 times in (\d+)", ROWS["sketch"][2]), ("tl-one-stage", "tl"), strict=True
    ):
        assert f" {count} programs or sketches examined" in sketch[f"{who}, claude"]
        assert sketch[f"{who}, claude"].count("0 times") == 2
    for minutes, method in re.findall(r"([\d.]+) min \(`([\w-]+)`\)", ROWS["minutes"][2]):
        assert measured(TRITON, "minutes")[f"{method}, claude"].startswith(f"{minutes} min")


def test_what_was_not_measured_is_said_so_by_the_runs_too() -> None:
    for run in (TRITON, CUDA):
        assert "not a Turing GPU" in measured(run, "turing")["-"]
        assert "no fp8 workload" in measured(run, "fp8")["-"]
    proven = (PUBLISHED / "h100-2026-11-25-proves-t4" / "results.jsonl").read_text()
    count = proven.count('"verdict":"proven"')
    assert count == len(proven.splitlines())
    assert f"Numerics of {count} results" in ROWS["turing"][2]
    *most, last = DTYPES
    assert f"The dtypes are {', '.join(most)} and {last}" in text_of(PAGE)


def test_every_method_and_experiment_that_it_names_is_there() -> None:
    told = [plain(cell) for row in rows(PAGE, "in the paper") for cell in row]
    assert any("asking the model directly" in cell for cell in told)
    named = {name for row in rows(PAGE, "in the paper") for name in names(row[1])}
    assert set(METHODS) <= named
    assert {"a100", "rtx8000", "t4", "l40s", "h100", "h200"} <= named & {
        p.stem for p in SHIPPED.glob("*.toml")
    }
