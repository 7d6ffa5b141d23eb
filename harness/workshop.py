"""Owns what a trial does besides asking: examine a program, compile it, try a kernel, time it.

Trying and timing need the target's device (a `Bench`); without one such steps wait for a machine that
has it. What a model is told is the same on every machine: the seeds follow from the trial.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.assignments import Commission
from harness.bench import Bench
from harness.build.manifest import MANIFEST, Manifest, Origin
from harness.entrants import Acceptance, Entrant, build, candidate_trial
from harness.experiment import Cell
from harness.generate.examine import examine, rounded
from harness.generate.method import Brief, Compile, Examine, Reply, Step, Time, Try
from harness.records import Verification, content_hash
from harness.store import Store, StoreError
from harness.story import Assignment
from harness.tl import ir
from harness.tl.check import check
from harness.tl.lower.backends import lower
from harness.tl.lower.lowered import Lowered, LowerError
from harness.verdicts import Verdict
from harness.verify.exam import Rejected
from harness.worker.protocol import RequestFailed

_FOLDERS = re.compile(r'File "(?:[^"]*/)?([^"/]+)"')
TOLD_CHARACTERS = 3000  # of a compiler's or verifier's words, as a model is told them


@dataclass(frozen=True)
class Done:
    """What became of a step, for the method and for the record."""

    reply: Reply
    program: str = ""
    manifest: Manifest | None = None
    verification: Verification | None = None
    refused: bool = False
    best: Mapping[str, str] = field(default_factory=dict)


class Workshop:
    """Does the steps of trials; `bench` is None on a machine without the target's device."""

    def __init__(self, store: Store, bench: Bench | None) -> None:
        self._store, self._bench = store, bench

    def can(self, step: Step) -> bool:
        """Whether this machine has what the step needs."""
        return self._bench is not None or isinstance(step, Examine)

    def do(self, step: Step, commission: Commission, number: int, standing: Manifest | None) -> Done:
        """Carry out one step; `standing` is the last kernel that passed."""
        seed = seed_of(commission.assignment, number)
        match step:
            case Examine():
                return _examined(step, commission, seed)
            case Compile():
                return self._compile(step, commission, seed)
            case Try():
                return self._try(commission, step.files, seed)
            case Time():
                assert standing is not None
                return self._time(step, commission, standing, seed)
        raise AssertionError(step)

    def _compile(self, step: Compile, commission: Commission, seed: int) -> Done:
        brief = commission.brief
        program = _resolved(step.program, brief)
        if program is None:  # its budget let it come this far with errors: there is nothing to build
            reply = Reply(False, "the program has errors, so it cannot be compiled", Verdict.NO_CODE)
            return Done(reply, step.program, refused=True)
        try:
            lowered = lower(program, brief.task, brief.backend, brief.target if brief.target.is_gpu else None)
        except LowerError as error:
            reply = Reply(False, _cut(f"the compiler: {error}"), Verdict.BUILD_ERROR)
            return Done(reply, step.program, refused=True)
        done = self._try(commission, _sources(lowered), seed)
        return Done(done.reply, step.program, done.manifest, done.verification)

    def _try(self, commission: Commission, files: Mapping[str, str], seed: int) -> Done:
        bench = self._bench
        assert bench is not None
        manifest = self.keep(commission, files)
        draws = iter(range(seed, seed + (1 << 20)))
        acceptance = Acceptance(bench, lambda: next(draws))
        entrants: list[Entrant] = []
        try:
            for workload in commission.brief.workloads:
                cell = Cell(commission.brief.task, workload)
                entrants.append(build(candidate_trial(manifest, cell, bench), bench))
                acceptance.admit(entrants[-1])
        except Rejected as rejected:
            bench.dismiss(manifest)
            told = _cut(rounded(told_of(rejected)))
            return Done(Reply(False, told, rejected.verdict), "", manifest, rejected.verification)
        except BaseException:
            bench.dismiss(manifest)
            raise
        bench.rest(manifest)  # to be measured later
        return Done(Reply(True, "right on every input tried"), "", manifest)

    def _time(self, step: Time, commission: Commission, standing: Manifest, seed: int) -> Done:
        from harness.stopwatch import tile_search, time_kernel
        from harness.tuning import TUNABLE

        bench = self._bench
        assert bench is not None
        best: dict[str, str] = {}
        manifest, verification = standing, None
        if step.program and bench.kind == "cuda" and commission.brief.backend in TUNABLE:
            with tempfile.TemporaryDirectory() as scratch:
                lowered, best = tile_search(step.program, commission.brief, Path(scratch))
            if lowered is not None:
                tried = self._try(commission, _sources(lowered), seed)
                manifest, verification = tried.manifest or standing, tried.verification
                if not tried.reply.passed:  # the tiles it was verified with stand
                    manifest = standing
        told, score = time_kernel(manifest, commission.brief, bench, best)
        reply = Reply(score is not None, _cut(told), score=score)
        return Done(reply, step.program, manifest, verification, best=best)

    def keep(self, commission: Commission, files: Mapping[str, str]) -> Manifest:
        """Write a kernel's sources into the run, under the hash of their content."""
        brief, a = commission.brief, commission.assignment
        head = f'name = "{brief.name}"\ntask = "{a.task}"\nbackend = "{a.backend}"\n'
        texts = {**files, MANIFEST: head}
        contents = {name: text.encode("utf-8", "replace") for name, text in sorted(texts.items())}
        manifest = manifest_of(commission, contents, self._store.path)
        self._store.add_artifact(manifest.sha256, contents)
        return manifest

    def kept(self, commission: Commission, sha256: str, names: Mapping[str, str]) -> Manifest:
        """A kernel that was kept earlier; raises StoreError where its sources are gone."""
        folder = self._store.path / "artifacts" / sha256
        try:
            contents = {name: (folder / name).read_bytes() for name in sorted(names)}
        except OSError as error:
            raise StoreError(f"{folder} lacks sources that trials.jsonl names: {error.strerror}") from error
        return manifest_of(commission, contents, self._store.path)


