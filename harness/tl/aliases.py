"""Owns the words that models use by habit for what the language calls otherwise."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# --- operations ---------------------------------------------------------------------------------------

# canonical name -> (function of ir.Op, number of operands; None: two or more)
ELEMENTWISE: dict[str, tuple[str, int | None]] = {
    "Add": ("add", None),
    "Subtract": ("sub", 2),
    "Multiply": ("mul", None),
    "Divide": ("div", 2),
    "Maximum": ("max", None),
    "Minimum": ("min", None),
    "Power": ("pow", 2),
    "Negate": ("neg", 1),
    "Abs": ("abs", 1),
    "Reciprocal": ("reciprocal", 1),
    "Exp": ("exp", 1),
    "Exp2": ("exp2", 1),
    "Log": ("log", 1),
    "Log2": ("log2", 1),
    "Sqrt": ("sqrt", 1),
    "Rsqrt": ("rsqrt", 1),
    "Tanh": ("tanh", 1),
    "Sigmoid": ("sigmoid", 1),
    "Relu": ("relu", 1),
}
REDUCTIONS = {"RowMax": "max", "RowSum": "sum"}
MASKS = ("Mask", "CausalMask", "WindowMask", "CausalWindowMask")
OTHER = ("GEMM", "Softmax", "OnlineSoftmax", "Cast", "Fill", "Assign", "Score", "Max", "Sum")
OPERATIONS = (*ELEMENTWISE, *REDUCTIONS, *MASKS, *OTHER)

_SAME_OPERATION = {
    "GEMM": "gemm matmul mma dot batchedgemm matrixmultiply",
    "Add": "add plus",
    "Subtract": "subtract sub minus",
    "Multiply": "multiply mul scale rescale times elementwisemultiply scalarmultiply broadcastmultiply",
    "Divide": "divide div normalize normalise rowdivide scalardivide",
    "Maximum": "maximum elementwisemax",
    "Minimum": "minimum min elementwisemin",
    "Power": "power pow",
    "Negate": "negate neg",
    "Reciprocal": "reciprocal rcp inverse",
    "Exp": "exp exponential exponent",
    "Tanh": "tanh hyperbolictangent",
    "RowMax": "rowmax row_max rowwisemax reducemax maxreduce rowmaximum",
    "RowSum": "rowsum row_sum rowwisesum reducesum sumreduce",
    "Softmax": "softmax onlinesoftmaxupdate",
    "OnlineSoftmax": "onlinesoftmax online_softmax",
    "CausalMask": "causalmask causal_mask applycausalmask",
    "WindowMask": "windowmask window_mask localmask",
    "CausalWindowMask": "causalwindowmask causal_window_mask slidingwindowmask",
    "Cast": "cast convert",
    "Fill": "fill set initialize initialise init",
    "Assign": "assign copy move",
}
_OPERATION = {name.lower(): name for name in OPERATIONS} | {
    word: name for name, words in _SAME_OPERATION.items() for word in words.split()
}


def operation(word: str) -> str | None:
    """The canonical name of an operation, or None."""
    return _OPERATION.get(word.lower())


# Functions of infix expressions that are not operations by another name.
FUNCTIONS = {
    "min": "min",
    "max": "max",
    "maximum": "max",
    "minimum": "min",
    "abs": "abs",
    "floor": "floor",
    "pow": "pow",
    "where": "where",
    "select": "where",
}

# --- scalars ------------------------------------------------------------------------------------------

_SYMBOL = {
    "batch": "batch batch_size bs num_batches nbatch",
    "heads": "heads num_heads n_heads nheads num_q_heads q_heads h_q num_attention_heads head_num",
    "kv_heads": "kv_heads num_kv_heads n_kv_heads h_kv hkv num_key_value_heads",
    "group": "group group_size num_groups n_rep q_per_kv kv_group kv_group_size",
    "seq_q": "seq_q seqlen_q q_len len_q seq_len_q n_q nq lq sq query_len num_queries q_seq_len",
    "seq_k": "seq_k seqlen_k k_len len_k seq_len_k n_k nk lk sk kv_len seqlen_kv seq_kv key_len num_keys "
    "seq_len_kv kv_seq_len n_kv",
    "dim": "dim headdim head_dim d hd d_head dim_head head_size d_k dk dim_k headdim_qk d_qk",
    "dim_v": "dim_v d_v dv head_dim_v v_dim headdim_v v_head_dim dv_head",
    "scale": "scale softmax_scale sm_scale scaling attn_scale qk_scale scale_factor scaling_factor",
}
SYMBOLS = {word: symbol for symbol, words in _SYMBOL.items() for word in words.split()}
# Lengths by a name that does not say whose: the tensor they size decides.
LENGTHS = frozenset(
    "n m l seq_len seqlen seq_length sequence_length seq ctx context_len n_ctx length".split()
)
BLOCK_INDICES = frozenset(
    "block_idx block_m q_block block_id blockidx block_index q_block_idx q_idx_block m_block block_row bid "
    "pid block q_tile tile_idx row_block q_block_id block_m_idx start_m".split()
)
BATCH_INDICES = frozenset("b batch_idx batch_id bidx batch_index bz b_idx".split())
HEAD_INDICES = frozenset("h head_idx head_id hidx head_index head hq h_idx q_head".split())
KV_HEAD_INDICES = frozenset("kv_head kv_head_idx kvh h_kv_idx kv_h hk g kv_head_id".split())
QUERY_POSITIONS = frozenset("q q_idx q_pos row rows row_idx query query_pos q_index offs_m".split())
KEY_POSITIONS = frozenset("k k_idx k_pos kv_idx kv_pos col cols col_idx key key_pos k_index offs_n".split())
INFINITIES = frozenset("inf infinity infty infinite".split())
NEGATIVE_INFINITIES = frozenset("neg_inf ninf minus_inf negative_infinity neg_infinity".split())
CONSTANTS = {"log2e": 1.4426950408889634, "log2_e": 1.4426950408889634, "ln2": 0.6931471805599453}
OUTPUTS = frozenset("o out output attn_out result".split())

_DTYPE = {
    "fp16": "fp16 f16 half float16",
    "bf16": "bf16 bfloat16",
    "fp32": "fp32 f32 float float32 single",
    "tf32": "tf32",
    "fp8": "fp8 e4m3 f8 float8 fp8_e4m3 float8_e4m3fn",
    "fp64": "fp64 f64 double float64",
    "int32": "int32 i32 int",
}
DTYPES = {word: name for name, words in _DTYPE.items() for word in words.split()}


def nearest(word: str, known: Iterable[str]) -> str:
    """`, did you mean X?`, or nothing where no known word is near."""
    candidates = list(known)
    lower = {c.lower(): c for c in candidates}
    match = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    return f"did you mean `{lower[match[0]]}`?" if match else ""
