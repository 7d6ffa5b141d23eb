"""Owns reading candidate folders: candidate.toml and the sources beside it, identified by content."""

from __future__ import annotations

import difflib
import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.build.backends import BACKENDS
from harness.targets import TARGETS

MANIFEST = "candidate.toml"
DEFAULT_ENTRY = "attention.py"
SOURCE_SUFFIXES = frozenset((".py", ".cu", ".cuh", ".h", ".tl", ".toml", ".md"))
# A bundle of sources is text a person can read; a larger file is something else (bytes).
LARGEST_FILE = 1 << 20

EXAMPLE = """\
name = "my_kernel"            # default: the folder's name
task = "mha_causal"           # or: tasks = ["mha", "mha_causal"]
backend = "triton"            # torch, triton, cuda, gluon or numba
entry = "attention.py"        # defines attention(q, k, v, out, *, scale); or a table, one per task:
# entries = { mha = "mha.py", mha_causal = "mha_causal.py" }"""


class CandidateError(ValueError):
    """A candidate folder that cannot be read: names the file, the key, what is wrong and a right example."""

    def __init__(self, path: Path, problem: str, key: str = "") -> None:
        self.path = path
        self.key = key
        self.problem = problem
        where = f"{path}: {key}: " if key else f"{path}: "
        super().__init__(f"{where}{problem}\nA candidate.toml looks like this:\n\n{EXAMPLE}")


@dataclass(frozen=True)
class Origin:
    """How a candidate came to be: a folder of somebody's, a compiled program, or a trial of a method."""

    method: str = "folder"
    model: str = ""
    trial: str = ""  # id of the trial that made it
    sample: int = 0


@dataclass(frozen=True)
class Manifest:
    """A candidate folder as read: what it says about itself and every source file in it."""

    name: str
    tasks: tuple[str, ...]
    backend: str
    targets: tuple[str, ...]  # empty: every target its backend runs on
    folder: Path
    entries: Mapping[str, str]  # task -> file, relative to the folder
    files: Mapping[str, bytes]  # relative name -> content, sorted by name
    description: str = ""
    origin: Origin = Origin()

    def entry(self, task: str) -> str:
        """The file that defines `attention` for a task; raises CandidateError for a task it does not list."""
        if task not in self.entries:
            raise CandidateError(
                self.folder / MANIFEST,
                f"{self.name} is written for {', '.join(self.tasks)}, not {task}",
                "tasks",
            )
        return self.entries[task]

    def fits(self, target: str) -> bool:
        """Whether the candidate is meant for this target and its backend runs there."""
        device = "cuda" if TARGETS[target].is_gpu else "cpu"
        return device in BACKENDS[self.backend].devices and (not self.targets or target in self.targets)

    @property
    def hashes(self) -> dict[str, str]:
        """Hash of each source file."""
        return {name: hashlib.sha256(content).hexdigest() for name, content in self.files.items()}

    @property
    def sha256(self) -> str:
        """Content hash over names and bytes; where the folder lies does not matter."""
        digest = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            for part in (name.encode(), content):
                digest.update(len(part).to_bytes(8, "little"))
                digest.update(part)
        return digest.hexdigest()


