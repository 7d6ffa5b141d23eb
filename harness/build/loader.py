"""Owns turning a candidate's entry file into a callable; runs inside the worker, beside hostile code."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from harness.build.backends import BACKENDS, Backend, DeviceKind

Attention = Callable[..., object]

ENTRY_POINT = "attention"
_LOADED_FROM: set[Path] = set()  # candidates' folders of this process; some are gone since


class BuildError(RuntimeError):
    """A source that does not become a callable; the text holds its traceback where there is one."""


@dataclass(frozen=True)
class Built:
    """A candidate's function, and whether it runs through an interpreter: then it must never be timed."""

    function: Attention
    interpreted: bool


def load(folder: Path, entry: str, backend: str, device: torch.device) -> Built:
    """The `attention` of `entry`, imported as a fresh module; it can import its siblings in `folder`.

    A Triton candidate on a CPU runs in Triton's interpreter. Raises BuildError, with the
    traceback, where the import fails or defines no callable `attention`.
    """
    kind: DeviceKind = "cuda" if device.type == "cuda" else "cpu"
    known = BACKENDS.get(backend)
    if known is None or kind not in known.devices:
        raise BuildError(f"the {backend} backend does not run on {device}")
    _prepare(known, kind)
    return Built(entry_point(folder, entry), known.interpreted(kind))


def entry_point(folder: Path, entry: str) -> Attention:
    """The `attention` of `entry`, wherever it can run; raises BuildError."""
    attention: Attention | None = getattr(_import(folder.resolve(), entry), ENTRY_POINT, None)
    if not callable(attention):
        raise BuildError(f"{entry} defines no function {ENTRY_POINT}(q, k, v, out, *, scale)")
    return attention


def _prepare(backend: Backend, kind: DeviceKind) -> None:
    """Choose Triton's interpreter or compiler, which it does not change once it is imported."""
    if backend.name not in ("triton", "gluon"):
        return
    wanted = "1" if backend.interpreted(kind) else "0"
    found = os.environ.get("TRITON_INTERPRET", "0")
    if "triton" in sys.modules and found != wanted:
        raise BuildError(
            f"Triton is imported already with TRITON_INTERPRET={found}; "
            f"a candidate on {kind} needs a fresh process"
        )
    os.environ["TRITON_INTERPRET"] = wanted


def _import(folder: Path, entry: str) -> ModuleType:
    path = folder / entry
    name = f"attnbench_candidate_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise BuildError(f"{entry} is no Python file of the candidate")
    module = importlib.util.module_from_spec(spec)
    with _siblings(folder):
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException as error:  # a process boundary: foreign code may raise anything, SystemExit too
            del sys.modules[name]
            if isinstance(error, KeyboardInterrupt):
                raise
            text = "".join(traceback.format_exception(error))
            raise BuildError(f"{entry} failed to import:\n{text}") from error
    return module


@contextmanager
def _siblings(folder: Path) -> Iterator[None]:
    """`folder` first on sys.path, and no module of a candidate loaded before with a sibling's name."""
    _LOADED_FROM.add(folder)
    names = {p.stem for p in folder.glob("*.py")} | {p.parent.name for p in folder.glob("*/__init__.py")}
    for name in names:
        loaded = getattr(sys.modules.get(name), "__file__", None)
        if loaded is not None and _is_candidate(Path(loaded)):
            del sys.modules[name]
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))


def _is_candidate(file: Path) -> bool:
    """A module from a candidate's folder, so not one of Python's or of an installed library."""
    return not _LOADED_FROM.isdisjoint(file.parents) or (file.parent / "candidate.toml").is_file()
