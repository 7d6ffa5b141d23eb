"""Owns how the story of a trial is told on a terminal, from the records alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax
from rich.table import Table

from harness.exits import EXIT_USAGE, fail
from harness.story import Ending, Exchange, Step
from reports.dataset import Dataset, Row

SHOWN = 1500  # characters of a prompt, unless all are asked for


def list_trials(dataset: Dataset, as_json: bool) -> None:
    """Every trial that has ended, one line each."""
    if as_json:
        print(json.dumps([e.model_dump(mode="json") for e in dataset.endings], indent=1))
        return
    if not dataset.endings:
        print(f"{dataset.path} holds no trial of a model that has ended; attnbench eval --model makes some")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("trial", "task", "kernel", "ended", "turns", "tokens", "why"):
        table.add_column(column, overflow="fold")
    for e in dataset.endings:
        ended = "[green]right[/]" if e.verdict is None else f"[red]{e.verdict}[/]"
        tokens = f"{'~' if e.tokens_estimated else ''}{e.tokens_in + e.tokens_out:,}"
        table.add_row(
            e.trial[:8], e.assignment.task, escape(name_of(e)), ended, str(e.turns), tokens, escape(e.reason)
        )
    console = Console(highlight=False)
    console.print(table)
    console.print("attnbench show TRIAL tells the story of one", style="dim")


def name_of(ending: Ending) -> str:
    """What a trial's kernel is called."""
    a = ending.assignment
    return f"{a.method}-{a.model.replace(' -> ', '-')}-{a.sample}"


def tell(dataset: Dataset, name: str, as_json: bool, prompts: bool) -> None:
    """The story of one trial: what was asked and answered, what was said of it, what it measured."""
    ending = _find(dataset, name)
    steps = [s for s in dataset.steps if s.trial == ending.trial]
    rows = [r for r in dataset.rows if r.result.candidate.trial == ending.trial]
    exchanges = {e.id: e for e in dataset.exchanges}
    if as_json:
        story = {
            "ending": ending.model_dump(mode="json"),
            "steps": [s.model_dump(mode="json") for s in steps],
            "exchanges": [
                exchanges[s.exchange].model_dump(mode="json") for s in steps if s.exchange in exchanges
            ],
            "results": [r.result.model_dump(mode="json") for r in rows],
        }
        print(json.dumps(story, indent=1))
        return
    console = Console(highlight=False, soft_wrap=True)
    a = ending.assignment
    console.print(
        f"[bold]{escape(name_of(ending))}[/]  {a.task} on {a.target} in {a.backend}, {escape(a.model)}, "
        f"trial {ending.trial[:12]}"
    )
    for step in steps:
        _tell_step(console, step, exchanges.get(step.exchange), prompts)
    _tell_kernel(console, dataset, ending, rows)
    _tell_end(console, ending, rows)


def _find(dataset: Dataset, name: str) -> Ending:
    task, _, kernel = name.rpartition("/")
    found = [
        e
        for e in dataset.endings
        if e.trial.startswith(name) or (name_of(e) == kernel and task in ("", e.assignment.task))
    ]
    if len(found) == 1:
        return found[0]
    return _unclear(dataset, name, found)


def _unclear(dataset: Dataset, name: str, found: Sequence[Ending]) -> NoReturn:
    if not found:
        fail(
            f"no trial of {dataset.path} is called {name!r}; see: attnbench show --run {dataset.path}",
            EXIT_USAGE,
        )
    which = ", ".join(f"{e.assignment.task}/{name_of(e)}" for e in found[:6])
    fail(f"{name!r} is the name of {len(found)} trials; say which: {which}", EXIT_USAGE)


def _tell_step(console: Console, step: Step, exchange: Exchange | None, prompts: bool) -> None:
    wall = f", {step.wall_s:.1f} s" if step.wall_s else ""
    passed = {True: "[green]passed[/]", False: "[red]not passed[/]", None: ""}[step.passed]
    verdict = f" [red]{step.verdict}[/]" if step.verdict else ""
    console.rule(f"{step.number}  {step.stage}: {step.what.replace('_', ' ')}", align="left", style="dim")
    if exchange is not None:
        _tell_exchange(console, step, exchange, prompts)
    elif step.what == "failed_ask":
        console.print(f"[red]no answer[/]: {escape(step.told)}")
    else:
        console.print(f"{passed}{verdict}{wall}")
        if step.told:
            console.print(escape(step.told))
        for cell, tiles in step.best.items():
            console.print(f"best tiles for {cell}: {tiles}")


def _tell_exchange(console: Console, step: Step, exchange: Exchange, prompts: bool) -> None:
    asked = exchange.messages[-1].content
    if not prompts and len(asked) > SHOWN:
        asked = f"{asked[:SHOWN]}\n[... {len(asked) - SHOWN:,} more characters; --prompts shows them]"
    tokens = (
        "tokens not reported"
        if exchange.tokens_in is None or exchange.tokens_out is None
        else f"{exchange.tokens_in:,} + {exchange.tokens_out:,} tokens"
    )
    latency = "" if exchange.latency_s is None else f", {exchange.latency_s:.1f} s"
    version = f" ({exchange.version})" if exchange.version else ""
    console.print(f"[bold]turn {step.turn}, to {escape(exchange.model)}[/]", escape(asked), sep="\n")
    console.print(
        f"[bold]answer of {escape(exchange.reported_model or exchange.model)}{escape(version)}[/]  "
        f"[dim]{tokens}{latency}, {exchange.stop}[/]"
    )
    console.print(escape(exchange.text))


def _tell_kernel(console: Console, dataset: Dataset, ending: Ending, rows: Sequence[Row]) -> None:
    for name in ending.files:
        path = dataset.path / "artifacts" / ending.candidate / name
        if name.endswith((".tl", ".toml")) or not path.is_file():
            continue
        console.rule(f"the kernel, {name}", align="left", style="dim")
        source = path.read_text(encoding="utf-8", errors="replace")
        if console.is_terminal:
            console.print(Syntax(source, "python", background_color="default"))
        else:
            console.print(escape(source))


def _tell_end(console: Console, ending: Ending, rows: Sequence[Row]) -> None:
    console.rule("the end", align="left", style="dim")
    least = "at least " if ending.latency_unknown else ""
    usd = "no price known" if ending.usd is None else f"{ending.usd:.3f} USD"
    about = "about " if ending.tokens_estimated else ""
    console.print(
        f"{ending.turns} turns, {ending.verifications} verifications, "
        f"{about}{ending.tokens_in:,} + {ending.tokens_out:,} tokens, {usd}, {least}{ending.wall_s:.0f} s"
    )
    if ending.first_correct_s is not None:
        console.print(f"first right kernel after {least}{ending.first_correct_s:.0f} s")
    if ending.best_s is not None and ending.best_s != ending.first_correct_s:
        console.print(f"the kernel that stands after {least}{ending.best_s:.0f} s")
    if ending.verdict is not None:
        console.print(f"[red]{ending.verdict}[/]: {escape(ending.reason)}")
    elif ending.reason:
        console.print(f"it stopped there: {escape(ending.reason)}")
    for row in rows:
        r, m = row.result, row.result.measurement
        told = (
            f"{m.device_time.median_ms:.4f} ms  {m.tflops:.1f} TFLOP/s  "
            f"{m.ratio.median:.3f}x {m.ratio.anchor}"
            if m
            else escape(r.reason)
        )
        console.print(f"{r.workload.key}  {r.verdict}  {told}")