class _Toml(BaseModel):
    """The keys a candidate.toml may hold."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str | None = None
    task: str | None = None
    tasks: list[str] | None = None
    backend: str
    targets: list[str] = []
    entry: str | None = None
    entries: dict[str, str] | None = None
    description: str = ""


def read_candidate(folder: Path) -> Manifest:
    """The candidate in `folder`; raises CandidateError that says what to change."""
    path = folder / MANIFEST
    data = _parse(path)
    tasks = _tasks(path, data)
    if data.backend not in BACKENDS:
        raise CandidateError(path, _not_one_of(data.backend, list(BACKENDS)), "backend")
    for target in data.targets:
        if target not in TARGETS:
            raise CandidateError(path, _not_one_of(target, list(TARGETS)), "targets")
    files = _sources(folder)
    entries = _entries(path, data, tasks, files)
    name = data.name if data.name is not None else folder.resolve().name
    if not name.strip():
        raise CandidateError(path, "must not be empty", "name")
    return Manifest(
        name=name,
        tasks=tasks,
        backend=data.backend,
        targets=tuple(data.targets),
        folder=folder,
        entries=entries,
        files=files,
        description=data.description,
    )


def scan_candidates(folder: Path) -> tuple[Manifest | CandidateError, ...]:
    """Every candidate in `folder`, which is one itself or holds several, sorted by folder name.

    A broken one comes back as its error, so it hides no other. A folder that is or holds no
    candidate gives one error.
    """
    if not folder.is_dir():
        is_file = folder.is_file()
        what = "is a file; give the folder that it is in" if is_file else "no such folder"
        return (CandidateError(folder, what),)
    if (folder / MANIFEST).is_file():
        return (_read_or_error(folder),)
    found = tuple(_read_or_error(path.parent) for path in sorted(folder.glob(f"*/{MANIFEST}")))
    return found or (CandidateError(folder, f"holds no {MANIFEST}, and neither do its subfolders"),)


def _read_or_error(folder: Path) -> Manifest | CandidateError:
    try:
        return read_candidate(folder)
    except CandidateError as error:
        return error


def _parse(path: Path) -> _Toml:
    if not path.is_file():
        raise CandidateError(path, "no such file")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CandidateError(path, f"is not TOML: {error}") from error
    try:
        return _Toml.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            problem = _not_one_of(key, list(_Toml.model_fields), what="key")
        elif first["type"] == "missing":
            problem = "is missing"
        else:
            problem = f"{first['msg']}, found {first['input']!r}"
        raise CandidateError(path, problem, key) from error


def _tasks(path: Path, data: _Toml) -> tuple[str, ...]:
    if (data.task is None) == (data.tasks is None):
        raise CandidateError(path, "give either task or tasks", "task")
    tasks = tuple(data.tasks) if data.tasks is not None else (str(data.task),)
    if not tasks:
        raise CandidateError(path, "names no task", "tasks")
    if len(set(tasks)) < len(tasks):
        raise CandidateError(path, "names a task twice", "tasks")
    return tasks


def _entries(
    path: Path, data: _Toml, tasks: tuple[str, ...], files: Mapping[str, bytes]
) -> Mapping[str, str]:
    if data.entries is None:
        entries = dict.fromkeys(tasks, data.entry or DEFAULT_ENTRY)
        key = "entry"
    elif data.entry is not None:
        raise CandidateError(path, "give either entry or entries", "entries")
    else:
        entries, key = data.entries, "entries"
        for task in tasks:
            if task not in entries:
                raise CandidateError(path, f"has no file for task {task!r}", key)
        for task in entries:
            if task not in tasks:
                raise CandidateError(path, f"{task!r} is not among its tasks: {', '.join(tasks)}", key)
    for name in entries.values():
        if PurePosixPath(name).suffix != ".py" or name not in files:
            python = [file for file in files if file.endswith(".py")]
            raise CandidateError(path, _not_one_of(name, python, what="Python file of the folder"), key)
    return dict(entries)


def _sources(folder: Path) -> Mapping[str, bytes]:
    files: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
        if hidden or path.suffix not in SOURCE_SUFFIXES or not path.is_file():
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise CandidateError(path, "links to a file outside the candidate's folder")
        content = path.read_bytes()
        if len(content) > LARGEST_FILE:
            raise CandidateError(path, f"is larger than {LARGEST_FILE} bytes, too large for a source file")
        files[relative.as_posix()] = content
    return dict(sorted(files.items()))


def _not_one_of(word: str, known: list[str], what: str = "choice") -> str:
    near = difflib.get_close_matches(word, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{word!r} is no known {what}; {hint}There are: {', '.join(known) or 'none'}"
