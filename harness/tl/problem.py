"""Owns what the language needs to know of a task: its tensors, symbols and shapes, as an interface.

Anything with these attributes serves; the harness's own tasks do. Nothing here knows where they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

SIZES = ("batch", "heads", "kv_heads", "seq_q", "seq_k", "dim", "dim_v")


class TensorLike(Protocol):
    """A tensor of the task: `axes` name sizes, in memory order; `role` is "input" or "output"."""

    @property
    def name(self) -> str: ...
    @property
    def axes(self) -> tuple[str, ...]: ...
    @property
    def role(self) -> str: ...
    @property
    def dtype(self) -> str | None: ...


class ParameterLike(Protocol):
    """A scalar of the task beyond `scale`; `type` is "int" or "float"."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...


class WorkloadLike(Protocol):
    """One concrete shape: `sizes` by axis name, the values of the task's parameters, the dtype."""

    @property
    def sizes(self) -> Mapping[str, int]: ...
    @property
    def params(self) -> Mapping[str, int | float]: ...
    @property
    def softmax_scale(self) -> float: ...
    @property
    def dtype(self) -> str: ...
    def with_(self, **changes: object) -> Any: ...


class TaskLike(Protocol):
    """An attention variant. `mask(i, j, workload)` takes integer tensors, gives what query i may see."""

    @property
    def name(self) -> str: ...
    @property
    def tensors(self) -> Sequence[TensorLike]: ...
    @property
    def parameters(self) -> Sequence[ParameterLike]: ...
    @property
    def mask(self) -> Callable[..., Any] | None: ...
    @property
    def workloads(self) -> Mapping[str, Sequence[Any]]: ...


def scalars(workload: WorkloadLike) -> dict[str, int | float]:
    """The value of every symbol that a task gives a program on one workload."""
    sizes = dict(workload.sizes)
    return {
        **sizes,
        "group": sizes["heads"] // sizes["kv_heads"],
        "scale": workload.softmax_scale,
        **workload.params,
    }


def symbols(task: TaskLike) -> dict[str, str]:
    """Every symbol that the task gives, with its type: "int" or "float"."""
    return {
        **dict.fromkeys((*SIZES, "group"), "int"),
        "scale": "float",
        **{parameter.name: parameter.type for parameter in task.parameters},
    }


def all_workloads(task: TaskLike) -> list[Any]:
    """Every workload of the task, each once."""
    return list(dict.fromkeys(w for sets in task.workloads.values() for w in sets))
