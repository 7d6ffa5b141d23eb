"""Owns what `attnbench eval --compile-only` does: the compiler's word on kernels, nothing run."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from harness import static_report
from harness.build.nvrtc import CompilerMissing, include_folders
from harness.commands import as_toml, confinement, guarded, meaning_of, planned
from harness.exits import EXIT_FOUND, EXIT_MACHINE, EXIT_STORE, EXIT_USAGE, fail
from harness.programs import program_candidates
from harness.progress import Bar, output
from harness.store import Store
from harness.targets import find_target


def compile_only(
    source: str,
    overrides: dict[str, Any],
    task_folders: Sequence[Path],
    out: Path | None,
    no_sandbox: bool = False,
    as_json: bool = False,
) -> None:
    """Compile an experiment's CUDA kernels for its target, on any machine; report what the compiler says."""
    experiment, plan, known = guarded(lambda: planned(source, overrides, task_folders, None))
    target = find_target(experiment.target)
    if not target.is_gpu:
        fail(
            f"--compile-only is for GPUs; {target.name} is none. Name one: attnbench eval t4 --compile-only",
            EXIT_USAGE,
        )
    try:
        include_folders()
    except CompilerMissing as error:
        fail(str(error), EXIT_MACHINE)
    sandbox = guarded(lambda: confinement(no_sandbox))
    console = output(as_json)
    run = out or Path("runs") / f"{target.name}-static-{datetime.datetime.now():%Y%m%d-%H%M%S}"

    def go() -> static_report.Static:
        with Store(run, resume=False) as store:
            store.add_experiment(as_toml(experiment), meaning_of)
            programs, refused = program_candidates(experiment, known, store, source)
            for line in (*plan.unusable, *refused):
                console.print(f"[yellow]left out[/] {escape(line)}", soft_wrap=True)
            candidates = [*plan.candidates, *programs]
            for manifest in [m for m in candidates if m.backend != "cuda"]:
                why = f"{manifest.name}: {manifest.backend} is compiled where it runs"
                console.print(f"[yellow]left out[/] {escape(why)}", soft_wrap=True)
            with Bar(console, f"compiling for {target.name}") as bar:
                return static_report.compile_all(target, candidates, plan.cells, sandbox, bar.moved)

    static = guarded(go)
    try:
        written = static_report.write(static, run)
    except OSError as error:
        fail(f"cannot write {run}: {error.strerror or error}; give another folder with --out", EXIT_STORE)
    if as_json:
        record = json.loads(written[0].read_text(encoding="utf-8"))
        print(json.dumps({"run": str(run), "report": [str(path) for path in written], **record}, indent=1))
    else:
        static_report.show(static, console)
        for path in written:
            console.print(f"  {path}", soft_wrap=True)
    if static.problems:
        raise SystemExit(EXIT_FOUND)
