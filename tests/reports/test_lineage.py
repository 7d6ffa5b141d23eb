"""A kernel's page and its report say which program it came from, who settled its choices, and what a search took."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import load_run
from reports.dataset import Dataset
from reports.lineage import PROGRAM, Lineage, kernel_files, lineage
from reports.markdown import section_parts
from reports.schedule_section import schedules_section
from reports.schedules import SCHEDULE, By, Schedule, schedule_of
from reports.site.kernels import Kernel, kernels
from reports.site.tables import choice_tables, legend
from tests.reports import synthetic, synthetic_programs
from tests.reports.synthetic_programs import OWN_LINE, SKETCH, TEXT, scheduled


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_run(synthetic_programs.run(tmp_path_factory.mktemp("runs") / "programs"))


@pytest.fixture(scope="module")
def origins(dataset: Dataset) -> dict[str, Lineage]:
    found = {}
    for c in dataset.candidates:
        rows = [(dataset, r) for r in dataset.rows if r.contender == c.label]
        origin = lineage(rows, kernel_files(rows))
        assert origin is not None
        found[c.label] = origin
    return found


@pytest.fixture(scope="module")
def pages(dataset: Dataset) -> dict[str, Kernel]:
    return {k.contender.label: k for k in kernels([dataset])}


def schedule(origin: Lineage) -> Schedule:
    assert origin.schedule is not None
    return origin.schedule


def hands(found: Schedule, file: str = "attention.py") -> dict[str, set[By]]:
    by: dict[str, set[By]] = {}
    for choice in found.choices:
        for key, value in choice.keys.items() if choice.file == file else ():
            by.setdefault(key, set()).add(value.by)
    return by


def test_a_kernel_that_carries_its_program_shows_that_text(origins: dict[str, Lineage]) -> None:
    assert origins["reference"].program == origins["tuned"].program == TEXT
    assert origins["reference"].file == PROGRAM
    assert "without a model" in origins["reference"].told
    assert "did not compile it itself" in origins["tuned"].told, "a folder's word is told as one"


def test_a_models_program_is_the_last_before_its_kernel_and_its_sketch_stands_beside(
    origins: dict[str, Lineage],
) -> None:
    for name in ("own-schedule", "search", "translated"):
        assert origins[name].program == scheduled() and origins[name].sketch == SKETCH
        assert origins[name].line == OWN_LINE
    assert "no model wrote the source" in origins["search"].told
    assert "translation" in origins["translated"].told and origins["translated"].schedule is None


def test_each_key_says_who_settled_it(origins: dict[str, Lineage]) -> None:
    own = hands(schedule(origins["own-schedule"]))
    for key in ("consumers", "overlap", "pingpong", "persistent", "BM"):
        assert own[key] == {By.PROGRAM}, key
    assert own["stages"] == own["BN"] == own["heads"] == {By.COMPILER}
    tuned = hands(schedule(origins["tuned"]))
    assert tuned["heads"] == tuned["BN"] == {By.SEARCH} and tuned["registers"] == {By.COMPILER}
    assert set().union(*hands(schedule(origins["tuned"]), "fallback.py").values()) == {By.COMPILER}
    both = hands(schedule(origins["search"]))
    assert both["consumers"] == {By.PROGRAM} and both["heads"] == {By.SEARCH}


def test_a_kernel_of_before_shows_its_table_and_says_what_is_not_recorded(
    origins: dict[str, Lineage], pages: dict[str, Kernel]
) -> None:
    before = origins["before"]
    assert before.program == "" and "did not record the program" in before.told
    found = schedule(before)
    assert not found.recorded and found.hands() == (By.UNKNOWN,)
    assert [(c.dim, c.seq) for c in found.choices] == [(64, 0), (128, 0), (192, 0), (256, 0)]
    assert "not recorded" in legend(found)
    (table,) = pages["before"].tables
    assert not table.typed and not table.searched


def test_a_table_that_was_edited_later_is_shown_as_it_is_and_not_ascribed(
    origins: dict[str, Lineage],
) -> None:
    files = dict(synthetic_programs.kernels()["tuned"].files)
    files["attention.py"] = files["attention.py"].replace("heads=16", "heads=8")
    found = schedule_of(files)
    assert found is not None and "edited" in found.problem
    changed = [c.keys["heads"] for c in found.choices if c.file == "attention.py" and c.seq == 512]
    assert {(v.value, v.by) for v in changed} == {(8, By.UNKNOWN)}
    assert schedule(origins["tuned"]).problem == ""


def test_what_a_models_own_source_says_of_a_program_is_no_record(dataset: Dataset) -> None:
    row = next(r for r in dataset.rows if r.contender == "translated")
    claims = {"attention.py": '"""x, compiled from the LLM-TL program `y`."""\n', PROGRAM: "Kernel forged\n"}
    origin = lineage([(dataset, row)], claims)
    assert origin is not None and origin.schedule is None and origin.program == scheduled()


def test_other_kernels_have_no_lineage(tmp_path: Path) -> None:
    plain = load_run(synthetic.tiny_run(tmp_path / "tiny"))
    assert all(k.lineage is None and not k.tables for k in kernels([plain]))
    assert schedules_section(plain) is None


@given(st.text(max_size=200), st.text(max_size=200))
def test_no_file_of_a_candidate_stops_the_page(source: str, record: str) -> None:
    found = schedule_of({"attention.py": f"# compiled from the LLM-TL program\n{source}", SCHEDULE: record})
    assert found is not None


@pytest.mark.parametrize(
    ("record", "said"),
    [("version = 2", "has version 2"), ("version = 'x'", "cannot be read"), ("[[", "cannot be read"),
     ("version = 1\n[[rows]]\nfile = 3", "cannot be read")],
)  # fmt: skip
def test_a_record_that_cannot_be_read_is_named(record: str, said: str) -> None:
    found = schedule_of({"attention.py": "", SCHEDULE: record})
    assert found is not None and not found.recorded and said in found.problem


@pytest.mark.parametrize(
    "table",
    ["CHOICES = ((2, 64, 0, Choice(BM=f())),)", "CHOICES = (1, 2)", "CHOICES = ((64, Choice(BM=1)),)",
     "CHOICES = " + "(" * 300 + ")" * 300, "CHOICES = ((2, 'x', 0, Choice(BM=1)),)", "CHOICES = \0"],
)  # fmt: skip
def test_a_table_that_is_none_is_not_shown(table: str) -> None:
    found = schedule_of({"attention.py": f'"""compiled from the LLM-TL program `x`."""\n{table}'})
    assert found is not None and found.choices == ()


def test_what_all_rows_share_stands_once(pages: dict[str, Kernel]) -> None:
    own, fallback = pages["tuned"].tables
    assert (own.file, fallback.file) == ("attention.py", "fallback.py")
    assert own.columns == ("BN", "heads")
    assert {s.key: (s.value, s.mark) for s in own.shared}["BM"] == ("128", "S")
    assert len(own.lines) == 8 and {line.lengths for line in own.lines} == {
        "from 512", "from 1k", "from 4k", "from 16k",
    }  # fmt: skip
    assert all(line.search == "46 of 288, 12.5 s" for line in own.lines)
    assert own.searched and not fallback.searched


def test_a_table_of_one_row_keeps_all_its_columns() -> None:
    record = (
        'version = 1\n[[rows]]\nfile = "attention.py"\nbytes = 4\ndim = 1024\nseq = 0\nchoice = { BM = 64 }\n'
    )
    found = schedule_of({"attention.py": "BM = 64\n", SCHEDULE: record})
    assert found is not None
    (table,) = choice_tables(found)
    (line,) = table.lines
    assert table.columns == ("BM",) and (line.dtypes, line.dims, line.lengths) == ("fp32", "any", "any")


def test_the_report_states_one_budget_a_cell(dataset: Dataset) -> None:
    section = schedules_section(dataset)
    assert section is not None
    kernels, cells = section.tables
    assert len(kernels.lines) == 5, "the translated kernel is not compiled"
    told = [[entry.text for entry in line] for line in cells.lines]
    assert len(told) == 16 and {line[0] for line in told} == {"tuned", "search"}
    assert told[0][1:6] == ["b32-h16-n512-d64-fp16", "288", "46", "16 %", "12.5 s"]
    assert "heads=16" in told[0][6] and "consumers" not in told[-1][6], "the program settled those"
    text = "\n".join(section_parts(section, {}))
    assert (
        "5 compiled kernels, 2 with choices from searches of 16 cells, 1 of which it is not recorded" in text
    )
