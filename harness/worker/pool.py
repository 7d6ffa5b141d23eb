"""Owns handing out workers for candidates: fresh ones, with one warm spare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.worker.caps import Caps
from harness.worker.process import Worker
from harness.worker.protocol import WorkerError
from harness.worker.sandbox import Sandbox


class WorkerPool:
    """Hands out candidate workers; keeps one warm spare, because a start takes 5-7 s on a GPU host."""

    def __init__(
        self,
        device: str,
        *,
        sandbox: Sandbox | None = None,
        warm: Sequence[str] = (),
        products: Path | None = None,
        caps: Caps | None = None,
    ) -> None:
        self._device, self._sandbox, self._warm = device, sandbox, warm
        self._products, self._caps = products, caps
        self._spare: Worker | None = None
        self._out: list[Worker] = []

    def warm_up(self) -> None:
        """Start the spare without waiting for it."""
        if self._spare is None:
            self._spare = Worker(
                self._device,
                trusted=False,
                sandbox=self._sandbox,
                warm=self._warm,
                cache=self._products,
                caps=self._caps,
            )

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
