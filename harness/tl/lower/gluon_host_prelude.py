"""Owns what the host side of every Gluon candidate has alike."""

HOST = '''

OPERANDS = {torch.float16: gl.float16, torch.bfloat16: gl.bfloat16}
L2_BYTES = 4 << 20  # of keys and values of heads that are worked on together; 32 MiB cost 15 % at 512 keys
LEAST_HEADS = 8  # though they are more: four cost 0 to 3 % from 2k keys on, one or two 1 to 4 % more
SLOTS = 1 << 14


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    """(0, 0) on a CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


@lru_cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


class _Counters:
    """Counters of tickets, zero before each launch: the last ticket of a launch sets its counter back.

    Launches on one stream run one after the other, so they share a counter; streams, and so devices, have
    their own. A launch that is captured gets one that no other launch ever has: its graph may be replayed on
    any stream, and replays of one graph run one after the other. A shape changes the number of tickets only,
    and a launch always draws as many as it has tiles. Where no counter is left, a launch fills a new one with
    zero, a captured one as part of its graph. None is ever freed: a graph may be replayed when this module is
    gone, and would count in what somebody else has by then.
    """

    def __init__(self, device: torch.device) -> None:
        # 16 bytes each: Triton compiles again for a pointer that is aligned less, which no capture survives.
        self.slots = torch.zeros(SLOTS, 4, dtype=torch.int32, device=device)
        atexit.register(id, self.slots)  # which holds them until then
        torch.cuda.synchronize(device)  # other streams use it too
        self.streams: dict[int, Tensor] = {}
        self.taken = 0

    def of_stream(self, stream: int) -> Tensor | None:
        """The stream's own."""
        if stream not in self.streams and (slot := self.fresh()) is not None:
            self.streams[stream] = slot
        return self.streams.get(stream)

    def fresh(self) -> Tensor | None:
        """One that nobody has had."""
        if self.taken == SLOTS:
            return None
        self.taken += 1
        return self.slots[self.taken - 1]


COUNTERS: dict[torch.device, _Counters] = {}


def _counter(device: torch.device) -> Tensor:
    """For a launch on the current stream."""
    capturing = torch.cuda.is_current_stream_capturing()
    if device not in COUNTERS and not capturing:
        COUNTERS[device] = _Counters(device)
    known = COUNTERS.get(device)
    if known is not None:
        stream = torch.cuda.current_stream(device).cuda_stream
        slot = known.fresh() if capturing else known.of_stream(stream)
        if slot is not None:
            return slot
    return torch.zeros(1, dtype=torch.int32, device=device)


@lru_cache(maxsize=4096)
def _choose(dim: int, seq: int, rows: int, heads: int, processors: int) -> Choice:
    """That of the smallest head dimension large enough, and there of the longest loops not longer; for loops
    shorter than all, of the shortest.

    But one with tiles of fewer rows where the last processor is done with those a tenth sooner: few tiles
    leave processors idle, the more so the larger they are.
    """
    dims = [row[1] for row in CHOICES if row[1] >= dim] or [max(row[1] for row in CHOICES)]
    table = sorted((row[2], row[3]) for row in CHOICES if row[1] == min(dims))
    found = ([choice for start, choice in table if start <= seq] or [table[0][1]])[-1]

    def busy(choice: Choice) -> int:
        """Query rows that the busiest processor works on."""
        size = 64 * choice.consumers
        return -(-heads * -(-rows // size) // processors) * size

    smaller = [choice for _, choice in reversed(table) if choice.consumers < found.consumers]
    quickest = min(smaller, key=busy, default=found)
    return quickest if 10 * busy(quickest) < 9 * busy(found) else found


def _padded(n: int) -> int:
    """The extent of a tile that holds n elements: a power of two."""
    return max(16, triton.next_power_of_2(n))


def _halves(n: int) -> tuple[int, int]:
    """Two powers of two that hold n elements together."""
    first = max(16, triton.next_power_of_2(n) // 2)
    return first, _padded(n - first)


def _described(*tensors: Tensor) -> bool:
    """Whether descriptors can serve: 16-byte addresses and strides, a contiguous last axis, nothing empty or
    expanded."""
    return all(
        t.stride(-1) == 1
        and t.data_ptr() % 16 == 0
        and all(n * t.element_size() % 16 == 0 for n in t.stride()[:-1])
        and all(t.shape)
        and all(t.stride())
        for t in tensors
    )


def _descriptor(t: Tensor, order: tuple[int, ...], block: list[int]) -> TensorDescriptor:
    """Tiles of the tensor, its axes in that order."""
    view = t.permute(order)
    layout = gl.NVMMASharedLayout.get_default_for(block, OPERANDS[t.dtype])
    return TensorDescriptor(view, list(view.shape), list(view.stride()), block, layout)


def _head_group(heads: int, bytes_per_head: int, wanted: int) -> int:
    """How many of the heads are worked on together; a divisor of their number."""
    if wanted:
        return math.gcd(heads, wanted)
    group, most = 1, max(L2_BYTES, LEAST_HEADS * bytes_per_head)
    while heads % (2 * group) == 0 and 2 * group * bytes_per_head <= most:
        group *= 2
    return group
'''

KEYS = '''

@lru_cache(maxsize=4096)
def _keys({parameters}) -> int:
    """That the longest loop goes over, in the smallest tiles."""
    longest = 0
{lines}
    return longest
'''

ROUNDS = '''

@lru_cache(maxsize=4096)
def _{name}({parameters}) -> tuple[bool, bool, bool, bool]:
    """Of the loop over `{var}`, for all groups of rows: whether none is without rounds; whether some skip
    rounds of their tile; whether rounds with a mask follow the first before those without; or after."""
    some, skips, later, last_masked = True, False, False, False
    for {row} in range({count}):
        {var}_start, {var}_stop = {start}, {stop}
        for group_row in range(0, {rows}, 64):
            {var}_first = {first}
            {var}_last = {last}
            {var}_low = {low}
            {var}_high = {high}
            some &= {var}_first < {var}_last
            skips |= {var}_first > {var}_start or {var}_last < {var}_stop
            later |= {lead} > 1
            last_masked |= {trail} > 0
    return some, skips, later, last_masked
'''