def told_of(rejected: Rejected) -> str:
    """Why a kernel was rejected, as a model can use it: an error's trace begins in the kernel."""
    cause = rejected.__cause__
    if not isinstance(cause, RequestFailed) or not cause.trace:
        return rejected.reason
    lines = cause.trace.rstrip().splitlines()
    frames = [n for n, line in enumerate(lines) if line.lstrip().startswith("File ")]
    own = [n for n in frames if "/candidates/" in lines[n] or "<string>" in lines[n]]
    shown = lines[own[0] :] if own else lines[frames[-1] :] if frames else lines
    return "\n".join(_FOLDERS.sub(r'File "\1"', line) for line in shown)


def manifest_of(commission: Commission, contents: Mapping[str, bytes], run: Path) -> Manifest:
    """A generated kernel as a candidate."""
    a = commission.assignment
    whole = Manifest(
        name=commission.brief.name,
        tasks=(a.task,),
        backend=a.backend,
        targets=(),
        folder=run,
        entries={a.task: "attention.py"},
        files=contents,
        origin=Origin(a.method, a.model, commission.id, a.sample),
    )
    return Manifest(**{**whole.__dict__, "folder": run / "artifacts" / whole.sha256})


def seed_of(assignment: Assignment, number: int) -> int:
    """Seeds of a step: they follow from the trial, so that a model is told the same on every machine.

    Who answers for the model does not count: a recorded trial is replayed with the seeds it had.
    """
    models = tuple(name.partition(":")[2] for name in assignment.models)
    told = (
        f"{content_hash(assignment.model_copy(update={'models': models}).model_dump(mode='json'))}/{number}"
    )
    return int.from_bytes(hashlib.sha256(told.encode()).digest()[:5], "big")


def _examined(step: Examine, commission: Commission, seed: int) -> Done:
    brief = commission.brief
    found = examine(step.program, brief.task, brief.target, brief.workloads, step.level, seed)
    return Done(Reply(found.passed, _cut(found.told)), step.program)


def _resolved(program: str, brief: Brief) -> ir.Program | None:
    """The program, if the checker finds no error in it."""
    target = brief.target if brief.target.is_gpu else None
    return check(program, brief.task, target=target, dtype=brief.workloads[0].dtype).program


def _sources(lowered: Lowered) -> dict[str, str]:
    """Its files without candidate.toml: a trial's kernel has one of its own."""
    return {name: text for name, text in lowered.files.items() if name != MANIFEST}


def _cut(text: str) -> str:
    """The beginning and the end of a long text."""
    if len(text) <= TOLD_CHARACTERS:
        return text
    half = TOLD_CHARACTERS // 2
    return f"{text[:half]}\n...\n{text[-half:]}"
