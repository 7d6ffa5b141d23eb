"""Owns the sections about the run itself: noise, environment, telemetry, time spent, lines not read."""

from __future__ import annotations

from reports import alike, sections, text
from reports.conditions import Clocks, money_spent, noise_floor, stopping, telemetry, time_spent
from reports.dataset import Dataset
from reports.generated import Generated
from reports.generation import unfinished
from reports.generation_sections import generation_sections
from reports.kernel_sections import kernels_section
from reports.samples import best_of_samples, by_maker, makers
from reports.schedule_section import schedules_section
from reports.sections import Column, Entry, Section, Table

NOISY = 0.02  # a noise floor that a reader must know of before any figure


def all_sections(dataset: Dataset) -> list[Section]:
    """The whole report in reading order."""
    best, counts = best_of_samples(dataset), by_maker(dataset)
    return [
        sections.headline_section(best),
        *(sections.comparison_section(best, *group) for group in best.groups),
        *generation_sections(Generated(dataset)),
        sections.funnel_section(counts),
        sections.failures_section(dataset),
        sections.skips_section(dataset),
        sections.speedup_section(dataset),
        *filter(None, [kernels_section(dataset), schedules_section(dataset)]),
        noise_section(dataset),
        telemetry_section(counts),
        time_section(dataset),
        environment_section(dataset),
        experiment_section(dataset),
        *filter(None, [left_out_section(dataset)]),
        reading_section(dataset),
    ]


def lead(dataset: Dataset) -> str:
    """What was run, in one sentence."""
    tasks = ", ".join(dict.fromkeys(task for _, task in dataset.groups)) or "no task"
    when = sorted(r.result.recorded_at for r in dataset.rows)
    span = "" if not when else f", recorded {when[0]}" + (f" to {when[-1]}" if when[-1] != when[0] else "")
    protocols = ", ".join(dict.fromkeys(r.result.identity.protocol for r in dataset.rows))
    versions = ", ".join(dict.fromkeys(r.result.identity.harness for r in dataset.rows))
    trials = ""
    if dataset.endings:
        methods = ", ".join(dict.fromkeys(m.method for m in makers(dataset)))
        models = ", ".join(dict.fromkeys(m.model for m in makers(dataset)))
        trials = f" {text.number(len(dataset.endings), 'trial')} of {models} ({methods});"
    return (
        f"{', '.join(dataset.devices) or 'no device'} (target {', '.join(dataset.targets) or 'unknown'}): "
        f"{text.number(len(dataset.candidates), 'candidate')} and "
        f"{text.number(len(dataset.baselines), 'human baseline')} on "
        f"{text.number(len(dataset.cells), 'workload')} of {tasks};{trials} "
        f"{text.number(len(dataset.rows), 'result')}{span}; "
        f"attnbench {versions or 'unknown'}, protocol {protocols or 'unknown'}."
    )


def warnings(dataset: Dataset) -> list[str]:
    """What a reader must know before any figure."""
    found = []
    if dataset.skipped:
        found.append(f"{len(dataset.skipped)} lines of this run could not be read; see the end.")
    open_runs = [r for r in dataset.rows if not r.is_baseline and r.has_run and not r.result.sandboxed]
    if open_runs:
        taken = "was" if len(open_runs) == 1 else "were"
        found.append(f"{text.number(len(open_runs), 'candidate result')} {taken} taken without a sandbox.")
    found += [
        f"{text.number(len(lines), 'result')} {'is' if len(lines) == 1 else 'are'} left out of every figure: "
        f"{why}."
        for why, lines in _reasons(dataset).items()
    ]
    noise = noise_floor(dataset)
    if noise and noise[-1].median_deviation > NOISY:
        middle, worst = (text.percent(x, 1) for x in (noise[-1].median_deviation, noise[-1].worst_deviation))
        found.append(
            f"This machine was noisy: a second copy of the anchor was {middle} off the first at the median, "
            f"{worst} at worst. What is smaller than that is no difference."
        )
    used = {r.result.environment for r in dataset.rows}
    spanned = len(used)
    if spanned > 1:
        found.append(
            f"The run spans {spanned} environments that agree in what can change a figure; of speedups "
            "across them only those over a candidate's own anchor are paired."
        )
        found += alike.told(e.sources for name, e in dataset.environments.items() if name in used)
    waiting = unfinished(dataset)
    if waiting:
        found.append(
            f"{text.number(waiting, 'trial')} of models began and did not end. Resume the run for them."
        )
    interrupted = sum(s.interrupted for s in dataset.summaries)
    if interrupted and dataset.summaries[-1].interrupted:
        found.append("The last invocation was interrupted: this run may be incomplete. Resume it to finish.")
    return found


def noise_section(dataset: Dataset) -> Section:
    found = noise_floor(dataset)
    if not found:
        return Section("noise", "Noise floor", ("No duplicate baseline was timed in this run.",))
    columns = (
        Column("task"),
        Column("sessions", True),
        Column("within 0.2 %", True),
        Column("within 0.5 %", True),
        Column("median deviation", True),
        Column("worst", True),
    )
    lines = tuple(
        (
            Entry(n.scope),
            Entry(str(n.sessions)),
            Entry(text.share(n.within_02)),
            Entry(text.share(n.within_05)),
            Entry(text.percent(n.median_deviation)),
            Entry(text.percent(n.worst_deviation), n.worst),
        )
        for n in found
    )
    note = (
        "In every session the anchor baseline is timed beside a duplicate of itself; their ratio should be "
        "1. Its distance from 1 is what the machine adds: differences smaller than that mean nothing."
    )
    return Section("noise", "Noise floor", (note,), (), (Table(columns, lines),))


