"""Owns what differs between two runs beside their results: machine, versions, rules, sources of a name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from harness.records import Result
from harness.runs import Environment
from reports.comparable import decisive
from reports.dataset import Dataset

NOTHING = "none"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same; `decisive`: times of the two runs may not stand in one figure."""

    about: str  # protocol, environment, task, baseline, candidate
    what: str
    before: str
    after: str
    decisive: bool


def differences(before: Dataset, after: Dataset) -> tuple[Difference, ...]:
    """What differs, in the order of the table of the documentation; empty for like runs."""
    return (
        *_by_name("protocol", before, after, lambda r: ("protocol", r.identity.protocol), True),
        *_environments(before, after),
        *_by_name("task", before, after, lambda r: (r.task, r.identity.task[:8]), True),
        *_by_name("baseline", before, after, _baseline, False),
        *_sources(before, after),
    )


def _baseline(r: Result) -> tuple[str, str] | None:
    c = r.candidate
    return (c.name, f"{c.family or c.backend} ({c.sha256[:8]})") if c.kind == "baseline" else None


def _by_name(
    about: str,
    before: Dataset,
    after: Dataset,
    of: Callable[[Result], tuple[str, str] | None],
    decides: bool,
) -> list[Difference]:
    """What both runs name, with other values."""
    ours, theirs = (_values(of(r.result) for r in d.rows) for d in (before, after))
    return [
        Difference(about, name, ours[name], theirs[name], decides)
        for name in ours
        if name in theirs and ours[name] != theirs[name]
    ]


def _values(pairs: Iterable[tuple[str, str] | None]) -> dict[str, str]:
    """Name -> its values, several of them joined."""
    found: dict[str, set[str]] = {}
    for pair in pairs:
        if pair is not None:
            found.setdefault(pair[0], set()).add(pair[1])
    return {name: " / ".join(sorted(values)) for name, values in found.items()}


def _environments(before: Dataset, after: Dataset) -> list[Difference]:
    """Of the environments that results were recorded in; a value that one run lacks is `none`."""
    used = [_used(d) for d in (before, after)]
    ours, theirs = ([_facts(e) if e else {"environment": UNKNOWN} for e in found] for found in used)
    deciding = {
        name
        for a in used[0]
        for b in used[1]
        if a is not None and b is not None
        for name, (x, y) in decisive(a, b).items()
        if x != y
    }
    found = []
    for name in dict.fromkeys(name for facts in (*ours, *theirs) for name in facts):
        a, b = (" / ".join(sorted({f.get(name, NOTHING) for f in side})) for side in (ours, theirs))
        if a != b:
            found.append(Difference("environment", name, a, b, name in deciding))
    return found


def _used(dataset: Dataset) -> list[Environment | None]:
    digests = dict.fromkeys(r.result.environment for r in dataset.rows)
    return [dataset.environments.get(digest) for digest in digests]


def _facts(e: Environment) -> Mapping[str, str]:
    """Everything an environment says, under the names that `reports.comparable` uses."""
    plain = {
        "device": e.device,
        "driver": e.driver,
        "CUDA": e.cuda,
        "Python": e.python,
        "harness sources": e.sources[:8],
        "attnbench": e.harness,
        "platform": e.platform,
        "processor": e.cpu,
        "usable cores": str(e.cores),
        "sandbox": e.sandbox,
    }
    return {
        **{name: value or UNKNOWN for name, value in plain.items()},
        **e.libraries,
        **{name.replace("_", " "): value for name, value in e.gpu.items()},
        **{f"baseline {name}": state for name, state in e.baselines.items()},
    }


def _sources(before: Dataset, after: Dataset) -> list[Difference]:
    """Candidates of one name whose content is another, with the files that differ."""
    ours, theirs = (_candidates(d) for d in (before, after))
    found = []
    for name, mine in ours.items():
        others = theirs.get(name, {})
        if not others or mine.keys() == others.keys():
            continue
        a, b = (" / ".join(sorted(digest[:8] for digest in side)) for side in (mine, others))
        files = _files(mine.values()), _files(others.values())
        differing = sorted(f for f in {*files[0], *files[1]} if files[0].get(f) != files[1].get(f))
        what = f"{name}: {', '.join(differing)}" if differing else name
        found.append(Difference("candidate", what, a, b, False))
    return found


def _candidates(dataset: Dataset) -> dict[str, dict[str, Mapping[str, str]]]:
    """Name -> content hash -> files."""
    found: dict[str, dict[str, Mapping[str, str]]] = {}
    for row in dataset.rows:
        c = row.result.candidate
        if c.kind == "candidate" and c.files:
            found.setdefault(c.name, {})[c.sha256] = c.files
    return found


def _files(of: Iterable[Mapping[str, str]]) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for files in of:
        for name, digest in files.items():
            found.setdefault(name, set()).add(digest)
    return {name: frozenset(digests) for name, digests in found.items()}
