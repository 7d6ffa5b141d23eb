"""Owns the negative controls: plausible wrong answers that every task must refuse.

Each computes in float32 with exactly one mistake, so that a control that passes shows a blind
spot of workloads, recipes or tolerance. A task enters the suite only if all that apply to it
are rejected (tests/verify/test_controls.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from tasks import oracle
from tasks.spec import DTYPES, Task, Workload

Inputs = Mapping[str, Tensor]
Outputs = dict[str, Tensor]
# None: the mistake cannot be made here (no mask to forget, one head only, ...).
Control = Callable[[Task, Workload, Inputs], Outputs | None]

_ACCUMULATOR_KEYS = 16  # keys summed before a rounding: the k extent of one fp16 MMA instruction


def zeros(task: Task, w: Workload, inputs: Inputs) -> Outputs | None:
    """Nothing computed."""
    device = _device(inputs)
    return {t.name: torch.zeros(t.shape(w), dtype=DTYPES[t.dtype_of(w)], device=device) for t in task.outputs}


def mean_v(task: Task, w: Workload, inputs: Inputs) -> Outputs | None:
    """The mean of the values each row may see: attention that ignores the queries."""
    if not _is_generic(task):
        return None
    return _attention(replace(task, score_mod=None), w, {**inputs, "q": torch.zeros_like(inputs["q"])})


def last_token(task: Task, w: Workload, inputs: Inputs) -> Outputs | None:
    """The value at the query's own position, or the nearest there is."""
    if not _is_generic(task):
        return None
    place = (torch.arange(w.seq_q, device=_device(inputs)) + w.diagonal).clamp(0, w.seq_k - 1)
    return {"out": inputs["v"][:, place].repeat_interleave(w.group, dim=2)}


def identity(task: Task, w: Workload, inputs: Inputs) -> Outputs | None:
    """The queries, cut or padded to the values' width."""
    if not _is_generic(task):
        return None
    return {"out": functional.pad(inputs["q"], (0, w.dim_v - w.dim)).contiguous()}


def no_scale(task: Task, w: Workload, inputs: Inputs) -> Outputs | None:
    if not _is_generic(task) or w.softmax_scale == 1.0:
        return None
    return _attention(task, w.with_(scale=1.0), inputs)


def no_mask(task: Task, w: Workload, inputs: Inputs) -> Outputs | None:
    if not _is_generic(task) or task.mask is None:
        return None
    return _attention(replace(task, mask=None), w, inputs)


def wrong_mask_edge(task: Task, w: Workload, inputs: Inputs) -> Outputs | None:
    """Every edge of the mask one key further on: causal rows see one key of the future."""
    mask = task.mask
    if not _is_generic(task) or mask is None:
        return None
    return _attention(replace(task, mask=lambda i, j, w: mask(i, j - 1, w)), w, inputs)


def no_window(task: Task, w: Workload, inputs: Inputs) -> Outputs | None:
    """A window that never ends."""
    if not _is_generic(task) or "window" not in w.params:
        return None
    endless = {**w.params, "window": w.seq_q + w.seq_k}
    return _attention(task, w.with_(parameters=tuple(endless.items())), inputs)


def no_score_mod(task: Task, w: Workload, inputs: Inputs) -> Outputs | None:
    """Scores as they are: no softcap, no bias."""
    if not _is_generic(task) or task.score_mod is None:
        return None
    return _attention(replace(task, score_mod=None), w, inputs)


def wrong_head_map(task: Task, w: Workload, inputs: Inputs) -> Outputs | None:
    """Query head h reads kv head h % kv_heads instead of h // group; with group 1, its neighbour's."""
    if not _is_generic(task) or w.kv_heads == 1:
        return None
    head = torch.arange(w.heads, device=_device(inputs))
    wrong = (head + 1) % w.kv_heads if w.group == 1 else head % w.kv_heads
    spread = {**inputs, "k": inputs["k"][:, :, wrong], "v": inputs["v"][:, :, wrong]}
    return _attention(task, w.with_(kv_heads=w.heads), spread)


def half_accumulation(task: Task, w: Workload, inputs: Inputs) -> Outputs | None:
    """P V summed in the 16-bit test dtype, rounded every 16 keys; fp32 tasks in fp16.

    All else is as a good kernel does it: scores, maximum and row sum in fp32, P unnormalised.
    """
    if not _is_generic(task) or w.seq_k <= _ACCUMULATOR_KEYS:
        return None
    half = torch.float16 if w.dtype in ("fp32", "fp64") else w.torch_dtype
    p = _unnormalised(task, w, inputs)
    v = inputs["v"].float().transpose(1, 2).repeat_interleave(w.group, dim=1)
    rounded = p.to(half).float()
    total = torch.zeros(*p.shape[:3], w.dim_v, dtype=half, device=p.device)
    for start in range(0, w.seq_k, _ACCUMULATOR_KEYS):
        keys = slice(start, start + _ACCUMULATOR_KEYS)
        total = (total.float() + rounded[..., keys] @ v[..., keys, :]).to(half)
    out = total.float() / p.sum(-1, keepdim=True).clamp_min(1e-30)
    return {"out": out.transpose(1, 2).to(w.torch_dtype).contiguous()}


CONTROLS: Mapping[str, Control] = {
    control.__name__: control
    for control in (
        zeros,
        mean_v,
        last_token,
        identity,
        no_scale,
        no_mask,
        wrong_mask_edge,
        no_window,
        no_score_mod,
        wrong_head_map,
        half_accumulation,
    )
}


def _is_generic(task: Task) -> bool:
    """Computed by the generic oracle from q, k and v; other tasks bring their own controls."""
    return task.oracle is None and {"q", "k", "v"} <= {t.name for t in task.inputs}


def _device(inputs: Inputs) -> torch.device:
    return next(iter(inputs.values())).device


def _attention(task: Task, w: Workload, inputs: Inputs) -> Outputs:
    return {"out": oracle.attention(task, w, inputs, torch.float32).to(w.torch_dtype)}


def _unnormalised(task: Task, w: Workload, inputs: Inputs) -> Tensor:
    """exp(s' - row maximum), zero where masked: (batch, heads, seq_q, seq_k), float32."""
    q = inputs["q"].float().transpose(1, 2)
    k = inputs["k"].float().transpose(1, 2).repeat_interleave(w.group, dim=1)
    scores = q @ k.transpose(-1, -2) * w.softmax_scale
    h = torch.arange(w.heads, device=q.device)[:, None, None]
    i = torch.arange(w.seq_q, device=q.device)[:, None]
    j = torch.arange(w.seq_k, device=q.device)[None, :]
    if task.score_mod is not None:
        scores = task.score_mod(scores, h, i, j, w)
    if task.mask is not None:
        scores = scores.masked_fill(~task.mask(i, j, w), float("-inf"))
    top = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min)
    return torch.exp(scores - top)
