"""Owns what the hardware allows: floors, TFLOP/s and shares of peak; pure functions of counts and time.

Operations and bytes are the task's exact counts (`Task.flops`, `Task.bytes`), peaks the
target's dense figures. A target without a figure (the CPU) gives None, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.targets import Target
from tasks.spec import Task, Workload

STRICT_SHARE = 0.9  # of the floor: faster than this is impossible


def compute_floor_ms(flops: int, target: Target, dtype: str) -> float | None:
    """Time of `flops` operations at the dense peak of `dtype`, ms; None where the target has no such peak."""
    peak = target.peak_tflops.get(dtype)
    return None if peak is None else flops / peak * 1e-9


def memory_floor_ms(bytes_moved: int, target: Target) -> float | None:
    """Time of `bytes_moved` at the full device bandwidth, ms; None where the target has no such figure."""
    return None if target.bandwidth_gbs is None else bytes_moved / target.bandwidth_gbs * 1e-6


def floor_ms(flops: int, bytes_moved: int, target: Target, dtype: str) -> float | None:
    """max(FLOPs / peak, bytes / bandwidth) in ms, of the bounds there are; None if there is none.

    A time below it is impossible for the whole work with cold caches.
    """
    bounds = (compute_floor_ms(flops, target, dtype), memory_floor_ms(bytes_moved, target))
    return max((b for b in bounds if b is not None), default=None)


def tflops(flops: int, time_ms: float) -> float:
    """Useful TFLOP/s of `flops` operations in `time_ms`."""
    return flops / _checked(time_ms) * 1e-9


def gbytes_per_s(bytes_moved: int, time_ms: float) -> float:
    """Useful GB/s (1e9 bytes) of `bytes_moved` in `time_ms`."""
    return bytes_moved / _checked(time_ms) * 1e-6


def percent_of_peak(flops: int, time_ms: float, target: Target, dtype: str) -> float | None:
    """TFLOP/s as a percentage of the dense peak of `dtype`; None where the target has no such peak."""
    peak = target.peak_tflops.get(dtype)
    return None if peak is None else 100 * tflops(flops, time_ms) / peak


def percent_of_bandwidth(bytes_moved: int, time_ms: float, target: Target) -> float | None:
    """GB/s as a percentage of the device bandwidth; None where the target has no such figure."""
    peak = target.bandwidth_gbs
    return None if peak is None else 100 * gbytes_per_s(bytes_moved, time_ms) / peak


def _checked(time_ms: float) -> float:
    if not time_ms > 0:
        raise ValueError(f"a time of {time_ms} ms cannot be turned into a rate; it must be positive")
    return time_ms


@dataclass(frozen=True)
class Roofline:
    """The counts of one task and workload, seen on one target."""

    flops: int
    bytes_moved: int
    bytes_read: int
    target: Target
    dtype: str

    @classmethod
    def of(cls, task: Task, workload: Workload, target: Target) -> Roofline:
        return cls(
            task.flops(workload), task.bytes(workload), task.bytes_read(workload), target, workload.dtype
        )

    @property
    def floor_ms(self) -> float | None:
        return floor_ms(self.flops, self.bytes_moved, self.target, self.dtype)

    def tflops(self, time_ms: float) -> float:
        return tflops(self.flops, time_ms)

    def gbytes_per_s(self, time_ms: float) -> float:
        return gbytes_per_s(self.bytes_moved, time_ms)

    def percent_of_peak(self, time_ms: float) -> float | None:
        return percent_of_peak(self.flops, time_ms, self.target, self.dtype)

    def percent_of_bandwidth(self, time_ms: float) -> float | None:
        return percent_of_bandwidth(self.bytes_moved, time_ms, self.target)

    def impossible(self, time_ms: float) -> bool:
        """Whether the whole work cannot have been done in this time; False where no floor is known."""
        return self.floor_ms is not None and time_ms < self.floor_ms
