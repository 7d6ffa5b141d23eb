"""Owns FlexAttention as a baseline: the task's own mask and score mod, compiled by torch.

So every task with mods runs here. Block masks and compilation are planned outside the timed
region; kernel options are left to torch.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from baselines.base import Call, CannotRun, Library
from baselines.features import not_attention
from baselines.first_call import first_call
from harness.targets import Target
from tasks.spec import Task, Workload

# Shapes and tasks that one process may compile: past its limit torch would run the unfused
# fallback in silence, so the limit is high and hitting it is an error.
RECOMPILE_LIMIT = 4096


@dataclass(frozen=True)
class Flex:
    """torch.compile'd flex_attention."""

    name: str = "flex"
    title: str = "PyTorch FlexAttention"
    slow: bool = False
    compiles: Literal["never", "configuration", "shape"] = "shape"

    def library(self) -> Library:
        if find_spec("triton") is None and _compiler() is None:
            return Library(
                "torch", torch.__version__, "neither Triton nor a C++ compiler is here", "pip install triton"
            )
        return Library("torch", torch.__version__)

    def unsupported(self, task: Task, workload: Workload, target: Target) -> str | None:
        if reason := not_attention(task, workload, target):
            return reason
        if workload.dtype == "fp64":
            return "FlexAttention takes fp16, bf16 and fp32"
        if target.is_gpu:
            return None if find_spec("triton") else "FlexAttention needs Triton on a GPU"
        if _compiler() is None:
            return "FlexAttention needs a C++ compiler on a CPU (g++ or clang++ on PATH)"
        return None

    def plan(self, task: Task, workload: Workload, inputs: Mapping[str, Tensor]) -> Call:
        """Block mask of 128 x 128 tiles and a compiled kernel for this shape (tens of seconds)."""
        w = workload
        q, k, v = (inputs[name].transpose(1, 2) for name in ("q", "k", "v"))
        compiled = _compiled()
        arguments = {
            "score_mod": _score_mod(task, w),
            "block_mask": _block_mask(task, w, q.device),
            "scale": w.softmax_scale,
            "enable_gqa": w.group > 1,
        }

        def call() -> Tensor:
            out: Tensor = compiled(q, k, v, **arguments)
            return out.transpose(1, 2)

        return first_call(call, w)


@lru_cache
def _compiled() -> Callable[..., Any]:
    """The one compiled function of this process; importing torch's compiler takes a second or two."""
    from torch._dynamo import config
    from torch.nn.attention.flex_attention import flex_attention

    config.recompile_limit = RECOMPILE_LIMIT
    config.accumulated_recompile_limit = RECOMPILE_LIMIT
    config.fail_on_recompile_limit_hit = True
    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False)
    return compiled


def _score_mod(task: Task, workload: Workload) -> Callable[..., Tensor] | None:
    task_mod = task.score_mod
    if task_mod is None:
        return None

    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return task_mod(score, h, i, j, workload)

    return score_mod


def _block_mask(task: Task, workload: Workload, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    task_mask = task.mask
    if task_mask is None:
        return None

    def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return task_mask(i, j, workload)

    try:
        return create_block_mask(mask_mod, None, None, workload.seq_q, workload.seq_k, device=device)
    except torch.OutOfMemoryError as error:
        raise CannotRun("its block mask needs more memory than the device has") from error


def _compiler() -> str | None:
    """Path of the C++ compiler that torch's CPU code generator would use."""
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++"))), None)
