"""Owns the pages of the site: which there are, and what each is made of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from latex2mathml.converter import convert

from reports import paper, plots, text
from reports.conditions import noise_floor
from reports.dataset import Dataset
from reports.figures import FAILED_SPEEDUP, SAME_MARGIN
from reports.generated import Generated
from reports.report import PLOTS
from reports.samples import best_of_samples
from reports.site.board import Entry, Rank, as_json, entries, rank
from reports.site.code import styles
from reports.site.kernels import Kernel, kernels
from reports.site.tables import legend
from reports.stories import TEXT_LIMIT, anchor
from reports.surroundings import lead, warnings
from tasks.spec import Task

TEMPLATES = Path(__file__).parents[1] / "templates"
SCRIPTS = ("board.js", "page.js")


@dataclass(frozen=True)
class Page:
    """A file of the site, by its path from the root."""

    path: str
    content: str


@dataclass(frozen=True)
class Panels:
    """The plots of one task in one run."""

    run: str
    target: str
    devices: str
    svgs: tuple[str, ...]


@dataclass(frozen=True)
class Site:
    """Everything that pages are made of."""

    title: str
    datasets: tuple[Dataset, ...]
    tasks: Mapping[str, Task]  # those whose files are known here
    reports: Path  # a folder with the report of each run, by its name

    @cached_property
    def entries(self) -> list[Entry]:
        return [e for d in self.datasets for e in entries(d)]

    @cached_property
    def kernels(self) -> list[Kernel]:
        return kernels(self.datasets)

    @cached_property
    def task_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(e.task for e in self.entries))

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """The one with the most measured entries first."""
        found = dict.fromkeys(e.target for e in self.entries)
        count = {t: sum(e.speedup is not None for e in self.entries if e.target == t) for t in found}
        return tuple(sorted(found, key=lambda t: -count[t]))

    def ranks(self, target: str, task: str) -> list[Rank]:
        return rank([e for e in self.entries if (e.target, e.task) == (target, task)])

    def panels(self, task: str) -> Iterator[Panels]:
        """Of each run, a panel a family of shapes."""
        for dataset in map(best_of_samples, self.datasets):
            folder = self.reports / dataset.name / PLOTS
            for target in (t for t, name in dataset.groups if name == task):
                drawn = [folder / f"{p.slug}.svg" for p in plots.panels(dataset, target, task)]
                svgs = [_own(path.read_text(encoding="utf-8"), dataset.name) for path in drawn]
                yield Panels(dataset.name, target, ", ".join(dataset.devices), tuple(svgs))


def _own(svg: str, run: str) -> str:
    """Ids are unique within a run; several runs stand in one page."""
    prefix = "".join(c if c.isalnum() else "-" for c in run)
    svg = svg.replace('id="', f'id="{prefix}-').replace('href="#', f'href="#{prefix}-')
    return plots.for_page(svg.replace("url(#", f"url(#{prefix}-"))


def pages(site: Site) -> Iterator[Page]:
    """All pages and what they load; reports of runs and downloads are not among them."""
    environment = Environment(
        loader=FileSystemLoader([TEMPLATES / "site", TEMPLATES]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals |= {"site": site, "text": text, "failed_speedup": FAILED_SPEEDUP}
    environment.globals |= {
        "legend": legend,
        "task_path": task_path,
        "story_anchor": anchor,
        "text_limit": TEXT_LIMIT,
        "same_margin": SAME_MARGIN,
    }

    def page(path: str, template: str, **told: Any) -> Page:
        root = "../" * path.count("/")
        return Page(path, environment.get_template(template).render(root=root, path=path, **told))

    first = site.targets[0] if site.targets else ""
    task = max(site.task_names, key=lambda t: len(site.ranks(first, t)), default="")
    yield page("index.html", "index.html.j2", target=first, task=task, ranks=site.ranks(first, task))
    for name in site.task_names:
        ranked = [(t, site.ranks(t, name)) for t in site.targets]
        ranked = [(t, found) for t, found in ranked if found]
        panels = list(site.panels(name))
        known = site.tasks.get(name)
        math = mathml(known.math) if known else ""
        told = {"name": name, "task": known, "math": math, "ranked": ranked, "panels": panels}
        yield page(task_path(name), "task.html.j2", **told)
    for kernel in site.kernels:
        yield page(f"kernels/{kernel.slug}.html", "kernel.html.j2", kernel=kernel)
        yield Page(f"kernels/{kernel.slug}.json", _records(site, kernel))
    runs = [(d, lead(d), warnings(d), noise_floor(d)) for d in site.datasets]
    yield page("runs/index.html", "runs.html.j2", runs=runs)
    claims = [(c.slug, c.says, _answers(site, c)) for c in paper.CLAIMS]
    yield page("paper.html", "paper.html.j2", claims=claims, source=paper.SOURCE, caveat=paper.CAVEAT)
    yield page("method.html", "method.html.j2")
    yield Page("assets/site.css", _style())
    for script in SCRIPTS:
        yield Page(f"assets/{script}", (TEMPLATES / "site" / script).read_text(encoding="utf-8"))
    board = json.dumps(as_json(site.entries), separators=(",", ":"))
    yield Page("data/board.json", board + "\n")
    yield Page("data/board.js", f"window.BOARD = {board};\n")


def task_path(name: str) -> str:
    """Of a task's page, from the site's root; a name that is no file name gets one."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", name)
    return f"tasks/{plain}.html"


def mathml(latex: str) -> str:
    """A formula as a browser draws it; "" where it cannot be converted."""
    try:
        return str(convert(latex, display="block"))
    except Exception:  # a converter of a whole language: a page without the drawing is better than none
        return ""


def _answers(site: Site, claim: paper.Claim) -> list[tuple[Dataset, paper.Answers]]:
    """What each run says of a claim; those that measured something first."""
    found = [(d, claim.measure(Generated(d))) for d in site.datasets]
    return sorted(found, key=lambda pair: not any(a.measured for a in pair[1]))


def _records(site: Site, kernel: Kernel) -> str:
    records = [
        {"run": d.name, "line": row.line, "result": row.result.model_dump(mode="json")}
        for d in site.datasets
        for row in d.rows
        if row.result.candidate.sha256 == kernel.sha256
    ]
    return json.dumps({"kernel": kernel.sha256, "records": records}, indent=1) + "\n"


def _style() -> str:
    names: Sequence[str] = ("report.css", "stories.css", "site/site.css")
    return "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in names) + styles()
