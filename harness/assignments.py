"""Owns which trials an experiment means: every method, model, task, backend and sample of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.build.backends import BACKENDS
from harness.experiment import Experiment, ExperimentError
from harness.generate.method import Brief, Method
from harness.generate.methods import METHODS
from harness.llm.providers import ModelSpec, parse_models
from harness.story import Assignment
from harness.targets import Target, find_target
from tasks.spec import Task, Workload


@dataclass(frozen=True)
class Commission:
    """A trial to be made: what it is, and what its method is told."""

    assignment: Assignment
    method: Method
    brief: Brief
    models: tuple[ModelSpec, ...]

    @property
    def id(self) -> str:
        return self.assignment.id

    def model_for(self, role: str) -> ModelSpec:
        """The model that thinks, or the one that translates."""
        return self.models[-1 if role == "translate" else 0]


@dataclass(frozen=True)
class Commissions:
    """The trials, and what cannot be one, each with its reason."""

    trials: tuple[Commission, ...] = ()
    not_run: tuple[str, ...] = field(default=())


def commissions(experiment: Experiment, known: Mapping[str, Task]) -> Commissions:
    """All trials, sample by sample so that a run that is cut short has something of everything.

    Raises ExperimentError for a backend that the target does not have.
    """
    target = find_target(experiment.target)
    if not experiment.methods:
        return Commissions()
    fitting, lacking = _backends(experiment, target)
    if not fitting:
        return Commissions(not_run=tuple(f"{line}: {', '.join(experiment.methods)}" for line in lacking))
    if not experiment.models:
        return Commissions(not_run=(no_model(experiment), *lacking))
    pairs = [
        (task, backend, method, models)
        for task in experiment.tasks
        for backend in fitting
        for method in (METHODS[name] for name in experiment.methods_of(task))
        for models in experiment.models
    ]
    found = []
    for sample in range(experiment.samples):
        for task, backend, method, text in pairs:
            models = parse_models(text)
            used = models if method.translates else models[:1]
            found.append(_commission(experiment, target, known[task], backend, method, used, sample))
    unique = {c.id: c for c in found}
    return Commissions(tuple(unique.values()), tuple(lacking))


def no_model(experiment: Experiment) -> str:
    """That methods are not run since no model is named, and what would run them."""
    what = f"{', '.join(experiment.methods)} ({', '.join(experiment.backend_names)})"
    return not_run(experiment, what, "no model is named")


def not_run(experiment: Experiment, what: str, why: str) -> str:
    """What is not run and why, with the two lines that would run it."""
    return (
        f"not run: {what}, since {why}. These two lines run them:\n"
        "  export ANTHROPIC_API_KEY=...\n"
        f"  attnbench eval {experiment.target} --model anthropic:MODEL"
    )


def shown_workloads(experiment: Experiment, task: Task) -> tuple[Workload, ...]:
    """The workloads that a model is told of: the set `shown`, or the first that the task has of the usual."""
    usual = ("models", "paper") if find_target(experiment.target).is_gpu else ("smoke",)
    names = (experiment.shown,) if experiment.shown else (*usual, "smoke")
    name = next((n for n in names if n in task.workloads), None)
    if name is None:
        task.workload_set(names[0])  # raises, naming the sets there are
        raise AssertionError
    found = task.workloads[name]
    wanted = tuple(w for w in found if not experiment.dtypes or w.dtype in experiment.dtypes)
    return wanted or found


def _backends(experiment: Experiment, target: Target) -> tuple[list[str], list[str]]:
    device = "cuda" if target.is_gpu else "cpu"
    fitting, reasons = [], []
    for name in experiment.backend_names:
        if device not in BACKENDS[name].timed:
            raise ExperimentError(
                f"backends: {name} is not timed on {target.name}; there: "
                + ", ".join(b.name for b in BACKENDS.values() if device in b.timed)
            )
        if name == "triton" and target.capability is not None and target.capability < (8, 0):
            reasons.append(f"not run, since triton makes no tensor-core code for {target.name}")
        elif name == "gluon" and target.capability != (9, 0):
            reasons.append(f"not run, since gluon kernels are for Hopper, not for {target.name}")
        else:
            fitting.append(name)
    return fitting, reasons


def _commission(
    experiment: Experiment,
    target: Target,
    task: Task,
    backend: str,
    method: Method,
    models: Sequence[ModelSpec],
    sample: int,
) -> Commission:
    assignment = Assignment(
        method=method.name,
        models=tuple(str(m) for m in models),
        task=task.name,
        target=target.name,
        backend=backend,
        sample=sample,
    )
    brief = Brief(
        task=task,
        target=target,
        backend=backend,
        workloads=shown_workloads(experiment, task),
        name=kernel_name(assignment, backends=len(experiment.backend_names)),
        turns=experiment.budget.turns,
        rounds=experiment.refine.rounds,
        search=experiment.refine.search,
        first_call_s=experiment.limits.first_call_s,
    )
    return Commission(assignment, method, brief, tuple(models))


def kernel_name(assignment: Assignment, *, backends: int = 1) -> str:
    """What tables call the kernel: 'tl-claude-0', with the backend where there are several."""
    model = re.sub(r"[^\w.]+", "-", assignment.model).strip("-")
    parts = [
        assignment.method,
        model,
        *([assignment.backend] if backends > 1 else []),
        str(assignment.sample),
    ]
    return "-".join(parts)
