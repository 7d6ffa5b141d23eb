"""What the tests of the Hopper compiler run generated kernels on without a GPU: Gluon's functions in Python.

Every partition of a block is a thread. Barriers, rings, tickets and turns work as on the device, so a kernel that
would hang there fails here. What runs beside a partition is as late as it may be: a product reads its operands when it
is waited for, a copy out its place; so a place that is given back too early is found overwritten. Layouts, registers
and time mean nothing.
"""

from __future__ import annotations

import atexit
import math
import threading
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.tl.assembly import WARPGROUP, elementwise

PATIENCE = 20.0  # seconds until a wait counts as a deadlock
LAG = 0.0  # seconds that products take longer
HEAD_END = "LOG2_E = "


class Deadlock(RuntimeError):
    """A partition waited for what never came."""


class Barrier:
    """An mbarrier: phases that complete when enough have arrived and all expected bytes have come."""

    def __init__(self, count: int, lock: threading.Condition) -> None:
        self.count, self.lock = count, lock
        self.phase, self.arrived = 0, 0

    def arrive(self, count: int = 1) -> None:
        with self.lock:
            self.arrived += count
            assert self.arrived <= self.count, "more arrivals than the barrier counts"
            if self.arrived == self.count:
                self.arrived, self.phase = 0, self.phase ^ 1
                self.lock.notify_all()

    def wait(self, phase: int) -> None:
        with self.lock:
            if not self.lock.wait_for(lambda: self.phase != phase, PATIENCE):
                raise Deadlock("a barrier")


class Memory:
    """Places in shared memory."""

    def __init__(self, data: Tensor | list[Any]) -> None:
        self.data = data

    def index(self, n: int) -> Any:
        got = self.data[int(n)]
        return got if isinstance(got, Barrier) else Memory(got)

    def reshape(self, shape: list[int]) -> Memory:
        assert isinstance(self.data, Tensor)
        return Memory(self.data.view(shape))

    def permute(self, order: tuple[int, ...]) -> Memory:
        assert isinstance(self.data, Tensor)
        return Memory(self.data.permute(order))

    def load(self, layout: Any) -> Tensor:
        assert isinstance(self.data, Tensor)
        return self.data.clone()

    def store(self, value: Tensor) -> None:
        assert isinstance(self.data, Tensor)
        self.data.copy_(value)


class Descriptor(NamedTuple):
    base: Tensor
    shape: list[int]
    strides: list[int]
    block_shape: list[int]
    layout: Any

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    def window(self, corner: list[int], block: Tensor) -> tuple[Tensor, Tensor]:
        """The part of the tensor under the block, and the part of the block on the tensor."""
        here, there = [], []
        for at, size, extent in zip(corner, self.block_shape, self.shape, strict=True):
            low, high = max(0, int(at)), max(0, min(extent, int(at) + size), int(at))
            low = min(low, extent)
            high = max(low, min(high, extent))
            here.append(slice(low, high))
            there.append(slice(low - int(at), high - int(at)))
        return self.base[tuple(here)], block[tuple(there)]


class _Block(threading.local):
    """What a partition knows of itself, and what runs beside it."""

    number = 0
    count = 1

    def __init__(self) -> None:
        self.products: list[_Running] = []
        self.stores: list[tuple[Tensor, Tensor]] = []


class _Running:
    """A product that has been issued: computed when it is waited for."""

    def __init__(self, a: Any, b: Memory, total: Any, use_acc: bool) -> None:
        self.a, self.b, self.total, self.use_acc = a, b, total, use_acc
        self.value: Tensor | None = None

    def finish(self) -> None:
        total = self.total.value if isinstance(self.total, _Running) else self.total
        left = self.a.data if isinstance(self.a, Memory) else self.a
        assert isinstance(left, Tensor) and isinstance(self.b.data, Tensor) and isinstance(total, Tensor)
        assert left.dtype == self.b.data.dtype
        made = (left.float() @ self.b.data.float()).as_subclass(Value)
        assert made.shape == total.shape
        self.value = total + made if self.use_acc else made


class _Counter(Tensor):
    """A counter in global memory: an address that an offset of zero does not change."""

    def __add__(self, other: Any) -> Any:
        return self


