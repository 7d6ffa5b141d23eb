"""Owns writing a run's report: which files there are and where they go."""

from __future__ import annotations

from pathlib import Path

from reports import export, latex, markdown, page, plots
from reports.dataset import Dataset, load_run
from reports.samples import best_of_samples

REPORT_FOLDER = "report"
PLOTS = "plots"


def render(run: Path, out: Path | None = None) -> list[Path]:
    """Write the report of a run and return the files written, the page first.

    `run` is a run's directory, `out` the folder to write to (default: `report/` in the run).
    Writes report.html (self-contained), report.md, report.csv, report.json, table.tex and
    plots/*.svg. The same records give the same bytes. Raises RunError if `run` is no run.
    """
    return write(load_run(run), out or run / REPORT_FOLDER)


def write(dataset: Dataset, out: Path) -> list[Path]:
    """The same of a run that was read."""
    shown = best_of_samples(dataset)
    (out / PLOTS).mkdir(parents=True, exist_ok=True)
    look = plots.looks(shown)
    figures: dict[tuple[str, str], list[str]] = {}
    names: dict[tuple[str, str], list[str]] = {}
    written = []
    for group in shown.groups:
        for panel in plots.panels(shown, *group):
            svg = plots.panel_svg(panel, look)
            name = f"{PLOTS}/{panel.slug}.svg"
            figures.setdefault(group, []).append(svg)
            names.setdefault(group, []).append(name)
            written.append(_write(out / name, svg))
    return [
        _write(out / "report.html", page.html(dataset, figures)),
        _write(out / "report.md", markdown.markdown(dataset, names)),
        _write(out / "report.csv", export.csv_text(dataset)),
        _write(out / "report.json", export.json_text(dataset)),
        _write(out / "table.tex", latex.latex(shown)),
        *written,
    ]


def _write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8", newline="\n")
    return path
