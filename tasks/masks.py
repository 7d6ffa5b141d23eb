"""Owns the masks that several tasks share, with exact counts of the pairs they allow."""

from __future__ import annotations

from torch import Tensor

from tasks.spec import Workload


def causal(i: Tensor, j: Tensor, w: Workload) -> Tensor:
    """j <= i + D, aligned to the bottom right corner."""
    return j <= i + w.diagonal


def causal_pairs(w: Workload) -> int:
    """Row i sees max(0, i + D + 1) keys; the last row sees all seq_k. Closed form."""
    return _capped_sum(w.seq_k, w.seq_k) - _capped_sum(w.diagonal, w.seq_k)


def sliding_window(i: Tensor, j: Tensor, w: Workload) -> Tensor:
    """0 <= i + D - j < window: the query's own position and the window - 1 keys before it."""
    distance = i + w.diagonal - j
    return (distance >= 0) & (distance < w.params["window"])


def sliding_window_pairs(w: Workload) -> int:
    """Row i sees clip(i + D + 1, 0, window) keys. Closed form."""
    window = int(w.params["window"])
    return _capped_sum(w.seq_k, window) - _capped_sum(w.diagonal, window)


def _capped_sum(n: int, cap: int) -> int:
    """Sum of min(t, cap) for t = 1 ... n; zero for n < 1."""
    n = max(0, n)
    low = min(n, cap)
    return low * (low + 1) // 2 + (n - low) * cap
