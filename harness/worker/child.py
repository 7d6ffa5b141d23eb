"""Owns the hostile side: a process that loads kernels and does what the judge asks, one request at a time.

Everything it says is a claim. It holds inputs and outputs only: no expected value, no
tolerance, no verdict. It imports neither the oracle nor the tolerance rule.
Started as `python -m harness.worker.child <socket fd> [<caps>]`; ends when the socket closes. With caps,
it forbids itself what untrusted code must not do before it answers anything.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.worker.caps import Caps, confine
from harness.worker.loading import Handler, State, launches, load
from harness.worker.protocol import ErrorKind, ImageLayout, RequestFailed, WorkerDied, receive, send


def hello(state: State, args: Mapping[str, Any], _: list[int]) -> dict[str, Any]:
    """Import torch and open the device: the slow part of a start."""
    if args["device"] == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    from harness.measure.timing import CpuClock, GpuClock, cpu_threads

    state.device = torch.device(args["device"])
    if state.device.type == "cuda":
        torch.cuda.set_device(state.device)
        torch.zeros(1, device=state.device)
        state.clock = GpuClock(state.device)
        state.idle_bytes = torch.cuda.memory_allocated() + (64 << 20)
    else:
        torch.set_num_threads(cpu_threads())
        state.clock = CpuClock()
    for name in args["warm"]:
        __import__(name)
    return {"pid": os.getpid(), "torch": torch.__version__}


def map_images(state: State, args: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
    """Map the inputs, to read, and the area for answers, whose descriptors came with the request."""
    from harness.worker.image import Image

    if len(fds) != 2:
        raise RequestFailed("protocol", "map_images needs two descriptors")
    state.slots = None
    for old in (state.image, state.answers):
        if old is not None:
            old.close()
    state.image = Image(fds[0], args["image_bytes"], writable=False)
    state.answers = Image(fds[1], args["answer_bytes"], writable=True)
    if state.device.type == "cuda":
        state.image.register()
        state.answers.register()
    return {}


def open_layout(state: State, args: Mapping[str, Any], _: list[int]) -> dict[str, Any]:
    """Allocate slots for a workload; what was there before is released."""
    import torch

    from harness.worker.slots import Slots
    from tasks import Workload, find

    close_layout(state, args, [])
    layout = ImageLayout.from_json(args["layout"])
    workload = dict(args["workload"])
    workload["parameters"] = tuple((n, v) for n, v in workload["parameters"])
    state.workload = Workload(**workload)
    state.task = None
    if args["task_needed"]:
        state.task = find(state.workload.task, *(Path(p) for p in args["task_folders"]))
    state.scalars = args["scalars"]
    state.slots = Slots(layout, args["slots"], state.device)
    if state.device.type == "cuda":
        torch.cuda.synchronize()
    return {}


def close_layout(state: State, args: Mapping[str, Any], _: list[int]) -> dict[str, Any]:
    """Release slots, graphs and results."""
    state.slots = None
    state.timed.clear()
    state.results.clear()
    state.static.clear()
    state.block_sizes.clear()
    if state.device.type == "cuda":
        import gc

        import torch

        torch.cuda.synchronize()
        if torch.cuda.memory_allocated() > state.idle_bytes:
            gc.collect()  # slow with a compiler's heap around: only where something still holds tensors
        torch.cuda.empty_cache()
    return {}


def fill(state: State, args: Mapping[str, Any], _: list[int]) -> dict[str, Any]:
    """Put contents into slots: pairs (slot, content)."""
    for slot, content in args["pairs"]:
        state.slots.fill(slot, state.image, content)
    _synchronize(state)
    return {}


def prepare(state: State, args: Mapping[str, Any], _: list[int]) -> dict[str, Any]:
    """Bind a kernel to the slots; a baseline makes its plan for each slot."""
    from harness.measure.timing import Timed

    kernel = args["kernel"]
    loaded = state.loaded[kernel]
    slots = len(state.slots)
    if loaded.baseline is not None:
        slots = 1 if loaded.baseline.slow else slots  # a slow one gains nothing from rotating
        calls = [_plan(state, loaded.baseline, slot) for slot in range(slots)]

        def call(slot: int) -> object:
            result = state.results[kernel, slot] = calls[slot]()
            return result

        capture = not loaded.baseline.slow
    else:
        function = loaded.function
        assert function is not None
        names = [t.name for t in state.slots.layout.tensors]
        arguments = [[state.slots[s].tensors[n] for n in names] for s in range(slots)]

        def call(slot: int) -> object:
            return function(*arguments[slot], **state.scalars)

        capture = True
    state.timed[kernel] = Timed(call, slots, capture)
    return {}


def _plan(state: State, baseline: Any, slot: int) -> Callable[[], Any]:
    from baselines.base import CannotRun

    inputs = {
        t.name: state.slots[slot].tensors[t.name] for t in state.slots.layout.tensors if t.role == "input"
    }
    try:
        plan: Callable[[], Any] = baseline.plan(state.task, state.workload, inputs)
    except CannotRun as error:
        raise RequestFailed("cannot_run", str(error)) from error
    return plan


def run(state: State, args: Mapping[str, Any], _: list[int]) -> dict[str, Any]:
    """Call a kernel once on a slot whose outputs are poisoned, then synchronise."""
    state.slots.poison(args["slot"])
    _synchronize(state)
    state.timed[args["kernel"]].call(args["slot"])
    _synchronize(state)
    return {}


def read_back(state: State, args: Mapping[str, Any], _: list[int]) -> dict[str, Any]:
    """Copy tensors of a slot, guards included, into the image."""
    key = (args["kernel"], args["slot"])
    result = state.static.get(key) if args["timed"] else None
    result = state.results.get(key) if result is None else result
    if result is not None:
        expected = next(t for t in state.slots.layout.tensors if t.role == "output")
        if tuple(result.shape) != expected.shape:
            raise RequestFailed("candidate", f"returned shape {tuple(result.shape)}, not {expected.shape}")
    state.slots.read_back(args["slot"], state.answers, set(args["names"]), result)
    _synchronize(state)
    return {}


def plan(state: State, args: Mapping[str, Any], _: list[int]) -> dict[str, Any]:
    """Warm up and capture."""
    timed = state.timed[args["kernel"]]
    state.clock.plan(timed)
    if timed.captured:  # what replays write to; eager calls after this return other tensors
        state.static.update({key: t for key, t in state.results.items() if key[0] == args["kernel"]})
    return {
        "estimate_ms": timed.estimate_ms,
        "captured": timed.captured,
        "capture_error": timed.capture_error,
    }


def block(state: State, args: Mapping[str, Any], _: list[int]) -> dict[str, Any]:
    """Timed iterations on rotating slots, whose inputs change before each."""
    from harness.worker.moves import from_json

    timed = state.timed[args["kernel"]]
    iterations = args["iterations"]
    moves = [from_json(told) for told in args["moves"]]

    def fresh(n: int, slot: int) -> None:
        state.slots.move(slot, moves[n])
        state.slots.poison(slot)

    samples = state.clock.block(timed, iterations, args["start"], fresh, args.get("cold", True))
    state.block_sizes.append((args["kernel"], iterations))
    state.copies += [3 * len(m) for m in moves]
    return {"samples_ms": samples}


def freshen(state: State, args: Mapping[str, Any], _: list[int]) -> dict[str, Any]:
    """Change the inputs of slots and poison their outputs: pairs (slot, moves); so many calls will follow."""
    from harness.worker.moves import from_json

    state.clock.chain(state.timed[args["kernel"]], args["calls"])
    for slot, told in args["slots"]:
        state.slots.move(slot, from_json(told))
        state.slots.poison(slot)
    _synchronize(state)
    return {}


def spin(state: State, args: Mapping[str, Any], _: list[int]) -> dict[str, Any]:
    """Iterations for the judge's own clock."""
    state.clock.spin(state.timed[args["kernel"]], args["iterations"])
    return {}


