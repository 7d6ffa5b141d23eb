"""The checker finds each kind of defect where it is, all of them, and nothing in a correct program."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import harness.tl
from harness.targets import TARGETS, find_target
from harness.tl.check import Report, check
from harness.tl.diagnostics import CODES, Severity
from harness.tl.space import pruned, space
from tasks import find

CORPUS = Path(harness.tl.__file__).with_name("corpus")
PROGRAMS = {f"{p.parent.name}/{p.name}": p.read_text() for p in sorted(CORPUS.glob("*/*.tl"))}
CODE = sorted(name for name in PROGRAMS if not name.startswith("sketch"))
SKETCHES = sorted(set(PROGRAMS) - set(CODE))


def task_of(name: str) -> str:
    """The task that a program of the corpus names, by its first line or its file."""
    first = re.match(r"# task: (\w+)", PROGRAMS[name])
    if name in SKETCHES:
        return {"03_window": "sliding_window", "04_softcap_by_hand": "softcap"}.get(
            Path(name).stem, "mha_causal"
        )
    return first[1] if first else Path(name).stem


@dataclass(frozen=True)
class Mutant:
    """One defect: the program, (old, new) pieces of its text, and a part of the line that is to blame."""

    code: str
    program: str
    edits: tuple[tuple[str, str], ...]
    line: str
    target: str | None = None
    dtype: str = "fp16"
    task: str | None = None

    @property
    def text(self) -> str:
        text = PROGRAMS[self.program]
        for old, new in self.edits:
            assert old in text, f"{old!r} is not in {self.program}"
            text = text.replace(old, new, 1)
        return text

    def run(self) -> Report:
        target = find_target(self.target) if self.target else None
        return check(self.text, find(self.task or task_of(self.program)), target=target, dtype=self.dtype)


REF, PRIM = "reference/mha_causal.tl", "primitive/gqa_causal.tl"
WINDOW, FULL = "reference/sliding_window.tl", "reference/mha.tl"
ALPHA, FEED = "    Compute O = O * alpha\n", "Compute GEMM P, V and accumulate O"
SOFTMAX, MASK = (
    "    Compute Softmax S, m, l and rescale O\n",
    "    Compute Mask S where k <= q + seq_k - seq_q\n",
)
SCALE, RESHAPE = (
    "    Compute Multiply S, scale and get new S\n",
    "    Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new)\n",
)
LOOP = "for j = 0 : min(ceil(seq_k / BN), ceil(((i + 1) * BM + seq_k - seq_q) / BN))"
DIVIDE, STORE = (
    "Compute Divide O, l and get new O\n",
    "Copy O (BM, dim_v) in coordinate [L = i] from register to global\n",
)
COPY_K = "    Copy K (BN, dim) in coordinate [L = j] from global to shared\n"
COPY_V = "    Copy V (BN, dim_v) in coordinate [L = j] from global to shared\n"
SCHEDULE = PROGRAMS[REF].rstrip().split("\n")[-1]
TILES = "Tile BM in {64, 128}, BN in {32, 64, 128}"


def mutant(code: str, program: str, *edits: str, line: str, **more: str) -> Mutant:
    return Mutant(code, program, tuple(zip(edits[::2], edits[1::2], strict=True)), line, **more)


MUTANTS = [
    # --- syntax and words
    mutant("TL001", REF, "Compute GEMM Q, K^T and get S", "Compute GEMM Q,, K^T and get S", line="Q,,"),
    mutant("TL002", REF, "end\n", "", line=SCHEDULE),
    mutant("TL003", REF, SCHEDULE, "end", line="end\n"),
    mutant("TL006", REF, "Compute Divide", "Compute Divvy", line="Divvy"),
    mutant("TL007", REF, "Compute GEMM Q, K^T", "Compute GEMM Q", line="GEMM Q and"),
    mutant("TL007", REF, "Allocate m in register (BM) init -inf\n", "", line="Softmax"),
    mutant("TL007", REF, "GEMM S, V", "GEMM seq_k, V", line="GEMM seq_k"),
    # --- names
    mutant("TL101", REF, "Multiply S, scale and get new S", "Multiply Z, scale and get new S", line="Multiply Z"),
    mutant("TL102", REF, STORE, "", line=SCHEDULE),
    mutant("TL103", REF, "Allocate S in register (BM, BN)\n", "Allocate S in register (BM, BN)\nAllocate X in register (BM) init 0\n", line="Allocate X"),
    mutant("TL104", REF, "Allocate l in register (BM) init 0\n", "Allocate l in register (BM) init 0\nAllocate l in register (BM) init 0\n", line="Allocate l"),
    mutant("TL105", REF, "ceil(seq_k / BN)", "ceil(sek_q / BN)", line="sek_q"),
    mutant("TL106", REF, "Allocate V in global", "Allocate W in global", line="Allocate W"),
    mutant("TL107", REF, "Allocate O in register (BM, dim_v) init 0", "Allocate O in register (BM, dim_v)", line="rescale O"),
    mutant("TL103", REF, "GEMM S, V", "GEMM S, K", line="Copy V"),
    mutant("TL103", "reference/cross.tl", "GEMM Q, K^T", "GEMM K, K^T", line="Copy Q"),
    # --- shapes
    mutant("TL201", REF, "GEMM Q, K^T", "GEMM Q, K", line="GEMM Q, K "),
    mutant("TL202", "lenient/17_mla_symbolic_slices.tl", "O *= alpha", "O *= P", line="O *= P"),
    mutant("TL203", REF, "Copy Q (BM, dim) in coordinate [L = i]", "Copy Q (BM, dim)", line="Copy Q"),
    mutant("TL205", REF, "Allocate S in register (BM, BN)", "Allocate S in register (BM, 7)", line="GEMM Q"),
    mutant("TL206", FULL, "Allocate O in register (BM, dim_v)", "Allocate O in register (BM, 128)", line="GEMM S, V"),
    mutant("TL206", REF, "GEMM S, V", "GEMM V, S", line="GEMM V, S"),
    mutant("TL206", REF, "Allocate m in register (BM)", "Allocate m in register (BN)", line="Softmax"),
    mutant("TL206", REF, "Allocate O in register (BM, dim_v)", "Allocate O in register (dim_v, BM)", line="accumulate O"),
    mutant("TL206", PRIM, "Allocate row_sum in register (BM)", "Allocate row_sum in register (BN)", line="RowSum P"),
    mutant("TL206", PRIM, "Allocate S in register (BM, BN)", "Allocate S in register (BN, BM)", line="GEMM Q, K^T"),
    mutant("TL206", PRIM, "O = O / l", "O = P / l", line="O = P / l"),
    mutant("TL207", REF, MASK, "    Compute Mask O where k <= q + seq_k - seq_q\n", line="Mask O"),
    mutant("TL208", "reference/gqa_causal.tl", "Allocate V in global (seq_k, dim_v) with offset (b, h // group)", "Allocate V in global (seq_k, dim_v) with offset (b, h)", line="Allocate V"),
    mutant("TL209", REF, "Copy V (BN, dim_v) in coordinate [L = j]", "Copy V (BN, dim_v) in coordinate [L = j + 1]", line="GEMM S, V"),
    # --- levels
    mutant("TL301", FULL, COPY_K, "", line="GEMM Q, K^T"),
    mutant("TL302", REF, "Allocate K in global (seq_k, dim) with offset (b, h)\n", "", line="Copy K"),
    mutant("TL303", REF, "Allocate S in register (BM, BN)", "Allocate S in shared (BM, BN)", line="GEMM Q, K^T"),
    mutant("TL304", REF, "Allocate O in register (BM, dim_v) init 0\n", "", LOOP + "\n", LOOP + "\n    Allocate O in register (BM, dim_v) init 0\n", line="Allocate O in register"),
    mutant("TL305", REF, STORE, STORE.replace("register", "shared"), line="from shared to global"),
    # --- fusion
    mutant("TL401", REF, RESHAPE, "", line="GEMM S, V"),
    mutant("TL402", REF, COPY_K, COPY_K + RESHAPE.replace("S", "K"), line="Reshape K"),
    mutant("TL403", REF, "(MMA_A, MMA_M, MMA_N_new)", "(MMA_M, MMA_A, MMA_N_new)", line="Reshape"),
    # --- softmax
    mutant("TL501", REF, " and rescale O", "", line="accumulate O"),
    mutant("TL501", PRIM, ALPHA, "", line=FEED),
    mutant("TL501", PRIM, "Compute l = l * alpha + row_sum", "Compute l = l + row_sum", line="l + row_sum"),
    mutant("TL501", PRIM, ALPHA, "", FEED + "\n", FEED + "\n" + ALPHA, line=FEED),  # a round late
    mutant("TL501", PRIM, "exp(m - m_new)", "exp(m_new - m)", line="l * alpha"),
    mutant("TL501", PRIM, "    Compute alpha = exp(m - m_new)\n", "    Compute m = m_new\n    Compute alpha = exp(m - m_new)\n", line=FEED),
    mutant("TL501", "lenient/03_online_softmax_op.tl", "    Compute Multiply O, alpha and get new O\n", "", line="accumulate O"),
    mutant("TL501", "lenient/28_scaled_q_shared.tl", "    Compute Multiply l, alpha and get new l\n", "", line="RowSum"),
    mutant("TL502", REF, "(BM) init -inf", "(BM) init 0", line="Allocate m"),
    mutant("TL502", REF, "l in register (BM) init 0", "l in register (BM) init 1", line="Allocate l"),
    mutant("TL502", REF, "(BM, dim_v) init 0", "(BM, dim_v) init 1", line="Allocate O in register"),
    mutant("TL502", PRIM, "(BM) init -inf", "(BM) init 0", line="Allocate m "),
    mutant("TL502", PRIM, "l in register (BM) init 0", "l in register (BM) init 1", line="Allocate l"),
    mutant("TL502", "lenient/13_reciprocal.tl", "Fill m, -inf", "Fill m, 0", line="Fill m"),
    mutant("TL502", "lenient/30_reductions_in_infix.tl", "init -inf", "init 0", line="Allocate m"),
    mutant("TL502", PRIM, "(BM, dim_v) init 0", "(BM, dim_v) init 1", line="Allocate O in register"),
    mutant("TL503", REF, DIVIDE, "", line="Copy O"),
    mutant("TL503", PRIM, "Compute O = O / l\n", "", line="Copy O"),
    mutant("TL503", "lenient/23_cross_two_passes.tl", ") / l", ")", line="Copy O"),
    mutant("TL504", REF, DIVIDE, DIVIDE + DIVIDE, line="Copy O"),
    mutant("TL504", "lenient/13_reciprocal.tl", "Compute Multiply O, inv_l and get new O\n", "Compute Multiply O, inv_l and get new O\nCompute Divide O, l and get new O\n", line="Copy O"),
    mutant("TL505", REF, MASK + SOFTMAX, SOFTMAX + MASK, line="Mask"),
    mutant("TL505", PRIM, MASK, "", "    Compute RowSum P", MASK.replace(" S ", " P ") + "    Compute RowSum P", line="Mask P"),
    mutant("TL506", REF, SCALE, SCALE + "    Compute S = S * scale\n", line="S = S * scale"),
    mutant("TL506", "lenient/06_scale_in_q.tl", "    Compute Softmax S", "    Compute S = S / sqrt(dim)\n    Compute Softmax S", line="sqrt"),
    mutant("TL506", "lenient/06_scale_in_q.tl", "Compute Multiply Q, scale and get new Q\n", "", "    Compute GEMM Q", "    Compute Multiply Q, scale and get new Q\n    Compute GEMM Q", line="Multiply Q"),
    mutant("TL506", "lenient/05_exp2_let.tl", "p = exp2(qk", "p = exp(qk", line="p = exp("),
    mutant("TL507", REF, SCALE, "", line="Softmax"),
    mutant("TL507", PRIM, "    Compute S = S * scale\n", "", line="P = exp"),
    mutant("TL507", "lenient/05_exp2_let.tl", "Let qk_scale_log2 = scale * 1.44269504", "Let qk_scale_log2 = scale", line="p = exp2"),
    mutant("TL507", "reference/softcap.tl", "tanh(S * scale / softcap)", "tanh(S / softcap)", line="tanh"),
    mutant("TL507", PRIM, "    Compute S = S * scale\n", "", "exp(S - m_new)", "exp((S - m_new) * scale)", line="alpha = exp"),
    mutant("TL508", REF, SOFTMAX, SOFTMAX + SOFTMAX, line="Softmax"),
    mutant("TL508", "primitive/mha_causal.tl", "    Compute Exp alpha and get new alpha\n", "    Compute Exp alpha and get new alpha\n" * 2, line="Exp alpha"),
    mutant("TL501", "primitive/mha_causal.tl", "    Compute Exp alpha and get new alpha\n", "", line="Multiply l, alpha"),
    mutant("TL503", "lenient/27_mqa_offset_names.tl", "Compute O = O / l\n", "", line="Copy O"),
    mutant("TL504", REF, DIVIDE, "", RESHAPE, RESHAPE + "    Compute Divide O, l and get new O\n", line="GEMM S, V"),
    mutant("TL602", WINDOW, "max(0, i * BM + seq_k - seq_q - window + 1) // BN", "(i * BM + seq_k - seq_q - window + 1) // BN", line="for j"),
    mutant("TL509", REF, SOFTMAX, "", line="GEMM S, V"),
    # --- softmax: the state, spelled out
    mutant("TL501", PRIM, "RowMax S, m and get m_new", "RowMax S and get m_new", line="alpha = exp"),
    mutant("TL501", "primitive/mha_causal.tl", "Subtract m, m_new", "Divide m, m_new", line="Divide m"),
    mutant("TL501", "primitive/mha_causal.tl", "Exp alpha", "Log alpha", line="Log alpha"),
    mutant("TL501", "primitive/mha_causal.tl", "Exp P", "Log P", line="Log P"),
    mutant("TL501", PRIM, "exp(m - m_new)", "exp(l - m_new)", line="exp(l"),
    mutant("TL501", PRIM, "exp(S - m_new)", "exp(S - alpha)", line="exp(S - alpha"),
    mutant("TL501", PRIM, "Compute m = m_new", "Compute m = alpha", line="RowMax S, m"),
    mutant("TL501", PRIM, "l * alpha + row_sum", "l * alpha + m", line="l * alpha + m"),
    mutant("TL503", PRIM, "O = O / l", "O = O / m", line="O / m"),
    mutant("TL503", REF, "Divide O, l", "Divide O, m", line="Divide O, m"),
    mutant("TL503", PRIM, "O = O / l", "O = l / O", line="l / O"),
    mutant("TL503", REF, "Divide O, l", "Divide l, O", line="Divide l, O"),
    mutant("TL503", PRIM, "RowSum P", "RowMax P", line="l * alpha"),
    mutant("TL503", PRIM, "l * alpha + row_sum", "l * alpha - row_sum", line="l * alpha - row_sum"),
    mutant("TL505", PRIM, MASK, "", "    Compute alpha = exp", MASK + "    Compute alpha = exp", line="Mask S"),
    mutant("TL507", PRIM, "    Compute S = S * scale\n", "", "    Compute alpha = exp", "    Compute S = S * scale\n    Compute alpha = exp", line="S = S * scale"),
    mutant("TL507", "primitive/softcap.tl", "Divide S, softcap", "Multiply S, softcap", line="Exp P"),
    mutant("TL507", "primitive/softcap.tl", "Tanh S", "Sigmoid S", line="Exp P"),
    mutant("TL507", "primitive/softcap.tl", "Tanh S and get new S", "Tanh S and get new T", line="Exp P"),
    mutant("TL507", "reference/softcap.tl", "softcap * tanh", "2 * tanh", line="Softmax"),
    mutant("TL509", PRIM, "RowSum P", "RowSum S", line="RowSum S"),
    mutant("TL509", PRIM, "RowMax S, m", "RowSum S, m", line="RowSum S"),
    # --- coverage
    mutant("TL601", PRIM, "    Compute GEMM P, V and accumulate O\n", "", line="Copy O"),
    mutant("TL603", "lenient/28_scaled_q_shared.tl", "    Compute RowSum P, l and get new l\n", "    Compute RowSum P, l and get new l\n" * 2, line="RowSum"),
    mutant("TL601", REF, "ceil(((i + 1) * BM + seq_k - seq_q) / BN)", "ceil((i * BM + seq_k - seq_q) / BN)", line="for j"),
    mutant("TL601", REF, "ceil(((i + 1) * BM + seq_k - seq_q) / BN)", "ceil(((i + 1) * BM) / BN)", line="for j"),
    mutant("TL601", REF, "ceil(seq_k / BN), ceil(((i + 1) * BM + seq_k - seq_q) / BN)", "seq_k // BN, ((i + 1) * BM + seq_k - seq_q) // BN", line="for j"),
    mutant("TL601", FULL, "for j = 0", "for j = 1", line="for j"),
    mutant("TL601", FULL, "ceil(seq_k / BN)", "seq_k / BN", line="for j"),
    mutant("TL601", FULL, "ceil(seq_k / BN)", "ceil(seq_k / BN) step 2", line="for j"),
    mutant("TL601", REF, "k <= q + seq_k", "k < q + seq_k", line="Mask"),
    mutant("TL601", WINDOW, "- window + 1) // BN", "- window + BN + 1) // BN", line="for j"),
    mutant("TL601", WINDOW, "- k < window", "- k < window - 1", line="Mask"),
    mutant("TL601", FULL, "GEMM S, V and accumulate O", "GEMM S, V and get O", line="and get O"),
    mutant("TL601", "lenient/08_if_around_mask.tl", "    if (j", "    if j < 1\n    Compute Mask S where k < 0\n    end\n    if (j", line="k < 0"),
    mutant("TL602", REF, MASK, "", line="Softmax"),
    mutant("TL602", REF, "k <= q + seq_k - seq_q", "k <= q", line="Mask"),
    mutant("TL602", REF, "k <= q + seq_k", "k <= q + 1 + seq_k", line="Mask"),
    mutant("TL602", WINDOW, "- k < window", "- k <= window", line="Mask"),
    mutant("TL602", WINDOW, "0 <= q", "-1 <= q", line="Mask"),
    mutant("TL602", "lenient/08_if_around_mask.tl", "if (j + 1) * BN > i", "if j * BN > i", line="Mask"),
    mutant("TL602", "lenient/07_two_loops.tl", "Let full = max(0, (i * BM + seq_k - seq_q + 1) // BN)", "Let full = min(total, ceil((i * BM + seq_k - seq_q + 1) / BN))", line="Mask"),
    mutant("TL602", "reference/softcap.tl", MASK, "", "    Compute S = softcap", MASK + "    Compute S = softcap", line="Mask"),
    mutant("TL602", PRIM, MASK, "", line="P = exp"),
    mutant("TL603", "lenient/07_two_loops.tl", "for j = full : total", "for j = max(0, full - 1) : total", line="for j"),
    mutant("TL603", FULL, "[L = j] from global to shared\n    Compute GEMM", "[L = j // 2] from global to shared\n    Compute GEMM", "Copy V (BN, dim_v) in coordinate [L = j]", "Copy V (BN, dim_v) in coordinate [L = j // 2]", line="for j"),
    mutant("TL604", REF, "i = ceil(seq_q / BM)", "i = seq_q // BM", line="Copy O"),
    mutant("TL604", REF, "i = ceil(seq_q / BM)", "i = ceil(seq_q / BM), z = 2", line="Copy O"),
    mutant("TL604", REF, STORE, STORE + STORE, line="Copy O"),
    mutant("TL604", REF, STORE, STORE.replace("L = i", "L = i + 1"), line="L = i + 1"),
    mutant("TL604", REF, "h = heads", "h = batch", line="Copy O"),
    mutant("TL604", "reference/gqa_causal.tl", "h = heads", "h = kv_heads", line="Copy O"),
    mutant("TL604", REF, "b = batch", "b = heads", line="Copy O"),
    mutant("TL604", "reference/gqa_causal.tl", "h = heads,", "h = kv_heads, g = group,", "Q in global (seq_q, dim) with offset (b, h)", "Q in global (seq_q, dim) with offset (b, h * group + g)", "O in global (seq_q, dim_v) with offset (b, h)", "O in global (seq_q, dim_v) with offset (b, h + g)", "(b, h // group)", "(b, h)", "(b, h // group)", "(b, h)", line="Copy O"),
    mutant("TL605", REF, "[L = j] from global to shared", "[L = j] from global to shared pad -inf", line="pad -inf"),
    # --- capacity
    mutant("TL701", REF, TILES, "Tile BM = 256, BN = 256", line="Copy Q", target="t4"),
    mutant("TL704", REF, TILES, "Tile BM in {256, 512}, BN = 256", line="Copy Q", target="t4"),
    mutant("TL702", REF, TILES, "Tile BM = 256, BN = 128", SCHEDULE, "Schedule warps 4", line="Allocate m", target="h100"),
    mutant("TL703", REF, TILES, "Tile BM = 24, BN = 64", line="GEMM Q", target="a100"),
    mutant("TL705", REF, TILES, "Tile BM = 128, BN = 128", SCHEDULE, "Schedule consumers 2, stages 8", line="Schedule", target="h100"),
    mutant("TL706", REF, TILES, "Tile BM = 192, BN = 128", SCHEDULE, "Schedule consumers 3, stages 2", line="Schedule", target="h100"),
    mutant("TL706", REF, TILES, "Tile BM = 192, BN = 64", SCHEDULE, "Schedule consumers 3, registers 240", line="Schedule", target="h100"),
    mutant("TL707", REF, TILES, "Tile BM = 128, BN = 72", SCHEDULE, "Schedule consumers 2, stages 2", line="GEMM S, V", target="h100"),
    mutant("TL707", REF, TILES, "Tile BM = 128, BN = 320", SCHEDULE, "Schedule consumers 2, stages 1", line="GEMM Q, K^T", target="h100"),
    # --- types
    mutant("TL801", REF, "Allocate S in register (BM, BN)", "Allocate S in register (BM, BN) bf16", line="Allocate S", target="t4"),
    mutant("TL801", REF, "Kernel", "Kernel", line="Kernel", target="t4", dtype="bf16"),
    mutant("TL801", REF, COPY_K, COPY_K + "    Compute Cast K to fp8 and get new K\n", line="Cast K", target="a100"),
    mutant("TL802", REF, "Allocate O in register (BM, dim_v) init 0", "Allocate O in register (BM, dim_v) fp16 init 0", line="Allocate O in register"),
    mutant("TL802", REF, "Allocate l in register (BM)", "Allocate l in register (BM) fp16", line="Allocate l"),
    mutant("TL802", PRIM, "Allocate m in register (BM)", "Allocate m in register (BM) fp16", line="Allocate m "),
    mutant("TL802", PRIM, "Allocate P in register (BM, BN)", "Allocate P in register (BM, BN) fp16", line="Allocate P"),
    mutant("TL802", PRIM, "Allocate alpha in register (BM)", "Allocate alpha in register (BM) bf16", line="Allocate alpha"),
    mutant("TL803", PRIM, "Allocate P in register (BM, BN)", "Allocate V in shared (BN, dim_v) fp16\nAllocate P in register (BM, BN) bf16", line="GEMM P, V"),
    # --- schedule
    mutant("TL901", REF, "Kernel", "Kernel", line="Schedule", target="t4"),
    mutant("TL901", REF, SCHEDULE, "Schedule producer 1, consumers 2", line="Schedule", target="a100"),
    mutant("TL902", REF, SCHEDULE, "Schedule stages 8", TILES, "Tile BM = 128, BN = 128", line="Schedule", target="a100"),
    mutant("TL903", REF, SCHEDULE, "Schedule producer 1, consumers 2", COPY_K, COPY_K + "    Compute Multiply K, scale and get new K\n", SCALE, "", line="Multiply K"),
    mutant("TL904", REF, SCHEDULE, "Schedule warp 8", line="Schedule"),
    mutant("TL904", REF, SCHEDULE, "Schedule warps 7", line="Schedule"),
    mutant("TL904", REF, SCHEDULE, "Schedule consumers 2, registers 100", line="Schedule"),
    mutant("TL904", REF, SCHEDULE, "Schedule consumers 2, registers 248", line="Schedule"),
    mutant("TL904", REF, SCHEDULE, "Schedule consumers 5", line="Schedule"),
    mutant("TL904", REF, SCHEDULE, "Schedule persistent sometimes", line="Schedule"),
    mutant("TL904", REF, SCHEDULE, "Schedule heads many", line="Schedule"),
    mutant("TL905", REF, COPY_V, "", COPY_K, COPY_V + COPY_K, SCHEDULE, "Schedule consumers 2, stages 1, overlap", line="Schedule", target="h100"),
    mutant("TL906", REF, "Allocate S in", "Allocate K2 in shared (BN, dim)\nAllocate S in", SCALE, "", "    Compute GEMM Q, K^T", "    Compute Multiply K, scale and get K2\n    Compute GEMM Q, K2^T", SCHEDULE, "Schedule consumers 2, stages 2", line="Schedule", target="h100"),
    mutant("TL907", REF, SCHEDULE, "Schedule consumers 1, pingpong", line="Schedule"),
    mutant("TL907", FULL, "stages in {2, 3}", "stages in {2, 3}, order longest_first", line="Schedule"),
    mutant("TL907", REF, SCHEDULE, "Schedule overlap", COPY_K, COPY_K + "    Compute Multiply K, scale and get new K\n", SCALE, "", line="Schedule"),
    mutant("TL908", REF, SCHEDULE, "Schedule consumers 3", line="Schedule"),
    mutant("TL908", REF, TILES, "Tile BM = 64, BN = 64", SCHEDULE, "Schedule producer 1", line="Schedule"),
]  # fmt: skip


@pytest.mark.parametrize("wrong", MUTANTS, ids=[f"{n}-{m.code}" for n, m in enumerate(MUTANTS)])
def test_a_defect_is_found_where_it_is(wrong):
    report = wrong.run()
    found = [f for f in report.findings if f.code == wrong.code and f.severity is not Severity.NOTE]
    said = [(f.code, f.pos.line, f.message) for f in report.findings if f.severity is not Severity.NOTE]
    assert found, said
    lines = wrong.text.split("\n")
    blamed = {n for n, line in enumerate(lines, 1) if wrong.line.strip("\n") in line}
    assert {f.pos.line for f in found} & blamed, (said, blamed)
    assert all(f.message and f.fix for f in found)
    assert report.ok == (not any(f.is_error for f in report.findings))


def test_sizes_that_differ_for_a_choice_of_tiles_are_an_error_and_for_a_shape_of_the_task_a_warning():
    def severities(new, *edits):
        wrong = mutant(
            "TL206",
            FULL,
            "Allocate O in register (BM, dim_v)",
            f"Allocate O in register {new}",
            *edits,
            line="",
        )
        return {f.severity for f in wrong.run().findings if f.code == "TL206"}

    assert severities("(BM, 128)") == {Severity.WARNING}
    assert Severity.ERROR in severities("(BM, BN)")
    assert severities("(BM, BN)", TILES, "Tile BM = 64, BN = 128") == {Severity.WARNING}
    assert severities("(BN, dim_v)", TILES, "Tile BM = 64, BN = 64") == set()


# Unusual, and right: (program, what is replaced by what).
UNUSUAL = {
    "a maximum that follows lazily": (PRIM, "Compute RowMax S, m and get m_new\n", "Compute RowMax S, m and get new m_top\n    Compute m_new = where(m_top - m > 8, m_top, m)\n"),
    "a block's maximum joined by hand": (PRIM, "Compute RowMax S, m and get m_new\n", "Compute RowMax S and get new m_b\n    Compute m_new = max(m, m_b)\n"),
    "a narrow operand": (PRIM, "Allocate P in register (BM, BN)\n", "Allocate P in register (BM, BN)\nAllocate P16 in register (BM, BN) fp16\n", "    Reshape P", "    Compute Cast P to fp16 and get P16\n    Reshape P16", "GEMM P,", "GEMM P16,"),
    "a narrow maximum that all is relative to": (PRIM, "Allocate m_new in register (BM)", "Allocate m_new in register (BM) fp16"),
    "the difference scaled": (PRIM, "    Compute S = S * scale\n", "", "exp(m - m_new)", "exp((m - m_new) * scale)", "exp(S - m_new)", "exp((S - m_new) * scale)"),
    "hidden after the exponential": (PRIM, "Compute P = exp(S - m_new)", "Compute P = where(k <= q + seq_k - seq_q, exp(S - m_new), 0)"),
    "tanh by exponentials": ("primitive/softcap.tl", "Compute Tanh S and get new S", "Compute S = 1 - 2 / (exp(2 * S) + 1)"),
    "the logarithm of the sum": ("lenient/23_cross_two_passes.tl", "exp(S * scale - m) / l", "exp(S * scale - (m + log(l)))"),
    "probabilities divided by their maximum": (PRIM, "    Reshape P", "    Compute RowMax P and get new pm\n    Compute P = P / pm\n    Compute O = O / pm\n    Reshape P", "accumulate O\n", "accumulate O\n    Compute O = O * pm\n"),
    "a block for each key head": ("reference/gqa_causal.tl", "h = heads,", "h = kv_heads, g = group,", "Q in global (seq_q, dim) with offset (b, h)", "Q in global (seq_q, dim) with offset (b, h * group + g)", "O in global (seq_q, dim_v) with offset (b, h)", "O in global (seq_q, dim_v) with offset (b, h * group + g)", "K in global (seq_k, dim) with offset (b, h // group)", "K in global (seq_k, dim) with offset (b, h)", "V in global (seq_k, dim_v) with offset (b, h // group)", "V in global (seq_k, dim_v) with offset (b, h)"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSUAL)
def test_nothing_is_found_in_an_unusual_program(name):
    program, *edits = UNUSUAL[name]
    right = mutant("", program, *edits, line="")
    assert [f for f in right.run().findings if f.severity is not Severity.NOTE] == []


def test_every_code_has_its_mutant():
    later = {"TL004", "TL005", "TL708", "TL204"}  # notes, and what only a compiler's layouts can tell
    assert {m.code for m in MUTANTS} == set(CODES) - later


@pytest.mark.parametrize("name", CODE)
def test_nothing_is_found_in_a_correct_program(name):
    for target in (None, TARGETS["a100"], TARGETS["h100"], TARGETS["cpu"]):
        report = check(PROGRAMS[name], find(task_of(name)), target=target)
        assert [f for f in report.findings if f.severity is not Severity.NOTE] == []
        assert report.ok and report.program is not None


@pytest.mark.parametrize("name", SKETCHES)
def test_nothing_is_found_in_a_sketch(name):
    report = check(PROGRAMS[name], find(task_of(name)), level="sketch")
    assert [f for f in report.findings if f.severity is not Severity.NOTE] == []


def test_a_sketch_is_checked_for_its_order():
    text = PROGRAMS["sketch/02_causal.tl"]
    mask, softmax = "    Compute CausalMask S\n", "    Compute Softmax S and rescale O\n"
    report = check(text.replace(mask + softmax, softmax + mask), find("mha_causal"), level="sketch")
    assert "TL505" in {f.code for f in report.findings}


def test_all_defects_are_reported_at_once():
    text = (
        PROGRAMS[REF]
        .replace(SCALE, "")
        .replace(" and rescale O", "")
        .replace(RESHAPE, "")
        .replace("GEMM Q, K^T", "GEMM Q, K")
    )
    assert {"TL507", "TL501", "TL401", "TL201"} <= {f.code for f in check(text, find("mha_causal")).findings}


def test_findings_come_in_the_order_of_the_text():
    text = PROGRAMS[REF].replace(SCALE, "").replace("init -inf", "init 0").replace(DIVIDE, "")
    positions = [(f.pos.line, f.pos.column) for f in check(text, find("mha_causal")).findings]
    assert positions == sorted(positions)


# --- what never happens -------------------------------------------------------------------------------

LINES = sorted({line for text in PROGRAMS.values() for line in text.split("\n")})


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(max_size=300))
@example("Compute S = \nfor\n")
def test_no_text_makes_it_raise(text):
    check(text, find("mha_causal"), target=TARGETS["a100"])


def test_deep_nesting_does_not_make_it_raise():
    text = PROGRAMS[REF].replace("S, scale", "S, " + "-(" * 3000 + "scale" + ")" * 3000)
    assert not check(text, find("mha_causal")).ok


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(LINES), max_size=25), st.sampled_from(["code", "sketch"]))
def test_no_mixture_of_lines_makes_it_raise(lines, level):
    check("\n".join(lines), find("sliding_window"), level=level, target=TARGETS["h100"])


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(CODE), st.data())
def test_no_edit_of_a_program_makes_it_raise(name, data):
    lines = PROGRAMS[name].split("\n")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(lines) - 1))
        words = re.split(r"(\W)", lines[at])
        change = data.draw(st.sampled_from(["drop", "swap", "word", "double"]))
        if change == "drop":
            del lines[at]
        elif change == "swap" and at:
            lines[at - 1], lines[at] = lines[at], lines[at - 1]
        elif change == "double":
            lines.insert(at, lines[at])
        else:
            other = re.split(r"(\W)", data.draw(st.sampled_from(LINES)))
            words[data.draw(st.integers(0, len(words) - 1))] = data.draw(st.sampled_from(other))
            lines[at] = "".join(words)
        if not lines:
            return
    check("\n".join(lines), find(task_of(name)), target=TARGETS["h100"])


# --- the space ----------------------------------------------------------------------------------------


def test_the_space_is_every_choice_and_pruning_says_why():
    task = find("mha_causal")
    program = check(PROGRAMS[REF], task).program
    assert program is not None
    points = list(space(program))
    assert len(points) == len({tuple(p.items()) for p in points}) == 2 * 3 * 2 * 2
    result = pruned(program, task, TARGETS["a100"], dims=(128, 128))
    assert len(result.kept) + len(result.dropped) == len(points)
    assert {"BM": 128, "BN": 128, "warps": 8, "stages": 3} in [choice for choice, _ in result.dropped]
    assert {"BM": 64, "BN": 64, "warps": 4, "stages": 2} in result.kept
    finding = next(f for c, f in result.dropped if c == {"BM": 128, "BN": 128, "warps": 8, "stages": 3})
    assert finding.code == "TL701" and "K 32 KB x 3 stages" in finding.message
    assert not pruned(program, task, TARGETS["cpu"], dims=(128, 128)).dropped
