"""Owns the gate's side of pytest: its options, what a saved file says of the machine, and what failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

UNTIMED = pytest.StashKey[dict[str, dict[str, str]]]()  # failed, skipped, disturbed -> case -> why
RUN = pytest.StashKey[Any]()
EXIT_USAGE = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("attnbench")
    group.addoption(
        "--gate",
        metavar="EXPERIMENT",
        help="Time kernels: gate-cpu, gate-gpu or a .toml file. See docs/gate.md",
    )
    group.addoption("--gate-case", action="append", metavar="ID", help="Only this case. Repeatable.")
    group.addoption(
        "--gate-before",
        metavar="FILE",
        help="JSON: case -> folder of what its kernel was, to be timed beside it.",
    )
    group.addoption("--gate-no-sandbox", action="store_true", help="Run kernels with your own rights.")


def gate_run(config: pytest.Config) -> Any:
    """The run that --gate asks for, made once; None without it."""
    source = config.getoption("--gate", default=None)
    if source is None:
        return None
    if RUN not in config.stash:
        from harness.build.manifest import CandidateError
        from harness.experiment import ExperimentError
        from harness.gate_run import AmbiguousNames, GateRun
        from tasks import TaskError

        only, no_sandbox = config.getoption("--gate-case") or (), config.getoption("--gate-no-sandbox")
        before = config.getoption("--gate-before")
        try:
            folders = json.loads(Path(before).read_text(encoding="utf-8")) if before else {}
            olds = {case: Path(folder) for case, folder in folders.items()}
            config.stash[RUN] = GateRun(source, only, no_sandbox, olds)
        except (ExperimentError, TaskError, CandidateError, AmbiguousNames) as error:
            pytest.exit(str(error), EXIT_USAGE)
    return config.stash[RUN]


@pytest.hookimpl(tryfirst=True)
def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any] | None:
    """What decides a figure, in place of pytest-benchmark's own list, which holds the host's name."""
    run = gate_run(config)
    return None if run is None else run.machine.model_dump(mode="json")


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """What gave no time, with its reason: pytest-benchmark leaves out what failed."""
    if gate_run(config) is not None:
        output_json["attnbench"] = config.stash.get(UNTIMED, {})
