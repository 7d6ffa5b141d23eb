"""Kernels that the Numba back end generates: against the oracle, torch and the interpreter, built by hand as IR.

A kernel takes seconds to compile, so each program is compiled once and serves many shapes.
"""

from __future__ import annotations

import ast
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from numba.core import config as numba_config
from torch import Tensor

from harness.build.manifest import read_candidate
from harness.tl import ir
from harness.tl import syntax as s
from harness.tl.interpret import interpret
from harness.tl.lower import numba_ops
from harness.tl.lower.lowered import Lowered, LowerError
from harness.tl.lower.numba import lower_numba
from harness.tl.lower.numba_layout import aliases, transposed
from harness.tl.syntax import Level
from tasks.masks import causal, sliding_window
from tasks.oracle import expected
from tasks.softcap import capped
from tasks.spec import QKVO, Parameter, Task, TensorSpec, Workload

Piece = ir.Expr | int | float | str
WINDOW = (Parameter("window", "int", ""),)
SOFTCAP = (Parameter("softcap", "float", ""),)
FULL_TASK = Task("full", "", "", "", workloads={})
CAUSAL_TASK = Task("causal", "", "", "", workloads={}, mask=causal)
WINDOW_TASK = Task("window", "", "", "", workloads={}, mask=sliding_window, parameters=WINDOW)
CAP_TASK = Task("capped", "", "", "", workloads={}, mask=causal, score_mod=capped, parameters=SOFTCAP)


# --- building programs ------------------------------------------------------------------------------


def e(x: Piece) -> ir.Expr:
    return ir.Sym(x) if isinstance(x, str) else ir.Const(x) if isinstance(x, int | float) else x


def op(fn: str, *args: Piece) -> ir.Op:
    return ir.Op(fn, tuple(e(a) for a in args))


def tile(name: str, rows: Piece, cols: Piece = 1, level: Level = Level.REGISTER, **more: str) -> ir.Tile:
    return ir.Tile(name, level, (e(rows), e(cols)), **more)


def matrix(tensor: str, axes: Sequence[Piece], rows: Piece, cols: Piece = 1, **more: object) -> ir.Matrix:
    kept = tuple(a if a in ("row", "col") else e(a) for a in axes)
    return ir.Matrix(tensor.upper(), tensor, kept, e(rows), e(cols), None, None, **more)  # type: ignore[arg-type]


def ref(t: ir.Tile) -> ir.Ref:
    return ir.Ref(t)


KV_HEAD = op("floordiv", "h", "group")
MQ = matrix("q", ("b", "row", "h", "col"), "seq_q", "dim")
MK = matrix("k", ("b", "row", KV_HEAD, "col"), "seq_k", "dim")
MV = matrix("v", ("b", "row", KV_HEAD, "col"), "seq_k", "dim_v")
MO = matrix("out", ("b", "row", "h", "col"), "seq_q", "dim_v")
Q, K = tile("Q", "BM", "dim", Level.SHARED), tile("K", "BN", "dim", Level.SHARED)
V, O = tile("V", "BN", "dim_v", Level.SHARED), tile("O", "BM", "dim_v")  # noqa: E741
S, P = tile("S", "BM", "BN"), tile("P", "BM", "BN")
M, L, M_NEW, A, R = (tile(name, "BM") for name in ("m", "l", "m_new", "alpha", "total"))
ROW0, COL0 = op("mul", "i", "BM"), op("mul", "j", "BN")
KEYS = ir.Axis("seq_k", COL0)
POS_Q, POS_K = ir.Place("seq_q", 0, ROW0), ir.Place("seq_k", 1, COL0)
DIAGONAL = op("sub", "seq_k", "seq_q")
ALL_KEYS = op("ceildiv", "seq_k", "BN")
CAUSAL_KEYS = op(
    "min", ALL_KEYS, op("ceildiv", op("add", op("mul", op("add", "i", 1), "BM"), DIAGONAL), "BN")
)
NEG_INF, NAUGHT = ir.Const(-math.inf), ir.Const(0)
GRID = (
    ir.GridAxis("b", e("batch"), "batch"),
    ir.GridAxis("h", e("heads"), "heads"),
    ir.GridAxis("i", op("ceildiv", "seq_q", "BM"), "rows"),
)
SCALE = ir.Map(S, op("mul", ref(S), "scale"))
SCORES = ir.Gemm(ir.Operand(Q), ir.Operand(K, True), S, False)
SOFTMAX = ir.Softmax(S, M, L, S, (O,), across=KEYS)


def causal_mask(shift: int = 0) -> ir.Mask:
    return ir.Mask(S, op("le", POS_K, op("add", op("add", POS_Q, DIAGONAL), shift)), S)


