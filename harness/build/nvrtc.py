"""Owns compiling CUDA C++ with NVRTC: for any architecture, from wheels alone, on a machine without a GPU.

A compilation is a function of its recipe: source, architecture, kernels wanted, macros, sibling headers. It
runs in a process of its own, which ends at its time limit, and what comes of it is kept by content.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.build.products import Product, from_json, keep, read, to_json

LIMIT_S = 120.0  # a large CuTe kernel takes 10 s on a slow core
LOG_CHARACTERS = 20_000  # of a compiler's log that are kept
INSTALL = "pip install 'attnbench[cuda]'"
OPTIONS = ("-std=c++17", "-default-device", "--ptxas-options=-v", "-DNDEBUG")
# What the compiling process gets of the environment: a source can include /proc/self/environ.
ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "CUDA_HOME", "LANG")
_ARCH = re.compile(r"(sm|compute)_\d{2,3}[a-z]?")


class CompilerMissing(RuntimeError):
    """NVRTC or a header is not installed; the text says what to install."""


class CompileError(RuntimeError):
    """The compiler refused the source, or took too long; the text is its log."""


@dataclass(frozen=True)
class Recipe:
    """What a compilation depends on.

    `arch`: sm_XX gives machine code and PTX, compute_XX gives PTX for the driver to compile. `names`: the
    kernels wanted, as C++ names them; templates are instantiated. `headers`: name -> text, to #include.
    `optimize`: ptxas' level, 0 to 3; 2 keeps fewer values ready, so that kernels at the edge of the
    register file do not spill.
    """

    source: str
    arch: str
    names: tuple[str, ...]
    defines: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    file: str = "kernel.cu"
    optimize: int = 3

    def __post_init__(self) -> None:
        if not _ARCH.fullmatch(self.arch):
            raise CompileError(
                f"no architecture is called {self.arch!r}; there are sm_80, sm_90a, compute_75, ..."
            )
        if type(self.optimize) is not int or not 0 <= self.optimize <= 3:
            raise CompileError(f"ptxas has the levels 0 to 3, not {self.optimize!r}")
        if not self.names:
            raise CompileError("name at least one kernel")

    @property
    def key(self) -> str:
        """SHA-256 of all that decides the result, the compiler's and the headers' versions among them."""
        told = {"recipe": asdict(self), "options": OPTIONS, "versions": versions()}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


Wrap = Callable[[Sequence[str]], list[str]]  # a command -> the command that confines it


def compiled(
    recipe: Recipe,
    cache: Path,
    *,
    limit_s: float = LIMIT_S,
    ready: Path | None = None,
    wrap: Wrap = list,
) -> Product:
    """From the cache, or compiled now and kept there. Raises CompileError, CompilerMissing.

    `ready`: a cache of somebody else's, which is only read.
    """
    entry = Path(recipe.key[:2]) / recipe.key
    for place in (cache, *([ready] if ready else [])):
        kept = read(place / entry)
        if kept is not None:
            return kept
    product = _in_a_process(recipe, limit_s, wrap)
    keep(product, cache / entry)
    return product


def compile_all(
    recipes: Sequence[Recipe], cache: Path, *, limit_s: float = LIMIT_S, jobs: int | None = None
) -> list[Product | CompileError]:
    """Each recipe's product or why there is none, in order, as many at once as there are cores."""

    def one(recipe: Recipe) -> Product | CompileError:
        try:
            return compiled(recipe, cache, limit_s=limit_s)
        except CompileError as error:
            return error

    with ThreadPoolExecutor(jobs or len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(one, recipes))


