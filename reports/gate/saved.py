"""Owns the file format of a gate's measurement: what pytest-benchmark saves of a case, with what we add.

pytest-benchmark's file has `machine_info`, `commit_info` and a list of benchmarks. Ours carry a `Case` as
their `extra_info`; kernels that gave no time are under `attnbench`. A file without a `Case` is foreign.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic import Field, ValidationError

from harness.measure.statistics import Interval, noise_floor
from harness.records import PROTOCOL_VERSION, Block, Positive, Ratio, Record, Result, Sha256
from harness.runs import Environment

SCHEMA = 1
EXTRA = "attnbench"  # our key in the file


class SavedError(ValueError):
    """A file that is no measurement of the gate; the text says why, and what to do."""


class ClockState(Record):
    """How fast the device ran while a case was timed, as it said itself; None where it does not say."""

    sm_mhz: float | None = None
    memory_mhz: float | None = None
    held_back: tuple[str, ...] = Field((), description="throttle reasons in more than half of the blocks")


class Machine(Record):
    """What a case was measured on, as found."""

    target: str
    device: str
    driver: str = ""
    cuda: str = ""
    cores: int = 0
    python: str = ""
    harness: str = ""
    libraries: dict[str, str] = Field({}, description="package -> version")
    settings: dict[str, str] = Field({}, description="of the device: power limit, clocks, ECC; a governor")
    protocol: str = PROTOCOL_VERSION

    @classmethod
    def of(cls, environment: Environment, settings: Mapping[str, str] | None = None) -> Machine:
        return cls(
            target=environment.target,
            device=environment.device,
            driver=environment.driver,
            cuda=environment.cuda,
            cores=environment.cores,
            python=environment.python,
            harness=environment.harness,
            libraries=environment.libraries,
            settings={**environment.gpu, **(settings or {})},
        )


class OldSelf(Record):
    """What a kernel was before, measured beside it: in the same session, block by block."""

    sha256: Sha256 = Field(description="of its sources then")
    time_ms: Positive | None = Field(None, description="as the case's; None where it gave no time")
    speed: Ratio | None = Field(
        None, description="its time over the kernel's time of now; above 1 is faster now"
    )
    anchored: Ratio | None = Field(None, description="anchor's time over its own")
    reason: str = Field("", description="why there is no speed")


class Case(Record):
    """One kernel on one workload: its speed over the anchor, measured side by side."""

    schema_version: Literal[1] = 1
    task: str
    workload: str
    kernel: str
    kind: Literal["baseline", "candidate"]
    sha256: Sha256 = Field(description="of the kernel's sources, or of a library's name and version")
    anchor_sha256: Sha256 = Field(description="of the baseline in the denominator, with its version")
    clock: str = Field(description="kernel_records, graph_events, stream_events or wall")
    time_ms: Positive = Field(description="median device time; wall time on a CPU")
    ratio: Ratio = Field(description="anchor's time over the kernel's own; above 1 is faster")
    noise: Ratio = Field(description="the same of the anchor's duplicate")
    clocks: ClockState = ClockState()
    machine: Machine
    source: str = Field("", description="the kernel's file, relative to where the gate ran")
    old: OldSelf | None = Field(
        None, description="what it was before, in the same session; never of a reference"
    )

    @property
    def id(self) -> str:
        return case_id(self.task, self.workload, self.kernel)

    @property
    def is_anchor(self) -> bool:
        return self.kind == "baseline" and self.kernel == self.ratio.anchor

    @property
    def noise_floor(self) -> float:
        """The fraction by which the anchor may differ from itself."""
        noise = self.noise
        return noise_floor(Interval(noise.median, noise.low, noise.high, noise.pairs))


def case_id(task: str, workload: str, kernel: str) -> str:
    return f"{task}/{workload}/{kernel}"


def case_of(
    result: Result, anchor_sha256: str, machine: Machine, source: str = "", old: OldSelf | None = None
) -> Case | None:
    """The case that a result is, if it was measured beside an anchor."""
    measured = result.measurement
    if measured is None or measured.noise is None:
        return None
    return Case(
        task=result.task,
        workload=result.workload.key,
        kernel=result.candidate.name,
        kind=result.candidate.kind,
        sha256=result.candidate.sha256,
        anchor_sha256=anchor_sha256,
        clock=measured.clock,
        time_ms=measured.device_time.median_ms,
        ratio=measured.ratio,
        noise=measured.noise,
        clocks=clock_state(measured.blocks),
        machine=machine,
        source=source,
        old=old,
    )


def clock_state(blocks: Sequence[Block]) -> ClockState:
    """The clocks of a case's blocks: medians, and what held them back most of the time."""
    seen = [b.telemetry for b in blocks if b.telemetry is not None]
    sm = [t.sm_mhz for t in seen if t.sm_mhz is not None]
    memory = [t.memory_mhz for t in seen if t.memory_mhz is not None]
    reasons = sorted({reason for t in seen for reason in t.throttle})
    return ClockState(
        sm_mhz=median(sm) if sm else None,
        memory_mhz=median(memory) if memory else None,
        held_back=tuple(r for r in reasons if 2 * sum(r in t.throttle for t in seen) > len(seen)),
    )


