"""Owns the judge's side of one workload: the inputs, the expected values, and marking what came back.

Inputs go into the shared image; expectations never leave this process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from harness.records import Check, Verification
from harness.verdicts import Verdict
from harness.verify.inputs import make_inputs
from harness.verify.tolerance import Expectation, expect
from harness.worker.image import Image
from harness.worker.moves import Move, make
from harness.worker.process import Worker
from harness.worker.protocol import (
    GUARD_BYTES,
    ImageLayout,
    RequestFailed,
    TensorLayout,
    WorkerDied,
    WorkerError,
    WorkerLost,
    WorkerTimeout,
    layout_of,
)
from harness.worker.slots import POISON
from tasks.spec import DTYPES, Task, Workload

SPARE_BYTES = 4 << 30  # device memory the judge may keep cached


@dataclass
class Rejected(Exception):
    """A kernel that ends here: with which verdict, why in one sentence, and the evidence."""

    verdict: Verdict
    reason: str
    verification: Verification | None = None

    def __str__(self) -> str:
        return f"{self.verdict}: {self.reason}"


@dataclass(frozen=True)
class Limits:
    """Wall-clock limits of requests, in seconds."""

    load_s: float = 120.0
    first_call_s: float = 180.0
    call_s: float = 30.0
    library_s: float = 300.0  # the first call of a human baseline

    def first(self, worker: Worker) -> float:
        """For what may compile."""
        return self.library_s if worker.trusted else self.first_call_s


@dataclass(frozen=True)
class Question:
    """One set of inputs: how it is drawn."""

    recipe: str
    seed: int


@dataclass(frozen=True)
class Content:
    """A question drawn: the judge's own copy of the inputs, and what must come out."""

    question: Question
    inputs: dict[str, Tensor]
    expectation: Expectation


class ImageStore:
    """The one shared image, replaced by a larger one where a workload needs it."""

    def __init__(self) -> None:
        self._image: Image | None = None

    def at_least(self, size: int) -> Image:
        """An image of `size` bytes or more."""
        if self._image is None or self._image.size < size:
            self.close()
            self._image = Image.create(size)
            self._image.register()
        return self._image

    def close(self) -> None:
        """Release the image."""
        if self._image is not None:
            self._image.close()
            self._image = None


class Exam:
    """A workload with its questions laid out in the image."""

    def __init__(
        self,
        task: Task,
        workload: Workload,
        questions: Sequence[Question],
        images: ImageStore,
        device: torch.device,
        limits: Limits,
        task_folders: Sequence[Path] = (),
        reference: Literal["float64", "float32"] = "float64",
    ) -> None:
        self._reference = reference
        self.task, self.workload = task, workload
        self.device, self.limits, self._task_folders = device, limits, task_folders
        self.layout = image_layout(task, workload, len(questions))
        self.image = images.at_least(self.layout.total)
        self.contents = tuple(self._draw(n, question) for n, question in enumerate(questions))
        if device.type == "cuda":
            torch.cuda.synchronize()
            if torch.cuda.memory_reserved() > SPARE_BYTES + torch.cuda.memory_allocated():
                torch.cuda.empty_cache()  # the oracle's scores: the workers need the room

    def _draw(self, index: int, question: Question) -> Content:
        inputs = make_inputs(self.task, self.workload, question.recipe, question.seed, self.device)
        for t in self.layout.tensors:
            if t.role == "input":
                self.image.content(self.layout, index, t).copy_(inputs[t.name], non_blocking=True)
        return Content(question, inputs, expect(self.task, self.workload, inputs, self._reference))

    def admit(self, worker: Worker, slots: int) -> None:
        """Give a worker the image and slots for this workload."""
        worker.map(self.image, self.layout.stride)
        workload = asdict(self.workload)
        args = {
            "layout": self.layout.to_json(),
            "slots": slots,
            "workload": workload,
            "scalars": self.task.scalars(self.workload),
            "task_needed": worker.trusted,
            "task_folders": [str(folder.resolve()) for folder in self._task_folders],
        }
        worker.ask("open_layout", args, limit_s=self.limits.call_s)

    def fill(self, worker: Worker, pairs: Sequence[tuple[int, int]]) -> None:
        """Put contents into slots, as (slot, content)."""
        worker.ask("fill", {"pairs": [list(pair) for pair in pairs]}, limit_s=self.limits.call_s)

    def prepare(self, worker: Worker, kernel: str) -> None:
        """Bind a kernel to the slots; a baseline plans and compiles here."""
        worker.ask("prepare", {"kernel": kernel}, limit_s=self.limits.first(worker))

    def run(self, worker: Worker, kernel: str, slot: int, *, first: bool = False) -> None:
        """One call; `first` allows for compilation."""
        limit = self.limits.first(worker) if first else self.limits.call_s
        worker.ask("run", {"kernel": kernel, "slot": slot}, limit_s=limit)

    def moved(self, content: int, moves: Sequence[Move]) -> Content:
        """What a content has become after these moves, and what must come out of it then."""
        drawn = self.contents[content]
        if not moves:
            return drawn
        inputs = {name: tensor.clone() for name, tensor in drawn.inputs.items()}
        make(inputs, moves)
        return Content(drawn.question, inputs, expect(self.task, self.workload, inputs, self._reference))

    def mark(
        self,
        worker: Worker,
        kernel: str,
        slot: int,
        content: int | Content,
        *,
        timed: bool = False,
        fetched: bool = False,
    ) -> Check:
        """Read a slot's outputs back and compare them; raises Rejected for a write out of bounds.

        `fetched`: they have been read back already, and what came then counts.
        """
        if not fetched:
            self.fetch(worker, kernel, slot, timed=timed)
        outputs = self._taken_outputs(worker)
        drawn = self.contents[content] if isinstance(content, int) else content
        result = drawn.expectation.compare(outputs)
        return Check(
            workload=self.workload.key,
            recipe=drawn.question.recipe,
            seed=drawn.question.seed,
            passed=result.passed,
            error_max=_short(result.error_max),
            error_allowed=_short(result.error_allowed),
            tile_error=_short(result.tile_error),
            tile_error_allowed=_short(result.tile_error_allowed),
            cosine_distance=_short(result.cosine_distance),
            timed=timed,
            reference=result.reference,
            note=result.note,
        )

    def outputs(self, worker: Worker, kernel: str, slot: int) -> dict[str, Tensor]:
        """The outputs of a slot as the judge's own copies, for comparing repeats bit by bit."""
        self.fetch(worker, kernel, slot)
        return self._taken_outputs(worker)

    def inputs_untouched(self, worker: Worker, kernel: str, slot: int, content: int | Content) -> bool:
        """Whether a slot's inputs are byte for byte what was put there."""
        drawn = self.contents[content] if isinstance(content, int) else content
        tensors = [t for t in self.layout.tensors if t.role == "input"]
        self._ask_back(worker, kernel, slot, tensors)
        return all(
            torch.equal(
                _unguarded(self._taken(worker, t), t),
                drawn.inputs[t.name].view(torch.uint8).view(-1),
            )
            for t in tensors
        )

    def fetch(self, worker: Worker, kernel: str, slot: int, *, timed: bool = False) -> None:
        """Have a slot's outputs read back."""
        self._ask_back(worker, kernel, slot, [t for t in self.layout.tensors if t.role == "output"], timed)

    def _taken_outputs(self, worker: Worker) -> dict[str, Tensor]:
        tensors = [t for t in self.layout.tensors if t.role == "output"]
        outputs = {}
        for t in tensors:
            raw = self._taken(worker, t)
            guards = torch.cat((raw[:GUARD_BYTES], raw[GUARD_BYTES + t.nbytes :]))
            if bool((guards != POISON).any()):
                raise Rejected(Verdict.OUT_OF_BOUNDS, f"wrote outside the tensor {t.name!r}")
            outputs[t.name] = _unguarded(raw, t).view(DTYPES[t.dtype]).view(t.shape)
        return outputs

    def _taken(self, worker: Worker, tensor: TensorLayout) -> Tensor:
        """The judge's own copy of an answer: what is looked at twice must not change in between."""
        return worker.answers.answer(tensor).to(self.device, copy=True)

    def _ask_back(
        self, worker: Worker, kernel: str, slot: int, tensors: Sequence[TensorLayout], timed: bool = False
    ) -> None:
        args = {"kernel": kernel, "slot": slot, "names": [t.name for t in tensors], "timed": timed}
        worker.ask("read_back", args, limit_s=self.limits.call_s)


