"""Owns the form of flashinfer-bench's records as this project writes them; knows nothing of runs.

These are the models of flashinfer-bench 0.1.2 (Apache-2.0), with the fields that are used here. The
package itself would bring flashinfer, a CUDA build of torch and gigabytes; that both forms agree is
tested against its own models (tests/reports/test_flashinfer.py).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

LEFT_OUT = "attnbench_left_out.jsonl"  # of this project; at the root, where the package does not look

Text = Annotated[str, Field(min_length=1)]
Size = Annotated[int, Field(ge=0)]
Least0 = Annotated[float, Field(ge=0)]


class Part(BaseModel):
    """Base of all records; not-a-number and infinity are written as strings, as the package does."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Axis(Part):
    """`const`: part of what a kernel is written for, with a value; `var`: given by each workload."""

    type: Literal["const", "var"]
    value: Size | None = None
    description: str | None = None


class Tensor(Part):
    """`shape` names axes; None is a scalar."""

    shape: tuple[Text, ...] | None
    dtype: str
    description: str | None = None


class Definition(Part):
    """What is to be computed: inputs and outputs in the order of a call, and a reference."""

    name: Text
    op_type: Text
    axes: dict[str, Axis]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    reference: Text
    tags: tuple[Text, ...] = ()
    description: str | None = None
    constraints: tuple[Text, ...] = ()


class Source(Part):
    path: Text
    content: Text


class BuildSpec(Part):
    """How a solution becomes a callable."""

    language: Literal["python", "triton"]
    target_hardware: tuple[str, ...] = Field(min_length=1)
    entry_point: Text
    dependencies: tuple[Text, ...] = ()
    destination_passing_style: bool = True


class Solution(Part):
    """One kernel for one definition."""

    name: Text
    definition: Text
    author: Text
    spec: BuildSpec
    sources: tuple[Source, ...] = Field(min_length=1)
    description: str | None = None

    @model_validator(mode="after")
    def _entry_is_there(self) -> Self:
        if self.spec.entry_point.partition("::")[0] not in {s.path for s in self.sources}:
            raise ValueError("the entry point is in none of the sources")
        return self


class Input(Part):
    """A tensor drawn at random, or a scalar with its value."""

    type: Literal["random", "scalar"]
    value: int | float | None = None


class Workload(Part):
    axes: dict[str, Size]
    inputs: dict[str, Input]
    uuid: Text


class Correctness(Part):
    max_relative_error: float
    max_absolute_error: float
    extra: dict[str, Any] | None = None


class Performance(Part):
    latency_ms: Least0
    reference_latency_ms: Least0
    speedup_factor: Least0


class Environment(Part):
    hardware: Text
    libs: dict[str, str] = {}


class Status(StrEnum):
    """What the format can say of an evaluation."""

    PASSED = "PASSED"
    INCORRECT_SHAPE = "INCORRECT_SHAPE"
    INCORRECT_NUMERICAL = "INCORRECT_NUMERICAL"
    RUNTIME_ERROR = "RUNTIME_ERROR"
    COMPILE_ERROR = "COMPILE_ERROR"
    TIMEOUT = "TIMEOUT"


class Evaluation(Part):
    """What became of a solution on a workload."""

    status: Status
    environment: Environment
    timestamp: Text
    log: str = ""
    correctness: Correctness | None = None
    performance: Performance | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.performance is not None) != (self.status is Status.PASSED):
            raise ValueError("a performance belongs to a passed evaluation, and to no other")
        checked = self.status in (Status.PASSED, Status.INCORRECT_NUMERICAL)
        if (self.correctness is not None) != checked:
            raise ValueError(f"correctness must {'' if checked else 'not '}stand beside {self.status}")
        return self


class Trace(Part):
    """A workload alone, or with what one solution did on it."""

    definition: Text
    workload: Workload
    solution: str | None = None
    evaluation: Evaluation | None = None
