"""Broken on purpose: the call never returns."""

from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, scale: float) -> None:
    while True:
        pass
