"""Owns trying to get out of the sandbox: what a machine promises is tried on it, not assumed.

Inside, this file is run as a program: it makes every attempt and says of each how it ended. Outside,
`try_escapes` gives it something to find and tells who held.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from harness.worker.caps import Caps, confine
from harness.worker.family import end
from harness.worker.sandbox import PRIVATE, ROOT, Sandbox
from harness.worker.watch import Watch

LIMIT_S = 30.0
MIB = 1 << 20


@dataclass(frozen=True)
class Escape:
    """One attempt: what was tried, whether the sandbox held, and how it ended."""

    what: str
    held: bool
    how: str


def try_escapes(sandbox: Sandbox) -> list[Escape]:
    """Every attempt, on this machine, now; takes some seconds."""
    caps = replace(
        Caps.of_this_machine(),
        memory_bytes=512 * MIB,
        processes=64,
        file_bytes=16 * MIB,
        folder_bytes=64 * MIB,
    )
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as stack:
        files = [str(ROOT / "pyproject.toml")]
        for place in (None, Path.home(), Path.cwd()):
            with contextlib.suppress(OSError):  # the home of a service cannot be written, say
                planted = tempfile.NamedTemporaryFile("w", prefix=".attnbench-doctor-", dir=place)  # noqa: SIM115
                files.append(stack.enter_context(planted).name)
        told = {
            "port": server.getsockname()[1],
            "files": [f for f in files if Path(f).exists()],
            "written": str(ROOT / "harness" / "__init__.py"),
            "judge": os.getpid(),
        }
        found = _attempts(sandbox, caps, told)
    return [
        *found,
        _bomb(sandbox, caps, "start processes without end", "while True: os.fork() or time.sleep(60)"),
        _bomb(sandbox, caps, "fill the memory", "kept = [bytearray(1 << 24) for _ in range(4096)]"),
    ]


def _environment() -> dict[str, str]:
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path), "PATH": os.environ.get("PATH", "")}


def _attempts(sandbox: Sandbox, caps: Caps, told: Mapping[str, object]) -> list[Escape]:
    inner = [sys.executable, "-m", "harness.worker.escapes", caps.to_json(), json.dumps(told)]
    said = ""
    try:
        done = subprocess.run(
            sandbox.command(inner, caps=caps), capture_output=True, text=True, timeout=LIMIT_S, check=False,
            env=_environment(),
        )  # fmt: skip
        said = (done.stderr.strip().splitlines() or [""])[-1]
        answers = json.loads(done.stdout.strip().rpartition("\n")[2])
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return [Escape("run in the sandbox", False, f"the attempts did not end: {said or error}")]
    return [Escape(what, not loot, how) for what, (loot, how) in answers.items()]


def _bomb(sandbox: Sandbox, caps: Caps, what: str, code: str) -> Escape:
    """Something that ends only if it is ended."""
    program = f"import os, time\n{code}\ntime.sleep(60)\n"
    command = sandbox.command([sys.executable, "-I", "-c", program], caps=caps)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    watch = Watch(process.pid, caps)
    try:
        process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        return Escape(what, False, f"nothing stopped it within {LIMIT_S:g} s")
    finally:
        watch.close()
        if process.poll() is None:
            end(process.pid)
            process.wait()
    return Escape(what, True, f"killed: {watch.over}" if watch.over else "it ended by itself")


# --- inside ----------------------------------------------------------------------------------------------

Attempt = Callable[[], str]  # the loot; "" or an error: there was none


def _main(caps: Caps, told: Mapping[str, object]) -> None:
    confine(caps)
    judge, port = int(str(told["judge"])), int(str(told["port"]))
    files = [str(f) for f in told["files"]]  # type: ignore[attr-defined]

    def call(name: str, *args: int) -> str:
        libc = ctypes.CDLL(None, use_errno=True)
        if getattr(libc, name)(*args) == -1:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return f"{name} succeeded"

    def connect() -> str:
        socket.create_connection(("127.0.0.1", port), 2).close()
        return "reached a server outside"

    def look_around() -> str:
        seen = [f for f in files if Path(f).exists()]
        return f"{len(seen)} files of the user seen" if seen else ""

    def environment() -> str:
        return ", ".join(sorted(set(os.environ) - {"PYTHONPATH", "PATH", "PWD", "LC_CTYPE"}))

    def write() -> str:
        with open(str(told["written"]), "a"):
            return "opened a file of the harness to write"

    def peek() -> str:
        os.kill(judge, 0)
        command = Path(f"/proc/{judge}/cmdline").read_bytes()
        return "" if b"escapes" in command else "saw the judge's process"

    def devices() -> str:
        known = {"console", "core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
                 "stdout", "tty", "urandom", "zero"}  # fmt: skip
        return ", ".join(sorted(set(os.listdir("/dev")) - known))

    def family(number: int) -> str:
        socket.socket(number, socket.SOCK_STREAM).close()
        return "opened a socket that no namespace holds back"

    def fill(one_file: bool) -> str:
        most = caps.file_bytes if one_file else caps.folder_bytes
        for n in range(4 * caps.folder_bytes // caps.file_bytes):
            with open(PRIVATE / ("one" if one_file else f"many{n}"), "ab") as file:
                for _ in range(caps.file_bytes // MIB - (not one_file)):
                    file.write(bytes(MIB))
                    file.flush()
        return f"wrote more than {most // MIB} MiB"

    attempts: dict[str, Attempt] = {
        "reach the network": connect,
        "read the user's files": look_around,
        "read the environment": environment,
        "write outside of its folder": write,
        "see other processes": peek,
        "look into a process": lambda: call("ptrace", 0, 0, 0, 0),
        "make namespaces of its own": lambda: call("unshare", 0x10000000),
        "open other devices": devices,
        "talk to the host of a virtual machine": lambda: family(40),
        "write one endless file": lambda: fill(True),
        "fill the disk": lambda: fill(False),
    }
    answers = {}
    for what, attempt in attempts.items():
        try:
            loot = attempt()
            answers[what] = (bool(loot), loot or "nothing was there")
        except OSError as error:
            answers[what] = (False, error.strerror or str(error))
    print("\n" + json.dumps(answers))


if __name__ == "__main__":
    _main(Caps.from_json(sys.argv[1]), json.loads(sys.argv[2]))