@dataclass(frozen=True)
class Saved:
    """One saved run of the gate's benchmarks."""

    path: Path
    cases: Mapping[str, Case]
    failed: Mapping[str, str]  # cases that gave no time -> why
    skipped: Mapping[str, str]  # what this machine cannot run -> why
    disturbed: Mapping[str, str]  # no fault of the kernel: the machine's speed changed, say
    raw: Mapping[str, Any]  # the file, for saving a part of it again

    def benchmark(self, case: str) -> Any:
        """pytest-benchmark's own entry of a case."""
        return next(b for b in self.raw["benchmarks"] if _id(b) == case)


def read_saved(path: Path) -> Saved:
    """A file of pytest-benchmark that holds our cases; raises SavedError for a torn or foreign one."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SavedError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise SavedError(f"{path} is torn or no JSON ({error}); {_ADVICE}") from error
    benchmarks = raw.get("benchmarks") if isinstance(raw, dict) else None
    if not isinstance(benchmarks, list) or not all(isinstance(b, dict) for b in benchmarks):
        raise SavedError(f"{path} is no file of pytest-benchmark; {_ADVICE}")
    cases: dict[str, Case] = {}
    for benchmark in benchmarks:
        extra = benchmark.get("extra_info")
        try:
            case = Case.model_validate(extra.get(EXTRA) if isinstance(extra, dict) else None)
        except ValidationError as error:
            first = error.errors()[0]
            what = f"{'.'.join(map(str, first['loc'])) or 'extra_info'}: {first['msg']}"
            name = benchmark.get("name", "?")
            raise SavedError(f"{path}: {name} is no case of the gate ({what}); {_ADVICE}") from error
        if case.id in cases:
            raise SavedError(f"{path} holds {case.id} twice; {_ADVICE}")
        cases[case.id] = case
    failed, skipped, disturbed = (_reasons(path, raw, kind) for kind in ("failed", "skipped", "disturbed"))
    return Saved(path, cases, failed, skipped, disturbed, raw)


def _reasons(path: Path, raw: Mapping[str, Any], kind: str) -> dict[str, str]:
    ours = raw.get(EXTRA)
    found = ours.get(kind, {}) if isinstance(ours, dict) else {}
    if not isinstance(found, dict) or not all(isinstance(why, str) for why in found.values()):
        raise SavedError(f"{path}: {EXTRA}.{kind} is no table of reasons; {_ADVICE}")
    return found


def _id(benchmark: Mapping[str, Any]) -> str:
    extra = benchmark["extra_info"][EXTRA]
    return case_id(extra["task"], extra["workload"], extra["kernel"])


_ADVICE = "move it away and measure again: attnbench gate"
