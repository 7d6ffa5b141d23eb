"""Owns the facts about targets: architecture, sizes, dense peaks, bandwidth; knows nothing of the rest.

Peaks are the vendors' dense figures at boost clock (NVIDIA data sheets), in TFLOP/s;
bandwidth in GB/s. They bound what is possible; nobody reaches them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


class TargetError(ValueError):
    """An unknown target, or one that this machine is not; the text names the way out."""


@dataclass(frozen=True)
class Target:
    """What a kernel is written for. None: not a meaningful figure for this target."""

    name: str
    title: str
    arch: str  # "sm_90", or "cpu"
    sm_count: int | None
    smem_per_block: int | None  # bytes, the most one block may opt in to
    peak_tflops: Mapping[str, float]  # by dtype, dense
    bandwidth_gbs: float | None
    l2_bytes: int
    device_names: tuple[str, ...]  # whole words of the device's own name

    @property
    def is_gpu(self) -> bool:
        return self.arch != "cpu"

    @property
    def capability(self) -> tuple[int, int] | None:
        digits = self.arch.removeprefix("sm_")
        return (int(digits[:-1]), int(digits[-1])) if self.is_gpu else None

    @property
    def reference(self) -> Literal["float64", "float32"]:
        """Precision of expected values: float64 where the target computes it at a useful rate.

        Data-centre chips (sm_80, sm_90) do; Turing and sm_89 do 1/32 and 1/64 of float32.
        """
        return "float64" if not self.is_gpu or self.arch in ("sm_80", "sm_90") else "float32"

    def supports(self, dtype: str) -> bool:
        return not self.is_gpu or dtype in self.peak_tflops


_KB = 1024
_MB = 1024 * 1024

TARGETS: Mapping[str, Target] = {
    t.name: t
    for t in (
        Target("cpu", "this machine's CPU", "cpu", None, None, {}, None, 64 * _MB, ()),
        Target(
            "t4", "NVIDIA T4", "sm_75", 40, 64 * _KB, {"fp16": 65.1, "fp32": 8.1}, 320.0, 4 * _MB, ("T4",)
        ),
        Target(
            "rtx8000",
            "NVIDIA Quadro RTX 8000",
            "sm_75",
            72,
            64 * _KB,
            {"fp16": 130.5, "fp32": 16.3},
            672.0,
            6 * _MB,
            ("RTX 8000",),
        ),
        Target(
            "a100",
            "NVIDIA A100 80GB SXM",
            "sm_80",
            108,
            163 * _KB,
            {"fp16": 312.0, "bf16": 312.0, "fp32": 19.5},
            2039.0,
            40 * _MB,
            ("A100",),
        ),
        Target(
            "l40s",
            "NVIDIA L40S",
            "sm_89",
            142,
            99 * _KB,
            {"fp16": 362.0, "bf16": 362.0, "fp8": 733.0, "fp32": 91.6},
            864.0,
            96 * _MB,
            ("L40S",),
        ),
        Target(
            "h100",
            "NVIDIA H100 SXM",
            "sm_90",
            132,
            227 * _KB,
            {"fp16": 989.4, "bf16": 989.4, "fp8": 1978.9, "fp32": 66.9},
            3352.0,
            50 * _MB,
            ("H100",),
        ),
        Target(
            "h200",
            "NVIDIA H200 SXM",
            "sm_90",
            132,
            227 * _KB,
            {"fp16": 989.4, "bf16": 989.4, "fp8": 1978.9, "fp32": 66.9},
            4800.0,
            50 * _MB,
            ("H200",),
        ),
    )
}


def find_target(name: str) -> Target:
    """The target by name; raises TargetError that lists them."""
    if name not in TARGETS:
        raise TargetError(f"unknown target {name!r}; choose one of {', '.join(TARGETS)}")
    return TARGETS[name]


def target_of_device(device_name: str) -> Target | None:
    """The target whose name a device carries, or None for a device this table does not know."""
    # whole words: an RTX A1000 is no A100, a T400 no T4, a GH200 no H200
    carried = (t for t in TARGETS.values() for n in t.device_names if re.search(rf"\b{n}\b", device_name))
    return next(carried, None)
