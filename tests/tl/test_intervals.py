"""Which iterations of a loop need no mask: against brute force over small tiles, and what gives no bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.tl import ir
from harness.tl.evaluate import evaluate
from harness.tl.lower.intervals import Split, split
from harness.tl.syntax import Level

Piece = ir.Expr | int | str
Cond = Callable[[Piece, Piece], ir.Expr]  # of the query and the key position


def e(x: Piece) -> ir.Expr:
    return ir.Sym(x) if isinstance(x, str) else ir.Const(x) if isinstance(x, int) else x


def op(fn: str, *args: Piece) -> ir.Op:
    return ir.Op(fn, tuple(e(a) for a in args))


DIAGONAL = op("sub", "seq_k", "seq_q")
ROW0 = op("mul", "i", "BM")
BLOCKS = op("ceildiv", "seq_k", "BN")
S = ir.Tile("S", Level.REGISTER, (e("BM"), e("BN")))
KEYS = ir.Tile("K", Level.SHARED, (e("BN"), e("dim")))
VECTOR = ir.Tile("m", Level.REGISTER, (e("BM"), e(1)))
K = ir.Matrix("K", "k", (e("b"), "row", e("h"), "col"), e("seq_k"), e("dim"), "seq_k", "dim")


def causal(q: Piece, k: Piece) -> ir.Expr:
    return op("le", k, op("add", q, DIAGONAL))


def window(q: Piece, k: Piece) -> ir.Expr:
    distance = op("sub", op("add", q, DIAGONAL), k)
    return op("and", op("le", 0, distance), op("lt", distance, "window"))


def band(q: Piece, k: Piece) -> ir.Expr:
    """The keys of the window on both sides of the query, the far end of it hidden by `not`."""
    far = op("not", op("gt", op("sub", q, k), "window"))
    return op("and", op("ge", op("add", q, "window"), k), far)


def nested(q: Piece, k: Piece) -> ir.Expr:
    """Minima and maxima inside the bounds."""
    low = op("ge", k, op("max", 2, op("sub", q, "window")))
    return op("and", low, op("lt", k, op("min", op("sub", "seq_k", 1), op("add", q, 3))))


def not_or(q: Piece, k: Piece) -> ir.Expr:
    """De Morgan: what hides is an `or`."""
    hidden = op("or", op("gt", k, op("add", q, DIAGONAL)), op("lt", k, op("sub", q, "window")))
    return op("not", hidden)


def one_key(q: Piece, k: Piece) -> ir.Expr:
    return op("eq", k, q)


def queries_only(q: Piece, k: Piece) -> ir.Expr:
    return op("lt", q, "seq_q")


def twice(q: Piece, k: Piece) -> ir.Expr:
    """Positions with factors."""
    return op("le", op("mul", 2, k), op("add", op("mul", 3, q), "window"))


CONDITIONS: list[Cond | None] = [
    None, causal, window, band, nested, not_or, one_key, queries_only, twice,
]  # fmt: skip


def loop(cond: Cond | None, step: Piece = 1, start: Piece = 0, stop: Piece | None = None) -> ir.For:
    """Over key tiles, or (with a step) over absolute key positions."""
    base = op("mul", "j", "BN") if step == 1 else e("j")
    body: list[ir.Node] = [ir.Load(KEYS, K, base, e(0))]
    if cond is not None:
        positions = ir.Place("seq_q", 0, ROW0), ir.Place("seq_k", 1, base)
        body.append(ir.Mask(S, cond(*positions), S))
    body.append(ir.Softmax(S, VECTOR, VECTOR, S, across=ir.Axis("seq_k", base)))
    end = stop if stop is not None else (BLOCKS if step == 1 else "seq_k")
    return ir.For("j", e(start), e(end), e(step), tuple(body))


def kernel(node: ir.For) -> ir.Kernel:
    grid = tuple(ir.GridAxis(n, e(x)) for n, x in (("b", "batch"), ("h", "heads"), ("i", "seq_q")))
    return ir.Kernel("k", grid, (K,), (S, KEYS, VECTOR), (node,))


def bounds(node: ir.For, env: Mapping[str, int], found: Split) -> tuple[range, range]:
    start, stop, step = (evaluate(x, env) for x in (node.start, node.stop, node.step))
    first, last = evaluate(found.full_start, env), evaluate(found.full_stop, env)
    if start < stop:
        assert start <= first <= last <= stop
        assert first == stop or (first - start) % step == 0
        assert last == stop or (last - start) % step == 0
    return range(start, stop, step), range(first, last, step)


def is_full(j: int, cond: Cond | None, scaled: bool, env: Mapping[str, int]) -> bool:
    """Every element of the tile is allowed and its key exists."""
    base = j * env["BN"] if scaled else j
    if base < 0 or base + env["BN"] > env["seq_k"]:
        return False
    rows, cols = range(env["BM"]), range(env["BN"])
    if cond is None:
        return True
    expr = cond("q", "k")
    return all(
        evaluate(expr, {**env, "q": env["i"] * env["BM"] + r, "k": base + c}) for r, c in product(rows, cols)
    )


SIZES = st.fixed_dictionaries(
    {
        "BM": st.integers(1, 5),
        "BN": st.integers(1, 5),
        "seq_q": st.integers(1, 18),
        "seq_k": st.integers(1, 18),
        "window": st.integers(0, 9),
        "i": st.integers(0, 3),
        "dim": st.just(8),
    }
)
CAUSAL_STOP = op("min", BLOCKS, op("ceildiv", op("add", op("mul", op("add", "i", 1), "BM"), DIAGONAL), "BN"))
WINDOW_START = op(
    "floordiv", op("max", 0, op("sub", op("add", op("add", ROW0, DIAGONAL), 1), "window")), "BN"
)


@pytest.mark.parametrize("step", [1, "BN", 3], ids=["tiles", "keys", "keys by 3"])
@pytest.mark.parametrize("cond", CONDITIONS, ids=lambda c: c.__name__ if c else "none")
@given(env=SIZES)
@settings(max_examples=60, deadline=None)
def test_exactly_the_iterations_that_hide_nothing(
    cond: Cond | None, step: Piece, env: dict[str, int]
) -> None:
    node = loop(cond, step)
    found = split(node, kernel(node), ints=["window"])
    assert found is not None
    everything, full = bounds(node, env, found)
    assert list(full) == [j for j in everything if is_full(j, cond, step == 1, env)]


@given(env=SIZES, start=st.sampled_from([0, 2, WINDOW_START]), stop=st.sampled_from([BLOCKS, CAUSAL_STOP]))
@settings(max_examples=200, deadline=None)
def test_within_loops_that_skip_tiles_themselves(env: dict[str, int], start: Piece, stop: Piece) -> None:
    node = loop(window, start=start, stop=stop)
    found = split(node, kernel(node), ints=["window"])
    assert found is not None
    everything, full = bounds(node, env, found)
    assert list(full) == [j for j in everything if is_full(j, window, True, env)]


@given(env=SIZES)
@settings(max_examples=50, deadline=None)
def test_values_of_tile_parameters_change_nothing(env: dict[str, int]) -> None:
    node = loop(window)
    found = [
        split(node, kernel(node), known, ["window"]) for known in ({}, {"BM": env["BM"], "BN": env["BN"]})
    ]
    assert all(found)
    assert len({tuple(bounds(node, env, f)[1]) for f in found if f is not None}) == 1


def test_a_loop_without_conditions_is_full() -> None:
    node = ir.For("j", e(0), e("seq_k"), e(1), ())
    assert split(node, kernel(node)) == Split(e(0), e("seq_k"))


def test_the_causal_bound_reads_as_a_person_would_write_it() -> None:
    found = split(loop(causal), kernel(loop(causal)))
    assert found is not None and found.full_start == e(0)
    edge = op("floordiv", op("sub", op("add", op("add", op("mul", "BM", "i"), 1), "seq_k"), "seq_q"), "BN")
    env = {"BM": 64, "BN": 32, "i": 3, "seq_q": 300, "seq_k": 400}
    assert evaluate(found.full_stop, env) == evaluate(edge, env) == (3 * 64 + 1 + 100) // 32


@pytest.mark.parametrize(
    "cond",
    [
        lambda q, k: op("or", op("le", k, q), op("lt", k, 4)),
        lambda q, k: op("not", op("and", op("le", k, q), op("lt", 4, k))),
        lambda q, k: op("ne", k, q),
        lambda q, k: op("le", op("mul", k, k), q),
        lambda q, k: op("lt", op("mod", k, 2), 1),
        lambda q, k: op("le", k, op("max", q, op("sub", k, 1))),
        lambda q, k: op("le", op("mul", "window", k), q),  # the sign of window is not known
        lambda q, k: op("le", k, ir.Ref(VECTOR)),
        lambda q, k: op("le", k, ir.Element("lengths", (e("b"),))),
        lambda q, k: op("le", k, op("add", q, ir.Const(0.5))),
        lambda q, k: op("le", k, op("add", q, "softcap")),  # no integer, as far as is known
    ],
)
def test_what_is_no_conjunction_of_linear_bounds_gives_none(cond: Cond) -> None:
    node = loop(cond)
    assert split(node, kernel(node), ints=["window"]) is None


def test_a_mask_that_moves_with_an_inner_loop_gives_none_outside_and_bounds_inside() -> None:
    inner = loop(causal)
    outer = ir.For("t", e(0), e("heads"), e(1), (inner,))
    assert split(outer, kernel(outer)) is None
    assert split(inner, kernel(outer)) is not None


def test_a_gather_ends_with_its_index_vector() -> None:
    table = ir.Matrix("T", "table", (e("b"), "row"), e("window"), e(1), None, None)
    node = ir.For("j", e(0), BLOCKS, e(1), (ir.Load(KEYS, K, op("mul", "j", "BN"), e(0), via=table),))
    found = split(node, kernel(node), ints=["window"])
    assert found is not None
    assert evaluate(found.full_stop, {"seq_k": 100, "BN": 8, "window": 20, "dim": 4}) == 2


def test_a_gemm_over_keys_and_a_reduction_count_as_tails() -> None:
    axis = ir.Axis("seq_k", op("mul", "j", "BN"))
    gemm = ir.Gemm(ir.Operand(S), ir.Operand(KEYS), S, True, axis)
    reduce = ir.Reduce("max", ir.Ref(S), S.shape, VECTOR, None, axis)
    for node in (gemm, reduce):
        whole = ir.For("j", e(0), BLOCKS, e(1), (node,))
        found = split(whole, kernel(whole))
        assert found is not None
        assert evaluate(found.full_stop, {"seq_k": 23, "BN": 8}) == 2


def test_a_load_that_begins_before_the_matrix_is_a_tail_too() -> None:
    row = op("mul", op("sub", "j", 2), "BN")
    node = ir.For("j", e(0), BLOCKS, e(1), (ir.Load(KEYS, K, row, e(0)),))
    found = split(node, kernel(node))
    assert found is not None
    env = {"seq_k": 40, "BN": 8}
    assert (evaluate(found.full_start, env), evaluate(found.full_stop, env)) == (2, 5)
