"""Owns choices of a candidate on this GPU: what a call launches, running it once, timing by graph replays."""

from __future__ import annotations

import importlib.util
import statistics
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from harness.crew import LostDevice
from harness.measure.timing import FLUSH_FACTOR
from harness.tl.lower.triton_aot import Launch, Recorder
from harness.tl.schedule import Schedule
from tasks import Task, Workload
from tasks.oracle import expected

Tensors = Mapping[str, Tensor]
Name = TypeVar("Name", bound=Hashable)

WARM_S = 0.3  # of work before the first timing: a GPU that rested, while others compiled, has a low clock
APART = {"fp16": 0.02, "bf16": 0.08}  # of the largest element: more is no rounding
_QUEUED, _PAUSE = 16, 2_000_000  # rounds between two pauses, and clock cycles of one: about a millisecond
_CYCLES = 1_800_000  # of a millisecond's rest
_ROUNDS = (5, 200)  # replays of a choice, at least and at most


def tensors_of(task: Task, w: Workload) -> dict[str, Tensor]:
    generator = torch.Generator("cuda").manual_seed(0)
    drawn = {
        t.name: torch.randn(t.shape(w), generator=generator, device="cuda", dtype=torch.float32)
        for t in task.tensors
    }
    return {name: t.to(w.torch_dtype) for name, t in drawn.items()}


# --- a call -----------------------------------------------------------------------------------------

_MODULES: dict[str, ModuleType] = {}  # candidates imported in this process, by folder


def call_of(
    folder: str, task: Task, w: Workload, tensors: Tensors, choice: Mapping[str, int]
) -> Callable[[], None]:
    """The candidate on these tensors with that choice, whatever its table says."""

    def call() -> None:
        module = _module(folder)
        module._choose = lambda *_: _own(module, choice)  # type: ignore[attr-defined]
        module.attention(**tensors, **task.scalars(w))

    return call


def _own(module: ModuleType, choice: Mapping[str, int]) -> Any:
    """The choice as the candidate's table has it: without the keys that are off in all of its rows."""
    fields, off = module.Choice._fields, Schedule().choice
    lost = [key for key, value in choice.items() if key not in fields and off.get(key) != value]
    if lost:
        raise ValueError(f"the candidate has no code for {', '.join(lost)}: none of its rows turns that on")
    return module.Choice(**{key: value for key, value in choice.items() if key in fields})


