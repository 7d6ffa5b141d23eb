"""Owns what to run: an experiment file (TOML), checked, and the cells and trials it means."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from baselines import BASELINES
from harness.build.backends import BACKENDS
from harness.build.manifest import Manifest
from harness.generate.methods import METHODS
from harness.generate.settings import Refinement, RunBudget, TrialBudget
from harness.llm.providers import Asking, ProviderSettings, parse_models
from harness.measure.session import Policy
from harness.records import Verification
from harness.story import Ending
from harness.targets import find_target
from harness.verify.exam import Limits
from tasks.spec import Task, TaskError, Workload

SHIPPED = Path(__file__).parent / "experiments"
A_FILE = "a .toml file, or the name of a shipped experiment"
OPTIONS = {  # of the command line, by the key that each replaces
    "tasks": "--task",
    "workloads": "--workloads",
    "dtypes": "--dtype",
    "baselines": "--baseline",
    "candidates": "--candidates",
    "models": "--model",
    "methods": "--method",
    "samples": "--samples",
    "seed": "--seed",
}


class ExperimentError(ValueError):
    """An experiment that cannot be run as written; the text says where and what to do."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RequestLimits(_Section):
    """Wall-clock limits of one request to a worker, in seconds."""

    load_s: float = Field(120.0, gt=0)
    first_call_s: float = Field(180.0, gt=0, description="the first call of a shape, which may compile")
    call_s: float = Field(30.0, gt=0)
    library_s: float = Field(300.0, gt=0, description="a human baseline's first call, which may compile long")


class Sampling(_Section):
    """When a session has sampled enough."""

    half_width: float = Field(0.002, gt=0, lt=1, description="of the 95 % interval of the median ratio")
    time_cap_s: float = Field(1.6, gt=0, description="a session (one workload, one group of candidates)")
    block_ms: float = Field(6.0, gt=0)
    min_rounds: int = Field(10, ge=2)
    max_rounds: int = Field(80, ge=2)
    cold: bool = Field(
        True,
        description="caches are flushed before each call; false on a CPU only, for comparing two kernels",
    )


