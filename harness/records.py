"""Owns the file format: what a line of results.jsonl may say. Validators make bad states impossible.

Everything on disk passes through these models; inside the harness frozen dataclasses of
the respective module travel. Units are in the names. `harness.seals` reads a line.

Schema 2 adds the seal and the chain: a line says the hash of its own content, and the seal of the line
before it. It is a version of its own, and no optional field of 1, for two reasons: a line of 2 without
a seal is refused, so that nobody drops one in passing; and an attnbench that knows only 1 says which
version it lacks, where it would have complained of a field it does not know. Lines of 1 stay readable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.verdicts import MEASURED_VERDICTS, Stage, Verdict, stage_of

SCHEMA_VERSION = 2  # written; 1 is read too
SEALED_SINCE = 2
PROTOCOL_VERSION = "2"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Record(BaseModel):
    """Base of all records: unknown keys are refused, values frozen, NaN and infinity not written."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class WorkloadRecord(Record):
    """The shape a result is about; `key` is unique within the task."""

    key: str
    batch: int
    heads: int
    kv_heads: int
    seq_q: int
    seq_k: int
    dim: int
    dim_v: int
    dtype: str
    scale: float
    parameters: dict[str, float] = {}
    causal: bool = False
    label: str = ""
    flops: int = Field(description="GEMM operations over visible pairs")
    bytes: int = Field(description="fewest bytes through device memory")


class CandidateRecord(Record):
    """What was run: a human baseline or a candidate, identified by the hash of its content."""

    sha256: Sha256
    name: str
    kind: Literal["baseline", "candidate"]
    method: str = Field(description="baseline, folder, vanilla, tl, ...")
    backend: str = Field(description="torch, triton, numba, cuda, gluon, or the library of a baseline")
    family: str = Field("", description="library of a baseline, with its version: 'cudnn 9.19'")
    model: str = ""
    trial: Sha256 | Literal[""] = Field("", description="of a generated kernel: its trial in trials.jsonl")
    sample: int = Field(0, description="of a generated kernel: number of the attempt")
    files: dict[str, Sha256] = Field(default={}, description="name -> hash of each source file in artifacts/")


class Check(Record):
    """One output compared with the oracle on one input."""

    workload: str
    recipe: str
    seed: int
    passed: bool
    error_max: float = Field(description="max |out - ref|")
    error_allowed: float = Field(description="the bound of docs/protocol.md for that input")
    tile_error: float = Field(
        description="worst RMS error of a (batch, head, 64-row) tile over the tile's RMS"
    )
    tile_error_allowed: float
    cosine_distance: float
    timed: bool = Field(False, description="the output came from a timed iteration")
    reference: Literal["float64", "float32"] = "float64"
    note: str = ""


class Verification(Record):
    """Everything the judge checked for one candidate on one workload."""

    checks: tuple[Check, ...] = ()
    repeats_identical: bool | None = Field(None, description="None: not reached")
    inputs_untouched: bool | None = None
    detectors: tuple[str, ...] = Field(default=(), description="integrity findings, by detector name")

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(c.passed for c in self.checks)


class Summary(Record):
    """Order statistics of samples, in milliseconds."""

    median_ms: Positive
    p10_ms: Positive
    p90_ms: Positive
    samples: int = Field(ge=1)


