"""Owns the Markdown report: the sections as pipe tables, every line with its records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tabulate import tabulate

from reports import surroundings, text
from reports.dataset import Dataset, Row
from reports.sections import Entry, Section, Table

RECORDS = "record"
LINES = "lines of results.jsonl"


def markdown(dataset: Dataset, plots: Mapping[tuple[str, str], Iterable[str]] | None = None) -> str:
    """The report as Markdown; `plots` gives relative paths of figures by (target, task)."""
    parts = [f"# attnbench: {dataset.name}", surroundings.lead(dataset)]
    parts += [f"> **Note:** {warning}" for warning in surroundings.warnings(dataset)]
    for section in surroundings.all_sections(dataset):
        parts += section_parts(section, plots or {})
    parts += ["## Records", _records(dataset)]
    return "\n\n".join(parts) + "\n"


def section_parts(section: Section, plots: Mapping[tuple[str, str], Iterable[str]]) -> list[str]:
    """A section as Markdown paragraphs."""
    parts = [f"## {section.title}", *section.lead, *section.paragraphs]
    for table in section.tables:
        parts += [f"### {table.caption}"] if table.caption else []
        parts.append(_table(table))
    if section.plots_of is not None:
        parts += [f"![{path}]({path})" for path in plots.get(section.plots_of, ())]
    if section.verbatim:
        parts.append(f"```toml\n{section.verbatim}\n```")
    return parts


def _table(table: Table) -> str:
    """A pipe table; a last column names the records of a line where its entries have any."""
    records = [_record_column(line) for line in table.lines]
    traced = any(records)
    several = any("," in r for r in records)
    headers = [c.title for c in table.columns] + ([LINES if several else RECORDS] if traced else [])
    rows = []
    for line in table.lines:
        if isinstance(line, str):
            row = [f"**{_escape(line)}**"] + [""] * (len(table.columns) - 1)
        else:
            row = [_entry(e) for e in line]
        rows.append(row + ([_refs(line, several)] if traced else []))
    align = ["right" if c.numeric else "left" for c in table.columns] + (["left"] if traced else [])
    titles = [_escape(h) for h in headers]
    return tabulate(rows, titles, tablefmt="pipe", colalign=align, disable_numparse=True)


def _rows_of(line: tuple[Entry, ...] | str) -> list[Row]:
    if isinstance(line, str):
        return []
    return list({e.row.line: e.row for e in line if e.row is not None}.values())


def _record_column(line: tuple[Entry, ...] | str) -> str:
    return ", ".join(str(r.line) for r in _rows_of(line))


def _refs(line: tuple[Entry, ...] | str, several: bool) -> str:
    rows = _rows_of(line)
    return _record_column(line) if several else "".join(r.reference for r in rows)


def _entry(entry: Entry) -> str:
    said = _escape(entry.text)
    return f"**{said}**" if entry.style == "best" else said


def _escape(said: str) -> str:
    return " ".join(said.split()).replace("|", "\\|")


def _records(dataset: Dataset) -> str:
    headers = ["record", "contender", "task", "workload", "verdict", "device time", "timed by"]
    rows = []
    for row in sorted(dataset.rows, key=lambda r: r.line):
        r = row.result
        m = r.measurement
        rows.append(
            [
                row.reference,
                row.contender,
                dataset.group_title(r.target, r.task),
                r.workload.key,
                r.verdict.value,
                text.milliseconds(m.device_time.median_ms) if m else "not measured",
                text.described(r) or "-",
            ]
        )
    note = "`id:line` is the first eight digits of the record's id and its line in results.jsonl."
    return note + "\n\n" + tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)
