"""Owns the words that a shell completes with: read from files, since importing torch takes seconds.

`attnbench --install-completion` sets a shell up. A test compares these words with the registries.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from harness.targets import TARGETS

Words = Callable[[str], list[str]]
_ROOT = Path(__file__).parents[1]
BASELINES = (
    "cudnn", "flash-attn-4", "flash-attn-2", "sdpa-flash", "sdpa-efficient", "flex", "sdpa-math", "naive",
)  # fmt: skip
DTYPES = ("fp16", "bf16", "fp32", "fp64")
SETS = ("smoke", "paper", "models", "hidden")
_TASK = re.compile(r'^(?:NAME = |\s+name=)"(\w+)"', re.MULTILINE)
_METHOD = re.compile(r'Method\(\s*"([\w-]+)"')


def _beginning(words: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in dict.fromkeys(words) if word.startswith(incomplete)]


def among(*words: str) -> Words:
    """Completion from a closed set."""
    return lambda incomplete: _beginning(words, incomplete)


def experiments(incomplete: str) -> list[str]:
    """The shipped ones, then TOML files and folders on the way to them."""
    shipped = sorted(file.stem for file in (_ROOT / "harness" / "experiments").glob("*.toml"))
    return _beginning([*shipped, *_paths(incomplete, ".toml")], incomplete)


def targets(incomplete: str) -> list[str]:
    """What is measured."""
    return _beginning(TARGETS, incomplete)


def tasks(context: typer.Context, incomplete: str) -> list[str]:
    """The suite's, and those of the folders given with --tasks."""
    folders = [
        _ROOT / "tasks",
        *map(Path, context.params.get("folders") or context.params.get("task_folders") or ()),
    ]
    return _beginning(
        filter(None, (name for folder in folders for name in map(_task_of, _files(folder)))), incomplete
    )


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.py"))


def _task_of(file: Path) -> str:
    text = file.read_text(encoding="utf-8", errors="replace")
    found = _TASK.search(text) if re.search(r"^TASK\b", text, re.MULTILINE) else None
    return found[1] if found else ""


def methods(incomplete: str) -> list[str]:
    """How models are asked."""
    source = _ROOT / "harness" / "generate" / "methods.py"
    return _beginning(_METHOD.findall(source.read_text(encoding="utf-8")), incomplete)


def codes(incomplete: str) -> list[str]:
    """Of the checker of LLM-TL."""
    from harness.tl.diagnostics import CODES

    return _beginning(CODES, incomplete.upper())


def runs(incomplete: str) -> list[str]:
    """Directories of runs: those in runs/, then folders on the way to others."""
    known = [str(file.parent) for file in sorted(Path("runs").glob("*/results.jsonl"))]
    return _beginning([*known, *_paths(incomplete, "/")], incomplete)


def trials(context: typer.Context, incomplete: str) -> list[str]:
    """TASK/NAME of each trial that ended, in --run or in the newest run."""
    named = context.params.get("run")
    found = [Path(str(named)) / "trials.jsonl"] if named else _newest(Path("runs").glob("*/trials.jsonl"))
    names = []
    for file in filter(Path.is_file, found):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if '"assignment"' not in line:
                continue
            try:
                a = json.loads(line)["assignment"]
                names.append(f"{a['task']}/{a['method']}-{_model(a)}-{a['sample']}")
            except (ValueError, KeyError, TypeError):
                continue  # a torn line, or a record of another version
    return _beginning(names, incomplete)


def _model(assignment: dict[str, list[str]]) -> str:
    return "-".join(model.partition(":")[2] for model in assignment["models"])


def _newest(files: Iterable[Path]) -> list[Path]:
    """The newest that holds anything."""
    held = [(file, file.stat()) for file in files]
    return [file for file, stat in sorted(held, key=lambda h: -h[1].st_mtime) if stat.st_size][:1]


def _paths(incomplete: str, ending: str) -> list[str]:
    """Files of that ending and folders that begin so; the shell knows no better once we answer."""
    folder, _, begun = incomplete.rpartition("/")
    base = Path(folder or ("/" if incomplete.startswith("/") else "."))
    prefix = f"{folder}/" if "/" in incomplete else ""
    try:
        found = sorted(p for p in base.iterdir() if p.name.startswith(begun) and not p.name.startswith("."))
    except OSError:
        return []
    return [f"{prefix}{p.name}{'/' * p.is_dir()}" for p in found if p.is_dir() or p.name.endswith(ending)]
