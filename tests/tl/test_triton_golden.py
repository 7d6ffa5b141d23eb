"""Claims about the text of compiled Triton kernels: it is the golden one; its layout changes no meaning."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.targets import find_target
from harness.tl.corpus_index import corpus
from harness.tl.lower.python_layout import WIDTH, expression, statement
from harness.tl.lower.triton import lower_triton
from tests.tl.triton_trial import program, program_of

GOLDEN = Path(__file__).parent / "golden"
REWRITE = "UPDATE_GOLDEN=1 python -m pytest tests/tl/test_triton_golden.py"

NAMES = st.sampled_from(
    ["S", "q_src", "seq_k", "(a_name_that_takes_room + 1)", "(-window)", "1", "0.5", "(S)"]
)
EXPRESSIONS = st.recursive(
    NAMES,
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "//", "%", "<=", "&"]), inner),
        st.builds("tl.where({}, {}, other={})".format, inner, inner, inner),
        st.builds("({}).to(OPERAND)".format, inner),
        st.builds("({})[:, None]".format, inner),
    ),
    max_leaves=30,
)


@pytest.mark.parametrize("task", ["mha_causal", "sliding_window"])
def test_the_generated_source_is_the_golden_one(task: str) -> None:
    variant, prog = program("reference", task)
    written = lower_triton(prog, variant, find_target("h100")).files["attention.py"]
    golden = GOLDEN / f"{task}_triton.py.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(written, encoding="utf-8")
    assert written == golden.read_text(encoding="utf-8"), f"if that is meant: {REWRITE}"


@pytest.mark.parametrize("style", ["reference", "primitive", "lenient"])
def test_no_line_is_too_long(style: str) -> None:
    for entry in corpus(style):
        task, prog = program_of(entry)
        source = lower_triton(prog, task, find_target("h100")).files["attention.py"]
        assert [line for line in source.splitlines() if len(line) > WIDTH] == [], entry.name


@given(EXPRESSIONS, st.integers(0, 5))
def test_the_layout_keeps_the_meaning(code: str, depth: int) -> None:
    for whole in (
        f"target = {code}",
        f"tl.store(out_dst, {code})",
        f"m, l = {code}, 0",
        f"S = {code}  # why",
    ):
        lines = "".join(f"{'if b:':>{4 * n + 5}}\n" for n in range(depth)) + "\n".join(
            statement(whole, depth)
        )
        node: ast.AST = ast.parse(lines)
        while not isinstance(node, ast.Assign | ast.Expr):
            node = node.body[0]  # type: ignore[attr-defined]
        assert ast.dump(node) == ast.dump(ast.parse(whole).body[0])
    assert ast.dump(ast.parse(expression(code))) == ast.dump(ast.parse(code))
    (head,) = statement(f"if {code}:", depth)
    assert ast.dump(ast.parse(f"{head.strip()} pass")) == ast.dump(ast.parse(f"if {code}: pass"))


def test_a_long_comment_keeps_its_words() -> None:
    text = f"# for j = 0 : min({' + '.join(['seq_k'] * 30)})  (rounds that need no mask apart)"
    lines = statement(text, 2)
    assert all(len(line) <= WIDTH and line.startswith("        #") for line in lines)
    assert " ".join(line.strip().lstrip("# ") for line in lines) == text.lstrip("# ").replace("  ", " ")
