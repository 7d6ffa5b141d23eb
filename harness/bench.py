"""Owns the machine side of a run: the device, its lock, workers, the shared image, telemetry."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

import torch

from baselines import BASELINES
from harness.build.backends import BACKENDS
from harness.build.manifest import Manifest
from harness.build.products import ARCH_VARIABLE
from harness.environment import describe
from harness.experiment import Cell, Experiment
from harness.ledger import Ledger
from harness.measure.telemetry import machine_name, open_telemetry
from harness.presses import Presses, machine_arch, ptx_arch
from harness.targets import Target, target_of_device
from harness.verify.exam import Exam, ImageStore, Question, image_layout
from harness.warmup import compile_ahead, jobs
from harness.worker.caps import Caps
from harness.worker.loading import packed
from harness.worker.pool import WorkerPool
from harness.worker.process import Worker
from harness.worker.protocol import RequestFailed, WorkerError
from harness.worker.sandbox import Sandbox
from tasks.spec import Task, Workload

# Modules that every worker needs sooner or later; importing them early hides their cost.
_WARM = {"cuda": ("triton", "harness.worker.slots", "harness.worker.image"), "cpu": ("harness.worker.slots",)}


CONTENTS = 3  # sets of inputs of a cell: two that are timed, one adversarial
RESTING = 6  # workers of candidates that wait for their next turn: some 300 MB each


class MachineError(RuntimeError):
    """This machine is not what the experiment needs; the text names the way out."""


@dataclass
class Seat:
    """A candidate in a worker of its own, kept over the cells of its group."""

    manifest: Manifest
    worker: Worker
    interpreted: bool = False
    entries: set[str] = field(default_factory=set)


def machine_device(target: Target, stand_in: Target | None = None) -> torch.device:
    """The device of a target, or of the GPU that stands in for it; raises MachineError for another."""
    if not target.is_gpu:
        return torch.device("cpu")
    if stand_in is not None:
        target = stand_in
    if not torch.cuda.is_available():
        raise MachineError(
            f"this machine has no usable GPU, and {target.name} needs one. "
            "Run `nox -s eval-cpu` here, or `attnbench doctor` to see why CUDA is not usable."
        )
    name = torch.cuda.get_device_name(0)
    found = target_of_device(name)
    if found is None or found.name != target.name:
        fits = (
            f"`nox -s eval-{found.name}`" if found else "an experiment file of your own with a known target"
        )
        raise MachineError(f"this machine has a {name}, not a {target.title}. What fits here: {fits}.")
    return torch.device("cuda", 0)


def can_stand_in(stand_in: Target, target: Target) -> bool:
    """Whether the driver of one GPU compiles the PTX of another."""
    return stand_in.is_gpu and target.is_gpu and (stand_in.capability or ()) >= (target.capability or ())


class Bench:
    """Everything a cell needs of the machine. Use as a context manager."""

    def __init__(
        self,
        experiment: Experiment,
        target: Target,
        *,
        task_folders: Sequence[Path] = (),
        sandbox: Sandbox | None = None,
        caps: Caps | None = None,
        stand_in: Target | None = None,
    ) -> None:
        self.experiment, self.target = experiment, target
        self.stand_in = stand_in  # proves the target's kernels in its place, and times nothing
        self.device = machine_device(target, stand_in)
        self.kind: Literal["cpu", "cuda"] = "cuda" if self.device.type == "cuda" else "cpu"
        self.task_folders = tuple(task_folders)
        self.limits, self.policy = experiment.request_limits, experiment.policy
        self.seed = experiment.seed if experiment.seed is not None else secrets.randbits(31)
        self.ledger = Ledger()
        self.sandbox = sandbox  # None: candidates have this user's rights, and every result says so
        self._caps = caps or Caps.of_this_machine()
        self._lock = _lock_device(self.device)
        with self.ledger.stage("start"):
            self._start()

    def _start(self) -> None:
        self.images = ImageStore()
        self._seats: dict[str, Seat] = {}
        self._resting: list[Manifest] = []  # with a seat, and perhaps with no turn to come; oldest first
        self._library: Worker | None = None
        self._library_has: set[str] = set()
        self._cache = tempfile.TemporaryDirectory(prefix="attnbench-cache-", ignore_cleanup_errors=True)
        self._new_library()
        self.cuda_arch = ptx_arch(self.target) if self.stand_in else machine_arch(self.target)
        self._cuda_cache.mkdir()
        self.presses = Presses(self.target, self._cuda_cache, self.cuda_arch, self.sandbox)
        self.pool = WorkerPool(
            str(self.device),
            sandbox=self.sandbox,
            warm=_WARM[self.kind],
            products=self._cuda_cache,
            caps=self._caps,
        )
        self.telemetry = open_telemetry(self.device.index if self.kind == "cuda" else None)
        self.environment = describe(self.target, self.device, self.sandbox.name if self.sandbox else "none")

    @property
    def sandboxed(self) -> bool:
        return self.sandbox is not None

    @property
    def _cuda_cache(self) -> Path:
        """Where what the judge compiles of CUDA is kept, by content; workers can only read it."""
        return Path(self._cache.name) / "cuda"

    @property
    def proven_on(self) -> str:
        """What a kernel's numerics are proven by, where it is not timed; "" where it is."""
        if self.stand_in is None:
            return ""
        device, arch, target = self.environment.device, self.cuda_arch, self.target.name
        return f"numerics proven on {device} from PTX of {arch}; the speed of {target} was not measured"

    def warm_up(self, cells: Sequence[Cell], baselines: Sequence[str]) -> None:
        """Make the image as large as any cell needs, and compile in parallel what takes long."""
        self.images.at_least(max(image_layout(c.task, c.workload, CONTENTS).total for c in cells))
        with self.ledger.stage("compile ahead"):
            work = jobs(cells, baselines, self.target)
            compile_ahead(work, str(self.device), Path(self._cache.name), self.limits, self.task_folders)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.presses.close()
        self.pool.close()
        if self._library is not None:
            self._library.close()
        self.images.close()
        self.telemetry.close()
        self._cache.cleanup()
        self._lock.close()

    def fresh_seed(self) -> int:
        """A new input seed; the sequence follows from the run's seed."""
        self.seed = (self.seed * 6364136223846793005 + 1442695040888963407) % (1 << 62)
        return self.seed >> 30

    def exam(self, task: Task, workload: Workload, questions: Sequence[Question]) -> Exam:
        """Draw inputs and expected values for a workload."""
        with self.ledger.stage("oracle"):
            return Exam(
                task,
                workload,
                questions,
                self.images,
                self.device,
                self.limits,
                self.task_folders,
                self.target.reference,
            )

    def slots(self, cell: Cell) -> int:
        """Rotating slots: together more than five times the L2, from two to sixteen (four on a CPU)."""
        one = cell.task.bytes(cell.workload)
        most = 16 if self.target.is_gpu else 4
        return max(2, min(most, -(-5 * self.target.l2_bytes // one)))

    def _new_library(self) -> None:
        self._library = Worker(
            str(self.device), trusted=True, warm=_WARM[self.kind], cache=Path(self._cache.name)
        )
        self._library_has = set()

    def library_worker(self) -> Worker:
        """The trusted worker of the human baselines; a new one where the last died."""
        if self._library is None or not self._library.alive:
            if self._library is not None:
                self._library.close()
            self._new_library()
        assert self._library is not None
        with self.ledger.stage("worker start"):
            try:
                self._library.wait_ready()
            except WorkerError as error:
                raise MachineError(_cannot_start(error)) from error
        return self._library

    def load_baseline(self, name: str, kernel: str) -> Worker:
        """The library worker with this baseline loaded as `kernel`."""
        worker = self.library_worker()
        if kernel not in self._library_has:
            worker.ask("load", {"kernel": kernel, "baseline": name}, limit_s=self.limits.load_s)
            self._library_has.add(kernel)
        return worker

    def seat(self, manifest: Manifest, entry: str) -> Seat:
        """The candidate's own worker with the entry for a task loaded; raises WorkerError."""
        seat = self._seats.get(manifest.sha256)
        if seat is None or not seat.worker.alive:
            self.dismiss(manifest)
            with self.ledger.stage("worker start"):
                seat = Seat(manifest, self._worker())
            self._seats[manifest.sha256] = seat
        if entry not in seat.entries:
            args = {
                "kernel": entry,
                "source": packed(manifest.sha256[:16], manifest.files),
                "entry": entry,
                "backend": manifest.backend,
                "environment": {ARCH_VARIABLE: self.cuda_arch},
            }
            with self.ledger.stage("build"):
                seat.worker.ask("load", args, limit_s=self.limits.load_s)
            seat.interpreted = BACKENDS[manifest.backend].interpreted(self.kind)
            seat.entries.add(entry)
        return seat

    def _worker(self) -> Worker:
        """A fresh one. That it cannot start is no kernel's fault: raises MachineError."""
        try:
            return self.pool.take()
        except WorkerError:
            for resting in [seat.manifest for seat in self._seats.values()]:
                self.dismiss(resting)  # one of them may hold the memory
        try:
            return self.pool.take()
        except WorkerError as error:
            raise MachineError(_cannot_start(error)) from error

    def dismiss(self, manifest: Manifest) -> None:
        """Bury the candidate's worker, if it has one."""
        seat = self._seats.pop(manifest.sha256, None)
        self._resting = [m for m in self._resting if m.sha256 != manifest.sha256]
        if seat is not None:
            self.pool.bury(seat.worker)

    def rest(self, manifest: Manifest) -> None:
        """The candidate's turn is over, and another may come: on a CPU the latest few keep their workers.

        There, compiling again would cost most of the time. On a GPU a context costs memory, and compiled
        kernels are found again in the candidate's cache.
        """
        seat = self._seats.get(manifest.sha256)
        if seat is None or self.kind == "cuda":
            self.dismiss(manifest)
            return
        self.release([seat.worker])
        seat.worker.stop()  # nothing of it runs while others are timed
        self._resting = [*(m for m in self._resting if m.sha256 != manifest.sha256), manifest]
        while len(self._resting) > RESTING:
            self.dismiss(self._resting.pop(0))

    def after_failure(self, worker: Worker, error: WorkerError) -> None:
        """A CUDA context does not survive a device error, and memory that ran out is the others' too."""
        if isinstance(error, RequestFailed) and error.kind in ("device", "out_of_memory"):
            worker.kill()

    def release(self, workers: Sequence[Worker]) -> None:
        """Give back slots and graphs between cells."""
        with self.ledger.stage("transfer"):
            for worker in workers:
                if worker.alive:
                    with contextlib.suppress(WorkerError):
                        worker.ask("close_layout", limit_s=self.limits.call_s)


def _cannot_start(error: WorkerError) -> str:
    return (
        f"a worker cannot be started: {error}. What was recorded is kept; "
        "see `attnbench doctor`, then go on with --resume."
    )


def _lock_device(device: torch.device) -> IO[str]:
    """One job at a time on a GPU: a lock in the temporary folder, by the machine's name of the device."""
    index = machine_name(device.index or 0) if device.type == "cuda" else "0"
    name = f"attnbench-{device.type}-{index}-{os.getuid()}.lock"
    lock = (Path(tempfile.gettempdir()) / name).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise MachineError(f"another attnbench is measuring on {device}; wait for it to end") from error
    return lock


def usable_baselines(names: Sequence[str], task: Task, workload: Workload, target: Target) -> dict[str, str]:
    """Baseline -> reason it cannot run this here, empty where it can."""
    reasons = {}
    for name in names:
        baseline = BASELINES[name]
        library = baseline.library()
        reason = library.missing or baseline.unsupported(task, workload, target) or ""
        reasons[name] = f"{reason} ({library.install})" if library.missing and library.install else reason
    return reasons