def latency(state: State, args: Mapping[str, Any], _: list[int]) -> dict[str, Any]:
    """Eager calls, each synchronised."""
    return {"samples_ms": state.clock.latency(state.timed[args["kernel"]], args["calls"])}


def operators(state: State, args: Mapping[str, Any], _: list[int]) -> dict[str, Any]:
    """Calls on a CPU as PyTorch's profiler sees them: of each its outermost operators, in ms."""
    import time

    from torch.autograd.profiler import profile as profiling  # torch.profiler's imports TorchDynamo: 2 s

    call = state.timed[args["kernel"]].call
    call(0)
    calls = []
    for _call in range(args["calls"]):
        with profiling(experimental_config=_every_thread()) as profile:
            begin = time.perf_counter_ns()
            call(0)
            wall_ms = (time.perf_counter_ns() - begin) / 1e6
        found: dict[str, float] = {}
        for event in profile.function_events or ():
            if event.cpu_parent is None:
                ms = max(event.cpu_time_total / 1e3, 0.0)  # less than none where a profile began within it
                found[event.name] = found.get(event.name, 0.0) + ms
        calls.append({"operators": found, "wall_ms": wall_ms})
    return {"calls": calls}


def _every_thread() -> Any:
    """A profiler's setting: operators of all threads, where this PyTorch can."""
    import torch

    try:
        return torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    except TypeError:
        return None


