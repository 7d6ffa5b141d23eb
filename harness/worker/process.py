"""Owns a worker's life: start it confined, ask with a time limit, stop, kill, bury.

A worker is respawned by its owner after WorkerDied or WorkerTimeout and after a device
error (a CUDA context does not survive one); this class never restarts itself.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.build.products import CACHE_VARIABLE, READY_VARIABLE
from harness.measure.sight import Sight, sight_of, spells
from harness.worker.caps import Caps
from harness.worker.family import busy, end, freeze, gone, members, thaw
from harness.worker.image import Image
from harness.worker.protocol import (
    ERROR_KINDS,
    RequestFailed,
    WorkerDied,
    WorkerLost,
    WorkerOverCap,
    WorkerTimeout,
    receive,
    send,
)
from harness.worker.sandbox import PRIVATE, Sandbox
from harness.worker.watch import Watch

START_LIMIT_S = 120.0
LOG_TAIL = 4000
PROFILERS_OWN = "USDT:"  # PyTorch's profiler says on standard error that it began and ended
LAST_WORDS_S = 1.0  # for a process that hung up to end by itself
ROOT = Path(__file__).resolve().parents[2]

# What a worker may see of our environment: where programs and libraries are, nothing else.
ENVIRONMENT_ALLOWED = (
    "PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES",
    "LANG", "LC_ALL", "TZ", "CC", "CXX", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "NVIDIA_VISIBLE_DEVICES",
)  # fmt: skip


class Worker:
    """One child process and all it starts; `private` is its own writable folder (caches, temporary files).

    An untrusted one is confined by its caps, and by `sandbox` where there is one; then its private folder
    lies in memory. `cache`: of a trusted one, compiled kernels that such workers share; of an untrusted
    one, finished products of CUDA, to read.
    """

    def __init__(
        self,
        device: str,
        *,
        trusted: bool,
        sandbox: Sandbox | None = None,
        warm: Sequence[str] = (),
        cache: Path | None = None,
        caps: Caps | None = None,
    ) -> None:
        self.device = device
        self.trusted = trusted
        self.caps = caps or Caps.of_this_machine()
        self._image: Image | None = None
        self._answers: Image | None = None
        self._cache = cache
        try:
            self._private = tempfile.TemporaryDirectory(
                prefix="attnbench-worker-", ignore_cleanup_errors=True
            )
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        except OSError as error:  # the disk of the temporary folder is full, say
            raise WorkerLost(
                f"no folder for a worker in {tempfile.gettempdir()}: {error.strerror}"
            ) from error
        ours, theirs = socket.socketpair()
        self._socket = ours
        command = [sys.executable, "-m", "harness.worker.child", str(theirs.fileno())]
        if not trusted:
            command.append(self.caps.to_json())
        if sandbox is not None and not trusted:
            readable = [cache] if cache is not None else []
            command = sandbox.command(command, caps=self.caps, cuda=device != "cpu", readable=readable)
        self._sandboxed = sandbox is not None and not trusted
        self._process = subprocess.Popen(
            command,
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            env=self._environment(),
            cwd=self._private.name,
        )
        theirs.close()
        self._hello = self._post("hello", {"device": device, "warm": list(warm)})
        self._ready = self._buried = self.stopped = False
        self._watch = None if trusted else Watch(self._process.pid, self.caps)

    def _environment(self) -> dict[str, str]:
        env = {name: os.environ[name] for name in ENVIRONMENT_ALLOWED if name in os.environ}
        path = [str(ROOT), *filter(None, [env.get("PYTHONPATH", "")])]
        private = str(PRIVATE) if self._sandboxed else self._private.name
        cache = str(self._cache) if self._cache and self.trusted else private
        if self._cache and not self.trusted:
            env[READY_VARIABLE] = str(self._cache)
        return env | {
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONUNBUFFERED": "1",
            "HOME": private,
            "USER": "attnbench",
            "LOGNAME": "attnbench",
            "TMPDIR": private,
            CACHE_VARIABLE: f"{private}/cuda-products",
            "TRITON_CACHE_DIR": f"{cache}/triton",
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
            "NUMBA_CACHE_DIR": f"{private}/numba",
            "CUDA_CACHE_PATH": f"{private}/cuda",
            "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1",
            "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": f"{cache}/flash_attn_4",
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool of idle processes beside a measurement
        }

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_ready(self) -> None:
        """Block until the worker has imported torch and opened its device."""
        if not self._ready:
            self._await(self._hello, time.monotonic() + START_LIMIT_S)
            self._ready = True

    def ask(
        self, op: str, args: Mapping[str, Any] | None = None, *, limit_s: float, fds: tuple[int, ...] = ()
    ) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises RequestFailed when the worker says so, WorkerTimeout (after killing it) past
        `limit_s` seconds, WorkerDied when it ended or spoke out of turn (it is killed then).
        """
        self.wait_ready()
        self.cont()
        return self._await(self._post(op, args or {}, fds), time.monotonic() + limit_s)

    def map(self, image: Image, answer_bytes: int, *, limit_s: float = 30.0) -> None:
        """Give the worker the image of inputs, and an area for answers of at least so many bytes."""
        enough = self._answers is not None and self._answers.size >= answer_bytes
        if self._image is image and enough:
            return
        if not enough:
            if self._answers is not None:
                self._answers.close()
            self._answers = Image.create(answer_bytes, shared_writable=True)
            self._answers.register()
        answers = self.answers
        sizes = {"image_bytes": image.size, "answer_bytes": answers.size}
        self.ask("map_images", sizes, limit_s=limit_s, fds=(image.fd, answers.fd))
        self._image = image

    @property
    def answers(self) -> Image:
        """Where this worker reads back to."""
        assert self._answers is not None
        return self._answers

    def post(self, op: str, args: Mapping[str, Any]) -> str:
        """Send without waiting; `wait` takes the answer. For sampling telemetry meanwhile."""
        self.wait_ready()
        self.cont()
        return self._post(op, args)

    def wait(self, nonce: str, *, limit_s: float) -> dict[str, Any]:
        """The answer to `post`; errors as for `ask`."""
        return self._await(nonce, time.monotonic() + limit_s)

    def _post(self, op: str, args: Mapping[str, Any], fds: tuple[int, ...] = ()) -> str:
        nonce = secrets.token_hex(16)
        try:
            self._socket.settimeout(30.0)
            send(self._socket, {"op": op, "args": dict(args), "nonce": nonce}, fds)
        except OSError as error:
            raise self._death(f"the worker is gone: {error}") from error
        return nonce

    def _await(self, nonce: str, deadline: float) -> dict[str, Any]:
        try:
            message = receive(self._socket, deadline)
        except WorkerTimeout:
            self.kill()
            raise
        except WorkerDied as error:
            raise self._death(str(error)) from error
        if message.get("nonce") != nonce:
            self.kill()
            raise WorkerDied("the worker answered a request that was not asked")
        if message.get("ok") is True and isinstance(message.get("value"), dict):
            return dict(message["value"])
        told = message.get("error")
        if not isinstance(told, dict) or told.get("kind") not in ERROR_KINDS:
            self.kill()
            raise WorkerDied("the worker's answer is neither a value nor an error")
        raise RequestFailed(told["kind"], _storable(told.get("message")), _storable(told.get("trace", "")))

    def _death(self, what: str) -> WorkerDied:
        """What the end of the conversation means; whatever is left of the worker is killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(LAST_WORDS_S)  # it is dying by itself, and says how
        ended = self._process.returncode  # None: it lives, and hung up
        over = self._watch.over if self._watch is not None else ""
        self.kill()
        if over:
            return WorkerOverCap(f"{over}; the worker was killed")
        if self._sandboxed and (ended or 0) < 0:
            return WorkerLost(self._account("the worker was killed from outside"))
        return WorkerDied(self._account(what))

    def _account(self, what: str) -> str:
        """`what`, with how the process ended and the end of what it printed."""
        code = self._process.returncode or 0
        died_of = -code if code < 0 else code - 128 if self._sandboxed and code > 128 else 0
        how = f" (exit code {code})" if code else ""
        with contextlib.suppress(ValueError):
            how = f" (signal {signal.Signals(died_of).name})" if died_of else how
        tail = [n for n in self.log_tail().strip().splitlines() if not n.startswith(PROFILERS_OWN)][-1:]
        return what + how + (f": {tail[0][:300]}" if tail else "")

    def log_tail(self) -> str:
        """The end of what the worker printed."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - LOG_TAIL))
        return self._log.read(LOG_TAIL).decode(errors="replace")

    def stop(self) -> None:
        """Freeze every process it has become, so that nothing of it runs while another is timed."""
        if not self.stopped and self.alive:
            freeze(self.pid)
            self.stopped = True

    def cont(self) -> None:
        """Undo `stop`."""
        if self.stopped:
            thaw(self.pid)
            self.stopped = False

    def busy(self) -> bool:
        """Whether any thread of its processes runs, or would if a processor were free."""
        return busy(members(self.pid))

    def cpu_ms(self) -> float:
        """Processor time that its processes have used so far."""
        return sum(spell.ran_ms for spell in spells(members(self.pid)).values())

    def sight(self) -> Sight:
        """What the operating system tells of them at this moment, and of the thread that asks."""
        return sight_of(members(self.pid))

    def kill(self) -> None:
        """End every process it has become, and wait until they are gone."""
        if self._process.returncode is not None:
            if not self._buried:  # it ended by itself; without a sandbox its children may live on
                self._buried = True
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
            return  # later its number may be another's
        everybody = members(self.pid)
        end(self.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10.0)
        gone(everybody, within_s=10.0)

    def close(self) -> None:
        """Kill, and remove the private folder."""
        if self._watch is not None:
            self._watch.close()
        self.kill()
        self._socket.close()
        self._log.close()
        if self._answers is not None:
            self._answers.close()
            self._answers = None
        self._private.cleanup()


def _storable(told: object) -> str:
    """Text that UTF-8 can hold: what a worker says may carry lone surrogates."""
    return str(told).encode("utf-8", "replace").decode("utf-8")
