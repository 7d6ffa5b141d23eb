"""Owns telling a kernel of one's own from a library's, by the names of what ran on the device."""

from __future__ import annotations

from collections.abc import Sequence

from harness.records import KernelRecord

# Parts of attention kernels' names in libraries, as seen in kernel records. All are C++ or
# generated names that a Triton or CUDA function of one's own has no reason to carry.
_LIBRARIES = {
    "cuDNN": ("cudnn_generated",),
    "flash-attention": ("flash::flash_fwd", "flash::compute", "FlashAttentionForwardSm"),
    "PyTorch's efficient attention": ("fmha_cutlassF",),
}
SHARE = 0.5  # of device time


def dispatched_to(kernels: Sequence[KernelRecord]) -> str | None:
    """The library that takes more than half of the device time, or None."""
    total = sum(k.time_ms for k in kernels)
    for library, marks in _LIBRARIES.items():
        theirs = sum(k.time_ms for k in kernels if any(m in k.name for m in marks))
        if total > 0 and theirs > SHARE * total:
            return library
    return None
