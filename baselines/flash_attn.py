"""Owns the official flash-attn packages as baselines: version 2 (CUDA C++) and version 4 (CuTe DSL).

Both take (batch, seqlen, heads, head_dim) tensors, align causal masks and windows to the bottom
right corner, give 0 where a query sees no key and share kv heads among grouped queries by
themselves. They are two distributions over one import package, `flash_attn` (2) and
`flash_attn.cute` (4), so presence is decided by distribution.
Limits: flash_attn's README and flash_attn/cute/interface.py (4.0.0b36).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Literal

from torch import Tensor

from baselines.base import Call, CannotRun, Library
from baselines.features import Features, features, not_attention
from baselines.first_call import first_call
from harness.targets import Target
from tasks.spec import Task, Workload

# What importing flash_attn.cute needs beside itself: top-level modules.
CUTE_MODULES = ("cutlass", "quack", "tvm_ffi", "einops")


@dataclass(frozen=True)
class FlashAttn:
    """One generation of the official package."""

    name: str
    title: str
    distribution: str
    module: str
    needs: tuple[str, ...]
    arguments: Callable[[Features], dict[str, Any]]
    limits: Callable[[Workload, Target], str | None]
    slow: bool = False
    compiles: Literal["never", "configuration", "shape"] = "never"

    def library(self) -> Library:
        install = f"pip install {self.distribution}"
        try:
            version = metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return Library(self.distribution, None, f"{self.distribution} is not installed", install)
        absent = [name for name in self.needs if find_spec(name) is None]
        if absent:
            return Library(
                self.distribution,
                version,
                f"{self.distribution} is installed but cannot import {', '.join(absent)}",
                f"{install}; with pip --target, nvidia_cutlass_dsl/dsl_packages must be on PYTHONPATH",
            )
        return Library(self.distribution, version)

    def unsupported(self, task: Task, workload: Workload, target: Target) -> str | None:
        if reason := not_attention(task, workload, target):
            return reason
        if target.capability is None or target.capability < (8, 0):
            return f"{self.distribution} needs an NVIDIA GPU of the Ampere generation or later"
        if workload.dtype not in ("fp16", "bf16"):
            return f"{self.distribution} takes fp16 and bf16, not {workload.dtype}"
        if features(task, workload) is None:
            return f"{self.distribution} has no flag for this mask or score modification"
        return self.limits(workload, target)

    def plan(self, task: Task, workload: Workload, inputs: Mapping[str, Tensor]) -> Call:
        """The kernel for this shape, compiled; the tensors go to the library as they are."""
        found = features(task, workload)
        if found is None:
            raise CannotRun(f"{self.distribution} has no flag for this mask or score modification")
        try:
            attention = importlib.import_module(self.module).flash_attn_func
        except (ImportError, AttributeError, RuntimeError, OSError) as error:
            raise CannotRun(f"{self.module} does not import: {type(error).__name__}: {error}") from error
        q, k, v = inputs["q"], inputs["k"], inputs["v"]
        arguments = {"softmax_scale": workload.softmax_scale, **self.arguments(found)}

        def call() -> Tensor:
            result = attention(q, k, v, **arguments)
            out: Tensor = result[0] if isinstance(result, tuple) else result
            return out

        return first_call(call, workload)


def _arguments_2(found: Features) -> dict[str, Any]:
    """window_size counts keys to the left and right of the diagonal; -1 is unbounded."""
    left = -1 if found.window is None else found.window - 1
    right = 0 if found.causal else -1
    return {"causal": found.causal, "window_size": (left, right), "softcap": found.softcap or 0.0}


def _arguments_4(found: Features) -> dict[str, Any]:
    """None is unbounded; a bounded left side with causal becomes the local kernel."""
    left = None if found.window is None else found.window - 1
    right = 0 if found.causal else None
    return {"causal": found.causal, "window_size": (left, right), "softcap": found.softcap or 0.0}


def _limits_2(workload: Workload, target: Target) -> str | None:
    if workload.dim != workload.dim_v:
        return f"flash-attn 2 takes one head dimension, not {workload.dim} and {workload.dim_v}"
    if workload.dim > 256:
        return f"flash-attn 2 takes head dimensions to 256, not {workload.dim}"
    return None


def _limits_4(workload: Workload, target: Target) -> str | None:
    w = workload
    if w.dim % 8 or w.dim_v % 8:
        return "flash-attn 4 takes head dimensions in multiples of 8"
    if max(w.dim, w.dim_v) > 256:
        return f"flash-attn 4 takes head dimensions to 256 on {target.title}"
    return None


FLASH_ATTN_2 = FlashAttn(
    "flash-attn-2",
    "flash-attn 2, the official package",
    "flash-attn",
    "flash_attn",
    (),
    _arguments_2,
    _limits_2,
)
FLASH_ATTN_4 = FlashAttn(
    "flash-attn-4",
    "flash-attn 4 (CuTe DSL), the official package",
    "flash-attn-4",
    "flash_attn.cute",
    CUTE_MODULES,
    _arguments_4,
    _limits_4,
    compiles="configuration",
)
