"""Owns what the paper on generating attention with LLM-TL claims, and what a run measured of each claim.

QiMeng-Attention, Findings of ACL 2025. The claims are in our own words; where a run cannot speak to one,
it says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from harness.targets import TARGETS
from reports import text
from reports.dataset import Cell, Row
from reports.figures import Speedup, Standing, fastest, geomean, speedup
from reports.generated import Generated
from reports.samples import TL_METHODS

SOURCE = "QiMeng-Attention, Findings of ACL 2025"
CAVEAT = (
    "The paper prints single numbers: no error bars, no success rates, no token costs and no audit of its "
    "kernels' numerics. This report gives all four, so a row sets a bare best case beside a "
    "measured distribution. Its machines, libraries and models are others than this "
    "run's; a difference is no refutation, and an agreement no replication, unless these are the same."
)
FORGOTTEN_RESHAPE = ("TL401", "TL403")
WRONG_TRANSPOSE = ("TL201", "TL204")


@dataclass(frozen=True)
class Answer:
    """What this run says of a claim: a measurement of its `subject`, or why there is none."""

    subject: str = "-"
    measured: str = ""
    why_not: str = ""
    row: Row | None = None  # a record behind it


Answers = tuple[Answer, ...]


@dataclass(frozen=True)
class Claim:
    """One claim of the paper and how a run answers it."""

    slug: str
    says: str
    measure: Callable[[Generated], Answers]


def answers(of: Generated) -> list[tuple[Claim, Answers]]:
    """Every claim with this run's answers, at least one each."""
    return [(claim, claim.measure(of)) for claim in CLAIMS]


def _silent(why: str) -> Answers:
    return (Answer(why_not=why),)


def _over_vanilla(of: Generated) -> Answers:
    if not of.duels:
        return _silent("no model of this run was tried both directly (vanilla) and through LLM-TL")
    found = []
    for d in of.duels:
        said = [
            f"{v.name} up to {text.times(v.highest.estimate.median)}, geomean "
            f"{text.times(v.geomean.geomean)} ({text.number(v.cells, 'cell')})"
            for v in d.variants
            if v.highest and v.geomean
        ]
        who = f"{of.names[d.ours]} over {of.names[d.theirs]}"
        why = "" if said else "no cell with kernels of both, or with a human baseline"
        found.append(Answer(who, "; ".join(said), why, d.best.highest.ours if d.best.highest else None))
    return tuple(found)


def _through_tl(of: Generated, cells: Iterable[Cell]) -> list[tuple[Cell, Row | None]]:
    """Cells in which LLM-TL was tried, with the fastest kernel of all models and methods through it."""
    tried: dict[tuple[str, str, str], list[Row | None]] = {}
    for a in of.attempts:
        if a.maker.method in TL_METHODS and a.counted:
            for o in a.outcomes:
                if not a.correct or o.decided:
                    tried.setdefault(_place(o.cell), []).append(o.row if a.correct else None)
    return [(c, fastest(c, filter(None, tried[_place(c)]))) for c in cells if _place(c) in tried]


def _place(cell: Cell) -> tuple[str, str, str]:
    return cell.target, cell.task, cell.workload.key


LIBRARIES = ("cudnn", "flash-attn")
NO_TL = "no trial through LLM-TL came to an end here"


def _ahead(of: Generated) -> Answers:
    libraries = [b.label for b in of.dataset.baselines if b.label.startswith(LIBRARIES)]
    tried = _through_tl(of, of.dataset.cells)
    if not tried:
        return _silent(NO_TL)
    found = []
    for name in libraries:
        cells = [(c, row) for c, row in tried if (b := c.row(name)) and b.measured]
        if not cells:
            continue
        ratios = _over(cells, name)
        won = sum(s.standing is Standing.FASTER for s in ratios)
        top = max(ratios, key=lambda s: s.estimate.median, default=None)
        said = (
            f"ahead beyond noise in {won} of {text.number(len(cells), 'cell')} (the fastest kernel through "
            "LLM-TL of each cell; a cell without one counts as behind)"
        )
        found.append(Answer(f"over {name}", said, row=top.candidate if top else None))
    return tuple(found) or _silent("neither cuDNN nor flash-attn was measured in this run")


def _over(cells: Iterable[tuple[Cell, Row | None]], baseline: str) -> list[Speedup]:
    found = [speedup(c, row, b) for c, row in cells if row and (b := c.row(baseline))]
    return [s for s in found if s is not None]


