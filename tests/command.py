"""Owns calling the command: in this process, since a start of Python costs more than most commands, or in one of its own."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTING = {"COLUMNS": "200"}
Done = subprocess.CompletedProcess[str]


def attnbench(*arguments: str, cwd: Path | None = None, stdin: str = "") -> Done:
    """What the command prints and how it ends; an exception that is not caught shows as its trace."""
    from harness.cli import app

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    terminated = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(cwd or Path.cwd()):
        for name, value in SETTING.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["attnbench", *arguments])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        try:
            app(list(arguments))
            code: object = 0
        except SystemExit as leaving:
            code = leaving.code
        except Exception:
            traceback.print_exc()
            code = 1
        finally:
            signal.signal(signal.SIGTERM, terminated)
    told = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    return Done(arguments, code if isinstance(code, int) else int(code is not None), *told)


def attnbench_process(*arguments: str, cwd: Path | None = None, timeout: float = 60) -> Done:
    """The same as a user does it."""
    env = {**os.environ, **SETTING, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "harness.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=timeout)