def kernel(name: str, grid: tuple[ir.GridAxis, ...], body: Sequence[ir.Node]) -> ir.Kernel:
    found = list(ir.nodes(tuple(body)))
    matrices = [n.matrix for n in found if isinstance(n, ir.Load | ir.Store)]
    tiles = [t for n in found for t in (*ir.writes(n), *ir.reads(n))]
    return ir.Kernel(name, grid, tuple(dict.fromkeys(matrices)), tuple(dict.fromkeys(tiles)), tuple(body))


def program(
    name: str, task: Task, *kernels: ir.Kernel, parameters: tuple[tuple[str, tuple[int, ...]], ...] = ()
) -> ir.Program:
    return ir.Program(name, task.name, kernels, parameters or (("BM", (32, 64)), ("BN", (16, 32))))


def flash(
    name: str,
    task: Task,
    scores: Sequence[ir.Node],
    stop: ir.Expr = ALL_KEYS,
    start: ir.Expr = NAUGHT,
    p: ir.Tile = S,
) -> ir.Program:
    """TL.md section 1 with these statements between the load of K and that of V; O += p V."""
    loop = ir.For("j", start, stop, e(1), (
        ir.Load(K, MK, COL0, e(0)), *scores, ir.Load(V, MV, COL0, e(0)),
        ir.Reshape(p), ir.Gemm(ir.Operand(p), ir.Operand(V), O, True, KEYS),
    ))  # fmt: skip
    body = [
        ir.Init(M, NEG_INF), ir.Init(L, e(0)), ir.Init(S, None), ir.Init(O, e(0)), ir.Load(Q, MQ, ROW0, e(0)),
        loop, ir.Map(O, op("div", ref(O), ref(L))), ir.Store(O, MO, ROW0, e(0)),
    ]  # fmt: skip
    return program(name, task, kernel(name, GRID, body))


CAUSAL = flash("causal", CAUSAL_TASK, [SCORES, SCALE, causal_mask(), SOFTMAX], CAUSAL_KEYS)
SHIFTED = flash("shifted", CAUSAL_TASK, [SCORES, SCALE, causal_mask(-1), SOFTMAX], CAUSAL_KEYS)

DISTANCE = op("sub", op("add", POS_Q, DIAGONAL), POS_K)
WINDOW_MASK = ir.Mask(S, op("and", op("le", 0, DISTANCE), op("lt", DISTANCE, "window")), P)
FIRST_SEEN = op("sub", op("add", op("add", ROW0, DIAGONAL), 1), "window")
WINDOWED = flash(
    "windowed", WINDOW_TASK,
    [SCORES, SCALE, WINDOW_MASK, ir.Softmax(P, M, L, S, (), A, KEYS), ir.Map(O, op("mul", ref(O), ref(A)))],
    CAUSAL_KEYS, op("floordiv", op("max", 0, FIRST_SEEN), "BN"),
)  # fmt: skip

K_REG, Q_REG = tile("K", "BN", "dim"), tile("Q", "BM", "dim")
HALF = op("floordiv", "dim", 2)
SLICED = flash("sliced", FULL_TASK, [
    ir.Move(K, K_REG), ir.Move(Q, Q_REG),
    ir.Gemm(ir.Operand(Q_REG, False, (e(0), HALF)), ir.Operand(K_REG, True, (e(0), HALF)), S, False),
    ir.Gemm(ir.Operand(Q_REG, False, (HALF, e("dim"))), ir.Operand(K_REG, True, (HALF, e("dim"))), S, True),
    SCALE, SOFTMAX,
])  # fmt: skip

SPELLED = flash("spelled", CAP_TASK, [
    SCORES, SCALE,
    ir.Map(S, op("mul", "softcap", op("tanh", op("div", ref(S), "softcap")))),
    causal_mask(),
    ir.Reduce("max", ref(S), S.shape, M_NEW, ref(M), KEYS),
    ir.Map(A, op("exp", op("sub", ref(M), ref(M_NEW)))),
    ir.Map(P, op("exp", op("sub", ref(S), ref(M_NEW)))),
    ir.Reduce("sum", ref(P), P.shape, R, None, KEYS),
    ir.Map(L, op("add", op("mul", ref(L), ref(A)), ref(R))),
    ir.Map(O, op("mul", ref(O), ref(A))),
    ir.Move(M_NEW, M),
], CAUSAL_KEYS, p=P)  # fmt: skip


# --- running them -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("numba")


Attention = Callable[..., None]


