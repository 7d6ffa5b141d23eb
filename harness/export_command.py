"""Owns the command `attnbench export`: where its files go, and that nothing is written over."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from harness.exits import EXIT_MACHINE, EXIT_STORE, EXIT_USAGE, fail
from reports.dataset import Dataset, RunError, load_run
from reports.flashinfer.schema import LEFT_OUT
from reports.formats import FORMATS, Files, Format
from reports.lines import SkippedLine
from reports.parquet import ParquetMissing


def export(run: Path, names: Sequence[str], out: Path | None) -> None:
    """Write a run in these formats; every typed error becomes its sentence and its exit code."""
    formats = [FORMATS[name] for name in dict.fromkeys(names)]
    try:
        places = _places(formats, out) if out is not None else {}
    except OSError as error:
        fail(f"cannot write {out}: {error.strerror}. Name another path with --out", EXIT_STORE)
    if out is None and (len(formats) > 1 or not formats[0].is_text):
        what = "several formats are" if len(formats) > 1 else f"{formats[0].name} is"
        fail(f"{what} no text for a terminal: name a new path with --out PATH", EXIT_USAGE)
    try:
        dataset = load_run(run)
        made = [(f, f.make(dataset)) for f in formats]
    except RunError as error:
        fail(str(error), EXIT_USAGE)
    except ParquetMissing as error:
        fail(str(error), EXIT_MACHINE)
    except OSError as error:
        fail(f"cannot read {error.filename or run}: {error.strerror}", EXIT_STORE)
    _say_what_is_missing(dataset)
    if out is None:
        sys.stdout.write(made[0][1][""].decode())
        return
    for chosen, files in made:
        place = places[chosen.name]
        try:
            _write_folder(place, files) if chosen.is_folder else _write_file(place, files[""])
        except OSError as error:
            fail(f"cannot write {place}: {error.strerror}. Name another path with --out", EXIT_STORE)
        print(place)
        if LEFT_OUT in files:
            print(f"  what the format has no words for: {place / LEFT_OUT}")


def _places(formats: Sequence[Format], out: Path) -> dict[str, Path]:
    """Format -> its file or folder; refuses what exists already."""
    into = len(formats) > 1 or (out.is_dir() and not formats[0].is_folder)
    if into and out.exists() and not out.is_dir():
        fail(f"{out} is a file; several formats need a folder: name another path with --out", EXIT_USAGE)
    places = {f.name: out / f.default if into else out for f in formats}
    for place in places.values():
        taken = any(place.iterdir()) if place.is_dir() else os.path.lexists(place)
        if taken:
            fail(f"{place} exists and is not written over: remove it, or name another --out", EXIT_USAGE)
    return places


def _write_file(place: Path, content: bytes) -> None:
    """Whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{place.name[:40]}.", dir=place.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, place)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _write_folder(place: Path, files: Files) -> None:
    """Whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{place.name[:40]}.", dir=place.parent))
    try:
        for name, content in files.items():
            file = new / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        new.chmod(0o777 & ~_umask())
        os.replace(new, place)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _say_what_is_missing(dataset: Dataset) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for said in missing(dataset.skipped, len(dataset.left_out)):
        console.print(f"[yellow]left out[/] {escape(said)}")


def missing(skipped: Sequence[SkippedLine], apart: int) -> list[str]:
    """What of a run is in no figure of an export, one sentence each."""
    said = [f"line {s.line} of {s.file}: {s.why}" for s in skipped]
    if apart:
        said.append(f"{apart} results that are not comparable with the rest; `attnbench report` names them")
    return said
