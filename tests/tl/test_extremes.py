"""What is said of loops' ends holds for every small size; and so does what joining loops concludes from it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from harness.tl import ir
from harness.tl.evaluate import evaluate, op
from harness.tl.lower.extremes import LENGTHS, within
from harness.tl.lower.join import _always, _Asked, _end
from harness.tl.syntax import Level

SYMS = {name: ir.Sym(name) for name in ("i", "j", "BM", "BN", "seq_q", "seq_k", "window")}
TILE = (SYMS["BM"], SYMS["BN"])
ROW = ir.Place("seq_q", 0, op("mul", SYMS["i"], SYMS["BM"]))
COLUMN = ir.Place("seq_k", 1, op("mul", SYMS["j"], SYMS["BN"]))
DIAGONAL = op("sub", op("add", op("mul", SYMS["i"], SYMS["BM"]), SYMS["seq_k"]), SYMS["seq_q"])
LEAVES = st.sampled_from([
    *(ir.Const(n) for n in (-3, 0, 1, 2)), DIAGONAL, op("add", DIAGONAL, ir.Const(1)), op("sub", DIAGONAL, SYMS["window"]),
    op("add", op("sub", DIAGONAL, SYMS["window"]), SYMS["BM"]), SYMS["seq_k"], SYMS["i"], SYMS["BN"],
])  # fmt: skip


def bigger(inner: st.SearchStrategy[ir.Expr]) -> st.SearchStrategy[ir.Expr]:
    pair = st.tuples(inner, inner)
    divided = st.tuples(
        st.sampled_from(["floordiv", "ceildiv"]), inner, st.sampled_from([SYMS["BN"], ir.Const(2)])
    )
    return st.one_of(
        pair.map(lambda ab: op("max", *ab)), pair.map(lambda ab: op("min", *ab)), pair.map(lambda ab: op("add", *ab)),
        inner.map(lambda a: op("max", ir.Const(0), a)), divided.map(lambda fab: op(*fab)),
        inner.map(lambda a: op("floordiv", op("max", ir.Const(0), a), SYMS["BN"])),
        inner.map(lambda a: op("ceildiv", op("max", ir.Const(0), a), SYMS["BN"])),
    )  # fmt: skip


INDICES = st.recursive(LEAVES, bigger, max_leaves=4)
SIZES = [
    {"i": i, "BM": bm, "BN": bn, "seq_q": q, "seq_k": k, "window": window}
    for bm, bn in ((2, 3), (4, 2), (3, 3))
    for q, k in ((7, 9), (9, 4), (5, 5), (1, 12))
    for i in range(-(-q // bm))
    for window in (1, 4, 30)
]


def value(expr: ir.Expr, env: Mapping[str, int], row: int, column: int) -> Any:
    match expr:
        case ir.Place(axis=axis, base=base):
            return evaluate(base, env) + (column if axis else row)
        case ir.Op(fn=fn, args=args):
            return evaluate(ir.Op(fn, tuple(ir.Const(value(a, env, row, column)) for a in args)), env)
    return evaluate(expr, env)


ATOMS = st.one_of(
    st.tuples(st.sampled_from(["le", "lt"]), st.just(COLUMN), st.sampled_from([
        op("sub", op("add", ROW, SYMS["seq_k"]), SYMS["seq_q"]), DIAGONAL, SYMS["seq_k"], SYMS["BN"],
    ])),
    st.tuples(st.sampled_from(["ge", "gt"]), st.just(COLUMN), st.sampled_from([
        op("sub", op("sub", op("add", ROW, SYMS["seq_k"]), SYMS["seq_q"]), SYMS["window"]), DIAGONAL, ir.Const(0),
        op("sub", ir.Const(0), SYMS["BN"]),
    ])),
).map(lambda fab: ir.Op(fab[0], fab[1:]))  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(atom=ATOMS, start=st.just(ir.Const(0)) | INDICES, stop=INDICES)
def test_what_is_said_to_hold_holds_in_every_round_of_every_size(
    atom: ir.Expr, start: ir.Expr, stop: ir.Expr
) -> None:
    loop = ir.For("j", start, stop, ir.Const(1), ())
    said = _always(_Asked(atom, ir.Tile("S", Level.REGISTER, TILE)), loop, {SYMS["BM"], SYMS["BN"], *LENGTHS})
    event(f"said: {said}")
    for env in SIZES if said else ():
        for j in range(evaluate(start, env), evaluate(stop, env)):
            for row, column in itertools.product((0, env["BM"] - 1), (0, env["BN"] - 1)):
                assert value(atom, {**env, "j": j}, row, column), (env, j, row, column)


@settings(deadline=None, max_examples=200)
@given(start=st.just(ir.Const(0)) | INDICES, middle=INDICES, stop=INDICES, cut_there=st.booleans())
def test_one_loop_has_the_rounds_of_two(
    start: ir.Expr, middle: ir.Expr, stop: ir.Expr, cut_there: bool
) -> None:
    if cut_there:
        middle = op("min", stop, op("max", start, middle))
    first, then = (ir.For("j", *bounds, ir.Const(1), ()) for bounds in ((start, middle), (middle, stop)))
    end = _end(first, then, {SYMS["BM"], SYMS["BN"], *LENGTHS})
    event(f"joined: {end is not None}")
    for env in SIZES if end is not None else ():
        a, b, c, d = (evaluate(e, env) for e in (start, middle, stop, end))
        assert [*range(a, b), *range(b, c)] == list(range(a, d)), env


@settings(deadline=None, max_examples=400)
@given(start=st.just(ir.Const(0)) | INDICES, stop=INDICES)
def test_a_loop_that_is_said_to_stay_within_the_keys_does(start: ir.Expr, stop: ir.Expr) -> None:
    loop = ir.For("j", start, stop, ir.Const(1), ())
    row = ir.GridAxis("i", op("ceildiv", SYMS["seq_q"], SYMS["BM"]), "rows")
    said = within(loop, SYMS["seq_k"], SYMS["BN"], {SYMS["BM"], SYMS["BN"], *LENGTHS}, row)
    event(f"said: {said}")
    for env in SIZES if said else ():
        for j in range(evaluate(start, env), evaluate(stop, env)):
            assert 0 <= j * env["BN"] < env["seq_k"], env
