"""Owns the description of the machine and software of an invocation, as found; sets nothing.

What it writes is published beside results, so it holds no host name, no user name and no path.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
from functools import cache
from pathlib import Path

import torch

from harness.measure.telemetry import open_telemetry
from harness.runs import Environment
from harness.targets import Target

DISTRIBUTION = "attnbench"

# Distributions that can change a number. Those not installed are left out of the record.
LIBRARIES = (
    "torch",
    "triton",
    "numba",
    "llvmlite",
    "numpy",
    "flash-attn",
    "flash-attn-4",
    "nvidia-cutlass-dsl",
    "nvidia-cutlass",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "nvidia-cuda-nvrtc",
    "nvidia-cuda-nvrtc-cu12",
    "nvidia-ml-py",
    "cuda-core",
    "cuda-bindings",
)

# Sources that decide a number or a verdict: how a kernel is built, checked, timed, and against whom. Not
# the files of tasks, whose hashes results carry one by one; nor what plans, records or reports.
DECISIVE = (
    "harness/verify",
    "harness/measure",
    "harness/worker",
    "harness/build",
    "harness/bench.py",
    "harness/bursts.py",
    "harness/entrants.py",
    "harness/looks.py",
    "harness/pipeline.py",
    "harness/race.py",
    "harness/targets.py",
    "harness/warmup.py",
    "baselines",
    "tasks/masks.py",
    "tasks/oracle.py",
    "tasks/spec.py",
)

# The folders of an absolute path, or of one in the home folder; not those of a URL.
_FOLDERS = re.compile(r"(?<![\w./])~?/(?:[^\s/'\":]+/)*(?=[\w.+-])")


def describe(target: Target, device: torch.device, sandbox: str = "none") -> Environment:
    """The record of this machine for runs on `device`; `sandbox` says how candidates are confined."""
    index = _index(device)
    with open_telemetry(index) as telemetry:
        driver, gpu = telemetry.driver(), telemetry.facts()
    cpu = cpu_model()
    return Environment(
        device=device_name(device),
        target=target.name,
        harness=harness_version(),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()} {'-'.join(platform.libc_ver())}".strip(),
        cpu=cpu,
        cores=usable_cores(),
        driver=driver,
        cuda=(torch.version.cuda or "") if index is not None else "",
        libraries=library_versions(),
        gpu=gpu,
        baselines=baseline_states(),
        sandbox=sandbox,
        sources=harness_digest(),
    )


def device_name(device: torch.device) -> str:
    """The device's own name: as CUDA gives it, or the CPU's model."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def _index(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


@cache
def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model, or its architecture where the kernel does not name it (many ARM machines)."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(filter(None, names), platform.machine())


def usable_cores() -> int:
    """Cores this process may run on, which containers make fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def library_versions() -> dict[str, str]:
    """Version by distribution name of the libraries that can change a number and are installed.

    cuDNN is reported as the one PyTorch loaded, since that is the one the baseline runs on.
    """
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        cudnn: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        if cudnn is not None:
            found["cudnn"] = str(cudnn)
    return found


def baseline_states() -> dict[str, str]:
    """'usable' or the reason it is not, by baseline name."""
    from baselines import BASELINES  # imports every library there is, so only when asked

    states = {}
    for name, baseline in BASELINES.items():
        library = baseline.library()
        states[name] = "usable" if library.usable else without_paths(library.missing)
    return states


def without_paths(text: str) -> str:
    """The text with the folders of every path removed: a loader's message names the user's home."""
    return _FOLDERS.sub("", text.replace(str(Path.home()), "~"))


@cache
def harness_version() -> str:
    """The installed distribution's version, or '0.1.0+source' in a checkout that is not installed."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "0.1.0+source"


@cache
def harness_digest() -> str:
    """Hash (12 hex digits) of the sources that decide a number: two runs that agree here are comparable."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    named = [root / name for name in DECISIVE]
    found = {p for n in named for p in (n, *n.rglob("*")) if p.is_file() and p.suffix != ".pyc"}
    for path in sorted(found):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
