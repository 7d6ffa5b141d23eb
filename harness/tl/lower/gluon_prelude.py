"""Owns the device functions that Gluon kernels call: channels, turns, masks, rounding, the order of tiles."""

from __future__ import annotations

import re

from harness.tl.lower import triton_prelude

_FIRST_BARRIER = 8  # Triton has 0 to 5 with four consumers: partitions, their start

_PRELUDE = '''
@gluon.jit
def barriers(PLACES: gl.constexpr, ARRIVALS: gl.constexpr):
    """A barrier for each place of a channel."""
    made = gl.allocate_shared_memory(gl.int64, [PLACES, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(PLACES):
        mbarrier.init(made.index(place), count=ARRIVALS)
    return made


@gluon.jit
def onward(place, turn, PLACES: gl.constexpr):
    """The next place of a channel; each time around its barriers change their phase."""
    if PLACES == 1:
        turn = turn ^ 1
    elif PLACES == 2:
        place = place ^ 1
        turn = turn ^ (place ^ 1)
    else:
        place = place + 1
        turn = gl.where(place == PLACES, turn ^ 1, turn)
        place = gl.where(place == PLACES, 0, place)
    return place, turn


@gluon.jit
def give_back(empty, ARRIVALS: gl.constexpr):
    """Let the producer fill the place again: one thread after a barrier of the four warps, or every thread.

    The second is an arrival that follows a thread's own copies, of which there are none.
    """
    if ARRIVALS == 1:
        mbarrier.arrive(empty, count=1)
    else:
        async_copy.mbarrier_arrive(empty, increment_count=False)


@gluon.jit
def draw(counter):
    """A ticket in the first lane. Nothing waits for it yet."""
    lane = gl.arange(0, 32, gl.BlockedLayout([1], [32], [1], [0]))
    return gl.atomic_add(counter + lane * 0, lane * 0 + 1, mask=lane == 0, sem="relaxed")


@gluon.jit
def ticket_of(drawn):
    """The ticket that was drawn."""
    lane = gl.arange(0, 32, gl.BlockedLayout([1], [32], [1], [0]))
    return gl.max(gl.where(lane == 0, drawn, 0), 0)


@gluon.jit
def tile_in(places, place, ROWS: gl.constexpr, COLS: gl.constexpr):
    """The tile in a place of a channel."""
    return places.index(place).reshape([ROWS, COLS])


@gluon.jit
def named_barrier():
    """Stands for what `named_barrier` of this module writes."""


@gluon.jit
def take_turn(WHICH: gl.constexpr, CONSUMERS: gl.constexpr):
    """Wait until the consumer before this one has issued its products."""
    if CONSUMERS > 1:
        named_barrier(0, WHICH)


@gluon.jit
def pass_turn(WHICH: gl.constexpr, CONSUMERS: gl.constexpr):
    if CONSUMERS > 1:
        named_barrier(1, (WHICH + 1) % CONSUMERS)


@gluon.jit
def column_limits(at, SLOPE: gl.constexpr, ROWS: gl.constexpr, LAYOUT: gl.constexpr):
    """For each row at + SLOPE * row, less what of a column's number depends on the thread."""
    layout3: gl.constexpr = gl.SliceLayout(3, LAYOUT)
    quad = gl.arange(0, 4, gl.SliceLayout(0, gl.SliceLayout(1, layout3))) * 2
    pair = gl.arange(0, 2, gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT))))
    taken = quad[None, None, :, None] + pair[None, None, None, :]
    if SLOPE == 0:
        limit = at - taken
    else:
        row = gl.arange(0, ROWS, gl.SliceLayout(1, gl.SliceLayout(2, layout3)))
        limit = (row * SLOPE + at)[:, None, None, None] - taken
    return limit


@gluon.jit
def keep_until(x, at, SLOPE: gl.constexpr, fill):
    """x in each row's columns up to at + SLOPE * row, else `fill`."""
    ROWS: gl.constexpr = x.shape[0]
    COLS: gl.constexpr = x.shape[1]
    apart = x.reshape([ROWS, COLS // 8, 4, 2])
    LAYOUT: gl.constexpr = apart.type.layout
    limit = column_limits(at, SLOPE, ROWS, LAYOUT)
    eights: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, LAYOUT)))
    column = (gl.arange(0, COLS // 8, eights) * 8)[None, :, None, None]
    kept = gl.where(column <= limit, apart, fill)
    return gl.convert_layout(kept.reshape([ROWS, COLS]), x.type.layout)


@gluon.jit
def keep_since(x, at, SLOPE: gl.constexpr, fill):
    """x in each row's columns from at + SLOPE * row on, else `fill`."""
    ROWS: gl.constexpr = x.shape[0]
    COLS: gl.constexpr = x.shape[1]
    apart = x.reshape([ROWS, COLS // 8, 4, 2])
    LAYOUT: gl.constexpr = apart.type.layout
    limit = column_limits(at, SLOPE, ROWS, LAYOUT)
    eights: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, LAYOUT)))
    column = (gl.arange(0, COLS // 8, eights) * 8)[None, :, None, None]
    kept = gl.where(column >= limit, apart, fill)
    return gl.convert_layout(kept.reshape([ROWS, COLS]), x.type.layout)


@gluon.jit
def down_rows(x, LAYOUT: gl.constexpr):
    """A value for each row, beside a tile of that layout."""
    return gl.convert_layout(x, gl.SliceLayout(1, LAYOUT))[:, None]


@gluon.jit
def as_operand(x, LAYOUT: gl.constexpr, OPERAND: gl.constexpr):
    """Rounded, two elements to a register: the compiler's own conversion packs them again every round."""
    placed = gl.convert_layout(x, LAYOUT)
    if OPERAND == gl.float16:
        rounded = gl.inline_asm_elementwise("cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [placed],
                                            dtype=gl.float16, is_pure=True, pack=2)  # fmt: skip
    else:
        rounded = gl.inline_asm_elementwise("cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [placed],
                                            dtype=gl.bfloat16, is_pure=True, pack=2)  # fmt: skip
    return rounded


@gluon.jit
def in_quads(x):
    """A tile as (row, eight columns, thread of the four that hold a row, pair), each thread's where it is."""
    return x.reshape([x.shape[0], x.shape[1] // 8, 4, 2])


@gluon.jit
def maxima(x):
    """For each row the maxima of what each of its four threads holds."""
    return gl.max(gl.max(in_quads(x), 3), 1)


@gluon.jit
def sums(x):
    """For each row the sums of what each of its four threads holds."""
    return gl.sum(gl.sum(in_quads(x), 3), 1)


@gluon.jit
def of_threads(value, COLS: gl.constexpr, LAYOUT: gl.constexpr):
    """A value for each of the threads of a row."""
    return maxima(gl.full([64, COLS], value, gl.float32, LAYOUT))


@gluon.jit
def for_threads(value, COLS: gl.constexpr, LAYOUT: gl.constexpr):
    """A row's value for each of its threads."""
    nothing = of_threads(0.0, COLS, LAYOUT)
    return nothing + gl.convert_layout(value, gl.SliceLayout(1, nothing.type.layout))[:, None]


@gluon.jit
def beside(parts, quads):
    """A value of each thread beside a tile in quads."""
    return gl.convert_layout(parts, gl.SliceLayout(1, gl.SliceLayout(3, quads.type.layout)))[:, None, :, None]


@gluon.jit
def powers(x, times, less):
    """2 to the power of x * times - less, the latter a value of each thread."""
    quads = in_quads(x)
    made = gl.exp2(quads * times - beside(less, quads)).reshape([x.shape[0], x.shape[1]])
    return gl.convert_layout(made, x.type.layout)


@gluon.jit
def moved(found, old):
    """Maxima that follow what was found where it counts, and factors for what was summed up before."""
    return gl.inline_asm_elementwise(MOVING, "=&f,=&f,=&f,=&f,f,f,f,f", [found, old],
                                     dtype=(gl.float32, gl.float32), is_pure=True, pack=2)  # fmt: skip


@gluon.jit
def rescaled(x, parts):
    """x times a factor of each thread, which is 1 in most rounds."""
    HELD: gl.constexpr = x.shape[0] * x.shape[1] // 128  # elements of a thread
    quads = in_quads(x)
    factor = beside(parts, quads)
    if HELD < 16:
        out = quads * factor
    elif HELD == 16:
        out = gl.inline_asm_elementwise(RESCALING_16, REGISTERS_16, [quads, factor],
                                        dtype=gl.float32, is_pure=True, pack=16)  # fmt: skip
    elif HELD == 32:
        out = gl.inline_asm_elementwise(RESCALING_32, REGISTERS_32, [quads, factor],
                                        dtype=gl.float32, is_pure=True, pack=32)  # fmt: skip
    else:
        out = gl.inline_asm_elementwise(RESCALING_64, REGISTERS_64, [quads, factor],
                                        dtype=gl.float32, is_pure=True, pack=64)  # fmt: skip
    return gl.convert_layout(out.reshape([x.shape[0], x.shape[1]]), x.type.layout)


@gluon.jit
def tile_of(t, row_tiles, head_group, LONGEST_FIRST: gl.constexpr):
    """The tile of rows, and the index of the rest of the grid.

    Heads of a group come together, so that their keys and values stay in the L2; within the group the tiles
    of the last rows, whose loops are longest, come first.
    """
    if LONGEST_FIRST:
        group = t // (row_tiles * head_group)
        rest = t - group * (row_tiles * head_group)
        row_tile = row_tiles - 1 - rest // head_group
        other = group * head_group + rest % head_group
    else:
        other = t // row_tiles
        row_tile = t - other * row_tiles
    return row_tile, other
'''


