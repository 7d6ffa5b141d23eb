"""Owns what a human baseline is: a library's attention behind one small interface.

A baseline runs in a trusted worker of its own. `plan` does everything that is not the
computation (masks, compilation, views); the returned callable only computes and returns
the library's own output tensor, so no copy is charged to the library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from harness.targets import Target
from tasks.spec import Task, Workload

Call = Callable[[], Tensor]


class CannotRun(Exception):
    """This baseline cannot run this here; the text is the reason shown in the report."""


@dataclass(frozen=True)
class Library:
    """What a baseline stands on, as found: name and version, or why it is missing and what installs it."""

    name: str
    version: str | None
    missing: str = ""  # reason; empty when usable
    install: str = ""  # what to do about it

    @property
    def usable(self) -> bool:
        return not self.missing


class Baseline(Protocol):
    """One library's attention."""

    @property
    def name(self) -> str:
        """As in tables: `cudnn`."""
        ...

    @property
    def title(self) -> str:
        """For people: `cuDNN through PyTorch SDPA`."""
        ...

    @property
    def slow(self) -> bool:
        """A reference point, not a competitor: few samples, no CUDA graph."""
        ...

    @property
    def compiles(self) -> Literal["never", "configuration", "shape"]:
        """For what `plan` compiles for seconds: worth doing ahead, in parallel."""
        ...

    def library(self) -> Library:
        """What this stands on; never raises."""
        ...

    def unsupported(self, task: Task, workload: Workload, target: Target) -> str | None:
        """Why it cannot run this, or None; decided without a device, from documented limits."""
        ...

    def plan(self, task: Task, workload: Workload, inputs: Mapping[str, Tensor]) -> Call:
        """A call on these tensors (batch, seqlen, heads, head_dim), result in the same layout.

        Raises CannotRun where the library refuses.
        """
        ...
