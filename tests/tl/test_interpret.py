"""The interpreter against the oracle, on programs built by hand as IR; its counts; what it refuses."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.tl import batch, ir
from harness.tl import syntax as s
from harness.tl.counts import Counts
from harness.tl.interpret import InterpretError, Outcome, interpret
from harness.tl.syntax import Level
from tasks.masks import causal
from tasks.oracle import expected
from tasks.spec import QKVO, Task, TensorSpec, Workload

FULL = Task("full", "", "", "", workloads={})
CAUSAL = Task("causal", "", "", "", workloads={}, mask=causal, causal=True)
NEG_INF, NAN = ir.Const(-math.inf), math.nan
Piece = ir.Expr | int | float | str


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiles this small gain nothing from threads, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def e(x: Piece) -> ir.Expr:
    """A name as a symbol, a number as a constant."""
    return ir.Sym(x) if isinstance(x, str) else ir.Const(x) if isinstance(x, int | float) else x


def op(fn: str, *args: Piece) -> ir.Op:
    return ir.Op(fn, tuple(e(a) for a in args))


def tile(
    name: str, rows: Piece, cols: Piece = 1, level: Level = Level.REGISTER, dtype: str | None = None
) -> ir.Tile:
    return ir.Tile(name, level, (e(rows), e(cols)), dtype)


def shared(name: str, rows: Piece, cols: Piece) -> ir.Tile:
    return tile(name, rows, cols, Level.SHARED)


def matrix(tensor: str, axes: Sequence[Piece], rows: Piece, cols: Piece = 1, **more: object) -> ir.Matrix:
    kept = tuple(a if a in ("row", "col") else e(a) for a in axes)
    return ir.Matrix(tensor.upper(), tensor, kept, e(rows), e(cols), None, None, **more)  # type: ignore[arg-type]


KV_HEAD = op("floordiv", "h", "group")
Q = matrix("q", ("b", "row", "h", "col"), "seq_q", "dim")
K = matrix("k", ("b", "row", KV_HEAD, "col"), "seq_k", "dim")
V = matrix("v", ("b", "row", KV_HEAD, "col"), "seq_k", "dim_v")
OUT = matrix("out", ("b", "row", "h", "col"), "seq_q", "dim_v")
ROW0, COL0 = op("mul", "i", "BM"), op("mul", "j", "BN")
KEYS = ir.Axis("seq_k", COL0)
T = {
    "Q": shared("Q", "BM", "dim"),
    "K": shared("K", "BN", "dim"),
    "V": shared("V", "BN", "dim_v"),
    "S": tile("S", "BM", "BN"),
    "O": tile("O", "BM", "dim_v"),
    **{name: tile(name, "BM") for name in ("m", "l", "m_new", "alpha", "r")},
}
R = {name: ir.Ref(t) for name, t in T.items()}
BH = (ir.GridAxis("b", e("batch")), ir.GridAxis("h", e("heads")))
BHI = (*BH, ir.GridAxis("i", op("ceildiv", "seq_q", "BM")))
STATE = (ir.Init(T["m"], NEG_INF), ir.Init(T["l"], e(0)), ir.Init(T["O"], e(0)))
FUSED = (ir.Softmax(T["S"], T["m"], T["l"], T["S"], (T["O"],), across=KEYS),)
PRIMITIVE = (
    ir.Reduce("max", R["S"], T["S"].shape, T["m_new"], R["m"], KEYS),
    ir.Map(T["alpha"], op("exp", op("sub", R["m"], R["m_new"]))),
    ir.Map(T["S"], op("exp", op("sub", R["S"], R["m_new"]))),
    ir.Reduce("sum", R["S"], T["S"].shape, T["r"], across=KEYS),
    ir.Map(T["l"], op("add", op("mul", R["l"], R["alpha"]), R["r"])),
    ir.Map(T["O"], op("mul", R["O"], R["alpha"])),
    ir.Move(T["m_new"], T["m"]),
)
SEES = op(
    "le", ir.Place("seq_k", 1, COL0), op("sub", op("add", ir.Place("seq_q", 0, ROW0), "seq_k"), "seq_q")
)
ALL_BLOCKS = op("ceildiv", "seq_k", "BN")
LAST_BLOCK = op("ceildiv", op("sub", op("add", op("mul", op("add", "i", 1), "BM"), "seq_k"), "seq_q"), "BN")
CAUSAL_BLOCKS = op("min", ALL_BLOCKS, LAST_BLOCK)


def kernel(
    name: str, grid: Sequence[ir.GridAxis], body: Sequence[ir.Node], *matrices: ir.Matrix
) -> ir.Kernel:
    return ir.Kernel(name, tuple(grid), matrices, (), tuple(body))


def program(*kernels: ir.Kernel, bm: int = 32, bn: int = 16) -> ir.Program:
    return ir.Program("p", "t", kernels, (("BM", (bm, 64)), ("BN", (bn, 64))), (("warps", (4, 8)),))


def step(
    is_causal: bool, softmax: Sequence[ir.Node] = FUSED, slice_of_keys: bool = False
) -> tuple[ir.Node, ...]:
    """The body of the loop over key tiles."""
    load_v = () if slice_of_keys else (ir.Load(T["V"], V, COL0, e(0)),)
    values = ir.Operand(T["K"], columns=(e(0), e("dim_v"))) if slice_of_keys else ir.Operand(T["V"])
    return (
        ir.Load(T["K"], K, COL0, e(0)),
        ir.Gemm(ir.Operand(T["Q"]), ir.Operand(T["K"], transposed=True), T["S"], False),
        ir.Map(T["S"], op("mul", R["S"], "scale")),
        *((ir.Mask(T["S"], SEES, T["S"]),) if is_causal else ()),
        *softmax,
        *load_v,
        ir.Reshape(T["S"]),
        ir.Gemm(ir.Operand(T["S"]), values, T["O"], True, KEYS),
    )


def flash(
    is_causal: bool = True,
    softmax: Sequence[ir.Node] = FUSED,
    slice_of_keys: bool = False,
    state: Sequence[ir.Node] = STATE,
    blocks: ir.Expr | None = None,
) -> ir.Program:
    """The program of TL.md, section 1."""
    blocks = blocks or (CAUSAL_BLOCKS if is_causal else ALL_BLOCKS)
    body = (
        *state,
        ir.Load(T["Q"], Q, ROW0, e(0)),
        ir.For("j", e(0), blocks, e(1), step(is_causal, softmax, slice_of_keys)),
        ir.Map(T["O"], op("div", R["O"], R["l"])),
        ir.Store(T["O"], OUT, ROW0, e(0)),
    )
    return program(kernel("flash", BHI, body))


def inputs_of(w: Workload, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        spec.name: torch.randn(spec.shape(w), generator=generator).to(w.torch_dtype)
        for spec in QKVO
        if spec.role == "input"
    }


def agree(
    p: ir.Program, task: Task, w: Workload, inputs: dict[str, Tensor] | None = None, **choice: int
) -> None:
    inputs = inputs_of(w) if inputs is None else inputs
    out = interpret(p, task, w, inputs, choice).outputs["out"]
    assert out.dtype == w.torch_dtype and out.shape == (w.batch, w.seq_q, w.heads, w.dim_v)
    tolerance = {"fp32": 1e-5, "fp16": 3e-3, "bf16": 3e-2}[w.dtype]
    torch.testing.assert_close(out.double(), expected(task, w, inputs)["out"], atol=tolerance, rtol=tolerance)


SHAPES = {
    "square": Workload("t", 1, 2, 2, 64, 64, 16, 16, "fp32"),
    "fewer queries, tails": Workload("t", 2, 2, 2, 37, 101, 16, 24, "fp32"),
    "fewer keys": Workload("t", 1, 2, 2, 101, 30, 16, 16, "fp32"),
    "group of three": Workload("t", 1, 6, 2, 50, 70, 16, 16, "fp32"),
    "one query": Workload("t", 2, 2, 1, 1, 45, 16, 16, "fp32"),
    "fp16": Workload("t", 1, 2, 1, 61, 67, 32, 32, "fp16"),
    "bf16": Workload("t", 1, 2, 1, 61, 67, 32, 32, "bf16"),
}
TINY = Workload("t", 1, 1, 1, 3, 5, 4, 2, "fp16")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("softmax", [FUSED, PRIMITIVE], ids=["fused", "primitive"])
@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "full"])
def test_flash_attention_is_attention(is_causal: bool, softmax: tuple[ir.Node, ...], shape: str) -> None:
    agree(flash(is_causal, softmax), CAUSAL if is_causal else FULL, SHAPES[shape])


def test_values_may_be_a_column_slice_of_the_keys() -> None:
    w = Workload("t", 1, 4, 1, 33, 50, 24, 16, "fp32")
    inputs = inputs_of(w)
    inputs["v"] = inputs["k"][..., :16].clone()
    agree(flash(slice_of_keys=True), CAUSAL, w, inputs)


@pytest.mark.parametrize("softmax", [FUSED, PRIMITIVE], ids=["fused", "primitive"])
def test_a_row_without_a_key_is_zero(softmax: tuple[ir.Node, ...]) -> None:
    w = SHAPES["fewer keys"]
    out = interpret(flash(softmax=softmax), CAUSAL, w, inputs_of(w)).outputs["out"]
    blind = w.seq_q - w.seq_k
    assert blind % 32  # one tile holds rows of both kinds
    assert (out[:, :blind] == 0).all() and (out[:, blind:] != 0).all()
    agree(flash(softmax=softmax, blocks=ALL_BLOCKS), CAUSAL, w)  # such tiles visited all the same


def test_the_first_choice_serves_where_none_is_given() -> None:
    w = SHAPES["square"]
    counts = [
        interpret(flash(), CAUSAL, w, inputs_of(w), c).counts
        for c in (None, {"BM": 32, "BN": 16, "warps": 8})
    ]
    assert counts[0] == counts[1] != interpret(flash(), CAUSAL, w, inputs_of(w), {"BM": 64}).counts
    with pytest.raises(InterpretError, match="no tile parameter BK; there are: BM, BN"):
        interpret(flash(), CAUSAL, w, inputs_of(w), {"BK": 8})


@pytest.mark.parametrize("missing", [0, 1, 2], ids=["m", "l", "O"])
def test_what_is_not_initialised_shows_as_nan(missing: int) -> None:
    w = SHAPES["square"]
    for state in (
        (x for n, x in enumerate(STATE) if n != missing),
        (*STATE, ir.Init(STATE[missing].tile, None)),
    ):
        out = interpret(flash(state=tuple(state)), CAUSAL, w, inputs_of(w)).outputs["out"]
        assert out.isnan().all()


def test_what_is_not_stored_is_nan() -> None:
    w = SHAPES["square"]
    p = program(kernel("k", BH, [ir.Init(T["O"], e(1)), ir.Store(T["O"], OUT, e("BM"), e(0))]))
    out = interpret(p, FULL, w, inputs_of(w)).outputs["out"]
    assert out[:, :32].isnan().all() and (out[:, 32:] == 1).all()


@pytest.mark.parametrize("softmax", [FUSED, PRIMITIVE], ids=["fused", "primitive"])
def test_dead_keys_do_not_count_even_where_they_are_nan(softmax: tuple[ir.Node, ...]) -> None:
    """The pad reaches positions past seq_k only; q @ pad is NaN there."""
    w = SHAPES["fewer queries, tails"]

    def poisoned(nodes: tuple[ir.Node, ...]) -> tuple[ir.Node, ...]:
        return tuple(
            ir.Load(n.tile, n.matrix, n.row, n.col, NEG_INF) if isinstance(n, ir.Load) else n for n in nodes
        )

    (k,) = flash(False, softmax).kernels
    body = tuple(
        ir.For(n.var, n.start, n.stop, n.step, poisoned(n.body)) if isinstance(n, ir.For) else n
        for n in k.body
    )
    agree(program(kernel("k", BHI, body)), FULL, w)


def test_counts_by_hand() -> None:
    outcome = interpret(flash(False), FULL, TINY, inputs_of(TINY), {"BM": 2, "BN": 4})
    assert outcome.counts == Counts(  # 2 query tiles, 2 key tiles each, the last of both half empty
        global_bytes_read=2 * (3 * 4 + 2 * 5 * 4 + 2 * 5 * 2),
        global_bytes_written=2 * 3 * 2,
        shared_bytes=2 * (2 * 2 * 4 + 4 * 4 * 4 + 4 * 4 * 2),
        gemm_flops=4 * (2 * 2 * 4 * 4 + 2 * 2 * 2 * 4),
        exponentials=4 * (2 * 4 + 2),
    )


def test_shared_bytes_go_by_the_dtype_that_is_kept_there() -> None:
    w = matrix("w", ("row", "col"), 4, 2, workspace=(e(4), e(2)))
    single = tile("single", 4, 2, Level.SHARED, "fp32")
    half, loaded = shared("half", 4, 2), shared("loaded", 4, 2)
    body = [ir.Init(single, e(0)), ir.Init(half, e(0)), ir.Init(half, None), ir.Load(loaded, w, e(0), e(0))]
    counts = interpret(program(kernel("k", (), body, w)), FULL, TINY, inputs_of(TINY)).counts
    assert counts == Counts(4 * 8, 0, 4 * 8 + 2 * 8 + 4 * 8, 0, 0)


@pytest.mark.parametrize(("fn", "want"), [("max", [-1, -3]), ("sum", [100 - 10, 200 - 3])])
def test_a_reduction_leaves_dead_columns_out(fn: Literal["max", "sum"], want: list[int]) -> None:
    """Two grid points, tiles of 4 columns: all of the first count, of the second only the first one."""
    columns, base = tile("C", 1, 4), op("mul", "i", 4)
    w = Workload("t", 1, 1, 1, 2, 5, 1, 1, "fp32")
    fill = op("sub", ir.Place("seq_k", 1, e(0)), op("where", op("lt", "i", 1), 4, 3))
    expr = op("add", ir.Ref(columns), op("where", op("lt", ir.Place("seq_k", 1, base), "seq_k"), 0, NAN))
    start = op("mul", op("add", "i", 1), 100) if fn == "sum" else None
    reduce = ir.Reduce(fn, expr, columns.shape, X, start, ir.Axis("seq_k", base))
    body = [ir.Map(columns, fill), reduce, ir.Store(X, FLAT_OUT, e("i"), e(0))]
    out = interpret(program(kernel("k", BY_ROW, body)), FULL, w, inputs_of(w)).outputs["out"]
    assert out.flatten().tolist() == want


@pytest.mark.parametrize("is_causal", [True, False])
def test_a_softmax_counts_the_same_in_primitive_operations(is_causal: bool) -> None:
    w = SHAPES["group of three"]
    fused, primitive = (
        interpret(flash(is_causal, x), FULL, w, inputs_of(w)).counts for x in (FUSED, PRIMITIVE)
    )
    assert fused == primitive


def test_chunks_of_the_grid_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    w = SHAPES["group of three"]
    whole = interpret(flash(), CAUSAL, w, inputs_of(w))
    monkeypatch.setattr(batch, "CHUNK_BYTES", 50_000)
    parts = interpret(flash(), CAUSAL, w, inputs_of(w))
    assert parts.counts == whole.counts
    torch.testing.assert_close(parts.outputs["out"], whole.outputs["out"])


# --- control flow -------------------------------------------------------------------------------------

FLAT = Workload("t", 1, 1, 1, 8, 8, 1, 1, "fp32")
X, Y = tile("X", 1, 1), tile("Y", 1, 1)
BY_ROW = (ir.GridAxis("i", e("seq_q")),)
FLAT_OUT = matrix("out", (0, "row", 0, "col"), "seq_q", 1)


def rows(body: Sequence[ir.Node], task: Task = FULL, **inputs: Tensor) -> list[float]:
    """What eight grid points i = 0..7 leave in X."""
    p = program(kernel("k", BY_ROW, [*body, ir.Store(X, FLAT_OUT, e("i"), e(0))]))
    return outcome(p, task, **inputs).outputs["out"].flatten().tolist()


def outcome(p: ir.Program, task: Task = FULL, **inputs: Tensor) -> Outcome:
    return interpret(p, task, FLAT, {**inputs_of(FLAT), **inputs})


def add(t: ir.Tile, x: Piece) -> ir.Map:
    return ir.Map(t, op("add", ir.Ref(t), x))


def test_a_branch_may_differ_between_grid_points() -> None:
    branch = ir.If(
        op("lt", op("mod", "i", 3), 1), (add(X, op("mul", "i", 10)), ir.Init(Y, e(1))), (add(X, 1),)
    )
    assert rows([ir.Init(X, e(0)), branch, add(X, 0.5)]) == [0.5, 1.5, 1.5, 30.5, 1.5, 1.5, 60.5, 1.5]
    after = rows([ir.Init(X, e(0)), branch, add(X, ir.Ref(Y))])  # Y only where it was written
    assert [math.isnan(x) for x in after] == [False, True, True, False, True, True, False, True]


def test_loops_may_differ_in_start_stop_and_step() -> None:
    inner = ir.For("k", e("j"), e("i"), e(2), (add(X, op("add", "k", op("mul", 100, "j"))),))
    loop = ir.For(
        "j", op("floordiv", "i", 2), op("min", "i", 5), op("add", 1, op("mod", "i", 2)), (inner, add(X, 1000))
    )
    want = [
        sum(1000 + sum(k + 100 * j for k in range(j, i, 2)) for j in range(i // 2, min(i, 5), 1 + i % 2))
        for i in range(8)
    ]
    assert rows([ir.Init(X, e(0)), loop]) == want


def test_a_loop_that_ends_before_it_starts_does_nothing() -> None:
    for stop in (op("sub", "i", 5), e(-3)):
        want = [max(i - 5, 0) if stop != e(-3) else 0 for i in range(8)]
        assert rows([ir.Init(X, e(0)), ir.For("j", e(0), stop, e(1), (add(X, 1),))]) == want


def test_a_loop_variable_ends_with_its_loop_and_hides_an_outer_one() -> None:
    loop = ir.For("i", e(0), e(2), e(1), (add(X, "i"),))
    assert rows([ir.Init(X, e(0)), loop, add(X, op("mul", 10, "i"))]) == [1 + 10 * i for i in range(8)]


def test_a_branch_inside_a_loop_of_differing_length() -> None:
    body = (ir.If(op("eq", "j", 2), (ir.Map(X, op("mul", ir.Ref(X), 2)),), (add(X, "i"),)),)
    want = []
    for i in range(8):
        x = 0
        for j in range(i):
            x = 2 * x if j == 2 else x + i
        want.append(x)
    assert rows([ir.Init(X, e(0)), ir.For("j", e(0), e("i"), e(1), body)]) == want


# --- two kernels, gathers, elements ----------------------------------------------------------------------


def test_split_keys_then_merge() -> None:
    shape = tuple(e(x) for x in (3, "batch", "heads", "seq_q"))
    part = ("s", "b", "h", "row")
    wo = matrix("wo", (*part, "col"), "seq_q", "dim_v", workspace=(*shape, e("dim_v")))
    wm, wl = (matrix(name, part, "seq_q", workspace=shape) for name in ("wm", "wl"))
    split = op("ceildiv", op("ceildiv", "seq_k", "BN"), 3)
    loop = ir.For(
        "j",
        op("mul", "s", split),
        op("min", op("mul", op("add", "s", 1), split), CAUSAL_BLOCKS),
        e(1),
        step(True),
    )
    stores = [ir.Store(T[t], w, ROW0, e(0)) for t, w in (("O", wo), ("m", wm), ("l", wl))]
    first = [*STATE, ir.Load(T["Q"], Q, ROW0, e(0)), loop, *stores]
    mp, lp, op_ = tile("mp", "BM"), tile("lp", "BM"), tile("Op", "BM", "dim_v")
    a, c = op("exp", op("sub", R["m"], R["m_new"])), op("exp", op("sub", ir.Ref(mp), R["m_new"]))
    merge = [ir.Load(t, w, ROW0, e(0)) for t, w in ((op_, wo), (mp, wm), (lp, wl))]
    merge += [ir.Map(T["m_new"], op("max", R["m"], ir.Ref(mp)))]
    merge += [
        ir.Map(T[t], op("add", op("mul", R[t], a), op("mul", ir.Ref(p), c)))
        for t, p in (("l", lp), ("O", op_))
    ]
    merge += [ir.Move(T["m_new"], T["m"])]
    second = [*STATE, ir.For("s", e(0), e(3), e(1), tuple(merge)), ir.Map(T["O"], op("div", R["O"], R["l"]))]
    second += [ir.Store(T["O"], OUT, ROW0, e(0))]
    p = program(
        kernel("partial", (*BHI, ir.GridAxis("s", e(3))), first, wo, wm, wl),
        kernel("merge", BHI, second, wo, wm, wl),
    )
    agree(p, CAUSAL, SHAPES["fewer queries, tails"])
    agree(p, CAUSAL, SHAPES["fewer keys"])


def test_a_workspace_keeps_its_dtype() -> None:
    w = matrix("w", ("row",), 8, workspace=(e(8),), dtype="bf16")
    write = kernel("a", BY_ROW, [ir.Init(X, e(1.0 + 2**-9)), ir.Store(X, w, e("i"), e(0))], w)
    read = kernel("b", BY_ROW, [ir.Load(X, w, e("i"), e(0)), ir.Store(X, FLAT_OUT, e("i"), e(0))], w)
    done = outcome(program(write, read))
    assert done.outputs["out"].flatten().tolist() == [1.0] * 8
    assert (done.counts.global_bytes_read, done.counts.global_bytes_written) == (16, 16 + 32)


def test_rows_gathered_through_an_index_tensor() -> None:
    task = Task("t", "", "", "", {}, tensors=(*QKVO, TensorSpec("table", ("seq_k",), dtype="int32")))
    keys = matrix("k", (0, "row", 0, "col"), "seq_k", 1)
    via = matrix("table", ("row",), "seq_k")
    four = tile("F", 4, 1)
    load = ir.Load(four, keys, op("mul", 4, "i"), e(0), e(-5.0), via)
    p = program(
        kernel("k", (ir.GridAxis("i", e(3)),), [load, ir.Store(four, FLAT_OUT, op("mul", 4, "i"), e(0))])
    )
    table = torch.tensor([3, 0, -1, 7, 8, 2, 2, 1], dtype=torch.int32)
    keys_given = torch.arange(8.0).view(1, 8, 1, 1)
    done = outcome(p, task, table=table, k=keys_given)
    assert done.outputs["out"].flatten().tolist() == [3, 0, -5, 7, -5, 2, 2, 1]
    assert done.counts.global_bytes_read == 8 * 4 + 6 * 4


def test_elements_of_task_tensors() -> None:
    tensors = (
        *QKVO,
        TensorSpec("slope", ("heads",), dtype="fp32"),
        TensorSpec("lens", ("seq_q",), dtype="int32"),
    )
    task = Task("t", "", "", "", {}, tensors=tensors)
    lens = torch.tensor([2, 0, 3, 1, 0, 0, 5, 1], dtype=torch.int32)
    given_ = {"slope": torch.tensor([0.25]), "lens": lens}
    loop = ir.For("j", e(0), ir.Element("lens", (e("i"),)), e(1), (add(X, ir.Element("slope", (e(0),))),))
    assert rows([ir.Init(X, e(0)), loop], task, **given_) == (lens * 0.25).tolist()


# --- loads, stores and rounding ----------------------------------------------------------------------------


def test_outside_a_matrix_is_pad_and_is_dropped_on_every_side() -> None:
    w = Workload("t", 1, 1, 1, 3, 3, 2, 2, "fp32")
    q = torch.arange(1.0, 7.0).view(1, 3, 1, 2)
    source, target = matrix("q", (0, "row", 0, "col"), 3, 2), matrix("out", (0, "row", 0, "col"), 3, 2)
    four = tile("F", 4, 4)
    body = [ir.Load(four, source, e(-1), e(-1), e(9)), add(four, 0), ir.Store(four, target, e(0), e(-1))]
    done = interpret(program(kernel("k", (), body)), FULL, w, {**inputs_of(w), "q": q})
    assert done.outputs["out"].flatten().tolist() == [9, 9, 1, 2, 3, 4]
    assert (done.counts.global_bytes_read, done.counts.global_bytes_written) == (4 * 6, 4 * 6)


def test_gemm_operands_are_rounded_and_sums_are_not() -> None:
    w = Workload("t", 1, 1, 1, 1, 1, 1, 1, "fp16")
    a, b, c = tile("A", 1, 2), tile("B", 2, 1), tile("C", 1, 1)
    third = 1 / 3
    init = [ir.Init(a, e(third)), ir.Init(b, e(2048.0)), ir.Init(c, e(2**-12))]
    store = [
        ir.Map(c, op("sub", ir.Ref(c), 1365)),
        ir.Store(c, matrix("out", (0, "row", 0, "col"), 1, 1), e(0), e(0)),
    ]
    p = program(kernel("k", (), [*init, ir.Gemm(ir.Operand(a), ir.Operand(b), c, True), *store]))
    want = 2 * 2048 * float(torch.tensor(third).half()) + 2**-12 - 1365
    assert interpret(p, FULL, w, inputs_of(w)).outputs["out"].item() == torch.tensor(want).half()


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        (tile("Z", 1, 1), False),
        (tile("Z", 1, 1, Level.SHARED), True),
        (tile("Z", 1, 1, dtype="half"), True),
        (tile("Z", 1, 1, Level.SHARED, "fp32"), False),
    ],
)
def test_a_move_rounds_into_shared_memory_and_to_the_dtype_of_a_tile(target: ir.Tile, kept: bool) -> None:
    w = FLAT.with_(dtype="fp16")
    body = [
        ir.Init(X, e(1 + 2**-12)),
        ir.Move(X, target),
        ir.Map(X, op("mul", op("sub", ir.Ref(target), 1), 4096)),
    ]
    p = program(kernel("k", BY_ROW, [*body, ir.Store(X, FLAT_OUT, e("i"), e(0))]))
    assert interpret(p, FULL, w, inputs_of(w)).outputs["out"].flatten().tolist() == [0.0 if kept else 1.0] * 8


@pytest.mark.parametrize(
    ("expr", "want"),
    [
        (op("sub", -math.inf, -math.inf), -math.inf),
        (op("exp", op("sub", ir.Ref(Y), ir.Ref(Y))), 0.0),
        (op("sub", 3, ir.Ref(Y)), 3.0),
        (op("div", 3, 0), 0.0),
        (op("div", ir.Ref(X), 0), 0.0),
        (op("div", ir.Ref(X), op("sub", ir.Ref(X), ir.Ref(X))), 0.0),
        (op("reciprocal", op("mul", 0, ir.Ref(X))), 0.0),
        (op("reciprocal", 4), 0.25),
        (op("max", ir.Ref(X), NAN), NAN),
        (op("min", 1, NAN), NAN),
        (op("max", NAN, 1), NAN),
        (op("max", 1, op("floordiv", 7, 2), 2), 3.0),
        (op("where", op("and", op("lt", ir.Ref(Y), 0), op("not", op("gt", 2, ir.Ref(X)))), 1, 7), 1.0),
        (op("where", op("or", op("ne", 1, 1), op("ge", ir.Ref(X), 3)), 1, 2.5), 2.5),
        (op("cast_bf16", 1 + 2**-9), 1.0),
        (op("cast_f16", op("mul", ir.Ref(X), 1 + 2**-13)), 2.0),
        (op("sub", op("cast_operand", op("add", ir.Ref(X), 2**-12)), 2), 2**-12),  # the workload is fp32
        (op("pow", ir.Ref(X), -1), 0.5),
        (op("pow", 2, 10), 1024.0),
        (op("exp2", op("neg", ir.Ref(X))), 0.25),
        (op("log2", 8), 3.0),
        (op("sigmoid", 0), 0.5),
        (op("relu", op("neg", ir.Ref(X))), 0.0),
        (op("abs", op("floor", -1.5)), 2.0),
        (op("mod", -1, 5), 4.0),
        (op("ceildiv", op("add", "zero", 7), 2), 4.0),
        (op("mul", op("eq", ir.Place("seq_q", 0, e(5)), 5), 3), 3.0),
        # exact where float32 is not: 2**24 + 1 is no float32
        (
            op("where", op("lt", ir.Place("seq_k", 1, e(2**24)), ir.Place("seq_q", 0, e(2**24 + 1))), 1, 0),
            1.0,
        ),
    ],
)
def test_elementwise(expr: ir.Expr, want: float) -> None:
    """X holds 2, Y -inf."""
    zero = ir.For("zero", e(0), e(1), e(1), (ir.Map(X, expr),))
    (got,) = set(map(str, rows([ir.Init(X, e(2)), ir.Init(Y, NEG_INF), zero])))
    assert got == str(want) or float(got) == want


# --- errors -------------------------------------------------------------------------------------------------

SOURCE = s.Compute("GEMM", (s.Name("Q"), s.Name("K")), (s.Get("S"),), pos=s.Pos(7, 3))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            ir.Gemm(ir.Operand(T["Q"]), ir.Operand(T["K"]), T["S"], False, source=SOURCE),
            r"\(32, 4\) @ \(16, 4\)",
        ),
        (
            ir.Gemm(ir.Operand(T["Q"]), ir.Operand(T["K"], True), T["O"], False, source=SOURCE),
            r"tile O is \(32, 2\)",
        ),
        (
            ir.Gemm(ir.Operand(T["Q"]), ir.Operand(T["K"], True), T["O"], True, source=SOURCE),
            "cannot be added",
        ),
        (
            ir.Gemm(
                ir.Operand(T["Q"], columns=(e(0), e(9))),
                ir.Operand(T["K"], True),
                T["S"],
                False,
                source=SOURCE,
            ),
            "Q has 4 columns, not 0:9",
        ),
        (ir.Map(T["S"], op("add", R["S"], R["Q"]), SOURCE), r"\(32, 16\) and \(32, 4\)"),
        (ir.Map(T["m"], R["S"], SOURCE), "does not fit"),
        (ir.Map(T["S"], op("mod", "i", op("sub", "i", "i")), SOURCE), "integer division by zero"),
        (ir.Map(T["S"], op("floordiv", 1, 0), SOURCE), "integer division by zero"),
        (ir.Map(T["S"], e("window"), SOURCE), "`window` has no value here"),
        (ir.Map(T["S"], op("frobnicate", 1), SOURCE), "no operation frobnicate of 1"),
        (ir.Map(T["S"], op("cast_fp3", 1), SOURCE), "dtype 'fp3'"),
        (
            ir.Map(T["S"], ir.Element("q", (e(0), e("seq_q"), e(0), e(0))), SOURCE),
            "index 1 of q is 3, outside 0 to 2",
        ),
        (ir.Map(tile("Z", "i", 1), e(0), SOURCE), "shape of tile Z depends on 'i'"),
        (ir.Map(tile("S", "BM", 8), R["S"], SOURCE), r"tile S is \(32, 16\)|does not fit"),
        (
            ir.Load(T["Q"], matrix("q", ("h", "row", 1, "col"), 3, 4), e(0), e(0), source=SOURCE),
            "along axis 2 is 1",
        ),
        (
            ir.Load(T["Q"], matrix("q", ("row", "col"), 3, 4), e(0), e(0), source=SOURCE),
            "indexes 2 axes of q",
        ),
        (ir.Load(T["Q"], matrix("q", ("b", "row", "h", "col"), 4, 4), e(0), e(0), source=SOURCE), "q has 3"),
        (
            ir.Load(T["Q"], matrix("q", ("b", "row", "h", 0), 3), e(0), e(0), source=SOURCE),
            "without a col axis",
        ),
        (
            ir.Load(T["Q"], matrix("x", ("row", "col"), 3, 4), e(0), e(0), source=SOURCE),
            "no tensor x; there are q, k",
        ),
        (ir.Load(T["Q"], Q, e(0.5), e(0), source=SOURCE), "a coordinate is not an integer"),
        (ir.Store(T["Q"], Q, e(0), e(0), source=SOURCE), "q is an input"),
        (ir.For("j", e(0), e(3), e(0), (), SOURCE), "step of a loop"),
        (ir.If(op("lt", R["S"], 0), (), source=SOURCE), "elements of a tile"),
        (ir.Softmax(T["S"], tile("short", 5), T["l"], T["S"], source=SOURCE), "does not fit"),
    ],
)
def test_an_error_names_the_statement(node: ir.Node, message: str) -> None:
    for body in ([node], [ir.For("j", e(0), e(1), e(1), (ir.If(op("ge", "i", 0), (node,)),))]):
        with pytest.raises(InterpretError, match=message) as caught:
            interpret(program(kernel("k", BHI, body)), FULL, TINY, inputs_of(TINY))
        assert caught.value.pos == s.Pos(7, 3)
        assert str(caught.value).startswith("line 7: `Compute GEMM Q, K and get S`: ")


def test_a_missing_or_misshapen_input_is_named() -> None:
    inputs = inputs_of(TINY)
    with pytest.raises(InterpretError, match=r"input k has shape \(1, 3, 1, 4\)"):
        interpret(flash(), CAUSAL, TINY, {**inputs, "k": inputs["q"]})
    with pytest.raises(InterpretError, match="no value for the task's input v"):
        interpret(flash(), CAUSAL, TINY, {"q": inputs["q"], "k": inputs["k"]})


# --- properties -----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    bm=st.integers(1, 40),
    bn=st.integers(1, 40),
    seq_q=st.integers(1, 50),
    seq_k=st.integers(1, 50),
    is_causal=st.booleans(),
    seed=st.integers(0, 9),
)
def test_the_tile_choice_does_not_change_the_result(
    bm: int, bn: int, seq_q: int, seq_k: int, is_causal: bool, seed: int
) -> None:
    w = Workload("t", 1, 2, 1, seq_q, seq_k, 8, 8, "fp32")
    inputs = inputs_of(w, seed)
    outs = [
        interpret(flash(is_causal), FULL, w, inputs, choice).outputs["out"]
        for choice in ({"BM": bm, "BN": bn}, {"BM": 64, "BN": 64})
    ]
    torch.testing.assert_close(*outs, atol=2e-6, rtol=1e-5)