class Ratio(Record):
    """Speedup of this candidate over `anchor`: paired time ratio of neighbouring blocks, > 1 is faster."""

    anchor: str = Field(description="name of the baseline in the denominator")
    median: Positive
    low: Positive = Field(description="lower end of the 95 % bootstrap interval of the median")
    high: Positive
    pairs: int = Field(ge=1, description="A/B/B/A quadruples")
    stopped: Literal["precise", "time_cap", "rounds_cap", "screened"] = Field(
        description="why sampling ended; screened: a baseline that is not the anchor, few blocks taken"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.median <= self.high:
            raise ValueError("interval must contain the median")
        return self


class Telemetry(Record):
    """NVML's word on one block; None where the device does not say."""

    sm_mhz: float | None = None
    memory_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttle: tuple[str, ...] = ()


class Block(Record):
    """Consecutive timed iterations of one contender."""

    round: int
    started_s: float = Field(description="seconds since the session's start")
    iterations: int
    median_ms: Positive
    telemetry: Telemetry | None = None


class KernelRecord(Record):
    """One device kernel of a call, by its own name."""

    name: str
    calls: int = Field(description="launches in one call of the candidate")
    time_ms: float = Field(description="median of the sum over one call")


class Measurement(Record):
    """How long one candidate took on one workload, beside its anchor in the same session."""

    clock: Literal["kernel_records", "graph_events", "stream_events", "wall", "warm_wall"]
    captured: bool = Field(description="timed as replays of a CUDA graph")
    device_time: Summary
    call_latency: Summary | None = None
    graph_time: Summary | None = Field(
        None, description="cross-check of device time by events around replays"
    )
    ratio: Ratio
    noise: Ratio | None = Field(None, description="the duplicate anchor's ratio: the session's noise floor")
    blocks: tuple[Block, ...] = ()
    kernels: tuple[KernelRecord, ...] = ()
    judge_slope_ms: float | None = Field(None, description="the judge's own time per iteration, from outside")
    floor_ms: float | None = Field(None, description="max(FLOPs / peak, bytes / bandwidth) of the target")
    tflops: Positive = Field(description="useful TFLOP/s at the median device time")
    percent_of_peak: float | None = None
    gbytes_per_s: Positive
    percent_of_bandwidth: float | None = None


class Cost(Record):
    """What a trial spent; wall time by stage in seconds, tokens and money for generated candidates."""

    wall_s: dict[str, float] = {}
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float = 0.0


class Identity(Record):
    """What makes two results the same result."""

    task: Sha256 = Field(description="hash of the task file")
    workload: str
    candidate: Sha256
    target: str
    harness: str
    protocol: str = PROTOCOL_VERSION
    sample: int = 0
    trial: Sha256 | Literal[""] = Field("", description="two trials may write the same kernel")

    @property
    def digest(self) -> str:
        """Hash of the content; `trial` counts where there is one (older results have none)."""
        return content_hash(self.model_dump(exclude=set() if self.trial else {"trial"}))


class CompiledKernel(Record):
    """What the compiler says of one kernel on one architecture, for one launch of it."""

    name: str = Field(description="as C++ names it")
    arch: str = Field(description="sm_80, sm_90a, ...: whose machine code this is about")
    optimize: int = Field(3, description="level of ptxas")
    registers: int = Field(ge=0, description="of a thread")
    spill_bytes: int = Field(ge=0, description="stores and loads of registers that did not fit, of a thread")
    threads: int = Field(ge=1, description="of a block")
    shared_bytes: int = Field(ge=0, description="of a block, static and dynamic")
    blocks: int | None = Field(
        None, ge=0, description="that a multiprocessor holds; 0: the launch does not fit"
    )
    occupancy: float | None = Field(None, ge=0, le=1, description="of the warps a multiprocessor could hold")
    limited_by: str = Field("", description="threads, blocks, registers or shared memory")
    tensor_core: tuple[str, ...] = Field((), description="instructions in its PTX; empty: none")
    copies: tuple[str, ...] = Field((), description="cp.async, ldmatrix, ...: how it moves tiles")
    compile_s: float = Field(0.0, ge=0)


class Result(Record):
    """The record of a trial on one workload: one line of results.jsonl."""

    schema_version: Literal[1, 2] = 2
    id: Sha256 = Field(description="hash of the identity")
    identity: Identity
    task: str
    target: str
    device: str = Field(description="the device's own name, as found")
    environment: Sha256 = Field(description="hash of environment.json of the invocation")
    workload: WorkloadRecord
    candidate: CandidateRecord
    verdict: Verdict
    reason: str = Field("", description="one sentence for a person; required unless ok")
    sandboxed: bool = False
    verification: Verification | None = None
    measurement: Measurement | None = None
    kernels: tuple[CompiledKernel, ...] = Field(
        (), description="of a CUDA candidate, compiled by the harness"
    )
    cost: Cost = Cost()
    recorded_at: str = Field(description="UTC, ISO 8601")
    previous: Sha256 | Literal[""] = Field(
        "", description="seal of the line before; '' on the first line, and after one that has no seal"
    )
    seal: Sha256 | Literal[""] = Field(
        "", description="hash of all else on the line; '' until it is stored, and in schema 1"
    )

    @property
    def bare(self) -> Result:
        """The record as it was made: without its seal and its place in a file."""
        return self.model_copy(update={"schema_version": SCHEMA_VERSION, "previous": "", "seal": ""})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.id != self.identity.digest:
            raise ValueError("id is not the hash of the identity")
        if self.verdict is Verdict.OK:
            if self.measurement is None:
                raise ValueError("a result that is ok must carry a measurement")
            if self.verification is None or not self.verification.passed:
                raise ValueError("a result that is ok must carry passed checks")
        elif not self.reason:
            raise ValueError(f"a result that is {self.verdict} must say why")
        if self.measurement is not None and self.verdict not in MEASURED_VERDICTS:
            raise ValueError(f"a result that is {self.verdict} must not carry a measurement")
        if self.verdict is Verdict.WRONG_NUMERICS and (self.verification is None or self.verification.passed):
            raise ValueError("wrong_numerics must carry the failed check")
        return self

    @property
    def stage(self) -> Stage:
        """The last stage of the funnel this trial completed."""
        return stage_of(self.verdict)


def content_hash(value: Mapping[str, Any]) -> str:
    """SHA-256 of canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
