"""Owns compiling candidates' CUDA ahead, on the CPU's cores, and what is then known of their kernels.

A candidate's own code says which kernels a call launches: it is asked in a worker, with tensors that hold
nothing. What it names is compiled here, into the cache where its worker finds it, so nobody's word but the
compiler's says what a kernel takes of a multiprocessor.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.build.launches import Planned
from harness.build.manifest import Manifest
from harness.build.nvrtc import CompileError, CompilerMissing, Recipe
from harness.build.products import Product
from harness.build.resources import facts, first_without_spills, occupancy
from harness.experiment import Cell
from harness.records import CompiledKernel
from harness.targets import Target
from harness.worker.caps import Caps
from harness.worker.loading import packed
from harness.worker.process import Worker
from harness.worker.protocol import WorkerError
from harness.worker.sandbox import Sandbox

PLAN_LIMIT_S = 60.0
MOST_RECIPES = 32  # that one call may ask for: what follows is a fault, or an attack on the cores


class CannotPlan(RuntimeError):
    """A candidate does not say what it launches without a GPU; its kernels are compiled where it runs."""


@dataclass(frozen=True)
class Press:
    """What a candidate launches on one cell, compiled; `problem` says why there is nothing."""

    kernels: tuple[CompiledKernel, ...] = ()
    problem: str = ""


def machine_arch(target: Target) -> str:
    """The architecture whose machine code a target runs: from sm_90 on with its own instructions."""
    return target.arch + ("a" if (target.capability or (0, 0)) >= (9, 0) else "")


def ptx_arch(target: Target) -> str:
    """The architecture of PTX that stands for a target on newer GPUs."""
    return target.arch.replace("sm_", "compute_")


class Presses:
    """Compiles in the background. `arch`: what workers compile for, beside the target's machine code."""

    def __init__(self, target: Target, cache: Path, arch: str, sandbox: Sandbox | None) -> None:
        self._target, self._cache, self._arch, self._sandbox = target, cache, arch, sandbox
        cores = len(os.sched_getaffinity(0))
        self._planners = ThreadPoolExecutor(max(1, min(4, cores // 4)))
        self._compilers = ThreadPoolExecutor(cores)
        self._found: dict[tuple[str, str], Future[Press]] = {}

    def foresee(self, manifest: Manifest, cells: Sequence[Cell]) -> None:
        """Begin to compile what a candidate launches on these cells; returns at once."""
        fresh = [
            c for c in cells if c.task.name in manifest.tasks and self._key(manifest, c) not in self._found
        ]
        if manifest.backend != "cuda" or not fresh:
            return
        futures: dict[tuple[str, str], Future[Press]] = {self._key(manifest, c): Future() for c in fresh}
        self._found |= futures
        self._planners.submit(self._plan, manifest, fresh, futures)

    def of(self, manifest: Manifest, cell: Cell, wait_s: float | None = 0.0) -> Press | None:
        """What is known so far of a candidate on a cell; None: nothing yet. `wait_s` None waits for it."""
        found = self._found.get(self._key(manifest, cell))
        if found is None:
            return None
        try:
            return found.result(wait_s)
        except TimeoutError:
            return None

    def close(self) -> None:
        """Begin nothing more; what is being compiled goes on to its end or its limit."""
        for pool in (self._planners, self._compilers):
            pool.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def _key(manifest: Manifest, cell: Cell) -> tuple[str, str]:
        return manifest.sha256, f"{cell.task.name}/{cell.workload.key}"

    def _plan(
        self, manifest: Manifest, cells: Sequence[Cell], futures: dict[tuple[str, str], Future[Press]]
    ) -> None:
        try:
            worker = Worker("cpu", trusted=False, sandbox=self._sandbox)
        except (OSError, WorkerError) as error:
            for future in futures.values():
                future.set_result(Press(problem=f"no worker: {error}"))
            return
        try:
            for cell in cells:
                future = futures[self._key(manifest, cell)]
                try:
                    future.set_result(self._press(worker, manifest, cell))
                except (WorkerError, CannotPlan, CompileError, CompilerMissing) as error:
                    future.set_result(Press(problem=str(error)))
        finally:
            worker.close()
            for future in futures.values():
                if not future.done():
                    future.set_result(Press(problem="it was not asked"))

    def _press(self, worker: Worker, manifest: Manifest, cell: Cell) -> Press:
        def begun(arch: str) -> list[tuple[Planned, Future[tuple[Recipe, Product]]]]:
            plans = launches(worker, manifest, cell, arch)
            return [(p, self._compilers.submit(self._compile, p)) for p in plans]

        machine = machine_arch(self._target)
        other = begun(self._arch) if self._arch != machine else []  # what the GPU at hand will be given
        real = begun(machine)
        for _, job in other:
            job.result()
        return Press(tuple(kernel for plan, job in real for kernel in described(plan, job.result())))

    def _compile(self, plan: Planned) -> tuple[Recipe, Product]:
        """Confined: a source can name any file of the machine to be included, and the log shows it."""
        sandbox = self._sandbox
        if sandbox is None:
            return first_without_spills(plan.recipes, self._cache)
        caps = Caps.of_this_machine()
        return first_without_spills(
            plan.recipes, self._cache, wrap=lambda command: sandbox.command(command, caps=caps)
        )


def launches(worker: Worker, manifest: Manifest, cell: Cell, arch: str) -> list[Planned]:
    """What one call launches, told by the candidate itself; raises CannotPlan, WorkerError."""
    task, workload = cell.task, cell.workload
    args = {
        "source": packed(manifest.sha256[:16], manifest.files),
        "entry": manifest.entry(task.name),
        "arch": arch,
        "tensors": [[list(t.shape(workload)), t.dtype_of(workload)] for t in task.tensors],
        "scalars": task.scalars(workload),
    }
    told = worker.ask("launches", args, limit_s=PLAN_LIMIT_S)
    try:
        found = dict.fromkeys(_planned(launch) for launch in told["launches"])
    except (AttributeError, KeyError, TypeError, ValueError, CompileError) as error:
        raise CannotPlan(f"it named no launches that can be: {error}") from error
    if not found:
        raise CannotPlan("a call launched no kernel of its own")
    if sum(len(plan.recipes) for plan in found) > MOST_RECIPES:
        raise CannotPlan(f"one call asks for more than {MOST_RECIPES} compilations")
    return list(found)


def _planned(told: Mapping[str, Any]) -> Planned:
    """As a worker told it; raises for what is no launch."""
    recipes = []
    for recipe in told["recipes"]:
        pairs = {name: tuple((str(k), str(v)) for k, v in recipe[name]) for name in ("defines", "headers")}
        recipes.append(Recipe(**{**recipe, **pairs, "names": tuple(map(str, recipe["names"]))}))
    (gx, gy, gz), (bx, by, bz) = told["grid"], told["block"]
    return Planned(tuple(recipes), (gx, gy, gz), (bx, by, bz), int(told["shared_bytes"]))


def described(plan: Planned, made: tuple[Recipe, Product]) -> list[CompiledKernel]:
    """The kernels of a product as they are recorded, for the launch that was planned."""
    recipe, product = made
    wanted = {symbol: name for name, symbol in product.lowered.items()}
    out = []
    for kernel in facts(product):
        if kernel.symbol not in wanted:
            continue
        shared = kernel.shared_bytes + plan.shared_bytes
        room = None
        with contextlib.suppress(KeyError):
            room = occupancy(product.arch, kernel.registers, plan.threads, shared)
        out.append(
            CompiledKernel(
                name=wanted[kernel.symbol],
                arch=product.arch,
                optimize=recipe.optimize,
                registers=kernel.registers,
                spill_bytes=kernel.spill_bytes,
                threads=plan.threads,
                shared_bytes=shared,
                blocks=None if room is None else room.blocks,
                occupancy=None if room is None else round(room.share, 4),
                limited_by="" if room is None else room.limited_by,
                tensor_core=kernel.tensor_core,
                copies=kernel.copies,
                compile_s=product.seconds,
            )
        )
    return out
