"""Owns the diagnosis of a machine: what can be measured here, and what to install for the rest."""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass

import torch

from baselines import BASELINES
from harness.environment import cpu_model, usable_cores
from harness.measure.telemetry import open_telemetry
from harness.targets import target_of_device
from harness.worker.caps import can_filter
from harness.worker.escapes import try_escapes
from harness.worker.sandbox import NoSandbox, find_sandbox


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis."""

    what: str
    usable: bool
    state: str
    advice: str = ""


def findings() -> list[Finding]:
    """Everything doctor shows, in order."""
    return [
        _cpu(),
        *_gpus(),
        _telemetry(),
        *_sandbox(),
        *_backends(),
        _compiler(),
        *_providers(),
        *_baselines(),
    ]


def _sandbox() -> list[Finding]:
    """What holds of the sandbox on this machine: each way out of it is tried."""
    try:
        sandbox = find_sandbox()
    except NoSandbox as error:
        advice = "kernels run only with --no-sandbox, with your own rights"
        return [Finding("sandbox", False, str(error), advice)]
    filtered = "system calls filtered" if can_filter() else "no filter of system calls: libseccomp is missing"
    found = [Finding("sandbox", True, f"{sandbox.name}, {filtered}")]
    for escape in try_escapes(sandbox):
        state = f"{'a kernel cannot' if escape.held else 'A KERNEL CAN'} {escape.what}: {escape.how}"
        advice = "" if escape.held else "do not run code here that you do not trust"
        found.append(Finding("sandbox holds", escape.held, state, advice))
    return found


def _cpu() -> Finding:
    return Finding("target cpu", True, f"{cpu_model()}, {usable_cores()} cores usable", "nox -s eval-cpu")


def _gpus() -> list[Finding]:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        state = (
            f"torch {torch.__version__} is built for CUDA {built}, but finds no device"
            if built
            else (f"torch {torch.__version__} is a CPU build")
        )
        return [
            Finding(
                "GPU", False, state, "GPU targets need an NVIDIA GPU, its driver and a CUDA build of torch"
            )
        ]
    found = []
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        target = target_of_device(name)
        advice = f"nox -s eval-{target.name}" if target else "no target of this name; see harness/targets.py"
        found.append(Finding(f"GPU {index}", target is not None, name, advice))
    return found


def _telemetry() -> Finding:
    with open_telemetry(0 if torch.cuda.is_available() else None) as source:
        return Finding("telemetry (NVML)", not source.reason, source.reason or f"driver {source.driver()}")


def _backends() -> list[Finding]:
    found = []
    for name, needs in (("triton", "pip install triton"), ("numba", "pip install numba scipy")):
        try:
            module = __import__(name)
            found.append(Finding(f"backend {name}", True, f"{name} {module.__version__}"))
        except ImportError as error:
            found.append(Finding(f"backend {name}", False, str(error), needs))
    return [*found, _cuda()]


def _cuda() -> Finding:
    """Whether CUDA is compiled here; that needs no GPU."""
    from harness.build.nvrtc import INSTALL, CompilerMissing, include_folders, versions

    try:
        include_folders()
    except CompilerMissing as error:
        return Finding("backend cuda", False, str(error).partition(" (")[0], f"python3 -m {INSTALL}")
    told = [f"{name} {version}" for name, version in versions().items() if version]
    return Finding("backend cuda", True, ", ".join(told) or "a toolkit of this machine")


def _compiler() -> Finding:
    path = shutil.which("g++") or shutil.which("clang++")
    return Finding(
        "C++ compiler",
        path is not None,
        path or "none found",
        "" if path else "FlexAttention on a CPU needs g++",
    )


def _providers() -> list[Finding]:
    """Whether models can be asked: the SDK and the key of each provider, never the key itself."""
    found = []
    for name, variable in (("openai", "OPENAI_API_KEY"), ("anthropic", "ANTHROPIC_API_KEY")):
        if importlib.util.find_spec(name) is None:
            state, advice = "its SDK is not installed", "python3 -m pip install 'attnbench[models]'"
        elif not os.environ.get(variable):
            state, advice = f"{variable} is not set", f"export {variable}=..., or a model deferred:NAME"
        else:
            state, advice = f"SDK and {variable} found", ""
        found.append(Finding(f"models of {name}", not advice, state, advice))
    return found


def _baselines() -> list[Finding]:
    found = []
    for name, baseline in BASELINES.items():
        library = baseline.library()
        state = library.missing or f"{library.name} {library.version or ''}".strip()
        found.append(
            Finding(f"baseline {name}", library.usable, state, library.install if library.missing else "")
        )
    return found
