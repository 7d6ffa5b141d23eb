"""Owns what a task and a workload are; knows nothing of kernels, workers or clocks.

A task is an attention variant: its mathematics, the tensors of its signature, who sees
whom (mask), how a score is changed (score modification), and its workloads. Everything
else (the oracle, FLOP and byte counts, the FlexAttention baseline, prompts, reports) is
derived from these, so that adding a variant is adding one file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

DTYPES: Mapping[str, torch.dtype] = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}

ParameterValue = int | float


class TaskError(ValueError):
    """A task file, a task name or a workload that cannot be used; the text says what to do."""


@dataclass(frozen=True)
class Workload:
    """One concrete shape, dtype and parameter set of a task.

    Sizes count elements. `scale` multiplies the scores; None means dim ** -0.5.
    `label` names the model the shape comes from, where there is one.
    """

    task: str
    batch: int
    heads: int
    kv_heads: int
    seq_q: int
    seq_k: int
    dim: int
    dim_v: int
    dtype: str = "fp16"
    scale: float | None = None
    parameters: tuple[tuple[str, ParameterValue], ...] = ()
    label: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise TaskError(f"unknown dtype {self.dtype!r}; choose one of {', '.join(DTYPES)}")
        if self.heads % self.kv_heads:
            raise TaskError(f"{self.heads} heads cannot share {self.kv_heads} kv heads evenly")
        for name in ("batch", "heads", "kv_heads", "seq_q", "seq_k", "dim", "dim_v"):
            if getattr(self, name) < 1:
                raise TaskError(f"{name} of a workload must be at least 1")

    @property
    def group(self) -> int:
        """Query heads that share one kv head."""
        return self.heads // self.kv_heads

    @property
    def diagonal(self) -> int:
        """D = seq_k - seq_q: causal masks are aligned to the bottom right corner."""
        return self.seq_k - self.seq_q

    @property
    def softmax_scale(self) -> float:
        return self.dim**-0.5 if self.scale is None else self.scale

    @property
    def params(self) -> dict[str, ParameterValue]:
        return dict(self.parameters)

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes by the axis names that tensor specs use."""
        return {
            "batch": self.batch,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "seq_q": self.seq_q,
            "seq_k": self.seq_k,
            "dim": self.dim,
            "dim_v": self.dim_v,
        }

    @property
    def key(self) -> str:
        """Short unique name within the task, stable over versions; it goes into identities."""
        heads = f"h{self.heads}" + (f"k{self.kv_heads}" if self.kv_heads != self.heads else "")
        seq = f"n{self.seq_q}" + (f"x{self.seq_k}" if self.seq_k != self.seq_q else "")
        dim = f"d{self.dim}" + (f"v{self.dim_v}" if self.dim_v != self.dim else "")
        extra = "".join(f"-{name}{value:g}" for name, value in self.parameters)
        scale = "" if self.scale is None else f"-scale{self.scale:.6g}"
        return f"b{self.batch}-{heads}-{seq}-{dim}{extra}{scale}-{self.dtype}"

    def with_(self, **changes: object) -> Workload:
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the kernel's signature; `axes` name sizes of the workload, in memory order."""

    name: str
    axes: tuple[str, ...]
    role: Literal["input", "output"] = "input"
    dtype: str | None = None  # None: the workload's
    doc: str = ""

    def shape(self, workload: Workload) -> tuple[int, ...]:
        return tuple(workload.sizes[axis] for axis in self.axes)

    def dtype_of(self, workload: Workload) -> str:
        return self.dtype or workload.dtype


@dataclass(frozen=True)
class Parameter:
    """A scalar keyword argument of the kernel beyond `scale`."""

    name: str
    type: Literal["int", "float"]
    doc: str


QKVO: tuple[TensorSpec, ...] = (
    TensorSpec("q", ("batch", "seq_q", "heads", "dim"), doc="queries"),
    TensorSpec("k", ("batch", "seq_k", "kv_heads", "dim"), doc="keys"),
    TensorSpec("v", ("batch", "seq_k", "kv_heads", "dim_v"), doc="values"),
    TensorSpec("out", ("batch", "seq_q", "heads", "dim_v"), "output", doc="result, written by the kernel"),
)

# i: absolute query positions (any shape), j: key positions (broadcastable), both integer tensors
# -> bool tensor, True where query i may see key j.
Mask = Callable[[Tensor, Tensor, Workload], Tensor]
# s: scaled scores (heads axis is dim -3), h: head indices, i, j as above -> modified scores
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Workload], Tensor]
PairCount = Callable[[Workload], int]
Oracle = Callable[[Workload, Mapping[str, Tensor]], dict[str, Tensor]]


def all_pairs(workload: Workload) -> int:
    """Visible (i, j) pairs of one head without a mask."""
    return workload.seq_q * workload.seq_k


@dataclass(frozen=True)
class Task:
    """An attention variant.

    `visible_pairs` counts the (i, j) pairs that the mask allows for one head of one batch
    entry, exactly; a test compares it with brute force. `score_flops` counts extra
    element-wise operations per visible pair only where they are a sizeable share (0 else).
    `oracle` replaces the generic oracle where the mathematics differ. `recipes` names the
    input recipes the judge draws from; None means all that apply.
    """

    name: str
    title: str
    description: str
    math: str
    workloads: Mapping[str, tuple[Workload, ...]]
    mask: Mask | None = None
    score_mod: ScoreMod | None = None
    visible_pairs: PairCount = all_pairs
    tensors: tuple[TensorSpec, ...] = QKVO
    parameters: tuple[Parameter, ...] = ()
    tolerance_factor: float = 2.0
    recipes: tuple[str, ...] | None = None
    causal: bool = False  # the mask is exactly j <= i + D: libraries have a flag for that
    oracle: Oracle | None = None
    source: str = field(default="", compare=False)  # text of the task file, for hashes

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(t for t in self.tensors if t.role == "input")

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(t for t in self.tensors if t.role == "output")

    @property
    def signature(self) -> str:
        """The Python signature a candidate implements."""
        names = ", ".join(t.name for t in self.tensors)
        extra = "".join(f", {p.name}: {p.type}" for p in self.parameters)
        return f"def attention({names}, *, scale: float{extra}) -> None"

    def flops(self, workload: Workload) -> int:
        """Floating-point operations of the two GEMMs over visible pairs only."""
        pairs = self.visible_pairs(workload) * workload.batch * workload.heads
        return 2 * pairs * (workload.dim + workload.dim_v)

    def bytes(self, workload: Workload) -> int:
        """Fewest bytes through device memory: each tensor once."""
        return sum(_nbytes(t, workload) for t in self.tensors)

    def bytes_read(self, workload: Workload) -> int:
        """Bytes of the inputs, which a call with cold caches must read."""
        return sum(_nbytes(t, workload) for t in self.inputs)

    def scalars(self, workload: Workload) -> dict[str, ParameterValue]:
        """Keyword arguments of a call."""
        return {"scale": workload.softmax_scale, **workload.params}

    def workload_set(self, name: str) -> tuple[Workload, ...]:
        """The named set; raises TaskError that lists the sets there are."""
        if name not in self.workloads:
            known = ", ".join(sorted(self.workloads))
            raise TaskError(f"task {self.name} has no workload set {name!r}; it has: {known}")
        return self.workloads[name]


def _nbytes(tensor: TensorSpec, workload: Workload) -> int:
    return math.prod(tensor.shape(workload)) * DTYPES[tensor.dtype_of(workload)].itemsize