def _in_a_process(recipe: Recipe, limit_s: float, wrap: Wrap) -> Product:
    """NVRTC cannot be interrupted: a process can. It runs nothing of the source, it only reads it."""
    include_folders()  # what is missing is said here, not in the log of a compilation
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    env["PYTHONPATH"] = os.pathsep.join(paths)
    told = json.dumps(asdict(recipe))
    try:
        done = subprocess.run(
            wrap([sys.executable, "-m", "harness.build.nvrtc"]),
            input=told, text=True, capture_output=True, timeout=limit_s, env=env, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise CompileError(f"{recipe.file}: not compiled for {recipe.arch} within {limit_s:g} s") from error
    if done.returncode == REFUSED:
        raise CompileError(_shortened(done.stdout))
    if done.returncode == 0:
        with contextlib.suppress(ValueError, TypeError):
            return from_json(done.stdout.rpartition("\n")[2])
    what = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    raise CompileError(f"the compiler itself failed on {recipe.file} ({what}): {done.stderr[-2000:]}")


# --- what is installed -----------------------------------------------------------------------------------

# Headers of the host's standard library that device code includes by habit; NVRTC has none.
SHIMS = Path(__file__).parent / "include"
# What must be found in a folder of headers, and the package that brings it.
_HEADERS = {
    "cuda_fp16.h": "nvidia-cuda-runtime",
    "crt/mma.h": "nvidia-cuda-crt",
    "cuda/std/tuple": "nvidia-cuda-cccl",
    "cute/tensor.hpp": "nvidia-cutlass",
}
_PACKAGES = ("cuda-bindings", "nvidia-cuda-nvrtc", *_HEADERS.values())


@functools.cache
def include_folders() -> tuple[Path, ...]:
    """Folders that hold CUDA's, CCCL's and CuTe's headers; raises CompilerMissing."""
    if importlib.util.find_spec("cuda") is None or _found("cuda.bindings") is None:
        raise CompilerMissing(f"NVRTC's bindings are not installed ({INSTALL})")
    candidates = list(_candidates())
    folders = []
    for header, package in _HEADERS.items():
        holding = next((f for f in candidates if (f / header).is_file()), None)
        if holding is None:
            raise CompilerMissing(f"no {header}: {package} is not installed ({INSTALL})")
        folders.append(holding)
    return (*dict.fromkeys(folders), SHIMS)


def _candidates() -> Iterator[Path]:
    """Wheels first, then a toolkit of the machine."""
    for place in _found("cutlass_library") or ():
        yield Path(place) / "source" / "include"
    toolkit = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    roots = [*(Path(p) for p in _found("nvidia.cu13") or ()), Path(toolkit)]
    roots += [Path(p) / part for p in _found("nvidia") or () for part in ("cuda_runtime", "cuda_cccl")]
    for root in roots:
        yield root / "include"
        yield root / "include" / "cccl"


def _found(package: str) -> list[str] | None:
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return None
    return list(spec.submodule_search_locations or ()) if spec is not None else None


@functools.cache
def versions() -> Mapping[str, str]:
    """Package -> version, of what takes part in a compilation; "" where it is not installed as a package."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = ""
    return found


# --- the compiling process ---------------------------------------------------------------------------------

REFUSED = 10  # exit code: the source is at fault, its log is on standard output


def _compile(recipe: Recipe) -> Product:
    from cuda.bindings import nvrtc

    def ask(answer: tuple[Any, ...]) -> Any:
        if int(answer[0]) != 0:
            raise RuntimeError(f"NVRTC: {nvrtc.nvrtcGetErrorString(answer[0])[1].decode()}")
        return answer[1] if len(answer) > 1 else None

    begun = time.monotonic()
    texts = [text.encode() for _, text in recipe.headers]
    names = [name.encode() for name, _ in recipe.headers]
    program = ask(
        nvrtc.nvrtcCreateProgram(recipe.source.encode(), recipe.file.encode(), len(texts), texts, names)
    )
    for name in recipe.names:
        ask(nvrtc.nvrtcAddNameExpression(program, name.encode()))
    options = [f"--gpu-architecture={recipe.arch}", *OPTIONS, f"--ptxas-options=-O{recipe.optimize}"]
    options += [f"-I{folder}" for folder in include_folders()]
    options += [f"-D{name}={value}" for name, value in recipe.defines]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
    log = b" " * ask(nvrtc.nvrtcGetProgramLogSize(program))
    ask(nvrtc.nvrtcGetProgramLog(program, log))
    text = _without_folders(log.rstrip(b"\0 \n").decode(errors="replace"))
    if int(status) != 0:
        raise CompileError(text or nvrtc.nvrtcGetErrorString(status)[1].decode())
    real = recipe.arch.startswith("sm_")
    cubin = b" " * (ask(nvrtc.nvrtcGetCUBINSize(program)) if real else 0)
    if real:
        ask(nvrtc.nvrtcGetCUBIN(program, cubin))
    ptx = b" " * ask(nvrtc.nvrtcGetPTXSize(program))
    ask(nvrtc.nvrtcGetPTX(program, ptx))
    lowered = {n: ask(nvrtc.nvrtcGetLoweredName(program, n.encode())).decode() for n in recipe.names}
    seconds = round(time.monotonic() - begun, 3)
    return Product(
        recipe.arch, cubin, ptx.rstrip(b"\0").decode(), lowered, _shortened(text), seconds, versions()
    )


def _without_folders(log: str) -> str:
    """A log names headers, not where this machine keeps them."""
    for folder in sorted(map(str, include_folders()), key=len, reverse=True):
        log = log.replace(folder + os.sep, "")
    return log


def _shortened(text: str) -> str:
    if len(text) <= LOG_CHARACTERS:
        return text
    half = LOG_CHARACTERS // 2
    return f"{text[:half]}\n...\n{text[-half:]}"


def _main() -> int:
    told = json.load(sys.stdin)
    for key in ("names", "defines", "headers"):
        told[key] = tuple(tuple(x) if isinstance(x, list) else x for x in told[key])
    try:
        product = _compile(Recipe(**told))
    except CompileError as error:
        print(error)
        return REFUSED
    print(to_json(product), end="")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