def compiled(state: State, args: Mapping[str, Any], _: list[int]) -> dict[str, Any]:
    """What the compiler says of the candidate's kernels so far."""
    from harness.build.compiled import compiler_report

    return {"text": compiler_report()}


def start_records(state: State, args: Mapping[str, Any], _: list[int]) -> dict[str, Any]:
    """Begin kernel records, where the device has them."""
    state.block_sizes.clear()
    state.copies.clear()
    if not hasattr(state.clock, "start_records"):
        return {"available": False}
    try:
        state.clock.start_records()
    except RuntimeError as error:
        return {"available": False, "reason": str(error)}
    state.recording = True
    return {"available": True}


def stop_records(state: State, args: Mapping[str, Any], _: list[int]) -> dict[str, Any]:
    """End kernel records: for each block in order its kernel's name and iterations (span, kernels)."""
    if not state.recording:
        return {"blocks": None}
    state.recording = False
    records = state.clock.stop_records(state.copies)
    if len(records) != sum(n for _, n in state.block_sizes):
        return {"blocks": None, "found": len(records), "expected": sum(n for _, n in state.block_sizes)}
    blocks = []
    at = 0
    for kernel, n in state.block_sizes:
        blocks.append(
            {
                "kernel": kernel,
                "spans_ms": [r.span_ms for r in records[at : at + n]],
                "kernels": _by_name(records[at : at + n]),
            }
        )
        at += n
    return {"blocks": blocks}


def _by_name(records: list[Any]) -> list[tuple[str, float, float]]:
    """(name, launches per iteration, ms per iteration) over the iterations of a block."""
    totals: dict[str, list[float]] = {}
    for record in records:
        for name, ms in record.kernels:
            entry = totals.setdefault(name, [0.0, 0.0])
            entry[0] += 1
            entry[1] += ms
    return [(name, n / len(records), ms / len(records)) for name, (n, ms) in totals.items()]


def _synchronize(state: State) -> None:
    if state.device.type == "cuda":
        import torch

        torch.cuda.synchronize()


HANDLERS: dict[str, Handler] = {
    f.__name__: f
    for f in (
        hello, map_images, load, launches, open_layout, close_layout, fill, prepare, run, read_back, plan,
        block, freshen, spin, latency, operators, compiled, start_records, stop_records,
    )
}  # fmt: skip


def _kind_of(error: BaseException) -> ErrorKind:
    text = f"{type(error).__name__}: {error}"
    if "OutOfMemory" in text or "out of memory" in text:
        return "out_of_memory"
    if "AcceleratorError" in text or "CUDA error" in text or "device-side assert" in text:
        return "device"
    if type(error).__name__ in (
        "CompileError",
        "CompilerMissing",
    ):  # of CUDA, when a kernel is first asked for
        return "build"
    return "candidate"


def answer(state: State, request: Mapping[str, Any], fds: list[int]) -> dict[str, Any]:
    """Run one request; whatever a candidate raises becomes an answer, not the end of the process."""
    try:
        value = HANDLERS[request["op"]](state, request["args"], fds)
        return {"nonce": request["nonce"], "ok": True, "value": value}
    except RequestFailed as error:
        kind, message, trace = error.kind, error.message, error.trace
    except (Exception, SystemExit) as error:  # the process boundary: the traceback travels
        kind, trace = _kind_of(error), traceback.format_exc()
        message = f"{type(error).__name__}: {error}"
    failure = {"kind": kind, "message": message[:4000], "trace": trace[-8000:]}
    return {"nonce": request["nonce"], "ok": False, "error": failure}


def _die_with_parent() -> None:
    """Be killed when the judge ends, however it ends, even in the middle of an endless call."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _adopt_orphans() -> None:
    """Whatever a kernel starts stays below this process, so that it is found and ended with it."""
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)


def serve(fd: int, caps: Caps | None = None) -> None:
    """Answer requests until the judge hangs up."""
    _die_with_parent()
    if caps is not None:
        _adopt_orphans()
        confine(caps)
    sock = socket.socket(fileno=fd)
    state = State()
    while True:
        fds: list[int] = []
        try:
            request = receive(sock, fds=fds)
        except WorkerDied:
            return
        send(sock, answer(state, request, fds))


if __name__ == "__main__":
    serve(int(sys.argv[1]), Caps.from_json(sys.argv[2]) if len(sys.argv) > 2 else None)
