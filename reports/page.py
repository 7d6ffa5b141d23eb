"""Owns the HTML report: one self-contained file, every figure a link to the details of its record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.records import Check
from reports import stories, surroundings, text
from reports.dataset import Contender, Dataset, Row
from reports.figures import FAILED_SPEEDUP, headlines
from reports.generated import Generated
from reports.plots import for_page
from reports.samples import best_of_samples
from reports.sections import headline_sentence

TEMPLATES = Path(__file__).parent / "templates"
# A kernel's source is shown whole up to here; past it the page names the artifact only (characters).
SOURCE_LIMIT = 60_000


@dataclass(frozen=True)
class Card:
    """One candidate's result in large type."""

    name: str
    figure: str
    sentence: str


@dataclass(frozen=True)
class Detail:
    """What the page says of one record."""

    row: Row
    anchor: str
    timed: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Source:
    """The files of one candidate."""

    contender: Contender
    sha256: str
    files: tuple[tuple[str, str], ...]  # name, text


def html(dataset: Dataset, plots: Mapping[tuple[str, str], Sequence[str]]) -> str:
    """The report as one HTML file; `plots` gives SVG text by (target, task)."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    told = stories.stories(Generated(dataset))
    styles = ["report.css", *(["stories.css"] if told else [])]
    return environment.get_template("report.html.j2").render(
        dataset=dataset,
        style="".join((TEMPLATES / name).read_text(encoding="utf-8") for name in styles),
        lead=surroundings.lead(dataset),
        warnings=surroundings.warnings(dataset),
        cards=cards(best_of_samples(dataset)),
        sections=surroundings.all_sections(dataset),
        plots={group: [for_page(svg) for svg in svgs] for group, svgs in plots.items()},
        details=[detail(row) for row in sorted(dataset.rows, key=lambda r: r.line)],
        sources=sources(dataset),
        anchor=anchor,
        stories=told,
        told={story.trial for story in told},
        story_anchor=stories.anchor,
        text_limit=stories.TEXT_LIMIT,
    )


def anchor(row: Row) -> str:
    """The fragment of a record's details."""
    return f"r{row.line}"


def cards(dataset: Dataset) -> list[Card]:
    """The overall headline of each candidate."""
    found = []
    for h in headlines(dataset):
        if len(dataset.groups) > 1 and h.scope != "overall":
            continue
        if h.geomean is None:
            found.append(Card(h.candidate, "not measured", headline_sentence(h)))
            continue
        counted = text.times(h.geomean_failures_counted or 0.0)
        found.append(
            Card(
                h.candidate,
                f"{h.geomean.median:.2f}\u00d7",
                f"the best human baseline, geomean of {h.measured}/{h.cells} cells measured. "
                f"{counted} with failed cells as {FAILED_SPEEDUP}x. Faster in {h.faster}/{h.cells}.",
            )
        )
    return found


def detail(row: Row) -> Detail:
    """The facts of one record, in words and units."""
    r, m, v = row.result, row.result.measurement, row.result.verification
    facts: list[tuple[str, str]] = [
        ("record", r.id),
        ("source of this page", f"results.jsonl, line {row.line}"),
        ("candidate", f"{r.candidate.name}, sha256 {r.candidate.sha256}"),
        ("environment", r.environment),
        ("device", r.device),
        ("sandboxed", "yes" if r.sandboxed else "no"),
        ("recorded", r.recorded_at),
    ]
    if r.reason:
        facts.insert(0, ("reason", r.reason))
    if r.candidate.trial:
        maker = f"{r.candidate.method}, {r.candidate.model}, sample {r.candidate.sample}"
        facts.append(("made by", f"{maker}, trial {r.candidate.trial}"))
    if m is not None:
        d, ratio = m.device_time, m.ratio
        facts += [
            (
                "device time",
                f"{text.milliseconds(d.median_ms)} (p10 {text.milliseconds(d.p10_ms)}, "
                f"p90 {text.milliseconds(d.p90_ms)}, {d.samples} samples)",
            ),
            (
                f"speedup over {ratio.anchor} (anchor)",
                f"{ratio.median:.4f} [{ratio.low:.4f}, {ratio.high:.4f}], {ratio.pairs} pairs, "
                f"stopped: {ratio.stopped.replace('_', ' ')}",
            ),
        ]
        if m.noise:
            facts.append(
                ("duplicate anchor", f"{m.noise.median:.4f} [{m.noise.low:.4f}, {m.noise.high:.4f}]")
            )
        if m.call_latency:
            facts.append(("call latency", text.milliseconds(m.call_latency.median_ms)))
        if m.floor_ms is not None:
            facts.append(("floor of the target", text.milliseconds(m.floor_ms)))
        if m.percent_of_peak is not None:
            facts.append(("of dense peak", f"{m.percent_of_peak:.1f} %"))
        if m.percent_of_bandwidth is not None:
            facts.append(("of bandwidth", f"{m.percent_of_bandwidth:.1f} %"))
        facts.append(("clock", text.described(r)))
        for k in m.kernels:
            facts.append(("device kernel", f"{k.name}, {k.calls} calls, {text.milliseconds(k.time_ms)}"))
    if v is not None:
        facts += [(f"check, {c.recipe} on {c.workload}", _check(c)) for c in v.checks]
        facts += [("detector", name) for name in v.detectors]
    wall = {name: round(s, 2) for name, s in r.cost.wall_s.items()}
    if wall:
        facts.append(("wall time, s", json.dumps(wall).strip("{}").replace('"', "")))
    timed = f"{text.rate(m.tflops, r.target)} {text.unit(r.target)}" if m else "not measured"
    return Detail(row, anchor(row), timed, tuple(facts))


def _check(c: Check) -> str:
    said = "passed" if c.passed else "FAILED"
    note = f"; {c.note}" if c.note else ""
    return (
        f"{said}: max error {c.error_max:.3g} of {c.error_allowed:.3g} allowed, "
        f"worst tile {c.tile_error:.3g} of {c.tile_error_allowed:.3g}, seed {c.seed}{note}"
    )


def sources(dataset: Dataset) -> list[Source]:
    """Source files of every candidate that kept them in artifacts/, in order of appearance."""
    kinds = {c.label: c for c in dataset.candidates}
    found: dict[str, Source] = {}
    for row in dataset.rows:
        candidate = row.result.candidate
        if row.is_baseline or candidate.sha256 in found:
            continue
        files = []
        for name in candidate.files:
            path = dataset.artifact(row, name)
            if path is not None:
                files.append((name, _source_text(path)))
        if files:
            found[candidate.sha256] = Source(kinds[row.contender], candidate.sha256, tuple(files))
    return list(found.values())


def _source_text(path: Path) -> str:
    source = path.read_text(encoding="utf-8", errors="replace")
    if len(source) > SOURCE_LIMIT:
        return source[:SOURCE_LIMIT] + f"\n... cut here; {len(source)} characters in artifacts/"
    return source