class Experiment(_Section):
    """What one run evaluates."""

    target: str
    tasks: tuple[str, ...]
    workloads: tuple[str, ...] = Field(("paper",), description="workload sets; a task gives those it has")
    dtypes: tuple[str, ...] = Field((), description="only these; empty: all of the set")
    baselines: tuple[str, ...] = ("all",)
    anchor: str | None = Field(
        None, description="the baseline that all are compared with, precisely; None: the fastest of a cell"
    )
    candidates: tuple[str, ...] = Field(
        (), description="folders, relative to the experiment file or the caller"
    )
    programs: tuple[str, ...] = Field(
        (), description="LLM-TL programs to compile: files, or `reference` for those of the suite"
    )
    methods: tuple[str, ...] = Field((), description="how models are asked for kernels")
    only: dict[str, tuple[str, ...]] = Field({}, description="method -> the only tasks it is used on")
    models: tuple[str, ...] = Field((), description="provider:model, or `thinks -> translates`")
    backends: tuple[str, ...] = Field((), description="empty: triton on a GPU, numba on a CPU")
    samples: int = Field(1, ge=1, le=1000, description="independent attempts of each")
    shown: str = Field(
        "", description="workload set that models are told of; empty: models, or smoke on a CPU"
    )
    transcripts: tuple[str, ...] = Field((), description="recorded answers for `replay:` models")
    prices: str = Field("", description="a price list over the shipped one")
    seed: int | None = Field(None, description="None: fresh for every run")
    group: int = Field(4, ge=1, description="candidates that share a session")
    budget: TrialBudget = TrialBudget()
    run_budget: RunBudget = RunBudget()
    refine: Refinement = Refinement()
    asking: Asking = Asking()
    providers: dict[str, ProviderSettings] = Field({}, description="providers of one's own, by name")
    limits: RequestLimits = RequestLimits()
    sampling: Sampling = Sampling()

    @field_validator("target")
    @classmethod
    def _known_target(cls, value: str) -> str:
        return find_target(value).name

    @field_validator(
        "baselines", "workloads", "tasks", "dtypes", "candidates", "programs", "methods", "models",
        "backends", "transcripts", mode="before",
    )  # fmt: skip
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("tasks", "workloads")
    @classmethod
    def _names_something(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one")
        return value

    @field_validator("baselines")
    @classmethod
    def _known_baselines(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name != "all" and name not in BASELINES:
                near = difflib.get_close_matches(name, BASELINES, n=2) or list(BASELINES)
                raise ValueError(f"unknown baseline {name!r}; did you mean {', '.join(near)}?")
        if not value:
            raise ValueError("at least one baseline is needed: it is the denominator of every speedup")
        return value

    @model_validator(mode="after")
    def _flushed_on_a_gpu(self) -> Self:
        if not self.sampling.cold and find_target(self.target).is_gpu:
            raise ValueError("sampling.cold = false is for a CPU: on a GPU the flush tells calls apart")
        return self

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _known(value, METHODS, "method")

    @field_validator("backends")
    @classmethod
    def _known_backends(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _known(value, BACKENDS, "backend")

    @field_validator("models")
    @classmethod
    def _readable_models(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            parse_models(text)
        return value

    @model_validator(mode="after")
    def _anchor_takes_part(self) -> Self:
        if self.anchor is not None and self.anchor not in self.baseline_names:
            raise ValueError(
                f"anchor: {self.anchor!r} is not among the baselines: {', '.join(self.baseline_names)}"
            )
        return self

    @model_validator(mode="after")
    def _only_what_is_there(self) -> Self:
        for method, tasks in self.only.items():
            if method not in self.methods:
                raise ValueError(f"only: {method!r} is not among the methods: {', '.join(self.methods)}")
            if missing := [t for t in tasks if t not in self.tasks]:
                raise ValueError(f"only.{method}: {', '.join(missing)} is not among the tasks")
        return self

    def methods_of(self, task: str) -> tuple[str, ...]:
        """The methods that are used on a task."""
        return tuple(m for m in self.methods if task in self.only.get(m, (task,)))

    @property
    def backend_names(self) -> tuple[str, ...]:
        if self.backends:
            return self.backends
        target = find_target(self.target)
        if not target.is_gpu:
            return ("numba",)
        # Triton makes no tensor-core code before sm_80
        return ("cuda",) if (target.capability or (0, 0)) < (8, 0) else ("triton",)

    @property
    def baseline_names(self) -> tuple[str, ...]:
        return tuple(BASELINES) if "all" in self.baselines else self.baselines

    @property
    def request_limits(self) -> Limits:
        return Limits(**self.limits.model_dump())

    @property
    def policy(self) -> Policy:
        cpu = self.target == "cpu"
        return Policy(
            **self.sampling.model_dump(),
            flush_ms=(10.0 if self.sampling.cold else 0.3) if cpu else 0.1,
            max_iterations=10 if cpu and self.sampling.cold else 40,
        )


@dataclass(frozen=True)
class Cell:
    """One workload of one task: what shares a session."""

    task: Task
    workload: Workload


@dataclass(frozen=True)
class Ended:
    """A trial that made no kernel fit to be measured, under the name that tables use."""

    ending: Ending
    name: str
    verification: Verification | None


@dataclass(frozen=True)
class Plan:
    """What an experiment means: baselines on every cell, candidates on those of their tasks."""

    cells: tuple[Cell, ...]
    baselines: tuple[str, ...]
    candidates: tuple[Manifest, ...]
    unusable: tuple[str, ...] = field(default=())  # candidates left out, each with its reason
    ended: tuple[Ended, ...] = ()

    def groups(self, size: int) -> list[tuple[Manifest, ...]]:
        """Candidates in groups that share sessions; one empty group where there are none."""
        chunks = [self.candidates[n : n + size] for n in range(0, len(self.candidates), size)]
        return chunks or [()]


def _known(names: tuple[str, ...], known: Mapping[str, object], what: str) -> tuple[str, ...]:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2) or list(known)
            raise ValueError(f"unknown {what} {name!r}; did you mean {', '.join(near)}?")
    return names


def located(name: str, source: str) -> Path:
    """Where a path of an experiment leads: relative to the caller, the experiment file, the checkout."""
    bases = (Path(), Path(source).parent, SHIPPED.parents[1])
    return next((base / name for base in bases if (base / name).exists()), Path(name))


def read_experiment(source: str, overrides: dict[str, Any] | None = None) -> Experiment:
    """From a TOML file, or by the name of a shipped one; raises ExperimentError."""
    path = Path(source)
    if path.suffix != ".toml":
        path = SHIPPED / f"{source}.toml"
        if not path.exists():
            shipped = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.toml")))
            near = difflib.get_close_matches(source, [p.stem for p in SHIPPED.glob("*.toml")], n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ExperimentError(f"no experiment {source!r}; {hint}shipped: {shipped}; or give a .toml file")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExperimentError(f"{path}: {error.strerror}; give {A_FILE}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ExperimentError(
            f"{path}: not TOML: {error}. docs/run-and-report.md shows a whole one"
        ) from error
    given = overrides or {}
    return experiment_of(
        _narrowed(data, given), str(path), {key: OPTIONS[key] for key in given if key in OPTIONS}
    )


def _narrowed(data: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """The file's keys under the overrides; a method that is used on none of the tasks left goes too.

    What is not of the kind that it has to be stays as it is, to be refused with its name.
    """
    merged, only = {**data, **overrides}, data.get("only")
    if not isinstance(only, dict) or not {"tasks", "methods"} & set(overrides):
        return merged
    methods = _listed(merged.get("methods"))
    gone = set(_listed(data.get("tasks"))) - set(_listed(merged.get("tasks")))
    left = {m: [t for t in ts if t not in gone] if isinstance(ts, list) else ts for m, ts in only.items()}
    unused = {m for m, tasks in left.items() if tasks == [] and m not in overrides.get("methods", ())}
    unused |= set(_listed(data.get("methods"))) - set(methods)
    merged["only"] = {m: tasks for m, tasks in left.items() if m not in unused}
    if methods:
        merged["methods"] = [m for m in methods if m not in unused]
    return merged


def _listed(value: object) -> list[str]:
    """One name or several; nothing of what is neither."""
    if isinstance(value, str):
        return [value]
    return [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def experiment_of(data: dict[str, Any], where: str, options: Mapping[str, str] | None = None) -> Experiment:
    """Validated; raises ExperimentError that names each wrong key, or the option that it came from."""
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            hint = ""
            if item["type"] == "extra_forbidden":
                keys = _keys(item["loc"][:-1])
                near = difflib.get_close_matches(str(item["loc"][-1]), keys, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; keys: {', '.join(keys)}"
                item["msg"] = "unknown key"
            option = (options or {}).get(str(item["loc"][0])) if item["loc"] else None
            place = option or f"{where}: {key}"
            lines.append(f"{place}: {item['msg'].removeprefix('Value error, ')}{hint}")
        raise ExperimentError("\n".join(lines)) from error


def _keys(section: Sequence[int | str]) -> list[str]:
    """The keys that a section of an experiment may hold, the sections among them."""
    model: type[BaseModel] = Experiment
    for name in section:
        inner = model.model_fields[str(name)].annotation
        assert isinstance(inner, type) and issubclass(inner, BaseModel)
        model = inner
    return list(model.model_fields)


def make_plan(experiment: Experiment, known: dict[str, Task], manifests: Sequence[Manifest]) -> Plan:
    """Cells and candidates; raises ExperimentError or TaskError for names that do not exist."""
    cells: list[Cell] = []
    for name in experiment.tasks:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2) or sorted(known)
            raise TaskError(f"unknown task {name!r}; did you mean {', '.join(near)}? See: attnbench tasks")
        task = known[name]
        cells.extend(Cell(task, w) for w in _workloads(task, experiment))
    usable, unusable = [], []
    for manifest in manifests:
        reason = _unusable(manifest, experiment)
        if reason:
            unusable.append(f"{manifest.name}: {reason}")
        else:
            usable.append(manifest)
    return Plan(tuple(cells), experiment.baseline_names, tuple(usable), tuple(unusable))


def _workloads(task: Task, experiment: Experiment) -> list[Workload]:
    """Those of the sets that the task has, each once, in the dtypes asked for."""
    sets = [name for name in experiment.workloads if name in task.workloads]
    if not sets:
        task.workload_set(experiment.workloads[0])  # raises, naming the sets there are
    found = {w.key: w for name in sets for w in task.workloads[name]}
    kept = [w for w in found.values() if not experiment.dtypes or w.dtype in experiment.dtypes]
    if not kept:
        has = ", ".join(sorted({w.dtype for w in found.values()}))
        asked = ", ".join(experiment.dtypes)
        raise ExperimentError(
            f"task {task.name} has no workload in {asked} in {', '.join(sets)}; it has {has}. "
            "Choose another --dtype or --workloads"
        )
    return kept


def _unusable(manifest: Manifest, experiment: Experiment) -> str:
    if not set(manifest.tasks) & set(experiment.tasks):
        return f"is for {', '.join(manifest.tasks)}, which this experiment does not run"
    if not manifest.fits(experiment.target):
        where = ", ".join(manifest.targets) or f"where the {manifest.backend} backend runs"
        return f"is for {where}, not {experiment.target}"
    return ""
