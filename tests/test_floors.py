"""Claims about imports: the floors of the design hold, and a worker cannot reach the expected values.

Imports are read from the sources, so a module that is never imported here is checked too.
A new module directly under `harness/` needs a line in FLOORS.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("tasks", "baselines", "harness", "reports")

# Lowest first. The longest name that is a module or one of its packages decides.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("tasks", "harness.targets", "harness.tl"),
    ("harness.records", "harness.runs", "harness.verdicts", "harness.seals", "harness.story"),
    ("baselines", "harness.llm", "harness.build"),
    ("harness.worker", "harness.verify", "harness.measure", "harness.environment"),
    ("harness.generate",),
    (
        "harness.pipeline",
        "harness.store",
        "harness.journal",
        "harness.merge",
        "harness.audit",
        "harness.audit_results",
        "harness.audit_stories",
        "harness.storybook",
        "harness.assignments",
        "harness.generation",
        "harness.trial",
        "harness.workshop",
        "harness.stopwatch",
        "harness.programs",
        "harness.schedule",
        "harness.experiment",
        "harness.experiments",
        "harness.bench",
        "harness.ledger",
        "harness.warmup",
        "harness.presses",
        "harness.entrants",
        "harness.race",
        "harness.looks",
        "harness.bursts",
        "harness.crew",
        "harness.tuning",
        "harness.tuning_clock",
        "harness.tuning_compile",
        "harness.tuning_search",
    ),
    ("reports",),
    (
        "harness.cli",
        "harness.audit_command",
        "harness.publish_command",
        "harness.answer_commands",
        "harness.commands",
        "harness.compile_command",
        "harness.completion",
        "harness.evaluation_cli",
        "harness.listings",
        "harness.manual",
        "harness.options",
        "harness.progress",
        "harness.tl_manual",
        "harness.tl_options",
        "harness.tl_compile",
        "harness.static_report",
        "harness.console",
        "harness.doctor",
        "harness.exchange_cli",
        "harness.exits",
        "harness.compare_command",
        "harness.export_command",
        "harness.gate_cli",
        "harness.gate_commands",
        "harness.gate_before",
        "harness.gate_kernels",
        "harness.gate_run",
        "harness.generation_commands",
        "harness.generation_cli",
        "harness.telling",
        "harness.tl_cli",
        "harness.tl_commands",
        "harness.tl_mutants",
        "harness.tl_run",
        "harness.tl_space",
        "harness.tl_text",
        "harness.tl_tune",
    ),
)
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}

# What the lowest floor may know: not even its neighbours there, but for the facts about devices.
ALONE: Mapping[str, tuple[str, ...]] = {
    "tasks": (),
    "harness.targets": (),
    "harness.tl": ("harness.targets",),
}
# Reports read what was recorded, never the machinery that made it.
READ_BY_REPORTS = (
    "harness.records", "harness.runs", "harness.verdicts", "harness.seals", "harness.story", "harness.targets",
    "harness.measure.statistics",
)  # fmt: skip
# What would let a worker know the answer or the judge's bound.
JUDGES_OWN = ("tasks.oracle", "harness.verify")
CHILD = "harness.worker.child"


@dataclass(frozen=True)
class Import:
    """One project module that a module imports; `at_start`: by importing it, not by calling into it."""

    target: str
    line: int
    at_start: bool


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def floor_of(module: str) -> int | None:
    """The floor of the longest listed package that holds the module; None for one not listed."""
    parts = module.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((FLOOR[name] for name in names if name in FLOOR), None)


def imports(module: str, source: str, known: frozenset[str]) -> list[Import]:
    """Every import of a project module in the source, inside functions too."""
    found = []
    for node, at_start in walk(ast.parse(source), at_start=True):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = node.level - is_package(module, known)
                package = module.split(".")[: -above or None]
                base = ".".join([*package, base]).rstrip(".")
            # `from package import name` imports package.name where that is a module
            names = [n if (n := f"{base}.{alias.name}") in known else base for alias in node.names]
        else:
            continue
        found += [Import(n, node.lineno, at_start) for n in names if n.split(".")[0] in PACKAGES]
    return found


def is_package(module: str, known: frozenset[str]) -> bool:
    return any(other.startswith(module + ".") for other in known)


def walk(node: ast.AST, at_start: bool) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes, each with whether it runs when the module is imported."""
    yield node, at_start
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        branches = [(part, False) for part in node.body] + [(part, at_start) for part in node.orelse]
        for branch, runs in branches:
            yield from walk(branch, runs)
        return
    inside = at_start and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for part in ast.iter_child_nodes(node):
        yield from walk(part, inside)


def violations(sources: Mapping[str, str]) -> list[str]:
    """What breaks the floors in a project of these sources, one sentence each."""
    known = frozenset(sources)
    found = []
    for module, source in sorted(sources.items()):
        for i in imports(module, source, known):
            if problem := broken_rule(module, i.target):
                found.append(f"{module}:{i.line} imports {i.target}: {problem}")
    return found


def broken_rule(module: str, target: str) -> str | None:
    if within(target, module) or within(module, target):
        return None  # a package and its parts
    alone = next((name for name in ALONE if within(module, name)), None)
    if alone is not None and not any(within(target, name) for name in (alone, *ALONE[alone])):
        return f"{alone} knows nothing of the rest"
    if within(module, "reports") and within(target, "harness"):
        allowed = any(within(target, name) for name in READ_BY_REPORTS)
        return None if allowed else "reports read records, targets and statistics only"
    own, other = floor_of(module), floor_of(target)
    if own is not None and other is not None and other > own:
        return f"that is floor {other}, above its own floor {own}"
    return None


