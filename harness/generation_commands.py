"""Owns what `attnbench generate`, `answers` and `show` do, and the making of kernels inside `eval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from harness.assignments import Commission, Commissions, commissions, not_run
from harness.bench import Bench
from harness.exits import EXIT_PENDING, EXIT_USAGE, fail
from harness.experiment import Ended, Experiment, ExperimentError, Plan, located
from harness.generate.method import Ask
from harness.generation import Generation, Made, exchange_of
from harness.llm.budget import Caps, require_prices
from harness.llm.client import Client, ProviderError, Request
from harness.llm.deferred import AnswersError, read_answers, read_pending, write_pending
from harness.llm.prices import Prices, PricesError
from harness.llm.providers import ModelError, key_variables, make_client
from harness.llm.replay import TranscriptError, read_exchanges
from harness.programs import program_candidates
from harness.store import Store
from harness.story import Ending, Exchange
from harness.storybook import Storybook
from harness.worker.process import ENVIRONMENT_ALLOWED
from harness.workshop import Workshop
from tasks.spec import Task

PENDING = "pending.jsonl"
MODEL_ERRORS = (ModelError, PricesError, TranscriptError, AnswersError, ProviderError)


class Unfinished(Exception):
    """Some trials wait for answers, or for a device; what was made so far is kept."""

    def __init__(self, made: Made) -> None:
        super().__init__(f"{len(made.pending)} answers, {len(made.waiting)} trials for a device")
        self.made = made


@dataclass(frozen=True)
class Prepared:
    """What making kernels needs besides a run's directory; made before that is touched."""

    wanted: Commissions
    clients: Mapping[str, Client]
    prices: Prices
    source: str  # the experiment's file: paths may be relative to it


def prepare(experiment: Experiment, known: Mapping[str, Task], source: str) -> Prepared:
    """The trials and their clients; raises a typed error for wrong models, prices, keys or transcripts.

    A missing key or SDK is told when it is asked first: a run that has all its answers needs neither.
    """
    wanted = commissions(experiment, known)
    specs = {str(m): m for c in wanted.trials for m in c.models}
    prices = Prices.read(located(experiment.prices, source) if experiment.prices else None)
    for caps in (Caps(usd=experiment.budget.usd), Caps(usd=experiment.run_budget.usd)):
        require_prices([m.model for m in specs.values()], caps, prices)
    if seen := key_variables(experiment.providers) & set(ENVIRONMENT_ALLOWED):
        raise ModelError(f"key_env: a kernel's process sees {min(seen)}; put the key into another variable")
    recorded: list[Exchange] = []
    if any(m.provider == "replay" for m in specs.values()):
        recorded = _recorded(experiment, source)
    clients = {
        name: make_client(spec, experiment.asking, experiment.providers, recorded)
        for name, spec in specs.items()
    }
    return Prepared(_answerable(experiment, wanted, recorded), clients, prices, source)


def _recorded(experiment: Experiment, source: str) -> list[Exchange]:
    if not experiment.transcripts:
        raise ExperimentError("a `replay:` model needs `transcripts`: files or folders with recorded answers")
    return [e for name in experiment.transcripts for e in read_exchanges(located(name, source))]


def _answerable(experiment: Experiment, wanted: Commissions, recorded: Sequence[Exchange]) -> Commissions:
    """Without the replayed trials whose first question has no recorded answer: those are not run."""
    keys = {e.id for e in recorded}
    kept: list[Commission] = []
    missing: list[Commission] = []
    for c in wanted.trials:
        first = next(c.method.tell(c.brief))
        assert isinstance(first, Ask)
        request = Request(c.models[0].model, first.messages, experiment.asking.sampling, c.assignment.sample)
        known = c.models[0].provider != "replay" or request.key in keys
        (kept if known else missing).append(c)
    if not missing:
        return wanted
    methods = ", ".join(dict.fromkeys(c.method.name for c in missing))
    tasks = ", ".join(dict.fromkeys(c.assignment.task for c in missing))
    what = f"{len(missing)} trials ({methods} on {tasks})"
    line = not_run(experiment, what, "no answers to them are recorded")
    return Commissions(tuple(kept), (*wanted.not_run, line))


