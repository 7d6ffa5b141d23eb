"""Sessions: each is a thin call of the `attnbench` command, so the command alone does the same.

nox -s eval-cpu                     the main job on this machine's CPU, in minutes
nox -s tests                        the tests
nox -s eval-h100 -- --task mha      a session's options go to `attnbench eval`
"""

import importlib.util
import os
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "tests"]
nox.options.reuse_venv = "yes"

# On a CPU an unpinned torch would bring gigabytes of CUDA libraries; ATTNBENCH_TORCH chooses another.
CPU_TORCH = os.environ.get("ATTNBENCH_TORCH", "torch==2.13.0")
GPUS = ("a100", "h100", "h200", "l40s", "t4", "rtx8000")

# A GPU host has its own torch, matched to its driver; a session uses that one where nox can see it.
GPU_BACKEND = "none" if importlib.util.find_spec("torch") else "virtualenv"


def install(session: nox.Session, *extras: str) -> None:
    """The CPU build of torch, then the package with extras, in the session's own environment."""
    session.install(CPU_TORCH)
    extra = f"[{','.join(extras)}]" if extras else ""
    session.install("-e", f".{extra}")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; options go to pytest (`nox -s tests -- -k store`)."""
    install(session, "test")
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff and mypy --strict."""
    install(session, "test", "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session(name="eval-cpu")
def eval_cpu(session: nox.Session) -> None:
    """The main job on the CPU: examples and human baselines, verified, timed, compared."""
    install(session)
    session.run("attnbench", "eval", "cpu", *session.posargs)


def gpu_session(target: str) -> None:
    """Define eval-<target>."""

    @nox.session(name=f"eval-{target}", venv_backend=GPU_BACKEND)
    def evaluate(session: nox.Session) -> None:
        own = session.posargs and not session.posargs[0].startswith("-")  # an experiment of one's own
        arguments = session.posargs if own else [target, *session.posargs]
        if GPU_BACKEND == "none":
            command = (sys.executable, "-m", "harness.cli")
            session.run(*command, "eval", *arguments, env={"PYTHONPATH": _here()}, external=True)
        elif Path("/dev/nvidia0").exists():
            session.install("-e", ".")
            session.run("attnbench", "eval", *arguments)
        else:
            session.error(
                f"this machine shows no NVIDIA GPU (/dev/nvidia0), so {target} cannot be measured here. "
                "What fits: nox -s eval-cpu"
            )

    evaluate.__doc__ = f"The main job on an {target} GPU; fails in a second on another machine."


for _target in GPUS:
    gpu_session(_target)


@nox.session
def report(session: nox.Session) -> None:
    """Write the report of a run again: `nox -s report -- runs/NAME`."""
    install(session)
    session.run("attnbench", "report", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """The harness's own speed."""
    install(session, "test")
    session.run("pytest", "tests/benchmarks", "--benchmark-only", *session.posargs)


def _here() -> str:
    return os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