@pytest.fixture(scope="session")
def compiled(folder: Path) -> Callable[[str], Attention]:
    """The `attention` of a program of PROGRAMS, imported as a candidate would be; one module each."""

    @cache
    def get(name: str) -> Attention:
        made, task = PROGRAMS[name]
        lowered = lower_numba(made, task)
        if name not in AS_GENERATED:
            text = lowered.files["attention.py"].replace("parallel=True", "parallel=False")
            lowered = replace(lowered, files={**lowered.files, "attention.py": text})
        attention: Attention = module(lowered, folder / name).attention

        def call_it(*args: object, **scalars: object) -> None:
            with optimised_for(name):
                attention(*args, **scalars)

        return call_it

    return get


AS_GENERATED = ("causal", "spelled")  # the others compile without threads and with little optimisation


@contextmanager
def optimised_for(name: str) -> Iterator[None]:
    """Full optimisation takes seconds a kernel: it is for those whose vectorised code is to be seen right."""
    before = numba_config.OPT
    numba_config.OPT = before if name in AS_GENERATED else type(before)(1)
    try:
        yield
    finally:
        numba_config.OPT = before


def module(lowered: Lowered, folder: Path) -> ModuleType:
    path = lowered.write(folder) / "attention.py"
    spec = importlib.util.spec_from_file_location(f"generated_{folder.name}", path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def workload(
    task: Task, heads: tuple[int, int], seq: tuple[int, int], dim: tuple[int, int] = (16, 16), **params: float
) -> Workload:
    return Workload(task.name, 2, *heads, *seq, *dim, "fp32", parameters=tuple(params.items()))


def random_inputs(task: Task, w: Workload) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {t.name: torch.randn(t.shape(w)) for t in task.inputs}


def call(attention: Attention, task: Task, w: Workload, inputs: Mapping[str, Tensor]) -> Tensor:
    (spec,) = task.outputs
    out = torch.full(spec.shape(w), math.nan)
    attention(*inputs.values(), out, **task.scalars(w))
    return out


def check(attention: Attention, task: Task, w: Workload) -> None:
    inputs = random_inputs(task, w)
    torch.testing.assert_close(
        call(attention, task, w, inputs), expected(task, w, inputs)["out"].float(), atol=3e-6, rtol=1e-5
    )


# --- attention --------------------------------------------------------------------------------------

SHAPES = [
    ((2, 2), (64, 64)),  # tiles fit
    ((4, 2), (50, 77)),  # nothing divides; a group of heads shares keys
    ((4, 1), (33, 100)),
    ((2, 2), (90, 21)),  # the first rows see no key
    ((1, 1), (1, 1)),
]


@pytest.mark.parametrize("heads,seq", SHAPES)
@pytest.mark.parametrize("name", ["causal", "windowed", "sliced", "spelled"])
def test_attention_of_any_shape(
    compiled: Callable[[str], Attention], name: str, heads: tuple[int, int], seq: tuple[int, int]
) -> None:
    task = PROGRAMS[name][1]
    values = {"window": 19, "softcap": 1.5}
    params = {p.name: values[p.name] for p in task.parameters}
    check(compiled(name), task, workload(task, heads, seq, **params))


@pytest.mark.parametrize("dim", [(192, 128), (40, 24), (3, 5)])
def test_head_dimensions_that_differ_or_fill_no_register(
    compiled: Callable[[str], Attention], dim: tuple[int, int]
) -> None:
    check(compiled("causal"), CAUSAL_TASK, workload(CAUSAL_TASK, (2, 1), (40, 60), dim))


@pytest.mark.parametrize("window", [1, 16, 1000])
def test_windows_narrower_and_wider_than_a_tile(compiled: Callable[[str], Attention], window: int) -> None:
    check(compiled("windowed"), WINDOW_TASK, workload(WINDOW_TASK, (2, 2), (80, 95), window=window))


def test_rows_without_a_key_are_zero(compiled: Callable[[str], Attention]) -> None:
    w = workload(CAUSAL_TASK, (1, 1), (70, 10))
    out = call(compiled("causal"), CAUSAL_TASK, w, random_inputs(CAUSAL_TASK, w))
    assert bool((out[:, :60] == 0).all())
    assert bool((out[:, 60:] != 0).any())


def test_large_scores_neither_overflow_nor_vanish(compiled: Callable[[str], Attention]) -> None:
    w = workload(CAUSAL_TASK, (1, 1), (40, 40))
    inputs = {name: 30 * t for name, t in random_inputs(CAUSAL_TASK, w).items()}
    want = expected(CAUSAL_TASK, w, inputs)["out"].float()
    torch.testing.assert_close(call(compiled("causal"), CAUSAL_TASK, w, inputs), want, atol=2e-3, rtol=1e-4)


def test_strided_inputs_and_outputs(compiled: Callable[[str], Attention]) -> None:
    w = workload(CAUSAL_TASK, (2, 2), (40, 40))
    inputs = random_inputs(CAUSAL_TASK, w)
    strided = [t.transpose(1, 3).contiguous().transpose(1, 3) for t in inputs.values()]
    out = torch.zeros(2, 2, 40, 16).transpose(1, 2)
    compiled("causal")(*strided, out, scale=w.softmax_scale)
    torch.testing.assert_close(out, expected(CAUSAL_TASK, w, inputs)["out"].float(), atol=3e-6, rtol=1e-5)


def test_a_mutant_gives_an_equally_mutated_kernel(compiled: Callable[[str], Attention]) -> None:
    """With the edge of the mask one key early the kernel is causal attention with one key less."""
    w = workload(CAUSAL_TASK, (2, 2), (50, 70))
    inputs = random_inputs(CAUSAL_TASK, w)
    early = Task("early", "", "", "", workloads={}, mask=lambda i, j, w: j <= i + w.diagonal - 1)
    got = call(compiled("shifted"), CAUSAL_TASK, w, inputs)
    torch.testing.assert_close(got, expected(early, w, inputs)["out"].float(), atol=3e-6, rtol=1e-5)
    assert (got - expected(CAUSAL_TASK, w, inputs)["out"]).abs().max() > 0.01


def test_other_dtypes_are_refused(compiled: Callable[[str], Attention]) -> None:
    tensors = [torch.zeros(1, 4, 1, 8, dtype=torch.float16) for _ in range(4)]
    with pytest.raises(TypeError, match=r"fp32, not torch\.float16"):
        compiled("causal")(*tensors, scale=1.0)


# --- several kernels, branches, steps ---------------------------------------------------------------

# Split-KV: each block of the first kernel takes one part of the keys, a second kernel merges the parts.
PART_O = matrix(
    "part_o", ("b", "h", "t", "row", "col"), "seq_q", "dim_v",
    workspace=(e("batch"), e("heads"), e("PARTS"), e("seq_q"), e("dim_v")),
)  # fmt: skip
PART_L = matrix(
    "part_l", ("b", "h", "t", "row"), "seq_q", 1, workspace=(e("batch"), e("heads"), e("PARTS"), e("seq_q"))
)
PER_PART = op("mul", op("ceildiv", op("ceildiv", "seq_k", "BN"), "PARTS"), "BN")
AT = ir.Axis("seq_k", e("key"))
LOG = tile("log_sum", "BM")
TOTAL = tile("sum_of_parts", "BM")
ALONE = ir.Gemm(ir.Operand(S), ir.Operand(V), O, True, AT)
PARTIAL = [
    ir.Init(M, NEG_INF), ir.Init(L, e(0)), ir.Init(O, e(0)), ir.Load(Q, MQ, ROW0, e(0)),
    ir.For("key", op("mul", "t", PER_PART), op("min", "seq_k", op("mul", op("add", "t", 1), PER_PART)), e("BN"), (
        ir.Load(K, MK, e("key"), e(0)), SCORES, SCALE,
        ir.Softmax(S, M, L, S, (O,), across=AT), ir.Load(V, MV, e("key"), e(0)), ALONE,
    )),
    ir.Map(O, op("mul", ref(O), op("reciprocal", ref(L)))), ir.Map(LOG, op("add", ref(M), op("log", ref(L)))),
    ir.Store(O, PART_O, ROW0, e(0)), ir.Store(LOG, PART_L, ROW0, e(0)),
]  # fmt: skip
PART = tile("part", "BM", "dim_v")
MERGE = [
    ir.Init(M, NEG_INF), ir.Init(TOTAL, e(0)), ir.Init(O, e(0)),
    ir.For("t", e(0), e("PARTS"), e(1), (
        ir.If(op("lt", op("mul", "t", PER_PART), "seq_k"), (
            ir.Load(LOG, PART_L, ROW0, e(0)), ir.Load(PART, PART_O, ROW0, e(0)),
            ir.Map(M_NEW, op("max", ref(M), ref(LOG))),
            ir.Map(A, op("exp", op("sub", ref(M), ref(M_NEW)))),
            ir.Map(L, op("exp", op("sub", ref(LOG), ref(M_NEW)))),
            ir.Map(O, op("add", op("mul", ref(O), ref(A)), op("mul", ref(PART), ref(L)))),
            ir.Map(TOTAL, op("add", op("mul", ref(TOTAL), ref(A)), ref(L))), ir.Move(M_NEW, M),
        )),
    )),
    ir.Map(O, op("div", ref(O), ref(TOTAL))), ir.Store(O, MO, ROW0, e(0)),
]  # fmt: skip
SPLIT_KV = program(
    "split_kv", FULL_TASK,
    kernel("partial", (*GRID, ir.GridAxis("t", e("PARTS"))), PARTIAL), kernel("merge", GRID, MERGE),
    parameters=(("BM", (16,)), ("BN", (16,)), ("PARTS", (3,))),
)  # fmt: skip


@pytest.mark.parametrize("seq", [(20, 100), (33, 31), (16, 5)])
def test_split_kv_through_workspaces(compiled: Callable[[str], Attention], seq: tuple[int, int]) -> None:
    check(compiled("split_kv"), FULL_TASK, workload(FULL_TASK, (4, 2), seq))


# --- every operation, one per head ------------------------------------------------------------------

X, Y, Z = (tile(name, "BM", "dim") for name in "XYZ")
ROW, COLUMN, ONE = tile("row_vector", 1, "dim"), tile("column_vector", "BM"), tile("one", 1, 1)
x, y = ref(X), ref(Y)
MX = matrix("q", ("b", "row", 0, "col"), "seq_q", "dim")
MY = matrix("k", ("b", "row", 0, "col"), "seq_k", "dim")
Q_AT, C_AT = ir.Place("seq_q", 0, ROW0), ir.Place("seq_k", 1, op("mul", "b", 3))
VALUES: dict[str, ir.Expr] = {
    "add": op("add", x, y, 2),
    "sub": op("sub", x, y),
    "sub -inf": op("sub", x, op("where", op("gt", y, 0), NEG_INF, y)),
    "mul": op("mul", x, y, 0.5),
    "div": op("div", x, op("where", op("gt", y, 0), 0, y)),
    "div of whole numbers": op("div", op("add", Q_AT, 1), op("add", C_AT, 2)),
    "floordiv": op("floordiv", op("sub", Q_AT, 7), op("add", C_AT, 1)),
    "ceildiv": op("ceildiv", op("sub", Q_AT, 7), op("add", C_AT, 1)),
    "mod": op("mod", op("sub", Q_AT, 7), op("add", C_AT, 1)),
    "min": op("min", x, y, 0.25),
    "max": op("max", x, y, op("sub", C_AT, Q_AT)),
    "neg": op("neg", op("sub", x, op("neg", y))),
    "compare": op(
        "add", op("lt", x, y), op("mul", 2, op("ge", x, 0)), op("mul", 4, op("ne", x, y)), op("eq", x, x)
    ),
    "logic": op("or", op("and", op("le", x, y), op("not", op("lt", x, 0))), op("eq", Q_AT, C_AT)),
    "pow": op("pow", op("abs", x), 1.5),
    "square": op("add", op("pow", x, 2), op("pow", Q_AT, 2)),
    "abs": op("abs", op("mul", x, op("abs", op("sub", C_AT, Q_AT)))),
    "exp": op("exp", op("mul", x, 20)),
    "exp -inf": op("exp", op("where", op("gt", y, 0), NEG_INF, x)),
    "exp2": op("exp2", op("mul", x, 20)),
    "log": op("log", op("abs", x)),
    "log2": op("log2", op("abs", x)),
    "sqrt": op("sqrt", op("abs", x)),
    "rsqrt": op("rsqrt", op("abs", x)),
    "tanh": op("tanh", op("mul", x, 3)),
    "sigmoid": op("sigmoid", op("mul", x, 10)),
    "relu": op("relu", x),
    "reciprocal": op("reciprocal", op("where", op("gt", y, 0), 0, y)),
    "floor": op("floor", op("mul", x, 3)),
    "where": op("where", op("le", C_AT, Q_AT), x, 1),
    "cast_fp16": op("cast_fp16", op("mul", x, op("exp", op("mul", y, 4)))),
    "cast_fp16 small": op("cast_fp16", op("mul", x, 1e-6)),
    "cast_bf16": op("cast_bf16", x),
    "cast_operand": op("cast_operand", x),
    "vectors": op("add", op("mul", x, ref(ROW)), op("mul", ref(COLUMN), ref(ONE))),
    "symbols": op("add", op("mul", x, "scale"), op("floordiv", op("add", "seq_q", "h"), 3)),
}


def one_per_head(parts: Sequence[tuple[ir.Node, ...]]) -> tuple[ir.Node, ...]:
    return tuple(ir.If(op("eq", "h", at), part) for at, part in enumerate(parts))


EACH = program("each", FULL_TASK, kernel("each", GRID, [
    ir.Load(X, MX, ROW0, e(0)), ir.Load(Y, MY, ROW0, e(0)),
    ir.Load(ROW, MX, e(1), e(0)), ir.Load(COLUMN, MY, ROW0, e(2)), ir.Load(ONE, MX, e(0), e(0)),
    *one_per_head([(ir.Map(Z, value),) for value in VALUES.values()]),
    ir.Store(Z, MO, ROW0, e(0)),
]), parameters=(("BM", (16,)),))  # fmt: skip


def test_every_function_of_values(compiled: Callable[[str], Attention]) -> None:
    """The interpreter evaluates with torch; a head for each function."""
    w = Workload("full", 1, len(VALUES), 1, 37, 37, 24, 24, "fp32")
    inputs = random_inputs(FULL_TASK, w)
    got = call(compiled("each"), FULL_TASK, w, inputs)
    want = interpret(EACH, FULL_TASK, w, inputs).outputs["out"]
    for at, name in enumerate(VALUES):
        torch.testing.assert_close(
            got[:, :, at], want[:, :, at], rtol=5e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


# --- every way to move data -------------------------------------------------------------------------

TABLE = TensorSpec("table", ("batch", "seq_q"), "input", "int32")
SLOPE = TensorSpec("slope", ("heads",), "input")
MOVING_TASK = Task("moving", "", "", "", workloads={}, tensors=(*QKVO[:3], TABLE, SLOPE, QKVO[3]))
VIA = matrix("table", ("b", "row"), "seq_q")
HALF_X, SMALL = tile("rounded", "BM", "dim", dtype="fp16"), tile("T", "dim", "dim")
W = tile("W", "BM", "BM")
STATE, SUM = (ir.Init(M, NEG_INF), ir.Init(L, e(0))), tile("sum", "BM")
MOVES: dict[str, tuple[ir.Node, ...]] = {
    "pad": (ir.Load(X, MX, op("add", ROW0, 5), e(3), e(7.5)),),
    "before the beginning": (ir.Load(X, MX, op("sub", ROW0, 5), e(-3), NEG_INF), ir.Map(X, op("max", ref(X), -9))),
    "gather": (ir.Load(X, MY, ROW0, e(0), e(-1), VIA),),
    "element": (ir.Map(X, op("mul", ir.Element("slope", (e("h"),)), ir.Element("table", (e("b"), op("min", "i", 3))))),),
    "rounded tile": (ir.Load(HALF_X, MX, ROW0, e(0)), ir.Map(HALF_X, op("div", ref(HALF_X), 3)), ir.Move(HALF_X, X)),
    "store past the end": (ir.Store(Y, MO, ROW0, e(0)), ir.Store(X, MO, ROW0, e(20)), ir.Load(X, MO, ROW0, e(0))),
    "both transposed": (
        ir.Gemm(ir.Operand(X, True), ir.Operand(Y), SMALL, False), ir.Gemm(ir.Operand(X), ir.Operand(SMALL, True), Z, False),
        ir.Map(X, op("div", ref(Z), 10)),
    ),
    "product in place": (
        ir.Gemm(ir.Operand(X), ir.Operand(Y, True), W, False), ir.Gemm(ir.Operand(W), ir.Operand(X), X, False),
        ir.Map(X, op("div", ref(X), 10)),
    ),
    "dead rows of a product": (
        ir.Init(W, e(0.1)), ir.Gemm(ir.Operand(W), ir.Operand(Y), X, False, ir.Axis("seq_k", ROW0)),
    ),
    "reductions": (
        ir.Reduce("sum", op("mul", x, y), X.shape, SUM), ir.Reduce("max", x, X.shape, M, op("mul", ref(SUM), 0.1)),
        ir.Map(X, op("add", ref(M), ref(SUM))),
    ),
    "dead columns": (
        ir.Reduce("sum", x, X.shape, SUM, e(1), ir.Axis("seq_k", e(20))), ir.Reduce("max", y, X.shape, M, None, ir.Axis("seq_k", e(36))),
        ir.Map(X, op("mul", ref(M), ref(SUM))),
    ),
    "softmax, rounded": (
        *STATE, ir.Softmax(X, M, L, HALF_X, (), SUM, ir.Axis("seq_k", e(18))), ir.Map(X, op("add", ref(HALF_X), op("log", ref(L)))),
    ),
    "nothing allowed": (
        *STATE, ir.Mask(X, op("lt", Q_AT, 0), Z), ir.Softmax(Z, M, L, Z), ir.Map(X, op("add", ref(Z), op("div", 1, ref(L)))),
    ),
    "shadowed": (
        ir.For("i", e(1), e(6), e(2), (ir.Map(X, op("add", ref(X), "i")),)),
        ir.For("r", e(0), e("i"), e(1), (ir.Map(X, op("add", ref(X), "r")),)),
    ),
    "else": (ir.If(op("lt", "i", 1), (ir.Map(X, op("neg", x)),), (ir.If(op("eq", "i", 1), (), (ir.Map(X, op("mul", x, 2)),)),)),),
}  # fmt: skip
MOVING = program("moving", MOVING_TASK, kernel("moving", GRID, [
    ir.Load(X, MX, ROW0, e(0)), ir.Load(Y, MY, ROW0, e(0)), ir.Init(Z, None),
    *one_per_head([*MOVES.values()]),
    ir.Store(X, MO, ROW0, e(0)),
]), parameters=(("BM", (16,)),))  # fmt: skip


def test_every_way_to_move_and_combine_tiles(compiled: Callable[[str], Attention]) -> None:
    w = Workload("moving", 2, len(MOVES), 1, 37, 37, 24, 24, "fp32")
    torch.manual_seed(0)
    q, k, v = (torch.randn(t.shape(w)) for t in QKVO[:3])
    # page 40 does not exist; the last one does
    table = torch.randint(0, 37, (2, 37), dtype=torch.int32)
    table[0, 3], table[1, 5] = 36, 40
    inputs = {"q": q, "k": k, "v": v, "table": table, "slope": torch.linspace(0.5, 1, len(MOVES))}
    got = call(compiled("moving"), MOVING_TASK, w, inputs)
    want = interpret(MOVING, MOVING_TASK, w, inputs).outputs["out"]
    assert not bool(want.isnan().any())
    for at, name in enumerate(MOVES):
        torch.testing.assert_close(
            got[:, :, at], want[:, :, at], rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


PROGRAMS = {
    "causal": (CAUSAL, CAUSAL_TASK),
    "shifted": (SHIFTED, CAUSAL_TASK),
    "windowed": (WINDOWED, WINDOW_TASK),
    "sliced": (SLICED, FULL_TASK),
    "spelled": (SPELLED, CAP_TASK),
    "split_kv": (SPLIT_KV, FULL_TASK),
    "each": (EACH, FULL_TASK),
    "moving": (MOVING, MOVING_TASK),
}


# --- the text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_text_is_deterministic_and_the_folder_a_candidate(name: str, tmp_path: Path) -> None:
    made, task = PROGRAMS[name]
    lowered = lower_numba(made, task)
    assert lowered == lower_numba(made, task)
    ast.parse(lowered.files["attention.py"])
    manifest = read_candidate(lowered.write(tmp_path))
    assert (manifest.tasks, manifest.backend, manifest.targets) == ((task.name,), "numba", ("cpu",))


def test_tile_parameters_are_constants_of_the_choice() -> None:
    assert "\nBM = 32\nBN = 16\n" in lower_numba(CAUSAL, CAUSAL_TASK).files["attention.py"]
    chosen = lower_numba(CAUSAL, CAUSAL_TASK, {"BN": 48})
    assert "\nBM = 32\nBN = 48\n" in chosen.files["attention.py"]
    assert chosen.choice == {"BM": 32, "BN": 48}
    with pytest.raises(LowerError, match="no tile parameter BK; there are: BM, BN"):
        lower_numba(CAUSAL, CAUSAL_TASK, {"BK": 1})


def test_masks_are_evaluated_only_where_they_hide_something() -> None:
    text = lower_numba(CAUSAL, CAUSAL_TASK).files["attention.py"]
    guard = text.index("if not full:")
    assert text.index("for j in range") < guard < text.index("choose(j * BN + c <=")


def test_each_statement_stands_as_a_comment_above_its_code_once() -> None:
    said = s.Compute("Multiply", (s.Name("S"), s.Name("scale")), (s.Get("S", True),))
    twice = [SCORES, ir.Map(S, SCALE.expr, said), ir.Map(S, ref(S), said), SOFTMAX]
    text = lower_numba(flash("said", FULL_TASK, twice), FULL_TASK).files["attention.py"]
    assert text.count("# Compute Multiply S, scale and get new S\n") == 1


def test_names_of_a_program_do_not_collide_with_the_codes_own() -> None:
    odd = {
        "np": tile("np", "BM"),
        "row": tile("row", "BM"),
        "lambda": tile("lambda", "BM"),
        "exp": tile("exp", "BM"),
    }
    body = [ir.Init(t, e(1)) for t in odd.values()]
    body += [ir.Map(odd["np"], op("exp", op("add", *(ref(t) for t in odd.values()))))]
    text = lower_numba(program("range", FULL_TASK, kernel("range", GRID, body)), FULL_TASK).files[
        "attention.py"
    ]
    ast.parse(text)
    assert "np_[r, 0] = exp(np_[r, 0] + row_[r, 0] + lambda_[r, 0] + exp_[r, 0])" in text


# --- layouts ----------------------------------------------------------------------------------------


def test_keys_that_only_enter_scores_are_kept_transposed_even_through_registers() -> None:
    body = SLICED.kernels[0].body
    shared = aliases(body)
    assert shared == {K_REG: K, Q_REG: Q}
    assert transposed(body, shared) == {K}


def test_a_copy_that_is_written_again_or_outlives_its_source_is_a_copy() -> None:
    move = ir.Move(K, K_REG)
    assert not aliases((ir.Load(K, MK, e(0), e(0)), move, ir.Init(K, e(0)), ir.Map(X, ref(K_REG))))
    assert not aliases((move, ir.Map(K_REG, op("neg", ref(K_REG)))))
    assert not aliases((ir.Map(X, ref(K_REG)), move))


def test_a_tile_that_is_read_otherwise_too_is_not_turned() -> None:
    body = CAUSAL.kernels[0].body
    assert transposed(body, {}) == {K}
    assert transposed((*body, ir.Map(P, ref(K))), {}) == frozenset()


# --- what cannot be lowered -------------------------------------------------------------------------

SAID = s.Compute("Exp", (s.Name("S"),), (s.Get("S", True),), pos=s.Pos(7, 1))


@pytest.mark.parametrize(
    "node,message",
    [
        (
            ir.Map(S, op("erf", ref(S)), SAID),
            r"line 7: `Compute Exp S and get new S`: there is no code .* erf",
        ),
        (ir.Map(S, e("softcap"), SAID), "`softcap` has no value here"),
        (ir.Map(S, op("cast_fp8", ref(S)), SAID), "cannot be rounded to fp8"),
        (ir.Store(Q, MQ, ROW0, e(0), SAID), "q is an input"),
        (ir.For("j", e(0), e(4), e(0), (), SAID), "at least 1"),
        (ir.Load(X, MX, e(0), ir.Place("seq_q", 0, e(0)), source=SAID), "no scalar"),
        (ir.For("j", e("scale"), e(4), e(1), (), SAID), "no whole number"),
    ],
)
def test_errors_name_the_statement(node: ir.Node, message: str) -> None:
    with pytest.raises(LowerError, match=message) as caught:
        lower_numba(program("bad", FULL_TASK, kernel("bad", GRID, [node])), FULL_TASK)
    assert caught.value.pos.line == 7


def test_shapes_that_agree_for_some_workloads_only_are_checked_in_the_call(folder: Path) -> None:
    body = [ir.Gemm(ir.Operand(X), ir.Operand(V), O, False, None, SAID), ir.Store(O, MO, ROW0, e(0))]
    made = module(
        lower_numba(program("some", FULL_TASK, kernel("some", GRID, body)), FULL_TASK), folder / "some"
    )
    with pytest.raises(ValueError, match="line 7: the inner sizes of the product differ"):
        made.attention(*(torch.zeros(1, 4, 1, 8) for _ in range(4)), scale=1.0)


# --- the runtime functions --------------------------------------------------------------------------


@pytest.mark.parametrize("m,k,n", [(8, 4, 16), (13, 7, 50), (3, 5, 7)])
def test_multiply_add_with_remainders_along_every_axis(m: int, k: int, n: int) -> None:
    a, b, c = (np.random.default_rng(0).normal(size=s).astype(np.float32) for s in ((m, k), (k, n), (m, n)))
    want = c + a[:, : k - 1] @ b[: k - 1]
    numba_ops.multiply_add(a, b, c, k - 1, True)
    np.testing.assert_allclose(c, want, rtol=1e-5, atol=1e-5)


def test_exp2_over_its_whole_range() -> None:
    values = np.linspace(-126, 127, 4001, dtype=np.float32)
    got = np.array([numba_ops.exp2(v) for v in values])
    np.testing.assert_allclose(got, np.exp2(values.astype(np.float64)), rtol=3e-7)
    assert numba_ops.exp2(np.float32(-np.inf)) == 0
    assert numba_ops.exp2(np.float32(np.inf)) == np.inf


def test_tanh_to_a_few_units_in_the_last_place() -> None:
    values = np.linspace(-12, 12, 4001, dtype=np.float32)
    got = np.array([numba_ops.tanh(v) for v in values])
    np.testing.assert_allclose(got, np.tanh(values.astype(np.float64)), rtol=3e-7)