def reachable(start: str, sources: Mapping[str, str]) -> dict[str, str]:
    """Modules that importing and running `start` imports, with the module that does.

    Imports inside functions count for `start` itself; elsewhere only what runs on import.
    """
    known = frozenset(sources)
    reached, todo = {start: ""}, [start]
    while todo:
        module = todo.pop()
        found = [i.target for i in imports(module, sources[module], known) if i.at_start or module == start]
        parents = [".".join(t.split(".")[:n]) for t in (*found, module) for n in range(1, t.count(".") + 1)]
        for target in (*found, *parents):
            if target in known and target not in reached:
                reached[target] = module
                todo.append(target)
    return reached


@cache
def project() -> Mapping[str, str]:
    """Source by module name of every module in the project's packages."""
    sources = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if all(part.isidentifier() for part in parts):
                name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                sources[name] = path.read_text(encoding="utf-8")
    return sources


def test_every_module_has_a_floor() -> None:
    homeless = [m for m in project() if floor_of(m) is None and m != "harness"]
    assert not homeless, f"give these a floor in {Path(__file__).name} and in the design: {homeless}"


def test_modules_import_from_their_own_floor_or_below() -> None:
    assert "harness.records" in project() and "tasks.spec" in project()
    assert not violations(project()), "\n".join(violations(project()))


def test_the_harness_package_itself_imports_nothing() -> None:
    # it runs before every module of the harness, in the worker too
    assert not imports("harness", project()["harness"], frozenset(project()))


def test_statistics_and_roofline_know_no_records() -> None:
    known = frozenset(project())
    for module in ("harness.measure.statistics", "harness.measure.roofline"):
        targets = [i.target for i in imports(module, project()[module], known)]
        assert all(floor_of(t) == 0 for t in targets), f"{module} imports {targets}"


@pytest.mark.skipif(CHILD not in project(), reason="there is no worker yet")
def test_the_worker_reaches_neither_the_oracle_nor_the_tolerance() -> None:
    reached = reachable(CHILD, project())
    chains = [f"{m} through {reached[m]}" for m in reached if any(within(m, name) for name in JUDGES_OWN)]
    assert not chains, f"{CHILD} imports {', '.join(chains)}"


@pytest.mark.skipif(CHILD not in project(), reason="there is no worker yet")
def test_a_started_worker_holds_nothing_of_the_judge() -> None:
    code = f"import sys, {CHILD}; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    loaded = done.stdout.split()
    assert CHILD in loaded
    assert not [m for m in loaded if any(within(m, name) for name in JUDGES_OWN)]


# The checker itself: each of these projects breaks one rule.
CLEAN = {
    "tasks.spec": "import torch",
    "tasks.oracle": "from tasks.spec import Task",
    "harness": "",
    "harness.targets": "",
    "harness.tl.check": "from harness.targets import Target\nfrom harness.tl import ir",
    "harness.tl.ir": "",
    "harness.records": "",
    "harness.measure.timing": "import baselines.base\nfrom harness.records import Block",
    "harness.verify.tolerance": "from tasks import oracle",
    "harness.worker.child": "from harness.measure import timing",
    "harness.pipeline": "from harness.worker import child",
    "baselines.base": "from harness.targets import Target\nfrom tasks.spec import Task",
    "reports.tables": "from harness.records import Result\nfrom tasks.spec import Task\nimport json",
    "harness.cli": "import reports.tables",
}


def test_a_project_in_order_has_no_violation() -> None:
    assert violations(CLEAN) == []
    assert not any(within(m, name) for m in reachable(CHILD, CLEAN) for name in JUDGES_OWN)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("tasks.spec", "from harness.targets import Target"),
        ("tasks.spec", "import harness.records"),
        ("harness.targets", "from tasks.spec import Task"),
        ("harness.targets", "from harness.tl import ir"),
        ("harness.tl.ir", "from tasks.spec import Task"),
        ("harness.tl.ir", "def late():\n    import harness.records"),
        ("harness.records", "from baselines.base import Library"),
        ("baselines.base", "from harness.measure import timing"),
        ("baselines.base", "def late():\n    import harness.pipeline"),
        ("baselines.base", "if TYPE_CHECKING:\n    from harness.worker.child import x"),
        ("harness.measure.timing", "from ..pipeline import run"),
        ("harness.pipeline", "from reports import tables"),
        ("reports.tables", "from harness.measure.timing import x"),
        ("reports.tables", "from harness import pipeline"),
        ("reports.tables", "import harness.cli"),
    ],
)
def test_an_import_from_above_is_found(module: str, source: str) -> None:
    found = violations({**CLEAN, module: source})
    assert len(found) == 1 and found[0].startswith(f"{module}:")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("harness.worker.child", "from tasks import oracle"),
        ("harness.worker.child", "def late():\n    import tasks.oracle"),
        ("harness.worker.child", "import harness.verify.tolerance"),
        ("harness.measure.timing", "from tasks.oracle import expected"),
        ("harness", "import tasks.oracle"),
        ("harness.measure.timing", "try:\n    from ..verify import tolerance\nexcept ImportError:\n    pass"),
    ],
)
def test_a_way_from_the_worker_to_the_answer_is_found(module: str, source: str) -> None:
    reached = reachable(CHILD, {**CLEAN, module: source})
    assert any(within(m, name) for m in reached for name in JUDGES_OWN)


def test_what_runs_only_when_called_or_typed_is_no_way() -> None:
    late = {**CLEAN, "harness.measure.timing": "def late():\n    import tasks.oracle"}
    typed = {**CLEAN, "harness.measure.timing": "if TYPE_CHECKING:\n    import tasks.oracle"}
    assert "tasks.oracle" not in {**reachable(CHILD, late), **reachable(CHILD, typed)}
