"""Owns what a run says of itself beside its results: the machine and software it found, what it took."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from harness.records import Record, Sha256, content_hash


class Environment(Record):
    """The machine and software of one invocation, as found; nothing here was set by the harness."""

    device: str
    target: str
    harness: str
    python: str
    platform: str
    cpu: str = ""
    cores: int = 0
    driver: str = ""
    cuda: str = ""
    libraries: dict[str, str] = Field(default={}, description="package -> version")
    gpu: dict[str, str] = Field(default={}, description="power limit, clocks, persistence, ECC as found")
    baselines: dict[str, str] = Field(default={}, description="baseline -> 'usable' or the reason it is not")
    sandbox: str = "none"
    sources: str = Field("", description="hash of the harness's sources that decide a number; '': not known")

    @property
    def content(self) -> dict[str, Any]:
        """As it is written; what a later attnbench added stays out where it says nothing."""
        return self.model_dump(mode="json", exclude=set() if self.sources else {"sources"})

    @property
    def digest(self) -> str:
        """Hash of the content."""
        return content_hash(self.content)


class Extent(Record):
    """How far a file went at some time: its first `bytes` bytes, and the hash of them."""

    bytes: int = Field(ge=0)
    sha256: Sha256


class RunSummary(Record):
    """What one invocation of a run took: stages in exclusive wall seconds (`summary.jsonl`)."""

    started_at: str
    wall_s: float
    stages_s: dict[str, float]
    gpu_work_s: float = Field(description="wall time in which the device verified or timed")
    results: int
    interrupted: bool = False
    files: dict[str, Extent] = Field(
        default={}, description="the run's append-only files and its experiment as they were then"
    )
