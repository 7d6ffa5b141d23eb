"""Broken on purpose: the process dies in the call."""

import os

from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, scale: float) -> None:
    os.abort()
