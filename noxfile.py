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
# Its data models need neither of the flashinfer nor of the torch that it would install.
FLASHINFER_BENCH = ("flashinfer-bench==0.1.2", "safetensors>=0.5")
# Target -> what its device's own name contains.
GPUS = {
    "a100": ("A100",),
    "h100": ("H100",),
    "h200": ("H200",),
    "l40s": ("L40S",),
    "t4": ("T4",),
    "rtx8000": ("RTX 8000",),
}

# Files go to two processes in the order of tests/conftest.py, the longest first.
PARALLEL = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
# Long runs of what must hold however kernels behave; test_work is among the tests as well.
CORPUS = (
    "tests/hacks/test_grader.py",
    "tests/hacks/test_work.py",
    "tests/faults",
    "tests/test_lost_workers.py",
)
TIMED = (  # where verdicts are about times, and kernels of two threads
    "tests/hacks/test_timing.py",
    "tests/test_soak.py",
    "tests/test_pipeline.py",
    "tests/test_gate_commands.py",
    "tests/honest",
)

# A GPU host has its own torch, matched to its driver; a session uses that one where nox can see it.
# On a machine without a GPU there is nothing to set up, only something to say.
SHOWS_GPU = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()
OWN_TORCH = importlib.util.find_spec("torch") is not None
GPU_BACKEND = "none" if OWN_TORCH or not SHOWS_GPU else "virtualenv"


