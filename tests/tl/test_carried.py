"""A compiled candidate carries its program, word for word, and who settled each key of each of its rows."""

from __future__ import annotations

import ast
import tomllib

import pytest

from harness.targets import find_target
from harness.tl import ir
from harness.tl.check import check
from harness.tl.corpus_index import corpus
from harness.tl.lower.backends import COMPILED, lower
from harness.tl.lower.carried import By, Searched, fixed
from harness.tl.lower.choices import Row
from harness.tl.lower.gluon import lower_gluon
from harness.tl.lower.lowered import Lowered
from harness.tl.lower.triton import lower_triton
from tasks import find

TASK = find("mha_causal")
TEXT = next(e.text for e in corpus("reference") if e.task == TASK.name)
HOPPER = find_target("h100")


def resolved(text: str = TEXT) -> ir.Program:
    program = check(text, TASK).program
    assert program is not None
    return program


def scheduled(line: str) -> ir.Program:
    """The reference program with this schedule in the place of its own."""
    lines = [x for x in TEXT.splitlines() if not x.lower().startswith("schedule")]
    at = next(n for n, x in enumerate(lines) if x.lower().startswith("tile"))
    return resolved("\n".join([*lines[: at + 1], f"Schedule {line}", *lines[at + 1 :]]) + "\n")


def hands(lowered: Lowered, file: str = "attention.py") -> list[dict[str, str]]:
    """Of each row, the key and who settled it, as the carried file says."""
    found = []
    for row in tomllib.loads(lowered.files["schedule.toml"])["rows"]:
        if row["file"] == file:
            by = dict.fromkeys(row["choice"], "compiler")
            for hand in ("program", "search", "given"):
                by |= dict.fromkeys(row.get(hand, []), hand)
            found.append(by)
    return found


@pytest.mark.parametrize("backend", COMPILED)
def test_the_program_is_carried_word_for_word_by_every_compiler(backend: str) -> None:
    text = f"# task: {TASK.name}, and a word of the author's\n{TEXT}"
    lowered = lower(resolved(text), TASK, backend, None if backend == "numba" else HOPPER)
    assert lowered.files["program.tl"] == text
    assert lower(resolved(text), TASK, backend).backend == lowered.backend


@pytest.mark.parametrize("backend", ["triton", "cuda", "gluon"])
def test_the_rows_carried_are_those_that_the_kernel_looks_up(backend: str) -> None:
    lowered = lower(resolved(), TASK, backend, HOPPER)
    files = {f: s for f, s in lowered.files.items() if f.endswith(".py")}
    carried = tomllib.loads(lowered.files["schedule.toml"])["rows"]
    for file, source in files.items():
        (table,) = (
            node.value for node in ast.parse(source).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CHOICES"
        )  # fmt: skip
        assert isinstance(table, ast.Tuple)
        looked_up = []
        for row in table.elts:
            assert isinstance(row, ast.Tuple) and isinstance(row.elts[-1], ast.Call)
            *key, choice = row.elts
            made = {k.arg: ast.literal_eval(k.value) for k in choice.keywords}
            looked_up.append(([ast.literal_eval(n) for n in key][-2:], made))
        assert [([r["dim"], r["seq"]], r["choice"]) for r in carried if r["file"] == file] == looked_up


def test_a_key_to_which_the_program_leaves_one_value_is_the_programs() -> None:
    one = lower_gluon(scheduled("producer, consumers 2, stages in {2, 3}, order longest_first"), TASK)
    for by in hands(one):
        assert by["consumers"] == by["longest_first"] == "program"
        assert by["BM"] == "program", "rows follow from the consumers"
        assert by["stages"] == by["BN"] == by["heads"] == "compiler"
    assert {by["BN"] for by in hands(one, "fallback.py")} == {"compiler"}


def test_what_the_compiler_overrules_is_not_the_programs() -> None:
    """Turns need two consumers."""
    program = scheduled("producer, consumers 1, pingpong true")
    assert fixed(program)["pingpong"] == 1
    rows = tomllib.loads(lower_gluon(program, TASK).files["schedule.toml"])["rows"]
    for row, by in zip(rows, hands(lower_gluon(program, TASK)), strict=False):
        assert row["choice"]["pingpong"] == 0 and by["pingpong"] == "compiler"


def test_what_the_caller_gives_is_told_apart() -> None:
    (by,) = hands(lower_triton(resolved(), TASK, HOPPER, None, {"BM": 64}))
    assert by["BM"] == "given" and by["BN"] == "compiler"


def test_a_table_that_a_search_gave_says_which_keys_it_varied() -> None:
    row = Row.of(2, 128, 512, {"BM": 128, "BN": 64, "warps": 8, "stages": 2, "overlap": 0})
    lowered = lower_triton(resolved(), TASK, HOPPER, [row])
    took = Searched('a "cell"', 128, 512, 54, 57, 1.25, "a GPU")
    told = lowered.with_carried(lowered.carried.after([took], lambda _: {"BN", "warps"}))
    (by,) = hands(told)
    assert [k for k, hand in by.items() if hand == By.SEARCH] == ["BN", "warps"]
    assert {by["BM"], by["stages"], by["overlap"]} == {"compiler"}
    (search,) = tomllib.loads(told.files["schedule.toml"])["searches"]
    assert search == {
        "cell": "a \"cell\"", "dim": 128, "seq": 512, "size": 54, "timings": 57, "seconds": 1.25,
        "device": "a GPU",
    }  # fmt: skip
    assert told.files["attention.py"] == lowered.files["attention.py"]


def test_a_program_of_which_no_text_is_known_carries_its_table_only() -> None:
    from harness.tl.parse import parse
    from harness.tl.resolve import resolve

    files = lower_triton(resolve(parse(TEXT), TASK), TASK, HOPPER).files
    assert "program.tl" not in files and "schedule.toml" in files
