"""The parser reads what people and models write, finds every syntax error, and the formatter loses nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import harness.tl
from harness.tl import syntax as s
from harness.tl.diagnostics import TLError
from harness.tl.format import format_expr, format_program
from harness.tl.parse import Text, parse, parse_leniently

CORPUS = Path(harness.tl.__file__).with_name("corpus")
PROGRAMS = {str(p.relative_to(CORPUS)): p for p in sorted(CORPUS.glob("*/*.tl"))}
CANONICAL = {n: p for n, p in PROGRAMS.items() if n.startswith(("reference", "primitive"))}

# --- programs made at random ------------------------------------------------------------------------


def _split(text: str) -> list[str]:
    return text.split()


_RESERVED = _split(
    "kernel let tile grid alloc allocate copy compute reshape for if then else end endfor endif schedule in "
    "from to with offset init initial initialized initialised workspace coordinate coordinates pad via where "
    "step new get and or not accumulate rescale global gmem shared smem register registers reg rmem mem memory "
    "file range while"
)
idents = st.one_of(
    st.sampled_from(_split("Q K V O S m l i j BM BN seq_q seq_k m' alpha ends format T andy In0")),
    st.from_regex(r"[A-Za-z_][A-Za-z_0-9]{0,5}'?", fullmatch=True),
).filter(lambda name: name.rstrip("'").lower() not in _RESERVED)
words = idents.filter(lambda name: "'" not in name).map(str.lower)
numbers = st.one_of(
    st.integers(0, 10**9),
    st.floats(0, 1e30, allow_nan=False, allow_infinity=False).map(float),
    st.sampled_from([0, 1, 1.0, 1e-7, 1e16, 1.4426950408889634]),
).map(lambda value: s.Num(abs(value)))


def _larger(x: st.SearchStrategy[s.Expr]) -> st.SearchStrategy[s.Expr]:
    slices = st.builds(s.Slice, st.none() | x, st.none() | x)
    chain = st.lists(st.tuples(st.sampled_from(_split("< <= > >= == !=")), x), min_size=1, max_size=2)
    return st.one_of(
        st.builds(s.Unary, st.sampled_from(["-", "not"]), x),
        st.builds(s.Binary, st.sampled_from(_split("+ - * / // % ** @ and or")), x, x),
        st.builds(s.Binary, st.just("//"), x, x),
        st.builds(
            lambda first, rest: s.Compare(tuple(op for op, _ in rest), (first, *(e for _, e in rest))),
            x,
            chain,
        ),
        st.builds(s.Call, idents, st.lists(x, min_size=1, max_size=3).map(tuple)),
        st.builds(s.Index, x, st.lists(x | slices, min_size=1, max_size=2).map(tuple)),
        st.builds(s.Transpose, x),
    )


exprs: st.SearchStrategy[s.Expr] = st.recursive(st.builds(s.Name, idents) | numbers, _larger, max_leaves=6)
optional = st.none() | exprs
shapes = st.lists(exprs, min_size=1, max_size=3).map(tuple)
levels = st.sampled_from(s.Level)
choices = st.lists(st.integers(0, 4096), min_size=1, max_size=3).map(tuple)
gets = st.lists(st.builds(s.Get, idents, st.booleans()), max_size=2).map(tuple)
values = st.one_of(
    st.just(("true",)),
    st.lists(st.integers(0, 512) | words, min_size=1, max_size=3).map(tuple),
)
texts = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "Zs")), max_size=12).map(
    lambda text: text.lstrip("#/ ").rstrip()
)


def _pairs(key: st.SearchStrategy[str], value: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.lists(st.tuples(key, value), min_size=1, max_size=2).map(tuple)


def _compute(**given_: object) -> s.Compute:
    return s.Compute(**given_)  # type: ignore[arg-type]


simple = st.one_of(
    st.builds(s.Let, idents, exprs),
    st.builds(s.Tile, _pairs(idents, choices)),
    st.builds(s.Grid, _pairs(idents, exprs)),
    st.builds(
        s.Allocate,
        idents,
        levels,
        st.just(()) | shapes,
        st.none() | words,
        st.just(()) | shapes,
        optional,
        st.booleans(),
    ),
    st.builds(
        s.Copy,
        idents,
        levels,
        levels,
        st.just(()) | shapes,
        st.just(()) | _pairs(idents, exprs),
        optional,
        st.none() | idents,
    ),
    st.builds(
        _compute,
        op=st.just("Assign") | idents.filter(lambda name: "'" not in name),
        operands=st.lists(exprs, max_size=3).map(tuple),
        get=gets,
        accumulate=st.none() | idents,
        rescale=st.lists(idents, max_size=2).map(tuple),
        where=optional,
        to=st.none() | words,
    ),
    st.builds(s.Infix, idents, exprs, st.sampled_from(["=", "+=", "-=", "*=", "/="])),
    st.builds(s.Reshape, idents, shapes, shapes),
    st.builds(s.Schedule, _pairs(words, values)),
)


@st.composite
def bodies(draw: st.DrawFn, depth: int = 2, opened: bool = True) -> tuple[s.Statement, ...]:
    """Statements with comments between them; one that is inline has a line to stand on (`opened`)."""
    body: list[s.Statement] = []
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["simple", "simple", "comment", "for", "if"][: 5 if depth else 3]))
        if kind == "simple":
            body.append(draw(simple))
        elif kind == "comment":
            free = not isinstance(body[-1], s.Comment) if body else opened
            body.append(s.Comment(draw(texts), inline=free and draw(st.booleans())))
        elif kind == "for":
            inner = draw(bodies(depth - 1))
            body.append(s.For(draw(idents), draw(exprs), draw(exprs), inner, draw(optional)))
        else:
            then, otherwise = draw(bodies(depth - 1)), draw(st.just(()) | bodies(depth - 1))
            body.append(s.If(draw(exprs), then, otherwise))
    return tuple(body)


@st.composite
def programs(draw: st.DrawFn) -> s.Program:
    names = draw(st.lists(idents, max_size=2))
    if not names:
        return s.Program((s.Kernel(None, draw(bodies(opened=False))),))
    return s.Program(tuple(s.Kernel(name, draw(bodies())) for name in names))


@given(programs())
@settings(max_examples=200, deadline=None)
def test_what_is_formatted_reads_as_it_was(program: s.Program) -> None:
    text = format_program(program)
    assert parse(text) == program
    assert format_program(parse(text)) == text


@given(exprs)
@settings(max_examples=200, deadline=None)
def test_an_expression_keeps_its_meaning_in_every_place(expr: s.Expr) -> None:
    inner = s.Compute("Exp", (expr, expr), where=expr)
    body = (s.Let("x", expr), inner, s.For("j", expr, expr, (), expr), s.If(expr, ()), s.Infix("x", expr))
    program = s.Program((s.Kernel(None, body),))
    assert parse(format_program(program)) == program


@given(st.text(st.sampled_from("forifenend ()[]{}:=,+-*/\\^#'\n\tCopyGEMM0.1é\x01\x02\x0b\r"), max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_read_or_refused_with_its_place(text: str) -> None:
    _, findings = parse_leniently(text)
    last = text.count("\n") + 2
    assert all(1 <= f.pos.line <= last and f.pos.column >= 1 and f.message for f in findings)


# --- the corpus -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PROGRAMS.values(), ids=PROGRAMS)
def test_corpus_program_survives_the_formatter(path: Path) -> None:
    program = parse(path.read_text())
    text = format_program(program)
    assert parse(text) == program
    assert format_program(parse(text)) == text


@pytest.mark.parametrize("path", CANONICAL.values(), ids=CANONICAL)
def test_our_own_programs_are_canonical(path: Path) -> None:
    assert format_program(parse(path.read_text())) == path.read_text()


@pytest.mark.parametrize(
    "path", [p for n, p in PROGRAMS.items() if n.startswith("lenient")], ids=lambda p: p.stem
)
def test_a_lenient_program_says_its_task_and_its_habit(path: Path) -> None:
    task, habit = path.read_text().splitlines()[:2]
    assert task.startswith("# task: ") and habit.startswith("# ") and len(habit) > 10


def test_parsing_is_quick() -> None:
    texts = [p.read_text() for p in CANONICAL.values()]
    parse(texts[0])
    start = time.perf_counter()
    for text in texts:
        parse(text)
    assert (time.perf_counter() - start) / len(texts) < 0.05  # 4 ms on one core


# --- what is read -----------------------------------------------------------------------------------


def body(text: str) -> tuple[s.Statement, ...]:
    (kernel,) = parse(text).kernels
    return kernel.body


def same(a: str, b: str) -> bool:
    return body(a) == body(b)


LOOP = "for j = 0 : n\n    Compute Exp S\nend\n"


@pytest.mark.parametrize(
    "text",
    [
        "FOR j = 0 : n\nCOMPUTE Exp S\nEND",
        "for j in 0:n\nCompute Exp S\nend for",
        "for j = 0 : n:\n  Compute Exp S\nendfor",
        "For j = 0 to n\n\tcompute Exp S;\nEnd For;",
        "for j in range(n):\r\n    Compute Exp S\r\nend\r\n",
        "for j in range(0, n)\n\n\n  Compute Exp S  \n\n  end",
        "\ufefffor j = n\nCompute Exp S\nend",
    ],
)
def test_a_loop_may_be_written_in_many_ways(text: str) -> None:
    assert same(text, LOOP)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("Compute GEMM(Q, K.T) and get S", "Compute GEMM Q, K^T and get S"),
        ("Compute GEMM Q, K^{T} get S", "Compute GEMM Q, K^T and get S"),
        ("Compute GEMM Q, K.transpose() and get S", "Compute GEMM Q, K^T and get S"),
        ("Compute GEMM S, V and accumulate into O", "Compute GEMM S, V and accumulate O"),
        ("Compute Assign a and get b", "Copy a and get b"),
        ("Compute Mask S where k ≤ q && !(k < 0)", "Compute Mask S where k <= q and not k < 0"),
        ("copy X FROM gmem TO smem memory", "Copy X from global to shared"),
        (
            "Copy X from global to shared in coordinate (L = i)",
            "Copy X in coordinate [L = i] from global to shared",
        ),
        ("Allocate m in registers (BM,) initialized to -inf", "Allocate m in register (BM) init -inf"),
        ("Allocate K in global memory (N, D) offset = x", "Allocate K in global (N, D) with offset x"),
        ("Tile BM in {64}, BN=32", "Tile BM = 64, BN = 32"),
        ("Schedule Warps=8, persistent", "Schedule warps 8, persistent"),
        ("if (a) then\nend", "if a\nend"),
        ("if a:\nelse:\nLet x = 1\nend", "if a\nelse\n    Let x = 1\nend"),
        ("Compute GEMM Q[:, 0:128], K[:,128:] and get S", "Compute GEMM Q[:, 0:128], K[:, 128:] and get S"),
    ],
)
def test_habits_have_a_canonical_form(text: str, canonical: str) -> None:
    assert format_program(parse(text)) == canonical + "\n"


def test_both_comments_stay_where_they_were() -> None:
    text = "# alone\n\nLet x = 1  // set beside\nfor j = 0 : x  # at the head\n    // inside\nend  # after\n"
    assert [c.text for c in s.statements(body(text)) if isinstance(c, s.Comment)] == [
        "alone",
        "set beside",
        "at the head",
        "inside",
        "after",
    ]
    assert format_program(parse(text)).splitlines()[-1] == "end  # after"


@pytest.mark.parametrize(
    "text",
    [
        "Allocate X in global (a // b, c)",
        "Compute Add (a // b), c",
        "Let x = a // b",
        "Let x = a // min(b, c)",
        "Let x = a // b  // how many tiles",
        "Grid i = a // b, j = a // 2",
        "for j = a // b : c // d step e // f\nend",
        "if a // b > c and d // e == 0\nend",
    ],
)
def test_two_slashes_divide_where_an_operand_follows(text: str) -> None:
    parts = format_program(parse(text)).split("  #")[0]
    assert parts.count("//") == text.split("  //")[0].count("//")


@pytest.mark.parametrize(
    "text",
    [
        "Compute Exp S // b",
        "Compute S = a // b",
        "Let x = a // the number of tiles",
        "for j = 0 : n // causal: stop at the diagonal\nend",
        "for j = 0 : n // loop (over keys)\nend",
        "// Let x = a",
    ],
)
def test_two_slashes_comment_elsewhere(text: str) -> None:
    assert sum(isinstance(x, s.Comment) for x in s.statements(body(text))) == 1
    assert "//" not in format_program(parse(text))


def test_a_division_outside_brackets_is_formatted_so_that_it_stays_one() -> None:
    assert format_program(parse("Compute S = (a // b)")) == "Compute S = (a // b)\n"
    assert format_program(parse("Let x = (a // b)")) == "Let x = a // b\n"


def test_brackets_continue_over_lines_with_comments_in_them() -> None:
    assert same(
        "Allocate S in register (\n    BM,  # rows\n    BN\n) init 0",
        "Allocate S in register (BM, BN) init 0",
    )


def test_a_bracket_in_a_comment_opens_nothing() -> None:
    assert body("Let x = 1  # (\n# [0, n\nLet y = 2")[-1] == s.Let("y", s.Num(2))
    assert len(body("# a (\nnonsense = 1\n".replace("nonsense", "Let x"))) == 2


def test_an_assignment_with_a_cast_keeps_it() -> None:
    assert (
        format_program(parse("Compute Assign a to fp16 and get b")) == "Compute Assign a to fp16 and get b\n"
    )


@pytest.mark.parametrize("text", ["", "\n\n", "   \n\t\n", "\r\n"])
def test_nothing_is_an_empty_program(text: str) -> None:
    assert parse(text) == s.Program((s.Kernel(None, ()),))


def test_comments_alone_are_a_program() -> None:
    assert body("# a\n// b") == (s.Comment("a"), s.Comment("b"))


def test_several_kernels_run_in_order() -> None:
    program = parse("# split\nKernel partial\nLet x = 1\nKernel merge  # second\nLet y = 2\n")
    assert [k.name for k in program.kernels] == ["partial", "merge"]
    assert program.name == "partial"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("a - (b - c)", "a - (b - c)"),
        ("(a - b) - c", "a - b - c"),
        ("-(a ** b)", "-a ** b"),
        ("(-a) ** -b", "(-a) ** -b"),
        ("not (a and b) or c", "not (a and b) or c"),
        ("(a < b) == c", "(a < b) == c"),
        ("0 <= q - k < window", "0 <= q - k < window"),
        ("(a + b)^T[0]", "(a + b)^T[0]"),
        ("+a * ((b))", "a * b"),
        ("x[:, a:, :b, c]", "x[:, a:, :b, c]"),
    ],
)
def test_parentheses_stay_only_where_they_are_needed(text: str, canonical: str) -> None:
    (let,) = body(f"Let x = {text}")
    assert isinstance(let, s.Let) and format_expr(let.value) == canonical


def test_positions_are_those_of_the_text() -> None:
    copy, loop = body("\n\tCopy X from global to shared\n\r\nfor j = 0 : (n +\n  1)\n  Compute Exp S\nend")
    assert (copy.pos.line, copy.pos.column) == (2, 2)
    assert isinstance(loop, s.For) and loop.pos == s.Pos(4, 1)
    assert loop.body[0].pos == s.Pos(6, 3)
    assert isinstance(loop.stop, s.Binary) and loop.stop.right.pos == s.Pos(5, 3)


def test_a_line_of_the_text_is_split_at_line_feeds_only() -> None:
    text = Text.of("a\x0cb\nc\n")
    assert (text.line(1), text.line(2), text.line(9)) == ("a\x0cb", "c", "")
    assert text.pos(4) == s.Pos(2, 1)


# --- what is refused --------------------------------------------------------------------------------


def findings(text: str) -> list[tuple[str, int]]:
    return [(f.code, f.pos.line) for f in parse_leniently(text)[1]]


WRONG = (
    "Copy X from nowhere to shared",
    "Compute",
    "Let x = ",
    "Let = 3",
    "Allocate Q",
    "S = S * scale",
    "Reshape S from (A) until (B)",
    "Tile BM = many",
    "Compute Add a b",
    "Grid b = batch h",
    "Compute Exp S ½",
    "!!!",
    "Let x = a)",
    "Kernel",
)


@given(st.lists(st.sampled_from(WRONG), min_size=1, max_size=8), st.data())
@settings(max_examples=100, deadline=None)
def test_every_planted_error_is_found_on_its_line(wrong: list[str], data: st.DataObject) -> None:
    lines = PROGRAMS["reference/mha_causal.tl"].read_text().splitlines()
    places = data.draw(
        st.lists(st.integers(2, len(lines) - 1), min_size=len(wrong), max_size=len(wrong), unique=True)
    )
    for text, at in sorted(zip(wrong, places, strict=True), key=lambda pair: -pair[1]):
        lines.insert(at, text)
    planted = sorted(at + n for n, at in enumerate(sorted(places), 1))
    found = findings("\n".join(lines))
    assert [code for code, _ in found] == ["TL001"] * len(wrong)
    assert sorted(line for _, line in found) == planted


def test_an_error_in_the_head_of_a_block_leaves_its_end_in_peace() -> None:
    assert findings("for j 0 : n\nCompute Exp S\nend\nLet y = 1") == [("TL001", 1)]
    assert findings("for\nend\nif\nelse\nend\nwhile x < 3\nend\nfor j = 0..3\nend") == [
        ("TL001", line) for line in (1, 3, 6, 8)
    ]


def test_a_short_broken_head_shifts_no_later_position() -> None:
    _, found = parse_leniently("if\nend\nfor\nend\n  Copy X nowhere\n")
    assert [(f.pos.line, f.pos.column) for f in found] == [(1, 3), (3, 4), (5, 10)]


def test_an_error_after_end_or_else_leaves_the_block_closed() -> None:
    assert findings("for j = 0 : n\nend for j\nLet x = 1") == [("TL001", 2)]
    assert findings("if a\nLet x = 1\nelse if b\nLet x = 2\nend") == [("TL001", 3)]


def test_what_was_right_is_kept_beside_the_errors() -> None:
    program, found = parse_leniently("Let x = 1\nnonsense\nLet y = 2\n")
    assert len(found) == 1 and found[0].message == "`nonsense` starts no statement"
    assert format_program(program) == "Let x = 1\nLet y = 2\n"


def test_open_blocks_are_each_reported_at_the_end() -> None:
    assert findings("for j = 0 : n\nif a\nCompute Exp S\n\n") == [("TL002", 3), ("TL002", 3)]


@pytest.mark.parametrize("text", ["end", "end for", "endif", "else", "END", "Else:"])
def test_a_stray_end_is_reported(text: str) -> None:
    assert findings(f"Let x = 1\n{text}\nLet y = 2\n") == [("TL003", 2)]


def test_a_bracket_left_open_ends_where_the_next_statement_starts() -> None:
    assert findings("Let x = (a +\nLet y = 2\nCopy\nend") == [("TL001", 1), ("TL001", 3), ("TL003", 4)]


def test_a_bracket_left_open_at_the_end_is_one_error_and_no_open_block() -> None:
    assert findings("Let x = (a") == [("TL001", 1)]


@pytest.mark.parametrize("char", "½$?\\`~\x01\x02\x00\x0b\u200b“")
def test_a_character_that_no_token_has_is_refused_where_it_stands(char: str) -> None:
    _, (found,) = parse_leniently(f"Let y = 1\nLet x = a {char} b\n")
    assert (found.code, found.pos) == ("TL001", s.Pos(2, 11))


@pytest.mark.parametrize("number", ["9" * 5000, "1e999", "9" * 19])
def test_a_number_that_no_machine_holds_is_refused(number: str) -> None:
    for text in (f"Let x = {number}", f"Tile BM in {{64, {number}}}"):
        assert findings(text) == [("TL001", 1)]


def test_a_tile_parameter_is_a_whole_number() -> None:
    assert findings("Tile BM = 64.5") == [("TL001", 1)]


@pytest.mark.parametrize(
    "text",
    [
        "Let x = " + "f(" * 300 + "a" + ")" * 300,
        "Let x = " + "-" * 2000 + "a",
        "Let x = " + "not " * 2000 + "a",
        "Let x = " + " + ".join("a" * 3000),
        "Let x = a" + "[0]" * 2000,
        "Let x = a" + "^T" * 2000,
        "Let x = " + "(" * 3000 + "a",
        "if a\n" * 200 + "end\n" * 200,
        "for j = 0 : n\n" * 1000,
    ],
    ids=lambda text: text[:14].replace("\n", " "),
)
def test_deep_nesting_is_an_error_of_the_program(text: str) -> None:
    with pytest.raises(TLError):
        parse(text)


def test_nesting_that_someone_could_write_works() -> None:
    assert same("Let x = " + "(" * 300 + "a" + ")" * 300, "Let x = a")
    deep = "if a\n" * 40 + "Let x = " + "f(" * 15 + "a" + ")" * 15 + "\n" + "end\n" * 40
    assert parse(format_program(parse(deep))) == parse(deep)


def test_the_error_speaks_of_the_first_finding_and_counts_the_rest() -> None:
    with pytest.raises(TLError, match=r"line 2, column 1: TL001: `oops` starts no statement .*; and 1 more"):
        parse("Let x = 1\noops\n?\n")
