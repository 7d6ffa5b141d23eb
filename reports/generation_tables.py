"""Owns what the terminal's summary says of trials of models: one line a method and model, few columns."""

from __future__ import annotations

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from harness.verdicts import Stage
from reports import text
from reports.figures import FAILED_SPEEDUP
from reports.generated import Generated
from reports.generation import Score, overall

_STAGES = (Stage.RAN, Stage.CORRECT, Stage.MEASURED)


def generation_tables(of: Generated) -> list[RenderableType]:
    """The trials and their rates, then each way through LLM-TL against the direct one."""
    if not of.attempts:
        return []
    table = Table(
        title="trials of models",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("method, model", overflow="fold")
    for title in ("trials", *_STAGES, "pass@1", "fast_1.0", "vs best"):
        table.add_column(title, justify="right")
    for s in overall(of.scores):
        table.add_row(of.names[s.maker], *_line(s))
    parts: list[RenderableType] = [table]
    said = [f"vs best: geomean over all samples and cells, failures as {FAILED_SPEEDUP}x"]
    spoilt = sum(s.infra for s in overall(of.scores))
    if spoilt:
        said.append(f"{text.number(spoilt, 'trial')} spoilt by the machine (infra) in no rate")
    if of.unfinished:
        said.append(f"{text.number(of.unfinished, 'trial')} not ended")
    parts += [Text("; ".join(said), "dim"), *_duels(of), Text()]
    return parts


def _line(s: Score) -> list[str]:
    once = s.correct_at[0].value
    counted = s.pace.failures_counted
    return [
        str(s.trials),
        *(str(s.reached[stage]) for stage in _STAGES),
        "n < 1" if once is None else f"{once:.2f}",
        f"{s.pace.fast[1.0]:.2f}" if s.pace.fast else "-",
        text.times(counted.geomean) if counted else "-",
    ]


def _duels(of: Generated) -> list[Text]:
    """'tl, claude over vanilla, claude: best of samples 1.21x (6 cells), ...'"""
    found = []
    for d in of.duels:
        said = [
            f"{v.name} {text.times(v.geomean.geomean)} ({text.number(v.cells, 'cell')})"
            for v in d.variants
            if v.geomean
        ]
        if said:
            found.append(Text(f"{of.names[d.ours]} over {of.names[d.theirs]}: {', '.join(said)}"))
    return found