def make_kernels(
    experiment: Experiment,
    plan: Plan,
    known: Mapping[str, Task],
    prepared: Prepared,
    store: Store,
    bench: Bench | None,
    console: Console,
    partial: bool = False,
) -> Plan:
    """The plan with the kernels that models and compilers made.

    Raises Unfinished where some have to wait, unless `partial`: then those that have ended go on alone.
    """
    programs, refused = (
        program_candidates(experiment, known, store, prepared.source) if bench is not None else ([], [])
    )
    wanted = prepared.wanted
    for line in (*refused, *wanted.not_run):
        console.print(f"[yellow]{escape(line)}[/]", soft_wrap=True)
    if not wanted.trials:
        return replace(plan, candidates=(*plan.candidates, *programs))
    workshop = Workshop(store, bench)
    book = Storybook(store.path)
    try:
        if book.dropped:
            console.print("[yellow]a torn last line of the stories is done again[/]")
        teller = Teller(console)
        made = Generation(experiment, book, workshop, prepared.clients, prepared.prices, teller).run(
            wanted.trials
        )
        write_pending(store.path / PENDING, made.pending)
        if not made.complete and not partial:
            raise Unfinished(made)
        if not made.complete:
            left = len(wanted.trials) - len(made.endings)
            console.print(f"[yellow]{left} of {len(wanted.trials)} trials have not ended and are left out[/]")
        ended = [
            (c, made.endings[c.id]) for c in _by_task(wanted.trials, experiment.tasks) if c.id in made.endings
        ]
        kernels = [workshop.kept(c, e.candidate, e.files) for c, e in ended if e.verdict is None]
        failed = [
            Ended(e, c.brief.name, book.last_verification(e)) for c, e in ended if e.verdict is not None
        ]
        return replace(plan, candidates=(*plan.candidates, *programs, *kernels), ended=tuple(failed))
    finally:
        book.close()


def _by_task(trials: Sequence[Commission], tasks: Sequence[str]) -> list[Commission]:
    """In the order of the tasks: candidates of one task share sessions."""
    return sorted(trials, key=lambda c: tasks.index(c.assignment.task))


def stop_unfinished(unfinished: Unfinished, run: Path, command: str, console: Console) -> NoReturn:
    """Say what is missing and how to go on; exit code 75 where answers are, 0 where a device is."""
    made = unfinished.made
    again = f"{run / 'experiment.toml'} --out {run} --resume"  # with every option it was begun with
    lines = []
    if made.waiting:
        target = made.waiting[0].assignment.target
        lines += [
            f"{len(made.waiting)} trials wait for a device: on a machine with {target}, go on with",
            f"  attnbench eval {again}",
        ]
    if made.pending:
        lines += [
            f"{len(made.pending)} questions wait for answers: {run / PENDING} (OpenAI's batch format)",
            f"  attnbench answers import FILE --run {run}",
            f"  attnbench {command} {again}",
        ]
    console.print("\n".join(lines), soft_wrap=True, markup=False)
    raise SystemExit(EXIT_PENDING if made.pending else 0)


