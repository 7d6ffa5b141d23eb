"""Owns PyTorch's scaled_dot_product_attention as baselines: one per backend, each pinned.

Limits are those of torch's own dispatcher (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp,
sdp_utils_cpp.cpp). `is_causal` is aligned to the top left corner, a task's mask to the bottom
right, so the flag is used only where seq_q == seq_k; elsewhere `causal_lower_right` (flash,
efficient) or an explicit additive mask, built once in `plan`, says the same. Any other mask (a
window, say) goes through the additive mask too, on the backends that take one: they then read
it from memory and skip no tile, which is what a user of SDPA gets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from baselines.base import Call, Library
from baselines.features import allowed_keys, has_empty_rows, is_causal, not_attention
from baselines.first_call import first_call
from harness.targets import Target
from tasks.spec import Task, Workload

Limits = Callable[[Task, Workload, Target], str | None]

# Additive masks are padded to whole 16-byte rows (elements): the efficient backend copies others.
MASK_ALIGNMENT = 16


@dataclass(frozen=True)
class Sdpa:
    """scaled_dot_product_attention with one backend allowed."""

    name: str
    title: str
    backend: SDPBackend
    find_library: Callable[[], Library]
    limits: Limits
    lower_right: bool  # takes causal_lower_right without building the mask
    slow: bool = False
    compiles: Literal["never", "configuration", "shape"] = "never"

    def library(self) -> Library:
        return self.find_library()

    def unsupported(self, task: Task, workload: Workload, target: Target) -> str | None:
        if reason := not_attention(task, workload, target):
            return reason
        if task.score_mod is not None:
            return "SDPA has no score modification"
        return self.limits(task, workload, target)

    def plan(self, task: Task, workload: Workload, inputs: Mapping[str, Tensor]) -> Call:
        """Views (batch, heads, seqlen, dim) and the mask; pinning the backend is part of the call."""
        q, k, v = (inputs[name].transpose(1, 2) for name in ("q", "k", "v"))
        grouped = workload.group > 1
        causal = is_causal(task, workload)
        top_left = causal and workload.diagonal == 0
        # causal_lower_right falls back to an explicit mask on a CPU and drops grouped heads in efficient.
        flag = self.lower_right and q.is_cuda and (not grouped or self.backend is SDPBackend.FLASH_ATTENTION)
        mask: Tensor | None = None
        if causal and not top_left and flag:
            from torch.nn.attention.bias import causal_lower_right  # brings in torch's compiler: 1.5 s

            mask = causal_lower_right(workload.seq_q, workload.seq_k)
        elif not top_left:
            mask = _additive_mask(task, workload, q)

        def call() -> Tensor:
            with sdpa_kernel(self.backend):
                out = F.scaled_dot_product_attention(
                    q,
                    k,
                    v,
                    attn_mask=mask,
                    is_causal=top_left,
                    scale=workload.softmax_scale,
                    enable_gqa=grouped,
                )
            return out.transpose(1, 2)

        return first_call(call, workload)


def _additive_mask(task: Task, workload: Workload, like: Tensor) -> Tensor | None:
    """0 where a query may see a key, -inf elsewhere, (1, 1, seq_q, seq_k) in the dtype of `like`.

    Additive because a boolean one is converted inside every call; rows start on aligned addresses.
    """
    allowed = allowed_keys(task, workload, like.device)
    if allowed is None:
        return None
    width = -(-workload.seq_k // MASK_ALIGNMENT) * MASK_ALIGNMENT
    mask = torch.zeros(1, 1, workload.seq_q, width, dtype=like.dtype, device=like.device)
    mask = mask[..., : workload.seq_k]
    return mask.masked_fill_(~allowed, float("-inf"))


def _torch() -> Library:
    return Library("torch", torch.__version__)


def _cudnn() -> Library:
    try:
        version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    except RuntimeError as error:  # a cuDNN that does not fit this torch
        return Library("cudnn", None, str(error), "install the cuDNN that this torch was built with")
    if version is None:
        return Library("cudnn", None, "this torch has no cuDNN", "install a CUDA build of torch")
    return Library("cudnn", f"{version // 10_000}.{version // 100 % 100}.{version % 100}")


def _math_limits(task: Task, workload: Workload, target: Target) -> str | None:
    return None


def _flash_limits(task: Task, workload: Workload, target: Target) -> str | None:
    w = workload
    if w.dim != w.dim_v:
        return f"SDPA's flash backend takes one head dimension, not {w.dim} and {w.dim_v}"
    if not target.is_gpu:
        return None
    if w.dim > 256:
        return f"SDPA's flash backend takes head dimensions to 256, not {w.dim}"
    if reason := _low_precision_ampere(w, target, "SDPA's flash backend"):
        return reason
    if task.mask is not None and not is_causal(task, w):
        return "SDPA's flash backend takes no mask but causal"
    return _empty_rows(task, w)


def _efficient_limits(task: Task, workload: Workload, target: Target) -> str | None:
    if target.capability is None:
        return "SDPA's memory-efficient backend needs an NVIDIA GPU"
    if workload.dtype == "fp64":
        return "SDPA's memory-efficient backend takes fp16, bf16 and fp32"
    if workload.group > 1:  # torch 2.11: "both fused kernels require ... the same num_heads"
        return "SDPA's memory-efficient backend takes no grouped heads"
    multiple = 8 if workload.dtype in ("fp16", "bf16") else 4
    if workload.dim % multiple or workload.dim_v % multiple:
        return f"SDPA's memory-efficient backend takes head dimensions in multiples of {multiple}"
    return _empty_rows(task, workload)


def _cudnn_limits(task: Task, workload: Workload, target: Target) -> str | None:
    w = workload
    if reason := _low_precision_ampere(w, target, "cuDNN attention"):
        return reason
    limit = 256 if target.capability and target.capability >= (9, 0) else 128
    if max(w.dim, w.dim_v) > limit:
        return f"cuDNN attention takes head dimensions to {limit} on {target.title}"
    if w.dim % 8 or w.dim_v % 8:
        return "cuDNN attention takes head dimensions in multiples of 8"
    if w.seq_k == 1:
        return "cuDNN attention takes no key sequence of length 1"
    return _empty_rows(task, w)


def _low_precision_ampere(workload: Workload, target: Target, what: str) -> str | None:
    if target.capability is None or target.capability < (8, 0):
        return f"{what} needs an NVIDIA GPU of the Ampere generation or later"
    if workload.dtype not in ("fp16", "bf16"):
        return f"{what} takes fp16 and bf16, not {workload.dtype}"
    return None


def _empty_rows(task: Task, workload: Workload) -> str | None:
    if has_empty_rows(task, workload):
        return "some queries may see no key; this backend may give NaN there, not 0"
    return None


CUDNN = Sdpa("cudnn", "cuDNN through PyTorch SDPA", SDPBackend.CUDNN_ATTENTION, _cudnn, _cudnn_limits, False)
SDPA_FLASH = Sdpa(
    "sdpa-flash", "PyTorch SDPA, flash", SDPBackend.FLASH_ATTENTION, _torch, _flash_limits, True
)
SDPA_EFFICIENT = Sdpa(
    "sdpa-efficient",
    "PyTorch SDPA, memory-efficient",
    SDPBackend.EFFICIENT_ATTENTION,
    _torch,
    _efficient_limits,
    True,
)
SDPA_MATH = Sdpa("sdpa-math", "PyTorch SDPA, math", SDPBackend.MATH, _torch, _math_limits, False, slow=True)
