"""Owns the first look at a candidate: small nasty shapes and adversarial inputs, before any time is taken.

Done once for a candidate and configuration (head dims, dtype, group, parameters); the
result holds for every workload of that configuration, each of which is checked again on
its own inputs when it is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from harness.records import Check, Verification
from harness.verdicts import Verdict
from harness.verify.exam import Exam, Question, Rejected, rejection_of
from harness.worker.process import Worker
from harness.worker.protocol import WorkerError
from tasks.spec import Workload

ExamMaker = Callable[[Workload, Sequence[Question]], Exam]


def accept(
    worker: Worker,
    kernel: str,
    shapes: Sequence[tuple[Workload, Sequence[Question]]],
    make_exam: ExamMaker,
) -> tuple[Check, ...]:
    """All checks, passed; raises Rejected at the first that does not (with those made so far)."""
    checks: list[Check] = []
    for workload, questions in shapes:
        try:
            checks.extend(_sit(worker, kernel, make_exam(workload, questions), checks))
        except WorkerError as error:
            raise rejection_of(error, Verification(checks=tuple(checks))) from error
    return tuple(checks)


def _sit(worker: Worker, kernel: str, exam: Exam, before: Sequence[Check]) -> list[Check]:
    exam.admit(worker, slots=2)
    exam.prepare(worker, kernel)
    checks: list[Check] = []
    for content in range(len(exam.contents)):
        slot = content % 2
        exam.fill(worker, [(slot, content)])
        exam.run(worker, kernel, slot, first=content == 0)
        checks.append(require(exam.mark(worker, kernel, slot, content), [*before, *checks]))
        if not exam.inputs_untouched(worker, kernel, slot, content):
            raise Rejected(
                Verdict.INTEGRITY,
                f"changed its inputs ({exam.workload.key})",
                _so_far([*before, *checks], inputs_untouched=False, detectors=("mutated_inputs",)),
            )
        if content == 0:  # after the inputs: one that changes them also differs when repeated
            require_repeat(exam, worker, kernel, slot, [*before, *checks])
    return checks


def require(check: Check, before: Sequence[Check]) -> Check:
    """The check, if it passed; else Rejected with wrong_numerics."""
    if check.passed:
        return check
    where = f"{check.workload} on {check.recipe} inputs"
    raise Rejected(
        Verdict.WRONG_NUMERICS,
        f"{where}: {check.note}",
        Verification(checks=(*before, check)),
    )


def require_repeat(exam: Exam, worker: Worker, kernel: str, slot: int, before: Sequence[Check]) -> None:
    """Run the same inputs again; raises Rejected unless the outputs are the same to the bit."""
    first = exam.outputs(worker, kernel, slot)
    exam.run(worker, kernel, slot)
    second = exam.outputs(worker, kernel, slot)
    for name, tensor in first.items():
        if not torch.equal(tensor.view(torch.uint8), second[name].view(torch.uint8)):
            raise Rejected(
                Verdict.NON_DETERMINISTIC,
                f"two runs on the same inputs differ in {name!r} ({exam.workload.key})",
                _so_far(before, repeats_identical=False),
            )


def _so_far(
    checks: Sequence[Check],
    *,
    repeats_identical: bool | None = None,
    inputs_untouched: bool | None = None,
    detectors: tuple[str, ...] = (),
) -> Verification:
    return Verification(
        checks=tuple(checks),
        repeats_identical=repeats_identical,
        inputs_untouched=inputs_untouched,
        detectors=detectors,
    )
