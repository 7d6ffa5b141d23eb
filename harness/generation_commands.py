"""Owns what `attnbench generate` and `show` do, and the making of kernels inside `eval`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from rich.console import Console
from rich.markup import escape

from harness.assignments import Commission, Commissions, commissions, not_run
from harness.bench import Bench
from harness.exits import EXIT_PENDING, EXIT_STORE, EXIT_USAGE, fail
from harness.experiment import Ended, Experiment, ExperimentError, Plan, located
from harness.generate.method import Ask
from harness.generation import Generation, Made
from harness.llm.budget import Caps, require_prices
from harness.llm.client import Client, ProviderError, Request
from harness.llm.deferred import AnswersError, write_pending
from harness.llm.prices import Prices, PricesError
from harness.llm.providers import ModelError, key_variables, make_client
from harness.llm.replay import TranscriptError, read_exchanges
from harness.llm.sdk import SdkClient
from harness.programs import program_candidates
from harness.progress import Bar
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


def prepare(
    experiment: Experiment, known: Mapping[str, Task], source: str, *, fresh: bool = False
) -> Prepared:
    """The trials and their clients; raises a typed error for wrong models, prices, keys or transcripts.

    A missing key or SDK is an error of a `fresh` run only: one that goes on may have all its answers.
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
    answerable = _answerable(experiment, wanted, recorded)
    if fresh:
        _require_keys(answerable.trials, clients, ())
    return Prepared(answerable, clients, prices, source)


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
        _require_keys(wanted.trials, prepared.clients, {*book.steps, *book.endings})
        with Teller(console) as teller:
            generation = Generation(experiment, book, workshop, prepared.clients, prepared.prices, teller)
            made = generation.run(wanted.trials)
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


def _require_keys(
    trials: Sequence[Commission], clients: Mapping[str, Client], begun: Collection[str]
) -> None:
    """Raises ProviderError where a trial that has not begun would ask a provider whose key or SDK is missing.

    It would end as `infra`. Trials that have begun may have all the answers they need.
    """
    asked = {str(c.models[0]) for c in trials if c.id not in begun}
    for client in (clients[name] for name in asked):
        if isinstance(client, SdkClient):
            client.check()


def _by_task(trials: Sequence[Commission], tasks: Sequence[str]) -> list[Commission]:
    """In the order of the tasks: candidates of one task share sessions."""
    return sorted(trials, key=lambda c: tasks.index(c.assignment.task))


def stop_unfinished(
    unfinished: Unfinished, run: Path, command: str, console: Console, as_json: bool = False
) -> NoReturn:
    """Say what is missing and how to go on; exit code 75 where answers are, 0 where a device is."""
    made = unfinished.made
    if as_json:
        print(json.dumps(progress_object(run, made, len(made.endings)), indent=1))
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


def progress_object(run: Path, made: Made, ended: int) -> dict[str, object]:
    """How far the trials of a run are, for a script."""
    waiting = {"waiting_for_answers": len(made.pending), "waiting_for_a_device": len(made.waiting)}
    return {"run": str(run), "trials_ended": ended, **waiting}


class Teller:
    """Says what happens while kernels are made, with a bar of trials. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Bar(console, "models write kernels")
        self._ended, self._total = 0, 0

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def begun(self, trials: int, ended: int) -> None:
        """How many trials there are."""
        self._total, self._ended = trials, ended
        self._bar.begin(trials, ended)
        more = f", {ended} of them ended already" if ended else ""
        self._console.print(f"{trials} trials of models{more}")

    def stepped(self, commission: Commission, what: str, told: str) -> None:
        """A step of a trial."""
        a = commission.assignment
        self._bar.at(f"{a.task} {commission.brief.name}")
        self._console.print(
            f"[dim]{escape(f'{a.task} {commission.brief.name}: {what}: {told[:160]}')}[/]", soft_wrap=True
        )

    def ended(self, commission: Commission, ending: Ending) -> None:
        """The end of a trial."""
        self._ended += 1
        a = commission.assignment
        verdict = "[green]right[/]" if ending.verdict is None else f"[red]{ending.verdict}[/]"
        after = f"{ending.turns} turns, {ending.tokens_in + ending.tokens_out:,} tokens"
        name = escape(commission.brief.name)
        self._console.print(
            f"\\[{self._ended}/{self._total}] {a.task} {name} {verdict} after {after}"
            + (f": {escape(ending.reason[:200])}" if ending.reason else ""),
            soft_wrap=True,
        )
        self._bar.moved(self._ended, self._total)


# --- show -------------------------------------------------------------------------------------------


def show(run: Path, name: str | None, as_json: bool, prompts: bool) -> None:
    """List the trials of a run, or tell the story of one."""
    from harness.telling import list_trials, tell
    from reports import RunError, load_run

    try:
        dataset = load_run(run)
    except RunError as error:
        fail(str(error), EXIT_USAGE)
    except OSError as error:
        fail(f"cannot read {error.filename or run}: {error.strerror or error}", EXIT_STORE)
    if name is None:
        list_trials(dataset, as_json)
    else:
        tell(dataset, name, as_json, prompts)


def latest_run() -> Path:
    """The newest directory in runs/ that holds trials."""
    every = [(p, p.stat()) for p in Path("runs").glob("*/trials.jsonl")]
    found = [p for p, stat in sorted(every, key=lambda e: e[1].st_mtime) if stat.st_size]
    if not found:
        fail("no run in runs/ holds trials of models; name one with --run DIR", EXIT_USAGE)
    return found[-1].parent
