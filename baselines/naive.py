"""Owns the naive baseline: attention in plain PyTorch, the way a person writes it first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from baselines.base import Call, Library
from baselines.features import allowed_keys, has_empty_rows, not_attention
from baselines.first_call import first_call
from harness.targets import Target
from tasks.spec import Task, Workload


@dataclass(frozen=True)
class Naive:
    """matmul, mask, softmax, matmul in the workload's dtype; every score goes through memory."""

    name: str = "naive"
    title: str = "plain PyTorch"
    slow: bool = True
    compiles: Literal["never", "configuration", "shape"] = "never"

    def library(self) -> Library:
        return Library("torch", torch.__version__)

    def unsupported(self, task: Task, workload: Workload, target: Target) -> str | None:
        return not_attention(task, workload, target)

    def plan(self, task: Task, workload: Workload, inputs: Mapping[str, Tensor]) -> Call:
        """Indices and the mask are prepared; repeating shared kv heads is part of the call."""
        w, score_mod = workload, task.score_mod
        q, k, v = (inputs[name].transpose(1, 2) for name in ("q", "k", "v"))
        allowed = allowed_keys(task, w, q.device)
        empty = ~allowed.any(-1, keepdim=True) if allowed is not None and has_empty_rows(task, w) else None
        h = torch.arange(w.heads, device=q.device)[:, None, None]
        i = torch.arange(w.seq_q, device=q.device)[:, None]
        j = torch.arange(w.seq_k, device=q.device)[None, :]

        def call() -> Tensor:
            keys = k.repeat_interleave(w.group, dim=1) if w.group > 1 else k
            values = v.repeat_interleave(w.group, dim=1) if w.group > 1 else v
            scores = torch.matmul(q, keys.transpose(-1, -2)) * w.softmax_scale
            if score_mod is not None:
                scores = score_mod(scores, h, i, j, w)
            if allowed is not None:
                scores = scores.masked_fill(~allowed, float("-inf"))
            p = torch.softmax(scores, dim=-1)
            if empty is not None:
                p = p.masked_fill(empty, 0.0)
            return torch.matmul(p, values).transpose(1, 2)

        return first_call(call, w)
