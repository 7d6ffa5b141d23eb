"""Owns what a worker's word on times must look like before the judge reads on: numbers, as many as asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.worker.protocol import WorkerDied

SHORTEST_MS = 1e-6  # a nanosecond: no clock here tells less
LONGEST_MS = 1e9


@dataclass(frozen=True)
class BlockRecord:
    """One block by the kernel records."""

    kernel: str  # the name under which the judge had it timed
    spans_ms: list[float]  # by iteration
    kernels: list[tuple[str, float, float]]  # name, launches and ms in one iteration


def claimed_times(answer: dict[str, Any], key: str, count: int) -> list[float]:
    """The worker's samples, if they are `count` numbers from 1 ns up; else WorkerDied."""
    try:
        samples = [float(x) for x in answer[key]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WorkerDied(f"the worker's {key} are not times") from error
    if len(samples) != count or not all(SHORTEST_MS <= x < LONGEST_MS for x in samples):
        raise WorkerDied(f"the worker's {key} are not {count} times")
    return samples


def claimed_record(told: Any) -> BlockRecord:
    """The worker's record of a block, if it is one; else WorkerDied."""
    try:
        spans = claimed_times(told, "spans_ms", len(told["spans_ms"]))
        kernels = [(_storable(name), float(n), float(ms)) for name, n, ms in told["kernels"]]
        record = BlockRecord(str(told["kernel"]), spans, kernels)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WorkerDied("the worker's kernel records are none") from error
    if not all(0 < x < LONGEST_MS for _, n, ms in kernels for x in (n, ms)):
        raise WorkerDied("the worker's kernel records hold no times")
    return record


@dataclass(frozen=True)
class ProfiledCall:
    """One call on a CPU by PyTorch's profiler."""

    operators: dict[str, float]  # outermost ones by name, ms
    wall_ms: float


def claimed_operators(told: Any, count: int) -> list[ProfiledCall]:
    """What the worker's profiler saw of `count` calls, if the worker told such; else WorkerDied."""
    try:
        calls = [
            ProfiledCall(
                {_storable(name): float(ms) for name, ms in call["operators"].items()},
                float(call["wall_ms"]),
            )
            for call in told["calls"]
        ]
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise WorkerDied("the worker's operators are none") from error
    times = [ms for call in calls for ms in (*call.operators.values(), call.wall_ms)]
    if len(calls) != count or not all(0 <= ms < LONGEST_MS for ms in times):
        raise WorkerDied(f"the worker's operators are not those of {count} calls")
    return calls


def quickest(calls: Sequence[ProfiledCall]) -> tuple[dict[str, float], float]:
    """Each operator at its quickest, of the calls that have it, and the quickest call's ms.

    Load holds up a call anywhere, and hastens nothing.
    """
    found: dict[str, float] = {}
    for call in calls:
        for name, ms in call.operators.items():
            found[name] = min(ms, found.get(name, ms))
    return found, min(call.wall_ms for call in calls)


def _storable(name: object) -> str:
    """Without lone surrogates, which JSON may carry and UTF-8 may not."""
    return str(name).encode(errors="replace").decode()
