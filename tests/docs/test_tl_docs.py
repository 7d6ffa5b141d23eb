"""The pages on LLM-TL keep their word: programs are right, wrong examples give their code, tables are the code's."""

from __future__ import annotations

import re
from typing import Literal

import pytest
import torch

from harness.targets import find_target
from harness.tl import aliases, syntax
from harness.tl.check import Report, check
from harness.tl.checks.schedule import KEYS
from harness.tl.diagnostics import CODES, Severity
from harness.tl.interpret import interpret
from harness.tl.mutation_figures import Figures, markdown
from harness.tl.parse import parse
from harness.tl.problem import SIZES
from harness.tl_commands import task_in
from harness.tl_text import Source, findings_text, summary
from harness.verify.inputs import make_inputs
from harness.verify.tolerance import expect
from tasks import Task, discover
from tests.docs.pages import blocks, names, rows, text_of
from tests.docs.tl_examples import changed, examples, sections

DIAGNOSTICS, REFERENCE, LESSON = "docs/tl-diagnostics.md", "docs/tl-reference.md", "docs/tl.md"
TASKS = discover()
ENTRIES = sections(DIAGNOSTICS)


def said(report: Report) -> set[str]:
    """The codes of everything but notes."""
    return {f.code for f in report.findings if f.severity is not Severity.NOTE}


def checked(text: str, level: Literal["sketch", "code"] = "code") -> tuple[Task, Report]:
    task = TASKS[str(task_in(text, TASKS))]
    return task, check(text, task, level=level)


def test_every_code_has_its_entry_and_no_other() -> None:
    codes = {heading.split()[0]: heading for heading in ENTRIES if heading.startswith("TL")}
    assert codes == {code.code: f"{code.code} {code.title}" for code in CODES.values()}
    for code in CODES.values():
        entry = ENTRIES[codes[code.code]]
        assert entry.strip().startswith(code.severity.title()), code.code


@pytest.mark.parametrize("code", [c for c in CODES if c != "TL204"])
def test_the_wrong_example_gives_exactly_its_code_and_the_right_one_none(code: str) -> None:
    found = examples(ENTRIES[f"{code} {CODES[code].title}"])
    assert found
    for example in found:
        target = find_target(example.target) if example.target else None
        task = TASKS[example.task]
        wrong = check(example.wrong, task, target=target, dtype=example.dtype)
        right = check(example.right, task, target=target, dtype=example.dtype)
        assert said(right) == set()
        if CODES[code].severity is Severity.NOTE:
            assert code in {f.code for f in wrong.findings} and not said(wrong)
        else:
            assert said(wrong) == {code}, [f.message for f in wrong.findings]


@pytest.mark.parametrize("number", range(2))
def test_the_lessons_programs_are_right(number: int) -> None:
    text = blocks(LESSON, "tl")[number]
    task, report = checked(text)
    assert report.findings == () or not said(report)
    assert report.program is not None
    first = task.workloads["smoke"][0]
    workload = first.with_(heads=1, kv_heads=1, seq_q=70, seq_k=100)
    inputs = make_inputs(task, workload, "normal", 0, "cpu")
    outcome = interpret(report.program, task, workload, inputs)
    assert expect(task, workload, inputs).compare(outcome.outputs).passed
    assert outcome.outputs["out"].dtype is torch.float32


def test_the_lesson_shows_what_the_checker_says() -> None:
    text = blocks(LESSON, "tl")[0]
    broken = changed_text(text, " and rescale O", "")
    _, report = checked(broken)
    source = Source("first.tl", broken)
    shown = f"{findings_text(source, report.findings, False)}first.tl: {summary(report.findings, False)}\n"
    assert blocks(LESSON, "text") == [shown]


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("Copy V (BN, dim_v) in coordinate [L = j]", "Copy V (BN, dim_v) in coordinate [L = j + 1]", "TL209"),
        ("    Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new)\n", "", "TL401"),
    ],
)
def test_what_the_lesson_says_to_try_is_found(old: str, new: str, code: str) -> None:
    _, report = checked(changed_text(blocks(LESSON, "tl")[0], old, new))
    assert code in said(report)


def changed_text(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1
    return text.replace(old, new)


def test_the_sketch_is_right_as_a_sketch() -> None:
    (text,) = blocks(REFERENCE, "tl sketch")
    _, report = checked(text, "sketch")
    assert not said(report)


def test_every_statement_of_the_table_parses_to_one_of_its_kind() -> None:
    kinds = set()
    for written, meaning in rows(REFERENCE, "statement"):
        assert meaning
        (line,) = re.findall(r"`([^`]+)`", written)
        word = line.split()[0]
        program = parse(f"{line}\nend" if word in ("for", "if") else line)
        kernel = next(k for k in program.kernels if k.body or k.name)
        assert len(kernel.body) == (word != "Kernel"), line
        kinds |= {type(st) for st in kernel.body}
    assert kinds == set(syntax.Statement.__args__) - {syntax.Comment}


def test_the_tables_of_operations_functions_and_keys_are_the_codes() -> None:
    listed = [name for _, operations, _ in rows(REFERENCE, "kind") for name in names(operations)]
    assert sorted(listed) == sorted(aliases.OPERATIONS)
    functions = {f for written, meaning in rows(REFERENCE, "expression") if meaning == "element by element"
                 for name in names(written) for f in name.split()}  # fmt: skip
    known = {fn for fn, _ in aliases.ELEMENTWISE.values()} - {"add", "sub", "mul", "div", "neg"}
    assert functions == known | {"floor", "where"}
    assert {key for cell, _, _ in rows(REFERENCE, "key") for key in names(cell)} == set(KEYS)
    for key, takes, _ in rows(REFERENCE, "key"):
        assert KEYS[key.strip("`")][0].endswith(takes) or takes in KEYS[key.strip("`")][0], key


def test_symbols_and_their_aliases_are_the_codes() -> None:
    text = text_of(REFERENCE)
    assert all(f"`{size}`" in text for size in (*SIZES, "group", "scale"))
    sets = {
        "the length of the tensor that it sizes": aliases.LENGTHS,
        "the grid's index over rows": aliases.BLOCK_INDICES,
        "the grid's index over the batch": aliases.BATCH_INDICES,
        "the grid's index over heads": aliases.HEAD_INDICES,
        "`q`, the query's position": aliases.QUERY_POSITIONS,
        "`k`, the key's position": aliases.KEY_POSITIONS,
    }
    table = [row for row in rows(REFERENCE, "word") if not row[0].startswith("a single")]
    for written, meaning in table:
        for word in names(written):
            if meaning in sets:
                assert word.lower() in sets[meaning], word
            else:
                assert f"`{aliases.SYMBOLS[word.lower()]}`" == meaning, word
    assert {meaning.strip("`") for _, meaning in table} >= set(aliases.SYMBOLS.values()) - {"seq_q"}


def test_the_table_of_figures_has_the_columns_that_are_measured() -> None:
    head = markdown(Figures((), 0, ())).splitlines()[0]
    page = sections(REFERENCE)["How good the checker is"]
    marked = re.search(r"<!-- figures of the mutation test: begin -->(.*?)<!-- .*: end -->", page, re.DOTALL)
    assert marked is not None
    assert head in marked[1].splitlines()


def test_an_example_that_fits_nowhere_is_noticed() -> None:
    assert changed("Kernel a\nend\n", "-else\n+end\n") == "Kernel a\nelse\n"
    with pytest.raises(AssertionError, match="0 places"):
        changed("Kernel a\n", "+Kernel b\n-Kernel c\n")