def _module(folder: str) -> ModuleType:
    if folder not in _MODULES:
        spec = importlib.util.spec_from_file_location(f"tuned_{len(_MODULES)}", f"{folder}/attention.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, folder)  # for what it imports from beside it
        sys.modules.pop("fallback", None)
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(folder)
        _MODULES[folder] = module
    return _MODULES[folder]


def kernels_of(folder: str, task: Task, w: Workload, tensors: Tensors, choice: Mapping[str, int]) -> str:
    """What a call launches, as far as a compiler sees it; nothing is launched. Equal texts are equal kernels.

    Of a Gluon candidate: its kernels are not specialised on whole numbers, so constants and tiles tell.
    """
    module, found = _module(folder), list[Launch]()
    kernels = {n: k for n, k in vars(module).items() if n.endswith("_kernel") or n == "plain"}
    vars(module).update({n: Recorder(n, found) if n != "plain" else _fallback(found) for n in kernels})
    try:
        call_of(folder, task, w, tensors, choice)()
    finally:
        vars(module).update(kernels)
    return repr([(x.kernel, [_kind(a) for a in x.args], sorted(x.kwargs.items())) for x in found])


def _fallback(found: list[Launch]) -> Callable[..., None]:
    return lambda *args, **kwargs: found.append(Launch("plain", args, {}))


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(value.dtype)
    if hasattr(value, "block_shape"):
        return f"{value.base.dtype}{list(value.block_shape)}{value.layout!r}"
    return type(value).__name__


def try_once(job: tuple[str, Workload, str, Mapping[str, int]]) -> str:
    """Compile, run once, compare; what went wrong, or nothing. Raises LostDevice."""
    from tasks import find

    folder, w, name, choice = job
    try:
        task = find(name)
        tensors = tensors_of(task, w)
        return wrong(call_of(folder, task, w, tensors, choice), task, w, tensors)
    except Exception as problem:  # the compiler's and the driver's errors are many; the text is kept
        return failure(problem)


def failure(problem: Exception) -> str:
    """The error as a line of the record. Raises LostDevice where the device answers nothing any more."""
    text = f"{type(problem).__name__}: {problem}"[:300]
    try:
        torch.cuda.synchronize()
    except Exception as lost:  # a fault of a kernel's stays with the process
        raise LostDevice(text) from lost
    return text


_EXPECTED: dict[str, dict[str, Tensor]] = {}  # of the workload asked about last, in float32


def wrong(call: Callable[[], object], task: Task, w: Workload, tensors: Tensors) -> str:
    """How far what the call leaves in the outputs is from float32, where that is no rounding.

    The tensors are those of `tensors_of`.
    """
    key = f"{w.task} {w.key}"
    if key not in _EXPECTED:
        _EXPECTED.clear()
        _EXPECTED[key] = expected(task, w, tensors, torch.float32)
    outputs = [t.name for t in task.outputs]
    for name in outputs:
        tensors[name].fill_(float("nan"))
    call()
    torch.cuda.synchronize()
    for name in outputs:
        wanted = _EXPECTED[key][name]
        gap, allowed = (tensors[name].float() - wanted).abs().max().item(), APART.get(w.dtype, 0.02)
        if not gap <= allowed * wanted.abs().max().item():  # NaN too
            return f"wrong: {name} is off by {gap:.3g} of {wanted.abs().max().item():.3g}"
    return ""


# --- time -------------------------------------------------------------------------------------------


def captured(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """The call as a graph, after one that compiles."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


@lru_cache
def _flush() -> Tensor:
    """What is filled before each replay, so that it finds a cold L2, as the protocol has it."""
    l2: int = torch.cuda.get_device_properties("cuda").L2_cache_size
    return torch.empty(FLUSH_FACTOR * l2, dtype=torch.int8, device="cuda")


def samples_ms(
    graphs: Mapping[Name, torch.cuda.CUDAGraph], rounds: int, rest_ms: float = 0.0
) -> dict[Name, list[float]]:
    """Milliseconds of each replay with a cold L2, the graphs one after the other in every round.

    So a clock that drifts does the same to all of them. Each round begins with another graph, and all
    launches are queued behind a pause: one that the device waits for would be timed with its latency. Before
    each replay the GPU rests for about `rest_ms`, as it does in the protocol's blocks: without, an H100
    throttles, and ratios move by 5 %.
    """
    marks: dict[Name, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in graphs}
    order = list(graphs)
    for n in range(rounds):
        if n % _QUEUED == 0:
            torch.cuda.synchronize()
            torch.cuda._sleep(_PAUSE)  # type: ignore[no-untyped-call]
        for name in order:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            if rest_ms:
                torch.cuda._sleep(int(rest_ms * _CYCLES))  # type: ignore[no-untyped-call]
            _flush().zero_()  # meanwhile the launch is queued: its latency is not in the time
            begin.record()
            graphs[name].replay()
            end.record()
            marks[name].append((begin, end))
        order = order[1:] + order[:1]
    torch.cuda.synchronize()
    return {name: [a.elapsed_time(b) for a, b in pairs] for name, pairs in marks.items()}


def medians_ms(graphs: Mapping[Name, torch.cuda.CUDAGraph], each_ms: float) -> dict[Name, float]:
    """The median of replays that take about that long for each graph."""
    if not graphs:
        return {}
    once = max(min(times) for times in samples_ms(graphs, 2).values())
    rounds = max(_ROUNDS[0], min(_ROUNDS[1], round(each_ms / max(once, 1e-3))))
    return {name: statistics.median(times) for name, times in samples_ms(graphs, rounds, once).items()}


def time_choices(
    folder: str,
    task: Task,
    w: Workload,
    tensors: Tensors,
    choices: Sequence[Mapping[str, int]],
    each_ms: float,
) -> list[float]:
    """Milliseconds of one call of each, taking turns."""
    graphs = {n: captured(call_of(folder, task, w, tensors, choice)) for n, choice in enumerate(choices)}
    return list(medians_ms(graphs, each_ms).values())


def time_together(
    folder: str,
    task: Task,
    w: Workload,
    tensors: Tensors,
    choices: Sequence[Mapping[str, int]],
    each_ms: float,
) -> list[float | None]:
    """Milliseconds of each choice, taking turns; None for one that fails, or is wrong, on this very shape."""
    graphs: dict[int, torch.cuda.CUDAGraph] = {}
    for n, choice in enumerate(choices):
        call = call_of(folder, task, w, tensors, choice)
        try:
            if not wrong(call, task, w, tensors):
                graphs[n] = captured(call)
        except Exception as problem:  # not one to take
            failure(problem)
    found = medians_ms(graphs, each_ms)
    return [found.get(n) for n in range(len(choices))]


def warm(seconds: float = WARM_S) -> None:
    """Keeps the GPU busy for about that long."""
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    spent = 0.0
    while spent < seconds * 1e3:
        begin.record()
        for _ in range(20):
            a @ a
        end.record()
        end.synchronize()
        spent += begin.elapsed_time(end)