def _mla(of: Generated) -> Answers:
    cells = [c for c in of.dataset.cells if c.task.startswith("mla")]
    if not cells:
        return _silent("no MLA task in this run")
    tried = _through_tl(of, cells)
    if not tried:
        return _silent(f"{NO_TL} on MLA")
    if not any((b := c.row("cudnn")) and b.measured for c, _ in tried):
        return _silent("cuDNN was not measured on MLA in this run")
    found = _over(tried, "cudnn")
    if not found:
        return _silent("no kernel through LLM-TL was correct on MLA")
    top = max(found, key=lambda s: s.estimate.median)
    mean = geomean(s.estimate.median for s in found)
    said = (
        f"up to {text.with_interval(top.estimate)}, geomean {text.times(mean)} over {len(found)} of "
        f"{text.number(len(tried), 'cell')} tried"
    )
    return (Answer("over cudnn", said, row=top.candidate),)


def _turing(of: Generated) -> Answers:
    targets = [t for t in of.dataset.targets if t in TARGETS and TARGETS[t].arch == "sm_75"]
    if not targets:
        return _silent(f"this run's target is {', '.join(of.dataset.targets)}, not a Turing GPU")
    return _where_libraries_do_not(of, [c for c in of.dataset.cells if c.target in targets])


def _fp8(of: Generated) -> Answers:
    cells = [c for c in of.dataset.cells if "fp8" in c.workload.dtype or "e4m3" in c.workload.dtype]
    if not cells:
        return _silent("no fp8 workload in this run")
    return _where_libraries_do_not(of, cells)


def _where_libraries_do_not(of: Generated, cells: list[Cell]) -> Answers:
    tried = _through_tl(of, cells)
    if not tried:
        return _silent(NO_TL)
    right = [row for _, row in tried if row]
    silent = [c for c, _ in tried if not any(b.measured for b in c.baselines if _is_library(b))]
    said = (
        f"a measured kernel in {len(right)} of {text.number(len(tried), 'cell')}; neither cuDNN nor "
        f"flash-attn ran in {len(silent)} of them"
    )
    return (Answer("through LLM-TL", said, row=right[0] if right else None),)


def _is_library(row: Row) -> bool:
    return row.contender.startswith(LIBRARIES)


def _sketch(of: Generated) -> Answers:
    without = [p for p in of.programs if p.maker.method == "tl-one-stage"]
    if not without:
        return _silent("no program was written without the sketch stage (method tl-one-stage)")
    codes = f"findings {', '.join(FORGOTTEN_RESHAPE)}; {', '.join(WRONG_TRANSPOSE)}"
    return tuple(
        Answer(
            of.names[p.maker],
            f"Reshape forgotten or wrong {text.number(p.found(FORGOTTEN_RESHAPE), 'time')}, a GEMM whose "
            f"operands do not meet {text.number(p.found(WRONG_TRANSPOSE), 'time')}, in "
            f"{text.number(p.examined, 'program')} or sketches examined ({codes})",
        )
        for p in (*without, *(p for p in of.programs if p.maker.method == "tl"))
    )


def _minutes(of: Generated) -> Answers:
    own = [c for c in of.costs if c.maker.method in TL_METHODS]
    if not own:
        return _silent(NO_TL)
    found = tuple(
        Answer(
            of.names[c.maker],
            f"{text.minutes(c.first_correct_s, c.first_correct_least)} min to the first correct kernel "
            f"(median; {c.correct} of {text.number(c.trials, 'trial')} came to one); the human side is not "
            "measured here",
        )
        for c in own
        if c.first_correct_s is not None
    )
    return found or _silent("no trial through LLM-TL came to a correct kernel")


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "vanilla", "Up to 35.16x over what the same model writes when it is asked directly.", _over_vanilla
    ),
    Claim("libraries", 'Ahead of cuDNN and flash-attn "in most scenarios".', _ahead),
    Claim("mla", "2.15x cuDNN on MLA (as third parties note it).", _mla),
    Claim("turing", "Works on Turing GPUs, where libraries do not.", _turing),
    Claim("fp8", "Works in fp8, where libraries do not.", _fp8),
    Claim(
        "sketch",
        "Without the sketch stage two kinds of failure appear: a forgotten Reshape between two GEMMs, and a "
        "transpose against the operand's layout.",
        _sketch,
    ),
    Claim("minutes", "Minutes of development, where a human expert takes months.", _minutes),
)
