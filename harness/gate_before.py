"""Owns what the kernels of a gate were before: kept when measured, found again for the next one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.build.manifest import CandidateError, Manifest, scan_candidates
from harness.experiment import Experiment, make_plan
from harness.gate_kernels import Damaged, Kernels
from harness.gate_run import cases_of
from reports.gate.saved import Saved
from tasks import discover


@dataclass(frozen=True)
class Before:
    """Cases and the folders of what their kernels were; notes on what could not be used."""

    folders: Mapping[str, Path]
    notes: tuple[str, ...] = ()


NOTHING = Before({})


def manifests_of(experiment: Experiment) -> Iterator[Manifest]:
    """Its candidates as they are now. Raises CandidateError."""
    for folder in experiment.candidates:
        yield from _all(Path(folder))


def keep_sources(experiment: Experiment, kernels: Kernels) -> None:
    """Have what is measured now at hand when it is a reference. Raises CandidateError, OSError."""
    for manifest in manifests_of(experiment):
        kernels.keep(manifest)


def stored_before(experiment: Experiment, reference: Saved, kernels: Kernels) -> Before:
    """Of every candidate that has changed since the reference, what was kept. Raises CandidateError."""
    now = {m.name: m.sha256 for m in manifests_of(experiment)}
    folders, notes = dict[str, Path](), dict[str, None]()
    for case in reference.cases.values():
        if case.kind != "candidate" or now.get(case.kernel, case.sha256) == case.sha256:
            continue
        try:
            if folder := kernels.find(case.sha256):
                folders[case.id] = folder
        except Damaged as damaged:
            notes[f"{case.kernel}: {damaged}"] = None
    return Before(folders, tuple(notes))


def changed_since(experiment: Experiment, folder: Path) -> tuple[Experiment, Before]:
    """The experiment of what differs from the kernels in a folder, and those. Raises typed errors."""
    old = {m.name: m for m in _all(folder)}
    changed = [m for m in manifests_of(experiment) if m.name not in old or m.sha256 != old[m.name].sha256]
    plan = make_plan(experiment, discover(), changed)
    folders = {
        w.id: old[w.kernel].folder.resolve()
        for w in cases_of(plan)
        if w.kernel in old and w.task in old[w.kernel].tasks and old[w.kernel].fits(experiment.target)
    }
    kept = tuple(str(m.folder) for m in plan.candidates)
    update: dict[str, object] = {"candidates": kept}
    if experiment.anchor is not None:  # other baselines have no old selves
        update["baselines"] = (experiment.anchor,)
    return experiment.model_copy(update=update), Before(folders)


def _all(folder: Path) -> Iterator[Manifest]:
    for found in scan_candidates(folder):
        if isinstance(found, CandidateError):
            raise found
        yield found
