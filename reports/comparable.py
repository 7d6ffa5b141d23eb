"""Owns which results of a run may stand in one figure: those whose conditions agree in what can change it.

Conditions that differ split a run. The larger part is reported, and the other is named with the reason;
a figure made of both would compare the machines, and say that it compares kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.records import Result
from harness.runs import Environment
from reports import alike

# Libraries that are recorded and change no figure: this one reads clocks and temperatures.
IDLE_LIBRARIES = frozenset({"nvidia-ml-py"})
# Settings of a GPU that change no figure of work that has begun.
IDLE_SETTINGS = frozenset({"persistence_mode", "compute_mode"})


@dataclass(frozen=True)
class Conditions:
    """What a result was recorded under; `environment` None: environment.json does not hold it."""

    digest: str
    environment: Environment | None
    protocol: str


@dataclass(frozen=True)
class LeftOut:
    """A result that no figure is made of: its line of results.jsonl, and why."""

    line: int
    result: Result
    why: str


Numbered = tuple[int, Result]


def comparable(a: Environment, b: Environment) -> str | None:
    """Why results recorded in `a` may not stand beside results recorded in `b`; None where they may.

    What cannot change a figure may differ: which baselines can be used, the sandbox, the patch version of
    Python, a library that only one of the two has (what ran on it is a contender of its own). So may the
    host's processor and cores, unless it is the device.
    """
    differing = [
        f"{name} {ours or 'unknown'}, the others with {theirs or 'unknown'}"
        for name, (ours, theirs) in decisive(a, b).items()
        if ours != theirs
    ]
    return f"recorded with {'; with '.join(differing)}" if differing else None


def decisive(a: Environment, b: Environment) -> dict[str, tuple[str, str]]:
    """What must agree for two results to stand in one figure: name -> (in `a`, in `b`)."""
    found = {
        "device": (a.device, b.device),
        "driver": (a.driver, b.driver),
        "CUDA": (a.cuda, b.cuda),
        "Python": (_minor(a.python), _minor(b.python)),
    }
    found |= {
        name: (a.libraries[name], b.libraries[name])
        for name in a.libraries
        if name in b.libraries and name not in IDLE_LIBRARIES
    }
    settings = (set(a.gpu) & set(b.gpu)) - IDLE_SETTINGS
    found |= {name.replace("_", " "): (a.gpu[name], b.gpu[name]) for name in sorted(settings)}
    if a.target == b.target == "cpu":
        found["usable cores"] = (str(a.cores), str(b.cores))
    if a.sources or b.sources:
        found["harness sources"] = (alike.version(a.sources), alike.version(b.sources))
    else:  # recorded before the sources were: their version is all there is
        found["attnbench"] = (a.harness, b.harness)
    return found


def _minor(python: str) -> str:
    return ".".join(python.split(".")[:2])


def difference(a: Conditions, b: Conditions) -> str | None:
    """The same of whole conditions."""
    if a.protocol != b.protocol:
        return f"recorded with protocol {a.protocol}, the others with {b.protocol}"
    if a.digest == b.digest:
        return None
    if a.environment is None or b.environment is None:
        unknown = a.digest if a.environment is None else b.digest
        return f"recorded in another environment, and environment.json has nothing of {unknown[:8]}"
    return comparable(a.environment, b.environment)


def split(
    results: Sequence[Numbered], environments: Mapping[str, Environment]
) -> tuple[list[Numbered], list[LeftOut]]:
    """The results that figures may be made of, and the rest; both in the order given.

    Kept is the largest part in which any two are comparable, the latest of equal ones; within it, of each
    task the version with the most results.
    """
    of = {line: _conditions(result, environments) for line, result in results}
    kept = _largest_part(results, of)
    left: dict[int, LeftOut] = {}
    for line, result in results:
        why = next(filter(None, (difference(of[line], c) for c in kept)), None)
        if why is not None:
            left[line] = LeftOut(line, result, why)
    alike = [(line, result) for line, result in results if line not in left]
    current = {task: _common_version(found) for task, found in _by_task(alike).items()}
    for line, result in alike:
        if result.identity.task != current[(result.target, result.task)]:
            why = f"recorded with another version of the task {result.task} than the others"
            left[line] = LeftOut(line, result, why)
    return [pair for pair in results if pair[0] not in left], [left[n] for n, _ in results if n in left]


def _conditions(result: Result, environments: Mapping[str, Environment]) -> Conditions:
    digest = result.environment
    return Conditions(digest, environments.get(digest), result.identity.protocol)


def _largest_part(results: Sequence[Numbered], of: Mapping[int, Conditions]) -> list[Conditions]:
    """Conditions of which any two are comparable; being comparable with one is not enough for the next."""
    keys = {(c.digest, c.protocol): c for c in of.values()}
    count = Counter((of[line].digest, of[line].protocol) for line, _ in results)
    latest: dict[tuple[str, str], str] = {}
    for line, result in results:
        key = (of[line].digest, of[line].protocol)
        latest[key] = max(latest.get(key, ""), result.recorded_at)

    def weight(part: Iterable[tuple[str, str]]) -> tuple[int, str]:
        part = list(part)
        return sum(count[key] for key in part), max(latest[key] for key in part)

    parts: list[list[tuple[str, str]]] = []
    for key in sorted(keys, key=lambda key: weight([key]), reverse=True):
        joined = next((p for p in parts if not any(difference(keys[key], keys[o]) for o in p)), None)
        if joined is None:
            parts.append([key])
        else:
            joined.append(key)
    return [keys[key] for key in max(parts, key=weight)] if parts else []


def _by_task(results: Iterable[Numbered]) -> dict[tuple[str, str], list[Result]]:
    found: dict[tuple[str, str], list[Result]] = {}
    for _, result in results:
        found.setdefault((result.target, result.task), []).append(result)
    return found


def _common_version(results: Iterable[Result]) -> str:
    """The version of a task with the most results, the latest of equal ones."""
    results = list(results)
    count = Counter(r.identity.task for r in results)
    latest = {r.identity.task: r.recorded_at for r in sorted(results, key=lambda r: r.recorded_at)}
    return max(count, key=lambda version: (count[version], latest[version]))