class Device:
    """One emulated device; `module` loads a candidate's source on it."""

    def __init__(self, processors: int = 3) -> None:
        self.processors = processors
        self.lock = threading.Condition()
        self.here = _Block()
        self.named: dict[int, threading.Semaphore] = {}
        self.launches = 0

    # --- a candidate on the device ---

    def module(self, source: str, plain: Callable[..., None] | None = None) -> SimpleNamespace:
        head, _, rest = source.partition(HEAD_END)
        assert "import triton" in head
        cdiv = lambda a, b: -(-a // b)  # noqa: E731
        power = lambda n: 1 << (n - 1).bit_length()  # noqa: E731
        space: dict[str, Any] = {
            "__name__": "emulated", "atexit": atexit, "math": math, "lru_cache": lru_cache, "NamedTuple": NamedTuple, "torch": torch,
            "Tensor": Tensor, "plain": plain, "triton": SimpleNamespace(cdiv=cdiv, next_power_of_2=power),
            "gluon": SimpleNamespace(jit=self._jit), "gl": self._language(), "mbarrier": self._mbarrier(),
            "tma": SimpleNamespace(store_wait=self._store_wait), "fence_async_shared": lambda: None,
            "thread_barrier": lambda: None, "tma_load": self._load, "tma_store": self._store,
            "warpgroup_mma": self._product, "warpgroup_mma_wait": self._wait, "TensorDescriptor": Descriptor,
            "async_copy": SimpleNamespace(mbarrier_arrive=_each_arrives),
        }  # fmt: skip
        exec(compile(HEAD_END + rest, "emulated", "exec", dont_inherit=True), space)
        space["_capability"] = lambda device: (9, 0)
        space["_processors"] = lambda device: self.processors
        counter = torch.zeros(1, dtype=torch.int32).as_subclass(_Counter)
        space["_counter"] = lambda device: counter
        return SimpleNamespace(**space, counter=counter)

    def _jit(self, function: Callable[..., Any] | None = None, **options: Any) -> Any:
        if function is None:
            return self._jit
        return _Kernel(function, self) if function.__name__.endswith("_kernel") else function

    def launch(self, function: Callable[..., Any], grid: tuple[int], args: Any, kwargs: Any) -> None:
        kwargs.pop("num_warps")
        self.launches += 1
        for number in range(grid[0]):
            self.named = {n: threading.Semaphore(0) for n in range(8, 16)}
            self.here.number, self.here.count = number, grid[0]
            function(*args, **kwargs)

    def _specialize(self, parts: list[tuple[Callable[..., Any], tuple[Any, ...]]], *_: Any) -> None:
        """All partitions at once."""
        number, count = self.here.number, self.here.count
        errors: list[BaseException] = []

        def run(function: Callable[..., Any], given: tuple[Any, ...]) -> None:
            self.here.number, self.here.count = number, count
            try:
                function(*given)
                assert not self.here.products and not self.here.stores, "something still runs at the end"
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=part, daemon=True) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise next((e for e in errors if not isinstance(e, Deadlock)), errors[0])

    # --- Gluon ---

    def _mbarrier(self) -> SimpleNamespace:
        return SimpleNamespace(
            MBarrierLayout=lambda: "barriers",
            init=lambda barrier, count: setattr(barrier, "count", count),
            wait=lambda barrier, phase, pred=True: barrier.wait(phase) if pred else None,
            arrive=lambda barrier, count: barrier.arrive(count),
            expect=_expect,
        )

    def _load(self, source: Descriptor, corner: list[int], barrier: Any, target: Memory) -> None:
        assert isinstance(target.data, Tensor)
        assert list(target.data.shape) == source.block_shape
        data, place = source.window(corner, target.data)
        target.data.zero_()
        place.copy_(data)
        barrier.expected -= target.data.numel() * 2
        assert barrier.expected >= 0, "more bytes than were expected"
        if not barrier.expected:
            barrier.arrive()

    def _store(self, target: Descriptor, corner: list[int], source: Memory) -> None:
        assert isinstance(source.data, Tensor)
        self.here.stores.append(target.window(corner, source.data))

    def _store_wait(self, pending: int) -> None:
        assert pending == 0
        for data, place in self.here.stores:
            data.copy_(place)
        self.here.stores.clear()

    def _product(
        self, a: Any, b: Memory, total: Any, use_acc: bool = True, is_async: bool = False
    ) -> _Running:
        assert is_async
        self.here.products.append(_Running(a, b, total, use_acc))
        return self.here.products[-1]

    def _wait(self, pending: int, deps: list[Any]) -> Any:
        running = self.here.products
        time.sleep(LAG)
        while len(running) > pending:
            running.pop(0).finish()
        found = tuple(d.value if isinstance(d, _Running) else d for d in deps)
        assert all(value is not None for value in found), "a product is read that may still run"
        return found[0] if len(found) == 1 else found

    def _asm(
        self, text: str, constraints: str, args: list[Tensor], dtype: Any, pack: int = 1, **_: Any
    ) -> Any:
        if text.startswith("cvt.rn.f16x2"):
            return args[0].half()
        if text.startswith("cvt.rn.bf16x2"):
            return args[0].bfloat16()
        if text.startswith("{"):
            return elementwise(text, args, pack, len(dtype) if isinstance(dtype, tuple) else 1)
        what, number = text.split()[0], int(text.split()[1].rstrip(","))
        if what == "bar.arrive":
            self.named[number].release()
        elif not self.named[number].acquire(timeout=PATIENCE):
            raise Deadlock("a named barrier")
        return None

    def _allocate(self, dtype: Any, shape: list[int], layout: Any) -> Memory:
        if layout == "barriers":
            return Memory([Barrier(0, self.lock) for _ in range(shape[0])])
        fill = 0 if dtype == torch.int32 else float("nan")
        return Memory(torch.full(shape, fill, dtype=dtype))

    def _add(self, counter: Tensor, amount: Any, sem: str, mask: Tensor | None = None) -> Any:
        """Of one, or of a tensor of which one element is not masked."""
        with self.lock:
            was = int(counter)
            counter += 1
        assert mask is None or int(mask.sum()) == 1
        return was if mask is None else torch.where(mask, was, 1 << 20)

    def _language(self) -> SimpleNamespace:
        layout = lambda *args, **kwargs: "layout"  # noqa: E731
        shared = type("NVMMASharedLayout", (), {"get_default_for": staticmethod(layout)})
        pairs: Mapping[str, Callable[..., Any]] = {"maximum": max, "minimum": min}
        return SimpleNamespace(
            constexpr=lambda x: x, static_range=range, int32=torch.int32, int64="int64", float16=torch.float16,
            bfloat16=torch.bfloat16, float32=torch.float32, SliceLayout=layout, DotOperandLayout=layout,
            NVMMADistributedLayout=layout, BlockedLayout=layout, SwizzledSharedLayout=layout, NVMMASharedLayout=shared,
            arange=lambda start, stop, layout=None: torch.arange(start, stop, dtype=torch.int32).as_subclass(Value),
            full=lambda shape, value, dtype, layout=None: torch.full(shape, value, dtype=dtype).as_subclass(Value),
            convert_layout=lambda x, layout: x, exp2=torch.exp2, log2=torch.log2, sqrt=torch.sqrt, abs=abs,
            floor=torch.floor, rsqrt=torch.rsqrt, to_tensor=lambda x: x, cdiv=lambda a, b: -(-a // b),
            max=_most, sum=lambda x, axis: x.sum(axis),
            where=_where, program_id=lambda axis: self.here.number, num_programs=lambda axis: self.here.count,
            allocate_shared_memory=self._allocate, inline_asm_elementwise=self._asm, atomic_add=self._add,
            store=lambda counter, value: counter.fill_(value), warp_specialize=self._specialize,
            **{name: _pair(name, of) for name, of in pairs.items()},
        )  # fmt: skip


class _Kernel:
    def __init__(self, function: Callable[..., Any], device: Device) -> None:
        self._function, self._device = function, device

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        return lambda *args, **kwargs: self._device.launch(self._function, grid, args, kwargs)


class Value(Tensor):
    """A tensor that knows it has a layout."""

    @property
    def type(self) -> Any:
        return SimpleNamespace(layout="layout")


def _expect(barrier: Any, count: int) -> None:
    barrier.expected = count


def _where(cond: Any, a: Any, b: Any) -> Any:
    if isinstance(cond, Tensor):
        return torch.where(cond, a, b)
    return a if cond else b


def _pair(name: str, numbers: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def chosen(a: Any, b: Any) -> Any:
        if not isinstance(a, Tensor) and not isinstance(b, Tensor):
            return numbers(a, b)
        a, b = (x if isinstance(x, Tensor) else torch.tensor(float(x)) for x in (a, b))
        return getattr(torch, name)(a, b)

    return chosen


def _most(x: Tensor, axis: int) -> Any:
    found = x.amax(axis)
    return int(found) if found.ndim == 0 else found


def _each_arrives(barrier: Barrier, increment_count: bool) -> None:
    """Every thread of a warpgroup, none with copies of its own."""
    assert not increment_count
    barrier.arrive(WARPGROUP)