class Teller:
    """Says what happens while kernels are made."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._ended, self._total = 0, 0

    def begun(self, trials: int, ended: int) -> None:
        """How many trials there are."""
        self._total, self._ended = trials, ended
        more = f", {ended} of them ended already" if ended else ""
        self._console.print(f"{trials} trials of models{more}")

    def stepped(self, commission: Commission, what: str, told: str) -> None:
        """A step of a trial."""
        a = commission.assignment
        self._console.print(
            f"[dim]{escape(f'{a.task} {commission.brief.name}: {what}: {told[:160]}')}[/]", soft_wrap=True
        )

    def ended(self, commission: Commission, ending: Ending) -> None:
        """The end of a trial."""
        self._ended += 1
        a = commission.assignment
        verdict = "[green]right[/]" if ending.verdict is None else f"[red]{ending.verdict}[/]"
        after = f"{ending.turns} turns, {ending.tokens_in + ending.tokens_out:,} tokens"
        self._console.print(
            f"[{self._ended}/{self._total}] {a.task} {escape(commission.brief.name)} {verdict} after {after}"
            + (f": {escape(ending.reason[:200])}" if ending.reason else ""),
            soft_wrap=True,
        )


# --- answers ----------------------------------------------------------------------------------------


def export_answers(run: Path, out: Path) -> None:
    """Write each pending question as a text that a person or a chat window can take."""
    pending = read_pending(_pending_file(run))
    out.mkdir(parents=True, exist_ok=True)
    for key, request in pending.items():
        parts = [f"<!-- question {key} to {request.model}, sample {request.sample} -->"]
        if len(request.messages) == 1:
            parts.append(request.messages[0].content)
        else:
            parts += [f"<!-- {m.role} -->\n\n{m.content}" for m in request.messages]
        (out / f"{key[:16]}.md").write_text("\n\n".join(parts), encoding="utf-8")
    print(f"{len(pending)} questions in {out}; put each answer beside it as NAME.answer.md, then:")
    print(f"  attnbench answers import {out} --run {run}")


def import_answers(source: Path, run: Path, version: str, provider: str) -> None:
    """Take answers into a run; those that were not asked for are told apart, and nothing is taken twice."""
    pending = read_pending(_pending_file(run))
    prices = Prices.read(None)
    taken, failed, strange, again = 0, [], [], 0
    with Store(run, resume=True) as store:
        book = Storybook(store.path)
        try:
            for answer in read_answers(source, [*pending, *book.exchanges]):
                request = pending.get(answer.key)
                if answer.key in book.exchanges:
                    again += 1
                elif request is None:
                    strange.append(answer.key)
                elif answer.completion is None:
                    failed.append(f"{answer.key[:16]}: {answer.error}")
                else:
                    told = replace(answer.completion, version=answer.completion.version or version)
                    book.add_exchange(exchange_of(request, provider, told, prices))
                    taken += 1
            left = [r for key, r in pending.items() if key not in book.exchanges]
            write_pending(store.path / PENDING, left)
        finally:
            book.close()
    print(f"{taken} answers taken, {len(left)} questions still wait")
    if again:
        print(f"{again} were there already and were left as they are")
    for line in failed:
        print(f"no answer for {line}")
    if strange:
        fail(
            f"{len(strange)} answers belong to no question of {run / PENDING}, the first of them "
            f"{strange[0][:16]}; they were not taken. Is it the right run?",
            EXIT_USAGE,
        )


def _pending_file(run: Path) -> Path:
    file = run / PENDING
    if not file.exists():
        fail(f"{run} has no {PENDING}: no question of it waits for an answer", EXIT_USAGE)
    return file


# --- show -------------------------------------------------------------------------------------------


def show(run: Path, name: str | None, as_json: bool, prompts: bool) -> None:
    """List the trials of a run, or tell the story of one."""
    from harness.telling import list_trials, tell
    from reports import RunError, load_run

    try:
        dataset = load_run(run)
    except RunError as error:
        fail(str(error), EXIT_USAGE)
    if name is None:
        list_trials(dataset, as_json)
    else:
        tell(dataset, name, as_json, prompts)


def latest_run() -> Path:
    """The newest directory in runs/ that holds trials."""
    found = sorted(Path("runs").glob("*/trials.jsonl"), key=lambda p: p.stat().st_mtime)
    if not found:
        fail("no run in runs/ holds trials of models; name one with --run DIR", EXIT_USAGE)
    return found[-1].parent