def _gluon(text: str) -> str:
    """Triton's text with Gluon's names: the languages share their functions."""
    text = text.replace("@triton.jit", "@gluon.jit").replace("tl.math.", "gl.")
    return re.sub(r"\btl\.", "gl.", text)


def in_gluon(line: str) -> str:
    """A line of Triton as a line of Gluon."""
    return re.sub(r"\btl\.", "gl.", line.replace("tl.math.", "gl."))


def named_barrier(numbers: int) -> str:
    """Source of the named barriers of so many consumers: assembly takes a literal, so each has a branch."""

    def branches(kind: str) -> list[str]:
        lines = []
        for n in range(numbers):
            head = "if NUMBER == 0:" if n == 0 else "else:" if n == numbers - 1 else f"elif NUMBER == {n}:"
            asm = f'"bar.{kind} {_FIRST_BARRIER + n}, 256; mov.u32 $0, 0;"'
            lines += [
                f"        {head}",
                f'            gl.inline_asm_elementwise({asm}, "=r,r", [gl.to_tensor(0)],',
                "                                      dtype=gl.int32, is_pure=False, pack=1)  # fmt: skip",
            ]
        return lines

    lines = ["@gluon.jit", "def named_barrier(KIND: gl.constexpr, NUMBER: gl.constexpr):"]
    lines.append('    """Of two warpgroups. Gluon has none; it takes the numbers up to 7 itself."""')
    return "\n".join([*lines, "    if KIND == 0:", *branches("sync"), "    else:", *branches("arrive")])


def helpers(body: str, consumers: int) -> str:
    """Source of the functions that the text calls, and of those that these call, in the prelude's order.

    `consumers`: the most warpgroups that the text can be launched with.
    """
    source = {n: named_barrier(max(3, consumers)) if n == "named_barrier" else s for n, s in _SOURCE.items()}
    return triton_prelude.called_from(body, source)


_SHARED = ("floor_div", "ceil_div", "finite", "inverse", "tanh")  # what Triton's kernels call too
_SOURCE = {
    **{name: _gluon(triton_prelude.SOURCE[name]) for name in _SHARED},
    **{
        match[1]: match[0].rstrip()
        for match in re.finditer(r"@gluon\.jit\ndef (\w+)(?:(?!@gluon).)*", _PRELUDE, re.DOTALL)
    },
}
