"""Every query sees every key."""

from flash import flash_attention
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, scale: float) -> None:
    flash_attention(q, k, v, out, scale=scale, causal=False)