def telemetry_section(dataset: Dataset) -> Section:
    found = telemetry(dataset)
    stops = ", ".join(f"{name.replace('_', ' ')}: {n}" for name, n in sorted(stopping(dataset).items()))
    notes = [f"Why sampling ended, measured results: {stops}."] if stops else []
    if not found:
        return Section("telemetry", "Telemetry", (*notes, "No block of this run carries telemetry."))
    columns = (
        Column("contender"),
        Column("blocks", True),
        Column("SM clock, MHz", True),
        Column("power, W", True),
        Column("temperature, C", True),
        Column("blocks throttled", True),
        Column("reasons"),
    )
    notes.append("Lowest / median / highest over the timed blocks of all sessions of a contender.")
    return Section(
        "telemetry", "Telemetry", tuple(notes), (), (Table(columns, tuple(_clock_line(c) for c in found)),)
    )


def _clock_line(c: Clocks) -> tuple[Entry, ...]:
    return (
        Entry(c.contender, c.row),
        Entry(str(c.blocks)),
        _spread(c.sm_mhz),
        _spread(c.power_w),
        _spread(c.temperature_c),
        Entry(text.share(c.throttled)),
        Entry(", ".join(c.reasons) or "none"),
    )


def _spread(values: tuple[float, float, float] | None) -> Entry:
    if values is None:
        return Entry("not reported", style="muted")
    return Entry(" / ".join(f"{v:.0f}" for v in values))


def time_section(dataset: Dataset) -> Section:
    spent = time_spent(dataset)
    tables = []
    notes: tuple[str, ...] = ("The run has no summary.jsonl: where its time went is not known.",)
    if spent is not None:
        notes = (
            f"{text.seconds(spent.wall_s)} of wall time in {spent.invocations} invocations "
            f"({spent.interrupted} interrupted); the device verified or timed for "
            f"{text.seconds(spent.gpu_work_s)}, {text.share(spent.gpu_share)} of it.",
        )
        lines = tuple(
            (Entry(name), Entry(text.seconds(s)), Entry(text.share(s / spent.wall_s if spent.wall_s else 0)))
            for name, s in spent.stages_s.items()
        )
        tables.append(Table((Column("stage"), Column("wall time", True), Column("share", True)), lines))
    money = money_spent(dataset)
    if money:
        columns = (
            Column("candidate"),
            Column("tokens in", True),
            Column("tokens out", True),
            Column("USD", True),
        )
        costs = tuple(
            (Entry(m.contender), Entry(f"{m.tokens_in:,}"), Entry(f"{m.tokens_out:,}"), Entry(f"{m.usd:.2f}"))
            for m in money
        )
        tables.append(Table(columns, costs, "Generation"))
    return Section("time", "Where the time went", notes, (), tuple(tables))


def environment_section(dataset: Dataset) -> Section:
    tables = []
    for digest, e in dataset.environments.items():
        facts = {
            "device": e.device,
            "target": e.target,
            "driver": e.driver,
            "CUDA": e.cuda,
            "attnbench": e.harness,
            "harness sources": e.sources,
            "Python": e.python,
            "platform": e.platform,
            "CPU": e.cpu,
            "cores": str(e.cores) if e.cores else "",
            "sandbox": e.sandbox,
            **e.libraries,
            **e.gpu,
        }
        lines = tuple((Entry(name), Entry(value)) for name, value in facts.items() if value)
        tables.append(
            Table(
                (Column("what"), Column("as found")),
                lines,
                f"Environment {digest[:8]}{_unused(dataset, digest)}",
            )
        )
    families = {c.label: c.family for c in dataset.baselines if c.family}
    if families:
        columns = (Column("baseline"), Column("library and version"))
        tables.append(Table(columns, tuple((Entry(n), Entry(f)) for n, f in families.items()), "Baselines"))
    notes = () if dataset.environments else ("The run has no environment.json: the machine is not known.",)
    return Section("environment", "Environment", notes, (), tuple(tables))


def _unused(dataset: Dataset, digest: str) -> str:
    """Whose results are all left out."""
    left = any(r.result.environment == digest for r in dataset.left_out)
    kept = any(r.result.environment == digest for r in dataset.rows)
    return ", of results that are left out" if left and not kept else ""


def experiment_section(dataset: Dataset) -> Section:
    notes = () if dataset.experiment else ("The run has no experiment.toml.",)
    return Section("experiment", "Experiment", notes, verbatim=dataset.experiment.rstrip())


def _reasons(dataset: Dataset) -> dict[str, list[int]]:
    """Why results are left out -> their lines."""
    found: dict[str, list[int]] = {}
    for left in dataset.left_out:
        found.setdefault(left.why, []).append(left.line)
    return found


def left_out_section(dataset: Dataset) -> Section | None:
    """What no figure is made of; none where nothing is left out."""
    if not dataset.left_out:
        return None
    note = (
        "Results stand in one figure only if they were recorded on the same device, with the same driver, "
        "libraries, protocol, harness and version of the task. These were not, and are in no figure and no "
        "table of this report. Measure them again with the rest to have them in."
    )
    columns = (Column("results", True), Column("why"), Column("lines of results.jsonl"))
    lines = tuple(
        (Entry(str(len(numbers))), Entry(why), Entry(text.ranges(numbers)))
        for why, numbers in _reasons(dataset).items()
    )
    return Section("left-out", "Left out: not comparable", (note,), (), (Table(columns, lines),))


def reading_section(dataset: Dataset) -> Section:
    if not dataset.skipped:
        return Section("unread", "Lines that could not be read", ("None.",))
    columns = (Column("file"), Column("line", True), Column("why"))
    lines = tuple((Entry(s.file), Entry(str(s.line)), Entry(s.why)) for s in dataset.skipped)
    return Section("unread", "Lines that could not be read", (), (), (Table(columns, lines),))
