"""Owns writing the site: all of it or nothing, beside what stood there."""

from __future__ import annotations

import csv
import io
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from reports.dataset import ARTIFACTS, ENVIRONMENTS, EXPERIMENT, RESULTS, SUMMARIES, Dataset, load_run
from reports.report import write
from reports.site.board import csv_lines
from reports.site.pages import Site, pages
from reports.trials import TRANSCRIPTS, TRIALS
from tasks.spec import Task

MARKER = ".attnbench-site"  # in a folder that this module wrote: it may be replaced
RAW = (RESULTS, SUMMARIES, ENVIRONMENTS, EXPERIMENT, TRIALS, TRANSCRIPTS)
TITLE = "attnbench"

Tell = Callable[[str, int, int], None]  # what is done now, how much is done, of how much


class SiteError(ValueError):
    """A site that cannot be written; the text says why and what to do."""


def publish(
    runs: Sequence[Path],
    out: Path,
    tasks: Mapping[str, Task],
    title: str = TITLE,
    tell: Tell = lambda *_: None,
) -> Path:
    """Write the site of these runs to `out` and return its front page.

    A site that stands there is replaced once the new one is whole. Raises RunError where one of `runs` is
    no run, SiteError where two have one name, or where `out` is a folder of something else.
    """
    _require_own(out)
    steps = len(runs) * 2 + 1
    datasets = []
    for n, run in enumerate(runs):
        tell(f"reading {run.name}", n, steps)
        datasets.append(load_run(run))
    _require_names(datasets)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            fresh = Path(scratch) / "site"
            fresh.mkdir()
            fresh.chmod(0o755)
            for n, dataset in enumerate(datasets):
                tell(f"report of {dataset.name}", len(runs) + n, steps)
                write(dataset, fresh / "runs" / dataset.name)
                _copy_records(dataset, fresh)
            tell("pages", steps - 1, steps)
            _write_pages(Site(title, tuple(datasets), tasks, fresh / "runs"), fresh)
            (fresh / MARKER).write_text("Written by attnbench publish; replaced by the next.\n")
            if out.exists():
                out.rename(Path(scratch) / "before")
            fresh.rename(out)
    except OSError as error:
        raise SiteError(
            f"cannot write {out}: {error.strerror or error}. What stood there is as it was."
        ) from error
    tell("done", steps, steps)
    return out / "index.html"


def _require_own(out: Path) -> None:
    if out.exists() and not (out / MARKER).exists() and (not out.is_dir() or any(out.iterdir())):
        raise SiteError(f"{out} is no site of attnbench and would be replaced; give another --out")


def _require_names(datasets: Sequence[Dataset]) -> None:
    seen: dict[str, Path] = {}
    for dataset in datasets:
        if dataset.name in seen:
            raise SiteError(
                f"{seen[dataset.name]} and {dataset.path} are both called {dataset.name}, and a site names "
                "runs by their folders; rename one, or give each once"
            )
        seen[dataset.name] = dataset.path


def _copy_records(dataset: Dataset, site: Path) -> None:
    """What the run recorded, as it is, and the sources of its kernels."""
    for name in RAW:
        if (dataset.path / name).is_file():
            shutil.copyfile(dataset.path / name, site / "runs" / dataset.name / name)
    for row in dataset.rows:
        candidate = row.result.candidate
        for name in candidate.files:
            source = dataset.artifact(row, name)
            if source is not None:
                kept = site / ARTIFACTS / candidate.sha256 / name
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, kept)


def _write_pages(site: Site, folder: Path) -> None:
    for page in pages(site):
        path = folder / page.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page.content, encoding="utf-8", newline="\n")
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(csv_lines(site.entries))
    (folder / "data" / "board.csv").write_text(stream.getvalue(), encoding="utf-8", newline="\n")
