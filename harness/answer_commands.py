"""Owns what `attnbench answers` does: questions out of a run, answers into it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from harness.exits import EXIT_STORE, EXIT_USAGE, fail
from harness.generation import exchange_of
from harness.generation_commands import PENDING
from harness.llm.client import Request
from harness.llm.deferred import read_answers, read_pending, write_pending
from harness.llm.prices import Prices
from harness.store import Store
from harness.storybook import Storybook


def export_answers(run: Path, out: Path, as_json: bool = False) -> None:
    """Write each pending question as a text that a person or a chat window can take."""
    pending = read_pending(_pending_file(run))
    files = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        for key, request in pending.items():
            files.append(out / f"{key[:16]}.md")
            files[-1].write_text(_as_text(key, request), encoding="utf-8")
    except OSError as error:
        fail(f"cannot write {out}: {error.strerror or error}; give another folder with --out", EXIT_STORE)
    if as_json:
        told = {"run": str(run), "questions": len(files), "files": [str(file) for file in files]}
        print(json.dumps(told, indent=1))
        return
    print(f"{len(pending)} questions in {out}; put each answer beside it as NAME.answer.md, then:")
    print(f"  attnbench answers import {out} --run {run}")


def _as_text(key: str, request: Request) -> str:
    parts = [f"<!-- question {key} to {request.model}, sample {request.sample} -->"]
    if len(request.messages) == 1:
        parts.append(request.messages[0].content)
    else:
        parts += [f"<!-- {m.role} -->\n\n{m.content}" for m in request.messages]
    return "\n\n".join(parts)


def import_answers(source: Path, run: Path, version: str, provider: str, as_json: bool = False) -> None:
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
    if as_json:
        counts = {"taken": taken, "waiting": len(left), "there_already": again}
        record = {"run": str(run), **counts, "failed": failed, "not_asked_for": strange}
        print(json.dumps(record, indent=1))
    else:
        print(f"{taken} answers taken, {len(left)} questions still wait")
        if again:
            print(f"{again} were there already and were left as they are")
        for line in failed:
            print(f"no answer for {line}")
        if not strange:
            print(_next(run, len(left)))
    if strange:
        fail(
            f"{len(strange)} answers belong to no question of {run / PENDING}, the first of them "
            f"{strange[0][:16]}; they were not taken. Is it the right run?",
            EXIT_USAGE,
        )


def _pending_file(run: Path) -> Path:
    file = run / PENDING
    if not file.exists():
        fail(
            f"{run} has no {PENDING}: no question of it waits for an answer. "
            f"See how its trials stand: attnbench show --run {run}",
            EXIT_USAGE,
        )
    return file


def _next(run: Path, waiting: int) -> str:
    """What to do after an import."""
    first = "import the other answers too, or go on: " if waiting else ""
    again = f"attnbench generate {run / 'experiment.toml'} --out {run} --resume"
    return f"Next: {first}{again} (or eval, on the target)"
