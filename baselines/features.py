"""Owns recognising, in a task, what libraries have flags for: by what its mods do, not by its name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from harness.targets import Target
from tasks.spec import Mask, Task, Workload

# Query rows looked at when a mask is compared with a library's flag: the ends and evenly between.
PROBE_ROWS = 64
# Elements of a mask held at a time while it is searched for rows without a key.
CHUNK_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Features:
    """A task in the words of a library: flags that together mean exactly its mask and score mod."""

    causal: bool = False  # j <= i + D, aligned to the bottom right corner
    window: int | None = None  # with causal: also i + D - j < window
    softcap: float | None = None  # s -> softcap * tanh(s / softcap)


def features(task: Task, workload: Workload) -> Features | None:
    """The flags that express this task on this workload, or None where flags cannot.

    Parameters named `window` and `softcap` are taken for what they say only after the
    task's own mask and mod agree with that meaning on probed values.
    """
    softcap = None
    if task.score_mod is not None:
        softcap = float(workload.params.get("softcap", 0))
        if softcap <= 0 or not _is_softcap(task, workload, softcap):
            return None
    if task.mask is None:
        return Features(softcap=softcap)
    if is_causal(task, workload):
        return Features(causal=True, softcap=softcap)
    window = int(workload.params.get("window", 0))
    if window > 0 and _is_band(task, workload, window):
        return Features(causal=True, window=window, softcap=softcap)
    return None


def is_causal(task: Task, workload: Workload) -> bool:
    """Whether the mask is exactly j <= i + D: by the task's word, else by what the mask does."""
    return task.causal or (
        task.mask is not None and _is_band(task, workload, workload.seq_k + workload.seq_q)
    )


def not_attention(task: Task, workload: Workload, target: Target) -> str | None:
    """Why no library of softmax attention over (q, k, v) applies at all, or None."""
    names = tuple(t.name for t in task.inputs)
    if task.oracle is not None:
        return "the task's mathematics are its own, not softmax attention"
    if names != ("q", "k", "v") or len(task.outputs) != 1:
        return f"takes tensors ({', '.join(names)}), not q, k and v alone"
    if any(t.dtype is not None for t in task.tensors):
        return "tensors of more than one dtype"
    if not target.supports(workload.dtype):
        return f"{target.title} has no {workload.dtype} arithmetic"
    return None


def allowed_keys(task: Task, workload: Workload, device: torch.device) -> Tensor | None:
    """The task's mask, bool (seq_q, seq_k), True where a query may see a key; None without a mask."""
    if task.mask is None:
        return None
    i = torch.arange(workload.seq_q, device=device)[:, None]
    j = torch.arange(workload.seq_k, device=device)[None, :]
    return task.mask(i, j, workload).expand(workload.seq_q, workload.seq_k)


def has_empty_rows(task: Task, workload: Workload) -> bool:
    """Whether some query may see no key at all: its output is defined as 0, and libraries differ there."""
    if task.mask is None:
        return False
    if is_causal(task, workload):
        return workload.seq_q > workload.seq_k
    # A mask depends on lengths and parameters only: equal ones share one search.
    shape = workload.with_(batch=1, heads=1, kv_heads=1, dim=8, dim_v=8, dtype="fp32", label="")
    return _search_empty_rows(task.mask, shape)


@lru_cache(maxsize=512)
def _search_empty_rows(mask: Mask, workload: Workload) -> bool:
    j = torch.arange(workload.seq_k)[None, :]
    step = max(1, CHUNK_ELEMENTS // workload.seq_k)
    for start in range(0, workload.seq_q, step):
        i = torch.arange(start, min(start + step, workload.seq_q))[:, None]
        if not mask(i, j, workload).any(-1).all():
            return True
    return False


def _is_softcap(task: Task, workload: Workload, softcap: float) -> bool:
    assert task.score_mod is not None
    s = torch.linspace(-4 * softcap, 4 * softcap, 64, dtype=torch.float64).expand(1, workload.heads, 2, 64)
    h = torch.arange(workload.heads)[:, None, None]
    i = torch.tensor([0, workload.seq_q - 1])[:, None]
    j = torch.arange(64)[None, :]
    return torch.allclose(task.score_mod(s, h, i, j, workload), softcap * torch.tanh(s / softcap))


def _is_band(task: Task, workload: Workload, window: int) -> bool:
    """Whether probed rows see exactly the keys with 0 <= i + D - j < window."""
    assert task.mask is not None
    i = torch.linspace(0, workload.seq_q - 1, min(PROBE_ROWS, workload.seq_q)).round().long()[:, None]
    j = torch.arange(workload.seq_k)[None, :]
    distance = i + workload.diagonal - j
    return torch.equal(task.mask(i, j, workload), (distance >= 0) & (distance < window))
