"""Owns what ran as solutions of flashinfer-bench: kept sources and an entry that calls them there.

flashinfer-bench calls `run(inputs..., outputs...)` with positional arguments; a candidate of this project
is `attention(q, k, v, out, *, scale, ...)`. So each solution holds one file more than the candidate did,
which does nothing but pass the arguments on. All other files are the recorded bytes.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from harness.records import CandidateRecord
from harness.targets import TARGETS
from reports.dataset import ARTIFACTS, Dataset, Row
from reports.flashinfer.definitions import Unsayable, scalars
from reports.flashinfer.schema import BuildSpec, Solution, Source

ENTRY = "attnbench_entry.py"
MANIFEST = "candidate.toml"
DEFAULT_FILE = "attention.py"

_CANDIDATE = '''\
"""Written by attnbench export: passes the arguments of flashinfer-bench on to the candidate."""

import importlib.util
import os
import sys

_FOLDER = os.path.dirname(os.path.abspath(__file__))


def _load():
    # Its files import each other by their plain names.
    name = "attnbench_candidate_" + {digest!r}
    spec = importlib.util.spec_from_file_location(name, os.path.join(_FOLDER, {file!r}))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, _FOLDER)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(_FOLDER)
    return module.attention


_attention = _load()


def run({arguments}):
    _attention({tensors}, {passed})
'''
_BASELINE = '''\
"""Written by attnbench export: the human baseline {name} as attnbench calls it.

A run records a baseline's name, library and version ({library}), and no sources: they are the library's.
What stands here calls that library through an installed attnbench.
"""

from baselines import find_baseline
from tasks import Workload, find

_PLANS = {{}}


def run({arguments}):
    task = find({task!r})
    key = tuple((t.shape, t.stride(), t.data_ptr()) for t in ({inputs})) + ({scalars},)
    if key not in _PLANS:
        batch, seq_q, heads, dim = q.shape
        seq_k, kv_heads, dim_v = v.shape[1:]
        workload = Workload(
            task.name, batch, heads, kv_heads, seq_q, seq_k, dim, dim_v, {dtype!r}, scale, ({parameters})
        )
        _PLANS.clear()
        _PLANS[key] = find_baseline({name!r}).plan(task, workload, {{{mapping}}})
    out.copy_(_PLANS[key]())
'''


def solution_name(row: Row, definition: str) -> str:
    """Unique within an export: contender, hash of its content, definition."""
    label = re.sub(r"[^\w.+-]+", "-", row.contender, flags=re.ASCII).strip(".-")[:60] or "contender"
    return f"{label}_{row.result.candidate.sha256[:8]}__{definition}"


def solution(dataset: Dataset, row: Row, definition: str) -> Solution:
    """Of one contender for one definition; raises Unsayable where the run does not hold its sources."""
    c = row.result.candidate
    sources = (_entry_of_baseline(row),) if row.is_baseline else _sources(dataset, row)
    return Solution(
        name=solution_name(row, definition),
        definition=definition,
        author=_author(c),
        spec=BuildSpec(
            language="triton" if c.backend == "triton" and not row.is_baseline else "python",
            target_hardware=(_hardware(row),),
            entry_point=f"{ENTRY}::run",
            dependencies=_dependencies(c),
            destination_passing_style=True,
        ),
        sources=sources,
        description=_description(row),
    )


def _author(c: CandidateRecord) -> str:
    if c.kind == "baseline":
        return c.family or c.backend
    return c.model or "unknown"


def _hardware(row: Row) -> str:
    target = TARGETS.get(row.result.target)
    return target.title if target is not None and target.is_gpu else row.result.device


def _dependencies(c: CandidateRecord) -> tuple[str, ...]:
    if c.kind == "baseline":
        return tuple(dict.fromkeys(("attnbench", "torch", c.family.partition(" ")[0] or c.backend)))
    own = {"triton": ("triton",), "gluon": ("triton",), "numba": ("numba",), "cuda": ("attnbench[cuda]",)}
    return ("torch", *own.get(c.backend, ()))


def _description(row: Row) -> str:
    c = row.result.candidate
    if c.kind == "baseline":
        return f"Human baseline {c.name} ({c.family or c.backend})."
    made = f"method {c.method}, backend {c.backend}"
    sample = f", sample {c.sample}, trial {c.trial}" if c.trial else ""
    return f"{c.name}: {made}{sample}. Content hash {c.sha256}. {ENTRY} is added by the export."


def _sources(dataset: Dataset, row: Row) -> tuple[Source, ...]:
    c = row.result.candidate
    if not c.files:
        raise Unsayable("no source was recorded for it")
    files = {name: _content(dataset, c, name) for name in sorted(c.files)}
    if ENTRY in files:
        raise Unsayable(f"it has a file of the name {ENTRY}, which the export needs")
    file = _entry_file(files, row.result.task)
    names = scalars(row.result.task)
    entry = _CANDIDATE.format(
        digest=c.sha256[:16],
        file=file,
        arguments=", ".join(("q, k, v", *names, "out")),
        tensors="q, k, v, out",
        passed=", ".join(f"{name}={name}" for name in names),
    )
    kept = [Source(path=name, content=content or "\n") for name, content in files.items()]
    return (Source(path=ENTRY, content=entry), *kept)


def _content(dataset: Dataset, c: CandidateRecord, name: str) -> str:
    """The text of a kept source, the very bytes that ran; raises Unsayable."""
    inside = PurePosixPath(name)
    folder = (dataset.path / ARTIFACTS / c.sha256).resolve()
    if inside.is_absolute() or ".." in inside.parts:
        raise Unsayable(f"its file {name!r} lies outside of its folder")
    path = Path(folder, *inside.parts).resolve()
    if not path.is_relative_to(folder) or not path.is_file():
        raise Unsayable(f"its source {name} is not among the run's artifacts")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != c.files[name]:
        raise Unsayable(f"its source {name} was changed after it was recorded")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unsayable(f"its source {name} is no text") from error


def _entry_file(files: Mapping[str, str], task: str) -> str:
    """Which file defines `attention` for the task, as its candidate.toml says."""
    try:
        manifest = tomllib.loads(files.get(MANIFEST, ""))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise Unsayable(f"its {MANIFEST} is not TOML") from error
    entries = manifest.get("entries")
    named = entries.get(task) if isinstance(entries, dict) else manifest.get("entry", DEFAULT_FILE)
    if not isinstance(named, str) or named not in files:
        raise Unsayable(f"no file of it is the entry for {task}")
    return named


def _entry_of_baseline(row: Row) -> Source:
    names = scalars(row.result.task)
    parameters = "".join(f"({n!r}, {n}), " for n in names if n != "scale").strip()
    content = _BASELINE.format(
        name=row.result.candidate.name,
        library=row.result.candidate.family or row.result.candidate.backend,
        task=row.result.task,
        arguments=", ".join(("q, k, v", *names, "out")),
        inputs="q, k, v",
        scalars=", ".join(names),
        dtype=row.result.workload.dtype,
        parameters=parameters,
        mapping='"q": q, "k": k, "v": v',
    )
    return Source(path=ENTRY, content=content)