def install(session: nox.Session, *extras: str) -> None:
    """The CPU build of torch, then the package with extras, in the session's own environment."""
    session.install(CPU_TORCH)
    extra = f"[{','.join(extras)}]" if extras else ""
    session.install("-e", f".{extra}")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, two at once but for those that hold bounds of time; options go to one plain pytest
    (`nox -s tests -- -k store`). Other hostile kernels, faulty and odd ones are in `nox -s hacks`."""
    install(session, "test", "parquet")
    session.install("--no-deps", *FLASHINFER_BENCH)
    if session.posargs:
        session.run("pytest", *session.posargs)
        return
    session.run("pytest", *PARALLEL, "-m", "not alone and not corpus")
    session.run("pytest", "-m", "alone")


@nox.session
def hacks(session: nox.Session) -> None:
    """Hostile, faulty and odd kernels on this machine's CPU, each with its verdict; twelve minutes.

    Those that are about times run with nothing beside them: next to endless loops a call takes 30 ms, of the
    liar's too, and is no lie any more.
    """
    install(session, "test")
    if session.posargs:
        session.run("pytest", "-m", "not gpu", *session.posargs)
        return
    session.run("pytest", *PARALLEL, "-m", "not gpu", *CORPUS)
    session.run("pytest", "-m", "not gpu", *TIMED)


@nox.session(name="hacks-gpu", venv_backend=GPU_BACKEND)
def hacks_gpu(session: nox.Session) -> None:
    """Hostile, faulty and odd kernels on this machine's GPU: each must get its verdict, in minutes."""
    if not SHOWS_GPU:
        session.error("this machine shows no NVIDIA GPU; what needs none is in `nox -s hacks`")
    command = ("pytest", "-m", "gpu", "tests/hacks", *session.posargs)
    if OWN_TORCH:
        session.run(sys.executable, "-m", *command, env={"PYTHONPATH": _here()}, external=True)
    else:
        session.install("-e", ".[test]")
        session.run(*command)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff and mypy --strict."""
    install(session, "test", "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")


@nox.session
def browser(session: nox.Session) -> None:
    """The site in a headless Chromium, which the system must have."""
    install(session, "test", "browser")
    session.run("pytest", "tests/reports/test_site_browser.py", *session.posargs)


@nox.session
def publish(session: nox.Session) -> None:
    """The site of the published runs in site/; other runs and options after `--` take their place."""
    install(session)
    published = [str(path) for path in sorted(Path("reports/published").iterdir()) if path.is_dir()]
    session.run("attnbench", "publish", *(session.posargs or published))


@nox.session(name="eval-cpu")
def eval_cpu(session: nox.Session) -> None:
    """The main job on the CPU: examples and human baselines, verified, timed, compared."""
    install(session)
    session.run("attnbench", "eval", "cpu", *session.posargs)


def gpu_session(target: str) -> None:
    """Define eval-<target>."""

    @nox.session(name=f"eval-{target}", venv_backend=GPU_BACKEND)
    def evaluate(session: nox.Session) -> None:
        names, models = GPUS[target], gpu_models()
        own = session.posargs and not session.posargs[0].startswith("-")  # an experiment of one's own
        arguments = session.posargs if own else [target, *session.posargs]
        if "--compile-only" in arguments:
            session.error(f"nothing is measured then, and no GPU is needed: nox -s compile-{target}")
        if not SHOWS_GPU:
            session.error(
                f"this machine shows no NVIDIA GPU, so {target} cannot be measured here. "
                f"What fits: nox -s eval-cpu, or nox -s compile-{target}"
            )
        if (
            "--prove-on" not in arguments
            and models
            and not any(name in model for name in names for model in models)
        ):
            session.error(
                f"this machine has {', '.join(models)}, not {target}. What fits: {_fitting(models)}"
            )
        if OWN_TORCH:
            command = (sys.executable, "-m", "harness.cli", "eval")
            session.run(*command, *arguments, env={"PYTHONPATH": _here()}, external=True)
        else:
            session.install("-e", ".")
            session.run("attnbench", "eval", *arguments)

    evaluate.__doc__ = f"The main job on {target}; fails in a second on another machine."


def compile_session(target: str) -> None:
    """Define compile-<target>."""

    @nox.session(name=f"compile-{target}")
    def compile_(session: nox.Session) -> None:
        install(session, "cuda")
        session.run("attnbench", "eval", target, "--compile-only", *session.posargs)

    compile_.__doc__ = f"What the CUDA kernels take of a {target}, by the compiler; needs no GPU."


for _target in GPUS:
    gpu_session(_target)
    compile_session(_target)


@nox.session
def report(session: nox.Session) -> None:
    """Write the report of a run again: `nox -s report -- runs/NAME`."""
    install(session)
    session.run("attnbench", "report", *session.posargs)


@nox.session
def gate(session: nox.Session) -> None:
    """Is a kernel slower than the stored reference, on this machine's CPU? See docs/gate.md;
    `nox -s gate -- accept` raises the reference."""
    install(session, "test")
    session.run("attnbench", "gate", *session.posargs)


@nox.session(name="gate-gpu", venv_backend=GPU_BACKEND)
def gate_gpu(session: nox.Session) -> None:
    """The same on this machine's GPU; `nox -s gate-gpu -- accept` raises the reference."""
    fitting = [t for t, names in GPUS.items() if any(n in m for n in names for m in gpu_models())]
    if not SHOWS_GPU:
        session.error("this machine shows no NVIDIA GPU; what needs none is `nox -s gate`")
    target = ("--target", fitting[0]) if fitting else ()
    asked = ("--experiment", "gate-gpu", *target)
    verb = session.posargs[:1] if session.posargs[:1] == ["accept"] else []
    command = ("gate", *verb, *asked, *session.posargs[len(verb) :])
    if OWN_TORCH:
        python = (sys.executable, "-m", "harness.cli")
        session.run(*python, *command, env={"PYTHONPATH": _here()}, external=True)
    else:
        session.install("-e", ".[test]")
        session.run("attnbench", *command)


@nox.session
def bench(session: nox.Session) -> None:
    """The harness's own speed."""
    install(session, "test")
    session.run("pytest", "tests/benchmarks", "tests/tl/test_speed.py", "--benchmark-only", *session.posargs)


def gpu_models() -> list[str]:
    """Names of the GPUs as the kernel driver tells them; empty where it does not."""
    files = Path("/proc/driver/nvidia/gpus").glob("*/information")
    lines = [line for file in files for line in file.read_text().splitlines()]
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]


def _fitting(models: list[str]) -> str:
    fits = [f"nox -s eval-{t}" for t, names in GPUS.items() if any(n in m for n in names for m in models)]
    return ", ".join(fits) or "an experiment file of your own (attnbench eval FILE.toml)"


def _here() -> str:
    return os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
