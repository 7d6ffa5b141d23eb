"""Owns a worker's life: start in its own process group, ask with a time limit, stop, kill, bury.

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

from harness.worker.image import Image
from harness.worker.protocol import (
    ERROR_KINDS,
    RequestFailed,
    WorkerDied,
    WorkerError,
    WorkerTimeout,
    receive,
    send,
)

START_LIMIT_S = 120.0
LOG_TAIL = 4000
ROOT = Path(__file__).resolve().parents[2]

# What a worker may see of our environment: where programs and libraries are, nothing else.
ENVIRONMENT_ALLOWED = (
    "PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES",
    "LANG", "LC_ALL", "TZ", "CC", "CXX", "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "NVIDIA_VISIBLE_DEVICES",
)  # fmt: skip


class Worker:
    """One child process; `private` is its own writable folder (caches, temporary files)."""

    def __init__(
        self,
        device: str,
        *,
        trusted: bool,
        wrap: Sequence[str] = (),
        warm: Sequence[str] = (),
        cache: Path | None = None,
    ) -> None:
        self.device = device
        self.trusted = trusted
        self._image: Image | None = None
        self._cache = cache  # compiled kernels that trusted workers share
        self._private = tempfile.TemporaryDirectory(prefix="attnbench-worker-", ignore_cleanup_errors=True)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        ours, theirs = socket.socketpair()
        self._socket = ours
        command = [*wrap, sys.executable, "-m", "harness.worker.child", str(theirs.fileno())]
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
        self._ready = False
        self.stopped = False

    def _environment(self) -> dict[str, str]:
        env = {name: os.environ[name] for name in ENVIRONMENT_ALLOWED if name in os.environ}
        path = [str(ROOT), *filter(None, [env.get("PYTHONPATH", "")])]
        private = self._private.name
        cache = self._cache or private
        return env | {
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONUNBUFFERED": "1",
            "HOME": private,
            "TMPDIR": private,
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

    def map(self, image: Image, *, limit_s: float = 30.0) -> None:
        """Give the worker the shared image, once."""
        if self._image is not image:
            self.ask("map_image", {"size": image.size}, limit_s=limit_s, fds=(image.fd,))
            self._image = image

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
            self.kill()
            raise WorkerDied(self._account(f"the worker is gone: {error}")) from error
        return nonce

    def _await(self, nonce: str, deadline: float) -> dict[str, Any]:
        try:
            message = receive(self._socket, deadline)
        except WorkerTimeout:
            self.kill()
            raise
        except WorkerDied as error:
            self.kill()
            raise WorkerDied(self._account(str(error))) from error
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

    def _account(self, what: str) -> str:
        """`what`, with how the process ended and the end of what it printed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)
        code = self._process.returncode
        how = (
            ""
            if code is None
            else f" (signal {signal.Signals(-code).name})"
            if code < 0
            else f" (exit code {code})"
        )
        tail = self.log_tail().strip().splitlines()[-1:]
        return what + how + (f": {tail[0][:300]}" if tail else "")

    def log_tail(self) -> str:
        """The end of what the worker printed."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - LOG_TAIL))
        return self._log.read(LOG_TAIL).decode(errors="replace")

    def stop(self) -> None:
        """Freeze every process of the group, so that nothing of it runs while another is timed."""
        if not self.stopped and self.alive:
            self._signal(signal.SIGSTOP)
            self.stopped = True

    def cont(self) -> None:
        """Undo `stop`."""
        if self.stopped:
            self._signal(signal.SIGCONT)
            self.stopped = False

    def kill(self) -> None:
        """End the whole process group and release what it held."""
        self._signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10.0)

    def close(self) -> None:
        """Kill, and remove the private folder."""
        self.kill()
        self._socket.close()
        self._log.close()
        self._private.cleanup()

    def _signal(self, which: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, which)


def _storable(told: object) -> str:
    """Text that UTF-8 can hold: what a worker says may carry lone surrogates."""
    return str(told).encode("utf-8", "replace").decode("utf-8")


class WorkerPool:
    """Hands out candidate workers; keeps one warm spare, because a start takes 5-7 s on a GPU host."""

    def __init__(self, device: str, *, wrap: Sequence[str] = (), warm: Sequence[str] = ()) -> None:
        self._device = device
        self._wrap = wrap
        self._warm = warm
        self._spare: Worker | None = None
        self._out: list[Worker] = []

    def warm_up(self) -> None:
        """Start the spare without waiting for it."""
        if self._spare is None:
            self._spare = Worker(self._device, trusted=False, wrap=self._wrap, warm=self._warm)

    def take(self, *, refill: bool = True) -> Worker:
        """A fresh worker; the next spare starts in the background where `refill`."""
        self.warm_up()
        worker, self._spare = self._spare, None
        assert worker is not None
        self._out.append(worker)
        try:
            worker.wait_ready()
        except WorkerError:
            self.bury(worker)
            raise
        if refill:
            self.warm_up()
        return worker

    def bury(self, worker: Worker) -> None:
        """Kill a worker that is done or that misbehaved."""
        if worker in self._out:
            self._out.remove(worker)
        worker.close()

    def close(self) -> None:
        """End every worker."""
        for worker in [*self._out, *([self._spare] if self._spare else [])]:
            worker.close()
        self._out.clear()
        self._spare = None
