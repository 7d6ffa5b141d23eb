"""Owns the file format of how a kernel came to be: exchanges with models, steps of a trial, its ending.

`transcripts.jsonl` holds one `Exchange` a line, `trials.jsonl` one `Step` or `Ending` a line. Both are
append-only. A trial that is resumed is told again from its steps, so that no question is asked twice.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from harness.records import Record, Sha256, Verification, content_hash
from harness.seals import RecordError
from harness.verdicts import Verdict

STORY_VERSION = 1


class Said(Record):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Exchange(Record):
    """One request and its answer, as it came; identified by the request's content and sample number."""

    kind: Literal["exchange"] = "exchange"
    story_version: Literal[1] = 1
    id: Sha256 = Field(description="key of the request: model, messages, sampling, sample")
    provider: str = Field(description="who answered: openai, anthropic, deferred, or a name of one's own")
    model: str = Field(description="the model asked for")
    sample: int = Field(ge=0, description="number of the independent answer to this request")
    messages: tuple[Said, ...]
    sampling: dict[str, float] = Field(default={})
    text: str = Field(description="the answer, as it came")
    stop: Literal["end", "length", "refusal", "other"] = "end"
    reported_model: str = Field("", description="the name that the provider gave with the answer")
    version: str = Field("", description="version of the model, where it was told")
    request_id: str = ""
    tokens_in: int | None = Field(None, description="as the provider counts; None: it did not say")
    tokens_out: int | None = None
    latency_s: float | None = Field(None, description="from asking to the whole answer; None: not known")
    usd: float | None = Field(None, description="by the price list of the run; None: no price known")
    recorded_at: str


class Assignment(Record):
    """What a trial is: one attempt of a method and its models at one kernel."""

    method: str
    models: tuple[str, ...] = Field(
        min_length=1, max_length=2, description="provider:model; two where another one translates"
    )
    task: str
    target: str
    backend: str
    sample: int = Field(ge=0)

    @property
    def id(self) -> str:
        return content_hash(self.model_dump(mode="json"))

    @property
    def model(self) -> str:
        """The models as people read them: 'claude', or 'reasoner -> coder'."""
        return " -> ".join(name.partition(":")[2] or name for name in self.models)


class Step(Record):
    """One thing that happened in a trial, in order; what a later turn was told of it is in `told`."""

    kind: Literal["step"] = "step"
    story_version: Literal[1] = 1
    trial: Sha256
    number: int = Field(ge=0)
    what: Literal["ask", "failed_ask", "examine", "compile", "try", "time"]
    stage: str = Field(description="sketch, code, kernel, translation, repair, refine, ...")
    turn: int = Field(ge=0, description="questions asked so far, this one included")
    exchange: Sha256 | Literal[""] = Field("", description="of an ask: the exchange")
    prompts: dict[str, Sha256] = Field(default={}, description="of an ask: template -> hash of its text")
    passed: bool | None = Field(None, description="of a check, a verification or a timing: whether it passed")
    verdict: Verdict | None = Field(None, description="of a try: what verification decided; None: passed")
    told: str = Field("", description="findings, disagreement, reason or times, as a later turn may see them")
    program: str = Field("", description="the LLM-TL text that was examined, compiled or searched")
    candidate: Sha256 | Literal[""] = Field("", description="of a try: hash of the bundle in artifacts/")
    files: dict[str, Sha256] = Field(default={}, description="of a try: name -> hash of each source file")
    refused: bool = Field(False, description="of a compilation: the compiler refused the program")
    verification: Verification | None = Field(None, description="of a try that failed: checks made so far")
    score: float | None = Field(None, description="of a timing: geomean TFLOP/s over the cells timed")
    best: dict[str, str] = Field(default={}, description="of a timing with search: cell -> best tiles found")
    wall_s: float = Field(0.0, ge=0, description="our own work on this step; an answer's latency is apart")
    recorded_at: str

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.what == "ask" and not self.exchange:
            raise ValueError("an ask names its exchange")
        if self.what == "try" and self.verdict is Verdict.OK:
            raise ValueError("a try that passed has no verdict yet: measuring decides")
        return self


class Ending(Record):
    """How a trial ended: the kernel that is handed on to be measured, or the verdict without one."""

    kind: Literal["ending"] = "ending"
    story_version: Literal[1] = 1
    trial: Sha256
    assignment: Assignment
    verdict: Verdict | None = Field(
        None, description="None: its kernel passed verification and is measured; else why there is none"
    )
    reason: str = ""
    candidate: Sha256 | Literal[""] = Field("", description="the last kernel, right or wrong; '' without one")
    files: dict[str, Sha256] = Field(default={})
    turns: int = Field(ge=0, description="questions asked")
    verifications: int = Field(ge=0, description="kernels tried")
    tokens_in: int = Field(0, ge=0, description="of all its answers")
    tokens_out: int = Field(0, ge=0)
    tokens_estimated: bool = Field(False, description="some counts are characters / 4: nobody reported them")
    usd: float | None = Field(None, description="None: some answer has no known price")
    wall_s: float = Field(0.0, ge=0, description="latencies of answers and our own work, one after the other")
    latency_unknown: int = Field(0, ge=0, description="answers whose latency nobody knows: wall_s lacks them")
    first_correct_s: float | None = Field(
        None, description="wall_s when the first kernel passed verification; None: none did"
    )
    best_s: float | None = Field(None, description="wall_s when the kernel that is handed on was there")
    prompts: dict[str, Sha256] = Field(default={}, description="every template used -> hash of its text")
    recorded_at: str

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.trial != self.assignment.id:
            raise ValueError("trial is not the hash of the assignment")
        if self.verdict is None and not self.candidate:
            raise ValueError("a trial without a verdict hands on a candidate")
        if self.verdict is not None and not self.reason:
            raise ValueError(f"a trial that ends with {self.verdict} must say why")
        return self


Line = Annotated[Exchange | Step | Ending, Field(discriminator="kind")]
_LINE: TypeAdapter[Exchange | Step | Ending] = TypeAdapter(Line)


def read_line(line: str) -> Exchange | Step | Ending:
    """Parse one line of either file; raises RecordError for anything else, or a version not known."""
    try:
        data = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:  # RecursionError: nested too deep
        raise RecordError(f"not JSON: {error}") from error
    version = data.get("story_version") if isinstance(data, dict) else None
    if version != STORY_VERSION:
        raise RecordError(f"story version {version!r}; this attnbench reads {STORY_VERSION}")
    try:
        return _LINE.validate_python(data, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the record"
        raise RecordError(f"{where}: {first['msg']}") from error
