"""Owns which languages a candidate may be written in, where each runs, and where its time means anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

DeviceKind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Backend:
    """A language of kernels. `devices`: where it runs; `timed`: where its speed is its own."""

    name: str
    title: str
    module: str  # what must be importable
    devices: frozenset[DeviceKind]
    timed: frozenset[DeviceKind]
    capturable: bool  # a call is expected to survive capture in a CUDA graph

    def interpreted(self, device: DeviceKind) -> bool:
        """Whether it runs on this device through an interpreter: numerics count, time must never."""
        return device in self.devices and device not in self.timed


_BOTH: frozenset[DeviceKind] = frozenset(("cpu", "cuda"))
_CPU: frozenset[DeviceKind] = frozenset(("cpu",))
_CUDA: frozenset[DeviceKind] = frozenset(("cuda",))

BACKENDS: Mapping[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("torch", "PyTorch", "torch", _BOTH, _BOTH, True),
        Backend("triton", "Triton", "triton", _BOTH, _CUDA, True),
        Backend("cuda", "CUDA C++ with CuTe", "cuda.bindings", _CUDA, _CUDA, True),
        Backend("gluon", "Gluon for Hopper", "triton.experimental.gluon", _CUDA, _CUDA, True),
        Backend("numba", "Numba", "numba", _CPU, _CPU, False),
    )
}
