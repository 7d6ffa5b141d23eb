"""Query i sees keys j <= i + seq_k - seq_q; kv heads may be shared by a group of query heads."""

from flash import flash_attention
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, scale: float) -> None:
    flash_attention(q, k, v, out, scale=scale, causal=True)