def image_layout(task: Task, workload: Workload, contents: int) -> ImageLayout:
    """Where the tensors of a workload lie in the image."""
    tensors: list[tuple[str, tuple[int, ...], str, Literal["input", "output"], int]] = []
    for spec in task.tensors:
        shape, dtype = spec.shape(workload), spec.dtype_of(workload)
        nbytes = torch.empty(shape, dtype=DTYPES[dtype], device="meta").nbytes
        tensors.append((spec.name, shape, dtype, spec.role, nbytes))
    return layout_of(tensors, contents)


def _unguarded(raw: Tensor, tensor: TensorLayout) -> Tensor:
    return raw[GUARD_BYTES : GUARD_BYTES + tensor.nbytes]


def _short(value: float) -> float:
    """Six significant digits: enough for an error, and a record stays small."""
    return float(f"{value:.6g}")


def rejection_of(
    error: WorkerError, verification: Verification | None = None, *, trusted: bool = False
) -> Rejected:
    """The verdict that a failed request means; a human baseline that needs more memory is skipped."""
    if trusted and isinstance(error, RequestFailed) and error.kind == "out_of_memory":
        return Rejected(Verdict.SKIPPED, "needs more memory than the device has", verification)
    if isinstance(error, WorkerLost):
        return Rejected(Verdict.INFRA, _first_lines(str(error)), verification)
    if isinstance(error, WorkerTimeout):
        return Rejected(
            Verdict.TIMEOUT, "no answer within the time limit; the worker was killed", verification
        )
    if isinstance(error, RequestFailed):
        verdict = Verdict.BUILD_ERROR if error.kind == "build" else Verdict.CRASH
        if trusted:  # a candidate that says so is not let off: it would leave every rate
            excused = {"cannot_run": Verdict.SKIPPED, "protocol": Verdict.INFRA}
            verdict = excused.get(error.kind, verdict)
        return Rejected(verdict, _first_lines(error.message), verification)
    if isinstance(error, WorkerDied):
        return Rejected(Verdict.CRASH, _first_lines(str(error)), verification)
    return Rejected(Verdict.INFRA, _first_lines(str(error)), verification)


def _first_lines(text: str, limit: int = 600) -> str:
    text = " ".join(text.split()) or "it gave no reason"
    if len(text) <= limit:
        return text
    end = 2 * limit // 3  # a traceback says at its end what happened
    return f"{text[: limit - end - 5]} ... {text[-end:]}"
